//! A training job from start to end: epochs, evaluation, and a commit after each.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::trainer::{EpochMetrics, TrainOptions, Trainer};
use super::{Error, Result};
use crate::data::{Dataset, LabelMap, Order, Split, Table, Tokenizer, Tokens};
use crate::exec::{Fingerprint, Replicas};
use crate::hlo::Graph;
use crate::infer::{Evaluation, Predictor};
use crate::model::ClassifierConfig;
use crate::report::{EpochRecord, History, median};
use crate::run::{Description, DevPredictions, Snapshot, Tensors, Writer};
use crate::step::{StepConfig, train_step};
use crate::storage::FileError;
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
}

/// How a job trains.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Examples per step, over all replicas.
    pub batch_size: usize,
    pub epochs: u32,
    pub learning_rate: f64,
    /// Of the head's first values, the order of the examples and dropout.
    pub seed: u32,
    pub labels: LabelMap,
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

    /// The rows to train on, and those held out.
    fn datasets<'a>(&'a self, tokens: &'a Tokens) -> [Dataset<'a>; 2] {
        [&self.split.train, &self.split.test]
            .map(|rows| Dataset::new(tokens, &self.table.classes, rows.clone()))
    }

    /// Makes sure that all processes of a slice train the same.
    fn agree(&self, tokens: &Tokens, replicas: &Replicas) -> Result<()> {
        let config = StepConfig { model: self.model.clone(), rows: 1, replicas: 1 };
        replicas.agree(|| {
            Ok::<_, Error>(vec![
                Fingerprint::program(&train_step(&Graph::new(), &config).program),
                Fingerprint::options(replicas.count(), &self.recipe),
                Fingerprint::data(hash(&self.datasets(tokens))),
                Fingerprint::weights(self.pretrained.iter().flat_map(TensorFiles::files)),
            ])
        })
    }
}

