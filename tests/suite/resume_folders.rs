//! What a run's folder holds besides, and what becomes of it when it goes on or is replaced.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bert_xla::run::layout;
use bert_xla::storage::MANIFEST;

use crate::common::cli::{asset, fails, train, with_run};
use crate::common::empty_folder;
use crate::common::runs::{
    FLAGS, Training, commit, copy_of_uninterrupted, newest_checkpoint, outcome, read_json, run, steps,
    trains, uninterrupted, went_on_after,
};

/// In a bucket, checkpoints of one step have names in no order.
#[test]
fn of_two_checkpoints_of_a_step_that_of_the_whole_epoch_counts() {
    let root = copy_of_uninterrupted("resume_tie");
    let checkpoints = root.join(layout::CHECKPOINTS);
    let later = checkpoints.join("step-46-99999");
    let copied = Command::new("cp").arg("-a").arg(checkpoints.join("step-46")).arg(&later).status().unwrap();
    assert!(copied.success());
    let mut progress = read_json(&later.join(layout::PROGRESS));
    progress["epoch"] = 1.into();
    progress["within"] = serde_json::json!({"steps": 23, "examples": 360, "loss": 1.0, "accuracy": 0.5, "seconds": 1.0,
        "step_seconds": 1.0});
    commit(&later, layout::PROGRESS, progress.to_string().as_bytes());
    let history = fs::read_to_string(later.join(layout::HISTORY)).unwrap();
    commit(&later, layout::HISTORY, format!("{}\n", history.lines().next().unwrap()).as_bytes());
    let stderr = trains(&mut train(&root, &FLAGS));
    assert!(stderr.contains("Nothing to do"), "{stderr}");
    assert_eq!(newest_checkpoint(&root), "checkpoints/step-46");
    assert_eq!(outcome(&root), *uninterrupted().1);
}

/// Another program's folder may have the name of a checkpoint, and files of the same names.
#[test]
fn folders_of_others_stay() {
    let root = empty_folder("resume_others").join("run");
    let theirs = root.join("checkpoints/step-1000");
    fs::create_dir_all(&theirs).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(asset("tiny").join(name), theirs.join(name)).unwrap();
    }
    fs::write(theirs.join(layout::WEIGHTS), "theirs").unwrap();
    trains(&mut train(&root, &["--epochs", "1"]));
    assert_eq!(fs::read(theirs.join(layout::WEIGHTS)).unwrap(), b"theirs");
    assert_eq!(fs::read_dir(theirs).unwrap().count(), 3);
}

/// The steps of the whole checkpoints of other runs than `run`, sorted.
fn steps_of_others(root: &Path, run: &str) -> Vec<u64> {
    let is_other = |name: &Path| {
        let progress = fs::read(root.join(layout::CHECKPOINTS).join(name).join(layout::PROGRESS));
        progress.is_ok_and(|progress| !String::from_utf8(progress).unwrap().contains(run))
    };
    let Ok(entries) = fs::read_dir(root.join(layout::CHECKPOINTS)) else { return vec![] };
    let names = entries.filter_map(|entry| Some(PathBuf::from(entry.ok()?.file_name())));
    let whole = names.filter(|name| root.join(layout::CHECKPOINTS).join(name).join(MANIFEST).is_file());
    let mut steps = whole
        .filter(|name| is_other(name))
        .filter_map(|name| layout::step(name.to_str()?))
        .collect::<Vec<_>>();
    steps.sort_unstable();
    steps
}

/// Nothing is given up for a run that has nothing yet: it is killed, or diverges.
#[test]
fn a_run_that_is_replaced_stays_until_there_is_another() {
    let root = copy_of_uninterrupted("resume_replaced");
    let diverges = ["--epochs", "2", "--learning-rate", "1e30", "--batch-size", "360", "--overwrite"];
    fails(&mut train(&root, &diverges), 1);
    let other = [&FLAGS[..], &["--seed", "7", "--overwrite"]].concat();
    let mut child = train(&root, &other).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.starts_with("Weights: ")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    if steps(&root).first() == Some(&23) {
        let more = ["--epochs", "3", "--checkpoint-every", "5"];
        let stderr = trains(&mut train(&root, &more));
        assert_eq!(went_on_after(&stderr), Some(46), "{stderr}");
    }
    // From its first checkpoint on, the new one is the run.
    let run = read_json(&root.join(layout::RUN))["run"].as_str().unwrap().to_owned();
    Training::until(train(&root, &other), 1, || steps_of_others(&root, &run)).kill();
    let newest = steps_of_others(&root, &run).pop();
    let stderr = trains(&mut train(&root, &[&FLAGS[..], &["--seed", "7"]].concat()));
    assert_eq!(went_on_after(&stderr), newest, "{stderr}");
}

/// Readers have the copies then, and training has what is newer.
#[test]
fn a_run_goes_on_without_the_checkpoint_of_its_last_epoch() {
    let root = empty_folder("resume_removed").join("run");
    let more = ["--epochs", "3", "--checkpoint-every", "5"];
    Training::start(train(&root, &more), &root, 30).kill();
    let newest = *steps(&root).last().unwrap();
    assert!(newest < 46);
    fs::remove_dir_all(root.join("checkpoints/step-23")).unwrap();
    let stderr = trains(&mut train(&root, &more));
    assert_eq!(went_on_after(&stderr), Some(newest), "{stderr}");
}

#[test]
fn whoever_writes_into_a_copy_leaves_the_checkpoint_as_it_is() {
    let root = copy_of_uninterrupted("resume_copies");
    for name in layout::FILES.into_iter().filter(|name| *name != layout::CARD) {
        fs::File::options().write(true).open(root.join(name)).unwrap().set_len(7).unwrap();
    }
    let (code, stderr) = run(&mut with_run("evaluate", &root, &asset("sample.csv"), &[]));
    assert_eq!(code, Some(0), "{stderr}");
    let stderr = trains(&mut train(&root, &FLAGS));
    assert!(stderr.contains("Nothing to do"), "{stderr}");
    assert_eq!(outcome(&root), *uninterrupted().1);
}

/// Whatever clocks say: the run before was started in a time to come.
#[test]
fn a_run_that_has_replaced_another_goes_on_before_its_first_epoch_is_whole() {
    let root = copy_of_uninterrupted("resume_clocks");
    let run = format!("4102444800-{}", "0".repeat(16));
    for step in steps(&root) {
        let folder = root.join(layout::CHECKPOINTS).join(layout::checkpoint(step));
        let mut progress = read_json(&folder.join(layout::PROGRESS));
        progress["run"] = run.clone().into();
        commit(&folder, layout::PROGRESS, progress.to_string().as_bytes());
    }
    let mut pointer = read_json(&root.join(layout::RUN));
    pointer["run"] = run.clone().into();
    fs::write(root.join(layout::RUN), pointer.to_string()).unwrap();
    let other = [&FLAGS[..], &["--seed", "7"]].concat();
    let overwrite = [&other[..], &["--overwrite"]].concat();
    Training::until(train(&root, &overwrite), 5, || steps_of_others(&root, &run)).kill();
    let newest = steps_of_others(&root, &run).pop();
    let stderr = trains(&mut train(&root, &other));
    assert_eq!(went_on_after(&stderr), newest, "{stderr}");
}
