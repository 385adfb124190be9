//! The flags of how a model is trained.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::options::count;
use super::{Error, Result};
use crate::data::{BucketOptions, LabelMap, Labels};
use crate::step::{ExecutionOptions, Freeze, Schedule, Training};
use crate::train::{ClassWeights, HeldOut, Keep, KeptEpoch, Metric, Recipe, Warmup};

/// How it is trained.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Training")]
pub struct RecipeArgs {
    /// Examples at a time, over all replicas; a step takes as many, or --accumulate times
    #[arg(long, default_value_t = 16, value_parser = count(), value_name = "N")]
    pub batch_size: usize,
    /// Passes over the training rows; the run is saved after each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub epochs: u32,
    /// Adam's learning rate, at its highest
    #[arg(long, default_value_t = 1e-5, value_name = "RATE", allow_negative_numbers = true)]
    pub learning_rate: f64,
    /// Steps in which the learning rate rises from 0, or, below 1, their share of all steps
    #[arg(long, default_value_t = Warmup::default(), value_name = "STEPS|SHARE", allow_negative_numbers = true)]
    pub warmup: Warmup,
    /// What the learning rate does then: stay, or fall to 0 at the last step, in a line or along half a cosine, as in
    /// transformers
    #[arg(long, default_value = Schedule::default().name(), value_parser = schedule(), value_name = "SCHEDULE")]
    pub schedule: Schedule,
    /// AdamW's decay of weights, not of biases and LayerNorm
    #[arg(long, default_value_t = 0.0, value_name = "RATE", allow_negative_numbers = true)]
    pub weight_decay: f64,
    /// Scale gradients down whose norm, of all together, is larger
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    pub clip_norm: Option<f64>,
    /// Batches whose gradients one step sums up: as a batch that is N times larger, with the memory of one
    #[arg(long, default_value_t = 1, value_parser = count(), value_name = "N")]
    pub accumulate: usize,
    /// With --mask: put texts of like lengths together, in batches of these lengths or of --max-length tokens, with a program
    /// each; auto chooses up to six lengths by the table's texts
    #[arg(long, value_name = "TOKENS,...|auto")]
    pub buckets: Option<BucketOptions>,
    /// Share of each target that is spread over all classes, while training
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", allow_negative_numbers = true)]
    pub label_smoothing: f64,
    /// How much examples count by their label, while training: `balanced` for all labels alike, or LABEL=WEIGHT,...
    #[arg(long, value_name = "balanced|LIST", allow_hyphen_values = true)]
    pub class_weights: Option<ClassWeights>,
    /// Leave the encoder's embeddings as they are, or them and its first N layers
    #[arg(long, value_name = "embeddings|N")]
    pub freeze: Option<Freeze>,
    /// Decides the head's first weights, the order of the examples and dropout
    #[arg(long, default_value_t = 0)]
    pub seed: u32,
    /// What each label of the table is as a class of the model; auto numbers those that it has from 0 on, sorted as texts
    /// [default: -1=1,0=2,1=3, or the run's that --model is]
    #[arg(long, value_name = "LABEL=CLASS,...|auto", allow_hyphen_values = true)]
    pub labels: Option<Labels>,
    /// Train several times, with --seed and the seeds after it: the run is their ensemble
    #[arg(long, value_parser = count().range(1..=MOST_MEMBERS), value_name = "N")]
    pub seeds: Option<usize>,
    /// Train on all rows but one of N parts, once for each part, which is held out: the run is their ensemble (KFold, or with
    /// --stratify StratifiedKFold, shuffled)
    #[arg(long, value_parser = count().range(2..=MOST_MEMBERS), value_name = "N", conflicts_with_all = ["dev", "dev_size"])]
    pub folds: Option<usize>,
}

/// Far more than anybody trains, and few enough to be listed.
const MOST_MEMBERS: u64 = 1000;

/// Which rows are held out, and what is made of what they show.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Evaluation")]
pub struct EvaluationArgs {
    /// Share of the rows held out, more than 0 and less than 1
    #[arg(long, default_value_t = 0.1, value_name = "SHARE", allow_negative_numbers = true)]
    pub dev_size: f64,
    /// Decides which rows are held out (random_state of train_test_split, KFold)
    #[arg(long, default_value_t = 42, value_name = "SEED")]
    pub split_seed: u32,
    /// Hold out the same share of each label (stratify of train_test_split, StratifiedKFold)
    #[arg(long)]
    pub stratify: bool,
    /// A table to evaluate each epoch on, in place of rows held out; also gs://bucket/path
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dev_size", "split_seed", "stratify"])]
    pub dev: Option<PathBuf>,
    /// A table to evaluate the model on that is kept, once, at the end; also gs://bucket/path
    #[arg(long, value_name = "FILE")]
    pub test: Option<PathBuf>,
    /// Which epoch's weights the run has
    #[arg(long, default_value = KeptEpoch::default().name(), value_parser = kept_epoch(), value_name = "best|last")]
    pub keep: KeptEpoch,
    /// By which epochs are compared: val_loss, val_accuracy (Keras', over all classes) or f1 (the classes' mean)
    #[arg(long, default_value = Metric::default().name(), value_parser = metric(), value_name = "METRIC")]
    pub metric: Metric,
    /// End training after so many epochs without a better one
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "EPOCHS")]
    pub early_stopping: Option<u32>,
}

