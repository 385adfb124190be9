//! Asking a trained model: compiled programs that don't train, and what answers texts with them.

mod encoder;
mod ensemble;
mod lengths;
mod predictor;
mod prepared;
mod programs;
mod upload;

pub use encoder::Encoder;
pub use ensemble::{Ensemble, Scores, Tokenizers};
pub use predictor::Predictor;
pub use prepared::{Prepared, Prompt};
pub use programs::{EncodeProgram, EvalProgram, Evaluation, PredictProgram};
pub use upload::{MeetInput, upload_batch, upload_weights};

use crate::data::DataError;
use crate::exec;
use crate::run;
use crate::weights::WeightsError;

pub type Result<T> = std::result::Result<T, Error>;

/// Why a model gives no answer. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Of a run that has diverged, or damaged weights.
    #[error("the model's answers are not numbers: its weights are of no use")]
    NotNumbers,
    #[error(transparent)]
    Exec(#[from] exec::Error),
    #[error(transparent)]
    Run(#[from] run::Error),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// Whether a model's answers are numbers.
fn check(probabilities: &[f32]) -> Result<()> {
    if probabilities.iter().all(|p| p.is_finite()) { Ok(()) } else { Err(Error::NotNumbers) }
}

impl Error {
    /// True where the user's input or files are at fault.
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::NotNumbers => true,
            Self::Exec(error) => error.is_input_error(),
            Self::Run(error) => error.is_input_error(),
            Self::Data(error) => error.is_input_error(),
            Self::Weights(error) => error.is_input_error(),
        }
    }
}
