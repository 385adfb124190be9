//! Words and bytes that the hosts of a slice pass to each other, and an evaluation that one of them ends.

use std::cell::Cell;
use std::process::Command;
use std::time::Duration;

use bert_xla::data::Dataset;
use bert_xla::exec::{CHUNK_BYTES, DeviceOptions, Error, Replicas};
use bert_xla::hlo::{Graph, Program};
use bert_xla::infer::{EvalProgram, upload_weights};
use bert_xla::pjrt::Backend;
use bert_xla::pjrt::install::is_installed;
use bert_xla::plan::{self, Compiler, Target};
use bert_xla::shape::{ElementType, Shape};
use bert_xla::step::{StepConfig, eval_step};
use bert_xla::weights::InitialValues;

use crate::common::cli::text;
use crate::common::slice::{Slice, wait};
use crate::common::training::{ROWS, connect, model, sample};

/// This program as a host that runs one of the ignored tests below.
fn host(test: &str) -> Command {
    let mut host = Command::new(std::env::current_exe().unwrap());
    host.args(["--exact", &format!("slices_streams::{test}"), "--ignored", "--nocapture"]);
    host
}

/// A host's replicas, of six over all hosts.
fn connect_host(slice_timeout: Duration) -> Replicas {
    let options = DeviceOptions {
        backend: Some(Backend::Cpu),
        replicas: Some(6),
        plugin: Some(std::env::var_os("SLICE_PLUGIN").expect("a slice").into()),
        slice_timeout,
        ..Default::default()
    };
    Replicas::connect(&options).unwrap()
}

/// Every byte follows every other one.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect()
}

const PHASE: &str = "passing bytes on";

#[derive(Debug)]
enum Failure {
    Exec(Error),
    /// Of a source or a sink.
    Own(&'static str),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Exec(error)
    }
}

/// Sends `bytes` in parts of an odd length; the source fails after them if it is to.
fn send(replicas: &Replicas, mut bytes: &[u8], fails: bool) -> Result<(), Failure> {
    replicas.send(PHASE, |buffer| {
        let length = bytes.len().min(buffer.len()).min(1_000_003);
        if length == 0 && fails {
            return Err(Failure::Own("the source"));
        }
        let (part, rest) = bytes.split_at(length);
        buffer[..length].copy_from_slice(part);
        bytes = rest;
        Ok(length)
    })
}

fn receive(replicas: &Replicas) -> Result<Vec<u8>, Failure> {
    let mut received = vec![];
    replicas.receive(PHASE, |part| {
        received.extend_from_slice(part);
        Ok::<_, Failure>(())
    })?;
    Ok(received)
}

#[test]
fn hosts_pass_each_other_words_and_bytes() {
    let Some(slice) = Slice::start(3) else { return };
    let hosts = [0, 1, 2].map(|process| slice.spawn_other(process, host("host_that_passes_words_and_bytes")));
    for host in wait(hosts) {
        assert!(host.code == Some(0) && host.stdout.contains("1 passed"), "{}{}", host.stdout, host.stderr);
    }
    slice.wait();
}

#[test]
#[ignore = "a host of hosts_pass_each_other_words_and_bytes"]
fn host_that_passes_words_and_bytes() {
    let replicas = connect_host(Duration::from_secs(600));
    let process = replicas.process_index();
    let (own, most) = (process as u32, [u32::MAX; 32]);
    let gathered = replicas.gather("gathering", &[own, !own]).unwrap();
    assert_eq!(gathered, [[0, !0], [1, !1], [2, !2]]);
    assert_eq!(replicas.gather("gathering", &[]).unwrap(), [[0; 0]; 3]);
    assert_eq!(replicas.gather("gathering", &most).unwrap(), [most; 3]);

    for sender in [2, 0, 1] {
        for length in [0, 1, 256, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES] {
            let bytes = bytes(length);
            if process == sender {
                send(&replicas, &bytes, false).unwrap();
            } else {
                let received = receive(&replicas).unwrap();
                assert!(received == bytes, "{length} bytes of {sender}, received {}", received.len());
            }
        }
    }

    // Of a source that fails, all are told.
    for length in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1] {
        let failure = match process {
            1 => send(&replicas, &bytes(length), true).unwrap_err(),
            _ => receive(&replicas).unwrap_err(),
        };
        match (process, failure) {
            (1, Failure::Own("the source")) => {}
            (0 | 2, Failure::Exec(Error::OtherProcess { process: 1, phase: PHASE })) => {}
            (_, other) => panic!("{other:?}"),
        }
    }
    // And of a sink.
    let refuse = |_: &[u8]| Err(Failure::Own("the sink"));
    let failure = match process {
        0 => send(&replicas, &bytes(3 * CHUNK_BYTES), false).unwrap_err(),
        1 => receive(&replicas).unwrap_err(),
        _ => replicas.receive(PHASE, refuse).unwrap_err(),
    };
    match (process, failure) {
        (2, Failure::Own("the sink")) => {}
        (0 | 1, Failure::Exec(Error::OtherProcess { process: 2, phase: PHASE })) => {}
        (_, other) => panic!("{other:?}"),
    }
    // Neither is in the way of what comes next.
    assert_eq!(replicas.gather("gathering", &[own]).unwrap(), [[0], [1], [2]]);
}

