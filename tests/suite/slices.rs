//! Slices of several hosts: where each process places the replicas, and a slice made of this machine's CPU.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::thread;

use bert_xla::agreement::SharedInputs;
use bert_xla::cli::{self, Cli};
use bert_xla::data::{Dataset, Order, Tokens};
use bert_xla::error::Error;
use bert_xla::placement::Placement;
use bert_xla::train::{StepConfig, StepKind};
use clap::Parser;
use ndarray::Array2;

use crate::common::cli::{asset, command, copy_of_run, demo, fails, text, train, with_run};
use crate::common::training::{Run, model, run, sample, strategy, strategy_with};
use crate::common::{cpu_plugin, empty_folder};

/// The devices of a slice as `(id, process)`, listed in an order that differs from one `view` to the next. Ids go
/// round the processes, so that neighbours by id are no neighbours by process.
fn devices(count: i32, processes: i32, view: i32) -> Vec<(i32, i32)> {
    let mut devices = (0..count).map(|id| (100 + id, id % processes)).collect::<Vec<_>>();
    fastrand::Rng::with_seed(view as u64).shuffle(&mut devices);
    devices
}

fn placement(count: i32, processes: i32, process: i32, replicas: Option<usize>) -> Result<Placement, String> {
    let placement = Placement::new(&devices(count, processes, process), process, replicas);
    placement.map_err(|error| {
        assert!(matches!(error, Error::Usage(_)), "{error}");
        error.to_string()
    })
}

#[test]
fn every_process_arrives_at_the_same_placement() {
    for count in [8, 32] {
        for processes in [1, 2, 4] {
            // By process, then by id.
            let by_process = |process| (0..count).filter(move |id| id % processes == process);
            let expected = (0..processes).flat_map(by_process).map(|id| 100 + id).collect::<Vec<_>>();
            let all = count as usize;
            for replicas in [None, Some(all), Some(all - 1)] {
                let wanted = replicas.unwrap_or(all);
                let mut next = 0;
                for process in 0..processes {
                    let view = placement(count, processes, process, replicas).unwrap();
                    assert_eq!((view.replicas(), view.device_ids()), (wanted, &expected[..wanted]));
                    // Neighbours, and those of all processes one after another.
                    assert_eq!(view.local().start, next);
                    next = view.local().end;
                    for id in &view.device_ids()[view.local()] {
                        assert_eq!((id - 100) % processes, process);
                    }
                }
                assert_eq!(next, wanted);
            }
        }
    }
}

#[test]
fn replicas_that_the_devices_dont_allow_are_refused() {
    for replicas in [0, 9] {
        let message = format!("--replicas {replicas}: expected 1 to 8, the number of devices");
        assert_eq!(placement(8, 1, 0, Some(replicas)), Err(message));
    }
    assert!(placement(8, 1, 0, Some(1)).is_ok());
    // Two of four processes would be idle; then one of them.
    for replicas in [0, 4, 6, 9] {
        for process in 0..4 {
            let message = format!(
                "--replicas {replicas}: expected 7 to 8: each host that runs this needs one or more of the 8 devices"
            );
            assert_eq!(placement(8, 4, process, Some(replicas)), Err(message));
        }
    }
    assert_eq!(placement(8, 4, 3, Some(7)).unwrap().local(), 6..7);
    let message = "process 4 of the slice has none of its 8 devices";
    assert_eq!(placement(8, 4, 4, None), Err(message.to_owned()));
}

