//! The folder of a training run: what is in it, how it is committed, and what reads it back.

pub mod card;
mod checkpoint;
mod description;
mod ensemble;
mod hold;
pub mod layout;
mod names;
mod predictions;
mod progress;
mod reader;
mod runs;
mod snapshot;
mod steps;
mod strays;
mod tensorboard;
mod vacancy;
mod writer;

use std::path::PathBuf;

pub use card::Provenance;
pub use checkpoint::{Checkpoint, Newest, kept_record, last_arguments};
pub use description::classifier_labels;
pub use ensemble::{Ensemble, is_ensemble};
pub use names::{attempt, started};
pub use predictions::{DevPredictions, Submission, WrongRows, write_submission};
pub use progress::{Best, Difference, Progress, Terms, Within, differences, flatten};
pub use reader::{
    Run, checkpoint_name, model_files, model_folder, read_card, read_json, read_probabilities, read_told,
    settings,
};
pub use runs::{Runs, state};
pub use snapshot::{Description, Snapshot, Tensor};
pub use steps::StepLog;
pub use tensorboard::TensorBoard;
pub use vacancy::{check_outcomes, has_outcome};
pub use writer::Writer;

use crate::data::DataError;
use crate::model::ConfigError;
use crate::report::ReportError;
use crate::storage::{FileError, is_damage};
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
    #[error("{} already holds an ensemble, where a single run is to go", path.display())]
    HoldsEnsemble { path: PathBuf },
    #[error("{} already holds {name} of a single run, where an ensemble is to go", path.display())]
    HoldsRun { path: PathBuf, name: &'static str },
    #[error("{} already holds an ensemble of {count} other members", path.display())]
    OtherMembers { path: PathBuf, count: usize },
    #[error("{}: none of the {count} members of this ensemble can answer until all are trained", path.display())]
    Unfinished { path: PathBuf, count: usize },
    #[error("{}: another process is writing a run there", path.display())]
    InUse { path: PathBuf },
    /// A run in a bucket, that another process has gone on with.
    #[error("{}: another process has taken the run over; this one stops, and has replaced nothing of it", path.display())]
    TakenOver { path: PathBuf },
    #[error("{}: no epoch of this run is done yet{}", path.display(), so_far(newest))]
    NoEpoch { path: PathBuf, newest: Option<String> },
    #[error("tensor `{tensor}` has values that are no numbers after {step} steps: the run has diverged")]
    NotFinite { tensor: String, step: u64 },
    /// Runs whose answers were to be averaged.
    #[error("the labels of {} and {} differ: {difference}", first.display(), other.display())]
    Labels { first: PathBuf, other: PathBuf, difference: String },
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
    /// Of a committed file: it is at fault where it is damaged, and not where it can't be looked at.
    fn committed(error: FileError) -> Self {
        match is_damage(&error) {
            true => Self::Input { message: error.source.to_string(), path: error.path },
            false => Self::File(error),
        }
    }

    /// True where the folder or its files are at fault, false where reading or writing failed.
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::NoRun { .. }
            | Self::Holds { .. }
            | Self::HoldsEnsemble { .. }
            | Self::HoldsRun { .. }
            | Self::OtherMembers { .. }
            | Self::Unfinished { .. }
            | Self::InUse { .. }
            | Self::NoEpoch { .. }
            | Self::Labels { .. }
            | Self::Input { .. } => true,
            Self::TakenOver { .. } | Self::NotFinite { .. } => false,
            Self::File(error) => error.is_input_error(),
            Self::Config(error) => error.is_input_error(),
            Self::Data(error) => error.is_input_error(),
            Self::Hub(error) => error.is_input_error(),
            Self::Weights(error) => error.is_input_error(),
            Self::Report(error) => error.is_input_error(),
        }
    }
}

fn so_far(newest: &Option<String>) -> String {
    newest.as_ref().map_or_else(String::new, |newest| format!("; {newest} in it is a model so far"))
}

fn held(name: &str) -> String {
    match name {
        layout::RUN | layout::WEIGHTS => "a run".to_owned(),
        other => format!("{other}, which a run would replace"),
    }
}
