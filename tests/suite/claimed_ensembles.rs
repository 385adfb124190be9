//! Whose an ensemble's folder is: one process trains there at a time, what is refused changes nothing, what was cut short goes
//! on, and what goes is only what is known to be ours.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use bert_xla::run::layout;
use serde_json::{Value as Json, json};

use crate::common::cli::{asset, command, fails, train, with_run};
use crate::common::empty_folder;
use crate::common::runs::{Training, read_json, trains, went_on_after};

fn member(root: &Path, name: &str) -> PathBuf {
    root.join(layout::MEMBERS).join(name)
}

fn list(root: &Path) -> Json {
    read_json(&root.join(layout::ENSEMBLE))
}

/// An ensemble of two seeds, trained for an epoch; for copying alone.
fn finished() -> &'static Path {
    static ROOT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    ROOT.get_or_init(|| {
        let root = empty_folder("claimed_finished").join("run");
        trains(&mut seeds(&root, &[]));
        root
    })
}

fn seeds(root: &Path, more: &[&str]) -> Command {
    train(root, &[&["--seeds", "2", "--epochs", "1"], more].concat())
}

fn copy_of_finished(name: &str) -> PathBuf {
    let root = empty_folder(name).join("run");
    assert!(Command::new("cp").arg("-a").arg(finished()).arg(&root).status().unwrap().success());
    root
}

/// All files below a folder, with their bytes.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => _ = found.insert(path.clone(), fs::read(&path).unwrap()),
            }
        }
    }
    found
}

/// Trains until the first member has a checkpoint of a training that replaces it, and no longer.
fn cut_anew(command: Command, root: &Path) {
    let first = member(root, "seed-0").join(layout::RUN);
    let attempt = || Some(format!("-{:016x}", list(root).get("attempt")?.as_u64()?));
    let is_anew =
        || attempt().is_some_and(|attempt| read_json(&first)["run"].as_str().unwrap().ends_with(&attempt));
    Training::until(command, 1, || vec![is_anew().into()]).kill();
}

fn learning_rate(root: &Path) -> Json {
    let newest = read_json(&root.join(layout::RUN))["newest"].clone();
    let progress = read_json(&root.join(newest.as_str().unwrap()).join(layout::PROGRESS));
    progress["terms"]["fixed"]["learning_rate"].clone()
}

#[test]
fn it_is_resumed_in_whichever_member() {
    let resume = |root: &Path| {
        let mut resume = command(&["train", "--resume", "--output"]);
        resume.arg(root);
        resume
    };
    let root = empty_folder("claimed_resume").join("run");
    let message = fails(&mut resume(&root), 2);
    assert!(message.contains("there is no whole checkpoint to go on from"), "{message}");
    let cut = seeds(&root, &["--checkpoint-every", "5"]);
    Training::start(cut, &member(&root, "seed-0"), 5).kill();
    let stderr = trains(&mut resume(&root));
    assert!(went_on_after(&stderr).is_some(), "{stderr}");
    assert_eq!(list(&root)["members"], json!(["members/seed-0", "members/seed-1"]));
    // One that replaces another goes on with that, however it is called.
    let anew = ["--checkpoint-every", "5", "--learning-rate", "1e-3", "--overwrite"];
    cut_anew(seeds(&root, &anew), &root);
    assert_eq!(list(&root)["members"], json!(["members/seed-0", "members/seed-1"]));
    trains(&mut resume(&root));
    for name in ["seed-0", "seed-1"] {
        assert_eq!(learning_rate(&member(&root, name)), json!(1e-3));
    }
    let list = list(&root);
    assert!(["training", "attempt", "replaced"].iter().all(|key| list.get(key).is_none()), "{list}");
    // One that was put together by hand has nothing to go on with.
    fs::write(root.join(layout::ENSEMBLE), r#"{"members": ["members/seed-0"]}"#).unwrap();
    let message = fails(&mut resume(&root), 2);
    assert!(message.contains("there is no whole checkpoint to go on from"), "{message}");
}

#[test]
fn one_process_trains_an_ensemble_at_a_time() {
    let root = empty_folder("claimed_lock").join("run");
    let first = Training::start(
        train(&root, &["--seeds", "2", "--epochs", "400", "--checkpoint-every", "5"]),
        &member(&root, "seed-0"),
        5,
    );
    let before = fs::read(root.join(layout::ENSEMBLE)).unwrap();
    for others in
        [&["--seeds", "3"][..], &["--folds", "2", "--overwrite"], &["--seeds", "2", "--overwrite"], &[]]
    {
        let message = fails(&mut train(&root, &[&["--epochs", "1"], others].concat()), 2);
        assert!(message.contains("another process is writing a run there"), "{others:?}: {message}");
        assert_eq!(fs::read(root.join(layout::ENSEMBLE)).unwrap(), before);
    }
    first.kill();
}

#[test]
fn what_is_refused_changes_nothing() {
    // One that was cut short, and a finished one.
    let cut = empty_folder("claimed_cut").join("run");
    let done = copy_of_finished("claimed_done");
    let start = seeds(&cut, &["--checkpoint-every", "5"]);
    Training::start(start, &member(&cut, "seed-0"), 5).kill();
    for root in [&cut, &done] {
        let before = files(root);
        for count in ["2", "3"] {
            let flags = ["--seeds", count, "--epochs", "1", "--learning-rate", "1e-3"];
            let message = fails(&mut train(root, &flags), 2);
            assert!(message.contains("was started otherwise: learning_rate"), "{message}");
            assert_eq!(files(root), before);
        }
    }
    trains(&mut seeds(&cut, &["--checkpoint-every", "5"]));
    // What is in a member's way is found before any is trained.
    let root = empty_folder("claimed_way").join("run");
    let theirs = member(&root, "seed-1");
    fs::create_dir_all(&theirs).unwrap();
    fs::write(theirs.join(layout::CONFIG), "theirs").unwrap();
    let before = files(&root);
    let message = fails(&mut seeds(&root, &[]), 2);
    assert!(message.contains("seed-1 already holds config.json, which a run would replace"), "{message}");
    assert_eq!(files(&root), before);
    // As is what somebody has put where its results go.
    let root = empty_folder("claimed_summary").join("run");
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join(layout::SUMMARY), "{}").unwrap();
    let message = fails(&mut seeds(&root, &[]), 2);
    assert!(
        message.contains("already holds summary.json, which a run would replace; choose another"),
        "{message}"
    );
    assert_eq!(files(&root).len(), 1);
    trains(&mut seeds(&root, &["--overwrite"]));
}