#[test]
fn the_shares_of_all_processes_are_the_batch() {
    const ROWS: usize = 150;
    // Each row is known by its token.
    let tokens =
        Tokens { input_ids: Array2::from_shape_fn((ROWS, 1), |(row, _)| row as i32), lengths: vec![1; ROWS] };
    let classes = (0..ROWS as u32).collect::<Vec<_>>();
    let order = Order::Shuffled { seed: 7, epoch: 3 };
    let mut orders = Vec::new();
    for (count, processes) in [(8, 1), (8, 2), (8, 4), (32, 1), (32, 2), (32, 4)] {
        // What each process feeds, batch by batch: rows, labels and weights.
        let feed = |process| {
            let placement = placement(count, processes, process, None).unwrap();
            // Each process reads the table anew.
            let (tokens, classes) = (tokens.clone(), classes.clone());
            let data = Dataset::new(&tokens, &classes, (0..ROWS).collect(), false);
            let share = |batch: &bert_xla::data::Batch| {
                let shares = placement.local().map(|replica| batch.share(replica, placement.replicas()));
                let rows = shares.map(|share| {
                    assert_eq!(share.labels, share.input_ids);
                    share.input_ids.iter().copied().zip(share.weights.iter().copied()).collect::<Vec<_>>()
                });
                rows.collect::<Vec<_>>().concat()
            };
            data.batches(64, order).map(|batch| share(&batch)).collect::<Vec<_>>()
        };
        let fed = (0..processes).map(feed).collect::<Vec<_>>();
        let batch = |at: usize| fed.iter().flat_map(|process| process[at].clone()).collect::<Vec<_>>();
        // Two full batches, and one of 22 rows that 42 fill up.
        let batches = (0..3).map(batch).collect::<Vec<_>>();
        assert!(fed.iter().all(|process| process.len() == 3));
        assert!(batches.iter().all(|batch| batch.len() == 64));
        let real = batches.concat().into_iter().filter(|(_, weight)| *weight == 1.0).map(|(row, _)| row);
        let real = real.collect::<Vec<_>>();
        let mut sorted = real.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..ROWS as i32).collect::<Vec<_>>(), "each row once");
        assert!(batches[2][22..].iter().all(|(row, weight)| *weight == 0.0 && *row == batches[2][0].0));
        orders.push(real);
    }
    assert!(orders.iter().all(|order| *order == orders[0]), "an order that depends on the slice");
    assert_ne!(orders[0], (0..ROWS as i32).collect::<Vec<_>>());
}

/// Builds `slice_plugin.c` for the test `name`: `processes` hosts, the first of them numbered `first`, that share the CPU plugin's
/// devices. Without a C compiler, says so and gives `None`: the test is skipped.
fn slice_plugin(name: &str, processes: usize, first: usize) -> Option<PathBuf> {
    let source = asset("../tests/fixtures/slice_plugin.c");
    let output = empty_folder(&format!("slice_plugin_{name}")).join("slice_plugin.so");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-O1", "-pthread"]);
    compile.arg(format!("-DPROCESSES={processes}")).arg(format!("-DFIRST={first}"));
    compile.arg(format!("-DPLUGIN={:?}", cpu_plugin())).arg("-o").arg(&output).arg(source).arg("-ldl");
    match compile.output() {
        Ok(compiled) => {
            assert!(compiled.status.success(), "{}", text(compiled.stderr));
            Some(output)
        }
        Err(error) => {
            eprintln!("skipped: cc: {error}");
            None
        }
    }
}

/// Each host has a thread, its own strategy and its own trainer; they meet in the plugin alone, which ends the process
/// when one touches another's device, and lists devices in another order than the replicas'.
#[test]
fn two_hosts_train_as_one_does() {
    let Some(plugin) = slice_plugin("train", 2, 0) else { return };
    let one = run(strategy(4), 0.2, 7);
    let host = || {
        let strategy = strategy_with(plugin.clone(), 4);
        assert_eq!((strategy.replicas(), strategy.local_replicas()), (4, 2));
        (strategy.is_chief(), run(strategy, 0.2, 7))
    };
    let hosts = thread::scope(|scope| {
        let hosts = [scope.spawn(host), scope.spawn(host)];
        hosts.map(|host| host.join().unwrap())
    });
    assert_ne!(hosts[0].0, hosts[1].0, "one of them is the chief");
    for (_, host) in hosts {
        assert_eq!(host, Run { weights: one.weights[..2].to_vec(), ..one.clone() });
    }
}

