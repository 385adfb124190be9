//! Training as a whole, on a tiny model: reproducible, the same on any number of replicas, saved and read back.

use std::path::{Path, PathBuf};

use bert_xla::checkpoint::Checkpoint;
use bert_xla::data::{Dataset, LabelMap, Purpose, Table, TableOptions, Tokenizer, Tokens};
use bert_xla::error::Error;
use bert_xla::hub::{ModelFiles, TokenizerFiles};
use bert_xla::model::{BertConfig, ClassifierConfig, HeadConfig};
use bert_xla::pjrt::Backend;
use bert_xla::run_folder::{RunFolder, write_description, write_weights};
use bert_xla::strategy::{Strategy, StrategyOptions};
use bert_xla::train::{Evaluation, Inference, InitialValues, StepConfig, TrainOptions, Trainer};

use crate::common::{cpu_plugin, empty_folder};

const MAX_LENGTH: usize = 8;
const ROWS: usize = 20;

fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name)
}

/// The tiny model's files, without weights.
fn files() -> ModelFiles {
    let tokenizer = TokenizerFiles::Json(asset("tiny/tokenizer.json"));
    ModelFiles { config: asset("tiny/config.json"), tokenizer, weights: vec![] }
}

/// The tiny model, with dropout of `rate` everywhere.
fn model(rate: f64) -> ClassifierConfig {
    let bert = BertConfig::read(&files().config).unwrap();
    ClassifierConfig {
        bert: BertConfig { hidden_dropout_prob: rate, attention_probs_dropout_prob: rate, ..bert },
        head: HeadConfig { hidden: vec![16, 12], dropout: rate, num_classes: 4 },
        max_length: MAX_LENGTH,
        mask: false,
        freeze_padding: false,
    }
}

/// The first rows of the sample, and their classes.
fn sample() -> (Tokens, Vec<u32>) {
    let table = Table::read(&asset("sample.csv"), &TableOptions::default(), Purpose::Train).unwrap();
    let tokenizer = Tokenizer::open(&files().tokenizer, MAX_LENGTH).unwrap();
    (tokenizer.encode(&table.texts[..ROWS]).unwrap(), table.classes[..ROWS].to_vec())
}

fn strategy(replicas: usize) -> Strategy {
    let plugin = Some(cpu_plugin());
    Strategy::new(&StrategyOptions {
        backend: Some(Backend::Cpu),
        plugin,
        replicas: Some(replicas),
        ..Default::default()
    })
    .unwrap()
}

fn options(batch_size: usize, seed: u32) -> TrainOptions {
    TrainOptions { batch_size, learning_rate: 1e-3, seed }
}

fn trainer(replicas: usize, model: &ClassifierConfig, options: TrainOptions) -> Trainer {
    let values = InitialValues::Random { seed: options.seed };
    Trainer::new(strategy(replicas), model, options, &values).unwrap()
}

/// What three epochs of three steps, the last of them of 4 rows in 8, leave behind.
#[derive(Debug, PartialEq)]
struct Run {
    /// Mean loss and accuracy of each epoch.
    history: Vec<(f64, f64)>,
    /// `[replica][weight]`.
    weights: Vec<Vec<Vec<f32>>>,
    evaluation: Evaluation,
}

fn run(replicas: usize, rate: f64, seed: u32) -> Run {
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect(), false);
    let mut trainer = trainer(replicas, &model(rate), options(8, seed));
    let epoch = |epoch| {
        let metrics = trainer.train_epoch(&data, epoch, |_, _| ()).unwrap();
        (metrics.loss, metrics.accuracy)
    };
    let history = (1..=3).map(epoch).collect();
    assert_eq!(trainer.steps_done(), 9);
    let weights = |replica| {
        trainer.weights().iter().map(|weight| trainer.values_on(replica, weight).unwrap()).collect()
    };
    let weights = (0..replicas).map(weights).collect();
    Run { history, weights, evaluation: trainer.evaluate(&data).unwrap() }
}

#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off <= tolerance, "{what}: off by {off}, more than {tolerance}");
}

#[test]
fn a_seed_gives_one_run_bit_for_bit() {
    let first = run(1, 0.1, 7);
    assert_eq!(run(1, 0.1, 7), first);
    let other = run(1, 0.1, 8);
    assert_ne!(other.weights, first.weights);
    assert_ne!(other.history, first.history);
    assert_ne!(other.evaluation.probabilities, first.evaluation.probabilities);
}

