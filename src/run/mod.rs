//! The folder of a training run: what is in it, how it is committed, and what reads it back.

mod description;
pub mod layout;
mod predictions;
mod reader;
mod writer;

use std::path::PathBuf;

pub use predictions::{DevPredictions, Submission, write_submission};
pub use reader::{Run, model_files, model_folder, read_json};
pub use writer::{Description, Snapshot, Tensors, Writer};

use crate::data::DataError;
use crate::model::ConfigError;
use crate::report::ReportError;
use crate::storage::FileError;
use crate::weights::{HubError, WeightsError};

pub type Result<T> = std::result::Result<T, Error>;

/// Why a run folder can't be read or written. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: there is no such folder", path.display())]
    NoRun { path: PathBuf },
    #[error("{} already holds {}", path.display(), held(name))]
    Holds {
        path: PathBuf,
        /// A file that a run would replace.
        name: &'static str,
    },
    #[error("{}: another process is writing a run there", path.display())]
    InUse { path: PathBuf },
    /// A file that doesn't hold what it should.
    #[error("{}: {message}", path.display())]
    Input { path: PathBuf, message: String },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Report(#[from] ReportError),
}

impl Error {
    /// True where the folder or its files are at fault, false where reading or writing failed.
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::NoRun { .. } | Self::Holds { .. } | Self::InUse { .. } | Self::Input { .. } => true,
            Self::File(_) => false,
            Self::Config(error) => error.is_input_error(),
            Self::Data(error) => error.is_input_error(),
            Self::Hub(error) => error.is_input_error(),
            Self::Weights(error) => error.is_input_error(),
            Self::Report(error) => error.is_input_error(),
        }
    }
}

fn held(name: &str) -> String {
    match name {
        layout::RUN | layout::WEIGHTS => "a run".to_owned(),
        other => format!("{other}, which a run would replace"),
    }
}
