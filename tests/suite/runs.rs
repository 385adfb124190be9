//! Run folders as others and as older versions have them, and runs as models to start from.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value as Json, json};

use crate::common::cli::{asset, command, copy_of_run, demo, fails, text, train, with_run, works};
use crate::common::empty_folder;

fn read_json(path: &Path) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn evaluate(run: &Path) -> Json {
    let output = with_run("evaluate", run, &asset("sample.csv"), &["--json"]).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_runs_of_older_versions_open_still() {
    let expected = evaluate(&demo().join("run"));
    // Files alone, with labels as a string, and a head that doesn't say which it is.
    let run = copy_of_run("runs_older");
    assert_eq!(evaluate(&run), expected);
    let path = run.join("config.json");
    let mut config = read_json(&path);
    for key in ["id2label", "label2id"] {
        config.as_object_mut().unwrap().remove(key).unwrap();
    }
    let settings = config["bert_xla"].as_object_mut().unwrap();
    assert_eq!(settings.remove("unlabelled"), Some(json!([0])));
    assert_eq!(settings["head"].as_object_mut().unwrap().remove("type"), Some(json!("dense")));
    settings.insert("labels".into(), json!("-1=1,0=2,1=3"));
    fs::write(&path, config.to_string()).unwrap();
    assert_eq!(evaluate(&run), expected);
}

#[test]
fn the_labels_are_in_config_json_as_transformers_has_them() {
    let config = read_json(&demo().join("run/config.json"));
    assert_eq!(config["id2label"], json!({"0": "LABEL_0", "1": "-1", "2": "0", "3": "1"}));
    assert_eq!(config["label2id"], json!({"LABEL_0": 0, "-1": 1, "0": 2, "1": 3}));

    // Labels that a string of pairs could not hold, one of them named as a class without a label is.
    let folder = empty_folder("runs_labels");
    let (data, output) = (folder.join("data.csv"), folder.join("run"));
    let rows = (0..40).map(|row| format!("\"text {row}\",{}\n", ["LABEL_0", "b c"][row % 2]));
    fs::write(&data, format!("text,label\n{}", rows.collect::<String>())).unwrap();
    let mut command = command(&["train", "--backend", "cpu", "--random-weights", "--max-length", "8"]);
    command.arg("--train").arg(&data).arg("--model").arg(asset("tiny")).arg("--output").arg(&output);
    command.args(["--labels", "LABEL_0=0,b c=2", "--epochs", "1"]);
    let output_of = command.output().unwrap();
    assert!(output_of.status.success(), "{}", text(output_of.stderr));
    let config = read_json(&output.join("config.json"));
    assert_eq!(config["id2label"], json!({"0": "LABEL_0", "1": "LABEL_1", "2": "b c"}));
    assert_eq!(config["bert_xla"]["unlabelled"], json!([1]));
    let labels = folder.join("labels.csv");
    let data = data.to_str().unwrap();
    let arguments = ["predict", "--backend", "cpu", "--run", output.to_str().unwrap(), "--data", data];
    works(&[&arguments[..], &["--output", labels.to_str().unwrap()]].concat());
    let written = fs::read_to_string(&labels).unwrap();
    let mut answers = written.lines().skip(1).map(|line| line.split_once(',').unwrap().1);
    assert!(answers.all(|label| ["LABEL_0", "b c"].contains(&label)), "{written}");
}

/// The files at the root are for others: a run as a model is what was committed.
#[test]
fn a_run_is_a_model_to_start_from() {
    let folder = empty_folder("runs_model");
    let run = folder.join("run");
    assert!(train(&run, &["--epochs", "1"]).output().unwrap().status.success());
    fs::remove_file(run.join("model.safetensors")).unwrap();
    let mut again = command(&["train", "--backend", "cpu", "--max-length", "24", "--epochs", "1", "--train"]);
    again.arg(asset("sample.csv")).arg("--output").arg(folder.join("again")).arg("--model").arg(&run);
    let ended = again.output().unwrap();
    assert!(ended.status.success(), "{}", text(ended.stderr));
    let sentences = folder.join("sentences.txt");
    fs::write(&sentences, "merci\n").unwrap();
    let mut encode = command(&["encode", "--backend", "cpu", "--max-length", "8", "--model"]);
    encode.arg(&run).arg("--input").arg(&sentences).arg("--output").arg(folder.join("states.safetensors"));
    assert!(encode.output().unwrap().status.success());
    assert!(folder.join("states.safetensors").is_file());
}

#[test]
fn a_checkpoint_without_a_pooler_is_trained_all_the_same() {
    let run = copy_of_run("runs_no_pooler");
    let path = run.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let kept = tensors.iter().filter(|(name, _)| !name.contains("pooler")).map(|(name, view)| {
        (name.to_owned(), TensorView::new(view.dtype(), view.shape().to_vec(), view.data()).unwrap())
    });
    let kept = kept.collect::<Vec<_>>();
    assert_eq!(kept.len() + 2, tensors.len());
    let without = run.join("without.safetensors");
    safetensors::serialize_to_file(kept, None, &without).unwrap();
    fs::rename(without, &path).unwrap();
    let output = empty_folder("runs_no_pooler_output").join("run");
    let mut command =
        command(&["train", "--backend", "cpu", "--max-length", "24", "--epochs", "1", "--train"]);
    command.arg(asset("sample.csv")).arg("--output").arg(&output).arg("--model").arg(&run);
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{}", text(ended.stderr));
    // It is drawn, and kept with the rest.
    let bytes = fs::read(output.join("model.safetensors")).unwrap();
    let pooler = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(pooler.tensor("bert.pooler.dense.weight").unwrap().shape(), [64, 64]);
}

#[test]
fn a_pipe_is_a_table_too() {
    let folder = empty_folder("runs_pipe");
    let (data, run) = (demo().join("sample_test.csv"), demo().join("run"));
    let labels = folder.join("labels.csv");
    let mut predict = with_run("predict", &run, Path::new("/dev/stdin"), &[]);
    predict.arg("--output").arg(&labels);
    let mut feed = std::process::Command::new("cat");
    let mut feed = feed.arg(data).stdout(Stdio::piped()).spawn().unwrap();
    let ended = predict.stdin(feed.stdout.take().unwrap()).output().unwrap();
    assert!(ended.status.success() && feed.wait().unwrap().success(), "{}", text(ended.stderr));
    assert_eq!(fs::read(labels).unwrap(), fs::read(demo().join("submission.csv")).unwrap());
}

/// TPU, then GPU, then CPU; each that is passed over is named with its reason.
#[test]
fn backends_are_tried_in_order() {
    use bert_xla::pjrt::Backend;
    if Backend::Tpu.probe().is_ok() || Backend::Gpu.probe().is_ok() {
        return eprintln!("skipped: there is a TPU or a GPU");
    }
    let mut evaluate = command(&["evaluate", "--run"]);
    evaluate.arg(demo().join("run")).arg("--data").arg(asset("sample.csv"));
    let said = text(evaluate.output().unwrap().stderr);
    let lines = said.lines().collect::<Vec<_>>();
    assert!(lines[0].starts_with("tpu: passed over: no TPU on this machine"), "{said}");
    assert!(lines[1].starts_with("gpu: passed over: no NVIDIA GPU on this machine"), "{said}");
    assert_eq!(lines[2..], ["Running on cpu (cpu)", "Number of replicas: 1"]);
}

#[test]
fn labels_that_look_alike_have_columns_of_their_own() {
    let folder = empty_folder("runs_columns");
    let (data, output) = (folder.join("data.csv"), folder.join("run"));
    let labels = ["a b", "a_b", "LABEL_0"];
    let rows = (0..40).map(|row| format!("\"text {row}\",{}\n", labels[row % 3]));
    fs::write(&data, format!("text,label\n{}", rows.collect::<String>())).unwrap();
    let mut command = command(&["train", "--backend", "cpu", "--random-weights", "--max-length", "8"]);
    command.arg("--train").arg(&data).arg("--model").arg(asset("tiny")).arg("--output").arg(&output);
    let ended = command.args(["--labels", "a b=1,a_b=2,LABEL_0=3", "--epochs", "1"]).output().unwrap();
    assert!(ended.status.success(), "{}", text(ended.stderr));
    let predictions = fs::read_to_string(output.join("dev_predictions.csv")).unwrap();
    let header = predictions.lines().next().unwrap();
    assert_eq!(header, "row,id,label,predicted,p_class_0,p_a b,p_a_b,p_LABEL_0");
    // No two classes of one name, for transformers.
    let config = read_json(&output.join("config.json"));
    assert_eq!(config["id2label"], json!({"0": "LABEL_0_", "1": "a b", "2": "a_b", "3": "LABEL_0"}));
    assert_eq!(config["label2id"]["LABEL_0"], 3);
}

#[test]
fn predict_writes_to_a_pipe_and_leaves_nothing_when_it_is_interrupted() {
    let run = demo().join("run");
    let predict = with_run("predict", &run, &asset("sample_test.csv"), &["--output", "/dev/stdout"]);
    let mut predict = predict;
    let output = predict.output().unwrap();
    assert_eq!(output.stdout, fs::read(demo().join("submission.csv")).unwrap());
    let said = text(output.stderr);
    assert!(said.contains("/dev/stdout: 40 rows"), "{said}");

    // Whose reader has seen enough.
    let mut predict = with_run("predict", &run, &asset("sample_test.csv"), &["--output", "/dev/stdout"]);
    let mut child = predict.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(0), "{}", text(stderr));

    let folder = empty_folder("runs_interrupted");
    let (data, output) = (folder.join("data.csv"), folder.join("output"));
    let rows = (0..200_000).map(|row| format!("{row},text of row {row}\n")).collect::<String>();
    fs::write(&data, format!("ID,text\n{rows}")).unwrap();
    fs::create_dir(&output).unwrap();
    let mut predict = with_run("predict", &run, &data, &[]);
    let mut child = predict.arg("--output").arg(output.join("labels.csv")).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(
        std::process::Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    assert!(!child.wait().unwrap().success());
    assert_eq!(fs::read_dir(&output).unwrap().count(), 0);
}

#[test]
fn what_is_read_is_not_written_over_and_a_link_stays_one() {
    let folder = empty_folder("runs_outputs");
    let (data, run) = (folder.join("data.csv"), demo().join("run"));
    fs::copy(asset("sample_test.csv"), &data).unwrap();
    let before = fs::read(&data).unwrap();
    let output = |path: &Path| with_run("predict", &run, &data, &["--output", path.to_str().unwrap()]);
    let message = fails(&mut output(&data), 2);
    assert!(message.ends_with("data.csv: it is the input; name another file"), "{message}");
    assert_eq!(fs::read(&data).unwrap(), before);
    let (link, target) = (folder.join("link.csv"), folder.join("target.csv"));
    fs::write(&target, "old").unwrap();
    std::os::unix::fs::symlink("target.csv", &link).unwrap();
    assert!(output(&link).output().unwrap().status.success());
    assert!(link.is_symlink());
    assert_eq!(fs::read(target).unwrap(), fs::read(demo().join("submission.csv")).unwrap());

    let mut file = train(&data, &["--epochs", "1"]);
    let message = fails(&mut file, 2);
    assert!(message.ends_with("data.csv: it is a file, where a folder for the run is expected"), "{message}");
}

#[test]
fn what_is_taken_of_a_checkpoint_is_told() {
    let folder = empty_folder("runs_taken");
    let dry_run = |model: &Path, flags: &[&str]| {
        let mut command = command(&["train", "--max-length", "24", "--dry-run", "--train"]);
        command
            .arg(asset("sample.csv"))
            .args(flags)
            .arg("--output")
            .arg(folder.join("run"))
            .arg("--model")
            .arg(model);
        let output = command.output().unwrap();
        assert!(output.status.success());
        text(output.stderr)
    };
    // 5 tensors of the embeddings, 16 of each layer, 2 of the pooler.
    let taken = "Weights: 39 tensors of the checkpoint's encoder taken over, 6 starting anew (dense_1, dense_2, dense_3)";
    let said = dry_run(&demo().join("run"), &[]);
    assert!(said.contains("Weights: 45 tensors of the checkpoint's encoder and head taken over\n"), "{said}");
    // A head of another size.
    let said = dry_run(&demo().join("run"), &["--hidden", "512,441"]);
    let left_out = "6 of the checkpoint left out (dense_1, dense_2, dense_3)";
    assert!(said.contains(&format!("{taken}, {left_out}\n")), "{said}");

    // A classifier of transformers', with what is left of its pretraining, and without a pooler.
    let checkpoint = folder.join("classifier");
    fs::create_dir(&checkpoint).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(demo().join("run").join(name), checkpoint.join(name)).unwrap();
    }
    let bytes = fs::read(demo().join("run/model.safetensors")).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = read.tensors();
    tensors.retain(|(name, _)| !name.starts_with("dense_") && !name.contains("pooler"));
    let value = [0; 4];
    for name in
        ["classifier.bias", "classifier.weight", "cls.predictions.bias", "bert.embeddings.position_ids"]
    {
        tensors.push((name.to_owned(), TensorView::new(safetensors::Dtype::F32, vec![1], &value).unwrap()));
    }
    safetensors::serialize_to_file(tensors, None, &checkpoint.join("model.safetensors")).unwrap();
    let said = dry_run(&checkpoint, &[]);
    let expected = "Weights: 37 tensors of the checkpoint's encoder taken over, 8 starting anew (bert, dense_1, dense_2, \
                    dense_3), 3 of the checkpoint left out (classifier, cls)\n";
    assert!(said.contains(expected), "{said}");
}

