//! The names of a run folder's files.
//!
//! ```text
//! run/
//!   run.json                  which checkpoint counts: the one thing that our own readers go by
//!   checkpoints/step-N/       what was committed after N steps: never changed again, whole once it has manifest.json
//!   config.json, ...          the files of that checkpoint once more, for those who expect a Hub model's folder
//! ```

pub use crate::weights::{CONFIG, TOKENIZER, WEIGHTS};

/// Names the checkpoint that counts; replaced as one file.
pub const RUN: &str = "run.json";
/// The folder of checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";
/// A line per epoch.
pub const HISTORY: &str = "history.jsonl";
pub const LOSS_CHART: &str = "loss.png";
pub const ACCURACY_CHART: &str = "accuracy.png";
/// The held-out rows with their labels and probabilities.
pub const DEV_PREDICTIONS: &str = "dev_predictions.csv";

/// What a checkpoint holds, beside its manifest.
pub const FILES: [&str; 7] =
    [CONFIG, TOKENIZER, WEIGHTS, HISTORY, LOSS_CHART, ACCURACY_CHART, DEV_PREDICTIONS];

/// The name, among [`CHECKPOINTS`], of what is committed after `step` steps.
pub fn checkpoint(step: u64) -> String {
    format!("step-{step}")
}
