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

/// Stands in for the program: prints its arguments, writes a run, and ends with status 3 when a file `go` appears.
/// `train stubborn` ignores TERM.
pub const PROGRAM: &str = r#"#!/bin/sh
case "$1" in
    --version) echo bert-xla 0 ;;
    plugins) echo "$@" >installed ;;
    train)
        [ "$2" != stubborn ] || trap '' TERM
        printf '[%s]\n' "$@"
        mkdir -p run && echo '{}' >run/history.jsonl
        waited=0
        until [ -e go ] || [ $waited -gt 600 ]; do sleep 0.05; waited=$((waited + 1)); done
        exit 3 ;;
esac
"#;

pub const KILLED: &str = ": ended without an exit status: killed, or the VM restarted";

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

    /// Waits for a report of both workers.
    #[track_caller]
    pub fn wait_for(&self, report: &str) {
        let both = |status: &str| status.lines().filter(|line| line.contains(report)).count() == 2;
        wait_until(|| self.works("status", &[]), both);
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
