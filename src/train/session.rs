//! A training job from start to end: epochs, evaluation, and checkpoints.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::begin::{Beginning, Begun};
use super::cadence::Cadence;
use super::epochs::Epochs;
use super::keeper::Keeper;
use super::resume::Saved;
use super::saver::Saver;
use super::stop::Stop;
use super::terms::{Fed, terms};
use super::trainer::{Origin, TrainOptions, Trainer};
use super::{Error, Result};
use crate::data::{Dataset, LabelMap, Split, Table, Tokenizer, Tokens};
use crate::exec::{Fingerprint, Replicas};
use crate::hlo::Graph;
use crate::infer::Predictor;
use crate::model::ClassifierConfig;
use crate::report::{EpochRecord, History};
use crate::run::{Description, Progress, Writer, differences};
use crate::step::{InputId, LeafId, Port, StepConfig, train_step};
use crate::storage::{FileError, Folder};
use crate::weights::{InitialValues, TensorFiles};

/// Everything that is decided and read before a device is taken: on a slice of several hosts, what fails on one of them
/// must not leave the others waiting.
pub struct Job {
    /// The `config.json` of the model that it starts from.
    pub original: Value,
    pub model: ClassifierConfig,
    /// `None` for random weights.
    pub pretrained: Option<TensorFiles>,
    pub tokenizer: Tokenizer,
    pub table: Table,
    /// Rows to train on, and those held out.
    pub split: Split,
    pub recipe: Recipe,
    /// The command line that asked for it, to be found in its checkpoints.
    pub arguments: Vec<String>,
}

/// How a job trains.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Examples per step, over all replicas.
    pub batch_size: usize,
    pub epochs: u32,
    pub learning_rate: f64,
    /// Share of the rows that is held out, and what decides which.
    pub dev_size: f64,
    pub split_seed: u32,
    /// Of the head's first values, the order of the examples and dropout.
    pub seed: u32,
    pub labels: LabelMap,
}

/// Where a job's run goes, and how it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct SaveOptions {
    /// A run of another job that is there is replaced.
    pub replace: bool,
    /// There must be a run to go on with.
    pub resume: bool,
    /// When checkpoints are made between the ends of epochs.
    pub cadence: Cadence,
    /// How many of the last checkpoints are kept; the best epoch's is besides.
    pub keep_last: usize,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self { replace: false, resume: false, cadence: Cadence::Epochs, keep_last: 2 }
    }
}

impl Job {
    /// What the weights start with.
    pub fn initial_values(&self) -> InitialValues<'_> {
        let seed = self.recipe.seed;
        match &self.pretrained {
            Some(checkpoint) => InitialValues::Pretrained { checkpoint, seed },
            None => InitialValues::Random { seed },
        }
    }

    pub(super) fn steps_per_epoch(&self) -> u64 {
        self.split.train.len().div_ceil(self.recipe.batch_size) as u64
    }

    /// Names and shapes of what a checkpoint must hold to go on from: every weight, and both moments of those that are
    /// trained.
    pub(super) fn state(&self) -> Vec<(String, Vec<usize>)> {
        let config = StepConfig { model: self.model.clone(), rows: 1, replicas: 1 };
        let graph = Graph::new();
        let step = train_step(&graph, &config);
        let moment = |(leaf, port): (&LeafId, &Port<InputId>)| match leaf {
            LeafId::Moment(..) => Some((leaf.to_string(), port.shape.dims.clone())),
            LeafId::Weight(_) | LeafId::Step => None,
        };
        let weights = self.model.weights().into_iter().map(|weight| (weight.name, weight.shape.dims));
        weights.chain(step.signature.leaves().filter_map(moment)).collect()
    }

    /// The rows to train on, and those held out.
    pub(super) fn datasets<'a>(&'a self, tokens: &'a Tokens) -> [Dataset<'a>; 2] {
        [&self.split.train, &self.split.test]
            .map(|rows| Dataset::new(tokens, &self.table.classes, rows.clone()))
    }

    /// Makes sure that all processes of a slice train the same.
    fn agree(&self, fed: &Fed, replicas: &Replicas, save: &impl Debug) -> Result<()> {
        let config = StepConfig { model: self.model.clone(), rows: 1, replicas: 1 };
        replicas.agree(|| {
            Ok::<_, Error>(vec![
                Fingerprint::program(&train_step(&Graph::new(), &config).program),
                Fingerprint::options(replicas.count(), &(&self.recipe, save)),
                Fingerprint::data(fed.data.clone()),
                Fingerprint::weights(fed.weights.clone()),
            ])
        })
    }
}

