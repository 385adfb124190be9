//! `bert-xla tpu-vm watch` and `run`: jobs that go on while TPU VMs are taken away, the API fails and connections break.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use bert_xla::run::layout;
use bert_xla::storage::MANIFEST;

use crate::common::cli::asset;
use crate::common::gcs::Gcs;
use crate::common::runs::{FLAGS, outcome, uninterrupted};
use crate::common::tpu_vm::{PROGRAM_UNDER_TEST, TpuVm, write_program};
use crate::common::{cpu_plugin, empty_folder};

/// Looks often, and waits for nothing long.
const HASTE: [&str; 6] = ["--poll", "0.2", "--patience", "20", "--connect-timeout", "2"];

/// A watch, or a `run`, that goes on beside the test.
struct Watching {
    process: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Watching {
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let (send, lines) = channel();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|line| _ = send.send(line)));
        Self { process, lines, said: vec![] }
    }

    fn catch_up(&mut self) {
        self.said.extend(self.lines.try_iter());
    }

    /// Waits until it has said this.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(300);
        while !self.said.iter().any(|line| line.contains(text)) {
            self.catch_up();
            assert!(Instant::now() < deadline, "not said: {text}: {:#?}", self.said);
            sleep(Duration::from_millis(20));
        }
    }

    fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.catch_up();
    }

    /// Its exit status, once it ends.
    #[track_caller]
    fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(400);
        while !self.has_ended() {
            self.catch_up();
            assert!(Instant::now() < deadline, "it goes on: {:#?}", self.said);
            sleep(Duration::from_millis(20));
        }
        sleep(Duration::from_millis(50));
        self.catch_up();
        self.process.wait().unwrap().code()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A TPU VM of one worker, on which the real program trains on the CPU into a bucket.
struct Rehearsal {
    vm: TpuVm,
    gcs: Gcs,
}

impl Rehearsal {
    fn new(test: &str) -> Option<Self> {
        let vm = TpuVm::none_yet(test, 1)?;
        let gcs = Gcs::start();
        let variables = gcs.variables().into_iter().map(|(name, value)| format!("export {name}='{value}'\n"));
        fs::write(vm.path("environment"), variables.collect::<String>()).unwrap();
        // All but the download of the TPU plugin.
        let program = format!(
            "#!/bin/sh\n[ \"$1\" != plugins ] || exit 0\nBERT_XLA_CPU_PLUGIN='{}' exec '{PROGRAM_UNDER_TEST}' \"$@\"\n",
            cpu_plugin().display()
        );
        write_program(&vm.path("wrapper"), &program);
        Some(Self { vm, gcs })
    }

    /// `run`, with the sample and the tiny model.
    fn run(&self, options: &[&str]) -> Command {
        let (sample, tiny) = (asset("sample.csv"), asset("tiny"));
        let data =
            ["--data", sample.to_str().unwrap(), "--data", tiny.to_str().unwrap(), "--binary", "wrapper"];
        let train = "-- --backend cpu --random-weights --max-length 24 --train sample.csv --model tiny";
        let mut command = self.vm.verb("run", &["--type", "v2-8", "--bucket", "gs://runs"]);
        command.args(data).args(HASTE).args(options).args(train.split(' ')).args(FLAGS);
        command
    }

    fn has_checkpoint(&self) -> bool {
        let state = self.gcs.state();
        state.objects.keys().any(|name| name.starts_with("run/checkpoints/") && name.ends_with(MANIFEST))
    }

    /// The run, which is as one that was never disturbed.
    #[track_caller]
    fn check_run(&self, test: &str) {
        let folder = empty_folder(test);
        for (name, object) in &self.gcs.state().objects {
            let path = folder.join(name.strip_prefix("run/").unwrap());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &object.bytes).unwrap();
        }
        assert_eq!(&outcome(&folder), uninterrupted().1);
    }

    /// Never more than one VM, none that was alive deleted but at the end, and none left.
    #[track_caller]
    fn check_machines(&self) {
        let state = self.vm.api.state();
        assert!(state.nodes.is_empty() && state.queued.is_empty());
        assert_eq!(state.most_alive, 1);
        assert_eq!(state.deleted_alive, ["my-tpu"], "deleted while it was alive");
    }

    fn log(&self) -> PathBuf {
        self.vm.path("my-tpu/run.log")
    }
}

