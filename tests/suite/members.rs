//! Several seeds and folds in one folder.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bert_xla::data::k_fold;
use bert_xla::run::layout;
use serde_json::Value as Json;

use crate::common::cli::{asset, fails, json_lines, train, with_run};
use crate::common::empty_folder;
use crate::common::runs::{Training, check_whole, outcome, read_json, trains, went_on_after};

/// Three folds of 400 rows, 134 or 133 held out, so that there are 266 or 267 to train on: 9 steps an epoch. With all that the
/// recipe has not.
const FOLDS: [&str; 31] = [
    "--folds",
    "3",
    "--epochs",
    "2",
    "--learning-rate",
    "1e-3",
    "--checkpoint-every",
    "5",
    "--accumulate",
    "2",
    "--warmup",
    "0.2",
    "--schedule",
    "linear",
    "--weight-decay",
    "0.01",
    "--clip-norm",
    "1",
    "--label-smoothing",
    "0.1",
    "--class-weights",
    "balanced",
    "--freeze",
    "embeddings",
    "--keep",
    "best",
    "--metric",
    "f1",
    "--early-stopping",
    "2",
    "--mask",
];

fn member(root: &Path, name: &str) -> PathBuf {
    root.join(layout::MEMBERS).join(name)
}

fn rows(predictions: &Path) -> Vec<usize> {
    let text = fs::read_to_string(predictions).unwrap();
    text.lines().skip(1).map(|line| line.split(',').next().unwrap().parse().unwrap()).collect()
}

/// An ensemble of folds that was never cut short; for reading alone.
fn folds() -> &'static Path {
    static ROOT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    ROOT.get_or_init(|| {
        let root = empty_folder("members_folds").join("run");
        let stderr = trains(&mut train(&root, &FOLDS));
        assert!(stderr.contains("3 members are trained"), "{stderr}");
        assert!(stderr.contains("Member 3 of 3: fold-3"), "{stderr}");
        assert!(stderr.contains("Out of fold: loss "), "{stderr}");
        root
    })
}

#[test]
fn each_fold_holds_out_rows_of_its_own() {
    let root = folds();
    let split = k_fold(400, 3, 42).unwrap();
    for fold in 0..3 {
        let own = member(root, &format!("fold-{}", fold + 1));
        check_whole(&own);
        assert_eq!(rows(&own.join(layout::DEV_PREDICTIONS)), split.split(fold).test);
    }
    assert_eq!(rows(&root.join(layout::OUT_OF_FOLD)), (0..400).collect::<Vec<_>>());
    // A row's prediction there is that of the fold that has not seen it.
    let lines = |path: PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        text.lines().skip(1).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let of_members =
        (1..=3).flat_map(|fold| lines(member(root, &format!("fold-{fold}")).join(layout::DEV_PREDICTIONS)));
    assert_eq!(lines(root.join(layout::OUT_OF_FOLD)), of_members.collect());
}

/// The kept epoch's of each member.
fn kept(root: &Path, names: &[&str], metric: &str) -> Vec<f64> {
    let record = |name: &&str| {
        let text = fs::read_to_string(member(root, name).join(layout::HISTORY)).unwrap();
        let records = json_lines(&text);
        records.iter().find(|record| record["kept"] == true).unwrap()[metric].as_f64().unwrap()
    };
    names.iter().map(record).collect()
}

