//! `bert-xla train`: from a labelled table and a checkpoint to a run folder.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use serde_json::Value;

use super::model::{ClassifierArgs, MAX_LENGTH};
use super::options::{DeviceArgs, TableArgs, count};
use super::{Cli, Console, Error, Exit, Result, arguments, guess_note, padding_note, plural, signals};
use crate::data::{
    DataError, LabelMap, Labels, Purpose, Table, stratified_train_test_split, train_test_split,
};
use crate::model::{BertConfig, ClassifierConfig};
use crate::report::{EpochProgress, EpochRecord};
use crate::run::{last_arguments, model_files, read_json};
use crate::storage::{FileError, check_is_there};
use crate::train::{
    self, Cadence, Ending, Job, Observer, Recipe, SaveOptions, Session, Started, Stop, notices,
};
use crate::weights::{Hub, key, open_pretrained, open_tokenizer};

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
    bert-xla train --output run --resume                       # as above, from the newest checkpoint on\n\n\
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
    /// How many of the last checkpoints are kept; that of the best epoch (by val_loss) is kept besides
    #[arg(long, default_value_t = 2, value_parser = count(), value_name = "K")]
    pub keep_last: usize,
}

impl SaveArgs {
    fn options(&self) -> SaveOptions {
        SaveOptions {
            replace: self.overwrite,
            resume: self.resume,
            cadence: self.checkpoint_every.unwrap_or_default(),
            keep_last: self.keep_last,
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
    /// Hold out the same share of each label (stratify of train_test_split)
    #[arg(long)]
    pub stratify: bool,
    /// Decides the head's first weights, the order of the examples and dropout
    #[arg(long, default_value_t = 0)]
    pub seed: u32,
    /// What each label of the table is as a class of the model; auto numbers those that it has from 0 on, sorted as texts
    #[arg(
        long,
        default_value_t = Labels::Given(LabelMap::default()),
        value_name = "LABEL=CLASS,...|auto",
        allow_hyphen_values = true
    )]
    pub labels: Labels,
}

pub fn run(args: &TrainArgs, console: &Arc<Console>) -> Result<Exit> {
    match args.save.resume {
        true => train(&resumed(args)?, console),
        false => train(args, console),
    }
}

/// The arguments of the run that is to go on, with those that are given now in their place.
fn resumed(args: &TrainArgs) -> Result<TrainArgs> {
    let Some(before) = last_arguments(&args.output)? else {
        // On a slice, another host may hold the run: all of them look, once they have met.
        let is_given = !args.train.as_os_str().is_empty();
        return match is_given {
            true => Ok(args.clone()),
            false => Err(train::Error::NothingToResume { path: args.output.clone() }.into()),
        };
    };
    let words = arguments::again(before, &args.written);
    let line = ["bert-xla", "train"].map(str::to_owned).into_iter().chain(words);
    let path = args.output.display();
    let again = Cli::train_again(&line.map(OsString::from).collect::<Vec<_>>()).map_err(|error| {
        Error::Usage(format!("{path}: with the arguments that its run was started with: {error}"))
    })?;
    if args.train.as_os_str().is_empty() && check_is_there(&again.train).is_err() {
        let table = again.train.display();
        return Err(Error::Usage(format!(
            "{path}: its table {table} can't be read any more; --train says where it is now"
        )));
    }
    Ok(again)
}

fn train(args: &TrainArgs, console: &Arc<Console>) -> Result<Exit> {
    let job = prepare(args)?;
    let description = describe(args, &job);
    let weights = describe_weights(args, &job);
    if args.dry_run {
        console.note(&format!("{description}\n{weights}"));
        console.print(&format!("{}\n", job.model.summary()))?;
        return Ok(Exit::Done);
    }
    let replicas = args.device.connect(console)?;
    console.note(&description);
    let backend = replicas.backend();
    let quiet = args.json || !replicas.is_chief();
    let mut progress = Progress { console, json: args.json, quiet, epoch: None };
    let output = &args.output;
    let mut session = match Session::start(job, replicas, output, args.save.options(), &mut progress)? {
        Started::Ready(session) => session,
        Started::Finished { epochs, elsewhere } => {
            let of =
                elsewhere.map_or_else(String::new, |process| format!(" of process {process} of the slice"));
            console.note(&format!(
                "Nothing to do: {}{of} holds this run, with all of its epochs ({epochs}); --epochs N goes on to more, \
                 --overwrite starts anew",
                output.display()
            ));
            return Ok(Exit::Done);
        }
    };
    if session.is_new() {
        console.note(&weights);
    }
    // Before this, there is nothing to save.
    let stop = Stop::default();
    signals::install(&stop)?;
    if let Some(host) = notices::host(backend) {
        notices::watch(&stop, &host);
    }
    match session.run(&stop, &mut progress)? {
        Ending::Finished => {
            console.note(&format!("Saved in {}", output.display()));
            Ok(Exit::Done)
        }
        Ending::Stopped { reason, step } => {
            console.note(&format!(
                "Stopped ({reason}) after step {step}, which is saved in {}; the same command goes on from there",
                output.display()
            ));
            Ok(Exit::Stopped)
        }
    }
}