#[test]
fn one_command_does_it_all() {
    let Some(rehearsal) = Rehearsal::new("run_all") else { return };
    let mut watching = Watching::start(&mut rehearsal.run(&[]));
    assert_eq!(watching.end(), Some(0), "{:#?}", watching.said);
    let lines = watching.said.iter().map(|line| line.split_once("Z my-tpu: ").unwrap().1).collect::<Vec<_>>();
    let (first, last) = (&lines[..3], &lines[lines.len() - 4..]);
    assert_eq!(first, ["not there: creating it", "setting it up", "not started there: starting the run"]);
    assert_eq!(
        last,
        [
            "the run is done",
            "its log is in my-tpu; the run is gs://runs/run",
            "deleting the VM",
            "deleted: it costs nothing any more"
        ]
    );
    rehearsal.check_run("run_all_outcome");
    rehearsal.check_machines();
    assert!(fs::read_to_string(rehearsal.log()).unwrap().contains("Number of replicas: 1"));
    // There is nothing to watch any more.
    assert_eq!(rehearsal.vm.run("watch", &[]).0, 2);
}

/// The very commands that a dry run prints, pasted into a shell.
#[test]
fn what_a_dry_run_prints_does_the_same() {
    let Some(rehearsal) = Rehearsal::new("run_pasted") else { return };
    let dry = rehearsal.run(&["--dry-run"]).output().unwrap();
    assert!(dry.status.success());
    assert!(rehearsal.vm.api.take_requests().is_empty());
    let printed = String::from_utf8(dry.stdout).unwrap();
    let (until_trained, then) = printed.split_once("# looks again and again").unwrap();
    let bash = |script: &str| {
        let output = rehearsal.vm.command("bash").args(["-ec", script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    bash(until_trained);
    rehearsal.vm.wait_for(": done");
    // Not to be pasted with what comes before.
    bash(
        &then
            .lines()
            .skip(1)
            .map(|line| format!("{}\n", line.strip_prefix("# ").unwrap()))
            .collect::<String>(),
    );
    rehearsal.check_run("run_pasted_outcome");
    rehearsal.check_machines();
}

#[test]
fn a_job_outlives_its_machines_its_watch_and_the_api() {
    // Such as 0..20: one that is disturbed again and again takes three minutes.
    let seeds = std::env::var("BERT_XLA_WATCHES").ok().map(|seeds| {
        let (first, end) = seeds.split_once("..").expect("a range of seeds");
        first.parse().unwrap()..end.parse().unwrap()
    });
    let most = if seeds.is_some() { 3 } else { 1 };
    for seed in seeds.unwrap_or(0..1) {
        let Some(rehearsal) = Rehearsal::new("watch_random") else { return };
        let mut random = fastrand::Rng::with_seed(seed);
        let queued: &[&str] = if random.bool() { &["--queued"] } else { &[] };
        rehearsal.vm.api.state().without_stock = random.usize(..3);
        let mut watching = Watching::start(&mut rehearsal.run(queued));
        let mut log = vec![];
        let (mut preemptions, mut kills, mut failures) = (0, 0, 0);
        let deadline = Instant::now() + Duration::from_secs(1200);
        while !watching.has_ended() {
            assert!(Instant::now() < deadline, "{seed}: {log:?} {:#?}", watching.said);
            // Early in a run, so that it has not ended yet.
            let is_due =
                preemptions < most && rehearsal.has_checkpoint() && rehearsal.vm.api.is_ready("my-tpu");
            sleep(Duration::from_millis(random.u64(..if is_due { 1000 } else { 4000 })));
            watching.catch_up();
            let event = random.u32(..6);
            log.push(event);
            match event {
                // Not so often that it never gets anywhere: a set-up takes some calls of gcloud.
                0 | 5 if is_due => {
                    preemptions += 1;
                    let how =
                        [None, Some("PREEMPTED"), Some("TERMINATED"), Some("STOPPED")][random.usize(..4)];
                    rehearsal.vm.api.preempt("my-tpu", how);
                    rehearsal.vm.api.state().without_stock = random.usize(..2);
                }
                // Before it has begun, it ends with what the API says.
                1 if failures < 4 * most && !watching.said.is_empty() => {
                    failures += 1;
                    let status = [401, 403, 429, 500][random.usize(..4)];
                    rehearsal.vm.api.fail(
                        ["GET", "POST", "DELETE"][random.usize(..3)],
                        "locations",
                        status,
                        1,
                    );
                }
                2 => rehearsal.vm.cut_connections(),
                3 if kills < most => {
                    kills += 1;
                    watching.kill();
                    watching = Watching::start(&mut rehearsal.run(queued));
                }
                _ => {}
            }
        }
        assert_eq!(watching.end(), Some(0), "{seed}: {log:?} {:#?}", watching.said);
        rehearsal.check_run("watch_random_outcome");
        let state = rehearsal.vm.api.state();
        assert!(state.nodes.is_empty() && state.queued.is_empty());
        assert_eq!(state.most_alive, 1);
        // The last one, unless it was taken away just then.
        assert!(state.deleted_alive.len() <= 1, "{:?}", state.deleted_alive);
        drop(state);
        eprintln!("{}", watching.said.join("\n"));
        eprintln!("{seed}: {preemptions} preemptions, {kills} kills, {} events", log.len());
    }
}

#[test]
fn a_second_watch_is_refused_and_verbs_that_it_would_undo() {
    let Some(rehearsal) = Rehearsal::new("watch_twice") else { return };
    rehearsal.vm.api.state().without_stock = 1000;
    let mut watching = Watching::start(&mut rehearsal.run(&[]));
    watching.wait_for("that failed: There is no more capacity in the zone");
    for (verb, arguments) in [
        ("watch", &[] as &[&str]),
        ("create", &["--type", "v2-8"]),
        ("setup", &["--binary", "program"]),
        ("train", &["--", "a"]),
        ("stop", &[]),
        ("delete", &["--quiet"]),
    ] {
        let (status, _, stderr) = rehearsal.vm.run(verb, arguments);
        assert_eq!(status, 1);
        assert!(
            stderr
                .starts_with("error: my-tpu is watched, or changed, by another process here: end that first"),
            "{stderr}"
        );
    }
    watching.kill();
    // As another TPU VM, it would be two.
    let (status, _, stderr) = rehearsal.vm.run("run", &["--type", "v3-8", "--binary", "program", "--", "a"]);
    assert_eq!(status, 2);
    assert!(
        stderr.contains("was begun with --type v2-8 --version tpu-ubuntu2204-base: give the same options"),
        "{stderr}"
    );
}

/// Commands may outlive the watch that has started them: a deletion, say, which would meet the next VM.
#[test]
fn a_watch_waits_for_the_commands_of_an_earlier_one() {
    let Some(rehearsal) = Rehearsal::new("watch_orphan") else { return };
    let path = std::env::var_os("PATH").unwrap();
    let real =
        std::env::split_paths(&path).map(|folder| folder.join("gcloud")).find(|file| file.is_file()).unwrap();
    // The first `create` hangs.
    let gcloud = format!(
        "#!/bin/sh\ncase \"$*\" in *' create '*) [ -e '{0}/hung' ] || {{ >'{0}/hung'; sleep 3; }} ;; esac\n\
         exec '{1}' \"$@\"\n",
        rehearsal.vm.folder.display(),
        real.display()
    );
    write_program(&rehearsal.vm.path("bin/gcloud"), &gcloud);
    let mut first = Watching::start(&mut rehearsal.run(&[]));
    first.wait_for("creating it");
    while !rehearsal.vm.path("hung").exists() {
        sleep(Duration::from_millis(10));
    }
    first.kill();
    let mut second = Watching::start(&mut rehearsal.run(&[]));
    assert_eq!(second.end(), Some(0), "{:#?}", second.said);
    // The one that outlived it has made the VM.
    assert!(!second.said.iter().any(|line| line.contains("creating it")), "{:#?}", second.said);
    rehearsal.check_machines();
}

/// With the stand-in for the program, which ends as it is told to.
fn ends(vm: &TpuVm, command: &str, options: &[&str]) -> Watching {
    let all = [&["--type", "v2-8", "--binary", "program"], &HASTE as &[&str], options].concat();
    let mut run = vm.verb("run", &all);
    Watching::start(run.args(["--", "ends", command, "--output", "run"]))
}

#[test]
fn a_program_that_fails_is_started_again_so_many_times() {
    let Some(vm) = TpuVm::none_yet("watch_fails", 2) else { return };
    let mut watching = ends(&vm, "exit 3", &["--max-restarts", "2"]);
    assert_eq!(watching.end(), Some(1), "{:#?}", watching.said);
    let count = |text: &str| watching.said.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("starting the run"), 3, "{:#?}", watching.said);
    assert_eq!(count("failed with status 3: starting the run (restart 2 of 2)"), 1, "{:#?}", watching.said);
    assert_eq!(count("failed with status 3, after 2 restarts: giving up"), 1);
    assert_eq!(count("a preemption loses it; gs://BUCKET/... would keep it"), 1);
    let log = fs::read_to_string(vm.path("my-tpu/run.log")).unwrap();
    assert_eq!(log.matches("[ends]").count(), 3, "{log}");
    assert!(vm.api.state().nodes.is_empty(), "what can't be used still costs money");
}

/// Its run is here, then, with what it goes on from.
#[test]
fn hours_that_are_over_stop_the_run_and_the_bill() {
    let Some(vm) = TpuVm::none_yet("watch_hours", 1) else { return };
    let mut watching = ends(&vm, "trap stop=yes TERM", &[]);
    watching.wait_for("running on 1 of 1 workers");
    watching.kill();
    // Those before count.
    let mut watching = ends(&vm, "trap stop=yes TERM", &["--max-hours", "0.0001"]);
    assert_eq!(watching.end(), Some(75), "{:#?}", watching.said);
    let last = watching
        .said
        .iter()
        .rev()
        .take(4)
        .map(|line| line.split_once("my-tpu: ").unwrap().1)
        .collect::<Vec<_>>();
    assert_eq!(last[0], "deleted: it costs nothing any more");
    assert_eq!(last[2], "the run, with its log, is in my-tpu");
    assert!(last[3].ends_with(" hours are over: asking the run to save and end"), "{last:?}");
    assert_eq!(vm.list("my-tpu/run/checkpoints"), ["step-7", "step-9"]);
    assert!(vm.read("my-tpu/run.log").contains("Stopped (SIGTERM)"));
    assert!(vm.api.state().nodes.is_empty());
}

#[test]
fn what_can_not_be_made_is_given_up() {
    let Some(vm) = TpuVm::none_yet("watch_invalid", 1) else { return };
    vm.api.fail("POST", "nodes", 400, 1);
    let mut watching = ends(&vm, "exit 0", &[]);
    assert_eq!(watching.end(), Some(1));
    let last = watching.said.last().unwrap();
    assert!(last.contains("it can't be created: INVALID_ARGUMENT: told by the test"), "{last}");
    assert!(!Path::new(&vm.path("my-tpu")).exists());
    // What is on its way for too long.
    let mut watching = ends(&vm, "exit 0", &["--longest-wait", "0.0005"]);
    watching.wait_for("setting it up");
    watching.kill();
    vm.api.state().nodes.get_mut("my-tpu").unwrap().state = "REPAIRING".to_owned();
    let mut watching = ends(&vm, "exit 0", &["--longest-wait", "0.0005"]);
    assert_eq!(watching.end(), Some(1));
    let last = watching.said.last().unwrap();
    assert!(
        last.contains("still REPAIRING, HEALTHY: giving up; the VM is left as it is, and may cost"),
        "{last}"
    );
    assert_eq!(vm.api.state().nodes.len(), 1);
}

/// The one that writes the run need not be the first.
#[test]
fn the_chief_is_found_wherever_it_is() {
    let Some(vm) = TpuVm::none_yet("chief", 3) else { return };
    vm.works("create", &["--type", "v2-32"]);
    let vm = vm.set_up();
    let chief = "case $BERT_XLA_CHIEF_FILE in *tpu_vm_chief/2/*) hostname >\"$BERT_XLA_CHIEF_FILE\"; echo I am it ;; esac; exit 0";
    vm.works("train", &["--", "ends", chief, "--output", "run"]);
    vm.wait_for(": done");
    assert_eq!(vm.works("status", &[]).matches(" (chief): done\n").count(), 1);
    assert!(vm.works("logs", &["--no-follow"]).contains("I am it\n"));
    // Where it can't be asked for, no other one is taken for it.
    vm.api.fail("GET", "nodes", 401, 1);
    let (status, _, stderr) = vm.run("logs", &["--no-follow"]);
    assert_eq!(status, 1);
    assert!(
        stderr.starts_with("error: the worker that writes the run is not known: UNAUTHENTICATED"),
        "{stderr}"
    );
    fs::write(vm.path("2/bert-xla/run/checkpoints/step-7/history.jsonl"), "the chief's\n").unwrap();
    vm.works("fetch", &[]);
    assert_eq!(vm.read("my-tpu/run/history.jsonl"), "the chief's\n");
    assert!(layout::FILES.contains(&"history.jsonl"));
}

/// As a program that is built for another machine: it costs money while it is tried.
#[test]
fn what_workers_refuse_is_given_up() {
    let Some(vm) = TpuVm::none_yet("watch_refused", 1) else { return };
    write_program(&vm.path("program"), "#!/bin/sh\nexit 1\n");
    let mut watching = ends(&vm, "exit 0", &[]);
    assert_eq!(watching.end(), Some(1), "{:#?}", watching.said);
    let count = |text: &str| watching.said.iter().filter(|line| line.contains(text)).count();
    assert_eq!(
        (count("setting it up"), count(": the program does not run on ")),
        (5, 5),
        "{:#?}",
        watching.said
    );
    assert_eq!(count("workers refuse it again and again: giving up"), 1);
    assert!(vm.api.state().nodes.is_empty());
}
