//! Slices of several hosts: where each process places the replicas, and a slice made of this machine's CPU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bert_xla::data::{Dataset, Order, Tokens};
use bert_xla::exec::{Placement, PlacementError};
use bert_xla::pjrt::{
    Argument, Backend, Buffer, CompileOptions, Completion, Execution, LoadedExecutable, Module, ModuleFormat,
    PendingRead, Plugin, cpu_device_count,
};
use bert_xla::shape::{ElementType, Shape};
use serde_json::Value as Json;

use crate::common::cli::{asset, command, copy_of_run, demo, fails, json_lines, text, train, with_run};
use crate::common::empty_folder;
use crate::common::slice::{End, Slice, run_hosts, wait};

/// The devices of a slice as `(id, process)`, listed in an order that differs from one `view` to the next. Ids go
/// round the processes, so that neighbours by id are no neighbours by process.
fn devices(count: i32, processes: i32, view: i32) -> Vec<(i32, i32)> {
    let mut devices = (0..count).map(|id| (100 + id, id % processes)).collect::<Vec<_>>();
    fastrand::Rng::with_seed(view as u64).shuffle(&mut devices);
    devices
}

fn placement(count: i32, processes: i32, process: i32, replicas: Option<usize>) -> Result<Placement, String> {
    let placement = Placement::new(&devices(count, processes, process), process, replicas);
    placement.map_err(|error: PlacementError| error.to_string())
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
        let message = format!("{replicas} replicas: expected 1 to 8, the number of devices");
        assert_eq!(placement(8, 1, 0, Some(replicas)), Err(message));
    }
    assert!(placement(8, 1, 0, Some(1)).is_ok());
    // Two of four processes would be idle; then one of them.
    for replicas in [0, 4, 6, 9] {
        for process in 0..4 {
            let message = format!(
                "{replicas} replicas: expected 7 to 8: each host that runs this needs one or more of the 8 devices"
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
    let tokens = Arc::new(Tokens::new((0..ROWS as u32).map(|row| [row]), 1, 0));
    let classes = (0..ROWS as u32).collect::<Vec<_>>();
    let order = Order::Shuffled { seed: 7, epoch: 3 };
    let mut orders = Vec::new();
    for (count, processes) in [(8, 1), (8, 2), (8, 4), (32, 1), (32, 2), (32, 4)] {
        // What each process feeds, batch by batch: rows, labels and weights.
        let feed = |process| {
            let placement = placement(count, processes, process, None).unwrap();
            // Each process reads the table anew.
            let (tokens, classes) = (tokens.clone(), classes.clone());
            let data = Dataset::new(&tokens, &classes, (0..ROWS).collect());
            let share = |batch: &bert_xla::data::Batch| {
                let rows = placement.local().map(|replica| {
                    let ids = placement.part(&batch.input_ids, replica);
                    assert_eq!(placement.part(&batch.labels, replica), ids);
                    let weights = placement.part(&batch.weights, replica);
                    ids.iter().copied().zip(weights.iter().copied()).collect::<Vec<_>>()
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

/// The parts of a run's history that are not times.
fn history(run: &Path) -> Vec<[Json; 4]> {
    let lines = json_lines(&fs::read_to_string(run.join("history.jsonl")).unwrap());
    let parts = ["loss", "accuracy", "val_loss", "val_accuracy"];
    lines.iter().map(|line| parts.map(|part| line[part].clone())).collect()
}

/// Each host is a process that meets the other in the plugin alone. A wrong weight on one of the second's devices would
/// show in the losses, which are sums over all.
#[test]
fn two_hosts_train_as_one_does() {
    let folder = empty_folder("slice_train");
    let (one, chief, other) = (folder.join("one"), folder.join("chief"), folder.join("other"));
    let flags = ["--dropout", "0.2", "--learning-rate", "1e-3", "--batch-size", "40", "--epochs", "3"];
    let hosts = [train(&chief, &flags), train(&other, &flags)];
    let Some(hosts) = run_hosts(4, hosts) else { return };
    assert_eq!(hosts.each_ref().map(|host| host.code), [Some(0); 2], "{hosts:?}");
    let alone = train(&one, &flags).args(["--replicas", "4"]).output().unwrap();
    assert!(alone.status.success(), "{}", text(alone.stderr));
    let expected = history(&one);
    assert_eq!((expected.len(), history(&chief)), (3, expected));
    let weights = [&one, &chief].map(|run| fs::read(run.join("model.safetensors")).unwrap());
    assert!(weights[0] == weights[1], "the weights differ");
    assert!(!other.exists());
}

/// `train` or `encode`, whose `input` is `data`, with `model`.
fn with_model(name: &str, model: &Path, input: &str, data: &Path, output: &Path) -> Command {
    let mut command = command(&[name, "--backend", "cpu", "--max-length", "24"]);
    command.arg("--model").arg(model).arg(input).arg(data).arg("--output").arg(output);
    command
}

#[test]
fn only_the_chief_writes_and_speaks() {
    let folder = empty_folder("slice_speaks");
    let (run, data) = (demo().join("run"), asset("sample.csv"));
    let job = |name: &str, output: &Path| match name {
        "run" => train(output, &["--epochs", "1", "--batch-size", "80"]),
        "evaluate" => with_run("evaluate", &run, &data, &[]),
        "labels.csv" => with_run("predict", &run, &data, &["--output", output.to_str().unwrap()]),
        _ => with_model("encode", &run, "--input", &data, output),
    };
    for name in ["run", "evaluate", "labels.csv", "vectors"] {
        let outputs = ["chief", "other"].map(|host| folder.join(format!("{host}_{name}")));
        let Some([chief, other]) = run_hosts(2, outputs.each_ref().map(|output| job(name, output))) else {
            return;
        };
        let silent = End { code: Some(0), stdout: String::new(), stderr: String::new() };
        assert_eq!((chief.code, other), (Some(0), silent), "{name}: {chief:?}");
        assert_eq!(outputs[0].exists(), name != "evaluate", "{name}");
        assert!(!outputs[1].exists(), "{name}");
        assert!(!(chief.stdout + &chief.stderr).is_empty(), "{name}");
    }
    // Errors are for all to tell, and say whose they are. This one comes from a step that both took part in.
    let diverging = || train(&folder.join("diverging"), &["--learning-rate", "1e30"]);
    let hosts = run_hosts(2, [diverging(), diverging()]).unwrap();
    for (process, host) in hosts.iter().enumerate() {
        assert_eq!(host.code, Some(1));
        let expected = format!("error: process {process}: the loss is ");
        assert!(host.error().starts_with(&expected), "{host:?}");
    }
}

#[test]
fn hosts_that_differ_are_refused_and_told_in_what() {
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
        let Some(hosts) = run_hosts(4, commands) else { return };
        assert_refused(&hosts, part);
    }
    assert!(!output.join("model.safetensors").exists() && !labels.exists());
}

#[track_caller]
fn assert_refused(hosts: &[End; 2], part: &str) {
    for (process, host) in hosts.iter().enumerate() {
        let expected = format!(
            "error: process {process}: the hosts of the slice differ from process 0: process 1 in {part}; give each \
             the same program, files and arguments"
        );
        assert_eq!((host.code, host.error()), (Some(2), expected.as_str()));
    }
}

#[test]
fn a_host_that_fails_alone_stops_the_others() {
    let folder = empty_folder("slice_alone");
    fs::write(folder.join("file"), "no folder").unwrap();
    fs::create_dir_all(folder.join("unwritable/history.jsonl")).unwrap();
    let run = copy_of_run("slice_alone_run");
    for (output, (code, part)) in [
        (folder.join("file/run"), (1, "can't make ")),
        (folder.join("unwritable"), (2, "already holds history.jsonl, which a run would replace")),
        (run, (2, "already holds a run; choose another --output")),
    ] {
        let host = || train(&output, &["--epochs", "2", "--batch-size", "80"]);
        let Some([chief, other]) = run_hosts(4, [host(), host()]) else { return };
        assert!(chief.code == Some(code) && chief.error().contains(part), "{chief:?}");
        let told = "error: process 1: process 0 of the slice has failed and says why; this one stops too";
        assert!(other.code == Some(1) && other.error().starts_with(told), "{other:?}");
    }
}

/// They meet on all devices, whatever replicas each was told of.
#[test]
fn hosts_with_other_numbers_of_replicas_are_refused() {
    let Some(slice) = Slice::start(2) else { return };
    let output = empty_folder("slice_replicas").join("run");
    let host = |process, replicas| slice.spawn(process, train(&output, &["--batch-size", "60"]), replicas);
    assert_refused(&wait([host(0, 4), host(1, 3)]), "the options");
}

/// Whatever the other was about to do with it never runs; the slice frees what it held, and ends with the last host.
#[test]
fn a_host_that_is_killed_leaves_the_others_waiting_for_a_time() {
    let Some(mut slice) = Slice::start(2) else { return };
    let output = empty_folder("slice_killed").join("run");
    let flags = ["--batch-size", "40", "--epochs", "100000", "--slice-timeout", "6"];
    let host = |process| slice.spawn(process, train(&output, &flags), 4);
    let (mut chief, other) = (host(0), host(1));
    chief.wait_for("Epoch 2/");
    other.signal("KILL");
    assert_eq!(other.wait().code, None);
    assert!(slice.is_serving() && chief.is_running());
    let end = chief.wait();
    // It may have been in a step, or where they meet after it has saved.
    assert!(end.code == Some(1) && end.error().starts_with("error: process 0: waited "), "{end:?}");
    slice.wait();
}

/// Two processes that are each a host with several threads; they are this test program, told to run the next function.
#[test]
fn any_thread_of_a_host_may_use_its_devices() {
    let Some(slice) = Slice::start(2) else { return };
    let host = |process| {
        let mut host = Command::new(std::env::current_exe().unwrap());
        host.args(["--exact", "slices::host_with_several_threads", "--ignored", "--nocapture"]);
        slice.spawn_other(process, host)
    };
    for host in wait([host(0), host(1)]) {
        assert!(host.code == Some(0) && host.stdout.contains("1 passed"), "{}{}", host.stdout, host.stderr);
    }
    slice.wait();
}

/// Adds the sum of `x` over four replicas, times `factor`, to `total`, in place.
fn add_sum(factor: f32) -> String {
    format!(
        r#"
module @add_sum attributes {{mhlo.num_replicas = 4 : i32}} {{
  func.func public @main(%total: tensor<2xf32> {{tf.aliasing_output = 0 : i32}}, %x: tensor<2xf32>) -> tensor<2xf32> {{
    %sum = "stablehlo.all_reduce"(%x) ({{
      ^bb0(%a: tensor<f32>, %b: tensor<f32>):
        %c = stablehlo.add %a, %b : tensor<f32>
        stablehlo.return %c : tensor<f32>
    }}) {{replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}} : (tensor<2xf32>) -> tensor<2xf32>
    %factor = stablehlo.constant dense<{factor:?}> : tensor<2xf32>
    %scaled = stablehlo.multiply %sum, %factor : tensor<2xf32>
    %new = stablehlo.add %total, %scaled : tensor<2xf32>
    return %new : tensor<2xf32>
  }}
}}"#
    )
}

#[test]
#[ignore = "a host of any_thread_of_a_host_may_use_its_devices"]
fn host_with_several_threads() {
    let plugin = PathBuf::from(std::env::var_os("SLICE_PLUGIN").expect("a slice"));
    let client = Plugin::load(Backend::Cpu, &plugin).unwrap().client(&[cpu_device_count(4)]).unwrap();
    let process = client.process_index();
    let mut own = client.addressable_devices();
    // In the order of the replicas below.
    own.sort_by_key(|device| device.id());
    assert_eq!((client.devices().len(), own.len()), (4, 2));
    let foreign = client.devices().find(|device| device.process_index() != process).unwrap();
    let refused = client.buffer_from_host(&[1f32], &[1], foreign).err().expect("an error").to_string();
    assert!(refused.contains("the device is another host's"), "{refused}");

    let shape = Shape::new(ElementType::F32, [2]);
    let compile = |factor| {
        let (code, parameters) = (add_sum(factor), [shape.clone(), shape.clone()]);
        let program = Module { format: ModuleFormat::Mlir, code: code.as_bytes(), parameters: &parameters };
        client.compile(&program, &CompileOptions::on_devices([0, 1, 2, 3])).unwrap()
    };
    let add = compile(1.0);
    let put = |value: f32| {
        let put = |device| client.buffer_from_host(&[value; 2], &[2], device).unwrap();
        own.iter().map(|device| put(*device)).collect::<Vec<_>>()
    };
    let xs = put(1.0 + process as f32);
    let launch = |program: &LoadedExecutable, totals: Vec<Buffer>| {
        let arguments =
            totals.into_iter().zip(&xs).map(|(t, x)| vec![Argument::Donate(t), Argument::Borrow(x)]);
        let Execution { outputs, completion } = program.execute_async(arguments.collect()).unwrap();
        (outputs.into_iter().flatten().collect::<Vec<_>>(), completion)
    };
    // Host 1 takes part once host 0 has seen that its other threads work while one waits for the launch.
    let go = PathBuf::from(std::env::var_os("SLICE_SOCKET").unwrap()).with_extension("go");
    while process == 1 && !go.exists() {
        thread::sleep(Duration::from_millis(5));
    }
    let (mut totals, first) = launch(&add, put(0.0));
    if process == 0 {
        assert!(!first.is_ready().unwrap());
    }
    thread::scope(|scope| {
        scope.spawn(|| first.wait().unwrap());
        // A read of what the launch will give.
        let total = totals[0].read::<f32>().unwrap();
        let transfers = (0..3).map(|thread| {
            let (client, own) = (&client, &own);
            scope.spawn(move || {
                for round in 0..50u32 {
                    let data = (0..20_000).map(|i| i ^ round << 16 ^ thread << 24).collect::<Vec<u32>>();
                    let device = own[round as usize % own.len()];
                    let buffer = client.buffer_from_shared(data.clone(), &[data.len()], device).unwrap();
                    assert!(buffer.to_host::<u32>().unwrap() == data);
                }
            })
        });
        transfers.collect::<Vec<_>>().into_iter().for_each(|transfer| transfer.join().unwrap());
        if process == 0 {
            assert!(!total.is_ready().unwrap());
            fs::write(&go, "").unwrap();
        }
        assert_eq!(total.wait().unwrap(), [6.0; 2]);
    });

    // Launches whose arguments are outputs of others that are still queued, and donated.
    let mut previous = None;
    for step in 2..=1000 {
        let (new, completion) = launch(&add, totals);
        totals = new;
        let read = totals[1].read::<f32>().unwrap();
        if let Some((completion, read, expected)) = previous.replace((completion, read, 6.0 * step as f32)) {
            let _: () = Completion::wait(completion).unwrap();
            assert_eq!(PendingRead::wait(read).unwrap(), [expected; 2]);
        }
    }
    drop(previous);

    // Each fails on both hosts, and so does what depends on it.
    let (lost, completion) = launch(&compile(2.0 + process as f32), totals);
    let error = completion.wait().unwrap_err().to_string();
    assert!(error.contains("INTERNAL: hosts launched different programs"), "{error}");
    let (lost, completion) = launch(&add, lost);
    assert_eq!(completion.wait().unwrap_err().to_string(), error);
    assert!(lost[0].to_host::<f32>().unwrap_err().to_string().contains("different programs"));
    // The next one runs.
    let (totals, completion) = launch(&add, put(1.0));
    completion.wait().unwrap();
    assert_eq!(totals[1].to_host::<f32>().unwrap(), [7.0; 2]);

    // One host's first launch of a program is not another's thousandth.
    let anew = compile(1.0);
    let (_, completion) = launch(if process == 0 { &add } else { &anew }, put(1.0));
    let error = completion.wait().unwrap_err().to_string();
    assert!(error.contains("INTERNAL: hosts gave a launch different ids"), "{error}");
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
