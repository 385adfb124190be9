//! A tiny model, and training it on the first rows of the sample.

use std::sync::Arc;

use bert_xla::data::{
    Dataset, LabelMap, Purpose, Table, TableOptions, Tokenizer, TokenizerFiles, Tokens, train_test_split,
};
use bert_xla::exec::{DeviceOptions, Replicas};
use bert_xla::infer::Evaluation;
use bert_xla::model::head::DenseHeadConfig;
use bert_xla::model::{BertConfig, ClassifierConfig, HeadConfig};
use bert_xla::nn::Weight;
use bert_xla::pjrt::Backend;
use bert_xla::train::{HeldOut, Job, Origin, Parts, Recipe, Source, TrainOptions, Trainer};
use bert_xla::weights::{InitialValues, ModelFiles};

use super::cli::asset;
use super::cpu_plugin;

pub const MAX_LENGTH: usize = 8;
pub const ROWS: usize = 30;

/// The tiny model's files, without weights.
pub fn files() -> ModelFiles {
    let tokenizer = TokenizerFiles::Json(asset("tiny/tokenizer.json"));
    ModelFiles { config: asset("tiny/config.json"), tokenizer, weights: vec![], fetched: None }
}

/// The tiny model's `config.json`.
pub fn original() -> serde_json::Value {
    bert_xla::run::read_json(&files().config).unwrap()
}

/// The tiny model, with dropout of `rate` everywhere.
pub fn model(rate: f64) -> ClassifierConfig {
    let bert = BertConfig::read(&files().config).unwrap();
    ClassifierConfig {
        bert: BertConfig { hidden_dropout_prob: rate, attention_probs_dropout_prob: rate, ..bert },
        head: HeadConfig::Dense(DenseHeadConfig {
            hidden: vec![16, 12],
            dropout: rate,
            num_classes: 4,
            ..DenseHeadConfig::default()
        }),
        max_length: MAX_LENGTH,
        mask: false,
        zero_padding: false,
        freeze_padding: false,
    }
}

/// The first rows of the sample, and their classes.
pub fn sample() -> (Tokens, Vec<u32>) {
    let table = Table::read(&asset("sample.csv"), &TableOptions::default(), Purpose::Train).unwrap();
    let tokenizer = Tokenizer::open(&files().tokenizer, MAX_LENGTH).unwrap();
    (tokenizer.encode(table.texts.iter().take(ROWS)).unwrap(), table.classes[..ROWS].to_vec())
}

/// Replicas on the CPU.
pub fn connect(replicas: usize) -> Arc<Replicas> {
    let options = DeviceOptions {
        backend: Some(Backend::Cpu),
        plugin: Some(cpu_plugin()),
        replicas: Some(replicas),
        ..Default::default()
    };
    Arc::new(Replicas::connect(&options).unwrap())
}

/// Rows of the job.
const TEXTS: usize = 60;

/// A job of the first rows: two epochs of 6 steps, and 12 rows held out.
pub fn job() -> Job {
    let mut table = Table::read(&asset("sample.csv"), &TableOptions::default(), Purpose::Train).unwrap();
    table.texts = table.texts.iter().take(TEXTS).collect();
    table.classes.truncate(TEXTS);
    table.ids = table.ids.iter().take(TEXTS).collect();
    let split = train_test_split(TEXTS, 0.2, 42).unwrap();
    let source = Source {
        original: original(),
        model: model(0.1),
        pretrained: None,
        keeps_head: false,
        tokenizer: Tokenizer::open(&files().tokenizer, MAX_LENGTH).unwrap(),
        table,
        files: vec![0],
        arguments: vec![],
    };
    Job {
        source: Arc::new(source),
        parts: Parts { train: split.train, dev: split.test, test: vec![] },
        recipe: Recipe {
            batch_size: 8,
            epochs: 2,
            learning_rate: 1e-3,
            held_out: HeldOut::Share { dev_size: 0.2, split_seed: 42, stratify: false },
            seed: 7,
            ..Recipe::new(LabelMap::default())
        },
    }
}

pub fn options(seed: u32) -> TrainOptions {
    TrainOptions::new(1e-3, seed)
}

pub fn trainer(
    replicas: Arc<Replicas>,
    model: &ClassifierConfig,
    batch_size: usize,
    options: TrainOptions,
) -> Trainer {
    let values = InitialValues::Random { seed: options.seed };
    Trainer::new(replicas, model, batch_size, options, Origin::Weights(&values)).unwrap()
}

/// What five epochs of four steps, the last of them of 6 rows in 8, leave behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Mean loss and accuracy of each epoch.
    pub history: Vec<(f64, f64)>,
    /// `[local replica][weight]`.
    pub weights: Vec<Vec<Vec<f32>>>,
    pub evaluation: Evaluation,
}

/// Trains with dropout of `rate`.
pub fn run(replicas: Arc<Replicas>, rate: f64, seed: u32) -> Run {
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect());
    let mut trainer = trainer(replicas.clone(), &model(rate), 8, options(seed));
    let epoch = |epoch| {
        let metrics = trainer.train_epoch(&data, epoch, |_| ()).unwrap();
        (metrics.loss, metrics.accuracy)
    };
    let history = (1..=5).map(epoch).collect();
    assert_eq!(trainer.steps_done(), 20);
    let on = |replica, weight: &Weight| {
        // The pooler is on no device.
        match trainer.state().ids().any(|id| *id == weight.leaf()) {
            true => trainer.state().to_host_from(&replicas, &weight.leaf(), replica).unwrap(),
            false => trainer.values(weight).unwrap(),
        }
    };
    let weights = |replica| trainer.weights().into_iter().map(|weight| on(replica, weight)).collect();
    let weights = (0..replicas.local_count()).map(weights).collect();
    Run { history, weights, evaluation: trainer.evaluate(&data, &|| false).unwrap().unwrap() }
}

#[track_caller]
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off <= tolerance, "{what}: off by {off}, more than {tolerance}");
}
