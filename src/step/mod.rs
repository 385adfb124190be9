//! The programs that a job runs, each with its interface: training (forward and loss, gradients, their reduction over
//! the replicas, the update), evaluation, prediction and encoding.

mod forward;
mod inference;
mod kind;
mod reduce;
mod signature;
mod train;
mod update;
mod zeros;

pub use forward::CLIP;
pub use inference::{EncodeConfig, encode_step, eval_step, predict_step};
pub use kind::StepKind;
pub use signature::{InputId, Layout, LeafId, Moment, OutputId, Port, Signature, Step};
pub use train::train_step;
pub use zeros::zeros_step;

use crate::model::ClassifierConfig;

/// What fixes a step's program.
#[derive(Clone, Debug, PartialEq)]
pub struct StepConfig {
    pub model: ClassifierConfig,
    /// Examples that each replica takes per step.
    pub rows: usize,
    /// Replicas that run the program together.
    pub replicas: usize,
}
