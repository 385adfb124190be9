//! Runs that `bert-xla tpu-vm` starts, stops and fetches, through the real gcloud and sshd.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use bert_xla::run::Run;

use crate::common::cli::{asset, json_lines};
use crate::common::cpu_plugin;
use crate::common::tpu_vm::{KILLED, STOPPED, TpuVm, output, wait_until, write_program};

#[test]
fn a_run_outlives_its_connection_and_reports_its_end() {
    let Some(vm) = TpuVm::new("run") else { return };
    let (status, _, stderr) = vm.run("status", &[]);
    assert_eq!((status, stderr.matches(": no program: run setup first\n").count()), (1, 2), "{stderr}");
    fs::write(vm.path("it's data.csv"), "id,text,label\n").unwrap();
    vm.works("setup", &["--binary", "program", "--data", "it's data.csv"]);
    vm.wait_for(": no run yet");
    for worker in ["0", "1"] {
        assert_eq!(vm.read(&format!("{worker}/bert-xla/it's data.csv")), "id,text,label\n");
        assert_eq!(vm.read(&format!("{worker}/bert-xla/installed")), "plugins install tpu\n");
    }

    // This returns although the program goes on: nothing of it holds the connection's stdout or stderr.
    let arguments = ["--labels", r#"it's; "a b" $HOME `id` \ %s"#, "", "two\nlines"];
    let started = vm.works("train", &[&["--"], &arguments as &[&str]].concat());
    assert_eq!(started.matches(": started, pid ").count(), 2, "{started}");
    vm.wait_for(": running, pid ");
    let pid = vm.read("0/bert-xla/run.pid").trim().to_owned();
    // Fields of /proc/PID/stat after the name: state, parent, process group, session, terminal. A session of its
    // own, without a terminal, gets no hangup signal.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(fields[2..5], [&pid, &pid, "0"], "{stat}");

    let log = "[train]\n[--labels]\n[it's; \"a b\" $HOME `id` \\ %s]\n[]\n[two\nlines]\n";
    let (status, _, stderr) = vm.run("train", &["--", "another"]);
    assert_eq!(status, 1);
    assert_eq!(stderr.matches(&format!(": a run is going on, pid {pid}: wait")).count(), 1, "{stderr}");
    assert_eq!(vm.works("logs", &["--no-follow", "--worker", "1"]), log);

    // Following ends with the run, and as it does.
    let logs = thread::scope(|scope| {
        let logs = scope.spawn(|| vm.run("logs", &[]));
        thread::sleep(Duration::from_millis(300));
        assert!(!logs.is_finished());
        vm.go();
        logs.join().unwrap()
    });
    assert_eq!((logs.0, logs.1.as_str()), (3, log), "{}", logs.2);
    assert!(logs.2.contains(": failed, exit status 3"), "{}", logs.2);
    vm.wait_for(": failed, exit status 3");

    // The lock is free again, and the log is that of both.
    vm.works("train", &["--", "another"]);
    vm.wait_for(": failed, exit status 3");
    let both = vm.works("logs", &["--no-follow"]);
    let again = both.strip_prefix(log).expect("the first run's log");
    assert!(again.starts_with("\n--- started again on 2"), "{again}");
    assert!(again.ends_with(" UTC\n[train]\n[another]\n"), "{again}");
}

#[test]
fn status_tells_how_a_run_has_ended() {
    let Some(vm) = TpuVm::new("status") else { return };
    let vm = vm.set_up();
    for (end, report, status) in [
        ("exit 0", ": done\n", 0),
        ("exit 1", ": failed, exit status 1\n", 1),
        ("exit 2", ": failed, exit status 2\n", 2),
        ("exit 101", ": failed, exit status 101\n", 101),
        // As where memory runs out.
        ("kill -s KILL $$", ": killed by SIGKILL\n", 137),
        ("kill -s SEGV $$", ": killed by SIGSEGV\n", 139),
        ("exit 75", ": stopped and saved, exit status 75\n", 75),
        // With all that the run is, so that nothing of it is left to tell.
        ("kill -s KILL 0", ": killed, or the VM restarted\n", 1),
    ] {
        vm.works("train", &["--", "ends", end]);
        vm.wait_for(report.trim_end());
        let reports = vm.works("status", &[]);
        assert_eq!(reports.matches(report).count(), 2, "{end}: {reports}");
        assert_eq!(vm.run("logs", &[]).0, status, "{end}");
    }
}

#[test]
fn stop_waits_until_the_run_has_saved() {
    let Some(vm) = TpuVm::new("stop") else { return };
    let vm = vm.set_up();
    vm.works("train", &["--", "slow"]);
    vm.wait_for_log("[slow]");
    let (status, stdout, stderr) = vm.run("stop", &["--wait", "1"]);
    assert_eq!((status, stdout.as_str()), (1, ""), "{stderr}");
    for line in [
        ": asked to stop; waiting up to 1 s until it has saved and ended\n",
        ": after 1 s the run still saves: stop again to wait on; stop --now kills it, and loses the steps since the last \
         checkpoint\n",
    ] {
        assert_eq!(stderr.matches(line).count(), 2, "{stderr}");
    }
    vm.wait_for(": running, pid ");

    // It ends once `stop` has begun to wait for it.
    write_program(
        &vm.path("worker-bin/flock"),
        "#!/bin/sh\ncase \"$*\" in *'--timeout 5 '*) touch go ;; esac\nPATH=${PATH#*:} exec flock \"$@\"\n",
    );
    let (status, stdout, stderr) = vm.run("stop", &[]);
    assert_eq!((status, stdout.matches(STOPPED).count()), (0, 2), "{stdout}{stderr}");
    assert_eq!(stderr.matches(": asked to stop; waiting up to 300 s ").count(), 2, "{stderr}");
    assert_eq!(vm.run("logs", &[]).0, 75);
    // There is nothing to stop any more.
    assert_eq!(vm.works("stop", &[]), stdout);
}

/// However slowly a run starts, `stop` right after `train` finds it.
#[test]
fn stop_ends_a_run_that_has_hardly_started() {
    let Some(vm) = TpuVm::new("early") else { return };
    let vm = vm.set_up();
    write_program(
        &vm.path("worker-bin/setsid"),
        "#!/bin/sh\nsleep 0.3\nPATH=${PATH#*:} exec setsid \"$@\"\n",
    );
    for arguments in [&[] as &[&str], &["--now"]] {
        vm.works("train", &["--", "early"]);
        let stopped = vm.works("stop", arguments);
        assert_eq!(stopped.matches(": killed by SIGTERM\n").count(), 2, "{stopped}");
        assert_eq!(vm.run("logs", &[]).0, 143);
    }
}

#[test]
fn a_stopped_or_killed_run_goes_on_with_the_same_command() {
    let Some(vm) = TpuVm::new("again") else { return };
    let vm = vm.set_up();
    let train = ["--", "--output", "run"];
    vm.works("train", &train);
    vm.wait_for_log("[run]");
    let stopped = vm.works("stop", &[]);
    assert_eq!(stopped.matches(STOPPED).count(), 2, "{stopped}");
    let first = vm.works("logs", &["--no-follow"]);

    vm.works("train", &train);
    vm.wait_for(": running, pid ");
    for worker in ["0", "1"] {
        let pid = vm.read(&format!("{worker}/bert-xla/run.pid"));
        let group = format!("-{}", pid.trim());
        assert!(Command::new("kill").args(["-s", "KILL", "--", &group]).status().unwrap().success());
    }
    vm.wait_for(KILLED);

    vm.works("train", &train);
    vm.go();
    vm.wait_for(": failed, exit status 3");
    let log = vm.works("logs", &["--no-follow"]);
    assert!(log.starts_with(&first), "{log}");
    assert_eq!(log.matches("--- started again on ").count(), 2, "{log}");
}

#[test]
fn stop_now_kills_what_ignores_term_and_fails_if_the_run_goes_on() {
    let Some(vm) = TpuVm::new("stubborn") else { return };
    let vm = vm.set_up();
    vm.works("train", &["--", "stubborn"]);
    // Once it prints, it ignores TERM.
    wait_until(|| vm.read("0/bert-xla/run.log"), |log| log.contains("stubborn"));
    fs::write(vm.path("1/bert-xla/go"), "").unwrap();
    let stopped = vm.works("stop", &["--now"]);
    assert!(stopped.contains(KILLED), "{stopped}");
    assert!(stopped.contains(": failed, exit status 3"), "{stopped}");

    // The lock is held by what no signal to the run's processes ends.
    let lock = fs::File::create(vm.path("1/bert-xla/run.lock")).unwrap();
    lock.lock().unwrap();
    for arguments in [&["--now"] as &[&str], &[]] {
        let (status, stdout, stderr) = vm.run("stop", arguments);
        assert_eq!((status, stdout.lines().count()), (1, 1), "{stdout}{stderr}");
        assert!(stderr.contains(": the run did not stop: see there what it is with fuser -v "), "{stderr}");
    }
}

#[test]
fn fetch_brings_the_model_and_with_checkpoints_all_that_training_goes_on_from() {
    let Some(vm) = TpuVm::new("fetch") else { return };
    let vm = vm.set_up();
    vm.works("train", &["--", "--output", "run"]);
    vm.go();
    vm.wait_for(": failed, exit status 3");
    // Neither of them is named by run.json.
    fs::create_dir(vm.path("0/bert-xla/run/checkpoints/step-8")).unwrap();
    fs::write(vm.path("0/bert-xla/run/.model.safetensors.part"), "half").unwrap();

    vm.works("fetch", &[]);
    assert_eq!(vm.list("my-tpu"), ["run", "run.log"]);
    assert_eq!(vm.list("my-tpu/run"), ["history.jsonl", "model.safetensors", "run.json"]);
    assert_eq!(vm.read("my-tpu/run/model.safetensors"), "model.safetensors of 7\n");
    assert_eq!(vm.read("my-tpu/run.log"), vm.read("0/bert-xla/run.log"));

    vm.works("fetch", &["--checkpoints"]);
    assert_eq!(vm.list("my-tpu/run"), ["checkpoints", "history.jsonl", "model.safetensors", "run.json"]);
    assert_eq!(vm.list("my-tpu/run/checkpoints"), ["step-7", "step-9"]);
    for step in ["step-7", "step-9"] {
        let files = ["first_moments.safetensors", "history.jsonl", "model.safetensors"];
        assert_eq!(vm.list(&format!("my-tpu/run/checkpoints/{step}")), files);
    }
    // They came once.
    let inode = |file: &str| fs::metadata(vm.path("my-tpu/run").join(file)).unwrap().ino();
    assert_eq!(inode("model.safetensors"), inode("checkpoints/step-7/model.safetensors"));

    // A newer epoch: the model is its, and what was fetched of the earlier one stays.
    let run = vm.read("0/bert-xla/run/run.json").replace("step-7", "step-9");
    fs::write(vm.path("0/bert-xla/run/run.json"), run).unwrap();
    vm.works("fetch", &[]);
    assert_eq!(vm.read("my-tpu/run/model.safetensors"), "model.safetensors of 9\n");
    assert_eq!(vm.read("my-tpu/run/checkpoints/step-7/model.safetensors"), "model.safetensors of 7\n");
    assert!(!vm.path("0/bert-xla/run/.fetch").exists());

    // A run that has come there without its checkpoints.
    fs::remove_dir_all(vm.path("0/bert-xla/run/checkpoints")).unwrap();
    for file in ["model.safetensors", "history.jsonl"] {
        fs::write(vm.path("0/bert-xla/run").join(file), "the run's own\n").unwrap();
    }
    for (folder, arguments) in [("a", &[] as &[&str]), ("b", &["--checkpoints"])] {
        vm.works("fetch", &[&[folder], arguments].concat());
        assert_eq!(vm.list(&format!("{folder}/run")), ["history.jsonl", "model.safetensors", "run.json"]);
        assert_eq!(vm.read(&format!("{folder}/run/model.safetensors")), "the run's own\n");
    }
}

/// Members that are listed, each as a run, and what is told of all.
#[test]
fn fetch_brings_an_ensemble() {
    let Some(vm) = TpuVm::none_yet("fetch_ensemble", 1) else { return };
    vm.works("create", &["--type", "v2-8"]);
    let vm = vm.set_up();
    let members = "mkdir -p all/members; for m in seed-0 seed-1 seed-2; do cp -r run all/members/$m; done; \
                   printf '{\n  \"members\": [\n    \"members/seed-0\",\n    \"members/seed-1\"\n  ],\n  \"training\": []\n}' \
                   >all/ensemble.json; echo {} >all/summary.json; exit 0";
    vm.works("train", &["--", "ends", members, "--output", "all"]);
    vm.wait_for(": done");
    vm.works("fetch", &["--run", "all", "--checkpoints"]);
    assert_eq!(vm.list("my-tpu/all"), ["ensemble.json", "members", "summary.json"]);
    assert_eq!(vm.list("my-tpu/all/members"), ["seed-0", "seed-1"]);
    let files = ["checkpoints", "history.jsonl", "model.safetensors", "run.json"];
    assert_eq!(vm.list("my-tpu/all/members/seed-1"), files);
    assert_eq!(vm.read("my-tpu/all/members/seed-1/model.safetensors"), "model.safetensors of 7\n");
    assert!(!vm.path("0/bert-xla/all/.fetch").exists());
}

/// The stand-in for `cmp` is the run, which commits while it is looked at.
#[test]
fn fetch_is_of_one_moment_while_the_run_goes_on() {
    let Some(vm) = TpuVm::new("moment") else { return };
    let vm = vm.set_up();
    vm.works("train", &["--", "--output", "run"]);
    vm.wait_for_log("[run]");
    write_program(
        &vm.path("worker-bin/cmp"),
        "#!/bin/sh\n[ -e \"$TPU_VM/went_on\" ] || sed -i s/step-7/step-9/ run/run.json\n\
         >\"$TPU_VM/went_on\"\nPATH=${PATH#*:} exec cmp \"$@\"\n",
    );
    vm.works("fetch", &[]);
    assert!(vm.read("my-tpu/run/run.json").contains(r#""checkpoint": "checkpoints/step-9""#));
    assert_eq!(vm.read("my-tpu/run/model.safetensors"), "model.safetensors of 9\n");

    write_program(&vm.path("worker-bin/cmp"), "#!/bin/sh\nexit 1\n");
    let (status, _, stderr) = vm.run("fetch", &["other"]);
    assert_eq!(status, 1);
    assert!(stderr.contains(": run changed while it was looked at, 3 times: fetch it again\n"), "{stderr}");
    assert!(!vm.path("other").exists());
    vm.works("stop", &[]);
}

#[test]
fn fetch_says_why_there_is_nothing_to_fetch() {
    let Some(vm) = TpuVm::new("nothing") else { return };
    let vm = vm.set_up();
    let fails = |arguments: &[&str], expected: &str| {
        let (status, stdout, stderr) = vm.run("fetch", arguments);
        assert_eq!((status, stdout.as_str()), (1, ""), "{stderr}");
        let is_it = |line: &str| line.starts_with("error: ") && line.ends_with(expected);
        assert_eq!(stderr.lines().filter(|line| is_it(line)).count(), 1, "{stderr}");
        assert!(!vm.path("my-tpu").exists());
    };
    fails(&["--run", "other"], ": no run in other: --run says what train's --output was");
    vm.works("train", &["--", "ends", "exit 0", "--output=gs://b/my run"]);
    vm.wait_for(": done");
    fails(
        &[],
        "the run is in a bucket: gcloud storage cp -r gs://b/my run FOLDER copies it, and --run gs://b/my run of \
         evaluate and predict reads it there",
    );
    // An earlier one that is there.
    vm.works("fetch", &["earlier", "--run", "run"]);

    vm.works("train", &["--", "ends", "exit 0", "--output", "run"]);
    vm.wait_for(": done");
    let run = vm.path("0/bert-xla/run/run.json");
    fs::write(&run, "{\n  \"newest\": \"checkpoints/step-9\",\n  \"files\": []\n}\n").unwrap();
    fails(&[], ": run: no epoch is done yet; fetch --checkpoints brings what is saved");
    vm.works("fetch", &["newest", "--checkpoints"]);
    assert_eq!(vm.list("newest/run/checkpoints"), ["step-9"]);
    fs::write(&run, "{\n  \"run\": \"1a\",\n  \"files\": []\n}\n").unwrap();
    fails(&["--checkpoints"], ": run: nothing is saved yet");
}

/// The real program, trained on the sample by the CPU of the machine that plays the TPU VM.
#[test]
fn the_program_trains_and_its_run_is_fetched() {
    let Some(vm) = TpuVm::none_yet("program", 1) else { return };
    vm.works("create", &["--type", "v2-8"]);
    let (program, plugin) = (env!("CARGO_BIN_EXE_bert-xla"), cpu_plugin());
    // All but the download of the TPU plugin.
    let wrapper = format!(
        "#!/bin/sh\n[ \"$1\" != plugins ] || exit 0\nBERT_XLA_CPU_PLUGIN='{}' exec '{program}' \"$@\"\n",
        plugin.display()
    );
    write_program(&vm.path("wrapper"), &wrapper);
    let (sample, tiny) = (asset("sample.csv"), asset("tiny"));
    let data = ["--data", sample.to_str().unwrap(), "--data", tiny.to_str().unwrap()];
    vm.works("setup", &[&["--binary", "wrapper"], &data as &[&str]].concat());
    let train = |epochs: &str| {
        let arguments = "-- --backend cpu --random-weights --max-length 24 --model tiny --train sample.csv --output run \
                         --epochs";
        vm.works("train", &arguments.split(' ').chain([epochs]).collect::<Vec<_>>());
    };
    let log = || vm.works("logs", &["--no-follow"]);
    // Of so many epochs that it does not end before it is stopped.
    train("100000");
    wait_until(
        || vm.path("0/bert-xla/run/model.safetensors").exists().to_string(),
        |is_there| is_there == "true",
    );
    let stopped = vm.works("stop", &[]);
    assert!(
        stopped.contains(": stopped and saved, exit status 75: Stopped (SIGTERM) after step "),
        "{stopped}"
    );
    assert!(log().contains("which is saved in run; the same command goes on from there\n"), "{}", log());

    // The model alone.
    vm.works("fetch", &["results"]);
    assert!(!json_lines(&vm.read("results/run/history.jsonl")).is_empty());
    assert!(!vm.path("results/run/checkpoints").exists());
    Run::open(&vm.path("results/run")).unwrap();

    // All of it, with which training goes on here: a file less, and that checkpoint would not be whole.
    vm.works("fetch", &["results", "--checkpoints"]);
    Run::open(&vm.path("results/run")).unwrap();
    let step = |text: &str| {
        let (_, rest) = text.split_once(" after step ").unwrap();
        rest.split_once(|next: char| !next.is_ascii_digit()).unwrap().0.to_owned()
    };
    let last = step(stopped.lines().find(|line| line.contains("SIGTERM")).unwrap());
    let epochs = json_lines(&vm.read("results/run/history.jsonl")).len();
    let mut resume = vm.command(program);
    resume.args(["train", "--resume", "--output", "results/run", "--epochs", &(epochs + 1).to_string()]);
    resume.arg("--train").arg(&sample).arg("--model").arg(&tiny).env("BERT_XLA_CPU_PLUGIN", plugin);
    let (status, _, stderr) = output(&mut resume);
    assert!(
        status == 0 && stderr.contains(&format!("Going on after step {last} ({epochs} epochs")),
        "{stderr}"
    );
    assert_eq!(json_lines(&vm.read("results/run/history.jsonl")).len(), epochs + 1);

    // There, with the same command.
    train("100000");
    wait_until(log, |log| log.contains("Going on after step "));
    let log = log();
    assert_eq!(step(&log[log.find("Going on").unwrap()..]), last, "{log}");
    vm.works("stop", &[]);
}

/// Each verb's first connection breaks once its command has done its work, or a part of it: gcloud runs it again.
#[test]
fn connections_that_break_do_no_harm() {
    let Some(vm) = TpuVm::none_yet("cut", 1) else { return };
    vm.works("create", &["--type", "v2-8"]);
    let ssh = format!(
        "#!/bin/bash\nssh() {{ /usr/bin/ssh -F '{0}/ssh_config' \"$@\"; }}\n\
         if [ -e '{0}/cut' ]; then rm '{0}/cut'; ssh \"$@\" | head -c 12; exit 255; fi\nssh \"$@\"\n",
        vm.folder.display()
    );
    write_program(&vm.path("bin/ssh"), &ssh);
    let cut = |verb: &str, arguments: &[&str]| {
        fs::write(vm.path("cut"), "").unwrap();
        let (status, stdout, stderr) = vm.run(verb, arguments);
        assert_eq!(status, 0, "{verb}: {stdout}{stderr}");
        assert!(!vm.path("cut").exists(), "{verb}");
        assert!(stderr.contains("Retrying: SSH command error"), "{verb}: {stderr}");
        stdout
    };
    cut("setup", &["--binary", "program"]);
    cut("train", &["--", "slow", "--output", "run"]);
    vm.wait_for(": running, pid ");
    let log = "[train]\n[slow]\n[--output]\n[run]\n";
    assert_eq!(vm.read("0/bert-xla/run.log"), log, "started once");
    assert_eq!(cut("logs", &["--no-follow"]), log);
    assert!(cut("status", &[]).contains(": running, pid "));
    vm.go();
    cut("stop", &[]);
    cut("fetch", &[]);
    assert_eq!(vm.read("my-tpu/run/model.safetensors"), "model.safetensors of 7\n");
    // A run that has ended already is not started again by what belongs to its start.
    cut("train", &["--", "ends", "exit 0"]);
    vm.wait_for(": done");
    assert_eq!(vm.read("0/bert-xla/run.log").matches("[ends]").count(), 1);
    // Another start is another run.
    vm.works("train", &["--", "ends", "exit 0"]);
    vm.wait_for(": done");
    assert_eq!(vm.read("0/bert-xla/run.log").matches("[ends]").count(), 2);
}
