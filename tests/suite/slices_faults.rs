//! Slices of two hosts, one of which fails, is killed or hangs in some phase: the other stops in time, and says why as far
//! as it can know.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bert_xla::exec::{DeviceOptions, Error, Replicas};
use bert_xla::pjrt::Backend;
use bert_xla::run::{Run, layout, model_folder};

use crate::common::cli::{asset, command, demo, train, with_run};
use crate::common::slice::{End, Host, Slice, TIME_LIMIT, wait};
use crate::common::{empty_folder, killer};

/// What is given as --slice-timeout, in seconds: a healthy host may be this late on a busy machine.
const LIMIT: u64 = 6;

/// What a host is expected to end with.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// A signal.
    Killed,
    /// An error of its own.
    Fails(i32, &'static str),
    /// It was told in this phase that the other has failed.
    Told(&'static str),
    /// It has waited in this phase until the time limit.
    Waits(&'static str),
    /// It has, for a chief that was killed while it saved: in the next step, or where they meet after an epoch.
    WaitsBesideSaving,
    /// It hangs, and is killed when the other has ended.
    Hangs,
}
use Expected::*;

/// A command line for each host, the faults of their plugins, and how they end.
struct Case {
    name: String,
    commands: [Command; 2],
    expected: [Expected; 2],
    replicas: [usize; 2],
}

impl Case {
    fn new(name: &str, commands: [Command; 2], expected: [Expected; 2]) -> Self {
        Self { name: name.to_owned(), commands, expected, replicas: [4; 2] }
    }

    /// With a fault of a host's plugin, as slice_plugin.c has them.
    fn fault(mut self, host: usize, fault: &str) -> Self {
        self.name += &format!(" {host}:{fault}");
        self.commands[host].env("SLICE_FAULT", fault);
        self
    }

    /// Runs both hosts and checks how they end; `None` if there is no slice here.
    fn run(self) -> Option<()> {
        let Self { name, mut commands, expected, replicas } = self;
        let slice = Slice::start(2)?;
        // Where nobody waits in vain, a busy machine may take its time.
        let is_told = expected.iter().any(|expected| matches!(expected, Told(_)));
        let limit = if is_told { 10 * LIMIT } else { LIMIT };
        commands.iter_mut().for_each(|command| {
            command.args(["--slice-timeout", &limit.to_string()]);
        });
        let mut process = 0;
        let mut hosts = commands.map(|command| {
            process += 1;
            slice.spawn(process - 1, command, replicas[process - 1])
        });
        let ended = wait_but_for_hanging(&name, &mut hosts, &expected);
        let ends = wait(hosts);
        slice.wait();
        for (host, expected) in expected.into_iter().enumerate() {
            check(&name, &ends, host, expected);
        }
        // One that waits says for how long; before that, it does its own part, such as to compile on a busy machine.
        if let [Some(one), Some(other)] = ended {
            let apart = one.max(other) - one.min(other);
            assert!(apart < Duration::from_secs(limit + 60), "{name}: {apart:?} apart");
        }
        Some(())
    }
}

/// Waits for both to end, and kills those that are expected to hang when the others have; gives when they ended.
fn wait_but_for_hanging(name: &str, hosts: &mut [Host; 2], expected: &[Expected; 2]) -> [Option<Instant>; 2] {
    let deadline = Instant::now() + TIME_LIMIT;
    let mut ended = [None; 2];
    let hangs = expected.map(|expected| matches!(expected, Hangs));
    while (0..2).any(|host| ended[host].is_none() && !hangs[host]) {
        for (host, ended) in hosts.iter_mut().zip(&mut ended) {
            if ended.is_none() && !host.is_running() {
                *ended = Some(Instant::now());
            }
        }
        let said = || hosts.iter().map(Host::stderr).collect::<Vec<_>>().join("\n");
        assert!(Instant::now() < deadline, "{name}: hosts that don't end:\n{}", said());
        thread::sleep(Duration::from_millis(5));
    }
    for (host, hangs) in hosts.iter_mut().zip(hangs) {
        if hangs {
            assert!(host.is_running(), "{name}: a host that hangs has ended");
            host.signal("KILL");
        }
    }
    ended
}

fn check(name: &str, ends: &[End; 2], host: usize, expected: Expected) {
    let end = &ends[host];
    let context = format!("{name}: host {host}, expected {expected:?}: {ends:#?}");
    assert!(!end.stderr.contains("panicked"), "{context}");
    let code = match expected {
        Killed | Hangs => None,
        Fails(code, _) => Some(code),
        Told(_) | Waits(_) | WaitsBesideSaving => Some(1),
    };
    assert_eq!(end.code, code, "{context}");
    let Some(_) = code else { return };
    let error = end.error();
    // Who it is, it knows once it is connected.
    let own_name = format!("error: process {host}: ");
    match expected {
        Fails(_, part) => assert!(error.contains(part), "{context}"),
        Told(phase) => {
            let other = 1 - host;
            let told = format!(
                "process {other} of the slice has failed and says why; this one stops too (after {phase})"
            );
            assert!(error.ends_with(&told), "{context}");
            assert!(phase == "placing the replicas" || error.starts_with(&own_name), "{context}");
        }
        WaitsBesideSaving => assert_waited(error, host, &["saving", "a step"]),
        Waits(phase) => assert_waited(error, host, &[phase]),
        Killed | Hangs => {}
    }
}

/// That an error says how long host `host` has waited, in one of these phases.
#[track_caller]
fn assert_waited(error: &str, host: usize, phases: &[&str]) {
    let text = |phase: &&str, seconds: u64| {
        let process = match *phase {
            // Who it is, it knows once it is connected.
            "connecting to the devices" | "placing the replicas" => String::new(),
            _ => format!("process {host}: "),
        };
        let what = match *phase {
            "connecting to the devices" => {
                "the devices or the other hosts of the slice, if they are a slice's"
            }
            _ => "the other hosts of the slice",
        };
        format!(
            "error: {process}waited {seconds} s for {what} ({phase}): one of them is missing, has stopped or has failed; see what they say; --slice-timeout says how long to wait"
        )
    };
    // A busy machine may be late to look at the clock.
    let found = phases.iter().any(|phase| (LIMIT..LIMIT + 4).any(|seconds| error == text(phase, seconds)));
    assert!(found, "{error}, expected one of {phases:?}");
}

/// Runs cases, some at a time: most of their time is spent waiting.
fn run_all(cases: Vec<Case>) {
    const AT_A_TIME: usize = 3;
    let next = AtomicUsize::new(0);
    let cases = cases.into_iter().map(|case| Mutex::new(Some(case))).collect::<Vec<_>>();
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let case = case.lock().unwrap().take().unwrap();
            let (name, started) = (case.name.clone(), Instant::now());
            if case.run().is_none() {
                return;
            }
            eprintln!("{:5.1} s {name}", started.elapsed().as_secs_f64());
        }
    };
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(work);
        }
    });
}