/// What is told while a session runs: to a person, a log or a plot. On a slice, every process tells its own.
pub trait Observer {
    /// Something that is worth a line.
    fn note(&mut self, _text: &str) {}

    /// The steps are compiled and the weights loaded, which took `after`.
    fn ready(&mut self, _after: Duration) {}

    /// An epoch (from 1) of `epochs` starts, which has `steps` steps, or goes on after `done` of them.
    fn epoch_starts(&mut self, _epoch: u32, _epochs: u32, _steps: u64, _done: u64) {}

    /// A step is done; the arguments are the epoch's running means.
    fn step(&mut self, _loss: f64, _accuracy: f64) {}

    /// An epoch is measured, and is being committed.
    ///
    /// # Errors
    /// If it could not be told. That ends the session.
    fn epoch_ends(&mut self, _record: &EpochRecord) -> std::result::Result<(), FileError> {
        Ok(())
    }
}

/// An observer that tells nobody.
impl Observer for () {}

/// A job, looked at beside what its folder holds.
pub enum Started {
    Ready(Box<Session>),
    /// All its epochs are done already.
    Finished {
        epochs: u32,
        /// The process that has it, where the chief hasn't.
        elsewhere: Option<usize>,
    },
}

/// How a session has ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    Finished,
    /// It was asked to stop, and why; the checkpoint of `step` is there to go on from.
    Stopped {
        reason: String,
        step: u64,
    },
}

/// A job on its devices.
pub struct Session {
    job: Job,
    tokens: Tokens,
    trainer: Trainer,
    history: History,
    progress: Progress,
    save: SaveOptions,
    /// The step of the checkpoint that it goes on from, unless that was another host's.
    kept: Option<u64>,
    /// The chief's.
    output: Option<Output>,
    /// How long compiling and loading took.
    ready: Duration,
}

/// What a run is written with.
struct Output {
    writer: Writer,
    description: Description,
}

impl Session {
    /// Compiles the job's steps and loads its weights, or the newest checkpoint of this job that the folder `output_path`
    /// holds, on any host of a slice. What the session leaves behind goes there.
    ///
    /// # Errors
    /// A folder that holds another run, unless it is to be replaced; processes of a slice that differ; a failure of the
    /// devices. In all processes, if one of them fails.
    pub fn start(
        job: Job,
        replicas: Replicas,
        output_path: &Path,
        save: SaveOptions,
        observer: &mut dyn Observer,
    ) -> Result<Started> {
        let replicas = Arc::new(replicas);
        let root = Folder::new(output_path);
        // Before the long compilation, to fail early.
        let prepare = || {
            // Before a folder is made for what can't be trained.
            replicas.rows(job.recipe.batch_size)?;
            let tokens = job.tokenizer.encode(&job.table.texts)?;
            let Job { original, tokenizer, model, recipe, .. } = &job;
            let output = match replicas.is_chief() {
                true => Some(Output {
                    writer: Writer::open(output_path)?,
                    description: Description::new(original, tokenizer, model, &recipe.labels)?,
                }),
                false => None,
            };
            Ok::<_, Error>((tokens, output))
        };
        let (tokens, mut output) = replicas.meet("preparing the output", prepare())?;
        let fed = Fed::new(&job, &tokens);
        job.agree(&fed, &replicas, &(&save, root.is_local()))?;
        let terms = terms(&job, fed, &replicas, &save);
        let beginning = Beginning { replicas: &replicas, root: &root, job: &job, terms: &terms, save: &save };
        let writer = output.as_mut().map(|output| &mut output.writer);
        let (saved, run) = match beginning.begin(writer, &mut |text| observer.note(text))? {
            Begun::Run { run, saved } => (saved.map(|saved| *saved), run),
            Begun::Finished { epochs, elsewhere } => return Ok(Started::Finished { epochs, elsewhere }),
        };
        let mut progress = Progress {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            run,
            arguments: job.arguments.clone(),
            terms,
            step: 0,
            epoch: 0,
            within: None,
            best: None,
        };
        let history = saved.as_ref().map_or_else(History::default, |saved| saved.history.clone());
        if let Some(saved) = &saved {
            observer.note(&describe(saved, &progress));
            let Progress { step, epoch, within, best, .. } = saved.progress.clone();
            progress = Progress { step, epoch, within, best, ..progress };
        }
        let kept = saved.as_ref().filter(|saved| saved.is_own()).map(|saved| saved.progress.step);
        let started = Instant::now();
        let trainer = trainer(&job, replicas, saved)?;
        let ready = started.elapsed();
        Ok(Started::Ready(Box::new(Self {
            job,
            tokens,
            trainer,
            history,
            progress,
            save,
            kept,
            output,
            ready,
        })))
    }

