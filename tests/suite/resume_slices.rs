//! Runs on slices of two hosts that are killed or asked to stop, and go on: wherever the checkpoint is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use safetensors::tensor::TensorView;

use crate::common::cli::train;
use crate::common::runs::{
    FLAGS, Outcome, check_whole, commit, copy_uninterrupted_to, outcome, run, steps, went_on_after,
};
use crate::common::slice::{End, Host, Slice, TIME_LIMIT, run_hosts, wait};
use crate::common::{empty_folder, slow_disk};

/// What a run of this many replicas comes to on one host: a slice trains as one does.
fn on_one_host(folder: &Path) -> Outcome {
    let root = folder.join("one_host");
    let (code, stderr) = run(&mut train(&root, &[&FLAGS[..], &["--replicas", "4"]].concat()));
    assert_eq!(code, Some(0), "{stderr}");
    outcome(&root)
}

/// Hosts whose runs are in these folders; the first is the chief.
fn start(slice: &Slice, outputs: [&Path; 2], limit: &str) -> [Host; 2] {
    let flags = [&FLAGS[..], &["--slice-timeout", limit]].concat();
    [0, 1].map(|host| slice.spawn(host, train(outputs[host], &flags), 4))
}

/// Waits until `root` holds a checkpoint of `step` or later.
#[track_caller]
fn wait_until(hosts: &mut [Host; 2], root: &Path, step: u64) {
    let deadline = Instant::now() + TIME_LIMIT;
    while steps(root).last().is_none_or(|last| *last < step) {
        let is_running = hosts.iter_mut().all(Host::is_running);
        assert!(is_running && Instant::now() < deadline, "{}{}", hosts[0].stderr(), hosts[1].stderr());
        sleep(Duration::from_millis(1));
    }
}

fn folders(name: &str) -> (PathBuf, [PathBuf; 2]) {
    let folder = empty_folder(name);
    let outputs = ["first", "second"].map(|host| folder.join(host).join("run"));
    (folder, outputs)
}

#[test]
fn killed_hosts_go_on_from_the_checkpoint_that_one_of_them_has() {
    let (folder, outputs) = folders("resume_slice");
    let [first, second] = &outputs;
    // Both are killed; then one, and the other gives up.
    let Some(slice) = Slice::start(2) else { return };
    let mut hosts = start(&slice, [first, second], "6");
    wait_until(&mut hosts, first, 5);
    hosts.iter().for_each(|host| host.signal("KILL"));
    assert_eq!(wait(hosts).map(|end| end.code), [None, None]);
    slice.wait();
    for killed in [1, 0] {
        let newest = steps(first).last().copied();
        let slice = Slice::start(2).unwrap();
        let mut hosts = start(&slice, [first, second], "6");
        wait_until(&mut hosts, first, newest.unwrap() + 6);
        hosts[killed].signal("KILL");
        let ends = wait(hosts);
        assert_eq!((ends[killed].code, ends[1 - killed].code), (None, Some(1)), "{ends:?}");
        assert_eq!(went_on_after(&ends[0].stderr), newest, "{ends:?}");
        slice.wait();
    }
    // The chief is another machine now, whose disk is empty.
    let newest = steps(first).last().copied();
    assert_eq!(steps(second), [0; 0]);
    let slice = Slice::start(2).unwrap();
    let ends = wait(start(&slice, [second, first], "60"));
    slice.wait();
    for End { code, stderr, .. } in &ends {
        assert_eq!(*code, Some(0), "{stderr}");
    }
    assert_eq!(went_on_after(&ends[0].stderr), newest, "{ends:?}");
    assert_eq!(outcome(second), on_one_host(&folder));
    check_whole(second);
    // What the other has stays as it was.
    assert_eq!(steps(first).last().copied(), newest);
}

#[test]
fn a_signal_to_one_host_stops_all_after_the_same_step() {
    let (folder, outputs) = folders("resume_slice_signal");
    let [first, second] = &outputs;
    let mut least = 5;
    for asked in [1, 0] {
        let Some(slice) = Slice::start(2) else { return };
        let mut hosts = start(&slice, [first, second], "60");
        wait_until(&mut hosts, first, least);
        hosts[asked].signal("TERM");
        let ends = wait(hosts);
        slice.wait();
        let step = steps(first).last().copied().unwrap();
        assert_eq!([ends[0].code, ends[1].code], [Some(75); 2], "{ends:?}");
        let reason = if asked == 0 { "SIGTERM" } else { "another host of the slice was asked to" };
        let said = format!("Stopped ({reason}) after step {step}, which is saved in {}", first.display());
        assert!(ends[0].stderr.contains(&said), "{ends:?}");
        check_whole(first);
        least = step + 1;
    }
    let slice = Slice::start(2).unwrap();
    let ends = wait(start(&slice, [first, second], "60"));
    slice.wait();
    assert_eq!(ends.map(|end| end.code), [Some(0), Some(0)]);
    assert_eq!(outcome(first), on_one_host(&folder));
}

