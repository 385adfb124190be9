//! The commands, as a user runs them, on the embedded sample and its tiny model.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use bert_xla::data::{Purpose, Table, TableOptions};
use bert_xla::model::{BertConfig, ClassifierConfig, HeadConfig};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;

use crate::common::{cpu_plugin, empty_folder, minilm};

fn command<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Command {
    cpu_plugin();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bert-xla"));
    command.args(arguments);
    command
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Runs a command line that must work, and gives its stdout.
#[track_caller]
fn works<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> String {
    let Output { status, stdout, stderr } = command(arguments).output().unwrap();
    assert!(status.success(), "{}", text(stderr));
    text(stdout)
}

/// Runs a command line that must fail with this exit code, and gives the one line that says why.
#[track_caller]
fn fails(command: &mut Command, code: i32) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = text(stderr);
    let errors = stderr.lines().filter(|line| line.starts_with("error: ")).collect::<Vec<_>>();
    assert_eq!((status.code(), errors.len()), (Some(code), 1), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    errors[0].to_owned()
}

fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name)
}

/// What `bert-xla demo` left, which is run once.
fn demo() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = empty_folder("cli_demo");
        works(&["demo".as_ref(), "--output".as_ref(), folder.as_os_str()]);
        folder
    })
}

/// `train` on the sample and the tiny model, with further arguments.
fn train(output: &Path, arguments: &[&str]) -> Command {
    let mut command = command(&["train", "--backend", "cpu", "--random-weights", "--max-length", "24"]);
    command.arg("--train").arg(asset("sample.csv")).arg("--model").arg(asset("tiny"));
    command.arg("--output").arg(output).args(arguments);
    command
}

/// `evaluate` or `predict` of the demo's run.
fn with_run(name: &str, run: &Path, data: &Path, arguments: &[&str]) -> Command {
    let mut command = command(&[name, "--backend", "cpu"]);
    command.arg("--run").arg(run).arg("--data").arg(data).args(arguments);
    command
}

fn json_lines(text: &str) -> Vec<Json> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The fields of a CSV file without quoted fields, a row each.
fn rows(path: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

/// The sample's texts and labels, each text once, in the file's order.
fn sample() -> Vec<(String, String)> {
    let options = TableOptions::default();
    let table = Table::read(&asset("sample.csv"), &options, Purpose::Evaluate).unwrap();
    let label = |class: &u32| options.labels.label_of(*class).unwrap().to_owned();
    let rows = table.texts.into_iter().zip(table.classes.iter().map(label));
    let mut seen = HashSet::new();
    rows.filter(|(text, _)| seen.insert(text.clone())).collect()
}

/// Checks a `dev_predictions.csv` against the sample; gives the held-out texts with their labels, and the number
/// whose most probable class is the label's.
fn check_dev_predictions(path: &Path) -> (Vec<(String, String)>, usize) {
    let rows = rows(path);
    assert_eq!(rows[0], ["row", "label", "predicted", "p_class_0", "p_-1", "p_0", "p_1"]);
    let sample = sample();
    // A tenth of the 400 distinct texts.
    assert_eq!((sample.len(), rows.len() - 1), (400, 40));
    let (mut held_out, mut correct, mut seen) = (Vec::new(), 0, HashSet::new());
    for row in &rows[1..] {
        let index = row[0].parse::<usize>().unwrap();
        assert!(seen.insert(index), "row {index} twice");
        assert_eq!(row[1], sample[index].1, "row {index}");
        let p = row[3..].iter().map(|p| p.parse::<f64>().unwrap()).collect::<Vec<_>>();
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{row:?}");
        let best =
            |classes: &[usize]| classes.iter().copied().max_by(|a, b| p[*a].total_cmp(&p[*b])).unwrap();
        assert_eq!(row[2], ["", "-1", "0", "1"][best(&[1, 2, 3])], "{row:?}");
        correct += usize::from(["", "-1", "0", "1"][best(&[0, 1, 2, 3])] == row[1]);
        held_out.push(sample[index].clone());
    }
    (held_out, correct)
}

#[test]
fn demo_learns_its_sample() {
    let run = demo().join("run");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert!(run.join(name).is_file(), "{name}");
    }
    for name in ["loss.png", "accuracy.png"] {
        let file = BufReader::new(fs::File::open(run.join(name)).unwrap());
        let mut image = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; image.output_buffer_size().unwrap()];
        image.next_frame(&mut pixels).unwrap();
        assert!(pixels.iter().any(|byte| *byte != pixels[0]), "{name} is blank");
    }
    let history = json_lines(&fs::read_to_string(run.join("history.jsonl")).unwrap());
    let number = |epoch: usize, name: &str| history[epoch][name].as_f64().unwrap();
    assert_eq!(history.len(), 6);
    assert_eq!((0..6).map(|epoch| number(epoch, "epoch")).collect::<Vec<_>>(), [1., 2., 3., 4., 5., 6.]);
    assert_eq!(number(5, "step"), 6.0 * 45.0);
    assert!((1..6).all(|epoch| number(epoch, "loss") < number(epoch - 1, "loss")), "{history:?}");
    assert!(number(5, "val_accuracy") > 0.9, "{history:?}");

    let (_, correct) = check_dev_predictions(&run.join("dev_predictions.csv"));
    assert_eq!(correct as f64 / 40.0, number(5, "val_accuracy"));

    let submission = rows(&demo().join("submission.csv"));
    assert_eq!(submission[0], ["ID", "label"]);
    let ids = submission[1..].iter().map(|row| row[0].parse::<usize>().unwrap()).collect::<Vec<_>>();
    assert_eq!(ids, (1..=40).collect::<Vec<_>>());
    assert!(submission[1..].iter().all(|row| ["-1", "0", "1"].contains(&row[1].as_str())));
}

