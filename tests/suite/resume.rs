//! Runs that go on: after a kill, with other replicas, with more epochs; and what is no run to go on with.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bert_xla::run::layout;
use safetensors::SafeTensors;
use serde_json::Value as Json;

use crate::common::cli::{asset, command, fails, train, with_run};
use crate::common::runs::{
    FLAGS, Training, check_whole, newest_checkpoint, outcome, read_json, run, steps, trains, uninterrupted,
    went_on_after,
};
use crate::common::{empty_folder, killer};

#[test]
fn killed_again_and_again_it_ends_as_one_that_never_was() {
    let Some(library) = killer("resume_killer") else { return };
    let root = empty_folder("resume_killed").join("run");
    // Before so many things that it does to files: before its first checkpoint, and in the middle of some; a checkpoint
    // takes about 20.
    for (start, at) in [6, 27, 31, 36, 44, 58].into_iter().enumerate() {
        let newest = steps(&root).last().copied();
        let mut command = train(&root, &FLAGS);
        // Of a run that is not finished, nothing is replaced.
        if start % 2 == 1 {
            command.arg("--overwrite");
        }
        let (code, stderr) = run(command.env("LD_PRELOAD", &library).env("KILL_AT", at.to_string()));
        assert_eq!((code, went_on_after(&stderr)), (None, newest), "{at}: {stderr}");
        assert!(!stderr.contains("Passed over"), "{stderr}");
    }
    // While it does steps.
    let newest = steps(&root).last().copied().unwrap();
    Training::start(train(&root, &FLAGS), &root, newest + 6).kill();
    let newest = steps(&root).last().copied();
    let stderr = trains(train(&root, &FLAGS).arg("--overwrite"));
    assert_eq!(went_on_after(&stderr), newest, "{stderr}");
    assert_eq!(outcome(&root), *uninterrupted().1);
    let kept = check_whole(&root);
    assert_eq!((kept.last(), kept.len()), (Some(&46), 3), "{kept:?}");
    // With nothing left to do, nothing goes.
    let before = times(&root);
    trains(&mut train(&root, &[&FLAGS[..], &["--keep-last", "1"]].concat()));
    assert_eq!(times(&root), before);
    // No batch twice, none left out.
    let ends = outcome(&root).history.iter().map(|record| record["step"].clone()).collect::<Vec<_>>();
    assert_eq!(ends, [Json::from(23), Json::from(46)]);
}

#[test]
fn killed_while_it_evaluates_it_ends_as_one_that_never_was() {
    // Epochs of 5 steps, and an evaluation of 45 batches.
    const FLAGS: [&str; 8] =
        ["--epochs", "2", "--batch-size", "8", "--dev-size", "0.9", "--checkpoint-every", "4"];
    let folder = empty_folder("resume_evaluation");
    let (root, reference) = (folder.join("run"), folder.join("reference"));
    trains(&mut train(&reference, &FLAGS));
    for step in [4, 8] {
        Training::start(train(&root, &FLAGS), &root, step).kill();
    }
    trains(&mut train(&root, &FLAGS));
    assert_eq!(outcome(&root), outcome(&reference));
    check_whole(&root);
}

