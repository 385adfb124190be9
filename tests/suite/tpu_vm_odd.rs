//! `bert-xla tpu-vm` at odd moments, with a stand-in for `gcloud` that fails when it is told to.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use crate::common::gcloud::Machine;
use crate::common::tpu_vm::{end_processes_in, write_program};

const BUCKET: &str = "gs://b/run";
const DELETED: &str = "deleted: it costs nothing any more";

/// Runs until TERM, and then saves.
const LONG: &str = "trap 'exit 75' TERM; while :; do sleep 0.05; done";

/// What a local run has saved.
const SAVE: &str = "mkdir -p run/checkpoints/step-1; echo weights >run/checkpoints/step-1/model.safetensors; \
     printf '{\\n\"checkpoint\": \"checkpoints/step-1\",\\n\"name\": \"model.safetensors\"\\n}\\n' >run/run.json";

#[test]
fn a_new_vm_is_not_given_up_for_the_one_before() {
    let machine = Machine::new("patience");
    // Of each VM, ssh does not answer at first; in between there is no capacity for longer than that may last.
    machine.write("fail-ssh", "3");
    let mut run = machine.start(machine.run(&["--longest-wait", "0.0006"], "exit 0", BUCKET));
    machine.wait_until("an ssh", || machine.calls("p tpu-vm ssh") > 0);
    machine.write("fail-create", "5");
    machine.write("node.p", "PREEMPTED");
    machine.wait_until("another try", || machine.calls("p tpu-vm create") > 4);
    machine.write("fail-ssh", "2");
    assert_eq!(run.end(), Some(0));
    assert!(!machine.has("node.p"));
}

#[test]
fn an_api_that_fails_now_and_then_stops_no_clock() {
    let machine = Machine::new("clock");
    machine.write("fail-ssh", "100000");
    let run = machine.run(&["--longest-wait", "0.0006"], "exit 0", BUCKET);
    let lines = std::thread::scope(|scope| {
        let end = scope.spawn(|| machine.end(run));
        machine.wait_until("an ssh", || machine.calls("p tpu-vm ssh") > 0);
        while !end.is_finished() {
            machine.write("fail-describe", "1");
            sleep(Duration::from_millis(700));
        }
        end.join().unwrap().1
    });
    // The run is in the bucket: nothing is lost with a VM that can't be reached.
    assert!(
        lines.iter().any(|line| line.starts_with("still READY, but its workers don't answer")),
        "{lines:#?}"
    );
    assert!(lines.iter().any(|line| line.contains("the API says nothing")), "{lines:#?}");
    assert_eq!(lines.last().unwrap(), DELETED);
    assert!(!machine.has("node.p"));
}

/// Where ssh fails just then.
#[test]
fn hours_that_are_over_save_first() {
    let machine = Machine::new("hours");
    let mut run = machine.run(&["--max-hours", "0.0009"], &format!("{SAVE}; {LONG}"), "run");
    let child = run.stdout(std::process::Stdio::piped()).spawn().unwrap();
    machine.wait_until("the run", || machine.has("worker/bert-xla/run/run.json"));
    sleep(Duration::from_millis(2000));
    machine.write("fail-ssh", "2");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert_eq!(machine.read("my-tpu/run/checkpoints/step-1/model.safetensors"), "weights\n", "{said}");
    assert!(!machine.has("node.p"));
}

/// Those of VMs that were taken away before the next look count, and a run that is done is done.
#[test]
fn hours_are_counted() {
    let machine = Machine::new("counted");
    let program = "#!/bin/sh\n[ \"$1\" != plugins ] || { sleep 1; echo PREEMPTED >../../node.p; exit 1; }\n";
    write_program(&machine.folder.join("program"), program);
    let (status, lines) = machine.end(machine.run(&["--max-hours", "0.0006"], "exit 0", BUCKET));
    assert_eq!((status, lines.last().unwrap().as_str()), (75, DELETED), "{lines:#?}");
    assert!((2..=4).contains(&machine.calls("p tpu-vm create")), "{lines:#?}");

    let machine = Machine::new("done");
    let mut first = machine.start(machine.run(&[], "sleep 1", BUCKET));
    machine.wait_until("the run", || machine.has("worker/bert-xla/run.job"));
    machine.wait_until("a look", || {
        machine.read(".local/state/bert-xla/tpu-vm/z/my-tpu/job.json").contains("ready_at\": 1")
    });
    first.kill();
    sleep(Duration::from_millis(2500));
    let (status, lines) = machine.end(machine.run(&["--max-hours", "0.0005"], "sleep 1", BUCKET));
    assert_eq!((status, lines[0].as_str()), (0, "the run is done"), "{lines:#?}");
}