/// The chief's disk is full when others are at their next steps: while it waits for a commit, or does a step.
#[test]
fn a_commit_that_fails_ends_all_hosts() {
    let Some(library) = slow_disk("resume_slice_disk") else { return };
    for slow in ["0", "150"] {
        let (_, outputs) = folders("resume_slice_full");
        // Compiled programs that are kept would count as well.
        let flags = [&FLAGS[..], &["--slice-timeout", "60", "--no-cache"]].concat();
        let Some(slice) = Slice::start(2) else { return };
        let command = |host: usize| -> Command {
            let mut command = train(&outputs[host], &flags);
            if host == 0 {
                // After the first checkpoint.
                command.env("LD_PRELOAD", &library).env("FULL_AFTER", "20").env("SLOW_MS", slow);
            }
            command
        };
        let hosts = [0, 1].map(|host| slice.spawn(host, command(host), 4));
        let ends = wait(hosts);
        slice.wait();
        assert_eq!((ends[0].code, ends[1].code), (Some(1), Some(1)), "{slow}: {ends:?}");
        let error = ends[0].error();
        assert!(
            error.contains("can't write ") && error.contains("No space left on device"),
            "{slow}: {error}"
        );
        let told = ends[1].error();
        assert!(told.contains("process 0 of the slice has failed and says why"), "{slow}: {told}");
        assert_eq!(steps(&outputs[0]).first(), Some(&5), "{slow}: {ends:?}");
    }
}

/// Starts both hosts and waits for them; `None` if there is no slice here.
#[track_caller]
fn run_both(outputs: [&Path; 2], flags: &[&str]) -> Option<[End; 2]> {
    let flags = [flags, &["--slice-timeout", "60"]].concat();
    run_hosts(4, outputs.map(|output| train(output, &flags)))
}

#[test]
fn a_run_that_the_first_host_holds_stays_whatever_others_hold() {
    let (_, [first, second]) = folders("resume_slice_other");
    copy_uninterrupted_to(&second);
    let other = ["--epochs", "1", "--learning-rate", "1e-4"];
    let (code, stderr) = run(&mut train(&first, &other));
    assert_eq!(code, Some(0), "{stderr}");
    let before = (check_whole(&first), outcome(&first));
    let Some(ends) = run_both([&first, &second], &FLAGS) else { return };
    assert_eq!([ends[0].code, ends[1].code], [Some(2), Some(1)], "{ends:?}");
    assert!(ends[0].error().contains("learning_rate was 0.0001, now 0.00001"), "{ends:?}");
    assert!(ends[1].error().contains("process 0 of the slice has failed and says why"), "{ends:?}");
    assert_eq!((check_whole(&first), outcome(&first)), before);
    // Another host's run of another job is not ignored either.
    let empty = first.with_file_name("empty");
    let ends = run_both([&empty, &first], &FLAGS).unwrap();
    assert_eq!([ends[0].code, ends[1].code], [Some(1), Some(2)], "{ends:?}");
    assert!(ends[1].error().contains("learning_rate was 0.0001, now 0.00001"), "{ends:?}");
    // One of this job that is finished is told to be where it is.
    let ends = run_both([&empty, &second], &FLAGS).unwrap();
    assert_eq!([ends[0].code, ends[1].code], [Some(0); 2], "{ends:?}");
    let said = format!("Nothing to do: {} of process 1 of the slice holds this run", empty.display());
    assert!(ends[0].stderr.contains(&said), "{ends:?}");
    assert!(!empty.join("run.json").exists());
}

#[test]
fn a_run_that_has_replaced_another_goes_on_where_other_hosts_still_hold_that() {
    let (_, outputs) = folders("resume_slice_replaced");
    let [first, second] = &outputs;
    // With more steps than the new one will have when it stops: of another job, then of the same.
    for rate in ["1e-4", "1e-5"] {
        outputs.iter().for_each(|output| copy_uninterrupted_to(output));
        let flags = [&FLAGS[..], &["--overwrite", "--learning-rate", rate, "--slice-timeout", "60"]].concat();
        let Some(slice) = Slice::start(2) else { return };
        let before = fs::read_to_string(first.join("run.json")).unwrap();
        let mut hosts = [0, 1].map(|host| slice.spawn(host, train(&outputs[host], &flags), 4));
        hosts[0].wait_for("Ready to train");
        while fs::read_to_string(first.join("run.json")).unwrap() == before
            || steps(first).first() > Some(&20)
        {
            assert!(hosts[0].is_running(), "{}", hosts[0].stderr());
            sleep(Duration::from_millis(1));
        }
        hosts[0].signal("TERM");
        let ends = wait(hosts);
        slice.wait();
        assert_eq!([ends[0].code, ends[1].code], [Some(75); 2], "{ends:?}");
        let (_, stopped) = ends[0].stderr.split_once("Stopped (SIGTERM) after step ").unwrap();
        let step = stopped.split_once(',').unwrap().0.parse::<u64>().unwrap();
        assert!(step < 46, "{ends:?}");
        // The other way to say it, which all hosts must be told alike.
        let flags = [&FLAGS[..], &["--resume", "--learning-rate", rate]].concat();
        let ends = run_both([first, second], &flags).unwrap();
        assert_eq!([ends[0].code, ends[1].code], [Some(0); 2], "{ends:?}");
        assert_eq!(went_on_after(&ends[0].stderr), Some(step), "{ends:?}");
        check_whole(first);
    }
}

#[test]
fn a_checkpoint_that_lacks_a_tensor_ends_all_hosts_before_it_is_given() {
    let (_, [first, second]) = folders("resume_slice_lacks");
    copy_uninterrupted_to(&second);
    let none = safetensors::serialize(Vec::<(String, TensorView<'_>)>::new(), None).unwrap();
    commit(&second.join("checkpoints/step-46"), "second_moments.safetensors", &none);
    let Some(ends) = run_both([&first, &second], &["--epochs", "3", "--checkpoint-every", "5"]) else {
        return;
    };
    assert_eq!([ends[0].code, ends[1].code], [Some(1), Some(2)], "{ends:?}");
    assert!(ends[1].error().contains("there is no tensor `v."), "{ends:?}");
    let told =
        "process 1 of the slice has failed and says why; this one stops too (after looking for a checkpoint)";
    assert!(ends[0].error().ends_with(told), "{ends:?}");
}