/// What `model.safetensors` in the run's folder holds.
pub fn weights(root: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(root.join(layout::WEIGHTS)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    tensors.iter().map(|(name, view)| (name.to_owned(), values(view.data()))).collect()
}

#[test]
fn a_run_goes_on_with_more_epochs_and_other_replicas() {
    let folder = empty_folder("resume_replicas");
    let (root, reference) = (folder.join("run"), folder.join("reference"));
    let flags = |epochs, replicas| {
        ["--dropout", "0", "--encoder-dropout", "0", "--epochs", epochs, "--replicas", replicas]
    };
    trains(&mut train(&reference, &flags("3", "1")));
    trains(&mut train(&root, &flags("1", "1")));
    let second = trains(&mut train(&root, &flags("2", "2")));
    let third = trains(&mut train(&root, &flags("3", "4")));
    for (stderr, change) in [
        (
            &second,
            "Going on after step 23 (1 epochs and 0 steps); epochs was 1, now 2; replicas was 1, now 2\n",
        ),
        (
            &third,
            "Going on after step 46 (2 epochs and 0 steps); epochs was 2, now 3; replicas was 2, now 4\n",
        ),
    ] {
        assert!(stderr.contains(change), "{stderr}");
    }
    check_whole(&root);
    let (found, expected) = (weights(&root), weights(&reference));
    assert!(found.keys().eq(expected.keys()));
    for (name, values) in &found {
        let off = values.iter().zip(&expected[name]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off <= 1e-5, "{name} is off by {off}");
    }
    // Other sums, so that this can't be the same run by mistake.
    assert_ne!(found, expected);
}

#[test]
fn another_job_is_refused_with_all_that_differs() {
    let folder = empty_folder("resume_differs");
    let root = folder.join("run");
    trains(&mut train(&root, &["--epochs", "1"]));
    let before = outcome(&root);
    let changed = folder.join("changed.csv");
    let rows = fs::read_to_string(asset("sample.csv")).unwrap();
    fs::write(&changed, rows.replacen("where can I find", "where did you find", 1)).unwrap();
    let data = changed.to_str().unwrap();
    let other = |max_length: &str, data: &str, flags: &[&str]| {
        let mut command =
            command(&["train", "--backend", "cpu", "--random-weights", "--max-length", max_length]);
        command.arg("--train").arg(data).arg("--model").arg(asset("tiny")).arg("--output").arg(&root);
        command.args(["--epochs", "2"]).args(flags);
        command
    };
    let sample = asset("sample.csv");
    let sample = sample.to_str().unwrap();
    let rate: &[_] = &["--learning-rate", "0.001", "--seed", "7"];
    for (mut command, differences) in [
        (other("24", sample, rate), vec!["learning_rate was 0.00001, now 0.001", "seed was 0, now 7"]),
        (other("24", data, &[]), vec!["data was sha256:"]),
        (other("20", sample, &[]), vec!["data was sha256:", "model.max_length was 24, now 20"]),
        (other("24", sample, &["--batch-size", "8"]), vec!["batch_size was 16, now 8"]),
        (
            other("24", sample, &["--labels", "-1=1,0=3,1=2"]),
            vec!["data was sha256:", "labels was -1=1,0=2,1=3, now -1=1,0=3,1=2"],
        ),
        (
            other("24", sample, &["--dropout", "0.5", "--mask"]),
            vec![
                "model.head.dropout was 0.3, now 0.5",
                "model.mask was false, now true",
                "model.zero_padding was",
            ],
        ),
        (other("24", sample, &["--split-seed", "1"]), vec!["data was sha256:", "split_seed was 42, now 1"]),
    ] {
        let message = fails(&mut command, 2);
        let start = format!("error: the run in {} was started otherwise: ", root.display());
        let listed = message.strip_prefix(&start).unwrap_or_else(|| panic!("{message}"));
        let (listed, hint) = listed.rsplit_once("; ").unwrap();
        assert_eq!(hint, "give what it was started with, choose another --output, or pass --overwrite");
        let listed = listed.split("; ").collect::<Vec<_>>();
        assert_eq!(listed.len(), differences.len(), "{message}");
        for difference in &differences {
            assert!(listed.iter().any(|listed| listed.starts_with(difference)), "{message}");
        }
    }
    assert_eq!(outcome(&root), before);
    // A model's weights, where it starts from some.
    let mut pretrained =
        command(&["train", "--backend", "cpu", "--max-length", "24", "--epochs", "2", "--train"]);
    pretrained.arg(sample).arg("--output").arg(&root).arg("--model").arg(uninterrupted().0);
    let message = fails(&mut pretrained, 2);
    assert!(message.contains("starting_weights was random, now sha256:"), "{message}");

    let stderr = trains(&mut other("24", data, &["--overwrite"]));
    assert_eq!(went_on_after(&stderr), None);
    assert_eq!(check_whole(&root), [23, 46]);
    assert_ne!(outcome(&root).history[0], before.history[0]);
}

/// When each file in `root` was changed last.
fn times(root: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => _ = found.insert(path.clone(), fs::metadata(&path).unwrap().modified().unwrap()),
            }
        }
    }
    found
}