/// Reads and checks all that the job needs.
fn prepare(args: &TrainArgs) -> Result<Job> {
    let RecipeArgs { labels, learning_rate, batch_size, epochs, seed, dev_size, split_seed, stratify } =
        &args.recipe;
    // As the program will take it, in f32.
    let rate = *learning_rate as f32;
    if !(rate > 0.0 && rate.is_finite()) {
        return Err(Error::Usage(format!(
            "--learning-rate {learning_rate}: expected a positive number that a float32 can hold"
        )));
    }
    let table_options = args.table.options(&args.train, labels.clone())?;
    // Before anything is downloaded.
    check_is_there(&args.train).map_err(|source| DataError::Read { path: args.train.clone(), source })?;
    let ModelArgs { model: name, revision, random_weights, .. } = &args.model;
    // A dry run downloads no weights; those that are here are looked at.
    let weights = !random_weights && (!args.dry_run || Path::new(name).is_dir());
    let files = model_files(name, revision.as_deref(), weights, &Hub::from_env()?.with_progress())?;
    // All of the model before the table, which may take long: a run may go on beside this one, and replace its files.
    let original = read_json(&files.config)?;
    let bert = BertConfig::read(&files.config)?;
    let config = |needed| model_config(&args.model.classifier, bert.clone(), labels, needed);
    // The table's own labels are yet to come: until then, its head has one class.
    let model = config(if let Labels::Given(labels) = labels { labels.num_classes() } else { 1 })?;
    let tokenizer = open_tokenizer::<Error>(&files, &bert, model.max_length)?;
    let pretrained = weights.then(|| open_pretrained(&files, &model.weights())).transpose()?;
    let table = Table::read(&args.train, &table_options, Purpose::Train)?;
    let mut model = config(table.labels.num_classes())?;
    model.bert.pad_token_id = tokenizer.pad_id();
    let split = match stratify {
        true => stratified_train_test_split(&table.classes, &table.labels, *dev_size, *split_seed),
        false => train_test_split(table.texts.len(), *dev_size, *split_seed),
    }?;
    let recipe = Recipe {
        batch_size: *batch_size,
        epochs: *epochs,
        learning_rate: *learning_rate,
        dev_size: *dev_size,
        split_seed: *split_seed,
        stratify: *stratify,
        seed: *seed,
        labels: table.labels.clone(),
    };
    let arguments = args.written.clone();
    let job = Job { original, model, pretrained, tokenizer, table, split, recipe, arguments };
    job.initial_values().check(&job.model.weights())?;
    Ok(job)
}

/// The classifier that the flags ask for, on an encoder, with a class for each of as many as `labels` needs.
fn model_config(
    args: &ClassifierArgs,
    bert: BertConfig,
    labels: &Labels,
    needed: usize,
) -> Result<ClassifierConfig> {
    match args.num_classes {
        Some(given) if given < needed => {
            Err(Error::Usage(format!("--num-classes {given}: --labels {labels} needs {needed}")))
        }
        _ => args.config(bert, MAX_LENGTH, needed),
    }
}

/// What the table holds.
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
    let said = job.original.get("pad_token_id").and_then(Value::as_u64);
    let said = said.unwrap_or(BertConfig::default().pad_token_id.into());
    let guess = guess_note(job.table.guess.as_ref());
    let lines = [guess, padding_note(said, &job.tokenizer)];
    lines.into_iter().flatten().for_each(|line| text.push_str(&format!("\n{line}")));
    text
}

/// Which weights are the checkpoint's, which start anew, and what the checkpoint has besides.
fn describe_weights(args: &TrainArgs, job: &Job) -> String {
    if job.pretrained.is_none() && !args.model.random_weights {
        return "Weights: of the checkpoint, which a dry run doesn't download".to_owned();
    }
    let values = job.initial_values();
    let weights = job.model.weights();
    let (taken, anew): (Vec<_>, Vec<_>) = weights.iter().partition(|weight| values.is_taken(weight));
    let keys = taken.iter().map(|weight| key(&weight.name)).collect();
    let left_out = job.pretrained.as_ref().map_or(vec![], |tensors| tensors.unused(&keys));
    let mut parts = vec![];
    if !taken.is_empty() {
        parts.push(format!("{} of the checkpoint's encoder taken over", plural(taken.len(), "tensor")));
    }
    parts.push(format!("{} starting anew ({})", anew.len(), stems(anew.iter().map(|weight| &*weight.name))));
    if !left_out.is_empty() {
        let stems = stems(left_out.iter().copied());
        parts.push(format!("{} of the checkpoint left out ({stems})", left_out.len()));
    }
    format!("Weights: {}", parts.join(", "))
}

/// The distinct first parts of names with dots.
fn stems<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let stems = names.map(|name| name.split('.').next().unwrap_or(name)).collect::<BTreeSet<_>>();
    stems.into_iter().collect::<Vec<_>>().join(", ")
}

/// Shows a session on the console.
struct Progress<'a> {
    console: &'a Console,
    json: bool,
    quiet: bool,
    epoch: Option<EpochProgress>,
}

impl Observer for Progress<'_> {
    fn note(&mut self, text: &str) {
        self.console.note(text);
    }

    fn ready(&mut self, after: Duration) {
        self.console.note(&format!("Ready to train after {:.1} s", after.as_secs_f64()));
    }

    fn epoch_starts(&mut self, epoch: u32, epochs: u32, steps: u64, done: u64) {
        self.epoch = Some(EpochProgress::new(epoch, epochs, steps, done, self.quiet));
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