#[test]
fn replicas_train_as_one_does() {
    let one = run(1, 0.0, 7);
    for replicas in [2, 4] {
        let many = run(replicas, 0.0, 7);
        for (found, expected) in many.history.iter().zip(&one.history) {
            assert!((found.0 - expected.0).abs() < 1e-5, "{replicas} replicas: {found:?}, {expected:?}");
            assert_eq!(found.1, expected.1, "{replicas} replicas");
        }
        for weights in &many.weights {
            assert_eq!(weights, &many.weights[0], "{replicas} replicas went apart");
        }
        for (found, expected) in many.weights[0].iter().zip(&one.weights[0]) {
            assert_close("a weight", found, expected, 1e-5);
        }
        assert!((many.evaluation.loss - one.evaluation.loss).abs() < 1e-5);
        assert_eq!(many.evaluation.accuracy, one.evaluation.accuracy);
        assert_close("probabilities", &many.evaluation.probabilities, &one.evaluation.probabilities, 1e-5);
    }
}

#[test]
fn replicas_stay_alike_under_dropout() {
    let first = run(2, 0.2, 7);
    assert_eq!(first.weights[0], first.weights[1]);
    assert_eq!(run(2, 0.2, 7), first);
}

/// The loss of a step on one text alone, and the mean over two replicas that both have that text.
fn loss_alone_and_doubled(rate: f64) -> (f64, f64) {
    let (tokens, classes) = sample();
    let loss = |replicas: usize| {
        let data = Dataset::new(&tokens, &classes, vec![0; replicas], false);
        let mut trainer = trainer(replicas, &model(rate), options(replicas, 7));
        trainer.train_epoch(&data, 1, |_, _| ()).unwrap().loss
    };
    (loss(1), loss(2))
}

#[test]
fn each_replica_has_its_own_dropout_masks() {
    let (alone, doubled) = loss_alone_and_doubled(0.0);
    assert!((alone - doubled).abs() < 1e-6, "{alone}, {doubled}");
    // The first replica's mask is the same in both runs: only another one on the second can move the mean.
    let (alone, doubled) = loss_alone_and_doubled(0.2);
    assert!((alone - doubled).abs() > 1e-3, "{alone}, {doubled}");
}

#[test]
fn the_last_batch_counts_each_example_once() {
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..7).collect(), false);
    let one_by_one = trainer(1, &model(0.0), options(1, 7)).evaluate(&data).unwrap();
    // At a rate of 0 the weights stay, so that training measures what evaluation does.
    let still = TrainOptions { learning_rate: 0.0, ..options(4, 7) };
    for replicas in [1, 2] {
        let mut trainer = trainer(replicas, &model(0.0), still.clone());
        let metrics = trainer.train_epoch(&data, 1, |_, _| ()).unwrap();
        let evaluation = trainer.evaluate(&data).unwrap();
        assert_eq!((metrics.examples, metrics.step_times.len()), (7, 2));
        for (loss, accuracy) in [(metrics.loss, metrics.accuracy), (evaluation.loss, evaluation.accuracy)] {
            assert!((loss - one_by_one.loss).abs() < 1e-6, "{loss}, {}", one_by_one.loss);
            assert!((accuracy - one_by_one.accuracy).abs() < 1e-12, "{accuracy}, {}", one_by_one.accuracy);
        }
        assert_close("probabilities", &evaluation.probabilities, &one_by_one.probabilities, 1e-6);
    }
}

/// Trains for an epoch and saves the run in `folder`.
fn save_a_run(folder: &Path, labels: &LabelMap) -> (Trainer, Evaluation) {
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect(), false);
    let mut trainer = trainer(1, &model(0.1), options(8, 7));
    trainer.train_epoch(&data, 1, |_, _| ()).unwrap();
    let tokenizer = Tokenizer::open(&files().tokenizer, MAX_LENGTH).unwrap();
    write_description(folder, &files(), &tokenizer, &model(0.1), labels).unwrap();
    write_weights(folder, &trainer).unwrap();
    let evaluation = trainer.evaluate(&data).unwrap();
    (trainer, evaluation)
}

