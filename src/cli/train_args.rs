//! The flags of `bert-xla train`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::execution::ExecutionArgs;
use super::model::ClassifierArgs;
use super::options::{DeviceArgs, TableArgs, count};
use super::recipe::{EvaluationArgs, RecipeArgs};
use crate::run::Provenance;
use crate::train::{Cadence, SaveOptions};

/// Fine-tune a classifier on a labelled table.
///
/// The defaults are the published recipe: multilingual BERT, 140 tokens, no attention mask, Flatten, dense layers of
/// 512 and 440, softplus over 4 classes, Adam at 1e-5, 5 epochs of batches of 16, and a tenth of the rows held out
/// by scikit-learn's train_test_split.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    bert-xla train --train train.csv --output run\n  \
    bert-xla train --train tunizi.txt --separator ';' --no-header --skip-bad-rows --model ./minilm \\\n      \
    --max-length 64 --learning-rate 5e-5 --epochs 4 --output run\n  \
    bert-xla train --train train.csv --output run --dry-run    # the model, layer by layer\n  \
    bert-xla train --train train.csv --output run --checkpoint-every 10m\n  \
    bert-xla train --output run --resume                       # as above, from the newest checkpoint on\n  \
    bert-xla train --train train.csv --output run --head cls --mask --learning-rate 5e-5 --warmup 0.1 --schedule linear \\\n      \
    --weight-decay 0.01 --keep best --early-stopping 2\n  \
    bert-xla train --train train.csv --output ensemble --folds 5 --stratify --test test.csv\n  \
    bert-xla train --train train.csv --output run --tensorboard    # then: tensorboard --logdir run/tensorboard\n\n\
    A run that was cut short goes on with the same command: from its newest checkpoint, bit for bit as if it had not\n\
    been cut. SIGTERM, Ctrl-C or a TPU VM's notice of preemption save first; the exit status is 75 then.")]
pub struct TrainArgs {
    /// The labelled table: texts and labels; also gs://bucket/path
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "resume",
        // A path alone may not be empty.
        value_parser = OsStringValueParser::new().map(PathBuf::from),
        default_value = "",
        hide_default_value = true
    )]
    pub train: PathBuf,
    /// Where the weights, curves and predictions go
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    #[command(flatten)]
    pub save: SaveArgs,
    /// Write event files for TensorBoard, of each step and epoch: to the run's own folder tensorboard, or to DIR, of this run
    /// alone, also gs://bucket/path; of several members, each to a folder of its name
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    pub tensorboard: Option<Option<PathBuf>>,
    /// Say what would be trained, layer by layer, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON line per epoch on stdout, at the end one of what several members and a test have come to, and no
    /// progress
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub recipe: RecipeArgs,
    #[command(flatten)]
    pub evaluation: EvaluationArgs,
    #[command(flatten)]
    pub table: TableArgs,
    #[command(flatten)]
    pub execution: ExecutionArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// All of these as they were written, to be found in the run's checkpoints.
    #[arg(skip)]
    pub written: Vec<String>,
}

/// What becomes of the folder.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Checkpoints")]
pub struct SaveArgs {
    /// Replace the run that --output holds; one of the same command that is not finished goes on all the same
    #[arg(long)]
    pub overwrite: bool,
    /// Go on with the run that --output holds, with its own arguments where no others are given here
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Save between the ends of epochs too: each N steps, or N minutes (Nm)
    #[arg(long, value_name = "N|Nm")]
    pub checkpoint_every: Option<Cadence>,
    /// How many of the last checkpoints are kept; that of the best epoch (by --metric) is kept besides
    #[arg(long, default_value_t = 2, value_parser = count(), value_name = "K")]
    pub keep_last: usize,
}

impl SaveArgs {
    pub fn options(&self, patience: Option<u32>, provenance: Provenance) -> SaveOptions {
        SaveOptions {
            replace: self.overwrite,
            resume: self.resume,
            cadence: self.checkpoint_every.unwrap_or_default(),
            keep_last: self.keep_last,
            patience,
            provenance,
        }
    }
}

/// The pretrained encoder and the head on it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// The encoder: a folder, also gs://bucket/path, or a model id of the Hugging Face Hub
    #[arg(long, default_value = "bert-base-multilingual-cased", value_name = "ID|DIR")]
    pub model: String,
    /// Branch, tag or commit of the model id
    #[arg(long)]
    pub revision: Option<String>,
    /// Start from random weights: only the configuration and the tokenizer are read
    #[arg(long)]
    pub random_weights: bool,
    #[command(flatten)]
    pub classifier: ClassifierArgs,
}