#[test]
fn a_dry_run_counts_the_parameters_and_writes_nothing() {
    let output = empty_folder("cli_dry").join("run");
    let Output { status, stdout, .. } = train(&output, &["--dry-run"]).output().unwrap();
    let bert = BertConfig::read(&asset("tiny/config.json")).unwrap();
    let (hidden, intermediate) = (64, 128);
    let layer =
        4 * (hidden * hidden + hidden) + 2 * hidden * intermediate + intermediate + hidden + 4 * hidden;
    let encoder = (636 + 64 + 2) * hidden + 2 * hidden + 2 * layer + hidden * hidden + hidden;
    let head = (24 * hidden + 1) * 512 + (512 + 1) * 440 + (440 + 1) * 4;
    let head_config = HeadConfig::default();
    let model =
        ClassifierConfig { bert, head: head_config, max_length: 24, mask: false, freeze_padding: false };
    assert_eq!(model.num_parameters(), encoder + head);
    let total = format!(
        "{},{:03},{:03}",
        (encoder + head) / 1_000_000,
        (encoder + head) / 1000 % 1000,
        (encoder + head) % 1000
    );
    let stdout = text(stdout);
    assert!(status.success() && stdout.contains(&format!("Total params: {total}\n")), "{stdout}");
    assert!(!output.exists());
}

#[test]
fn json_of_training_and_evaluation_agrees_with_the_files() {
    let output = empty_folder("cli_json").join("run");
    let arguments = ["--json", "--mask", "--replicas", "2", "--epochs", "3", "--batch-size", "8"];
    let Output { status, stdout, stderr } =
        train(&output, &arguments).args(["--learning-rate", "5e-4"]).output().unwrap();
    let stderr = text(stderr);
    assert!(status.success() && stderr.contains("Number of replicas: 2\n"), "{stderr}");
    assert!(!stderr.contains("Epoch"), "{stderr}");
    let stdout = text(stdout);
    assert_eq!(stdout, fs::read_to_string(output.join("history.jsonl")).unwrap());
    let lines = json_lines(&stdout);
    assert_eq!(lines.len(), 3);

    let (held_out, correct) = check_dev_predictions(&output.join("dev_predictions.csv"));
    assert_eq!(lines[2]["val_accuracy"].as_f64().unwrap(), correct as f64 / 40.0);
    let data = output.join("held_out.csv");
    let row = |(text, label): &(String, String)| format!("{label},\"{}\"\n", text.replace('"', "\"\""));
    fs::write(&data, format!("label,text\n{}", held_out.iter().map(row).collect::<String>())).unwrap();
    // In batches that 40 rows don't fill.
    let mut evaluate = with_run("evaluate", &output, &data, &["--json", "--batch-size", "7"]);
    let json = evaluate.output().unwrap().stdout;
    let json: Json = serde_json::from_slice(&json).unwrap();
    assert_eq!((json["rows"].as_u64(), json["accuracy"].as_f64()), (Some(40), Some(correct as f64 / 40.0)));
    let loss = (json["loss"].as_f64().unwrap(), lines[2]["val_loss"].as_f64().unwrap());
    assert!((loss.0 - loss.1).abs() < 1e-5, "{loss:?}");
}

