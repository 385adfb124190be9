//! `scripts/tpu-vm`: the commands that it prints, and what they do on a TPU VM that is two folders of this machine.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;
use std::thread;
use std::time::Duration;

use bert_xla::run::Run;

use crate::common::cli::{asset, json_lines};
use crate::common::cpu_plugin;
use crate::common::tpu_vm::{KILLED, PROGRAM, SCRIPT, TpuVm, output, wait_until, write_program};

#[test]
fn dry_runs_print_the_commands() {
    let vm = TpuVm::new("dry_run");
    let dry = |verb: &str, arguments: &[&str]| {
        let mut all = vec!["--dry-run"];
        all.extend(arguments);
        vm.works(verb, &all)
    };
    const TPU_VM: &str = "gcloud compute tpus tpu-vm";
    // The runtime versions that Google names for frameworks that bring their own libtpu.
    for (kind, version) in [
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v3-32", "tpu-ubuntu2204-base"),
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ] {
        let expected =
            format!("{TPU_VM} create my-tpu --accelerator-type={kind} --version={version} --zone=z\n");
        assert_eq!(dry("create", &["--type", kind]), expected);
    }
    assert_eq!(
        dry(
            "create",
            &["--type=v3-8", "--version=v", "--spot", "--project", "p", "--gcloud-flag=--network=a b"]
        ),
        format!(
            "{TPU_VM} create my-tpu --accelerator-type=v3-8 --version=v --spot --zone=z --project=p \
             '--network=a b'\n"
        )
    );
    fs::create_dir(vm.path("my data")).unwrap();
    assert_eq!(
        dry("setup", &["--binary", "program", "--data", "my data/", "--data", "gs://b/it's"]),
        format!(
            "{TPU_VM} ssh my-tpu --worker=all '--command=mkdir -p bert-xla' --zone=z\n\
             {TPU_VM} scp program my-tpu:bert-xla/bert-xla.new --worker=all --zone=z\n\
             {TPU_VM} ssh my-tpu --worker=all '--command=cd bert-xla && chmod +x bert-xla.new && \
             if ./bert-xla.new --version; then mv -f bert-xla.new bert-xla; else echo \"error: $(hostname): \
             the program does not run on $(uname -m) with $(ldd --version | head -n 1): build it for that, \
             docs/tpu-vm.md says how\" >&2; exit 1; fi ' --zone=z\n\
             {TPU_VM} ssh my-tpu --worker=all '--command=bert-xla/bert-xla plugins install tpu' --zone=z\n\
             {TPU_VM} scp --recurse 'my data' my-tpu:bert-xla/ --worker=all --zone=z\n\
             {TPU_VM} ssh my-tpu --worker=all '--command=gcloud storage cp -r '\\''gs://b/it'\\''\\'\\'''\\''s'\\'' \
             bert-xla/' --zone=z\n"
        )
    );
    assert_eq!(
        dry("train", &["--", "--train", "a.csv", "--dry-run"]),
        format!(
            "{TPU_VM} ssh my-tpu --worker=all '--command=cd bert-xla && [ -x bert-xla ] || \
             {{ echo \"error: $(hostname): no program: run setup first\" >&2; exit 1; }}; \
             exec 9>run.lock; flock --timeout 1 9 || {{ echo \"error: $(hostname): a run is going on, \
             pid $(cat run.pid): wait for it or stop it\" >&2; exit 1; }}; rm -f run.pid run.status; \
             pid=$(setsid sh -c '\\''trap : TERM; echo $$ | tee run.pid; exec >run.log 2>&1 </dev/null; \
             \"$@\"; echo $? >run.status'\\'' sh ./bert-xla train --train a.csv --dry-run &); \
             echo \"$(hostname): started, pid $pid\" ' --zone=z\n"
        )
    );
    for (verb, arguments, worker) in [
        ("status", &[] as &[&str], "all"),
        ("logs", &[], "0"),
        ("logs", &["--no-follow", "--worker=3"], "3"),
        ("stop", &[], "all"),
    ] {
        let line = dry(verb, arguments);
        let start = format!("{TPU_VM} ssh my-tpu --worker={worker} '--command=cd bert-xla && ");
        assert!(line.starts_with(&start) && line.ends_with(" --zone=z\n"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    assert_eq!(
        dry("fetch", &["my results", "--run", "b"]),
        format!(
            "mkdir -p 'my results'\n{TPU_VM} scp --recurse my-tpu:bert-xla/b my-tpu:bert-xla/run.log \
             'my results' --worker=0 --zone=z\n"
        )
    );
    assert_eq!(dry("delete", &[]), format!("{TPU_VM} delete my-tpu --quiet --zone=z\n"));
    assert_eq!(vm.calls(), "", "a dry run ran something");
}

/// What a dry run prints, pasted into a shell, calls gcloud with the very arguments of a real run.
#[test]
fn pasted_dry_runs_do_what_real_runs_do() {
    for (verb, arguments) in [
        ("create", &["--type", "v3-8", "--gcloud-flag", "--description=it's $HOME"] as &[&str]),
        ("setup", &["--binary", "program", "--data", "program", "--data", "gs://b/c d"]),
        ("train", &["--", "it's; \"a b\" $HOME\nnew line", "", "*"]),
        ("status", &[]),
        ("logs", &["--no-follow"]),
        ("stop", &[]),
        ("fetch", &["a;b"]),
        ("delete", &["--quiet"]),
    ] {
        // Without workers' folders, so that only the calls count.
        let vm = TpuVm::new("pasted");
        for worker in ["0", "1"] {
            fs::remove_dir(vm.path(worker)).unwrap();
        }
        let printed = vm.works(verb, &[&["--dry-run"], arguments].concat());
        // `set -e` as in the script: a failure ends both.
        output(vm.command("bash").args(["-ec", &printed]));
        let pasted = vm.calls();
        fs::remove_file(vm.path("calls")).unwrap();
        vm.run(verb, arguments);
        assert_eq!(pasted, vm.calls(), "{verb}");
        assert!(!pasted.is_empty(), "{verb}");
    }
}

#[test]
fn a_wrong_usage_is_one_line_and_status_2() {
    let vm = TpuVm::new("usage");
    for (arguments, expected) in [
        (&[] as &[&str], "expected create, setup, train, status, logs, stop, fetch or delete"),
        (&["start"], "start: expected create, setup,"),
        (&["create"], "create: expected the TPU VM's name"),
        (&["create", "t"], "create: --zone is missing, such as --zone europe-west4-a"),
        (&["create", "t", "--zone"], "create: --zone needs a value"),
        (&["create", "t", "--zone", "--dry-run"], "create: --zone needs a value"),
        (&["create", "t", "--zone", "z"], "create: --type is missing, such as --type v3-8"),
        (
            &["create", "t", "--zone", "z", "--type", "v9-8"],
            "--type v9-8: its runtime version is not known here",
        ),
        (&["create", "t", "--zone", "z", "--data", "a"], "create: unknown option --data"),
        (&["create", "t", "u", "--zone", "z"], "create: unexpected argument u"),
        (&["status", "root@t", "--zone", "z"], "root@t: expected a TPU VM's name"),
        (&["status", "t", "--zone", "z", "--", "x"], "status: takes nothing after --"),
        (&["setup", "t", "--zone", "z", "--binary", "none"], "--binary none: no such file: build it"),
        (
            &["setup", "t", "--zone", "z", "--binary", "program", "--data", "none"],
            "--data none: no such file or folder",
        ),
        (&["train", "t", "--zone", "z"], "train: expected bert-xla train's arguments after --"),
        (&["logs", "t", "--zone", "z", "--worker", "all"], "--worker all: expected a worker's number"),
        (&["fetch", "t", "a", "b", "--zone", "z"], "fetch: unexpected argument b"),
    ] {
        let (status, stdout, stderr) = output(vm.command(SCRIPT).args(arguments));
        assert_eq!((status, stdout.as_str(), stderr.lines().count()), (2, "", 1), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with(&format!("error: {expected}")), "{stderr}");
    }
    assert_eq!(vm.calls(), "");
}

#[test]
fn help_and_dry_runs_need_no_gcloud() {
    let vm = TpuVm::new("no_gcloud");
    let tools = vm.path("tools");
    fs::create_dir(&tools).unwrap();
    for tool in ["bash", "cat", "tr"] {
        let path = std::env::var_os("PATH").unwrap();
        let found = std::env::split_paths(&path).map(|folder| folder.join(tool)).find(|file| file.is_file());
        symlink(found.expect(tool), tools.join(tool)).unwrap();
    }
    let run = |arguments: &[&str]| output(vm.command(SCRIPT).args(arguments).env("PATH", &tools));
    let (status, help, stderr) = run(&["create", "--help"]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert_eq!(run(&["--help"]).1, help);
    assert!(help.contains("scripts/tpu-vm train  my-tpu"), "{help}");
    // gcloud's own variable stands for --zone.
    let mut create = vm.command(SCRIPT);
    create.args(["create", "t", "--type", "v3-8", "--dry-run"]).env("PATH", &tools);
    let (status, stdout, stderr) = output(create.env("CLOUDSDK_COMPUTE_ZONE", "y"));
    assert!(status == 0 && stdout.ends_with(" --zone=y\n"), "{stdout}{stderr}");
    let (status, _, stderr) = run(&["create", "t", "--zone", "z", "--type", "v3-8"]);
    assert_eq!((status, stderr.as_str()), (1, "error: gcloud is not here: install the Google Cloud CLI\n"));
}

#[test]
fn a_run_outlives_its_connection_and_reports_its_end() {
    let vm = TpuVm::new("run");
    let (status, _, stderr) = vm.run("status", &[]);
    assert_eq!((status, stderr.matches(": no program: run setup first\n").count()), (1, 2), "{stderr}");
    fs::write(vm.path("it's data.csv"), "id,text,label\n").unwrap();
    vm.works("setup", &["--binary", "program", "--data", "it's data.csv"]);
    vm.wait_for(": no run yet");
    for worker in ["0", "1"] {
        assert_eq!(vm.read(&format!("{worker}/bert-xla/it's data.csv")), "id,text,label\n");
        assert_eq!(vm.read(&format!("{worker}/installed")), "plugins install tpu\n");
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
    assert!(logs.2.contains(": ended with exit status 3"), "{}", logs.2);
    vm.wait_for(": ended with exit status 3");

    vm.works("fetch", &[]);
    assert_eq!((vm.read("my-tpu/run/history.jsonl"), vm.read("my-tpu/run.log")), ("{}\n".into(), log.into()));
    // The lock is free again.
    vm.works("train", &["--", "another"]);
    vm.wait_for(": ended with exit status 3");
}

#[test]
fn stop_ends_a_run_and_a_killed_one_is_told_from_one_that_ended() {
    let vm = TpuVm::new("stop").set_up();
    // However slowly a run starts, `stop` right after `train` finds it.
    write_program(&vm.path("bin/setsid"), "#!/bin/sh\nsleep 0.3\nPATH=${PATH#*:} exec setsid \"$@\"\n");
    vm.works("train", &["--", "a"]);
    let stopped = vm.works("stop", &[]);
    // 128 + SIGTERM.
    assert_eq!(stopped.matches(": ended with exit status 143\n").count(), 2, "{stopped}");
    assert_eq!(vm.run("logs", &[]).0, 143);

    vm.works("train", &["--", "b"]);
    for worker in ["0", "1"] {
        let pid = vm.read(&format!("{worker}/bert-xla/run.pid"));
        let group = format!("-{}", pid.trim());
        assert!(Command::new("kill").args(["-s", "KILL", "--", &group]).status().unwrap().success());
    }
    vm.wait_for(KILLED);
    assert_eq!(vm.run("logs", &[]).0, 1);
}

#[test]
fn stop_kills_what_ignores_term_and_fails_if_the_run_goes_on() {
    let vm = TpuVm::new("stubborn").set_up();
    vm.works("train", &["--", "stubborn"]);
    // Once it prints, it ignores TERM.
    wait_until(|| vm.read("0/bert-xla/run.log"), |log| log.contains("stubborn"));
    fs::write(vm.path("1/bert-xla/go"), "").unwrap();
    let stopped = vm.works("stop", &[]);
    assert!(stopped.contains(KILLED), "{stopped}");
    assert!(stopped.contains(": ended with exit status 3"), "{stopped}");

    // The lock is held by what no signal to the run's processes ends.
    let lock = fs::File::create(vm.path("1/bert-xla/run.lock")).unwrap();
    lock.lock().unwrap();
    let (status, stdout, stderr) = vm.run("stop", &[]);
    assert_eq!((status, stdout.lines().count(), stderr.lines().count()), (1, 1, 1), "{stdout}{stderr}");
    assert!(stderr.contains(": the run did not stop: see there what it is with fuser -v "), "{stderr}");
}

#[test]
fn a_program_that_does_not_run_there_is_refused() {
    let vm = TpuVm::new("glibc").set_up();
    write_program(&vm.path("newer"), "#!/bin/sh\necho \"version 'GLIBC_2.99' not found\" >&2\nexit 1\n");
    let (status, _, stderr) = vm.run("setup", &["--binary", "newer"]);
    assert_eq!(status, 1);
    assert_eq!(stderr.matches(": the program does not run on ").count(), 2, "{stderr}");
    assert!(
        stderr.contains("GLIBC_2.99") && stderr.contains(": build it for that, docs/tpu-vm.md"),
        "{stderr}"
    );
    assert_eq!(vm.read("0/bert-xla/bert-xla"), PROGRAM, "the earlier program is gone");
}

#[test]
fn delete_asks_first() {
    let vm = TpuVm::new("delete");
    let answer = |text: &str| {
        fs::write(vm.path("answer"), text).unwrap();
        let mut command = vm.command(SCRIPT);
        command.args(["delete", "my-tpu", "--zone", "z"]).stdin(fs::File::open(vm.path("answer")).unwrap());
        output(&mut command)
    };
    for text in ["n\n", "\n", ""] {
        let (status, _, stderr) = answer(text);
        assert_eq!(status, 1);
        assert!(stderr.starts_with("Delete my-tpu in z and everything on it? [y/N] "), "{stderr}");
        assert!(stderr.ends_with("error: my-tpu was not deleted, and still costs money\n"), "{stderr}");
    }
    assert_eq!(vm.calls(), "");
    assert_eq!(answer("y\n").0, 0);
    vm.works("delete", &["--quiet"]);
    assert_eq!(vm.calls(), "compute tpus tpu-vm delete my-tpu --quiet --zone=z \n".repeat(2));
}

/// The real program, trained on the sample by the CPU of the machine that plays the TPU VM.
#[test]
fn the_program_trains_and_its_run_is_fetched() {
    let vm = TpuVm::new("program");
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
    let train = "-- --backend cpu --random-weights --max-length 24 --epochs 1 --model tiny \
                 --train sample.csv --output run";
    vm.works("train", &train.split(' ').collect::<Vec<_>>());
    let (status, log, stderr) = vm.run("logs", &[]);
    assert_eq!(status, 0, "{log}{stderr}");
    assert!(log.contains("Saved in run"), "{log}");
    // What an earlier fetch has brought of this run, and what a save that was cut short has left.
    fs::create_dir_all(vm.path("results/run/checkpoints/step-1")).unwrap();
    let parts =
        ["results/run/.model.safetensors.1a.part", "results/run/checkpoints/step-23/.history.jsonl.1a.part"];
    for part in parts {
        fs::create_dir_all(vm.path(part).parent().unwrap()).unwrap();
        fs::write(vm.path(part), "half").unwrap();
    }
    vm.works("fetch", &["results"]);
    assert_eq!(json_lines(&vm.read("results/run/history.jsonl")).len(), 1);
    Run::open(&vm.path("results/run")).unwrap();
    let checkpoints = fs::read_dir(vm.path("results/run/checkpoints")).unwrap();
    let names = checkpoints.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.collect::<Vec<_>>(), ["step-23"]);
    assert!(parts.iter().all(|part| !vm.path(part).exists()));
    let inode = |file: &str| fs::metadata(vm.path("results/run").join(file)).unwrap().ino();
    assert_eq!(inode("model.safetensors"), inode("checkpoints/step-23/model.safetensors"));
}

#[test]
fn shellcheck_finds_nothing() {
    let root = env!("CARGO_MANIFEST_DIR");
    match Command::new("shellcheck").args(["scripts/tpu-vm", ".ci/run"]).current_dir(root).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => eprintln!("skipped: shellcheck: {error}"),
    }
}
