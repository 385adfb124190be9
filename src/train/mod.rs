//! Training: the loop over a compiled step, and the job around it.

mod session;
mod trainer;

pub use session::{Job, Observer, Recipe, Session};
pub use trainer::{EpochMetrics, TrainOptions, Trainer};

use crate::data::DataError;
use crate::exec;
use crate::infer;
use crate::run;
use crate::storage::FileError;
use crate::weights::WeightsError;

pub type Result<T> = std::result::Result<T, Error>;

/// Why a model isn't trained. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the loss is {loss} after {steps} steps: the run has diverged")]
    Diverged { loss: f64, steps: u64 },
    /// What an observer could not tell.
    #[error(transparent)]
    Observer(#[from] FileError),
    #[error(transparent)]
    Exec(#[from] exec::Error),
    #[error(transparent)]
    Infer(#[from] infer::Error),
    #[error(transparent)]
    Run(#[from] run::Error),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl Error {
    /// True where the user's input or files are at fault.
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Diverged { .. } | Self::Observer(_) => false,
            Self::Exec(error) => error.is_input_error(),
            Self::Infer(error) => error.is_input_error(),
            Self::Run(error) => error.is_input_error(),
            Self::Data(error) => error.is_input_error(),
            Self::Weights(error) => error.is_input_error(),
        }
    }
}
