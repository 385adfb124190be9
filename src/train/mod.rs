//! Training: the loop over a compiled step, and the job around it.

mod begin;
mod cadence;
mod epochs;
mod job;
mod keep;
mod keeper;
mod kept;
mod members;
mod metrics;
pub mod notices;
mod options;
mod origin;
mod programs;
mod recipe;
mod resume;
mod saver;
mod session;
mod shared;
mod stop;
mod terms;
mod trainer;

use std::path::PathBuf;

pub use cadence::Cadence;
pub use job::{Ending, Job, Observer, Parts, SaveOptions, Source};
pub use keep::{Keep, KeptEpoch, Metric};
pub use members::{Member, MemberSummary, Members, Outcome, Summary};
pub use metrics::{EpochMetrics, StepMetrics};
pub use options::TrainOptions;
pub use origin::{Origin, SavedTensor};
pub use programs::Programs;
pub use recipe::{ClassWeights, HeldOut, Recipe, Warmup};
pub use session::{Session, Started};
pub use shared::Shared;
pub use stop::Stop;
pub use trainer::{Pause, Trainer};

use crate::data::DataError;
use crate::exec;
use crate::infer;
use crate::report::ReportError;
use crate::run::{self, Difference};
use crate::storage::FileError;
use crate::weights::WeightsError;

pub type Result<T> = std::result::Result<T, Error>;

/// Why a model isn't trained. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} after {steps} steps: the run has diverged{}", kept_after(*.kept))]
    Diverged {
        /// What is no number.
        what: String,
        steps: u64,
        /// The steps after which the last checkpoint was made.
        kept: Option<u64>,
    },
    /// Its folder holds a run that was started otherwise.
    #[error("the run in {} was started otherwise: {}", path.display(), all(different))]
    Differs { path: PathBuf, different: Vec<Difference> },
    #[error("{}: there is no whole checkpoint to go on from", path.display())]
    NothingToResume { path: PathBuf },
    /// A run that is finished on another host's disk.
    #[error("{}: process {process} of the slice has this run, and the first one, which tests and sums up, hasn't", path.display())]
    Elsewhere { path: PathBuf, process: usize },
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
    Report(#[from] ReportError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl Error {
    fn diverged(what: String, steps: u64) -> Self {
        Self::Diverged { what, steps, kept: None }
    }

    /// A run that has diverged, with the steps after which the last checkpoint was made.
    fn with_kept(self, kept: Option<u64>) -> Self {
        match self {
            Self::Diverged { what, steps, .. } => Self::Diverged { what, steps, kept },
            Self::Run(run::Error::NotFinite { tensor, step }) => Self::Diverged {
                what: format!("`{tensor}` has values that are no numbers"),
                steps: step,
                kept,
            },
            other => other,
        }
    }

    /// True where the user's input or files are at fault.
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Diverged { .. } | Self::Observer(_) => false,
            Self::Differs { .. } | Self::NothingToResume { .. } | Self::Elsewhere { .. } => true,
            Self::Exec(error) => error.is_input_error(),
            Self::Infer(error) => error.is_input_error(),
            Self::Run(error) => error.is_input_error(),
            Self::Report(error) => error.is_input_error(),
            Self::Data(error) => error.is_input_error(),
            Self::Weights(error) => error.is_input_error(),
        }
    }
}

fn kept_after(kept: Option<u64>) -> String {
    kept.map_or_else(String::new, |step| format!("; the checkpoint of step {step} is kept"))
}

fn all(different: &[Difference]) -> String {
    different.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
}