#[test]
fn a_finished_run_is_left_as_it_is() {
    let root = empty_folder("resume_finished").join("run");
    trains(&mut train(&root, &["--epochs", "1"]));
    let before = times(&root);
    for flags in [&["--epochs", "1"][..], &["--epochs", "1", "--resume", "--keep-last", "1"]] {
        let stderr = trains(&mut train(&root, flags));
        assert!(stderr.contains("Nothing to do: ") && stderr.contains("all of its epochs (1)"), "{stderr}");
        assert_eq!(times(&root), before);
    }
    // It may be replaced by another of its kind.
    let stderr = trains(&mut train(&root, &["--epochs", "1", "--overwrite"]));
    assert!(stderr.contains("Epoch 1/1"), "{stderr}");
    assert_ne!(times(&root), before);
}

#[test]
fn a_run_goes_on_by_its_own_arguments() {
    let folder = empty_folder("resume_arguments");
    let root = folder.join("run");
    let resume = |flags: &[&str]| {
        let mut command = command(&["train", "--resume", "--output"]);
        command.arg(&root).args(flags);
        command
    };
    let message = fails(&mut resume(&[]), 2);
    let nothing = format!("error: {}: there is no whole checkpoint to go on from", root.display());
    assert!(message.starts_with(&nothing), "{message}");
    assert!(!root.exists());
    let mut with_flags = train(&root, &["--resume"]);
    assert!(fails(&mut with_flags, 2).starts_with(&nothing));

    Training::start(train(&root, &[&FLAGS[..], &["--overwrite"]].concat()), &root, 10).kill();
    let newest = steps(&root).last().copied();
    let stderr = trains(&mut resume(&[]));
    assert_eq!(went_on_after(&stderr), newest, "{stderr}");
    assert_eq!(outcome(&root), *uninterrupted().1);
    // Others take the place of its own, and are its own from then on.
    let stderr = trains(&mut resume(&["--epochs", "3", "--max-length", "24"]));
    assert!(stderr.contains("Going on after step 46") && stderr.contains("epochs was 2, now 3"), "{stderr}");
    let stderr = trains(&mut resume(&[]));
    assert!(stderr.contains("all of its epochs (3)"), "{stderr}");
    let message = fails(&mut resume(&["--learning-rate", "1"]), 2);
    assert!(message.contains("learning_rate was 0.00001, now 1.0"), "{message}");
    fails(&mut resume(&["--overwrite"]), 2);

    // Those of a damaged checkpoint are not looked for.
    let newest = root.join(read_json(&root.join(layout::RUN))["newest"].as_str().unwrap());
    fs::write(newest.join(layout::PROGRESS), "{").unwrap();
    let stderr = trains(&mut resume(&["--epochs", "3"]));
    assert!(stderr.contains("Passed over: ") && stderr.contains(layout::PROGRESS), "{stderr}");
}

/// From another folder than it was started in, by paths that were relative; and where `run.json` is damaged or gone.
#[test]
fn a_run_goes_on_by_its_own_arguments_from_anywhere() {
    let folder = empty_folder("resume_elsewhere");
    let started = folder.join("started");
    fs::create_dir_all(started.join("tiny")).unwrap();
    fs::copy(asset("sample.csv"), started.join("sample.csv")).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(asset("tiny").join(name), started.join("tiny").join(name)).unwrap();
    }
    let line = "train --backend cpu --random-weights --max-length 24 --train sample.csv --model tiny --output run \
                --epochs 2 --checkpoint-every 5 --gpu-devices 0,1";
    trains(command(&line.split_whitespace().collect::<Vec<_>>()).current_dir(&started));
    let root = started.join("run");
    assert_eq!(outcome(&root), *uninterrupted().1);
    let resume = |flags: &[&str]| {
        let mut command = command(&["train", "--resume", "--output", "started/run"]);
        command.args(flags).current_dir(&folder);
        command
    };
    for (epochs, devices) in [("3", "2"), ("4", "3")] {
        let stderr = trains(&mut resume(&["--epochs", epochs, "--gpu-devices", devices]));
        assert!(stderr.contains(&format!(", now {epochs}")), "{stderr}");
        let progress = read_json(&root.join(newest_checkpoint(&root)).join(layout::PROGRESS));
        let kept = progress["arguments"].as_array().unwrap();
        let after = |name: &str| {
            let mut found = kept.iter().filter_map(|word| word.as_str().unwrap().strip_prefix(name));
            let (Some(value), None) = (found.next(), found.next()) else { panic!("{name}: {kept:?}") };
            value.strip_prefix('=').unwrap()
        };
        assert_eq!((after("--epochs"), after("--gpu-devices")), (epochs, devices));
        // The build folder may be a link.
        let table = started.canonicalize().unwrap().join("sample.csv");
        assert_eq!(Path::new(after("--train")), table);
    }
    for damage in [Some("{"), None] {
        match damage {
            Some(bytes) => fs::write(root.join(layout::RUN), bytes).unwrap(),
            None => fs::remove_file(root.join(layout::RUN)).unwrap(),
        }
        let stderr = trains(&mut resume(&[]));
        assert!(stderr.contains("all of its epochs (4)"), "{stderr}");
    }
}