#[test]
fn a_project_that_is_changed_meanwhile_leads_to_no_second_vm() {
    let machine = Machine::new("project");
    let mut child = machine.start(machine.run(&[], "sleep 1", BUCKET));
    machine.wait_until("the run", || machine.has("worker/bert-xla/run.job"));
    machine.write("project", "q");
    assert_eq!(child.end(), Some(0));
    assert_eq!(machine.read("deleted"), "p READY\n");
    assert!(!machine.read("calls").contains("q "));
}

/// A file that is gone, as during a build, ends nothing; nor does a gcloud that is being updated.
#[test]
fn what_is_missing_here_for_a_while_is_waited_for() {
    let machine = Machine::new("missing");
    machine.write("train.csv", "data");
    let command = "[ -e again ] || { >again; sleep 60; }";
    let mut child = machine.start(machine.run(&["--data", "train.csv"], command, BUCKET));
    machine.wait_until("the run", || machine.has("worker/bert-xla/again"));
    let away = |from: &str, to: &str| fs::rename(machine.folder.join(from), machine.folder.join(to)).unwrap();
    away("train.csv", "away.csv");
    machine.write("node.p", "PREEMPTED");
    machine.wait_until("a new VM", || machine.calls("p tpu-vm create") == 2);
    away("bin/gcloud", "bin/away");
    sleep(Duration::from_millis(400));
    away("bin/away", "bin/gcloud");
    away("away.csv", "train.csv");
    machine.wait_until("the run", || machine.has("worker/bert-xla/again"));
    end_processes_in(&machine.folder.join("worker"));
    assert_eq!(child.end(), Some(0));
    assert!(!machine.has("node.p"));

    let machine = Machine::new("dangling");
    fs::create_dir(machine.folder.join("data")).unwrap();
    std::os::unix::fs::symlink("/none", machine.folder.join("data/link")).unwrap();
    let (status, lines) = machine.end(machine.run(&["--data", "data"], "exit 0", BUCKET));
    assert!(
        status == 1 && lines[0].starts_with("error: can't read ") && lines[0].contains("/data/link: "),
        "{lines:?}"
    );
    let (status, lines) = machine.end(machine.run(&["--data", "gs:/b/x"], "exit 0", BUCKET));
    assert!(status == 2 && lines[0].ends_with("--data gs:/b/x: expected gs://BUCKET/PATH"), "{lines:?}");
    assert!(!machine.has("node.p"));
}

#[test]
fn a_vm_that_was_made_elsewhere_is_not_taken() {
    for (it, state) in [("node.p", "STOPPED"), ("node.p", "READY"), ("request.p", "FAILED")] {
        let machine = Machine::new("foreign");
        machine.write(it, state);
        let (status, lines) = machine.end(machine.run(&[], "exit 0", BUCKET));
        assert_eq!(status, 2, "{lines:?}");
        assert!(
            lines[0].starts_with("error: there is a my-tpu in z that was not made from this machine: "),
            "{lines:?}"
        );
        assert_eq!(machine.read(it), format!("{state}\n"));
    }
}

#[test]
fn a_log_that_can_not_be_copied_keeps_no_vm() {
    let machine = Machine::new("log");
    machine.write("my-tpu", "in the way of a folder");
    let (status, lines) = machine.end(machine.run(&[], "exit 0", BUCKET));
    assert_eq!((status, lines.last().unwrap().as_str()), (0, DELETED), "{lines:#?}");
    // A run that is nowhere else does.
    let machine = Machine::new("local");
    machine.write("my-tpu", "in the way of a folder");
    let (status, lines) = machine.end(machine.run(&[], SAVE, "run"));
    let last = lines.last().unwrap();
    assert!(
        status == 1 && last.contains("giving up; the VM is left as it is, and may cost money until"),
        "{lines:#?}"
    );
    assert!(machine.has("node.p"));
    // To gcloud, what is before a colon is a host, unless a slash comes first.
    let (_, lines) = machine.end(machine.verb("fetch", &["12:30", "--run", "my run", "--dry-run"]));
    assert!(lines[1].ends_with("mkdir -p './12:30/my run'"), "{lines:#?}");
    assert!(lines[3].contains("--scp-flag=-s") && lines[3].contains(" ./12:30 --worker=0"), "{lines:#?}");
}