#[test]
fn predict_labels_every_row_in_order() {
    let folder = empty_folder("cli_predict");
    let (data, output) = (folder.join("data.csv"), folder.join("labels.csv"));
    let rows_in = [
        ("b7", "\"I hate the movie, so bad\"", "-1"),
        ("a1", "", ""),
        ("c", "\"she said \"\"merci\"\", then left\"", ""),
        ("a1b", "\"I hate the movie, so bad\"", "-1"),
        ("9", "\"\"", ""),
        ("x,y", "is the coffee available tomorrow?", "0"),
    ];
    let row = |(id, text, _): &(&str, &str, &str)| {
        if id.contains(',') { format!("\"{id}\",{text}\n") } else { format!("{id},{text}\n") }
    };
    fs::write(&data, format!("ID,text\n{}", rows_in.iter().map(row).collect::<String>())).unwrap();
    let arguments = ["--batch-size", "4", "--output", output.to_str().unwrap()];
    let stdout = with_run("predict", &demo().join("run"), &data, &arguments).output().unwrap().stdout;
    assert!(text(stdout).contains("labels.csv: 6 rows\n"));
    let written = fs::read_to_string(&output).unwrap();
    let lines = written.lines().collect::<Vec<_>>();
    assert_eq!((lines[0], lines.len()), ("ID,label", 7));
    for ((id, _, expected), line) in rows_in.iter().zip(&lines[1..]) {
        let (found, label) = line.rsplit_once(',').unwrap();
        assert_eq!(found.trim_matches('"'), *id);
        assert!(["-1", "0", "1"].contains(&label) && (expected.is_empty() || *expected == label), "{line}");
    }
}

#[test]
fn encode_gives_transformers_hidden_states() {
    let Some(model) = minilm::folder() else { return };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = empty_folder("cli_encode");
    let (input, output) = (folder.join("sentences.txt"), folder.join("states.safetensors"));
    let tokens = fs::read(fixtures.join("minilm_tokens.json")).unwrap();
    let tokens: Vec<Json> = serde_json::from_slice(&tokens).unwrap();
    let lines = tokens[..2].iter().map(|token| format!("{}\n", token["text"].as_str().unwrap()));
    fs::write(&input, lines.collect::<String>()).unwrap();
    let golden = fs::read(fixtures.join("minilm_hidden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    for (mask, name) in [(&[][..], "unmasked"), (&["--mask"], "masked")] {
        let mut command = command(&["encode", "--backend", "cpu", "--max-length", "32", "--batch-size", "2"]);
        command.arg("--model").arg(model).arg("--input").arg(&input).arg("--output").arg(&output).args(mask);
        assert!(command.output().unwrap().status.success());
        let written = fs::read(&output).unwrap();
        let written = SafeTensors::deserialize(&written).unwrap();
        for ids in ["input_ids", "attention_mask"] {
            assert_eq!(written.tensor(ids).unwrap().data(), golden.tensor(ids).unwrap().data(), "{ids}");
        }
        let (found, expected) = (written.tensor("last_hidden_state").unwrap(), golden.tensor(name).unwrap());
        assert_eq!(found.shape(), [2, 32, 384]);
        let values = |bytes: &[u8]| {
            bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>()
        };
        let pairs = values(found.data()).into_iter().zip(values(expected.data()));
        let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 2e-4, "{name}: off by {off}");
    }
}