#[test]
fn a_saved_run_is_read_back_bit_for_bit() {
    let folder = empty_folder("training_saved");
    let labels = LabelMap::default();
    let (trainer, evaluation) = save_a_run(&folder, &labels);

    let read = RunFolder::open(&folder).unwrap();
    assert_eq!((&read.model, &read.labels), (&model(0.1), &labels));
    let checkpoint = Checkpoint::open(&read.files).unwrap();
    assert_eq!(checkpoint.names().count(), trainer.weights().len());
    for weight in trainer.weights() {
        let key = weight.name.strip_prefix("bert.").unwrap_or(&weight.name);
        let saved = checkpoint.tensor_f32(key, &weight.shape.dims).unwrap();
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&saved), bits(&trainer.values(weight).unwrap()), "{}", weight.name);
    }

    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect(), false);
    let strategy = strategy(1);
    let config = read.step_config(&strategy, 8).unwrap();
    assert_eq!(config, StepConfig { model: model(0.1), batch_size: 8, replicas: 1 });
    let inference = Inference::for_evaluation(&strategy, &config).unwrap();
    let weights = read.upload_weights(&strategy, inference.weights()).unwrap();
    let weights = weights.iter().map(Vec::as_slice).collect::<Vec<_>>();
    assert_eq!(inference.evaluate(&strategy, &weights, &data).unwrap(), evaluation);
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run() {
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect(), false);
    let options = TrainOptions { learning_rate: 1e30, ..options(8, 7) };
    let mut trainer = trainer(1, &model(0.0), options);
    // The first step's loss is of the first weights; the second's is not finite.
    let error = trainer.train_epoch(&data, 1, |_, _| ()).unwrap_err();
    assert!(matches!(error, Error::Diverged { steps: 2, .. }), "{error}");
    assert!(!error.is_input_error());
    assert!(error.to_string().contains("after 2 steps: the run has diverged"), "{error}");
    let error = trainer.evaluate(&data).unwrap_err();
    assert!(matches!(error, Error::Diverged { .. }), "{error}");
}

#[test]
fn a_step_updates_its_state_in_place() {
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect(), false);
    let mut trainer = trainer(1, &model(0.1), options(8, 7));
    let pooler = |name: &str| name.starts_with("bert.pooler.");
    let trained = trainer.weights().into_iter().filter(|weight| !pooler(&weight.name));
    let bytes = trained.map(|weight| weight.shape.size_in_bytes()).sum::<usize>();
    // Weights and both moments, and the step count.
    assert_eq!(trainer.memory_stats().unwrap().aliased, 3 * bytes as i64 + 4);
    for epoch in 1..=3 {
        trainer.train_epoch(&data, epoch, |_, _| ()).unwrap();
    }
}

/// Prints the largest difference between a file of `bert-xla encode` and transformers' own hidden states.
const TRANSFORMERS: &str = r#"
import sys, torch
from safetensors.torch import load_file
from transformers import BertModel
model, report = BertModel.from_pretrained(sys.argv[1], output_loading_info=True)
assert not report["missing_keys"] and not report["mismatched_keys"], report
assert all(key.startswith("dense_") for key in report["unexpected_keys"]), report
for path, masked in [(sys.argv[2], False), (sys.argv[3], True)]:
    file = load_file(path)
    ids, mask = file["input_ids"].long(), file["attention_mask"].long()
    with torch.no_grad():
        states = model.eval()(ids, attention_mask=mask if masked else torch.ones_like(mask)).last_hidden_state
    print((states - file["last_hidden_state"]).abs().max().item())
"#;

/// `BERT_XLA_TEST_PYTHON` names a Python that has torch and transformers.
#[test]
fn transformers_reads_a_saved_run_and_agrees() {
    let Some(python) = std::env::var_os("BERT_XLA_TEST_PYTHON") else {
        return eprintln!("skipped: BERT_XLA_TEST_PYTHON names no Python with torch and transformers");
    };
    let folder = empty_folder("training_transformers");
    save_a_run(&folder, &LabelMap::default());
    let sentences = folder.join("sentences.txt");
    std::fs::write(&sentences, "I hate the movie, so bad\nmerci\n").unwrap();
    let encode = |name: &str, mask: &[&str]| {
        let output = folder.join(name);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bert-xla"));
        command.args(["encode", "--max-length", "8", "--backend", "cpu", "--model"]).arg(&folder);
        command.arg("--input").arg(&sentences).arg("--output").arg(&output).args(mask);
        assert!(command.output().unwrap().status.success());
        output
    };
    let (plain, masked) = (encode("plain.safetensors", &[]), encode("masked.safetensors", &["--mask"]));
    let mut command = std::process::Command::new(python);
    let output = command.args(["-c", TRANSFORMERS]).args([&folder, &plain, &masked]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let off = text.lines().map(|line| line.parse::<f64>().unwrap()).collect::<Vec<_>>();
    eprintln!("transformers: off by {off:?}");
    assert!(off.len() == 2 && off.iter().all(|off| *off < 1e-5), "{off:?}");
}