/// A tokenizer without a `[PAD]`: it pads with `<pad>`, of another id than configurations leave out.
#[test]
fn a_run_pads_as_it_was_trained() {
    let folder = empty_folder("runs_padding");
    let model = folder.join("model");
    fs::create_dir(&model).unwrap();
    fs::copy(asset("tiny/config.json"), model.join("config.json")).unwrap();
    let json = fs::read_to_string(asset("tiny/tokenizer.json")).unwrap();
    let mut json: Json = serde_json::from_str(&json.replace("[PAD]", "<pad>")).unwrap();
    json["padding"] = json!({
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 5, "pad_type_id": 0, "pad_token": "<pad>"
    });
    fs::write(model.join("tokenizer.json"), json.to_string()).unwrap();

    let run = folder.join("run");
    let mut train =
        command(&["train", "--backend", "cpu", "--random-weights", "--max-length", "8", "--epochs", "1"]);
    train.arg("--train").arg(asset("sample.csv")).arg("--model").arg(&model).arg("--output").arg(&run);
    let output = train.output().unwrap();
    let said = text(output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("padded with token 5, as the tokenizer says; config.json says 0"), "{said}");

    let config = read_json(&run.join("config.json"));
    let tokenizer = read_json(&run.join("tokenizer.json"));
    assert_eq!((&config["pad_token_id"], &tokenizer["padding"]["pad_id"]), (&json!(5), &json!(5)));
    assert_eq!(
        (&tokenizer["padding"]["strategy"], &tokenizer["truncation"]),
        (&json!("BatchLongest"), &Json::Null)
    );
    let (states, sentences) = (folder.join("states.safetensors"), folder.join("sentences.txt"));
    fs::write(&sentences, "behi\n").unwrap();
    for (name, file) in [("evaluate", None), ("predict", Some(folder.join("labels.csv")))] {
        let mut command = with_run(name, &run, &asset("sample.csv"), &[]);
        let output = command
            .args(file.iter().flat_map(|file| ["--output".as_ref(), file.as_os_str()]))
            .output()
            .unwrap();
        let said = text(output.stderr);
        assert!(output.status.success() && !said.contains("padded"), "{said}");
    }
    for model in [model, run] {
        let mut encode = command(&["encode", "--backend", "cpu", "--max-length", "8"]);
        encode.arg("--model").arg(&model).arg("--input").arg(&sentences).arg("--output").arg(&states);
        if !model.join("model.safetensors").exists() {
            fs::copy(demo().join("run/model.safetensors"), model.join("model.safetensors")).unwrap();
        }
        assert!(encode.output().unwrap().status.success());
        let bytes = fs::read(&states).unwrap();
        let ids = SafeTensors::deserialize(&bytes).unwrap().tensor("input_ids").unwrap().data().to_vec();
        assert_eq!(i32::from_le_bytes(*ids.last_chunk().unwrap()), 5);
    }
}

#[test]
fn sentences_that_change_while_they_are_encoded_are_refused() {
    use std::io::{BufRead, BufReader};
    let folder = empty_folder("runs_changing");
    let (input, output) = (folder.join("sentences.txt"), folder.join("states.safetensors"));
    fs::write(&input, "one sentence\n".repeat(300)).unwrap();
    let mut encode = command(&["encode", "--backend", "cpu", "--max-length", "8", "--no-cache", "--model"]);
    encode.arg(demo().join("run")).arg("--input").arg(&input).arg("--output").arg(&output);
    let mut child = encode.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    // The first pass is over, and the program is yet to be compiled.
    assert!(said.by_ref().any(|line| line.unwrap().starts_with("Number of replicas")));
    fs::write(&input, "two sentences\n".repeat(300)).unwrap();
    let last = said.last().unwrap().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    assert!(last.ends_with("sentences.txt: it was changed while it was read; nothing was written"), "{last}");
    assert!(!output.exists());
}