/// All that is fed to the devices, and how many rows it is.
fn hash(datasets: &[Dataset<'_>]) -> Sha256 {
    const ROWS: usize = 256;
    let mut hash = Sha256::new();
    for data in datasets {
        hash.update((data.len() as u64).to_le_bytes());
        for batch in data.batches(ROWS, Order::Sequential) {
            hash.update(bytemuck::cast_slice(&batch.input_ids));
            hash.update(bytemuck::cast_slice(&batch.lengths));
            hash.update(bytemuck::cast_slice(&batch.labels));
        }
    }
    hash
}

/// What is told while a session runs: to a person, a log or a plot. On a slice, every process tells its own.
pub trait Observer {
    /// The steps are compiled and the weights loaded, `after` the start.
    fn ready(&mut self, _after: Duration) {}

    /// An epoch (from 1) of `epochs` starts, which has `steps` steps.
    fn epoch_starts(&mut self, _epoch: u32, _epochs: u32, _steps: u64) {}

    /// A step is done; the arguments are the epoch's running means.
    fn step(&mut self, _loss: f64, _accuracy: f64) {}

    /// An epoch is measured, and about to be committed.
    ///
    /// # Errors
    /// If it could not be told. That ends the session.
    fn epoch_ends(&mut self, _record: &EpochRecord) -> std::result::Result<(), FileError> {
        Ok(())
    }
}

/// An observer that tells nobody.
impl Observer for () {}

/// A job on its devices.
pub struct Session {
    job: Job,
    tokens: Tokens,
    trainer: Trainer,
    history: History,
    /// The chief's.
    output: Option<(Writer, Description)>,
}

impl Session {
    /// Compiles the job's steps and loads its weights. What it leaves behind goes to the folder `output`.
    ///
    /// # Errors
    /// An `output` that holds a run, unless it is to be replaced; processes of a slice that differ; a failure of the
    /// devices. In all processes, if one of them fails.
    pub fn start(
        job: Job,
        replicas: Replicas,
        output: &Path,
        replace: bool,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let replicas = Arc::new(replicas);
        // Before the long compilation, to fail early.
        let prepare = || {
            let tokens = job.tokenizer.encode(&job.table.texts)?;
            let Job { original, tokenizer, model, recipe, .. } = &job;
            let output = match replicas.is_chief() {
                true => Some((
                    Writer::create(output, replace)?,
                    Description::new(original, tokenizer, model, &recipe.labels)?,
                )),
                false => None,
            };
            Ok::<_, Error>((tokens, output))
        };
        let (tokens, output) = replicas.meet("preparing the output", prepare())?;
        job.agree(&tokens, &replicas)?;
        let started = Instant::now();
        let Recipe { batch_size, learning_rate, seed, .. } = job.recipe;
        let options = TrainOptions { batch_size, learning_rate: learning_rate as f32, seed };
        let trainer = Trainer::new(replicas, &job.model, options, &job.initial_values())?;
        observer.ready(started.elapsed());
        Ok(Self { job, tokens, trainer, history: History::default(), output })
    }

    /// Runs all epochs. After each, the run folder holds it, and whatever happens next, a whole one.
    ///
    /// # Errors
    /// A run that diverges, a failure of the devices, an observer's error, a folder that can't be written. Those that one
    /// process meets between steps end all of them; one in the middle of a step leaves the others to their time limit.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let Self { job, tokens, trainer, history, output } = self;
        let [train, dev] = job.datasets(tokens);
        let Recipe { epochs, batch_size, learning_rate, .. } = job.recipe;
        for epoch in 1..=epochs {
            let started = Instant::now();
            observer.epoch_starts(epoch, epochs, train.len().div_ceil(batch_size) as u64);
            let metrics =
                trainer.train_epoch(&train, epoch, |loss, accuracy| observer.step(loss, accuracy))?;
            let evaluation = trainer.evaluate(&dev)?;
            let record = EpochRecord {
                epoch,
                step: trainer.steps_done(),
                loss: metrics.loss,
                accuracy: metrics.accuracy,
                val_loss: Some(evaluation.loss),
                val_accuracy: Some(evaluation.accuracy),
                seconds: started.elapsed().as_secs_f64(),
                step_ms: step_ms(&metrics).unwrap_or(f64::NAN),
                examples_per_second: metrics.examples as f64 / training_seconds(&metrics),
                learning_rate,
            };
            let told = observer.epoch_ends(&record).map_err(Error::from);
            history.push(record);
            let committed = told.and_then(|()| match output {
                Some(output) => commit(job, trainer, history, &evaluation, output),
                None => Ok(()),
            });
            trainer.replicas().meet("saving", committed)?;
        }
        Ok(())
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

/// Median time of a step, in milliseconds.
fn step_ms(metrics: &EpochMetrics) -> Option<f64> {
    median(&metrics.step_times.iter().map(|time| time.as_secs_f64() * 1e3).collect::<Vec<_>>())
}

fn training_seconds(metrics: &EpochMetrics) -> f64 {
    metrics.step_times.iter().map(|time| time.as_secs_f64() * 1e3).sum::<f64>() / 1e3
}

fn commit(
    job: &Job,
    trainer: &Trainer,
    history: &History,
    evaluation: &Evaluation,
    (writer, description): &mut (Writer, Description),
) -> Result<()> {
    let weights = trainer.weights();
    let predictions = DevPredictions {
        rows: &job.split.test,
        ids: &job.table.ids,
        classes: &job.table.classes,
        probabilities: &evaluation.probabilities,
        num_classes: job.model.head.num_classes(),
        labels: &job.recipe.labels,
    };
    let names = weights.iter().map(|weight| (weight.name.clone(), weight.shape.clone())).collect();
    let mut bytes = |i: usize| Ok(bytemuck::cast_slice(&trainer.values(weights[i])?).to_vec());
    let weights = Tensors { names, bytes: &mut bytes };
    let step = trainer.steps_done();
    Ok(writer.commit(Snapshot { step, description, history, predictions, weights })?)
}
