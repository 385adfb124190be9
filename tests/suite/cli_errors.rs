//! What the commands refuse: one line that says what, where and what to do, and the exit code.

use std::fs;
use std::path::Path;

use bert_xla::pjrt::Backend;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::common::cli::{asset, command, copy_of_run, demo, fails, json_lines, train, with_run};
use crate::common::empty_folder;

#[test]
fn a_missing_file_and_an_unknown_label_are_named() {
    let folder = empty_folder("cli_inputs");
    let run = demo().join("run");
    let missing = fails(&mut with_run("evaluate", &run, &folder.join("none.csv"), &[]), 2);
    assert!(
        missing.starts_with(&format!("error: can't read {}: ", folder.join("none.csv").display())),
        "{missing}"
    );
    let data = folder.join("labels.csv");
    fs::write(&data, "ID,text,label\n1,good,1\n2,\"two\nlines\",0\n3,odd,%1\n").unwrap();
    let message = fails(&mut with_run("evaluate", &run, &data, &[]), 2);
    for part in ["labels.csv", "line 5", "label `%1` is not one of -1, 0, 1", "--skip-bad-rows"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_first_row_of_data_is_not_lost_to_a_header() {
    let folder = empty_folder("cli_headless");
    let (data, run) = (folder.join("data.csv"), demo().join("run"));
    let predict = |name: &str, arguments: &[&str]| {
        let mut command = with_run("predict", &run, &data, arguments);
        command.arg("--output").arg(folder.join(name));
        command
    };
    fs::write(&data, "1,behi barcha\n2,khayeb\n3,normal\n").unwrap();
    let message = fails(&mut predict("headless.csv", &[]), 2);
    for part in
        ["data.csv: the first row, `1, behi barcha`, reads as data", "--no-header if it is data", "--header"]
    {
        assert!(message.contains(part), "{message}");
    }
    assert!(!folder.join("headless.csv").exists());
    let rows = |name: &str, arguments: &[&str]| {
        let output = predict(name, arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let is_guessed = said.contains("Columns by position, from 0: text 1, id 0;");
        assert_eq!(is_guessed, !arguments.contains(&"--text-column"), "{said}");
        fs::read_to_string(folder.join(name)).unwrap().lines().count() - 1
    };
    assert_eq!(rows("three.csv", &["--no-header"]), 3);
    assert_eq!(rows("two.csv", &["--header"]), 2);
    fails(&mut predict("both.csv", &["--header", "--no-header"]), 2);
    fs::write(&data, "Nr,comment\n1,behi barcha\n2,\"a\"b\n").unwrap();
    assert_eq!(rows("one.csv", &["--text-column", "comment", "--skip-bad-rows"]), 1);
    let output = predict("one.csv", &["--text-column", "comment", "--skip-bad-rows"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("one.csv: 1 row, 1 bad row left out"), "{said}");
}

#[test]
fn values_that_cant_be_worked_with_are_refused() {
    let output = empty_folder("cli_values").join("run");
    let cases: [(&[&str], &[&str]); 11] = [
        (&["--batch-size", "0"], &["'0'", "--batch-size"]),
        (&["--batch-size", "7", "--replicas", "2"], &["a batch of 7", "2 replicas", "choose a --batch-size"]),
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
    for (length, part) in
        [("65", "--max-length 65: this encoder reads 1 to 64 tokens"), ("2", "2 tokens leaves no room")]
    {
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
    assert!(message.contains("config.json: it has no \"bert_xla\""), "{message}");
    for config in ["[]", "{", "{\"bert_xla\": 3}"] {
        fs::write(bare.join("config.json"), config).unwrap();
        let message = fails(&mut with_run("evaluate", &bare, &data, &[]), 2);
        assert!(message.contains(bare.to_str().unwrap()), "{message}");
    }
}

/// A tensor's name, type, shape and bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// Rewrites a run's weights.
fn edit_weights(run: &Path, edit: impl FnOnce(&mut Vec<Tensor>)) {
    let path = run.join("model.safetensors");
    let bytes = fs::read(demo().join("run/model.safetensors")).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let owned = |(name, view): (String, TensorView<'_>)| {
        (name, view.dtype(), view.shape().to_vec(), view.data().to_vec())
    };
    let mut tensors = read.tensors().into_iter().map(owned).collect::<Vec<_>>();
    edit(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
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
    let stray = "encoder.layer.2.output.dense.bias";
    edit_weights(&run, |tensors| tensors.push((stray.into(), Dtype::F32, vec![1], vec![0; 4])));
    check(&["tensor `encoder.layer.2.output.dense.bias` [1]", "no such weight"]);
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

#[test]
fn a_backend_without_its_hardware_is_refused_before_its_plugin_is_read() {
    // A plugin that is no library: it must not even be opened.
    let plugin = empty_folder("cli_no_hardware").join("plugin.so");
    fs::write(&plugin, "text").unwrap();
    for (backend, reason) in
        [(Backend::Tpu, "no TPU on this machine"), (Backend::Gpu, "no NVIDIA GPU on this machine")]
    {
        if backend.probe().is_ok() {
            eprintln!("skipped: there is a {backend}");
            continue;
        }
        let name = backend.to_string();
        let arguments = ["evaluate", "--backend", &name, "--plugin", plugin.to_str().unwrap(), "--run"];
        let mut command = command(&arguments);
        command.arg(demo().join("run")).arg("--data").arg(asset("sample.csv"));
        let message = fails(&mut command, 2);
        assert!(message.starts_with(&format!("error: {backend}: {reason} (")), "{message}");
        assert!(message.ends_with("; --backend auto takes what is here"), "{message}");
    }
}

#[test]
fn a_model_of_no_numbers_gives_no_answer() {
    let run = copy_of_run("cli_nan");
    edit_weights(&run, |tensors| {
        let embedding = tensors.iter_mut().find(|(name, ..)| name.contains("word_embeddings")).unwrap();
        embedding.3 = f32::NAN.to_le_bytes().repeat(embedding.3.len() / 4);
    });
    let output = run.join("labels.csv");
    let predict = ["--output", output.to_str().unwrap()];
    for (name, arguments) in [("evaluate", &[][..]), ("predict", &predict)] {
        let message = fails(&mut with_run(name, &run, &asset("sample.csv"), arguments), 2);
        assert!(message.contains("answers are not numbers"), "{message}");
    }
    assert!(!output.exists());
    let mut retrain = command(&["train", "--backend", "cpu", "--max-length", "24", "--train"]);
    retrain.arg(asset("sample.csv")).arg("--output").arg(run.join("run")).arg("--model").arg(&run);
    let message = fails(&mut retrain, 1);
    assert!(message.contains("try a lower --learning-rate"), "{message}");
}

#[test]
fn what_a_model_is_read_from_is_not_written_over() {
    let (run, sentences) = (copy_of_run("cli_over"), empty_folder("cli_over_input").join("sentences.txt"));
    fs::write(&sentences, "behi\n").unwrap();
    let encode = |output: &Path| {
        let mut command = command(&["encode", "--backend", "cpu", "--max-length", "8", "--model"]);
        command.arg(&run).arg("--input").arg(&sentences).arg("--output").arg(output);
        command
    };
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let message = fails(&mut encode(&run.join(name)), 2);
        assert!(message.ends_with("it is the input; name another file"), "{message}");
        let output = run.join(name);
        let output = ["--output", output.to_str().unwrap()];
        let message = fails(&mut with_run("predict", &run, &asset("sample_test.csv"), &output), 2);
        assert!(message.ends_with("it is the input; name another file"), "{message}");
    }
    let message = fails(&mut encode(&run), 2);
    assert!(message.ends_with("it is a folder; name another file"), "{message}");

    edit_weights(&run, |tensors| {
        tensors.push(("encoder.layer.2.output.dense.bias".into(), Dtype::F32, vec![1], vec![0; 4]));
    });
    let message = fails(&mut encode(&run.with_extension("states")), 2);
    assert!(
        message.contains("`encoder.layer.2.output.dense.bias` [1]: the model that config.json"),
        "{message}"
    );
}