/// The program, that is: what failed before was another one.
#[test]
fn a_mended_program_is_started() {
    let machine = Machine::new("mended");
    let mut first =
        machine.start(machine.run(&["--max-restarts", "1"], "echo it; sleep 0.3; exit 1", BUCKET));
    machine.wait_until("a restart", || machine.read("worker/bert-xla/run.log").contains("started again"));
    first.kill();
    machine.wait_until("its end", || machine.read("worker/bert-xla/run.status") == "1\n");
    write_program(&machine.folder.join("program"), "#!/bin/sh\nexit 0\n# mended\n");
    let (status, lines) =
        machine.end(machine.run(&["--max-restarts", "1"], "echo it; sleep 0.3; exit 1", BUCKET));
    assert_eq!(status, 0, "{lines:#?}");
}

#[test]
fn starts_that_come_to_nothing_are_no_restarts() {
    let machine = Machine::new("restarts");
    // It fails once, and then nothing gets there three times.
    let run =
        machine.run(&["--max-restarts", "1"], "[ ! -e once ] || exit 0; >once; sleep 0.5; exit 1", BUCKET);
    let gcloud = machine.read("bin/gcloud").replace(
        "case \"$3 $4\" in\n    'tpu-vm create')",
        "[[ $command != *setsid* ]] || ! take refuse || fail ssh '[/usr/bin/ssh] exited with return code [255].'\ncase \"$3 $4\" in\n    'tpu-vm create')",
    );
    write_program(&machine.folder.join("bin/gcloud"), &gcloud);
    let (status, lines) = std::thread::scope(|scope| {
        let end = scope.spawn(|| machine.end(run));
        machine.wait_until("its first end", || machine.has("worker/bert-xla/once"));
        machine.write("refuse", "3");
        end.join().unwrap()
    });
    assert_eq!(status, 0, "{lines:#?}");
    let restarts = lines.iter().filter(|line| line.contains("(restart 1 of 1)")).count();
    assert_eq!(restarts, 4, "{lines:#?}");
}

#[test]
fn what_a_failed_run_has_saved_is_brought() {
    // After it was stopped, its program is exchanged for one that does not run there.
    let machine = Machine::new("saved");
    let command = format!("{SAVE}; {LONG}");
    let mut first = machine.start(machine.run(&[], &command, "run"));
    machine.wait_until("the run", || machine.has("worker/bert-xla/run/run.json"));
    first.kill();
    end_processes_in(&machine.folder.join("worker"));
    write_program(&machine.folder.join("program"), "#!/bin/sh\nexit 1\n");
    let (status, lines) = machine.end(machine.run(&[], &command, "run"));
    assert_eq!((status, lines.last().unwrap().as_str()), (1, DELETED), "{lines:#?}");
    assert_eq!(machine.read("my-tpu/run/checkpoints/step-1/model.safetensors"), "weights\n");
    // Of a program that never ran there is nothing.
    let machine = Machine::new("never");
    let (status, lines) = machine.end(machine.run(&["--max-restarts", "0"], "exit 1", "run"));
    assert_eq!((status, lines.last().unwrap().as_str()), (1, DELETED), "{lines:#?}");
    assert!(machine.has("my-tpu/run.log"));
}

#[test]
fn a_request_that_fails_is_not_repeated_at_once() {
    let machine = Machine::new("request");
    machine.write("new_request", "FAILED");
    let mut child = machine.start(machine.run(&["--queued"], "exit 0", BUCKET));
    sleep(Duration::from_millis(3000));
    machine.write("new_request", "WAITING_FOR_RESOURCES");
    // After 0.1, 0.2, 0.4, 0.8 s.
    let asked = machine.calls("p queued-resources create");
    assert!((2..=6).contains(&asked), "{asked}");
    child.kill();

    let machine = Machine::new("until");
    machine.write("new_request", "FAILED");
    let (status, lines) = machine.end(machine.run(&["--queued", "--valid-until", "6h"], "exit 0", BUCKET));
    assert_eq!((status, lines.last().unwrap().as_str()), (1, DELETED), "{lines:#?}");
    assert_eq!(machine.calls("p queued-resources create"), 1);
}