#[test]
fn only_the_chief_writes_and_speaks() {
    let Some(plugin) = slice_plugin("second", 1, 1) else { return };
    let folder = empty_folder("slice_second_process");
    let (run, data) = (demo().join("run"), asset("sample.csv"));
    let output = folder.join("labels.csv");
    let shared = ["--plugin", plugin.to_str().unwrap(), "--replicas", "2"];
    let predict = [&shared[..], &["--output", output.to_str().unwrap()]].concat();
    let mut encode = with_model("encode", &run, "--input", &data, &output);
    encode.args(shared);
    let commands = [
        train(&folder.join("run"), &[&shared[..], &["--epochs", "1", "--batch-size", "80"]].concat()),
        with_run("evaluate", &run, &data, &shared),
        with_run("predict", &run, &data, &predict),
        encode,
    ];
    for mut command in commands {
        let output = command.output().unwrap();
        assert_eq!(
            (output.status.code(), text(output.stdout), text(output.stderr)),
            (Some(0), String::new(), String::new())
        );
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    // Errors are for all to tell, and say whose they are. This one comes from a step that the process took part in.
    let mut diverging = train(&folder.join("run"), &[&shared[..], &["--learning-rate", "1e30"]].concat());
    let message = fails(&mut diverging, 1);
    assert!(message.starts_with("error: process 1: the loss is "), "{message}");
}

/// `train` or `encode`, whose `input` is `data`, with `model`.
fn with_model(name: &str, model: &Path, input: &str, data: &Path, output: &Path) -> Command {
    let mut command = command(&[name, "--backend", "cpu", "--max-length", "24"]);
    command.arg("--model").arg(model).arg(input).arg(data).arg("--output").arg(output);
    command
}

/// Runs two command lines, each as one of two hosts, and gives what they end with: errors with whether the input is at
/// fault.
fn on_two_hosts(plugin: &Path, commands: [Command; 2]) -> [Result<(), (bool, String)>; 2] {
    thread::scope(|scope| {
        let parsed = commands.map(|command| {
            let shared = ["--no-cache", "--replicas", "4", "--plugin"].map(OsString::from);
            let line = [command.get_program()].into_iter().chain(command.get_args()).map(OsString::from);
            Cli::try_parse_from(line.chain(shared).chain([plugin.into()])).unwrap()
        });
        let run = |cli| cli::run(cli).map_err(|error| (error.is_input_error(), error.to_string()));
        let hosts = parsed.map(|cli| scope.spawn(move || run(cli)));
        hosts.map(|host| host.join().unwrap())
    })
}

#[test]
fn hosts_that_differ_are_refused_and_told_in_what() {
    let Some(plugin) = slice_plugin("differ", 2, 0) else { return };
    let folder = empty_folder("slice_differ");
    let output = folder.join("run");
    let (data, one_row_less, one_label_other) =
        (asset("sample.csv"), folder.join("less.csv"), folder.join("other.csv"));
    let text = fs::read_to_string(&data).unwrap();
    let (rows, last) = text.trim_end().rsplit_once('\n').unwrap();
    fs::write(&one_row_less, rows).unwrap();
    let (last, label) = last.rsplit_once(',').unwrap();
    let label = if label == "1" { "0" } else { "1" };
    fs::write(&one_label_other, format!("{rows}\n{last},{label}\n")).unwrap();
    // One bit of one weight.
    let (run, other_run) = (demo().join("run"), copy_of_run("slice_differ_run"));
    let mut weights = fs::read(other_run.join("model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    fs::write(other_run.join("model.safetensors"), weights).unwrap();

    let train = |flags: &[&str]| train(&output, &[&["--batch-size", "80"], flags].concat());
    let on = |data: &Path| {
        let mut command = with_model("train", &asset("tiny"), "--train", data, &output);
        command.arg("--random-weights");
        command
    };
    let of = |run: &Path| with_model("train", run, "--train", &data, &output);
    let evaluate = |run: &Path, data: &Path| with_run("evaluate", run, data, &[]);
    let labels = folder.join("labels.csv");
    let predict = |run: &Path| with_run("predict", run, &data, &["--output", labels.to_str().unwrap()]);
    let encode = |run: &Path| with_model("encode", run, "--input", &data, &labels);
    let program = "the program (its version, or the model's configuration)";
    let cases = [
        ([train(&["--seed", "1"]), train(&["--seed", "2"])], "the options"),
        ([train(&["--epochs", "2"]), train(&["--epochs", "1"])], "the options"),
        ([train(&["--dropout", "0.2"]), train(&[])], program),
        ([on(&data), on(&one_row_less)], "the data"),
        ([on(&data), on(&one_label_other)], "the data"),
        ([of(&run), of(&other_run)], "the weights"),
        ([evaluate(&run, &data), evaluate(&other_run, &data)], "the weights"),
        ([evaluate(&run, &data), evaluate(&run, &one_row_less)], "the data"),
        ([predict(&run), predict(&other_run)], "the weights"),
        ([encode(&run), encode(&other_run)], "the weights"),
    ];
    for (commands, part) in cases {
        let message = format!(
            "the hosts of the slice differ from process 0: process 1 in {part}; give each the same program, files and \
             arguments"
        );
        let expected = Err((true, message));
        assert_eq!(on_two_hosts(&plugin, commands), [expected.clone(), expected]);
    }
    assert!(!output.join("model.safetensors").exists() && !labels.exists());
    let one_epoch = || train(&["--epochs", "1"]);
    assert_eq!(on_two_hosts(&plugin, [one_epoch(), one_epoch()]), [Ok(()), Ok(())]);
    assert!(output.join("model.safetensors").exists());
}

#[test]
fn a_host_that_fails_alone_stops_the_others() {
    let Some(plugin) = slice_plugin("alone", 2, 0) else { return };
    let folder = empty_folder("slice_alone");
    fs::write(folder.join("file"), "no folder").unwrap();
    fs::create_dir_all(folder.join("unwritable/history.jsonl")).unwrap();
    let run = copy_of_run("slice_alone_run");
    let told = (false, "process 0 of the slice has failed and says why; this one stops too");
    for (output, (is_input_error, part)) in [
        (folder.join("file/run"), (false, "can't make ")),
        (folder.join("unwritable"), (false, "history.jsonl")),
        (run, (true, "already holds a run; choose another --output")),
    ] {
        let host = || train(&output, &["--epochs", "2", "--batch-size", "80"]);
        let ends = on_two_hosts(&plugin, [host(), host()]).map(Result::unwrap_err);
        let told_first = (ends[0].0, ends[0].1.as_str()) == told;
        let (chief, other) = if told_first { (&ends[1], &ends[0]) } else { (&ends[0], &ends[1]) };
        assert!(chief.0 == is_input_error && chief.1.contains(part), "{chief:?}");
        assert_eq!((other.0, other.1.as_str()), told);
    }
}

/// They meet on all devices, whatever replicas each was told of.
#[test]
fn hosts_with_other_numbers_of_replicas_are_refused() {
    let Some(plugin) = slice_plugin("replicas", 2, 0) else { return };
    let (tokens, classes) = sample();
    let made = Barrier::new(2);
    let host = |replicas: usize| {
        // The first client's devices are those of both.
        let strategy = if replicas == 4 { Some(strategy_with(plugin.clone(), 4)) } else { None };
        made.wait();
        let strategy = strategy.unwrap_or_else(|| strategy_with(plugin.clone(), replicas));
        let data = Dataset::new(&tokens, &classes, (0..tokens.len()).collect(), false);
        let config = StepConfig { model: model(0.1), batch_size: 1, replicas: 1 };
        let inputs = SharedInputs {
            program: &|graph| StepKind::Train.program(graph, &config),
            options: &(),
            data: &[&data],
            weights: None,
        };
        inputs.agree(&strategy).unwrap_err().to_string()
    };
    let errors = thread::scope(|scope| {
        let hosts = [scope.spawn(|| host(4)), scope.spawn(|| host(3))];
        hosts.map(|host| host.join().unwrap())
    });
    for error in errors {
        assert!(error.contains("differ from process 0: process 1 in the options; "), "{error}");
    }
}

/// A host whose files are damaged never joins the slice: the plugin, which is none, is not even opened.
#[test]
fn damaged_weights_are_told_before_a_device_is_taken() {
    let run = copy_of_run("slice_damaged");
    let plugin = run.join("plugin.so");
    fs::write(&plugin, "text").unwrap();
    let weights = fs::read(run.join("model.safetensors")).unwrap();
    fs::write(run.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    let (data, output) = (asset("sample.csv"), run.join("output"));
    let flags = ["--plugin", plugin.to_str().unwrap()];
    let with_output = [&flags[..], &["--output", output.to_str().unwrap()]].concat();
    let mut of_model = [("train", "--train"), ("encode", "--input")]
        .map(|(name, input)| with_model(name, &run, input, &data, &output));
    of_model.iter_mut().for_each(|command| {
        command.args(flags);
    });
    let [train, encode] = of_model;
    for mut command in [
        train,
        encode,
        with_run("evaluate", &run, &data, &flags),
        with_run("predict", &run, &data, &with_output),
    ] {
        let message = fails(&mut command, 2);
        assert!(message.contains("not a complete safetensors file"), "{message}");
    }
}