/// What the hosts of a training run launch, one after another: the programs before the first step, by the phase in which
/// the other waits if one is not launched, then the steps, 9 on the 360 rows that it trains on and 1 on the others, what
/// gathers the shares that each has of 16 weights and their moments, and where they meet to save. All of the first but one are where they meet: that one makes the zeros of the state.
const BEFORE: [&str; 10] = [
    "placing the replicas",
    "preparing the output",
    "comparing the hosts",
    "comparing the hosts",
    "looking for a checkpoint",
    "looking for a checkpoint",
    "preparing the output",
    "compiling",
    "loading the weights",
    "loading the weights",
];
const STEPS: usize = 9;
const SHARES: usize = 16 * 3;
const EPOCH: usize = STEPS + 1 + SHARES + 1;

/// Has a host fail in this way at its `number`-th launch, from 1.
fn at_launch(kind: &str, number: usize) -> String {
    format!("{kind}:LoadedExecutable_Execute:{number}")
}

/// At a step of training, from 1, over all epochs.
fn at_step(kind: &str, step: usize) -> String {
    at_launch(kind, BEFORE.len() + (step - 1) / STEPS * EPOCH + (step - 1) % STEPS + 1)
}

/// The same training run on both hosts, in a folder that is named after it, which only the chief knows.
fn training(folder: &Path, name: &str, flags: &[&str]) -> [Command; 2] {
    let flags = [&["--batch-size", "40", "--epochs", "100000"], flags].concat();
    [train(&folder.join(name), &flags), train(&folder.join("never"), &flags)]
}

