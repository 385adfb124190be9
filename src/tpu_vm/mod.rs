//! Cloud TPU VMs, launched through `gcloud`: made, set up, trained on, watched through preemptions, and deleted.

mod answers;
mod decide;
mod gcloud;
mod job;
mod verbs;
mod watch;
mod worker;

pub use answers::{Node, Queued};
pub use decide::Lookup;
use gcloud::Failure;
pub use gcloud::{Gcloud, Limits, Route, Vm, quote};
pub use job::{Job, Machine, Record, SetUp, Start, Watched, new_id};
pub use verbs::{Fetch, Verbs};
pub use watch::{WatchOptions, watch};
pub use worker::NO_RUN;

use crate::storage::FileError;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("gcloud is not here: install the Google Cloud CLI")]
    NoGcloud,
    /// gcloud, or what it ran, has told why.
    #[error("the command ended with status {status}")]
    Failed { status: u8 },
    /// As the API, or a worker, has told.
    #[error("{}", .0.message)]
    Refused(Failure),
    #[error("{0}")]
    Told(String),
    #[error("neither XDG_STATE_HOME nor HOME says where what is known of a TPU VM is kept")]
    NoStateFolder,
    #[error("{name} in {zone} was not {what} from this machine")]
    Unknown { name: String, zone: String, what: &'static str },
    #[error("{name} is watched, or changed, by another process here: end that first, or wait for it")]
    Watched { name: String },
    #[error("can't run gcloud: {0}")]
    Io(std::io::Error),
    #[error(transparent)]
    File(#[from] FileError),
}

impl Error {
    /// True where what was asked for can't be done as it stands.
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Unknown { .. } => true,
            Self::File(error) => error.is_input_error(),
            _ => false,
        }
    }
}
