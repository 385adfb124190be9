//! What is known of a step before any hardware is paid for: the published figures of the chips, and what the
//! compiler says of the program that it made for them.

pub mod chip;
pub mod gpu_target;
pub mod module;
mod running;
pub mod step;
pub mod target;
pub mod text;
mod traffic;

pub use chip::{Bound, Chip, LANES, Roofline, Slice, TOPOLOGIES};
pub use gpu_target::GpuTarget;
pub use module::{Analysis, Collective, Fusions, Group, Instruction, LibraryCall, ModuleError};
pub use step::{MOST_ROWS, Memory, StepPlan, largest_batch};
pub use target::{Compiler, Target};
pub use text::to_text;

use crate::exec::PlacementError;
use crate::pjrt;
use crate::step::StepKind;

pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no plan. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the {step} step does not fit {target}: {reason}")]
    TooLarge { step: StepKind, target: String, reason: String },
    /// Of a form that is none of a slice's.
    #[error("{name}: not a TPU topology; expected one such as {known}")]
    UnknownTopology { name: String, known: String },
    /// The compiler doesn't know it.
    #[error("{name}: libtpu refuses this topology ({message}); known to work: {known}")]
    Topology { name: String, message: String, known: String },
    #[error("{name}: neither a TPU slice, such as v3-8 or v5e:2x4, nor a GPU that is known here ({gpus})")]
    UnknownTarget { name: String, gpus: String },
    #[error("{name}: not a GPU that is known here; expected one of {known}")]
    UnknownGpu { name: String, known: String },
    #[error(transparent)]
    Placement(#[from] PlacementError),
    #[error(transparent)]
    Pjrt(#[from] pjrt::Error),
    #[error(transparent)]
    Module(#[from] ModuleError),
}

impl Error {
    /// True where the user's arguments are at fault.
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Module(_) => false,
            Self::Pjrt(error) => error.is_input_error(),
            _ => true,
        }
    }
}