#[test]
fn graph_prints_each_step() {
    for (step, replicas) in [("train", "2"), ("eval", "1"), ("predict", "1")] {
        let program = works(&["graph", "--step", step, "--size", "tiny", "--replicas", replicas]);
        assert!(program.contains(&format!("{step}_step")) && program.contains("s32[16,24]"), "{program}");
        assert_eq!(program.contains("all-reduce"), replicas == "2");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut graph = command(&["graph", "--step", "train", "--size", "tiny"]);
    let mut child = graph.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!((status.code(), text(stderr).as_str()), (Some(0), ""), "after {line}");

    // The same for the notes on stderr.
    let output = empty_folder("cli_closed").join("run");
    let mut train = train(&output, &["--epochs", "1", "--batch-size", "8"]);
    let mut child = train.stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(output.join("model.safetensors").is_file());
}

#[test]
fn a_missing_file_and_an_unknown_label_are_named() {
    let folder = empty_folder("cli_inputs");
    let run = demo().join("run");
    let missing = fails(&mut with_run("evaluate", &run, Path::new("/nowhere/test.csv"), &[]), 2);
    assert!(missing.starts_with("error: can't read /nowhere/test.csv: "), "{missing}");
    let data = folder.join("labels.csv");
    fs::write(&data, "ID,text,label\n1,good,1\n2,\"two\nlines\",0\n3,odd,%1\n").unwrap();
    let message = fails(&mut with_run("evaluate", &run, &data, &[]), 2);
    for part in ["labels.csv", "line 5", "label `%1` is not one of -1, 0, 1", "--skip-bad-rows"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn values_that_cant_be_worked_with_are_refused() {
    let output = empty_folder("cli_values").join("run");
    let cases: [(&[&str], &[&str]); 11] = [
        (&["--batch-size", "0"], &["'0'", "--batch-size"]),
        (&["--batch-size", "7", "--replicas", "2"], &["--batch-size 7", "2 replicas"]),
        (&["--replicas", "0"], &["'0'", "--replicas"]),
        (&["--epochs", "0"], &["'0'", "--epochs"]),
        (&["--num-classes", "3"], &["--num-classes 3", "needs 4"]),
        (&["--learning-rate", "0"], &["--learning-rate 0", "positive number"]),
        (&["--learning-rate", "1e39"], &["--learning-rate", "positive number"]),
        (&["--dropout", "1"], &["--dropout 1"]),
        (&["--dev-size", "1"], &["test share of 1", "between 0 and 1"]),
        (&["--labels", "a=0,b=0"], &["labels `a=0,b=0`", "class 0 is given twice"]),
        (&["--text-column", "tweet"], &["sample.csv", "no column `tweet`", "ID, text, label"]),
    ];
    for (arguments, parts) in cases {
        let message = fails(&mut train(&output, arguments), 2);
        assert!(parts.iter().all(|part| message.contains(part)), "{arguments:?}: {message}");
    }
    for (length, part) in [("65", "reads at most 64 tokens, not 65"), ("2", "2 tokens leaves no room")] {
        let mut command = command(&["train", "--random-weights", "--max-length", length]);
        command.arg("--train").arg(asset("sample.csv")).arg("--model").arg(asset("tiny"));
        let message = fails(command.arg("--output").arg(&output), 2);
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_folder_without_a_run_is_refused() {
    let empty = empty_folder("cli_no_run");
    let data = asset("sample.csv");
    let cases = [
        (empty.clone(), "there is no config.json"),
        (empty.join("nowhere"), "there is no such folder; give the --output of a training run"),
        (asset("tiny"), "there is no model.safetensors"),
    ];
    for (run, part) in cases {
        let message = fails(&mut with_run("evaluate", &run, &data, &[]), 2);
        assert!(message.contains(part) && message.contains(run.to_str().unwrap()), "{message}");
    }
    // A model that nothing was trained on: the encoder's folder, with weights.
    let bare = copy_of_run("cli_bare");
    fs::copy(asset("tiny/config.json"), bare.join("config.json")).unwrap();
    let message = fails(&mut with_run("evaluate", &bare, &data, &[]), 2);
    assert!(message.contains("config.json has no \"bert_xla\""), "{message}");
    for config in ["[]", "{", "{\"bert_xla\": 3}"] {
        fs::write(bare.join("config.json"), config).unwrap();
        let message = fails(&mut with_run("evaluate", &bare, &data, &[]), 2);
        assert!(message.contains(bare.to_str().unwrap()), "{message}");
    }
}

/// A copy of the demo's run.
fn copy_of_run(name: &str) -> PathBuf {
    let folder = empty_folder(name);
    for file in fs::read_dir(demo().join("run")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    folder
}

/// A tensor's name, type, shape and bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// Rewrites a run's weights.
fn edit_weights(run: &Path, edit: impl FnOnce(&mut Vec<Tensor>)) {
    let path = run.join("model.safetensors");
    let bytes = fs::read(demo().join("run/model.safetensors")).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let owned = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, view.dtype(), view.shape().to_vec(), view.data().to_vec())
    };
    let mut tensors = read.tensors().into_iter().map(owned).collect::<Vec<_>>();
    edit(&mut tensors);
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
}

#[test]
fn weights_that_dont_fit_the_model_are_named() {
    let run = copy_of_run("cli_weights");
    let output = empty_folder("cli_weights_output").join("run");
    let key = "bert.encoder.layer.1.output.dense.bias";
    let evaluate = || with_run("evaluate", &run, &asset("sample.csv"), &[]);
    let retrain = || {
        let mut command = command(&["train", "--backend", "cpu", "--max-length", "24", "--train"]);
        command.arg(asset("sample.csv")).arg("--output").arg(&output).arg("--model").arg(&run);
        command
    };
    let check = |parts: &[&str]| {
        for mut command in [evaluate(), retrain()] {
            let message = fails(&mut command, 2);
            let has = |part: &&str| message.contains(*part);
            assert!(parts.iter().all(has) && message.contains("model.safetensors"), "{message}");
        }
    };
    edit_weights(&run, |tensors| tensors.retain(|(name, ..)| name != key));
    check(&["there is no tensor `encoder.layer.1.output.dense.bias`; the nearest name is `encoder.layer."]);
    edit_weights(&run, |tensors| tensors.push(("extra.weight".into(), Dtype::F32, vec![1], vec![0; 4])));
    check(&["tensor `extra.weight` [1]", "no such weight"]);
    edit_weights(&run, |tensors| {
        let tensor = tensors.iter_mut().find(|(name, ..)| name == key).unwrap();
        (tensor.2, tensor.3) = (vec![63], vec![0; 63 * 4]);
    });
    check(&["tensor `encoder.layer.1.output.dense.bias` has the shape [63], expected [64]"]);
    fs::write(run.join("model.safetensors"), b"not a checkpoint").unwrap();
    check(&["not a complete safetensors file"]);
}

#[test]
fn a_tokenizer_larger_than_the_vocabulary_is_refused() {
    let run = copy_of_run("cli_vocabulary");
    let config = fs::read_to_string(run.join("config.json")).unwrap();
    fs::write(run.join("config.json"), config.replace("\"vocab_size\": 636", "\"vocab_size\": 600")).unwrap();
    let run_path = run.to_str().unwrap();
    let (data, output) = (asset("sample.csv"), run.join("states.safetensors"));
    let mut encode = command(&["encode", "--model", run_path, "--max-length", "24", "--input"]);
    encode.arg(&data).arg("--output").arg(&output);
    let mut retrain = command(&["train", "--model", run_path, "--max-length", "24", "--dry-run", "--train"]);
    retrain.arg(&data).arg("--output").arg(&output);
    for mut command in [encode, retrain] {
        let message = fails(&mut command, 2);
        assert!(
            message.contains("vocab_size is 600, but the tokenizer beside it has 636 tokens"),
            "{message}"
        );
    }
}

#[test]
fn a_run_is_replaced_only_when_asked_and_once_another_has_an_epoch() {
    let run = copy_of_run("cli_overwrite");
    let files = || {
        let read = |name: &str| fs::read(run.join(name)).unwrap();
        ["config.json", "model.safetensors", "history.jsonl", "dev_predictions.csv"].map(read)
    };
    let before = files();
    let message = fails(&mut train(&run, &[]), 2);
    assert!(message.contains("already holds a run") && message.contains("--overwrite"), "{message}");
    assert!(files() == before);
    // A run that fails before its first epoch ends leaves the earlier one whole.
    let message = fails(&mut train(&run, &["--overwrite", "--learning-rate", "1e30"]), 1);
    assert!(message.contains("the run has diverged"), "{message}");
    assert!(files() == before);
    let status = train(&run, &["--overwrite", "--epochs", "1"]).output().unwrap().status;
    assert!(status.success() && files() != before);
    assert_eq!(json_lines(&fs::read_to_string(run.join("history.jsonl")).unwrap()).len(), 1);
}

#[test]
fn without_a_plugin_the_message_says_how_to_get_one() {
    let cache = empty_folder("cli_no_plugin");
    for backend in ["cpu", "auto"] {
        let mut command = command(&["evaluate", "--backend", backend, "--run"]);
        command.arg(demo().join("run")).arg("--data").arg(asset("sample.csv"));
        let message = fails(command.env_clear().env("BERT_XLA_CACHE", &cache).env("HOME", &cache), 2);
        assert!(message.contains("bert-xla plugins install cpu"), "{message}");
        assert!(message.contains(cache.to_str().unwrap()), "{message}");
    }
}