/// What `expected` is for the host that isn't the faulty one.
fn ends(faulty: usize, faulty_ends: Expected, other_ends: Expected) -> [Expected; 2] {
    let mut expected = [other_ends; 2];
    expected[faulty] = faulty_ends;
    expected
}

#[test]
fn a_host_that_is_killed_in_any_phase_leaves_the_other_to_its_time_limit() {
    let folder = empty_folder("faults_killed");
    let case = |faulty: usize, fault: &str, phase: &'static str, flags: &[&str]| {
        let name = fault.replace(':', "_");
        Case::new("train", training(&folder, &name, flags), ends(faulty, Killed, Waits(phase)))
            .fault(faulty, fault)
    };
    let mut cases = vec![
        case(1, "kill:Client_Create:1", "connecting to the devices", &[]),
        case(0, "kill:Client_Create:1", "connecting to the devices", &[]),
        // The first program is the one that they meet by, then come the train step and the evaluation.
        case(1, "kill:Client_Compile:2", "compiling", &["--no-cache"]),
        case(0, "kill:Client_Compile:3", "compiling", &["--no-cache"]),
        // Two uploads, one for each of the host's devices, at each meeting before.
        case(0, "kill:Client_BufferFromHostBuffer:25", "loading the weights", &[]),
        case(1, &at_step("kill", 5), "a step", &[]),
        case(0, &at_step("kill", 6), "a step", &[]),
        case(1, &at_launch("kill", BEFORE.len() + STEPS + 1), "a step", &[]),
        case(0, &at_launch("kill", BEFORE.len() + EPOCH + STEPS + 1), "a step", &[]),
        case(1, &at_launch("kill", BEFORE.len() + EPOCH - 1), "gathering the state", &[]),
        case(0, &at_launch("kill", BEFORE.len() + EPOCH - SHARES), "gathering the state", &[]),
        case(1, &at_launch("kill", BEFORE.len() + EPOCH), "saving", &[]),
    ];
    for (at, phase) in BEFORE.iter().enumerate() {
        cases.push(case(1 - at % 2, &at_launch("kill", at + 1), phase, &[]));
    }
    run_all(cases);
}

