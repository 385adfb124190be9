//! Training as a whole, on a tiny model: reproducible, saved and read back.

use std::path::Path;

use bert_xla::data::{Dataset, LabelMap, Purpose, Table, TableOptions, Tokenizer};
use bert_xla::infer::{Evaluation, Predictor};
use bert_xla::report::History;
use bert_xla::run::{Description, DevPredictions, Progress, Provenance, Run, Snapshot, Terms, Writer};
use bert_xla::train::{Error, TrainOptions, Trainer};
use bert_xla::weights::{TensorFiles, key};

use crate::common::cli::{asset, command};
use crate::common::empty_folder;
use crate::common::training::{
    MAX_LENGTH, ROWS, connect, files, model, options, original, run, sample, trainer,
};

#[test]
fn a_seed_gives_one_run_bit_for_bit() {
    let first = run(connect(1), 0.1, 7);
    assert_eq!(run(connect(1), 0.1, 7), first);
    let other = run(connect(1), 0.1, 8);
    assert_ne!(other.weights, first.weights);
    assert_ne!(other.history, first.history);
    assert_ne!(other.evaluation.probabilities, first.evaluation.probabilities);
}

/// Trains for an epoch and saves the run in `folder`.
fn save_a_run(folder: &Path, labels: &LabelMap) -> (Trainer, Evaluation) {
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect());
    let mut trainer = trainer(connect(1), &model(0.1), 8, options(7));
    trainer.train_epoch(&data, 1, |_| ()).unwrap();
    let tokenizer = Tokenizer::open(&files().tokenizer, MAX_LENGTH).unwrap();
    let description =
        Description::new(&original(), &tokenizer, &model(0.1), labels, Provenance::default()).unwrap();
    let evaluation = trainer.evaluate(&data, &|| false).unwrap().unwrap();
    let [weights, first, second] = trainer.snapshot(Default::default()).unwrap();
    let ids = (0..ROWS).map(|row| row.to_string()).collect();
    let predictions = DevPredictions {
        rows: &(0..ROWS).collect::<Vec<_>>(),
        files: &[0],
        ids: &ids,
        classes: &classes,
        probabilities: evaluation.probabilities.clone(),
        num_classes: 4,
        labels,
    };
    let mut writer = Writer::open(folder).unwrap();
    let progress = Progress {
        version: String::new(),
        run: writer.start(1, false, None).unwrap().unwrap(),
        arguments: vec![],
        terms: Terms::default(),
        step: trainer.steps_done(),
        epoch: 1,
        within: None,
        best: None,
        keeps_best: false,
    };
    let history = History::default();
    let (predictions, moments) = (Some(predictions), [first, second]);
    let snapshot = Snapshot { progress, history, predictions, weights, moments, logs: vec![] };
    writer.commit(&description, &snapshot).unwrap();
    (trainer, evaluation)
}

#[test]
fn a_saved_run_is_read_back_bit_for_bit() {
    let folder = empty_folder("training_saved");
    let labels = LabelMap::default();
    let (trainer, evaluation) = save_a_run(&folder, &labels);

    let read = Run::open(&folder).unwrap();
    assert_eq!((&read.model, &read.labels), (&model(0.1), &labels));
    // As others see it, and as our own readers do.
    for path in [folder.join("model.safetensors"), folder.join("checkpoints/step-4/model.safetensors")] {
        let files = TensorFiles::open_files(&[path]).unwrap();
        assert_eq!(files.names().count(), trainer.weights().len());
        for weight in trainer.weights() {
            let saved = files.tensor_f32(key(&weight.name), &weight.shape.dims).unwrap();
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&saved), bits(&trainer.values(weight).unwrap()), "{}", weight.name);
        }
    }

    let table = Table::read(&asset("sample.csv"), &TableOptions::default(), Purpose::Train).unwrap();
    let predictor = Predictor::open(&read, connect(1), 8, [0; 32]).unwrap();
    let (texts, classes) = (table.texts.iter().take(ROWS), &table.classes[..ROWS]);
    assert_eq!(predictor.evaluate(texts.clone(), classes).unwrap(), evaluation);
    assert_eq!(predictor.probabilities(texts).unwrap(), evaluation.probabilities);
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run() {
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect());
    let options = TrainOptions { learning_rate: 1e30, ..options(7) };
    let mut trainer = trainer(connect(1), &model(0.0), 8, options);
    // The first step's loss is of the first weights; the second's is not finite.
    let error = trainer.train_epoch(&data, 1, |_| ()).unwrap_err();
    assert!(matches!(error, Error::Diverged { steps: 2, .. }), "{error}");
    assert!(!error.is_input_error());
    assert!(error.to_string().contains("after 2 steps: the run has diverged"), "{error}");
    let error = trainer.evaluate(&data, &|| false).unwrap_err();
    assert!(matches!(error, Error::Diverged { .. }), "{error}");
}

#[test]
fn a_step_updates_its_state_in_place() {
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect());
    let mut trainer = trainer(connect(1), &model(0.1), 8, options(7));
    let pooler = |name: &str| name.starts_with("bert.pooler.");
    let trained = trainer.weights().into_iter().filter(|weight| !pooler(&weight.name));
    let bytes = trained.map(|weight| weight.shape.size_in_bytes()).sum::<usize>();
    // Weights and both moments, and the step count.
    assert_eq!(trainer.programs().memory_stats().unwrap().aliased, 3 * bytes as i64 + 4);
    for epoch in 1..=3 {
        trainer.train_epoch(&data, epoch, |_| ()).unwrap();
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
        let mut command = command(&["encode", "--max-length", "8", "--backend", "cpu", "--model"]);
        command.arg(&folder).arg("--input").arg(&sentences).arg("--output").arg(&output).args(mask);
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

#[test]
#[should_panic(expected = "the step takes labels, but the rows have none")]
fn rows_without_labels_are_not_taken_for_class_0() {
    let (tokens, _) = sample();
    let data = Dataset::new(&tokens, &[], (0..tokens.len()).collect());
    let _ = trainer(connect(1), &model(0.0), 8, options(0)).evaluate(&data, &|| false);
}
