//! Where programs run: a backend, replicas on its devices, and the processes of a slice kept in step.

mod agreement;
mod backend;
mod barrier;
mod broadcast;
mod executable;
#[cfg(feature = "xla-extension")]
mod extension;
mod lowering;
mod placement;
mod read;
mod replicas;
mod runtime;
mod state;
mod watch;

use std::time::Duration;

pub use agreement::{Fingerprint, hash_files};
pub use backend::{DeviceOptions, OnBusy};
pub use broadcast::CHUNK_BYTES;
pub use executable::{Executable, Inputs, Outputs, Pending};
pub use lowering::Lowered;
pub use placement::{Placement, PlacementError};
pub use replicas::{Placed, Replicas};
pub use runtime::{Argument, Array, Compiled, Element, LinkedRuntime, RuntimeKind};
pub use state::State;
pub use watch::{OnTimeout, OnWait};

use crate::pjrt::{self, Backend};

pub type Result<T> = std::result::Result<T, Error>;

/// Why nothing runs. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The one that was named.
    #[error("{backend}: {reason}")]
    Backend { backend: Backend, reason: String },
    /// One that was found, when none was named.
    #[error("there is a {backend}, but it can't be used: {error}")]
    Unusable { backend: Backend, error: Box<Self> },
    /// All the time, after the first try.
    #[error(
        "{error}; so it was for {} s: another process of this machine holds the TPU; `sudo lsof -w /dev/accel* \
         /dev/vfio/*` shows which one, to be ended; if there is none, remove /tmp/libtpu_lockfile",
        waited.as_secs()
    )]
    Busy { waited: Duration, error: pjrt::Error },
    #[error("a plugin's file is given, but not which backend it is for")]
    PluginWithoutBackend,
    /// Every backend, and why it can't be used.
    #[error("no backend is usable: {}{}", reasons(.0), linked_hint())]
    NoBackend(Vec<(Backend, String)>),
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Each process that differs, and in what.
    #[error(
        "the hosts of the slice differ from process 0: {}; give each the same program, files and arguments",
        differences(.0)
    )]
    Differ(Vec<(i32, Vec<&'static str>)>),
    #[error("process {process} of the slice has failed and says why; this one stops too (after {phase})")]
    OtherProcess { process: i32, phase: &'static str },
    #[error(
        "waited {} s for {}: one of them is missing, has stopped or has failed; see what they say",
        waited.as_secs(), waited_for(phase)
    )]
    Timeout { phase: &'static str, waited: Duration },
    #[error("the state is lost: the step that was to replace it has failed")]
    StateLost,
    #[error("a part of the array is on other hosts of the slice")]
    Elsewhere,
    #[error(
        "this program was built without the xla runtime: `cargo build --release --features xla-extension` builds it in, with \
         XLA_EXTENSION_DIR set, see docs/xla-extension.md"
    )]
    NotLinked,
    /// What the xla runtime can't do, and what to do instead.
    #[error("the xla runtime {0}")]
    Lacks(String),
    /// XLA's own error, as the xla runtime gives it.
    #[error("xla: {doing}: {reason}")]
    Xla { doing: &'static str, reason: String },
    #[error(transparent)]
    Pjrt(#[from] pjrt::Error),
}

impl Error {
    /// True where the user's input or arguments are at fault.
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Backend { .. }
            | Self::PluginWithoutBackend
            | Self::NoBackend(_)
            | Self::NotLinked
            | Self::Lacks(_)
            | Self::Placement(_)
            | Self::Differ(_) => true,
            Self::Busy { .. }
            | Self::OtherProcess { .. }
            | Self::Timeout { .. }
            | Self::StateLost
            | Self::Elsewhere
            | Self::Xla { .. } => false,
            Self::Unusable { error, .. } => error.is_input_error(),
            Self::Pjrt(error) => error.is_input_error(),
        }
    }
}

/// Before there is a connection, nobody knows whether there are others.
fn waited_for(phase: &str) -> String {
    match phase {
        backend::CONNECTING => {
            format!("the devices or the other hosts of the slice, if they are a slice's ({phase})")
        }
        _ => format!("the other hosts of the slice ({phase})"),
    }
}

/// What there is besides plugins.
fn linked_hint() -> &'static str {
    match RuntimeKind::xla() {
        Ok(_) => "; --runtime xla takes the XLA library that is linked to this program",
        Err(_) => "",
    }
}

fn reasons(reasons: &[(Backend, String)]) -> String {
    let reasons = reasons.iter().map(|(backend, reason)| format!("{backend}: {reason}"));
    reasons.collect::<Vec<_>>().join("; ")
}

fn differences(differences: &[(i32, Vec<&'static str>)]) -> String {
    let differences =
        differences.iter().map(|(process, parts)| format!("process {process} in {}", parts.join(", ")));
    differences.collect::<Vec<_>>().join("; ")
}