#[test]
fn a_host_that_fails_tells_the_other_where_it_can() {
    let folder = empty_folder("faults_fails");
    fs::write(folder.join("file"), "no folder").unwrap();
    let text = fs::read_to_string(asset("sample.csv")).unwrap();
    fs::write(folder.join("damaged.csv"), text.replacen("label", "lebal", 1)).unwrap();
    let case = |faulty: usize, fault: &str, other: Expected, flags: &[&str]| {
        let name = fault.replace(':', "_");
        let commands = training(&folder, &name, flags);
        Case::new("train", commands, ends(faulty, Fails(1, "injected"), other)).fault(faulty, fault)
    };
    let read = |faulty: usize, table: &str, message: &'static str| {
        let mut commands = training(&folder, table, &[]);
        let mut reader = command(&["train", "--backend", "cpu", "--random-weights", "--max-length", "24"]);
        reader.arg("--train").arg(folder.join(table)).arg("--model").arg(asset("tiny"));
        reader.arg("--output").arg(folder.join(table).with_extension("run"));
        commands[faulty] = reader;
        Case::new(table, commands, ends(faulty, Fails(2, message), Waits("connecting to the devices")))
    };
    let no_cache = &["--no-cache"][..];
    let replicas = Case {
        replicas: [4, 1],
        ..Case::new(
            "replicas",
            training(&folder, "replicas", &[]),
            [Told("placing the replicas"), Fails(2, "1 replicas: expected 3 to 4")],
        )
    };
    let unwritable = || training(&folder, "file/run", &[]);
    let own = Fails(1, "can't make ");
    run_all(vec![
        read(1, "missing.csv", "missing.csv"),
        read(0, "damaged.csv", "label"),
        replicas,
        case(1, "fail:Client_Create:1", Waits("connecting to the devices"), &[]),
        // Without the program that they meet by, it can tell nobody.
        case(0, "fail:Client_Compile:1", Waits("placing the replicas"), no_cache),
        case(0, "fail:Client_Compile:2", Told("compiling"), no_cache),
        case(1, "fail:Client_Compile:3", Told("compiling"), no_cache),
        case(1, "fail:Client_BufferFromHostBuffer:25", Told("loading the weights"), &[]),
        case(1, &at_launch("fail", 8), Waits("compiling"), &[]),
        case(0, &at_launch("fail", 9), Told("loading the weights"), &[]),
        case(1, &at_step("fail", 5), Waits("a step"), &[]),
        case(0, &at_step("fail", 6), Waits("a step"), &[]),
        // Each launch so far was read once, but for the zeros.
        case(1, &format!("fail:Buffer_ToHostBuffer:{}", BEFORE.len() - 1 + 5), Waits("a step"), &[]),
        // While shares are gathered, a host that fails goes on with the others, and tells them then. The evaluation of one batch
        // is read twice.
        case(
            0,
            &format!("fail:Buffer_ToHostBuffer:{}", BEFORE.len() - 1 + STEPS + 2 + 9),
            Told("saving"),
            &[],
        ),
        Case::new("unwritable", unwritable(), [own, Told("preparing the output")]),
        // Nobody is there to be told, or to end the step that is under way: its own error is what counts.
        Case::new("unwritable", unwritable(), [own, Killed]).fault(1, &at_launch("kill", 2)),
        // The step before the one under way has ended where the other has launched this one: only that one may not end.
        Case::new("train", training(&folder, "alone", &[]), [Fails(1, "injected"), Killed])
            .fault(0, &at_step("fail", 4))
            .fault(1, &at_step("kill", 4)),
    ]);
}

#[test]
fn a_host_that_hangs_is_not_waited_for() {
    let folder = empty_folder("faults_hangs");
    let case = |expected: [Expected; 2], flags: &[&str]| {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = NUMBER.fetch_add(1, Ordering::Relaxed).to_string();
        Case::new("train", training(&folder, &name, flags), expected)
    };
    let waits = Waits("a step");
    run_all(vec![
        case([Waits("connecting to the devices"); 2], &[]).fault(1, "hang:Client_Create:1"),
        case([Waits("compiling"), Hangs], &["--no-cache"]).fault(1, "hang:Client_Compile:2"),
        // A launch and a read belong to a step, which is waited for in vain by the one that hangs, too.
        case([waits; 2], &[]).fault(0, &at_step("hang", 5)),
        case([waits; 2], &[]).fault(1, &format!("hang:Buffer_ToHostBuffer:{}", BEFORE.len() - 1 + 5)),
        // A plugin that doesn't come to its end, of a host that has waited and of one that has failed.
        case([waits, Killed], &[]).fault(0, "hang:exit:1").fault(1, &at_step("kill", 5)),
        Case::new(
            "unwritable",
            training(Path::new("/dev/null"), "run", &[]),
            [Fails(1, "can't make "), Told("preparing the output")],
        )
        .fault(0, "hang:exit:1"),
    ]);
}

/// `encode` of the sample.
fn encode(output: &Path) -> Command {
    let mut command = command(&["encode", "--backend", "cpu", "--max-length", "24", "--batch-size", "40"]);
    command.arg("--model").arg(demo().join("run")).arg("--input").arg(asset("sample.csv"));
    command.arg("--output").arg(output);
    command
}

