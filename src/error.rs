//! What a command can fail with, and the exit code for it.

use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointError;
use crate::data::DataError;
use crate::hub::HubError;
use crate::model::ConfigError;
use crate::pjrt::{self, Backend};
use crate::plan::ModuleError;
use crate::report::ReportError;
use crate::train::StepKind;

pub type Result<T> = std::result::Result<T, Error>;

/// An error of any layer. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The arguments don't go together.
    #[error("{0}")]
    Usage(String),
    #[error("{action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// A file or folder that was given doesn't hold what it should.
    #[error("{}: {message}", path.display())]
    Input { path: PathBuf, message: String },
    /// Every backend, and why it can't be used.
    #[error("no backend is usable: {}", list(.0))]
    NoBackend(Vec<(Backend, String)>),
    #[error("the loss is {loss} after {steps} steps: the run has diverged; try a lower --learning-rate")]
    Diverged { loss: f64, steps: u64 },
    #[error("process {process} of the slice has failed and says why; this one stops too")]
    OtherProcess { process: i32 },
    #[error(
        "the {step} step does not fit {target}: {reason}; choose a smaller --batch-size or --max-length, or more devices"
    )]
    TooLarge { step: StepKind, target: String, reason: String },
    #[error(transparent)]
    Pjrt(#[from] pjrt::Error),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error(transparent)]
    Module(#[from] ModuleError),
}

impl Error {
    /// For `map_err`: `action` is what was tried, such as "can't write".
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// True where the user's input or arguments are at fault (exit code 2), false for a failure (exit code 1).
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Usage(_) | Self::Input { .. } | Self::NoBackend(_) | Self::TooLarge { .. } => true,
            Self::File { .. } | Self::Diverged { .. } | Self::OtherProcess { .. } | Self::Module(_) => false,
            Self::Pjrt(error) => error.is_input_error(),
            Self::Data(error) => error.is_input_error(),
            Self::Hub(error) => error.is_input_error(),
            Self::Checkpoint(error) => error.is_input_error(),
            Self::Config(error) => error.is_input_error(),
            Self::Report(error) => error.is_input_error(),
        }
    }
}

fn list(reasons: &[(Backend, String)]) -> String {
    let reasons = reasons.iter().map(|(backend, reason)| format!("{backend}: {reason}"));
    reasons.collect::<Vec<_>>().join("; ")
}
