//! `bert-xla train`: from a labelled table and a checkpoint to a run folder.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use super::model::{ClassifierArgs, MAX_LENGTH};
use super::options::{DeviceArgs, TableArgs, check_output_folder, count};
use super::{note, print, print_json};
use crate::agreement::SharedInputs;
use crate::checkpoint::Checkpoint;
use crate::data::{Dataset, LabelMap, Purpose, Table, Tokenizer, Tokens, train_test_split};
use crate::error::{Error, Result};
use crate::hub::{Hub, ModelFiles};
use crate::model::{BertConfig, ClassifierConfig};
use crate::report::{EpochProgress, EpochRecord, History, median, plot_history};
use crate::run_folder::{WEIGHTS, open_tokenizer, open_weights, write_description, write_weights};
use crate::strategy::Strategy;
use crate::tables::{DevPredictions, write_dev_predictions};
use crate::train::{EpochMetrics, Evaluation, InitialValues, StepConfig, StepKind, TrainOptions, Trainer};

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

/// Everything that is decided and read before a device is taken: on a slice of several hosts, what fails on one of them
/// must not leave the others waiting.
struct Job {
    files: ModelFiles,
    model: ClassifierConfig,
    /// `None` for random weights.
    checkpoint: Option<Checkpoint>,
    tokenizer: Tokenizer,
    table: Table,
    train_rows: Vec<usize>,
    dev_rows: Vec<usize>,
}

impl Job {
    /// What the table holds, and what of the checkpoint is left out.
    fn describe(&self, args: &TrainArgs) -> String {
        let mut text = format!(
            "{}: {} texts ({} duplicates dropped, {} bad rows skipped): {} to train on, {} held out",
            args.train.display(),
            self.table.texts.len(),
            self.table.duplicates,
            self.table.skipped,
            self.train_rows.len(),
            self.dev_rows.len()
        );
        let ignored = self.checkpoint.iter().flat_map(Checkpoint::ignored);
        let heads = ignored.filter(|name| name.starts_with("cls.")).collect::<Vec<_>>();
        if let [first, ..] = heads.as_slice() {
            text.push_str(&format!("\nIgnored {} tensors of pretraining heads ({first}...)", heads.len()));
        }
        text
    }

    fn initial_values(&self, seed: u32) -> InitialValues<'_> {
        match &self.checkpoint {
            Some(checkpoint) => InitialValues::Pretrained { checkpoint, seed },
            None => InitialValues::Random { seed },
        }
    }

    /// The rows to train on, and those held out.
    fn datasets<'a>(&'a self, tokens: &'a Tokens) -> [Dataset<'a>; 2] {
        [&self.train_rows, &self.dev_rows]
            .map(|rows| Dataset::new(tokens, &self.table.classes, rows.clone(), self.model.mask))
    }
}

pub fn run(args: &TrainArgs) -> Result<()> {
    let job = prepare(args)?;
    if args.dry_run {
        note(&job.describe(args));
        return print(&format!("{}\n", job.model.summary()));
    }
    let tokens = job.tokenizer.encode(&job.table.texts)?;
    let data = job.datasets(&tokens);
    let strategy = args.device.connect()?;
    note(&job.describe(args));
    // Before the long compilation, to fail early.
    strategy.together(if strategy.is_chief() { make_output_folder(args) } else { Ok(()) })?;
    agree(args, &job, &data, &strategy)?;
    let mut trainer = trainer(args, &job, strategy)?;
    train(args, &job, &data, &mut trainer)?;
    note(&format!("Saved in {}", args.output.display()));
    Ok(())
}

