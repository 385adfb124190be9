//! What a session is given, and what it tells.

use std::time::Duration;

use serde_json::Value;

use super::cadence::Cadence;
use crate::data::{Dataset, LabelMap, Split, Table, Tokenizer, Tokens};
use crate::hlo::Graph;
use crate::model::ClassifierConfig;
use crate::report::EpochRecord;
use crate::step::{InputId, LeafId, Port, StepConfig, train_step};
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
    /// Whether it has the table's share of each class.
    pub stratify: bool,
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