    /// Runs all epochs that are left. After each, the run folder holds it, and whatever happens next, a whole one. If `stop`
    /// is asked for, what is queued is finished and saved.
    ///
    /// # Errors
    /// A run that diverges, a failure of the devices, an observer's error, a folder that can't be written. Those that one
    /// process meets between steps end all of them; one in the middle of a step leaves the others to their time limit.
    pub fn run(&mut self, stop: &Stop, observer: &mut dyn Observer) -> Result<Ending> {
        let Self { job, tokens, trainer, history, progress, save, kept, output, ready } = self;
        observer.ready(*ready);
        let data = job.datasets(tokens);
        std::thread::scope(|scope| {
            let saver =
                output.as_mut().map(|output| Saver::start(scope, &mut output.writer, &output.description));
            let keeper = Keeper::new(trainer.replicas().clone(), job, save.cadence, saver, stop, *kept);
            let mut epochs = Epochs { job, trainer, history, progress, keeper };
            let end = epochs.run(&data, observer);
            epochs.keeper.end(end, &mut |text| observer.note(text))
        })
    }

    /// Whether no step of it is done.
    pub fn is_new(&self) -> bool {
        self.progress.step == 0
    }

    /// The epochs so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// What answers with the weights as they are now, on the same devices.
    ///
    /// # Errors
    /// Weights that were lost in a step that failed.
    pub fn into_predictor(self) -> Result<Predictor> {
        let replicas = self.trainer.replicas().clone();
        let (config, weights) = self.trainer.into_trained()?;
        Ok(Predictor::new(replicas, config, self.job.recipe.labels, self.job.tokenizer, weights))
    }
}

/// Where training goes on, and what is different from then on.
fn describe(saved: &Saved, now: &Progress) -> String {
    let Progress { step, epoch, within, terms, .. } = &saved.progress;
    let within = within.as_ref().map_or(0, |within| within.steps);
    let mut text = format!("Going on after step {step} ({epoch} epochs and {within} steps)");
    for change in differences(&terms.free, &now.terms.free) {
        text.push_str(&format!("; {change}"));
    }
    text
}

/// The trainer of a job, as it was saved or from its first step on.
fn trainer(job: &Job, replicas: Arc<Replicas>, saved: Option<Saved>) -> Result<Trainer> {
    let Recipe { batch_size, learning_rate, seed, .. } = job.recipe;
    let options = TrainOptions { batch_size, learning_rate: learning_rate as f32, seed };
    let values = job.initial_values();
    let shared = replicas.clone();
    let tensor;
    let origin = match &saved {
        Some(saved) => {
            tensor = |name: &str, dims: &[usize]| saved.tensor(&shared, name, dims);
            Origin::Saved { steps: saved.progress.step, tensor: &tensor }
        }
        None => Origin::Weights(&values),
    };
    Trainer::new(replicas, &job.model, options, origin)
}