fn prepare(args: &TrainArgs) -> Result<Job> {
    let RecipeArgs { labels, learning_rate, seed, .. } = &args.recipe;
    // As the program will take it, in f32.
    let rate = *learning_rate as f32;
    if !(rate > 0.0 && rate.is_finite()) {
        return Err(Error::Usage(format!("--learning-rate {learning_rate}: expected a positive number")));
    }
    let ModelArgs { model: name, revision, random_weights, .. } = &args.model;
    let files = ModelFiles::resolve(name, revision.as_deref(), !random_weights, &Hub::from_env()?)?;
    let model = model_config(&args.model.classifier, BertConfig::read(&files.config)?, labels)?;
    let tokenizer = open_tokenizer(&files, &model.bert, model.max_length)?;
    let table = Table::read(&args.train, &args.table.options(labels), Purpose::Train)?;
    let split = train_test_split(table.texts.len(), args.recipe.dev_size, args.recipe.split_seed)?;
    let checkpoint = (!random_weights).then(|| open_weights(&files, &model)).transpose()?;
    let (train_rows, dev_rows) = (split.train, split.test);
    let job = Job { files, model, checkpoint, tokenizer, table, train_rows, dev_rows };
    job.initial_values(*seed).check(&job.model.weights())?;
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

fn make_output_folder(args: &TrainArgs) -> Result<()> {
    check_output_folder(&args.output, WEIGHTS, args.overwrite)?;
    std::fs::create_dir_all(&args.output).map_err(Error::file("can't make", &args.output))
}

/// Makes sure that all processes of a slice train the same.
fn agree(args: &TrainArgs, job: &Job, [train, dev]: &[Dataset<'_>; 2], strategy: &Strategy) -> Result<()> {
    let config = StepConfig { model: job.model.clone(), batch_size: 1, replicas: 1 };
    let inputs = SharedInputs {
        program: &|graph| StepKind::Train.program(graph, &config),
        options: &args.recipe,
        data: &[train, dev],
        weights: job.checkpoint.as_ref(),
    };
    inputs.agree(strategy)
}

fn trainer(args: &TrainArgs, job: &Job, strategy: Strategy) -> Result<Trainer> {
    let RecipeArgs { batch_size, learning_rate, seed, .. } = args.recipe;
    let started = Instant::now();
    let options = TrainOptions { batch_size, learning_rate: learning_rate as f32, seed };
    let trainer = Trainer::new(strategy, &job.model, options, &job.initial_values(seed))?;
    note(&format!("Ready to train after {:.1} s", started.elapsed().as_secs_f64()));
    Ok(trainer)
}

fn train(args: &TrainArgs, job: &Job, [train, dev]: &[Dataset<'_>; 2], trainer: &mut Trainer) -> Result<()> {
    let mut history = History::new(args.output.join("history.jsonl"));
    let RecipeArgs { epochs, batch_size, .. } = args.recipe;
    let is_chief = trainer.strategy().is_chief();
    for epoch in 1..=epochs {
        let started = Instant::now();
        let steps = train.len().div_ceil(batch_size) as u64;
        let mut progress = EpochProgress::new(epoch, epochs, steps, args.json || !is_chief);
        let metrics = trainer.train_epoch(train, epoch, |loss, accuracy| progress.step(loss, accuracy))?;
        let evaluation = trainer.evaluate(dev)?;
        let save = || {
            progress.finish(Some((evaluation.loss, evaluation.accuracy)));
            let seconds = started.elapsed().as_secs_f64();
            let record = record(args, epoch, trainer.steps_done(), seconds, &metrics, &evaluation);
            save_epoch(args, job, trainer, &mut history, record, &evaluation)
        };
        let saved = if is_chief { save() } else { Ok(()) };
        trainer.strategy().together(saved)?;
    }
    Ok(())
}

/// Reports an epoch, and leaves a complete run folder.
fn save_epoch(
    args: &TrainArgs,
    job: &Job,
    trainer: &Trainer,
    history: &mut History,
    record: EpochRecord,
    evaluation: &Evaluation,
) -> Result<()> {
    if args.json {
        print_json(serde_json::to_string(&record))?;
    }
    // Until here, the folder is as an earlier run left it.
    if record.epoch == 1 {
        write_description(&args.output, &job.files, &job.tokenizer, &job.model, &args.recipe.labels)?;
    }
    history.push(record)?;
    write_weights(&args.output, trainer)?;
    plot_history(&args.output, history.epochs())?;
    let predictions = DevPredictions {
        rows: &job.dev_rows,
        classes: &job.table.classes,
        probabilities: &evaluation.probabilities,
        num_classes: job.model.head.num_classes,
        labels: &args.recipe.labels,
    };
    write_dev_predictions(&args.output.join("dev_predictions.csv"), &predictions)
}

fn record(
    args: &TrainArgs,
    epoch: u32,
    step: u64,
    seconds: f64,
    metrics: &EpochMetrics,
    evaluation: &Evaluation,
) -> EpochRecord {
    let step_ms = metrics.step_times.iter().map(|time| time.as_secs_f64() * 1e3).collect::<Vec<_>>();
    let training = step_ms.iter().sum::<f64>() / 1e3;
    EpochRecord {
        epoch,
        step,
        loss: metrics.loss,
        accuracy: metrics.accuracy,
        val_loss: Some(evaluation.loss),
        val_accuracy: Some(evaluation.accuracy),
        seconds,
        step_ms: median(&step_ms).unwrap_or(f64::NAN),
        examples_per_second: metrics.examples as f64 / training,
        learning_rate: args.recipe.learning_rate,
    }
}
