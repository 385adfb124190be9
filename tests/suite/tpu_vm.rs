//! `bert-xla tpu-vm`: the commands that it prints, what it refuses, what the API is asked, and what stands before a run.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::common::empty_folder;
use crate::common::tpu_vm::{PROGRAM, PROGRAM_UNDER_TEST, TpuVm, output, write_program};

/// `bert-xla tpu-vm ARGUMENTS` where nothing was made before; for what needs no gcloud.
fn offline(test: &str, arguments: &[&str]) -> (i32, String, String) {
    let home = empty_folder(&format!("tpu_vm_{test}"));
    fs::write(home.join("program"), PROGRAM).unwrap();
    fs::create_dir(home.join("my data")).unwrap();
    let mut command = Command::new(PROGRAM_UNDER_TEST);
    command.arg("tpu-vm").args(arguments).current_dir(&home).env("HOME", &home).env("PATH", "");
    for variable in ["CLOUDSDK_COMPUTE_ZONE", "XDG_STATE_HOME"] {
        command.env_remove(variable);
    }
    output(command.stdin(Stdio::null()))
}

const SSH: &str = "gcloud compute tpus tpu-vm ssh --zone=z '--ssh-flag=-o ConnectTimeout=10' \
                   '--ssh-flag=-o ServerAliveInterval=30' '--ssh-flag=-o ServerAliveCountMax=3' my-tpu";
const SCP: &str = "gcloud compute tpus tpu-vm scp --zone=z '--scp-flag=-o ConnectTimeout=10' \
                   '--scp-flag=-o ServerAliveInterval=30' '--scp-flag=-o ServerAliveCountMax=3' --recurse";