#[test]
fn the_summary_has_mean_and_standard_deviation() {
    let root = folds();
    let summary = read_json(&root.join(layout::SUMMARY));
    let names = ["fold-1", "fold-2", "fold-3"];
    for (metric, column) in [("val_loss", "val_loss"), ("val_accuracy", "val_accuracy"), ("f1", "val_f1")] {
        let values = kept(root, &names, column);
        let mean = values.iter().sum::<f64>() / 3.0;
        // As `statistics.stdev` has it.
        let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
        assert!((summary["mean"][metric].as_f64().unwrap() - mean).abs() < 1e-12);
        assert!((summary["standard_deviation"][metric].as_f64().unwrap() - deviation).abs() < 1e-12);
        for (i, value) in values.iter().enumerate() {
            assert_eq!(summary["members"][i][metric].as_f64(), Some(*value));
        }
    }
    assert_eq!(summary["members"][1]["name"], "fold-2");
    // The whole folder answers as one model.
    let output = with_run("evaluate", root, &asset("sample.csv"), &["--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let evaluated: Json = serde_json::from_slice(&output.stdout).unwrap();
    // Duplicates included, of which one of two is trained on.
    assert_eq!(evaluated["rows"], 402);
}

#[test]
fn killed_in_the_third_fold_it_ends_as_one_that_never_was() {
    let root = empty_folder("members_killed").join("run");
    let third = member(&root, "fold-3");
    for step in [5, 10] {
        Training::start(train(&root, &FOLDS), &third, step).kill();
    }
    // Of an ensemble that isn't at its end, nothing is replaced.
    let stderr = trains(train(&root, &FOLDS).arg("--overwrite"));
    assert!(went_on_after(&stderr).is_some_and(|step| step >= 10), "{stderr}");
    assert_eq!(stderr.matches("Nothing to do").count(), 2, "{stderr}");
    for fold in ["fold-1", "fold-2", "fold-3"] {
        assert_eq!(outcome(&member(&root, fold)), outcome(&member(folds(), fold)), "{fold}");
        check_whole(&member(&root, fold));
    }
    let read = |root: &Path, name: &str| fs::read(root.join(name)).unwrap();
    for name in [layout::OUT_OF_FOLD, layout::SUMMARY] {
        assert_eq!(read(&root, name), read(folds(), name), "{name}");
    }
    // What is missing at the end is made up for.
    for name in [layout::OUT_OF_FOLD, layout::SUMMARY] {
        fs::remove_file(root.join(name)).unwrap();
        trains(&mut train(&root, &FOLDS));
        assert_eq!(read(&root, name), read(folds(), name), "{name}");
    }
    // From its end on, it is replaced.
    let name = || read_json(&third.join(layout::RUN))["run"].clone();
    let before = name();
    trains(train(&root, &FOLDS).arg("--overwrite"));
    assert_ne!(name(), before);
    assert_eq!(outcome(&third), outcome(&member(folds(), "fold-3")));
    // With its own arguments, there is nothing left to do.
    let mut again = crate::common::cli::command(&["train", "--resume", "--output"]);
    let stderr = trains(again.arg(&root));
    assert_eq!(stderr.matches("Nothing to do").count(), 3, "{stderr}");
}

/// Files that compiled programs are kept in.
fn programs(cache: &Path) -> usize {
    fs::read_dir(cache.join("executables"))
        .map_or(0, |files| files.filter(|file| file.as_ref().unwrap().path().is_file()).count())
}

#[test]
fn all_members_are_trained_by_the_same_programs() {
    let folder = empty_folder("members_programs");
    let compiled = |name: &str, flags: &[&str]| {
        let cache = folder.join(format!("{name}-cache"));
        let mut command =
            train(&folder.join(name), &[&["--epochs", "1", "--class-weights", "balanced"], flags].concat());
        trains(command.env("BERT_XLA_CACHE", &cache));
        programs(&cache)
    };
    let one = compiled("one", &[]);
    assert!(one > 0);
    assert_eq!(compiled("many", &["--folds", "3", "--schedule", "constant", "--stratify"]), one);
}

#[test]
fn seeds_start_otherwise_and_are_tested_together() {
    let root = empty_folder("members_seeds").join("run");
    let test = asset("sample.csv");
    let flags =
        ["--seeds", "2", "--seed", "7", "--epochs", "1", "--learning-rate", "1e-3", "--json", "--test"];
    let mut command = train(&root, &flags);
    let output = command.arg(&test).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = json_lines(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(lines.len(), 3);
    assert_eq!([&lines[0]["member"], &lines[1]["member"]], ["seed-7", "seed-8"]);
    assert_ne!(lines[0]["loss"], lines[1]["loss"]);
    assert_eq!(lines[2]["summary"], read_json(&root.join(layout::SUMMARY)));
    assert_eq!(lines[2]["test"], read_json(&root.join(layout::TEST)));
    assert!(!root.join(layout::OUT_OF_FOLD).exists());
    let evaluated = with_run("evaluate", &root, &test, &["--json"]).output().unwrap().stdout;
    let evaluated: Json = serde_json::from_slice(&evaluated).unwrap();
    let (told, found) = (lines[2]["test"]["loss"].as_f64().unwrap(), evaluated["loss"].as_f64().unwrap());
    assert!((told - found).abs() < 1e-6, "{told} and {found}");
    // The same as trained alone.
    let alone = empty_folder("members_alone").join("run");
    trains(train(&alone, &["--seed", "8", "--epochs", "1", "--learning-rate", "1e-3", "--test"]).arg(&test));
    let weights = |root: &Path| fs::read(root.join(layout::WEIGHTS)).unwrap();
    assert!(weights(&alone) == weights(&member(&root, "seed-8")));
}

#[test]
fn a_folder_is_an_ensembles_or_a_runs() {
    let folder = empty_folder("members_claims");
    let root = folder.join("many");
    let message = fails(&mut train(&root, &["--seeds", "500", "--folds", "3"]), 2);
    assert!(
        message.contains("--seeds 500: expected at most 1000 members, seeds times folds, not 1500"),
        "{message}"
    );
    let flags = ["--epochs", "1"];
    let command = |root: &Path, more: &[&str]| -> Command { train(root, &[&flags[..], more].concat()) };
    // Somebody's README is no run, and stays.
    fs::create_dir(&root).unwrap();
    fs::write(root.join(layout::CARD), "mine").unwrap();
    trains(&mut command(&root, &["--seeds", "3"]));
    let message = fails(&mut command(&root, &["--seeds", "2"]), 2);
    assert!(
        message.contains(
            "already holds an ensemble of 3 other members; choose another --output, or pass --overwrite"
        ),
        "{message}"
    );
    for more in [&[][..], &["--overwrite"]] {
        let message = fails(&mut command(&root, more), 2);
        assert!(
            message
                .contains("already holds an ensemble, where a single run is to go; choose another --output"),
            "{message}"
        );
    }
    assert!(member(&root, "seed-2").is_dir());
    trains(&mut command(&root, &["--seeds", "2", "--overwrite"]));
    assert!(member(&root, "seed-1").is_dir() && !member(&root, "seed-2").exists());
    assert_eq!(
        read_json(&root.join(layout::ENSEMBLE))["members"],
        serde_json::json!(["members/seed-0", "members/seed-1"])
    );
    assert_eq!(fs::read(root.join(layout::CARD)).unwrap(), b"mine");
    let single = folder.join("single");
    trains(&mut command(&single, &[]));
    for more in [&["--seeds", "2"][..], &["--seeds", "2", "--overwrite"]] {
        let message = fails(&mut command(&single, more), 2);
        assert!(
            message.contains("already holds run.json of a single run, where an ensemble is to go"),
            "{message}"
        );
    }
}
