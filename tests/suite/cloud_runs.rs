//! Runs whose folder is in a bucket, on a server that keeps to Google's reference in preconditions: killed, gone on with,
//! taken over.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use bert_xla::run::layout;
use bert_xla::storage::MANIFEST;
use serde_json::Value as Json;

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
    for killed in 0..kills {
        let newest = steps(&gcs).pop().unwrap_or_default();
        // Soon after one of its checkpoints; or after some time, while it takes the run over, say.
        let until = if killed % 3 == 2 { 0 } else { newest + 1 };
        let started = Training::until(training(&gcs, &FLAGS), until, || [&[0], &*steps(&gcs)].concat());
        sleep(Duration::from_millis(random.u64(..if until == 0 { 1500 } else { 60 })));
        started.kill();
        gcs.fail("PUT", "checkpoints", Fault::Status(503, String::new()));
        if steps(&gcs).last().is_some_and(|step| *step > 30) {
            check_ends_well(&gcs);
            gcs.state().objects.clear();
        }
    }
    check_ends_well(&gcs);
    // It is finished, and stays as it is.
    let before = objects(&gcs);
    let (code, stderr) = run(&mut training(&gcs, &FLAGS));
    assert!(code == Some(0) && stderr.contains("Nothing to do: gs://runs/run holds this run"), "{stderr}");
    let mut after = objects(&gcs);
    // It names the process that looked last.
    after.insert("run/run.json".to_owned(), before["run/run.json"].clone());
    assert!(before == after);
    check_whole(&brought(&gcs, "cloud_runs_killed"));
}

/// It goes on from its newest checkpoint, and comes to the same end, with nothing else in the bucket.
#[track_caller]
fn check_ends_well(gcs: &Gcs) {
    let newest = steps(gcs).pop();
    let (code, stderr) = run(&mut training(gcs, &FLAGS));
    assert_eq!((code, went_on_after(&stderr)), (Some(0), newest), "{stderr}");
    let folder = brought(gcs, "cloud_runs_killed");
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
