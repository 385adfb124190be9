//! What a session is given, and what it tells.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::cadence::Cadence;
use super::recipe::{ClassWeights, Recipe, Warmup};
use super::{EpochMetrics, StepMetrics, TrainOptions};
use crate::data::{Buckets, DataError, Dataset, Order, Padding, Table, Tokenizer, Tokens};
use crate::exec::Replicas;
use crate::hlo::Graph;
use crate::model::ClassifierConfig;
use crate::report::EpochRecord;
use crate::run::{DevPredictions, Provenance};
use crate::step::{Execution, InputId, LeafId, Port, StepConfig, Training, train_step};
use crate::storage::{FileError, Logged};
use crate::weights::{InitialValues, TensorFiles};

/// What jobs are made of: read once for all of them, and before a device is taken: on a slice of several hosts, what fails on
/// one of them must not leave the others waiting.
pub struct Source {
    /// The `config.json` of the model that they start from.
    pub original: Value,
    pub model: ClassifierConfig,
    /// `None` for random weights.
    pub pretrained: Option<TensorFiles>,
    /// Whether the head's weights are taken from there too, as far as they fit.
    pub keeps_head: bool,
    pub tokenizer: Tokenizer,
    /// All rows, those of one file after those of another.
    pub table: Table,
    /// The first row of each file.
    pub files: Vec<usize>,
    /// The command line that asked for them, to be found in their checkpoints.
    pub arguments: Vec<String>,
}

/// A model to train.
#[derive(Clone)]
pub struct Job {
    pub source: Arc<Source>,
    pub parts: Parts,
    pub recipe: Recipe,
}

/// Rows of a table by what they are for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts {
    pub train: Vec<usize>,
    /// To evaluate each epoch on.
    pub dev: Vec<usize>,
    /// To evaluate the model on that is kept, once; there may be none.
    pub test: Vec<usize>,
}

/// Where a job's run goes, and how it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct SaveOptions {
    /// A run of another job that is there is replaced, and one of the same that is finished.
    pub replace: bool,
    /// There must be a run to go on with.
    pub resume: bool,
    /// When checkpoints are made between the ends of epochs.
    pub cadence: Cadence,
    /// How many of the last checkpoints are kept; the best epoch's is besides.
    pub keep_last: usize,
    /// Training ends after so many epochs without a better one.
    pub patience: Option<u32>,
    /// For the model card.
    pub provenance: Provenance,
}

impl Default for SaveOptions {
    fn default() -> Self {
        let provenance = Provenance::default();
        Self {
            replace: false,
            resume: false,
            cadence: Cadence::Epochs,
            keep_last: 2,
            patience: None,
            provenance,
        }
    }
}

impl SaveOptions {
    /// What all processes of a slice must have alike: words for people may differ.
    pub(super) fn agreed(&self) -> Self {
        Self { provenance: Provenance::default(), ..self.clone() }
    }
}

