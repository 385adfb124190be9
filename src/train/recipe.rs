//! How a job trains.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use super::keep::Keep;
use crate::data::{BucketOptions, LabelMap};
use crate::nn::DropoutBits;
use crate::step::{ExecutionOptions, Freeze, Schedule, Training};

/// Everything about a training that isn't its model or its data. What is beyond the published recipe is as
/// [`Recipe::new`] has it unless it is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Examples at a time, over all replicas; a step takes [`Training::accumulate`] times as many.
    pub batch_size: usize,
    pub epochs: u32,
    /// At its highest.
    pub learning_rate: f64,
    pub warmup: Warmup,
    /// What is in the step's program; whether it takes class weights goes by `class_weights`.
    pub training: Training,
    pub class_weights: ClassWeights,
    pub execution: ExecutionOptions,
    /// Lengths of batches, of a model that doesn't read padding; the recipe pads all texts alike.
    pub buckets: Option<BucketOptions>,
    pub held_out: HeldOut,
    /// Of the head's first values, the order of the examples and dropout.
    pub seed: u32,
    pub labels: LabelMap,
    pub keep: Keep,
}

impl Recipe {
    /// The published recipe.
    pub fn new(labels: LabelMap) -> Self {
        Self {
            batch_size: 16,
            epochs: 5,
            learning_rate: 1e-5,
            warmup: Warmup::default(),
            training: Training::default(),
            class_weights: ClassWeights::default(),
            execution: ExecutionOptions::default(),
            buckets: None,
            held_out: HeldOut::Share { dev_size: 0.1, split_seed: 42, stratify: false },
            seed: 0,
            labels,
            keep: Keep::default(),
        }
    }

    /// Examples that one step takes.
    pub fn examples_per_step(&self) -> usize {
        self.batch_size * self.training.accumulate
    }

    /// Whether what a step does depends on how many epochs there are.
    pub fn depends_on_epochs(&self) -> bool {
        self.training.schedule.has_end() || matches!(self.warmup, Warmup::Share(share) if share > 0.0)
    }

    /// What a run's terms say of it, as far as it may not change; what the published recipe has not is left out where it
    /// isn't asked for, so that runs that know nothing of it go on.
    pub(super) fn terms(&self) -> Map<String, Value> {
        let Self { batch_size, learning_rate, training, .. } = self;
        let mut terms = Map::new();
        let mut add = |name: &str, value: Value| _ = terms.insert(name.to_owned(), value);
        add("batch_size", json!(batch_size));
        add("learning_rate", json!(learning_rate));
        match &self.held_out {
            HeldOut::File => {}
            HeldOut::Share { dev_size, split_seed, stratify } => {
                add("dev_size", json!(dev_size));
                add("split_seed", json!(split_seed));
                if *stratify {
                    add("stratify", json!(true));
                }
            }
            HeldOut::Fold { fold, folds, split_seed, stratify } => {
                add("fold", json!(format!("{fold} of {folds}")));
                add("split_seed", json!(split_seed));
                if *stratify {
                    add("stratify", json!(true));
                }
            }
        }
        add("seed", json!(self.seed));
        add("labels", json!(self.labels.to_unique_string()));
        let recipe = Training::default();
        let mut ask = |name: &str, value: Value, is_asked: bool| {
            if is_asked {
                add(name, value);
            }
        };
        ask("schedule", json!(training.schedule), training.schedule != Schedule::Constant);
        ask("warmup", json!(self.warmup.to_string()), self.warmup != Warmup::default());
        ask("epochs", json!(self.epochs), self.depends_on_epochs());
        ask("weight_decay", json!(training.weight_decay), training.weight_decay != recipe.weight_decay);
        ask("clip_norm", json!(training.clip_norm), training.clip_norm.is_some());
        ask("accumulate", json!(training.accumulate), training.accumulate != recipe.accumulate);
        ask("label_smoothing", json!(training.label_smoothing), training.label_smoothing != 0.0);
        let class_weights = self.class_weights.to_string();
        ask("class_weights", json!(class_weights), self.class_weights != ClassWeights::Alike);
        ask("freeze", json!(training.freeze.to_string()), training.freeze != Freeze::Nothing);
        let dropout_bits = self.execution.dropout_bits;
        ask("dropout_bits", json!(dropout_bits.count()), dropout_bits != DropoutBits::default());
        ask("keep", json!(self.keep.to_string()), self.keep != Keep::default());
        terms
    }
}

