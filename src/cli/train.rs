//! `bert-xla train`: from a labelled table and a checkpoint to a run folder.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use super::described::{describe, describe_weights};
use super::model::ClassifierArgs;
use super::options::{DeviceArgs, TableArgs, count};
use super::prepare::prepare;
use super::progress::Progress;
use super::recipe::{EvaluationArgs, RecipeArgs};
use super::{Cli, Console, Error, Exit, Result, arguments, signals};
use crate::exec::Replicas;
use crate::report::Classification;
use crate::run::layout::TENSORBOARD;
use crate::run::{Provenance, last_arguments};
use crate::storage::{Folder, check_is_there};
use crate::train::{
    self, Cadence, Ending, Member, Members, Outcome, SaveOptions, Session, Shared, Started, Stop, notices,
};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

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
    fn options(&self, patience: Option<u32>, provenance: Provenance) -> SaveOptions {
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
    if let Some(Some(folder)) = &args.tensorboard
        && folder.is_file()
    {
        let folder = folder.display();
        return Err(Error::Usage(format!(
            "--tensorboard {folder}: it is a file, where a folder is expected"
        )));
    }
    let mut members = prepare(args)?;
    for member in &mut members {
        let training = &mut member.job.recipe.training;
        // Of gradients that are clipped, it is known anyway.
        training.gradient_norm = args.tensorboard.is_some() || training.clip_norm.is_some();
    }
    let first = &members[0].job;
    let description = describe(args, &members);
    let weights = describe_weights(args, first);
    if args.dry_run {
        console.note(&format!("{description}\n{weights}"));
        console.print(&format!("{}\n", first.source.model.summary()))?;
        return Ok(Exit::Done);
    }
    let replicas = Arc::new(args.device.connect(console)?);
    console.note(&description);
    let quiet = args.json || !replicas.is_chief();
    let mut progress = Progress::new(console, args.json, quiet);
    let source = first.source.clone();
    let members = Members::new(members, &args.output);
    check_tensorboard(args, &replicas)?;
    let shared = members.share(replicas, args.save.overwrite);
    let weights = Some(weights);
    let mut run = Training { args, shared: &shared, console, stop: None, weights, trained: false };
    for (i, member) in members.iter().enumerate() {
        progress.member = members.are_many().then(|| member.name.clone());
        if members.are_many() {
            console.note(&format!("Member {} of {}: {}", i + 1, members.iter().len(), member.name));
        }
        if run.member(&members, member, &mut progress)? == Exit::Stopped {
            return Ok(Exit::Stopped);
        }
    }
    if run.trained || members.lack_outcome(shared.replicas())? {
        let outcome = members.conclude(&shared, &args.provenance(&source))?;
        tell(&outcome, console, args.json)?;
    }
    if run.trained {
        console.note(&format!("Saved in {}", args.output.display()));
    }
    Ok(Exit::Done)
}

/// Makes the folder that was asked for, before anything long; the first process writes there.
fn check_tensorboard(args: &TrainArgs, replicas: &Replicas) -> Result<()> {
    let Some(Some(folder)) = &args.tensorboard else { return Ok(()) };
    let made = if replicas.is_chief() { Folder::new(folder).make() } else { Ok(()) };
    replicas.meet("preparing the output", made.map_err(Error::from))
}

/// A training under way, of one run or of several.
struct Training<'a> {
    args: &'a TrainArgs,
    shared: &'a Shared,
    console: &'a Console,
    /// Once there is something to save.
    stop: Option<Stop>,
    /// What the weights start with, until it is told.
    weights: Option<String>,
    /// Whether anything was done.
    trained: bool,
}

impl Training<'_> {
    fn member(&mut self, members: &Members, member: &Member, progress: &mut Progress<'_>) -> Result<Exit> {
        let (args, console, replicas) = (self.args, self.console, self.shared.replicas());
        let output = members.folder(member);
        let provenance = args.provenance(&member.job.source);
        let save = args.save.options(args.evaluation.early_stopping, provenance);
        let mut session = match Session::start(member.job.clone(), self.shared, &output, save, progress)? {
            Started::Ready(session) => session,
            Started::Finished { epochs, elsewhere } => {
                self.finished(members, member, epochs, elsewhere)?;
                return Ok(Exit::Done);
            }
        };
        if !std::mem::replace(&mut self.trained, true) {
            members.reopen(replicas);
        }
        if session.is_new()
            && let Some(weights) = self.weights.take()
        {
            console.note(&weights);
        }
        if self.stop.is_none() {
            // Before this, there is nothing to save.
            let stop = self.stop.insert(Stop::default());
            signals::install(stop)?;
            if let Some(host) = notices::host(replicas.backend()) {
                notices::watch(stop, &host);
            }
        }
        if let Some(folder) = &args.tensorboard
            && replicas.is_chief()
        {
            let folder = match folder {
                Some(folder) => folder.join(&member.name),
                None => output.join(TENSORBOARD),
            };
            progress.write_events(&Folder::new(folder), session.step());
        }
        match session.run(&self.stop.clone().unwrap_or_default(), progress)? {
            Ending::Finished => {
                console.note(&session.outcome());
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
}

impl Training<'_> {
    /// Says that a run needs nothing, after so many epochs; `elsewhere` has it, another process of the slice, if the first one
    /// hasn't.
    ///
    /// # Errors
    /// A run that can't be counted among the others.
    fn finished(
        &self,
        members: &Members,
        member: &Member,
        epochs: u32,
        elsewhere: Option<usize>,
    ) -> Result<()> {
        let (path, asked) = (members.folder(member), member.job.recipe.epochs);
        if members.are_many() && epochs > asked {
            return Err(Error::Usage(format!(
                "--epochs {asked}: {} was trained for {epochs}, and members would differ; give --epochs {epochs}, or \
                 --overwrite to start anew",
                path.display()
            )));
        }
        if let Some(process) = elsewhere
            && members.lack_outcome(self.shared.replicas())?
        {
            return Err(train::Error::Elsewhere { path, process }.into());
        }
        let of = elsewhere.map_or_else(String::new, |process| format!(" of process {process} of the slice"));
        let how = match epochs < asked {
            true => format!("which ended early, after epoch {epochs}; a larger --early-stopping goes on"),
            false => format!("with all of its epochs ({epochs}); --epochs N goes on to more"),
        };
        let path = path.display();
        self.console
            .note(&format!("Nothing to do: {path}{of} holds this run, {how}, --overwrite starts anew"));
        Ok(())
    }
}

/// Says what the runs have come to; as JSON, on a line of its own.
fn tell(outcome: &Outcome, console: &Console, json: bool) -> Result<()> {
    let Outcome { summary, out_of_fold, test } = outcome;
    if let Some(summary) = summary {
        for (metric, mean) in &summary.mean {
            let deviation = summary.standard_deviation.get(metric);
            let deviation = deviation.map_or_else(String::new, |value| format!(" +- {value:.4}"));
            console.note(&format!("{metric}: {mean:.4}{deviation} over {} members", summary.members.len()));
        }
    }
    for (name, report) in [("Out of fold", out_of_fold), ("Test", test)] {
        if let Some(Classification { rows, loss, accuracy, macro_average, .. }) = report {
            let f1 = macro_average.f1;
            console
                .note(&format!("{name}: loss {loss:.4}, accuracy {accuracy:.4}, f1 {f1:.4} of {rows} rows"));
        }
    }
    if json && (summary.is_some() || test.is_some()) {
        let json = serde_json::json!({ "summary": summary, "out_of_fold": out_of_fold, "test": test });
        console.print(&format!("{json}\n"))?;
    }
    Ok(())
}