#[test]
fn a_deletion_waits_for_what_is_being_made() {
    let machine = Machine::new("made");
    machine.write("slowly", "2");
    let mut run = machine.start(machine.run(&[], "exit 0", BUCKET));
    machine.wait_until("a creation", || machine.calls("p tpu-vm create") == 1);
    run.kill();
    let (status, lines) = machine.end(machine.verb("delete", &["--quiet"]));
    assert_eq!(
        (status, lines[0].as_str()),
        (0, "my-tpu: waiting for a command of an earlier watch to end"),
        "{lines:?}"
    );
    assert!(!machine.has("node.p"));
}

#[test]
fn a_mistyped_type_does_not_stand_in_the_way() {
    let machine = Machine::new("mistyped");
    machine.write("fail-create", "1");
    machine.write("told", "INVALID_ARGUMENT: no such type");
    let (status, lines) = machine.end(machine.run(&[], "exit 0", BUCKET));
    assert_eq!(
        (status, lines.last().unwrap().as_str()),
        (1, "it can't be created: INVALID_ARGUMENT: no such type")
    );
    let mut run = machine.verb("run", &["--type", "v3-8", "--binary", "program", "--poll", "0.1"]);
    run.args(["--", "exit 0", "--output", BUCKET]);
    assert_eq!(machine.end(run).0, 0);
}

/// A run that was started by hand since an earlier one was to be deleted is not.
#[test]
fn what_was_started_anew_goes_on() {
    let machine = Machine::new("anew");
    machine.write("fail-delete", "1000");
    machine.write("told", "PERMISSION_DENIED: told");
    let mut run = machine.start(machine.run(&["--max-restarts", "0"], "exit 1", BUCKET));
    machine.wait_until("a deletion", || machine.calls("p tpu-vm delete") > 0);
    run.kill();
    let (status, lines) = machine.end(machine.verb("train", &["--", "exit 0", "--output", BUCKET]));
    assert_eq!(status, 0, "{lines:?}");
    let (status, lines) = machine.end(machine.verb("watch", &["--poll", "0.1"]));
    assert_eq!((status, lines[0].as_str()), (0, "the run is done"), "{lines:?}");
    assert!(machine.has("node.p"));
}

/// By the program itself, as it is the one that the workers get.
#[test]
fn what_train_would_refuse_is_told_before_a_vm_is_made() {
    let machine = Machine::new("arguments");
    let run = |arguments: &[&str]| {
        let mut run = machine.verb("run", &["--type", "v2-8", "--data", "project"]);
        run.args(["--", "--output", BUCKET]).args(arguments);
        machine.end(run)
    };
    for (arguments, expected) in [
        (
            &["--train", "project", "--epohs", "3"] as &[&str],
            "after the --: unexpected argument '--epohs' found",
        ),
        (&["--train", "./train.csv"], "--train ./train.csv: no --data brings it to the workers"),
        (&["--train", "gs://b/t.csv", "--dry-run"], "--dry-run after the -- would train nothing"),
        (&[], "after the --: the following required arguments were not provided: --train <FILE>"),
    ] {
        let (status, lines) = run(arguments);
        assert!(status == 2 && lines[0].contains(expected), "{lines:?}");
    }
    assert!(!machine.has("calls"));
    // Of another program, nothing is known.
    let (status, lines) = machine.end(machine.run(&[], "exit 2 # --epohs", BUCKET));
    assert_eq!(status, 1, "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("(restart")), "{lines:?}");
}

/// What it failed with is said; and when the watch is ended, that the VM is there.
#[test]
fn a_failure_and_an_end_say_what_one_wants_to_know() {
    let machine = Machine::new("said");
    let fails = "echo 'error: no such column: row 3'; exit 1";
    let (_, lines) = machine.end(machine.run(&["--max-restarts", "0"], fails, BUCKET));
    let expected = "failed with status 1: no such column: row 3, after 0 restarts: giving up";
    assert!(lines.iter().any(|line| line == expected), "{lines:#?}");

    let machine = Machine::new("ended");
    let mut run = machine.run(&[], LONG, BUCKET);
    let child = run.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    machine.wait_until("the run", || machine.has("worker/bert-xla/run.job"));
    let interrupt = std::process::Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status();
    assert!(interrupt.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("my-tpu: if it is there, it goes on, and costs money: the same command"),
        "{said}"
    );
}