#[test]
fn the_command_before_finds_its_members_as_they_were() {
    let root = copy_of_finished("claimed_back");
    let weights = |name: &str| fs::read(member(&root, name).join(layout::WEIGHTS)).unwrap();
    let before = ["seed-0", "seed-1"].map(weights);
    let summary = fs::read(root.join(layout::SUMMARY)).unwrap();
    let folds = ["--folds", "2", "--epochs", "1", "--checkpoint-every", "5", "--overwrite"];
    Training::start(train(&root, &folds), &member(&root, "fold-1"), 5).kill();
    // What the members that answer have come to stays until then.
    assert_eq!(fs::read(root.join(layout::SUMMARY)).unwrap(), summary);
    let cut = files(&root);
    let stderr = trains(&mut seeds(&root, &[]));
    assert_eq!(stderr.matches("Nothing to do").count(), 2, "{stderr}");
    assert_eq!(files(&root), cut);
    // From when they are trained on, the others are replaced.
    trains(&mut train(&root, &["--seeds", "2", "--epochs", "2"]));
    assert!(["seed-0", "seed-1"].map(weights) != before);
    assert!(!member(&root, "fold-1").exists());
    assert!(list(&root).get("replaced").is_none());
}

#[test]
fn only_what_is_ours_is_removed() {
    let root = copy_of_finished("claimed_ours");
    let second = member(&root, "seed-1");
    fs::create_dir(second.join("analysis")).unwrap();
    for name in ["notes.txt", "analysis/plot.R", layout::CARD] {
        fs::write(second.join(name), "mine").unwrap();
    }
    // Which training would remove, some day.
    let table = second.join("train.csv");
    fs::copy(asset("sample.csv"), &table).unwrap();
    let mut from_there = command(&["train", "--backend", "cpu", "--random-weights", "--max-length", "24"]);
    from_there.arg("--train").arg(&table).arg("--model").arg(asset("tiny")).arg("--output").arg(&root);
    let message = fails(from_there.args(["--seeds", "1", "--epochs", "1", "--overwrite"]), 2);
    assert!(message.contains("it is among the runs in --output, which training writes to"), "{message}");
    trains(&mut train(&root, &["--seeds", "1", "--epochs", "1", "--overwrite"]));
    let left = files(&second).into_keys().collect::<Vec<_>>();
    let expected = [layout::CARD, "analysis/plot.R", "notes.txt", "train.csv"];
    assert_eq!(left, expected.map(|name| second.join(name)));
    assert_eq!(list(&root)["members"], json!(["members/seed-0"]));

    // Folders that were put together by hand, or lie elsewhere.
    let root = copy_of_finished("claimed_hand");
    let best = root.join("best-2024");
    fs::rename(member(&root, "seed-0"), &best).unwrap();
    let elsewhere = root.parent().unwrap().join("elsewhere");
    fs::rename(member(&root, "seed-1"), &elsewhere).unwrap();
    symlink(&elsewhere, member(&root, "seed-1")).unwrap();
    fs::write(root.join(layout::ENSEMBLE), r#"{"members": ["best-2024", "members/seed-1"]}"#).unwrap();
    let before = [files(&best), files(&elsewhere)];
    trains(&mut train(&root, &["--seeds", "1", "--epochs", "1", "--overwrite"]));
    assert_eq!([files(&best), files(&elsewhere)], before);
}

#[test]
fn what_was_replaced_goes_even_if_that_was_cut_short() {
    let root = copy_of_finished("claimed_replaced");
    let mut file = list(&root);
    file["members"] = json!(["members/seed-0"]);
    file["replaced"] = json!(["members/seed-1"]);
    fs::write(root.join(layout::ENSEMBLE), file.to_string()).unwrap();
    // Half of it was removed.
    fs::remove_file(member(&root, "seed-1").join(layout::WEIGHTS)).unwrap();
    let summary = format!("{:#}\n", json!({"members": [], "mean": {}, "standard_deviation": {}}));
    fs::write(root.join(layout::SUMMARY), summary).unwrap();
    let stderr = trains(&mut train(&root, &["--seeds", "1", "--epochs", "1"]));
    assert!(stderr.contains("Nothing to do"), "{stderr}");
    assert!(member(&root, "seed-0").is_dir() && !member(&root, "seed-1").exists());
    assert!(list(&root).get("replaced").is_none());
}

#[test]
fn a_start_that_came_to_nothing_blocks_nobody() {
    let bare = r#"{"run": "5-00ff", "files": []}"#;
    // A run that has no checkpoint yet.
    let root = empty_folder("claimed_bare_run").join("run");
    fs::create_dir_all(root.join(layout::CHECKPOINTS)).unwrap();
    fs::write(root.join(layout::RUN), bare).unwrap();
    fs::write(root.join(layout::STEPS), "").unwrap();
    trains(&mut seeds(&root, &[]));
    assert!(!root.join(layout::RUN).exists() && !root.join(layout::STEPS).exists());
    // And an ensemble without one.
    let root = empty_folder("claimed_bare_ensemble").join("run");
    fs::create_dir_all(member(&root, "seed-0")).unwrap();
    fs::write(member(&root, "seed-0").join(layout::RUN), bare).unwrap();
    let file =
        json!({"members": [], "training": ["members/seed-0", "members/seed-1"], "arguments": ["--seeds=2"]});
    fs::write(root.join(layout::ENSEMBLE), file.to_string()).unwrap();
    trains(&mut train(&root, &["--epochs", "1"]));
    assert!(!root.join(layout::ENSEMBLE).exists() && !root.join(layout::MEMBERS).exists());
    assert!(with_run("evaluate", &root, &asset("sample.csv"), &[]).output().unwrap().status.success());
}

/// Of the same names as those that training writes.
#[test]
fn results_of_somebodys_own_stay() {
    let root = empty_folder("claimed_own").join("run");
    trains(&mut train(&root, &["--epochs", "1"]));
    let own = root.join(layout::TEST);
    fs::write(&own, r#"{"mine": 1}"#).unwrap();
    trains(&mut train(&root, &["--epochs", "2"]));
    assert_eq!(fs::read(&own).unwrap(), br#"{"mine": 1}"#);
    let root = empty_folder("claimed_tested").join("run");
    let own = root.join(layout::TEST);
    let tested = |epochs: &str| {
        let mut command = train(&root, &["--epochs", epochs, "--test"]);
        command.arg(asset("sample.csv"));
        command
    };
    trains(&mut tested("1"));
    fs::write(&own, "mine").unwrap();
    let message = fails(&mut tested("2"), 2);
    assert!(message.contains("already holds test.json, which a run would replace"), "{message}");
    fs::remove_file(&own).unwrap();
    // What the card tells comes before the file by which it is known to be told.
    let card = root.join(layout::CARD);
    fs::remove_file(&card).unwrap();
    fs::create_dir(&card).unwrap();
    fails(&mut tested("1"), 1);
    assert!(!own.exists());
    fs::remove_dir(&card).unwrap();
    trains(&mut tested("1"));
    assert!(own.is_file());
}
