//! Training: the step's program, the optimizer, and the loop around them.

mod adam;
mod inference;
mod kind;
mod step;
mod trainer;
mod weights;

pub use inference::{Evaluation, Inference};
pub use kind::StepKind;
pub use step::{Step, StepConfig, encode_step, eval_step, predict_step, train_step};
pub use trainer::{EpochMetrics, TrainOptions, Trainer};
pub use weights::{InitialValues, checkpoint_key, upload_weights};
