//! A stand-in for `gcloud`, for what the real one and its API can't be brought to do at a certain moment: calls that fail by
//! number, files that go meanwhile, a project that is changed. Its TPU VM is a folder, in which the workers' lines are run.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::empty_folder;
use super::tpu_vm::{PROGRAM_UNDER_TEST, end_processes_in, output, write_program};

/// Of each project, `node.PROJECT` and `request.PROJECT` hold states. `fail-VERB` says how many calls of a verb fail.
const GCLOUD: &str = r#"#!/bin/bash
cd "${0%/bin/gcloud}" || exit
take() { n=$(cat "$1" 2>/dev/null); [ "${n:-0}" -gt 0 ] && echo $((n - 1)) >"$1"; }
fail() { echo "ERROR: (gcloud.$1) $2" >&2; exit 1; }
project=$(cat project)
[ "$1" != config ] || { echo "$project"; exit; }
paths=()
for word in "${@:5}"; do case $word in
    --project=*) project=${word#*=} ;;
    --command=*) command=${word#*=} ;;
    -*) ;;
    my-tpu:*) paths+=("worker/${word#*:}") ;;
    *) paths+=("$word") ;;
esac; done
echo "$project $3 $4" >>calls
node=node.$project it=node.$project
[ "$3" = tpu-vm ] || it=request.$project
case $4 in
    ssh | scp) ! take "fail-$4" || fail "$4" '[/usr/bin/ssh] exited with return code [255].' ;;
    *) ! take "fail-$4" || fail "$4" "$(cat told 2>/dev/null || echo 'UNAVAILABLE: told')" ;;
esac
case "$3 $4" in
    'tpu-vm create') sleep "$(cat slowly 2>/dev/null || echo 0)"; rm -rf worker; mkdir worker; echo READY >"$it" ;;
    *create) cat new_request >"$it" ;;
    *) [ -e "$it" ] || fail "$4" 'NOT_FOUND: told' ;;
esac
state=$(cat "$it")
case "$3 $4" in
    'tpu-vm describe')
        echo "{\"state\": \"$state\", \"networkEndpoints\":
            [{\"ipAddress\": \"10.0.0.1\", \"accessConfig\": {\"externalIp\": \"192.0.2.1\"}}]}" ;;
    *describe) echo "{\"state\": {\"state\": \"$state\"}}" ;;
    *delete) echo "$project $state" >>deleted; rm -f "$it" "$node" ;;
    'tpu-vm ssh')
        cd worker && HOME=$PWD SSH_CONNECTION='192.0.2.9 1 10.0.0.1 22' exec bash -c "$command" </dev/null ;;
    'tpu-vm scp') exec cp -r "${paths[@]}" ;;
esac
"#;

/// The program: `train` runs its first argument.
const PROGRAM: &str = "#!/bin/sh\n[ \"$1\" != train ] || eval \"$2\"\n";

pub struct Machine {
    pub folder: PathBuf,
}

impl Machine {
    pub fn new(test: &str) -> Self {
        let folder = empty_folder(&format!("gcloud_{test}"));
        fs::create_dir(folder.join("bin")).unwrap();
        write_program(&folder.join("bin/gcloud"), GCLOUD);
        write_program(&folder.join("program"), PROGRAM);
        let machine = Self { folder };
        machine.write("project", "p");
        machine
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), format!("{text}\n")).unwrap();
    }

    /// Nothing of what isn't there.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    pub fn has(&self, name: &str) -> bool {
        self.folder.join(name).exists()
    }

    /// How often this was called, such as `p tpu-vm create`.
    pub fn calls(&self, call: &str) -> usize {
        self.read("calls").lines().filter(|line| *line == call).count()
    }

    #[track_caller]
    pub fn wait_until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}");
            sleep(Duration::from_millis(10));
        }
    }

    pub fn verb(&self, verb: &str, arguments: &[&str]) -> Command {
        let path = format!("{}:{}", self.folder.join("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(PROGRAM_UNDER_TEST);
        command.args(["tpu-vm", verb, "my-tpu", "--zone", "z"]).args(arguments).current_dir(&self.folder);
        command.env("PATH", path).env("HOME", &self.folder).env_remove("XDG_STATE_HOME").stdin(Stdio::null());
        command
    }

    /// `run`, which looks often.
    pub fn run(&self, options: &[&str], command: &str, output: &str) -> Command {
        let common = ["--type", "v2-8", "--binary", "program", "--poll", "0.1", "--patience", "20"];
        let mut run = self.verb("run", &common);
        run.args(options).args(["--", command, "--output", output]);
        run
    }

    /// Goes on beside the test.
    pub fn start(&self, mut command: Command) -> Started {
        Started(command.stdout(Stdio::null()).spawn().unwrap())
    }

    /// Its exit status, and the lines that it said, without the time.
    pub fn end(&self, mut command: Command) -> (i32, Vec<String>) {
        let (status, stdout, stderr) = output(&mut command);
        let line = |line: &str| match line.split_once("Z my-tpu: ") {
            Some((_, line)) => line.to_owned(),
            None => line.to_owned(),
        };
        (status, stdout.lines().chain(stderr.lines()).map(line).collect())
    }
}

/// A process that doesn't outlive the test.
pub struct Started(Child);

impl Started {
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    pub fn end(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end_processes_in(&self.folder.join("worker"));
    }
}