/// Parses the name of one of `all`.
fn named<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let parser = PossibleValuesParser::new(all.iter().map(|one| name(*one)));
    parser.try_map(move |text| all.iter().copied().find(|one| name(*one) == text).ok_or("unknown"))
}

fn schedule() -> impl TypedValueParser<Value = Schedule> {
    named(&Schedule::ALL, Schedule::name)
}

fn kept_epoch() -> impl TypedValueParser<Value = KeptEpoch> {
    named(&[KeptEpoch::Best, KeptEpoch::Last], KeptEpoch::name)
}

fn metric() -> impl TypedValueParser<Value = Metric> {
    named(&Metric::ALL, Metric::name)
}

impl RecipeArgs {
    /// # Errors
    /// A number that is out of its range.
    pub fn check(&self) -> Result<()> {
        // As the program will take it, in f32.
        let is_positive = |value: f64| value as f32 > 0.0 && (value as f32).is_finite();
        if !is_positive(self.learning_rate) {
            let expected = "a positive number that a float32 can hold";
            return refuse("--learning-rate", &self.learning_rate, expected);
        }
        if !(self.weight_decay >= 0.0 && (self.weight_decay as f32).is_finite()) {
            return refuse("--weight-decay", &self.weight_decay, "a number from 0 on, such as 0.01");
        }
        if let Some(norm) = self.clip_norm.filter(|norm| !is_positive(*norm)) {
            return refuse("--clip-norm", &norm, "a positive number, such as 1");
        }
        let (seeds, folds) = (self.seeds.unwrap_or(1), self.folds.unwrap_or(1));
        if (seeds * folds) as u64 > MOST_MEMBERS {
            let expected =
                format!("at most {MOST_MEMBERS} members, seeds times folds, not {}", seeds * folds);
            return refuse("--seeds", &seeds, &expected);
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return refuse("--label-smoothing", &self.label_smoothing, "a share from 0 to less than 1");
        }
        Ok(())
    }

    /// The recipe for a model of so many layers and these labels.
    ///
    /// # Errors
    /// What the model or the labels have not.
    pub fn recipe(&self, evaluation: &EvaluationArgs, layers: usize, labels: LabelMap) -> Result<Recipe> {
        if let Some(Freeze::Layers(frozen)) = self.freeze
            && frozen > layers
        {
            return refuse("--freeze", &frozen, &format!("at most the encoder's {layers} layers"));
        }
        let class_weights = self.class_weights.clone().unwrap_or_default();
        if let ClassWeights::Given(weights) = &class_weights
            && let Some(label) = weights.keys().find(|label| labels.class_of(label).is_none())
        {
            let known = labels.labels().take(20).collect::<Vec<_>>().join(", ");
            return refuse(
                "--class-weights",
                &class_weights,
                &format!("labels among {known}, not `{label}`"),
            );
        }
        let EvaluationArgs { dev_size, split_seed, stratify, keep, metric, .. } = *evaluation;
        Ok(Recipe {
            batch_size: self.batch_size,
            epochs: self.epochs,
            learning_rate: self.learning_rate,
            warmup: self.warmup,
            training: Training {
                schedule: self.schedule,
                weight_decay: self.weight_decay,
                clip_norm: self.clip_norm,
                accumulate: self.accumulate,
                label_smoothing: self.label_smoothing,
                freeze: self.freeze.unwrap_or_default(),
                ..Training::default()
            },
            class_weights,
            held_out: match evaluation.dev {
                Some(_) => HeldOut::File,
                None => HeldOut::Share { dev_size, split_seed, stratify },
            },
            seed: self.seed,
            labels,
            keep: Keep { epoch: keep, metric },
            execution: ExecutionOptions::default(),
            buckets: self.buckets.clone(),
        })
    }
}

fn refuse<T>(flag: &str, value: &dyn std::fmt::Display, expected: &str) -> Result<T> {
    Err(Error::Usage(format!("{flag} {value}: expected {expected}")))
}
