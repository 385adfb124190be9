//! What is known of a step before any hardware is paid for: the published figures of the chips, and what the
//! compiler says of the program that it made for them.

pub mod chip;
pub mod gpu_target;
pub mod module;
pub mod step;
pub mod target;
pub mod text;
mod traffic;

pub use chip::{Bound, Chip, Roofline, Slice, TOPOLOGIES};
pub use gpu_target::GpuTarget;
pub use module::{Analysis, Collective, Fusions, Group, Instruction, LibraryCall, ModuleError};
pub use step::{Memory, StepPlan, largest_batch};
pub use target::{Compiler, Target};
pub use text::to_text;
