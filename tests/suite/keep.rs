//! Which epoch a run keeps, what it is evaluated on, and what it starts from.

use std::fs;
use std::path::{Path, PathBuf};

use bert_xla::run::layout;
use serde_json::Value as Json;

use crate::common::cli::{asset, command, fails, json_lines, train, with_run, works};
use crate::common::empty_folder;
use crate::common::runs::{Training, check_whole, outcome, read_json, run, steps, trains};

/// Steps that are too large: an early epoch is the best.
const WORSENS: [&str; 6] = ["--epochs", "4", "--learning-rate", "0.05", "--checkpoint-every", "10"];

fn history(root: &Path) -> Vec<Json> {
    json_lines(&fs::read_to_string(root.join(layout::HISTORY)).unwrap())
}

fn metric(record: &Json, name: &str) -> f64 {
    record[name].as_f64().unwrap()
}

/// The epoch with the best of a metric, from 1, the earliest of equal ones.
fn best(history: &[Json], name: &str) -> usize {
    let sign = if name == "val_loss" { 1.0 } else { -1.0 };
    let value = |at: &usize| sign * metric(&history[*at], name);
    (0..history.len()).min_by(|a, b| value(a).total_cmp(&value(b))).unwrap() + 1
}

fn evaluate(root: &Path, data: &Path) -> Json {
    let output = with_run("evaluate", root, data, &["--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_best_epochs_weights_are_the_runs() {
    for (name, column) in [("val_loss", "val_loss"), ("val_accuracy", "val_accuracy"), ("f1", "val_f1")] {
        let root = empty_folder(&format!("keep_best_{name}")).join("run");
        let flags = ["--keep", "best", "--metric", name, "--keep-last", "1"];
        let stderr = trains(&mut train(&root, &[&WORSENS[..], &flags].concat()));
        let history = history(&root);
        let best = best(&history, column);
        assert_eq!(history.len(), 4);
        assert!(best < 4, "{history:?}");
        for record in &history {
            assert_eq!(record["kept"], record["epoch"] == best, "{record}");
        }
        assert!(stderr.contains(&format!("Best (by {name}) epoch: {best} (val_loss ")), "{stderr}");
        assert!(stderr.contains("Last epoch: 4 (val_loss "), "{stderr}");
        let kept = root.join(format!("checkpoints/step-{}", 23 * best));
        for file in [layout::WEIGHTS, layout::DEV_PREDICTIONS] {
            assert_eq!(fs::read(root.join(file)).unwrap(), fs::read(kept.join(file)).unwrap(), "{file}");
        }
        let kept_steps = check_whole(&root);
        assert!(kept_steps.contains(&(23 * best as u64)) && kept_steps.contains(&92), "{kept_steps:?}");
        // Readers are given the same model, also where only the copies are there.
        let evaluated = evaluate(&root, &asset("sample.csv"));
        fs::remove_dir_all(root.join(layout::CHECKPOINTS)).unwrap();
        assert_eq!(evaluate(&root, &asset("sample.csv")), evaluated);
    }
}

#[test]
fn training_stops_after_epochs_without_a_better_one() {
    let root = empty_folder("keep_early").join("run");
    let flags = |patience| ["--epochs", "9", "--learning-rate", "0.05", "--early-stopping", patience];
    let stderr = trains(&mut train(&root, &flags("2")));
    assert!(stderr.contains("Stopped early: 2 epochs have brought no better val_loss; Last"), "{stderr}");
    let first = history(&root);
    assert_eq!(first.len(), best(&first, "val_loss") + 2, "{first:?}");
    // Nothing was said of keeping the best.
    assert!(first.iter().all(|record| record.get("kept").is_none()));
    let stderr = trains(&mut train(&root, &flags("2")));
    let early = format!("which ended early, after epoch {}; a larger --early-stopping goes on", first.len());
    assert!(stderr.contains("Nothing to do: ") && stderr.contains(&early), "{stderr}");
    let stderr = trains(&mut train(&root, &flags("3")));
    assert!(stderr.contains("early_stopping was 2, now 3"), "{stderr}");
    let second = history(&root);
    assert_eq!(second.len(), (best(&second, "val_loss") + 3).min(9));
    assert_eq!(second[..first.len()], first[..]);
}

/// Everything that the recipe has not, at once.
const ALL: [&str; 27] = [
    "--epochs",
    "3",
    "--batch-size",
    "8",
    "--accumulate",
    "2",
    "--warmup",
    "0.2",
    "--schedule",
    "cosine",
    "--weight-decay",
    "0.01",
    "--clip-norm",
    "1",
    "--label-smoothing",
    "0.1",
    "--class-weights",
    "balanced",
    "--freeze",
    "1",
    "--keep",
    "best",
    "--metric",
    "f1",
    "--stratify",
    "--checkpoint-every",
    "4",
];

#[test]
fn killed_with_every_option_on_it_ends_as_one_that_never_was() {
    let folder = empty_folder("keep_killed");
    let (root, reference) = (folder.join("run"), folder.join("reference"));
    for head in ["bilstm", "cls"] {
        let flags = [&ALL[..], &["--head", head, "--mask", "--overwrite"]].concat();
        trains(&mut train(&reference, &flags));
        for step in [4, 32] {
            Training::start(train(&root, &flags), &root, step).kill_unless_done();
        }
        trains(&mut train(&root, &flags));
        assert_eq!(outcome(&root), outcome(&reference), "{head}");
        check_whole(&root);
        fs::remove_dir_all(&root).unwrap();
    }
}

#[test]
fn a_schedule_with_an_end_knows_how_many_epochs_there_are() {
    let root = empty_folder("keep_schedule").join("run");
    let flags = |epochs| ["--epochs", epochs, "--schedule", "linear"];
    trains(&mut train(&root, &flags("1")));
    let message = fails(&mut train(&root, &flags("2")), 2);
    assert!(message.contains("epochs was 1, now 2"), "{message}");
    // After the last step of 23, the rate would be 0; that step took 1/23 of it.
    let rate = metric(&history(&root)[0], "learning_rate");
    assert!((rate / (1e-5 / 23.0) - 1.0).abs() < 1e-6, "{rate}");
    // One that stays may go on for as long as one likes; a schedule is another run.
    let root = empty_folder("keep_constant").join("run");
    trains(&mut train(&root, &["--epochs", "1"]));
    let message = fails(&mut train(&root, &flags("1")), 2);
    assert!(message.contains("schedule was not set, now linear"), "{message}");
    trains(&mut train(&root, &["--epochs", "2"]));
}

/// The sample in parts: the first rows, those after them, and the rest.
fn parts(folder: &Path) -> [PathBuf; 3] {
    let sample = fs::read_to_string(asset("sample.csv")).unwrap();
    let (header, rows) = sample.split_once('\n').unwrap();
    let rows = rows.lines().collect::<Vec<_>>();
    [(0, 300), (300, 360), (360, rows.len())].map(|(from, to)| {
        let path = folder.join(format!("rows-{from}.csv"));
        fs::write(&path, format!("{header}\n{}\n", rows[from..to].join("\n"))).unwrap();
        path
    })
}

#[test]
fn dev_and_test_tables_are_evaluated() {
    let folder = empty_folder("keep_tables");
    let root = folder.join("run");
    let [own, dev, test] = parts(&folder);
    let mut flags = vec!["--train", own.to_str().unwrap(), "--dev", dev.to_str().unwrap()];
    flags.extend(["--test", test.to_str().unwrap(), "--keep", "best"]);
    flags.extend(&WORSENS);
    let train = || {
        let mut command = command(&["train", "--backend", "cpu", "--random-weights", "--max-length", "24"]);
        command.arg("--model").arg(asset("tiny")).arg("--output").arg(&root).args(&flags);
        command
    };
    let stderr = trains(&mut train());
    assert!(
        stderr.contains("298 texts (2 duplicates dropped, 0 bad rows skipped): 298 to train on, 0 held out"),
        "{stderr}"
    );
    let history = history(&root);
    let kept = &history[best(&history, "val_loss") - 1];
    assert!(kept["epoch"] != 4, "{history:?}");
    // What was measured while training is what the run's model gives on each table.
    let on_dev = evaluate(&root, &dev);
    assert!((metric(&on_dev, "loss") - metric(kept, "val_loss")).abs() < 1e-6);
    assert!((on_dev["macro_average"]["f1"].as_f64().unwrap() - metric(kept, "val_f1")).abs() < 1e-12);
    let told = read_json(&root.join(layout::TEST));
    let on_test = evaluate(&root, &test);
    assert!((metric(&on_test, "loss") - metric(&told, "loss")).abs() < 1e-6, "{on_test} and {told}");
    assert_eq!(on_test["confusion"], told["confusion"]);
    assert!(stderr.contains("Test: loss "), "{stderr}");
    // Rows are numbered as in their own file.
    let predictions = fs::read_to_string(root.join(layout::DEV_PREDICTIONS)).unwrap();
    let rows =
        predictions.lines().skip(1).map(|line| line.split(',').next().unwrap().parse::<usize>().unwrap());
    assert_eq!(rows.collect::<Vec<_>>(), (0..60).collect::<Vec<_>>());
    // What is missing at the end is made up for, and nothing else.
    let before = steps(&root);
    fs::remove_file(root.join(layout::TEST)).unwrap();
    trains(&mut train());
    assert_eq!((read_json(&root.join(layout::TEST)), steps(&root)), (told, before));
    // Another table is another run.
    flags.retain(|flag| *flag != "--test" && *flag != test.to_str().unwrap());
    let message = {
        let mut command = command(&["train", "--backend", "cpu", "--random-weights", "--max-length", "24"]);
        command.arg("--model").arg(asset("tiny")).arg("--output").arg(&root).args(&flags);
        fails(&mut command, 2)
    };
    assert!(message.contains("data was sha256:"), "{message}");
}

#[test]
fn a_run_is_trained_on_from_its_weights_with_its_settings() {
    let folder = empty_folder("keep_model");
    let first = folder.join("first");
    trains(&mut train(&first, &["--epochs", "2", "--learning-rate", "1e-3", "--head", "cls", "--mask"]));
    let on = |name: &str, arguments: &[&str]| {
        let mut command =
            command(&["train", "--backend", "cpu", "--epochs", "1", "--learning-rate", "1e-12"]);
        command.arg("--train").arg(asset("sample.csv")).arg("--model").arg(&first);
        let root = folder.join(name);
        command.arg("--output").arg(&root).args(arguments);
        let (code, stderr) = run(&mut command);
        assert_eq!(code, Some(0), "{stderr}");
        (history(&root).remove(0), stderr)
    };
    let before = history(&first).remove(1);
    // At such a rate, nothing changes: it is the same model, head, length and mask included.
    let (record, stderr) = on("same", &[]);
    assert!(stderr.contains("encoder and head taken over\n"), "{stderr}");
    assert!((metric(&record, "val_loss") - metric(&before, "val_loss")).abs() < 1e-6);
    // Dropout is no part of what a head has learnt.
    let (record, stderr) = on("dropout", &["--dropout", "0.4"]);
    assert!(stderr.contains("encoder and head taken over\n"), "{stderr}");
    assert!((metric(&record, "val_loss") - metric(&before, "val_loss")).abs() < 1e-6);
    // A head of another kind starts anew, and so does one whose classes stand for other labels.
    let (record, stderr) = on("dense", &["--head", "dense"]);
    assert!(
        stderr
            .contains("of the checkpoint's encoder taken over, 6 starting anew (dense_1, dense_2, dense_3)"),
        "{stderr}"
    );
    assert!(stderr.contains("2 of the checkpoint left out (classifier)"), "{stderr}");
    assert!((metric(&record, "val_loss") - metric(&before, "val_loss")).abs() > 1e-3);
    let (_, stderr) = on("labels", &["--labels", "-1=3,0=2,1=1"]);
    assert!(stderr.contains("2 starting anew (classifier)"), "{stderr}");
}

#[test]
fn the_head_of_a_run_keeps_its_sizes() {
    let folder = empty_folder("keep_sizes");
    let sizes = ["--head", "bilstm", "--lstm-units", "8", "--hidden", "16", "--activation", "softmax"];
    for (name, head) in [
        ("bilstm", &[&sizes[..], &["--num-classes", "7", "--dropout", "0.1"]].concat()[..]),
        ("mean", &["--head", "mean", "--dropout", "0.4"]),
    ] {
        let [first, second] = ["first", "second"].map(|root| folder.join(name).join(root));
        trains(&mut train(&first, &[&["--epochs", "1", "--learning-rate", "1e-3"], head].concat()));
        let mut command =
            command(&["train", "--backend", "cpu", "--epochs", "1", "--learning-rate", "1e-12", "--train"]);
        command.arg(asset("sample.csv")).arg("--model").arg(&first).arg("--output").arg(&second);
        let stderr = trains(&mut command);
        assert!(stderr.contains("encoder and head taken over\n"), "{name}: {stderr}");
        let [before, now] = [&first, &second].map(|root| metric(&history(root)[0], "val_loss"));
        assert!((before - now).abs() < 1e-6, "{name}: {before} and {now}");
        let head = |root: &Path| read_json(&root.join(layout::CONFIG))["bert_xla"]["head"].clone();
        assert_eq!(head(&first), head(&second));
    }
}

/// By its `id2label`: a classifier for other labels starts anew.
#[test]
fn a_classifier_of_transformers_is_trained_on() {
    let folder = empty_folder("keep_hub");
    let [first, exported, second, third] =
        ["first", "exported", "second", "third"].map(|name| folder.join(name));
    let head = ["--head", "cls", "--mask", "--epochs", "1"];
    trains(&mut train(&first, &[&head[..], &["--learning-rate", "1e-3"]].concat()));
    let arguments =
        [Path::new("export"), Path::new("--format"), Path::new("transformers"), Path::new("--run"), &first];
    works(&[&arguments[..], &[Path::new("--output"), &exported]].concat());
    let on = |root: &Path, more: &[&str]| {
        let mut command =
            command(&["train", "--backend", "cpu", "--max-length", "24", "--learning-rate", "1e-12"]);
        command
            .arg("--train")
            .arg(asset("sample.csv"))
            .arg("--model")
            .arg(&exported)
            .arg("--output")
            .arg(root);
        trains(command.args(head).args(more))
    };
    let stderr = on(&second, &[]);
    assert!(stderr.contains("encoder and head taken over\n"), "{stderr}");
    let [before, now] = [&first, &second].map(|root| metric(&history(root)[0], "val_loss"));
    assert!((before - now).abs() < 1e-6, "{before} and {now}");
    let stderr = on(&third, &["--labels", "-1=3,0=2,1=1"]);
    assert!(stderr.contains("2 starting anew (classifier)"), "{stderr}");
    // It may have more classes than there are labels, and be for other problems.
    let config = exported.join(layout::CONFIG);
    let mut json = read_json(&config);
    json["id2label"]["0"] = "other".into();
    json["problem_type"] = "regression".into();
    fs::write(&config, json.to_string()).unwrap();
    let fourth = folder.join("fourth");
    let stderr = on(&fourth, &["--labels", "-1=1,0=2", "--skip-bad-rows"]);
    assert!(stderr.contains("encoder and head taken over\n"), "{stderr}");
    let json = read_json(&fourth.join(layout::CONFIG));
    assert_eq!((json["id2label"].as_object().unwrap().len(), json.get("problem_type")), (4, None));
}