#[test]
fn dry_runs_print_the_commands() {
    let dry = |verb: &str, arguments: &[&str]| {
        let all = [&[verb, "my-tpu", "--zone", "z", "--dry-run"], arguments].concat();
        let (status, stdout, stderr) = offline("dry_run", &all);
        assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
        stdout
    };
    const GROUP: &str = "gcloud compute tpus";
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
            format!("{GROUP} tpu-vm create my-tpu --zone=z --accelerator-type={kind} --version={version}\n");
        assert_eq!(dry("create", &["--type", kind]), expected);
    }
    let create = ["--type=v3-8", "--version=v", "--spot", "--project", "p", "--gcloud-flag=--network=a b"];
    assert_eq!(
        dry("create", &create),
        format!(
            "{GROUP} tpu-vm create my-tpu --zone=z --project=p --accelerator-type=v3-8 --version=v --spot '--network=a b'\n"
        )
    );
    assert_eq!(
        dry("create", &["--type=v6e-8", "--queued", "--spot", "--valid-until=6h"]),
        format!(
            "{GROUP} queued-resources create my-tpu --zone=z --node-id=my-tpu --accelerator-type=v6e-8 \
             --runtime-version=v2-alpha-tpuv6e --spot --valid-until-duration=6h\n"
        )
    );
    let lines = dry("setup", &["--binary", "program", "--data", "my data/", "--data", "gs://b/it's"]);
    let lines = lines.lines().collect::<Vec<_>>();
    assert_eq!(lines.len(), 5, "{lines:?}");
    let first = format!("{SSH} --worker=all '--command=mkdir -p bert-xla && cd bert-xla && ");
    assert!(lines[0].starts_with(&first), "{}", lines[0]);
    assert!(lines[1].starts_with(&format!("{SCP} /")), "{}", lines[1]);
    assert!(lines[1].ends_with("/program my-tpu:bert-xla/bert-xla.new --worker=all"), "{}", lines[1]);
    assert!(lines[3].ends_with("/my data' my-tpu:bert-xla/ --worker=all"), "{}", lines[3]);
    let copied = r"gcloud storage cp -r '\''gs://b/it'\''\'\'''\''s'\'' . || exit; ";
    assert!(lines[4].contains(copied), "{}", lines[4]);
    for (verb, arguments, worker) in [
        ("train", &["--", "--train", "a.csv", "--dry-run"] as &[&str], "all"),
        ("status", &[], "all"),
        ("logs", &[], "0"),
        ("logs", &["--no-follow", "--worker=3"], "3"),
        ("stop", &[], "all"),
        ("stop", &["--wait", "60"], "all"),
        ("stop", &["--now"], "all"),
    ] {
        let line = dry(verb, arguments);
        let start = format!("{SSH} --worker={worker} '--command=cd bert-xla 2>/dev/null && ");
        assert!(line.starts_with(&start) && line.ends_with("'\n"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    for (run, path) in [("a/b", "bert-xla/a/b/.fetch/b"), ("/a/b/", "/a/b/.fetch/b")] {
        let lines = dry("fetch", &["my results", "--checkpoints", "--run", run]);
        let lines = lines.lines().collect::<Vec<_>>();
        assert!(lines[0].starts_with(&format!("{SSH} --worker=0 '--command=(cd bert-xla 2>/dev/null && ")));
        let copied = format!("{SCP} my-tpu:{path} my-tpu:bert-xla/run.log './my results' --worker=0");
        let removed =
            r#"sh -c 'rm -f "$1"/model.safetensors "$1"/members/*/model.safetensors' sh './my results/b'"#;
        assert_eq!(lines[1..4], ["mkdir -p './my results/b'", removed, &copied]);
        let staged = path.strip_prefix("bert-xla/").unwrap_or(path).strip_suffix("/b").unwrap();
        assert_eq!(lines[4], format!("{SSH} --worker=0 '--command=cd bert-xla && rm -rf {staged}'"));
        assert!(lines[5].starts_with("sh -c '") && lines[5].ends_with("sh './my results/b'"), "{}", lines[5]);
        assert_eq!(lines.len(), 6);
    }
    assert_eq!(dry("delete", &[]), format!("{GROUP} tpu-vm delete my-tpu --zone=z --quiet\n"));
    let tunnel = dry("status", &["--tunnel-through-iap"]);
    assert!(
        tunnel.starts_with("gcloud alpha compute tpus tpu-vm ssh --zone=z --tunnel-through-iap "),
        "{tunnel}"
    );
    let (_, listed, _) = offline("dry_list", &["list", "--dry-run"]);
    let expected = format!("{GROUP} tpu-vm list --zone=-\n{GROUP} queued-resources list --zone=-\n");
    assert_eq!(listed, expected);
}

#[test]
fn wrong_usages_are_told_with_status_2() {
    for (arguments, expected) in [
        (&["create"] as &[&str], "<NAME>"),
        (&["create", "t", "--type", "v3-8"], "--zone is missing, such as --zone europe-west4-a"),
        (&["create", "t", "--zone", "../z", "--type", "v3-8"], "--zone ../z: expected a zone"),
        (&["create", "t", "--zone", "z"], "--type <TYPE>"),
        (&["create", "t", "--zone", "z", "--type", "v9-8"], "--type v9-8: expected one such as v2-8, v3-8"),
        (&["create", "t", "--zone", "z", "--type", "v2-8", "--valid-until", "6h"], "--queued"),
        (&["create", "t", "u", "--zone", "z"], "unexpected argument 'u'"),
        (&["status", "root@t", "--zone", "z"], "expected a TPU VM's name"),
        (&["setup", "t", "--zone", "z", "--binary", "none"], "--binary none: no such file"),
        (&["setup", "t", "--zone", "z", "--plugin", "my data"], "--plugin my data: expected a file"),
        (
            &["setup", "t", "--zone", "z", "--binary", "program", "--data", "none"],
            "--data none: no such file or folder",
        ),
        (&["train", "t", "--zone", "z"], "<ARGUMENTS>..."),
        (&["logs", "t", "--zone", "z", "--worker", "all"], "invalid digit"),
        (&["stop", "t", "--zone", "z", "--wait", "5m"], "invalid digit"),
        (&["watch", "t", "--zone", "z"], "t in z was not created from this machine; `run` does all of it"),
        (&["watch", "t", "--zone", "z", "--max-hours", "0"], "expected a number of hours above 0"),
        (&["watch", "t", "--zone", "z", "--poll", "0"], "expected a number of seconds above 0"),
        (
            &["run", "t", "--zone", "z", "--type", "v2-8", "--bucket", "b", "--", "--train", "a"],
            "--bucket b: expected gs://BUCKET/PATH",
        ),
        (
            &["run", "t", "--zone", "z", "--type", "v2-8", "--bucket", "gs://b/j", "--", "--output", "a"],
            "--bucket and train's --output say where the run is",
        ),
        (
            &["fetch", "t", "--zone", "z", "--run", "gs://b/run"],
            "--run gs://b/run: it is in a bucket: gcloud storage cp -r gs://b/run FOLDER copies it, and --run \
             gs://b/run of evaluate and predict reads it there",
        ),
    ] {
        let (status, stdout, stderr) = offline("usage", arguments);
        assert_eq!((status, stdout.as_str()), (2, ""), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(expected), "{arguments:?}: {stderr}");
    }
    let (status, _, stderr) = offline("gcloud", &["delete", "t", "--zone", "z", "--quiet"]);
    assert_eq!((status, stderr.as_str()), (1, "error: gcloud is not here: install the Google Cloud CLI\n"));
}

/// `scripts/tpu-vm` is the door to the program that is built beside it.
#[test]
fn the_script_runs_the_program() {
    let folder = empty_folder("tpu_vm_door");
    fs::create_dir_all(folder.join("scripts")).unwrap();
    let script = folder.join("scripts/tpu-vm");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/tpu-vm"), &script).unwrap();
    let (status, _, stderr) = output(Command::new(&script).arg("list"));
    assert_eq!((status, stderr.contains(": build it with cargo build --release")), (2, true), "{stderr}");
    fs::create_dir_all(folder.join("target/release")).unwrap();
    write_program(&folder.join("target/release/bert-xla"), "#!/bin/sh\nprintf '[%s]' \"$@\"\nexit 7\n");
    let (status, stdout, _) = output(Command::new(&script).args(["create", "a b", ""]).current_dir("/"));
    assert_eq!((status, stdout.as_str()), (7, "[tpu-vm][create][a b][]"));
}

/// What the real gcloud asks of the API, against Google's REST reference of the Cloud TPU API v2
/// (cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes and .queuedResources).
#[test]
fn the_api_is_asked_as_its_reference_says() {
    let Some(vm) = TpuVm::none_yet("requests", 1) else { return };
    const PARENT: &str = "projects/p/locations/z";
    let asked = || {
        let requests = vm.api.take_requests();
        requests.into_iter().filter(|request| request.method != "GET").collect::<Vec<_>>()
    };
    vm.works("create", &["--type", "v3-8", "--spot", "--gcloud-flag=--internal-ips"]);
    let create = asked().remove(0);
    assert_eq!((&*create.method, create.path), ("POST", format!("{PARENT}/nodes")));
    assert_eq!(create.query["nodeId"], "my-tpu");
    assert_eq!(create.body["acceleratorType"], "v3-8");
    assert_eq!(create.body["runtimeVersion"], "tpu-ubuntu2204-base");
    assert_eq!(create.body["schedulingConfig"]["spot"], json!(true));
    assert_eq!(create.body["networkConfig"]["enableExternalIps"], json!(false));

    // The first ssh brings the key, and later ones find it there. What an address inside means is said first.
    let (status, _, stderr) = vm.run("setup", &["--binary", "program"]);
    assert_eq!(status, 0, "{stderr}");
    assert!(
        stderr.starts_with("my-tpu: It has no public address: ssh reaches it from within its network alone"),
        "{stderr}"
    );
    assert!(stderr.contains("--plugin FILE and --data FOLDER bring them from here\n"), "{stderr}");
    let requests = asked();
    let updates = requests.iter().filter(|request| request.method == "PATCH").collect::<Vec<_>>();
    assert_eq!(updates.len(), 1, "{requests:?}");
    assert_eq!(updates[0].path, format!("{PARENT}/nodes/my-tpu"));
    assert!(updates[0].body["metadata"]["ssh-keys"].as_str().unwrap().contains(":ssh-rsa "));
    assert_eq!(vm.read("0/bert-xla/installed"), "plugins install tpu\n");

    let status = vm.works("status", &["--price", "4.08"]);
    let line = status.lines().next().unwrap();
    assert!(line.starts_with("my-tpu: READY, HEALTHY; made 2026-01-02 03:04 UTC, "), "{status}");
    assert!(line.contains(" h ago, at most US$ ") && line.ends_with(" at 4.08 per hour"), "{status}");
    let listed = vm.works_without_name("list");
    assert!(listed.contains("my-tpu") && listed.contains("v3-8") && listed.contains("READY"), "{listed}");
    asked();
    vm.works("delete", &["--quiet"]);
    let delete = asked().remove(0);
    assert_eq!((&*delete.method, delete.path), ("DELETE", format!("{PARENT}/nodes/my-tpu")));

    vm.works("create", &["--type", "v5litepod-8", "--queued", "--valid-until", "6h", "--spot"]);
    let queue = asked().remove(0);
    assert_eq!((&*queue.method, queue.path), ("POST", format!("{PARENT}/queuedResources")));
    assert_eq!(queue.query["queuedResourceId"], "my-tpu");
    let spec = &queue.body["tpu"]["nodeSpec"][0];
    assert_eq!(
        (&spec["nodeId"], &spec["node"]["acceleratorType"]),
        (&json!("my-tpu"), &json!("v5litepod-8"))
    );
    assert!(queue.body["queueingPolicy"]["validUntilDuration"] == json!("21600s"), "{}", queue.body);
    assert!(queue.body.get("spot").is_some(), "{}", queue.body);
    // It waits, and then there is a node like any other.
    let waited = std::iter::repeat_with(|| vm.run("status", &[]).1)
        .take_while(|status| !status.starts_with("my-tpu: READY"));
    let waited = waited.take(20).collect::<Vec<_>>();
    assert!(waited.contains(&"my-tpu: PROVISIONING\n".to_owned()) && waited.len() < 20, "{waited:?}");
    fs::write(vm.path("my libtpu.whl"), "a wheel").unwrap();
    vm.works("setup", &["--binary", "program", "--plugin", "my libtpu.whl"]);
    assert_eq!(vm.read("0/bert-xla/installed"), "plugins install tpu --wheel ./my libtpu.whl\n");
    assert!(!vm.path("0/bert-xla/my libtpu.whl").exists(), "of no use any more");
    asked();
    vm.works("delete", &["--quiet"]);
    let delete = asked().remove(0);
    assert_eq!((&*delete.method, delete.path), ("DELETE", format!("{PARENT}/queuedResources/my-tpu")));
    assert!(delete.query["force"].eq_ignore_ascii_case("true"));
    assert!(vm.api.state().nodes.is_empty() && vm.api.state().queued.is_empty());
}

/// What goes wrong with the API is told as it tells it, and ends the verb.
#[test]
fn what_the_api_refuses_is_told() {
    let Some(vm) = TpuVm::none_yet("refusals", 1) else { return };
    let refused = |verb: &str, arguments: &[&str], expected: &str| {
        let (status, _, stderr) = vm.run(verb, arguments);
        assert_eq!(status, 1, "{stderr}");
        assert!(stderr.contains(expected), "{verb}: {stderr}");
    };
    vm.api.state().without_stock = 1;
    refused("create", &["--type", "v3-8"], "There is no more capacity in the zone");
    refused("status", &[], "error: there is no my-tpu in z\n");
    refused("setup", &["--binary", "program"], "NOT_FOUND");
    vm.api.fail("POST", "nodes", 403, 1);
    refused("create", &["--type", "v3-8"], "PERMISSION_DENIED");
    vm.works("create", &["--type", "v3-8"]);
    refused("create", &["--type", "v3-8"], "ALREADY_EXISTS");
    vm.api.fail("GET", "nodes", 401, 1);
    refused("status", &[], "error: the API says nothing: UNAUTHENTICATED");
    vm.api.preempt("my-tpu", Some("PREEMPTED"));
    assert!(vm.works("status", &[]).starts_with("my-tpu: PREEMPTED, HEALTHY; made "));
    refused("logs", &[], "PREEMPTED");
    // One that is gone already is forgotten here, too.
    vm.api.preempt("my-tpu", None);
    refused("delete", &[], "error: there is no my-tpu in z\n");
    assert_eq!(vm.run("watch", &[]).0, 2);
    // Another project's of the same name is another TPU VM.
    vm.works("create", &["--type", "v3-8", "--project", "p"]);
    let (status, _, stderr) = vm.run("status", &["--project", "q"]);
    assert_eq!(status, 2);
    assert!(stderr.starts_with("error: --project q: my-tpu in z was begun in p from here: "), "{stderr}");
    vm.works("delete", &["--quiet"]);
}

#[test]
fn a_program_that_does_not_run_there_is_refused() {
    let Some(vm) = TpuVm::new("glibc") else { return };
    let vm = vm.set_up();
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
    let Some(vm) = TpuVm::new("delete") else { return };
    vm.api.take_requests();
    let answer = |text: &str| {
        fs::write(vm.path("answer"), text).unwrap();
        output(vm.verb("delete", &[]).stdin(fs::File::open(vm.path("answer")).unwrap()))
    };
    for text in ["n\n", "\n", ""] {
        let (status, _, stderr) = answer(text);
        assert_eq!(status, 1);
        assert!(stderr.starts_with("Delete my-tpu in z and everything on it? [y/N] "), "{stderr}");
        assert!(stderr.ends_with("error: my-tpu was not deleted, and still costs money\n"), "{stderr}");
    }
    assert!(vm.api.take_requests().iter().all(|request| request.method == "GET"));
    let (status, _, stderr) = answer("y\n");
    assert_eq!(status, 0, "{stderr}");
    assert!(vm.api.state().nodes.is_empty());
}

#[test]
fn shellcheck_finds_nothing() {
    let root = env!("CARGO_MANIFEST_DIR");
    match Command::new("shellcheck").args(["scripts/tpu-vm", ".ci/run"]).current_dir(root).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => eprintln!("skipped: shellcheck: {error}"),
    }
}