/// A host dies in the second of three chunks: as the sender, and as one that receives.
#[test]
fn a_host_that_dies_in_a_stream_leaves_the_others_to_their_time_limit() {
    for dies in [0, 1] {
        let Some(slice) = Slice::start(2) else { return };
        let hosts = [0, 1].map(|process| {
            let mut host = host("host_of_a_stream_that_is_cut");
            if process == dies {
                // Placing the replicas, compiling, and a chunk were launched before.
                host.env("SLICE_FAULT", "kill:LoadedExecutable_Execute:4");
            }
            slice.spawn_other(process, host)
        });
        let ends = wait(hosts);
        assert_eq!(ends[dies].code, None, "{ends:#?}");
        let other = &ends[1 - dies];
        assert_eq!(other.code, Some(1), "{ends:#?}");
        let said = format!(" s for the other hosts of the slice ({PHASE}): one of them is missing");
        assert!(other.stderr.contains(&said), "{ends:#?}");
        assert_eq!(other.stderr.contains("part 1\n"), dies == 0, "{ends:#?}");
        assert!(!other.stderr.contains("part 2\n"), "{ends:#?}");
        slice.wait();
    }
}

#[test]
#[ignore = "a host of a_host_that_dies_in_a_stream_leaves_the_others_to_their_time_limit"]
fn host_of_a_stream_that_is_cut() {
    let replicas = connect_host(Duration::from_secs(6));
    if replicas.is_chief() {
        send(&replicas, &bytes(3 * CHUNK_BYTES - 1), false).unwrap();
    } else {
        let mut parts = 0;
        let count = |_: &[u8]| {
            parts += 1;
            eprintln!("part {parts}");
            Ok::<_, Error>(())
        };
        replicas.receive(PHASE, count).unwrap();
    }
}

/// libtpu compiles what passes bytes on, for a slice of 4 hosts; in a process of its own, as it is elsewhere.
#[test]
fn the_sum_of_words_compiles_for_tpus() {
    if !is_installed(Backend::Tpu).unwrap() {
        return eprintln!("skipped: no TPU plugin; `bert-xla plugins install tpu` brings it");
    }
    let output = host("process_that_compiles_for_tpus").output().unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
}

#[test]
#[ignore = "the process of the_sum_of_words_compiles_for_tpus"]
fn process_that_compiles_for_tpus() {
    let graph = Graph::new();
    let words = graph.parameter("words", Shape::new(ElementType::U32, [1 << 20]));
    let program = Program::new("broadcast", vec![words], vec![words.all_reduce_sum()]);
    for topology in ["v3:4x4x1", "v5e:4x4"] {
        let compiler = Compiler::new(Target::Tpu(plan::Slice::parse(topology).unwrap())).unwrap();
        let (executable, _) = compiler.compile(&program, compiler.devices()).unwrap();
        let memory = executable.memory_stats().unwrap();
        // What goes in and what comes out, and nothing beside.
        assert_eq!((memory.arguments, memory.temporaries), (4 << 20, 0), "{topology}: {memory:?}");
        assert!((4 << 20..5 << 20).contains(&memory.outputs), "{topology}: {memory:?}");
    }
}

#[test]
fn a_process_that_is_alone_has_nobody_to_pass_anything_to() {
    let replicas = connect(2);
    assert_eq!(replicas.gather("gathering", &[1, 2]).unwrap(), [[1, 2]]);
    send(&replicas, &[1], true).unwrap();
    assert!(receive(&replicas).unwrap().is_empty());
}

#[test]
fn a_host_that_asks_ends_the_evaluation_of_all_after_the_same_batch() {
    let Some(slice) = Slice::start(2) else { return };
    let hosts = [0, 1].map(|process| slice.spawn_other(process, host("host_that_evaluates")));
    for host in wait(hosts) {
        assert!(host.code == Some(0) && host.stdout.contains("1 passed"), "{}{}", host.stdout, host.stderr);
    }
    slice.wait();
}

#[test]
#[ignore = "a host of a_host_that_asks_ends_the_evaluation_of_all_after_the_same_batch"]
fn host_that_evaluates() {
    let replicas = connect_host(Duration::from_secs(600));
    let (tokens, classes) = sample();
    // Five batches of 6.
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect());
    let model = model(0.0);
    let config = StepConfig::new(model.clone(), 1, 6);
    let signature = eval_step(&Graph::new(), &config).signature;
    let values = InitialValues::Random { seed: 7 };
    let weights = upload_weights(&replicas, &signature, &model.weights(), &values).unwrap();
    let program = EvalProgram::compile(&replicas, &config).unwrap();
    for asking in [0, 1] {
        let batches = Cell::new(0);
        // From the third batch on, one host alone.
        let asks = || {
            batches.set(batches.get() + 1);
            replicas.process_index() == asking && batches.get() >= 3
        };
        assert_eq!(program.evaluate(&replicas, &weights, &data, &asks).unwrap(), None);
        assert_eq!(batches.get(), 4, "the third, and the one that was queued before it was read");
    }
    assert!(program.evaluate(&replicas, &weights, &data, &|| false).unwrap().is_some());
}
