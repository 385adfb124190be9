//! A TPU VM that is two folders of this machine, and the `gcloud` that reaches it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::empty_folder;

pub const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/tpu-vm");

/// Stands in for gcloud: each worker's home folder is here, and a command runs in it as sshd would run it.
pub const GCLOUD: &str = r#"#!/usr/bin/env bash
printf '%q ' "$@" >>"$TPU_VM/calls"; echo >>"$TPU_VM/calls"
verb=$4 workers=0 command='' paths=() status=0
for argument in "${@:5}"; do
    case $argument in
        --worker=all) workers='0 1' ;;
        --worker=*) workers=${argument#*=} ;;
        --command=*) command=${argument#*=} ;;
        --*) ;;
        *) paths+=("$argument") ;;
    esac
done
for worker in $workers; do
    home=$TPU_VM/$worker
    case $verb in
        ssh) (cd "$home" && HOME=$home exec bash -c "$command") || status=$? ;;
        scp) cp -r "${paths[@]/#my-tpu:/$home/}" || status=$? ;;
    esac
done
exit $status
"#;

/// Stands in for the program: writes a run of two checkpoints, prints its arguments, and ends with status 3 when a file
/// `go` appears. After TERM, it says what was saved, and ends with status 75. `train stubborn` ignores TERM, `train
/// slow` saves until `go` appears, `train early` doesn't listen yet, and `train ends COMMAND` runs that.
pub const PROGRAM: &str = r#"#!/bin/sh
stop=
case "$1" in
    --version) echo bert-xla 0 ;;
    plugins) echo "$@" >installed ;;
    train)
        case "$2" in
            stubborn) trap '' TERM ;;
            early) ;;
            *) trap stop=yes TERM ;;
        esac
        for step in 7 9; do
            mkdir -p run/checkpoints/step-$step
            for file in model.safetensors history.jsonl first_moments.safetensors; do
                echo "$file of $step" >run/checkpoints/step-$step/$file
            done
        done
        cat >run/run.json <<'END'
{
  "checkpoint": "checkpoints/step-7",
  "newest": "checkpoints/step-9",
  "files": [
    {
      "name": "history.jsonl"
    },
    {
      "name": "model.safetensors"
    }
  ]
}
END
        printf '[%s]\n' "$@"
        [ "$2" != ends ] || eval "$3"
        waited=0
        until [ -e go ] || [ $stop ] || [ $waited -gt 600 ]; do sleep 0.05; waited=$((waited + 1)); done
        [ $stop ] || exit 3
        [ "$2" != slow ] || until [ -e go ]; do sleep 0.05; done
        echo 'Stopped (SIGTERM) after step 7, which is saved in run; the same command goes on from there'
        exit 75 ;;
esac
"#;

pub const KILLED: &str = ": killed, or the VM restarted";
/// What worker and program say of a run that was stopped.
pub const STOPPED: &str = ": stopped and saved, exit status 75: Stopped (SIGTERM) after step 7, which is saved in run; \
                           the same command goes on from there\n";

/// A TPU VM of two workers, and the gcloud that reaches it.
pub struct TpuVm(pub PathBuf);

impl TpuVm {
    pub fn new(test: &str) -> Self {
        let folder = empty_folder(&format!("tpu_vm_{test}"));
        for worker in ["0", "1"] {
            fs::create_dir(folder.join(worker)).unwrap();
        }
        fs::create_dir(folder.join("bin")).unwrap();
        write_program(&folder.join("bin/gcloud"), GCLOUD);
        write_program(&folder.join("program"), PROGRAM);
        Self(folder)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Anything, with this gcloud on its path.
    pub fn command(&self, program: &str) -> Command {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(program);
        command.env("PATH", path).env("TPU_VM", &self.0).env_remove("CLOUDSDK_COMPUTE_ZONE");
        command.current_dir(&self.0).stdin(Stdio::null());
        command
    }

    /// `scripts/tpu-vm VERB my-tpu --zone z ARGUMENTS`: exit status, stdout and stderr.
    pub fn run(&self, verb: &str, arguments: &[&str]) -> (i32, String, String) {
        output(self.command(SCRIPT).args([verb, "my-tpu", "--zone", "z"]).args(arguments))
    }

    #[track_caller]
    pub fn works(&self, verb: &str, arguments: &[&str]) -> String {
        let (status, stdout, stderr) = self.run(verb, arguments);
        assert_eq!(status, 0, "{stdout}{stderr}");
        stdout
    }

    /// Sets up the stand-in for the program.
    #[track_caller]
    pub fn set_up(self) -> Self {
        self.works("setup", &["--binary", "program"]);
        self
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Every call of gcloud so far, a line each.
    pub fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    /// Lets the program end on both workers.
    pub fn go(&self) {
        for worker in ["0", "1"] {
            fs::write(self.path(&format!("{worker}/bert-xla/go")), "").unwrap();
        }
    }

    /// What is in a folder, sorted.
    pub fn list(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Waits for a report of both workers.
    #[track_caller]
    pub fn wait_for(&self, report: &str) {
        let both = |status: &str| status.lines().filter(|line| line.contains(report)).count() == 2;
        wait_until(|| self.works("status", &[]), both);
    }

    /// Waits until both workers' programs have printed this: they listen for signals then, and have written the run.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        for worker in ["0", "1"] {
            let log = format!("{worker}/bert-xla/run.log");
            wait_until(|| self.read(&log), |log| log.contains(text));
        }
    }
}

/// A test that fails leaves no run behind.
impl Drop for TpuVm {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.command(SCRIPT).args(["stop", "my-tpu", "--zone", "z", "--now"]).output();
        }
    }
}

/// Waits, for at most 30 s, until what is `read` is as wanted.
#[track_caller]
pub fn wait_until(read: impl Fn() -> String, wanted: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = read();
        if wanted(&text) {
            return;
        }
        assert!(Instant::now() < deadline, "{text}");
        thread::sleep(Duration::from_millis(50));
    }
}

pub fn write_program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

pub fn output(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("an exit status"), text(stdout), text(stderr))
}