/// `evaluate`, `predict` or `encode`.
fn job(name: &str, output: &Path) -> Command {
    let (run, data) = (demo().join("run"), asset("sample.csv"));
    let batch = ["--batch-size", "40"];
    match name {
        "encode" => encode(output),
        "predict" => {
            with_run(name, &run, &data, &[&batch[..], &["--output", output.to_str().unwrap()]].concat())
        }
        _ => with_run(name, &run, &data, &batch),
    }
}

#[test]
fn evaluate_predict_and_encode_stop_too_and_leave_nothing_behind() {
    // They meet 5 or 6 times before the first of their steps, of which there are 10 or 11.
    let fault = at_launch("kill", 12);
    let folder = empty_folder("faults_infer");
    fs::write(folder.join("file"), "no folder").unwrap();
    let mut cases = vec![];
    let killed =
        ["evaluate", "predict", "encode"].map(|name| (name, empty_folder(&format!("faults_{name}"))));
    for (name, folder) in &killed {
        let commands = || [job(name, &folder.join("output")), job(name, &folder.join("output"))];
        cases.push(Case::new(name, commands(), [Waits("a step"), Killed]).fault(1, &fault));
        cases.push(
            Case::new(name, commands(), [Told("loading the weights"), Fails(1, "injected")])
                .fault(1, "fail:Client_BufferFromHostBuffer:10"),
        );
    }
    cases.push(
        Case::new(
            "predict",
            [(); 2].map(|()| job("predict", &folder.join("orphan"))),
            [Killed, Waits("a step")],
        )
        .fault(0, &fault),
    );
    // An error of the device's is none of the file's.
    let commands = [(); 2].map(|()| job("encode", &folder.join("fails")));
    let own = Fails(1, "process 0: PJRT_LoadedExecutable_Execute: INTERNAL: injected");
    cases.push(Case::new("encode", commands, [own, Waits("a step")]).fault(0, &at_launch("fail", 12)));
    // What can't be made, and what takes nothing.
    let unwritable = |name, output: &Path, phase| {
        let commands = [(); 2].map(|()| job(name, output));
        Case::new(name, commands, [Fails(1, "can't write "), Told(phase)])
    };
    for name in ["predict", "encode"] {
        cases.push(unwritable(name, &folder.join("file/output"), "preparing the output"));
    }
    cases.push(unwritable("predict", Path::new("/dev/full"), "saving"));
    run_all(cases);
    for (name, folder) in killed {
        let left = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        assert_eq!(left, [] as [PathBuf; 0], "{name}");
    }
}

/// The epochs of the run that our readers find in a folder.
#[track_caller]
fn epochs(root: &Path) -> usize {
    Run::open(root).unwrap();
    fs::read_to_string(model_folder(root).unwrap().join(layout::HISTORY)).unwrap().lines().count()
}

#[test]
fn whatever_ends_it_a_run_holds_a_whole_epoch() {
    let Some(killer) = killer("faults_killer") else { return };
    let folder = empty_folder("faults_run");
    let run = |name: &str| folder.join(name);
    let mid_epoch = Case::new("train", training(&folder, "mid_epoch", &[]), [Waits("a step"), Killed])
        .fault(1, &at_step("kill", 2 * STEPS + 5));
    // The chief touches files only where it saves: about 25 times each time.
    let mut saving =
        Case::new("saving", training(&folder, "saving", &["--no-cache"]), [Killed, WaitsBesideSaving]);
    saving.commands[0].env("LD_PRELOAD", &killer).env("KILL_AT", "60");
    run_all(vec![mid_epoch, saving]);
    assert_eq!(epochs(&run("mid_epoch")), 2);
    assert!((1..=3).contains(&epochs(&run("saving"))));
}

