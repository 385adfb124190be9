//! `scripts/tpu-vm`: the commands that it prints, what it refuses, and what stands before a run.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::common::tpu_vm::{PROGRAM, SCRIPT, TpuVm, output, write_program};

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
        dry("train", &["--", "--train", "a.csv", "--output", "a", "--output=b c", "--dry-run"]),
        format!(
            "{TPU_VM} ssh my-tpu --worker=all '--command=cd bert-xla && [ -x bert-xla ] || \
             {{ echo \"error: $(hostname): no program: run setup first\" >&2; exit 1; }}; \
             exec 9>run.lock; flock --timeout 1 9 || {{ echo \"error: $(hostname): a run is going on, \
             pid $(cat run.pid): wait for it or stop it\" >&2; exit 1; }}; rm -f run.pid run.status; \
             echo '\\''b c'\\'' >run.output; \
             pid=$(setsid sh -c '\\''trap : TERM; echo $$ | tee run.pid; exec >>run.log 2>&1 </dev/null; \
             [ ! -s run.log ] || date \"+%n--- started again on %F at %T %Z\"; \
             \"$@\"; echo $? >run.status'\\'' sh ./bert-xla train --train a.csv --output a '\\''--output=b c'\\'' \
             --dry-run &); echo \"$(hostname): started, pid $pid\" ' --zone=z\n"
        )
    );
    for (verb, arguments, worker) in [
        ("status", &[] as &[&str], "all"),
        ("logs", &[], "0"),
        ("logs", &["--no-follow", "--worker=3"], "3"),
        ("stop", &[], "all"),
        ("stop", &["--wait", "60"], "all"),
        ("stop", &["--now"], "all"),
    ] {
        let line = dry(verb, arguments);
        let start = format!("{TPU_VM} ssh my-tpu --worker={worker} '--command=cd bert-xla && ");
        assert!(line.starts_with(&start) && line.ends_with(" --zone=z\n"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    for (run, path) in [("a/b", "bert-xla/a/b/.fetch/b"), ("/a/b/", "/a/b/.fetch/b")] {
        let lines = dry("fetch", &["my results", "--checkpoints", "--run", run]);
        let lines = lines.lines().collect::<Vec<_>>();
        assert!(lines[0].starts_with(&format!("{TPU_VM} ssh my-tpu --worker=0 '--command=cd bert-xla && ")));
        assert_eq!(
            lines[1..4],
            [
                "mkdir -p 'my results/b'",
                "rm -f 'my results/b/model.safetensors'",
                &format!(
                    "{TPU_VM} scp --recurse my-tpu:{path} my-tpu:bert-xla/run.log 'my results' --worker=0 --zone=z"
                )
            ]
        );
        let staged = path.strip_prefix("bert-xla/").unwrap_or(path).strip_suffix("/b").unwrap();
        assert_eq!(
            lines[4],
            format!("{TPU_VM} ssh my-tpu --worker=0 '--command=cd bert-xla && rm -r {staged}' --zone=z")
        );
        assert!(lines[5].starts_with("sh -c '") && lines[5].ends_with("sh 'my results/b'"), "{}", lines[5]);
        assert_eq!(lines.len(), 6);
    }
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
        ("stop", &["--now"]),
        ("fetch", &["a;b"]),
        ("fetch", &["a;b", "--run", "c d"]),
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
        (&["stop", "t", "--zone", "z", "--wait", "5m"], "--wait 5m: expected seconds"),
        (&["fetch", "t", "a", "b", "--zone", "z"], "fetch: unexpected argument b"),
        (
            &["fetch", "t", "--zone", "z", "--run", "gs://b/run"],
            "--run gs://b/run: it is in a bucket: gcloud storage cp -r gs://b/run FOLDER copies it, and --run \
             gs://b/run of evaluate and predict reads it there",
        ),
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

#[test]
fn shellcheck_finds_nothing() {
    let root = env!("CARGO_MANIFEST_DIR");
    match Command::new("shellcheck").args(["scripts/tpu-vm", ".ci/run"]).current_dir(root).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => eprintln!("skipped: shellcheck: {error}"),
    }
}
