//! The programs that a job runs, each with its interface: training (forward and loss, gradients, their reduction over
//! the replicas, the update), evaluation, prediction and encoding.

mod backward;
mod execution;
mod forward;
mod held;
mod inference;
mod kind;
mod schedule;
mod signature;
mod train;
mod training;
mod update;
mod zeros;

pub use execution::{Execution, ExecutionOptions, Precision};
pub use inference::{EncodeConfig, encode_step, eval_step, predict_step};
pub use kind::StepKind;
pub use schedule::Schedule;
pub use signature::{Dealt, InputId, Layout, LeafId, Moment, OutputId, Port, Signature, Step};
pub use train::train_step;
pub use training::{Freeze, Training};
pub use zeros::zeros_step;

use crate::model::ClassifierConfig;

/// What fixes a step's program.
#[derive(Clone, Debug, PartialEq)]
pub struct StepConfig {
    pub model: ClassifierConfig,
    /// Tokens of each text, padding included: as many as the model reads at most, or fewer.
    pub length: usize,
    /// Examples that each replica takes at a time.
    pub rows: usize,
    /// Replicas that run the program together.
    pub replicas: usize,
    /// What the train step does; the others don't depend on it.
    pub training: Training,
    pub execution: Execution,
}

impl StepConfig {
    /// Of the recipe's training.
    pub fn new(model: ClassifierConfig, rows: usize, replicas: usize) -> Self {
        let (training, execution) = (Training::default(), Execution::default());
        Self { length: model.max_length, model, rows, replicas, training, execution }
    }
}