#[test]
fn signals_end_one_host_and_the_time_limit_the_other() {
    let folder = empty_folder("faults_signals");
    let limit = LIMIT.to_string();
    let check = |faulty: usize, signal: &str| {
        let Some(slice) = Slice::start(2) else { return };
        let output = format!("{signal}_{faulty}");
        let [chief, other] = training(&folder, &output, &["--slice-timeout", &limit]);
        let mut hosts = [slice.spawn(0, chief, 4), slice.spawn(1, other, 4)];
        hosts[0].wait_for("Epoch 2/");
        hosts[faulty].signal(signal);
        let sent = Instant::now();
        if faulty == 0 {
            hosts.reverse();
        }
        let [left, faulty_host] = hosts;
        let end = left.wait();
        assert!(sent.elapsed() < Duration::from_secs(LIMIT + 30), "{output}: {:?}", sent.elapsed());
        assert_eq!(end.code, Some(1), "{output}: {end:?}");
        // It may be in a step, or waiting for the other to save.
        let phases = ["a step", "gathering the state", "saving"];
        assert_waited(end.error(), 1 - faulty, &phases);
        if signal == "STOP" {
            // It goes on where the other is gone.
            faulty_host.signal("CONT");
            let end = faulty_host.wait();
            assert_eq!(end.code, Some(1), "{output}: {end:?}");
            assert_waited(end.error(), faulty, &phases);
        } else {
            assert_eq!(faulty_host.wait().code, None);
        }
        slice.wait();
        assert!(epochs(&folder.join(output)) >= 1);
    };
    thread::scope(|scope| {
        for (faulty, signal) in [(0, "KILL"), (1, "KILL"), (1, "STOP")] {
            let check = &check;
            scope.spawn(move || check(faulty, signal));
        }
    });
}

/// All of a run takes longer than any wait may.
#[test]
fn a_healthy_slice_outlives_its_time_limit() {
    let folder = empty_folder("faults_healthy");
    let Some(slice) = Slice::start(2) else { return };
    let flags = ["--batch-size", "40", "--epochs", "100000", "--slice-timeout", &LIMIT.to_string()];
    let started = Instant::now();
    let mut chief = slice.spawn(0, train(&folder.join("run"), &flags), 4);
    let mut other = slice.spawn(1, train(&folder.join("run"), &flags), 4);
    chief.wait_for("Epoch 3/");
    while started.elapsed() < Duration::from_secs(2 * LIMIT) {
        assert!(chief.is_running() && other.is_running(), "{}{}", chief.stderr(), other.stderr());
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn who_embeds_it_is_told_of_a_timeout() {
    let Some(slice) = Slice::start(2) else { return };
    let mut host = Command::new(std::env::current_exe().unwrap());
    host.args(["--exact", "slices_faults::host_that_is_told_of_a_timeout", "--ignored", "--nocapture"]);
    let end = slice.spawn_other(0, host).wait();
    assert_eq!(end.code, Some(7), "{end:?}");
    assert_eq!(end.stdout.matches("waits: ").count(), 1, "{end:?}");
    assert!(end.stdout.contains("waits: connecting to the devices, true\n"), "{end:?}");
    assert!(end.stdout.contains("told: connecting to the devices, true"), "{end:?}");
    slice.wait();
}

#[test]
#[ignore = "the host of who_embeds_it_is_told_of_a_timeout"]
fn host_that_is_told_of_a_timeout() {
    const LIMIT: Duration = Duration::from_millis(1500);
    let on_timeout = |error: Error| {
        match error {
            Error::Timeout { phase, waited } => println!("told: {phase}, {}", waited >= LIMIT),
            other => println!("{other}"),
        }
        std::process::exit(7);
    };
    let options = DeviceOptions {
        wait_notice: LIMIT / 3,
        on_wait: Arc::new(|phase, waited| println!("waits: {phase}, {}", waited >= LIMIT / 3)),
        backend: Some(Backend::Cpu),
        replicas: Some(4),
        plugin: Some(std::env::var_os("SLICE_PLUGIN").expect("a slice").into()),
        slice_timeout: LIMIT,
        on_timeout: Arc::new(on_timeout),
        ..Default::default()
    };
    Replicas::connect(&options).map(drop).unwrap();
}
