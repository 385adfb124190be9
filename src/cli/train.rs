//! `bert-xla train`: from a labelled table and a checkpoint to a run folder.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::model::{ClassifierArgs, MAX_LENGTH};
use super::options::{DeviceArgs, TableArgs, count};
use super::{Console, Error, Result};
use crate::data::{LabelMap, Purpose, Table, train_test_split};
use crate::model::{BertConfig, ClassifierConfig};
use crate::nn::Part;
use crate::report::{EpochProgress, EpochRecord};
use crate::run::{model_files, read_json};
use crate::storage::FileError;
use crate::train::{Job, Observer, Recipe, Session};
use crate::weights::{Hub, TensorFiles, open_tokenizer, open_weights};

/// Fine-tune a classifier on a labelled table.
///
/// The defaults are the published recipe: multilingual BERT, 140 tokens, no attention mask, Flatten, dense layers of
/// 512 and 440, softplus over 4 classes, Adam at 1e-5, 5 epochs of batches of 16, and a tenth of the rows held out
/// by scikit-learn's train_test_split.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    bert-xla train --train train.csv --output run\n  \
    bert-xla train --train tunizi.txt --separator ';' --no-header --skip-bad-rows --model ./minilm \\\n      \
    --max-length 64 --learning-rate 5e-5 --epochs 4 --output run\n  \
    bert-xla train --train train.csv --output run --dry-run    # the model, layer by layer")]
