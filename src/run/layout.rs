//! The names of a run folder's files.
//!
//! ```text
//! run/
//!   run.json                  which checkpoints count: the one thing that our own readers go by
//!   checkpoints/step-N/       what was committed after N steps: never changed again, whole once it has manifest.json
//!   steps.jsonl               a line per step, which grows while the run is trained
//!   tensorboard/              event files for TensorBoard, where they are asked for
//!   config.json, ...          the model's files of the last whole epoch, for those who expect a Hub model's folder
//! ```

pub use crate::weights::{CONFIG, TOKENIZER, WEIGHTS};

/// Names the checkpoints that count; replaced as one file.
pub const RUN: &str = "run.json";
/// The folder of checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";
/// Names the members of an ensemble, in a folder that holds their runs.
pub const ENSEMBLE: &str = "ensemble.json";
/// The folder of their runs.
pub const MEMBERS: &str = "members";
/// What they have measured, its mean and standard deviation.
pub const SUMMARY: &str = "summary.json";
/// Rows that a fold has held out, with the probabilities that its member gives them.
pub const OUT_OF_FOLD: &str = "out_of_fold_predictions.csv";
/// What was measured on the test table.
pub const TEST: &str = "test.json";
/// What runs have come to once they are trained.
pub const OUTCOMES: [&str; 3] = [TEST, SUMMARY, OUT_OF_FOLD];
/// A line per epoch.
pub const HISTORY: &str = "history.jsonl";
/// A line per step: not committed, and not read by us.
pub const STEPS: &str = "steps.jsonl";
/// The folder of TensorBoard's event files, where they are asked for.
pub const TENSORBOARD: &str = "tensorboard";
pub const LOSS_CHART: &str = "loss.png";
pub const ACCURACY_CHART: &str = "accuracy.png";
/// The held-out rows with their labels and probabilities.
pub const DEV_PREDICTIONS: &str = "dev_predictions.csv";
/// The model card, as the Hub shows it.
pub const CARD: &str = "README.md";
/// How far training has come, and with what.
pub const PROGRESS: &str = "progress.json";
/// Adam's running means of the gradients, and of their squares.
pub const MOMENTS: [&str; 2] = ["first_moments.safetensors", "second_moments.safetensors"];

/// What a trained model's folder holds: the checkpoint of a whole epoch, and the run itself.
pub const FILES: [&str; 8] =
    [CONFIG, TOKENIZER, WEIGHTS, HISTORY, LOSS_CHART, ACCURACY_CHART, DEV_PREDICTIONS, CARD];

/// Those among them that tell of all epochs so far: of the last one's checkpoint, whichever epoch's model counts.
pub const TOLD: [&str; 4] = [HISTORY, LOSS_CHART, ACCURACY_CHART, CARD];

/// All files that a run or an ensemble writes to its own folder.
pub const WRITTEN: [&str; 14] = [
    RUN,
    WEIGHTS,
    CONFIG,
    TOKENIZER,
    HISTORY,
    STEPS,
    LOSS_CHART,
    ACCURACY_CHART,
    DEV_PREDICTIONS,
    CARD,
    ENSEMBLE,
    TEST,
    SUMMARY,
    OUT_OF_FOLD,
];

/// What a checkpoint holds besides, so that training goes on from it. One in the middle of an epoch has these, and of
/// [`FILES`] the first four.
pub const TRAINING_FILES: [&str; 3] = [PROGRESS, MOMENTS[0], MOMENTS[1]];

/// The name, among [`CHECKPOINTS`], of what is committed after `step` steps.
pub fn checkpoint(step: u64) -> String {
    format!("step-{step}")
}

/// The steps after which a checkpoint of this name was committed; `None` for a name that is none's.
pub fn step(checkpoint: &str) -> Option<u64> {
    let mut numbers = checkpoint.strip_prefix("step-")?.split('-');
    let step = number(numbers.next()?)?;
    // Whatever follows tells checkpoints of one step apart.
    numbers.all(|text| number(text).is_some()).then_some(step)
}

/// A number of digits alone: `parse` would take a sign as well.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}