/// Where nobody can be told of an epoch, it is kept all the same.
#[test]
fn an_epoch_that_can_not_be_told_is_not_lost() {
    let root = empty_folder("resume_untold").join("run");
    let mut command = train(&root, &["--epochs", "2", "--json"]);
    command.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
    let (code, stderr) = run(&mut command);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("error: can't write to stdout: No space left on device"), "{stderr}");
    assert_eq!(check_whole(&root), [23]);
    let stderr = trains(&mut train(&root, &["--epochs", "2"]));
    assert_eq!(went_on_after(&stderr), Some(23), "{stderr}");
}

#[test]
fn a_run_is_trained_by_one_process_at_a_time() {
    let root = empty_folder("resume_two").join("run");
    let flags = ["--epochs", "1000", "--checkpoint-every", "5"];
    let first = Training::start(train(&root, &flags), &root, 5);
    for more in [&[][..], &["--overwrite"], &["--resume"]] {
        let message = fails(train(&root, &flags).args(more), 2);
        assert!(message.contains("run: another process is writing a run there"), "{message}");
    }
    first.kill();
    let newest = steps(&root).last().copied();
    let again = Training::start(train(&root, &flags), &root, newest.unwrap() + 1);
    again.signal("KILL");
    assert_eq!(went_on_after(&again.end().1), newest);
}

#[test]
fn as_many_checkpoints_are_kept_as_were_asked_for_and_the_best() {
    let folder = empty_folder("resume_keep");
    let best = |root: &Path| {
        let losses = outcome(root).history.into_iter().map(|record| record["val_loss"].as_f64().unwrap());
        let losses = losses.collect::<Vec<_>>();
        let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
        let best = losses.iter().position(|loss| *loss == least).unwrap() as u64 + 1;
        let named = read_json(&root.join(layout::RUN))["best"].as_str().unwrap().to_owned();
        assert_eq!(named, format!("checkpoints/step-{}", 23 * best), "{losses:?}");
        23 * best
    };
    // It learns, so that the last is the best.
    let root = folder.join("learns");
    trains(&mut train(&root, &[&FLAGS[..], &["--keep-last", "1"]].concat()));
    assert_eq!((best(&root), check_whole(&root)), (46, vec![23, 46]));
    let more = ["--epochs", "3", "--checkpoint-every", "5", "--keep-last", "3"];
    trains(&mut train(&root, &more));
    assert_eq!((best(&root), check_whole(&root)), (69, vec![46, 60, 65, 69]));
    // Steps that are too large: it was better before.
    let root = folder.join("worsens");
    let flags = ["--epochs", "4", "--learning-rate", "0.05", "--keep-last", "1", "--checkpoint-every", "10"];
    trains(&mut train(&root, &flags));
    let best = best(&root);
    assert!(best < 69, "{best}");
    assert_eq!(check_whole(&root), [best, 69, 92]);
    // However far it goes on from there, on which checkpoint is the best.
    trains(&mut train(&root, &[&["--epochs", "5"], &flags[2..]].concat()));
    assert!(check_whole(&root).contains(&best));
    let (code, stderr) = run(&mut with_run("evaluate", &root, &asset("sample.csv"), &[]));
    assert_eq!(code, Some(0), "{stderr}");
}