pub struct TrainArgs {
    /// The labelled table: texts and labels
    #[arg(long, value_name = "FILE")]
    pub train: PathBuf,
    /// Where the weights, curves and predictions go
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Replace the run that --output holds
    #[arg(long)]
    pub overwrite: bool,
    /// Say what would be trained, layer by layer, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON line per epoch on stdout, and no progress
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub recipe: RecipeArgs,
    #[command(flatten)]
    pub table: TableArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// The pretrained encoder and the head on it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// The encoder: a folder, or a model id of the Hugging Face Hub
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

/// How it is trained.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Training")]
pub struct RecipeArgs {
    /// Examples per step, over all replicas
    #[arg(long, default_value_t = 16, value_parser = count(), value_name = "N")]
    pub batch_size: usize,
    /// Passes over the training rows; the run is saved after each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub epochs: u32,
    /// Adam's learning rate
    #[arg(long, default_value_t = 1e-5, value_name = "RATE")]
    pub learning_rate: f64,
    /// Share of the rows held out, more than 0 and less than 1
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    pub dev_size: f64,
    /// Decides which rows are held out (random_state of train_test_split)
    #[arg(long, default_value_t = 42, value_name = "SEED")]
    pub split_seed: u32,
    /// Decides the head's first weights, the order of the examples and dropout
    #[arg(long, default_value_t = 0)]
    pub seed: u32,
    /// What each label of the table is as a class of the model
    #[arg(long, default_value_t = LabelMap::default(), value_name = "LABEL=CLASS,...", allow_hyphen_values = true)]
    pub labels: LabelMap,
}

pub fn run(args: &TrainArgs, console: &Arc<Console>) -> Result<()> {
    let job = prepare(args)?;
    let description = describe(args, &job);
    if args.dry_run {
        console.note(&description);
        return Ok(console.print(&format!("{}\n", job.model.summary()))?);
    }
    let replicas = args.device.connect(console)?;
    console.note(&description);
    let quiet = args.json || !replicas.is_chief();
    let mut progress = Progress { console, json: args.json, quiet, epoch: None };
    let mut session = Session::start(job, replicas, &args.output, args.overwrite, &mut progress)?;
    session.run(&mut progress)?;
    console.note(&format!("Saved in {}", args.output.display()));
    Ok(())
}

/// Reads and checks all that the job needs.
fn prepare(args: &TrainArgs) -> Result<Job> {
    let RecipeArgs { labels, learning_rate, batch_size, epochs, seed, dev_size, split_seed } = &args.recipe;
    // As the program will take it, in f32.
    let rate = *learning_rate as f32;
    if !(rate > 0.0 && rate.is_finite()) {
        return Err(Error::Usage(format!("--learning-rate {learning_rate}: expected a positive number")));
    }
    let ModelArgs { model: name, revision, random_weights, .. } = &args.model;
    let files = model_files(name, revision.as_deref(), !random_weights, &Hub::from_env()?.with_progress())?;
    // All of the model before the table, which may take long: a run may go on beside this one, and replace its files.
    let original = read_json(&files.config)?;
    let model = model_config(&args.model.classifier, BertConfig::read(&files.config)?, labels)?;
    let tokenizer = open_tokenizer::<Error>(&files, &model.bert, model.max_length)?;
    let pretrained = (!random_weights).then(|| open_weights(&files, &model)).transpose()?;
    let table = Table::read(&args.train, &args.table.options(labels), Purpose::Train)?;
    let split = train_test_split(table.texts.len(), *dev_size, *split_seed)?;
    let recipe = Recipe {
        batch_size: *batch_size,
        epochs: *epochs,
        learning_rate: *learning_rate,
        seed: *seed,
        labels: labels.clone(),
    };
    let job = Job { original, model, pretrained, tokenizer, table, split, recipe };
    job.initial_values().check(&job.model.weights())?;
    Ok(job)
}

/// The classifier that the flags ask for, on an encoder.
fn model_config(args: &ClassifierArgs, bert: BertConfig, labels: &LabelMap) -> Result<ClassifierConfig> {
    let needed = labels.num_classes();
    match args.num_classes {
        Some(given) if given < needed => {
            Err(Error::Usage(format!("--num-classes {given}: --labels {labels} needs {needed}")))
        }
        _ => args.config(bert, MAX_LENGTH, needed),
    }
}

/// What the table holds, and what of the checkpoint is left out.
fn describe(args: &TrainArgs, job: &Job) -> String {
    let mut text = format!(
        "{}: {} texts ({} duplicates dropped, {} bad rows skipped): {} to train on, {} held out",
        args.train.display(),
        job.table.texts.len(),
        job.table.duplicates,
        job.table.skipped,
        job.split.train.len(),
        job.split.test.len()
    );
    let has_head = |tensors: &TensorFiles| {
        let weights = job.model.weights();
        weights.iter().any(|weight| weight.part == Part::Head && tensors.shape(&weight.name).is_some())
    };
    if job.pretrained.as_ref().is_some_and(has_head) {
        text.push_str("\nThe encoder is taken over; the head starts anew");
    }
    let ignored = job.pretrained.iter().flat_map(TensorFiles::ignored);
    let heads = ignored.filter(|name| name.starts_with("cls.")).collect::<Vec<_>>();
    if let [first, ..] = heads.as_slice() {
        text.push_str(&format!("\nIgnored {} tensors of pretraining heads ({first}...)", heads.len()));
    }
    text
}

/// Shows a session on the console.
struct Progress<'a> {
    console: &'a Console,
    json: bool,
    quiet: bool,
    epoch: Option<EpochProgress>,
}

impl Observer for Progress<'_> {
    fn ready(&mut self, after: Duration) {
        self.console.note(&format!("Ready to train after {:.1} s", after.as_secs_f64()));
    }

    fn epoch_starts(&mut self, epoch: u32, epochs: u32, steps: u64) {
        self.epoch = Some(EpochProgress::new(epoch, epochs, steps, self.quiet));
    }

    fn step(&mut self, loss: f64, accuracy: f64) {
        if let Some(epoch) = &mut self.epoch {
            epoch.step(loss, accuracy);
        }
    }

    fn epoch_ends(&mut self, record: &EpochRecord) -> std::result::Result<(), FileError> {
        if let Some(epoch) = self.epoch.take() {
            epoch.finish(record.val_loss.zip(record.val_accuracy));
        }
        match self.json {
            true => self.console.print(&format!("{}\n", record.to_line())),
            false => Ok(()),
        }
    }
}