/// How rows are held out.
#[derive(Clone, Debug, PartialEq)]
pub enum HeldOut {
    /// A share of the rows: see [`train_test_split`](crate::data::train_test_split).
    Share { dev_size: f64, split_seed: u32, stratify: bool },
    /// One of several folds, from 1.
    Fold { fold: usize, folds: usize, split_seed: u32, stratify: bool },
    /// Those of a table of their own.
    File,
}

impl HeldOut {
    pub fn is_fold(&self) -> bool {
        matches!(self, Self::Fold { .. })
    }
}

/// For how long the learning rate rises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    Steps(u64),
    /// That share of all steps, rounded up.
    Share(f64),
}

impl Default for Warmup {
    fn default() -> Self {
        Self::Steps(0)
    }
}

impl Warmup {
    /// Of a run of `total` steps.
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Share(share) => (total as f64 * share).ceil() as u64,
        }
    }
}

impl fmt::Display for Warmup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steps(steps) => steps.fmt(f),
            Self::Share(share) => share.fmt(f),
        }
    }
}

/// A share below 1, or a number of steps, as transformers reads `warmup_steps`.
impl std::str::FromStr for Warmup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<u64>() {
            Ok(steps) => Ok(Self::Steps(steps)),
            Err(_) => match text.parse::<f64>() {
                Ok(0.0) => Ok(Self::default()),
                Ok(share) if (0.0..1.0).contains(&share) => Ok(Self::Share(share)),
                _ => {
                    Err("expected a number of steps, such as 100, or a share of all, such as 0.1".to_owned())
                }
            },
        }
    }
}

/// How much an example counts, by its class.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ClassWeights {
    #[default]
    Alike,
    /// So that all classes count alike (scikit-learn's `compute_class_weight("balanced")`): the number of rows over the number
    /// of classes times the rows of the class.
    Balanced,
    /// By the label; those that are not given count 1.
    Given(BTreeMap<String, f64>),
}

impl ClassWeights {
    /// Of each of `num_classes` classes, for a training on rows of these `classes`.
    pub fn of(&self, labels: &LabelMap, num_classes: usize, classes: impl Iterator<Item = u32>) -> Vec<f32> {
        match self {
            Self::Alike => vec![],
            Self::Balanced => {
                let mut counts = vec![0usize; num_classes];
                classes.for_each(|class| counts[class as usize] += 1);
                let rows = counts.iter().sum::<usize>() as f64;
                let present = counts.iter().filter(|count| **count > 0).count() as f64;
                let weight = |count: &usize| if *count > 0 { rows / (present * *count as f64) } else { 1.0 };
                counts.iter().map(|count| weight(count) as f32).collect()
            }
            Self::Given(weights) => {
                let label = |class| labels.label_of(class).and_then(|label| weights.get(label));
                (0..num_classes as u32)
                    .map(|class| label(class).map_or(1.0, |weight| *weight as f32))
                    .collect()
            }
        }
    }
}

impl fmt::Display for ClassWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alike => f.write_str("alike"),
            Self::Balanced => f.write_str("balanced"),
            Self::Given(weights) => {
                for (i, (label, weight)) in weights.iter().enumerate() {
                    write!(f, "{}{label}={weight}", if i == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

impl std::str::FromStr for ClassWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "balanced" {
            return Ok(Self::Balanced);
        }
        let expected = || "expected `balanced`, or LABEL=WEIGHT,... such as -1=2,1=0.5".to_owned();
        let mut weights = BTreeMap::new();
        for pair in text.split(',') {
            let (label, weight) = pair.rsplit_once('=').ok_or_else(expected)?;
            let weight = weight.trim().parse::<f64>().map_err(|_| expected())?;
            // As the program will take it, in f32.
            if !(weight >= 0.0 && (weight as f32).is_finite()) {
                return Err(format!("{weight} is no weight: expected a number from 0 on"));
            }
            if weights.insert(label.trim().to_owned(), weight).is_some() {
                return Err(format!("label `{}` is given twice", label.trim()));
            }
        }
        Ok(Self::Given(weights))
    }
}
