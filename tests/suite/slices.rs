//! Slices of several hosts: where each process places the replicas, and a slice made of this machine's CPU.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use bert_xla::data::{Dataset, Order, Tokens};
use bert_xla::error::Error;
use bert_xla::placement::Placement;
use ndarray::Array2;

use crate::common::cli::{asset, demo, fails, text, train, with_run};
use crate::common::training::{Run, run, strategy, strategy_with};
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

/// Builds `slice_plugin.c`: `processes` hosts, the first of them numbered `first`, that share the CPU plugin's
/// devices. Without a C compiler, says so and gives `None`: the test is skipped.
fn slice_plugin(processes: usize, first: usize) -> Option<PathBuf> {
    let source = asset("../tests/fixtures/slice_plugin.c");
    let output = empty_folder(&format!("slice_plugin_{first}_{processes}")).join("slice_plugin.so");
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
    let Some(plugin) = slice_plugin(2, 0) else { return };
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
    let Some(plugin) = slice_plugin(1, 1) else { return };
    let folder = empty_folder("slice_second_process");
    let (run, data) = (demo().join("run"), asset("sample.csv"));
    let output = folder.join("labels.csv");
    let shared = ["--plugin", plugin.to_str().unwrap(), "--replicas", "2"];
    let predict = [&shared[..], &["--output", output.to_str().unwrap()]].concat();
    let mut encode =
        crate::common::cli::command(&["encode", "--backend", "cpu", "--max-length", "24", "--input"]);
    encode.arg(&data).arg("--model").arg(&run).arg("--output").arg(&output).args(shared);
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
