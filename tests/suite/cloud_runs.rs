//! Runs whose folder is in a bucket, on a server that keeps to Google's reference in preconditions: killed, gone on with,
//! taken over.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use bert_xla::run::layout;
use bert_xla::storage::MANIFEST;
use serde_json::{Value as Json, json};

use crate::common::cli::{fails, train};
use crate::common::empty_folder;
use crate::common::gcs::{Fault, Gcs};
use crate::common::runs::{FLAGS, Training, check_whole, outcome, run, uninterrupted, went_on_after};

const ROOT: &str = "gs://runs/run";

/// `train` into the bucket.
fn training(gcs: &Gcs, flags: &[&str]) -> Command {
    let mut command = train(Path::new(ROOT), flags);
    command.env_remove("STORAGE_EMULATOR_HOST").envs(gcs.variables());
    command
}

/// What is in the bucket now, by name.
fn objects(gcs: &Gcs) -> BTreeMap<String, Vec<u8>> {
    let state = gcs.state();
    state.objects.iter().map(|(name, object)| (name.clone(), object.bytes.clone())).collect()
}

/// The run as a folder of this machine.
fn brought(gcs: &Gcs, name: &str) -> PathBuf {
    let folder = empty_folder(name);
    for (object, bytes) in objects(gcs) {
        let path = folder.join(object.strip_prefix("run/").unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

/// The steps of the checkpoints that are whole.
fn steps(gcs: &Gcs) -> Vec<u64> {
    let of_manifest = |name: &str| {
        let checkpoint = name.strip_prefix("run/checkpoints/")?.strip_suffix(MANIFEST)?;
        layout::step(checkpoint.trim_end_matches('/'))
    };
    let mut steps = objects(gcs).keys().filter_map(|name| of_manifest(name)).collect::<Vec<_>>();
    steps.sort_unstable();
    steps
}

/// Killed at any moments, and when requests fail, a run in a bucket comes to what one on a disk comes to that was never cut
/// short. `BERT_XLA_KILLS` says how often it is killed.
#[test]
fn a_run_in_a_bucket_outlives_its_machine() {
    let kills = std::env::var("BERT_XLA_KILLS").map_or(3, |kills| kills.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(kills);
    let gcs = Gcs::start();
    let mut killed = 0;
    while killed < kills {
        let newest = steps(&gcs).pop().unwrap_or_default();
        // Soon after one of its checkpoints; or after some time, while it takes the run over, say.
        let until = if killed % 3 == 2 { 0 } else { newest + 1 };
        let started = Training::until(training(&gcs, &FLAGS), until, || [&[0], &*steps(&gcs)].concat());
        sleep(Duration::from_millis(random.u64(..if until == 0 { 1500 } else { 60 })));
        killed += u64::from(started.kill_unless_done());
        // What is on its way arrives, as it would be there before another machine has started.
        gcs.settle();
        gcs.fail("PUT", "checkpoints", Fault::Status(503, String::new()));
        if steps(&gcs).last().is_some_and(|step| *step > 30) {
            check_ends_well(&gcs);
            gcs.state().objects.clear();
        }
    }
    check_ends_well(&gcs);
    // It is finished, and stays as it is.
    let before = objects(&gcs);
    let (code, stderr) = run(&mut training(&gcs, &[&FLAGS[..], &["--keep-last", "1"]].concat()));
    assert!(code == Some(0) && stderr.contains("Nothing to do: gs://runs/run holds this run"), "{stderr}");
    assert!(objects(&gcs) == before);
}

/// It goes on from its newest checkpoint, and comes to the same end, with nothing else in the bucket.
#[track_caller]
fn check_ends_well(gcs: &Gcs) {
    let newest = steps(gcs).pop();
    let (code, stderr) = run(&mut training(gcs, &FLAGS));
    let is_done = stderr.contains("Nothing to do: gs://runs/run holds this run");
    let expected = newest.filter(|_| !is_done);
    assert_eq!((code, went_on_after(&stderr)), (Some(0), expected), "{stderr}");
    let folder = brought(gcs, "cloud_runs_killed");
    if is_done {
        // What was being removed when it was killed stays for the next that has something to do.
        for entry in fs::read_dir(folder.join(layout::CHECKPOINTS)).unwrap() {
            let checkpoint = entry.unwrap().path();
            if !checkpoint.join(MANIFEST).exists() {
                fs::remove_dir_all(checkpoint).unwrap();
            }
        }
    }
    check_whole(&folder);
    assert_eq!(outcome(&folder), *uninterrupted().1);
}

/// The process that was started last has the run; an older one stops at its next checkpoint and has replaced nothing.
#[test]
fn a_newer_start_takes_a_run_over() {
    let gcs = Gcs::start();
    let older = Training::until(training(&gcs, &FLAGS), 5, || steps(&gcs));
    // As a machine that is moved, or cut off from the network.
    older.signal("STOP");
    let (code, stderr) = run(&mut training(&gcs, &FLAGS));
    assert!(code == Some(0) && went_on_after(&stderr).is_some(), "{stderr}");
    let after = objects(&gcs);
    older.signal("CONT");
    let (code, stderr) = older.end();
    let expected = "error: gs://runs/run: another process has taken the run over; this one stops, and has replaced nothing";
    assert!(code == Some(1) && stderr.contains(expected), "{stderr}");
    // What it was in the midst of may be there, and counts for nothing.
    let now = objects(&gcs);
    assert!(after.iter().all(|(name, bytes)| now.get(name) == Some(bytes)));
    let pointer: Json = serde_json::from_slice(&now["run/run.json"]).unwrap();
    let newest = pointer["newest"].as_str().unwrap();
    assert!(newest.starts_with("checkpoints/step-46-"), "{newest}");
    let (_, expected) = uninterrupted();
    assert_eq!(outcome(&brought(&gcs, "cloud_runs_taken")), *expected);
}

/// What is wrong with a bucket is told before a device is asked for long work, and a damaged checkpoint is passed over.
#[test]
fn a_run_in_a_bucket_is_checked_on_its_way() {
    let gcs = Gcs::start();
    let (code, stderr) = run(&mut training(&gcs, &FLAGS));
    assert_eq!(code, Some(0), "{stderr}");
    let name = objects(&gcs)
        .into_keys()
        .find(|name| name.contains("checkpoints/step-46-") && name.ends_with(layout::MOMENTS[0]));
    let name = name.unwrap();
    let mut bytes = objects(&gcs)[&name].clone();
    *bytes.last_mut().unwrap() ^= 1;
    gcs.put(&name, &bytes);
    let (code, stderr) = run(&mut training(&gcs, &["--epochs", "3", "--checkpoint-every", "5"]));
    let noticed = format!("Passed over: gs://runs/{name}: it is not as it was committed");
    assert!(code == Some(0) && stderr.contains(&noticed), "{stderr}");
    assert_eq!(went_on_after(&stderr), Some(45));

    let error = fails(&mut training(&gcs, &["--epochs", "3", "--learning-rate", "0.1"]), 2);
    assert!(error.contains("learning_rate was 0.00001, now 0.1"), "{error}");
}

/// What can't be looked at is not damaged: nothing older is gone on from, and nothing is removed.
#[test]
fn a_checkpoint_that_can_not_be_read_is_not_passed_over() {
    let gcs = Gcs::start();
    let (code, stderr) = run(&mut training(&gcs, &FLAGS));
    assert_eq!(code, Some(0), "{stderr}");
    let before = objects(&gcs);
    let more = ["--epochs", "3", "--checkpoint-every", "5"];
    let newest = before.keys().find(|name| name.contains("step-46-") && name.ends_with(layout::MOMENTS[1]));
    gcs.fail("HEAD", newest.unwrap(), Fault::Status(403, String::new()));
    let error = fails(&mut training(&gcs, &more), 2);
    assert!(
        error
            .contains(&format!("can't use gs://runs/{}: the account may not do that (403)", newest.unwrap())),
        "{error}"
    );
    // Nor is one for which there is no room here.
    for flags in [&more[..], &[&more[..], &["--overwrite"]].concat()] {
        let error = fails(training(&gcs, flags).env("TMPDIR", "/nonexistent"), 1);
        assert!(error.starts_with("error: can't copy gs://runs/run/checkpoints/step-46-"), "{error}");
        assert!(error.contains(": in the temporary folder /nonexistent: No such file"), "{error}");
    }
    assert!(objects(&gcs) == before);
    // What it tells of itself is as it was written, too.
    let progress =
        before.keys().find(|name| name.contains("step-46-") && name.ends_with(layout::PROGRESS)).unwrap();
    let other = String::from_utf8(before[progress].clone()).unwrap().replace("\"step\": 46", "\"step\": 47");
    assert_ne!(other.as_bytes(), before[progress]);
    gcs.put(progress, other.as_bytes());
    let (code, stderr) = run(&mut training(&gcs, &more));
    let noticed = format!("Passed over: gs://runs/{progress}: it is not as it was committed");
    assert!(code == Some(0) && stderr.contains(&noticed), "{stderr}");
    assert_eq!(went_on_after(&stderr), Some(45), "{stderr}");
}

/// A network that fails for a while ends no training, whatever was asked for.
#[test]
fn an_outage_is_waited_for() {
    let gcs = Gcs::start();
    let training = Training::until(training(&gcs, &FLAGS), 5, || steps(&gcs));
    // For longer than the client itself tries.
    for method in ["PUT", "DELETE", "GET", "HEAD"] {
        (0..12).for_each(|_| gcs.fail(method, "run", Fault::Status(503, String::new())));
        gcs.fail(method, "run", Fault::CutRequest);
    }
    gcs.fail("GET", "list-type", Fault::CutAfter(10));
    gcs.fail("DELETE", "run", Fault::LoseAnswer);
    let (code, stderr) = training.end();
    assert_eq!(code, Some(0), "{stderr}");
    let folder = brought(&gcs, "cloud_runs_outage");
    check_whole(&folder);
    assert_eq!(outcome(&folder), *uninterrupted().1);
}

/// One process finds a checkpoint, and before it has taken the run over, another has gone on with it to its end.
#[test]
fn what_has_changed_since_it_was_looked_at_is_looked_at_again() {
    let gcs = Gcs::start();
    let older = Training::until(training(&gcs, &FLAGS), 5, || steps(&gcs));
    older.signal("STOP");
    let has_ended = Arc::<AtomicBool>::default();
    let moments = layout::MOMENTS[0];
    gcs.fail("GET", moments, Fault::Held(has_ended.clone()));
    let newer = std::thread::scope(|scope| {
        let newer = scope.spawn(|| run(&mut training(&gcs, &FLAGS)));
        let is_held = || gcs.requests("GET", &[]).iter().any(|request| request.name.ends_with(moments));
        while !is_held() && !newer.is_finished() {
            sleep(Duration::from_millis(5));
        }
        older.signal("CONT");
        let (code, stderr) = older.end();
        has_ended.store(true, Ordering::Relaxed);
        assert_eq!(code, Some(0), "{stderr}");
        newer.join().unwrap()
    });
    assert!(newer.0 == Some(0) && newer.1.contains("Nothing to do"), "{newer:?}");
    let folder = brought(&gcs, "cloud_runs_changed");
    check_whole(&folder);
    assert_eq!(outcome(&folder), *uninterrupted().1);
}

/// A command for which there is nothing to do doesn't end one that trains.
#[test]
fn a_command_with_nothing_to_do_takes_nothing_over() {
    let gcs = Gcs::start();
    let (code, stderr) = run(&mut training(&gcs, &["--epochs", "1"]));
    assert_eq!(code, Some(0), "{stderr}");
    let longer = ["--epochs", "3", "--checkpoint-every", "5"];
    let running = Training::until(training(&gcs, &longer), 25, || steps(&gcs));
    let (code, stderr) = run(&mut training(&gcs, &["--epochs", "1"]));
    assert!(code == Some(0) && stderr.contains("Nothing to do"), "{stderr}");
    let (code, stderr) = running.end();
    assert_eq!(code, Some(0), "{stderr}");
}

/// Wherever it is cut short, what is left of it doesn't count as whole, and is known to be ours.
#[test]
fn a_checkpoint_is_removed_from_its_manifest_to_its_progress() {
    let gcs = Gcs::start();
    let (code, stderr) = run(&mut training(&gcs, &FLAGS));
    assert_eq!(code, Some(0), "{stderr}");
    let mut removed = BTreeMap::<String, Vec<String>>::new();
    for request in gcs.requests("DELETE", &[]) {
        let Some(file) = request.name.strip_prefix("run/checkpoints/") else { continue };
        if let Some((checkpoint, file)) = file.split_once('/') {
            removed.entry(checkpoint.to_owned()).or_default().push(file.to_owned());
        }
    }
    assert!(removed.len() > 2, "{removed:?}");
    for (checkpoint, files) in removed {
        assert!(files.len() > 5, "{checkpoint}: {files:?}");
        assert_eq!(
            (files.first().map(String::as_str), files.last().map(String::as_str)),
            (Some(MANIFEST), Some(layout::PROGRESS)),
            "{checkpoint}: {files:?}"
        );
    }
}

/// A bucket has no locks: the one that was started last has an ensemble, too.
#[test]
fn an_ensemble_in_a_bucket_is_the_last_ones() {
    let gcs = Gcs::start();
    let list = |gcs: &Gcs| -> Json { serde_json::from_slice(&objects(gcs)["run/ensemble.json"]).unwrap() };
    // Where it gives the second member's model to readers, what it copies is removed; not yet what says whose it is.
    let [is_removed, has_ended] = [(); 2].map(|()| Arc::<AtomicBool>::default());
    gcs.fail("GET", "/runs/run/members/seed-1/checkpoints/", Fault::Held(is_removed.clone()));
    gcs.fail("DELETE", "/runs/run/members/seed-1/steps.jsonl", Fault::Held(has_ended.clone()));
    let asked = |method: &str, start: &str| {
        gcs.requests(method, &[]).iter().any(|request| request.name.starts_with(start))
    };
    let copies = || asked("GET", "run/members/seed-1/checkpoints/");
    let first = training(&gcs, &["--seeds", "2", "--epochs", "2", "--checkpoint-every", "5"]);
    let first = Training::until(first, 1, || vec![copies().into()]);
    assert_eq!(list(&gcs)["training"], json!(["members/seed-0", "members/seed-1"]));
    let other = ["--seeds", "1", "--epochs", "1", "--overwrite"];
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| run(&mut training(&gcs, &other)));
        while !asked("DELETE", "run/members/seed-1/steps.jsonl") && !second.is_finished() {
            sleep(Duration::from_millis(5));
        }
        is_removed.store(true, Ordering::Relaxed);
        let first = first.end();
        has_ended.store(true, Ordering::Relaxed);
        (first, second.join().unwrap())
    });
    assert_eq!(second.0, Some(0), "{}", second.1);
    let (code, stderr) = first;
    assert!(code == Some(1) && stderr.contains("another process has taken the run over"), "{stderr}");
    let list = list(&gcs);
    assert_eq!(list["members"], json!(["members/seed-0"]));
    assert!(list.get("training").is_none() && list.get("replaced").is_none(), "{list}");
}