impl Job {
    /// What the weights start with.
    pub fn initial_values(&self) -> InitialValues<'_> {
        let seed = self.recipe.seed;
        match &self.source.pretrained {
            Some(checkpoint) => InitialValues::Pretrained { checkpoint, head: self.source.keeps_head, seed },
            None => InitialValues::Random { seed },
        }
    }

    /// Of the recipe's batch size.
    pub fn batches_per_epoch(&self) -> usize {
        self.parts.train.len().div_ceil(self.recipe.batch_size)
    }

    /// Of all epochs.
    pub fn total_steps(&self) -> u64 {
        self.steps_per_epoch() * u64::from(self.recipe.epochs)
    }

    pub(super) fn steps_per_epoch(&self) -> u64 {
        self.parts.train.len().div_ceil(self.recipe.examples_per_step()) as u64
    }

    /// What its steps take, whatever the batch.
    pub(super) fn options(&self) -> TrainOptions {
        let Self { source, parts, recipe } = self;
        let total_steps = self.total_steps();
        let classes = parts.train.iter().map(|row| source.table.classes[*row]);
        let num_classes = source.model.head.num_classes();
        TrainOptions {
            learning_rate: recipe.learning_rate as f32,
            seed: recipe.seed,
            warmup_steps: recipe.warmup.steps(total_steps),
            total_steps,
            class_weights: recipe.class_weights.of(&recipe.labels, num_classes, classes),
        }
    }

    /// The step's program, for one row on one replica.
    pub(super) fn step_config(&self) -> StepConfig {
        let config = StepConfig::new(self.source.model.clone(), 1, 1);
        StepConfig { training: self.training(), ..config }
    }

    /// How its programs compute on these replicas.
    pub(super) fn execution(&self, replicas: &Replicas) -> Execution {
        self.recipe.execution.resolve(replicas.precision(), replicas.count())
    }

    /// What is in the step's program.
    pub(super) fn training(&self) -> Training {
        let recipe = &self.recipe;
        Training {
            warms_up: recipe.warmup != Warmup::default(),
            class_weights: recipe.class_weights != ClassWeights::Alike,
            ..recipe.training.clone()
        }
    }

    /// Names and shapes of what a checkpoint must hold to go on from: every weight, and both moments of those that are
    /// trained.
    pub(super) fn state(&self) -> Vec<(String, Vec<usize>)> {
        let graph = Graph::new();
        let step = train_step(&graph, &self.step_config());
        let moment = |(leaf, port): (&LeafId, &Port<InputId>)| match leaf {
            LeafId::Moment(..) => Some((leaf.to_string(), port.shape.dims.clone())),
            LeafId::Weight(_) | LeafId::Rounded(_) | LeafId::Step => None,
        };
        let weights = self.source.model.weights().into_iter().map(|weight| (weight.name, weight.shape.dims));
        weights.chain(step.signature.leaves().filter_map(moment)).collect()
    }

    /// The rows to train on and those held out, in the recipe's buckets.
    pub(super) fn datasets<'a>(&'a self, tokens: &'a Tokens) -> [Dataset<'a>; 2] {
        let buckets = self.buckets(tokens);
        [&self.parts.train, &self.parts.dev].map(|rows| {
            let data = Dataset::of(tokens, &self.source.table.classes, rows);
            data.in_buckets(buckets.clone())
        })
    }

    /// The lengths that batches may have: by those of all rows, so that all members of an ensemble have the same.
    pub(super) fn buckets(&self, tokens: &Tokens) -> Buckets {
        let lengths = (0..tokens.len()).map(|row| tokens.length(row));
        match &self.recipe.buckets {
            Some(options) => options.resolve(lengths, tokens.max_length()),
            None => Buckets::one(tokens.max_length()),
        }
    }

    /// What an epoch on `train` computes.
    pub(super) fn padding(&self, train: &Dataset<'_>) -> Padding {
        let rows = self.recipe.examples_per_step();
        let lengths = train.batches(rows, Order::Sequential).lengths().collect::<Vec<_>>();
        Padding::of(train.lengths().sum(), &lengths, [rows, self.source.model.max_length])
    }

    /// In words, the lengths of its batches and what they save, of which it is known once the table is tokenized.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn describe_buckets(&self) -> Result<String, DataError> {
        let tokens = self.source.tokenizer.encode(&self.source.table.texts)?;
        let [train, _] = self.datasets(&tokens);
        let lengths = self.batch_lengths(&tokens).iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let saved = self.padding(&train).saved().unwrap_or_else(|| "nothing is saved".to_owned());
        Ok(format!("Batches of {lengths} tokens: {saved}"))
    }

    /// Those that they have, from the shortest on.
    pub(super) fn batch_lengths(&self, tokens: &Tokens) -> Vec<usize> {
        let buckets = self.buckets(tokens);
        let is_met = |length: &usize| {
            buckets.iter().len() == 1
                || (0..tokens.len()).any(|row| buckets.of(tokens.length(row)) == *length)
        };
        buckets.iter().filter(is_met).collect()
    }

    /// What a model says of some rows, to be written.
    pub(super) fn predictions<'a>(
        &'a self,
        rows: &'a [usize],
        probabilities: Vec<f32>,
    ) -> DevPredictions<'a> {
        let Source { table, files, model, .. } = &*self.source;
        DevPredictions {
            rows,
            files,
            ids: &table.ids,
            classes: &table.classes,
            probabilities,
            num_classes: model.head.num_classes(),
            labels: &self.recipe.labels,
        }
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

    /// A step is done; `epoch` has the epoch's running means.
    fn step(&mut self, _step: &StepMetrics, _epoch: &EpochMetrics) {}

    /// A checkpoint is about to be made, with a record at the end of an epoch: gives files that grow, to be brought to where
    /// they stay before it is whole.
    fn saves(&mut self, _record: Option<&EpochRecord>) -> Vec<Logged> {
        vec![]
    }

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
