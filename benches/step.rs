//! Time of a whole train step (forward, backward, Adam) and examples per second, in float32, on the CPU plugin or that of the
//! backend that BERT_XLA_BENCH_BACKEND names, which is installed if it is missing.
//!
//! `cargo bench` runs the tiny, MiniLM and full models; `cargo bench -- full` the article's alone. Weights are random:
//! a step's time doesn't depend on their values. `xla_alone/tiny` runs the same program in a bare loop, with its batch
//! on the device already: what `train_step/tiny` takes more is the trainer's own overhead. `replicas/tiny/4`
//! splits the same batch over 4 replicas: on a CPU they share its cores, so that what more of them take is overhead.
//! Compile time and memory go to stderr.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bert_xla::data::{Dataset, Order, Tokens};
use bert_xla::exec::{DeviceOptions, Executable, Replicas, State};
use bert_xla::hlo::Graph;
use bert_xla::infer::{MeetInput, upload_batch};
use bert_xla::model::{ClassifierConfig, HeadConfig, Size};
use bert_xla::pjrt::Backend;
use bert_xla::pjrt::install::ensure_installed;
use bert_xla::step::{InputId, Layout, LeafId, StepConfig, train_step};
use bert_xla::train::{Origin, TrainOptions, Trainer};
use bert_xla::weights::InitialValues;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

/// As the program's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const BATCH_SIZE: usize = 16;

/// (name, size, how long to measure)
const CASES: [(&str, Size, Duration); 3] = [
    ("tiny", Size::Tiny, Duration::from_secs(10)),
    ("minilm", Size::MiniLm, Duration::from_secs(20)),
    ("full", Size::MBert, Duration::from_secs(100)),
];

fn connect(replicas: usize) -> Replicas {
    let name = std::env::var("BERT_XLA_BENCH_BACKEND").unwrap_or_else(|_| Backend::Cpu.to_string());
    let backend = name.parse::<Backend>().expect("BERT_XLA_BENCH_BACKEND is tpu, gpu or cpu");
    let plugin = Some(ensure_installed(backend).expect("the plugin"));
    let options =
        DeviceOptions { backend: Some(backend), replicas: Some(replicas), plugin, ..Default::default() };
    Replicas::connect(&options).expect("devices")
}

fn model(size: Size) -> ClassifierConfig {
    ClassifierConfig {
        bert: size.config(),
        head: HeadConfig::default(),
        max_length: size.max_length(),
        mask: false,
        zero_padding: false,
        freeze_padding: false,
    }
}

fn trainer(name: &str, size: Size, replicas: usize) -> Trainer {
    let options = TrainOptions::new(1e-5, 0);
    let (model, started) = (model(size), Instant::now());
    let values = InitialValues::Random { seed: 0 };
    let trainer =
        Trainer::new(Arc::new(connect(replicas)), &model, BATCH_SIZE, options, Origin::Weights(&values));
    let trainer = trainer.expect("the train step compiles");
    eprintln!(
        "{name}: {} parameters; train step compiled in {:.1} s, ready after {:.1} s; {:?}",
        model.num_parameters(),
        trainer.programs().compile_time().as_secs_f64(),
        started.elapsed().as_secs_f64(),
        trainer.programs().memory_stats().ok()
    );
    trainer
}

/// `steps` batches of made-up tokens.
fn tokens(size: Size, steps: usize) -> Tokens {
    let (rows, max_length) = (steps * BATCH_SIZE, size.max_length());
    let id = |row, position| ((row * 31 + position * 17) % size.config().vocab_size) as u32;
    let row = |row| (0..max_length).map(|position| id(row, position)).collect::<Vec<_>>();
    Tokens::new((0..rows).map(row), max_length, 0)
}

fn train(criterion: &mut Criterion) {
    let mut group = group_of_steps(criterion, "train_step");
    for (name, size, measurement) in CASES {
        bench_training(group.measurement_time(measurement), name, size, 1);
    }
}

fn replicas(criterion: &mut Criterion) {
    let mut group = group_of_steps(criterion, "replicas");
    for (name, size, measurement) in &CASES[..2] {
        for replicas in [1, 2, 4] {
            let name = format!("{name}/{replicas}");
            bench_training(group.measurement_time(*measurement), &name, *size, replicas);
        }
    }
}

fn group_of_steps<'c>(criterion: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .throughput(Throughput::Elements(BATCH_SIZE as u64))
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10);
    group
}

fn bench_training(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, size: Size, replicas: usize) {
    // Only a case that runs is compiled.
    let mut compiled: Option<Trainer> = None;
    group.bench_function(name, |bencher| {
        let trainer = compiled.get_or_insert_with(|| trainer(name, size, replicas));
        bencher.iter_custom(|steps| {
            let tokens = tokens(size, steps as usize);
            let classes = (0..tokens.len()).map(|row| row as u32 % 4).collect::<Vec<_>>();
            let data = Dataset::new(&tokens, &classes, (0..tokens.len()).collect());
            let started = Instant::now();
            trainer.train_epoch(&data, 1, |_| ()).expect("the step runs");
            started.elapsed()
        });
    });
    if compiled.is_some() {
        eprintln!("{name}: peak memory of the process so far: {}", peak_memory());
    }
}

/// What training waits for while the state is copied for a checkpoint, to be held against a step.
fn snapshot(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("snapshot");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    for (name, size, measurement) in CASES {
        let mut compiled: Option<Trainer> = None;
        group.measurement_time(measurement / 4).bench_function(name, |bencher| {
            let trainer = compiled.get_or_insert_with(|| trainer(name, size, 1));
            // As in training, each copy but the first is made where the one before was.
            let mut copy = Default::default();
            bencher.iter(|| {
                let spare = std::mem::take(&mut copy);
                copy = trainer.snapshot(spare).expect("the state is there");
            });
        });
    }
}

fn xla_alone(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("xla_alone");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(10));
    group.bench_function("tiny", |bencher| {
        let replicas = connect(1);
        let config = StepConfig::new(model(Size::Tiny), BATCH_SIZE, 1);
        let step = Executable::compile(&replicas, train_step(&Graph::new(), &config));
        let step = step.expect("the train step compiles");
        let mut shapes = step.signature().leaves().map(|(_, port)| port.shape.clone());
        let zeros = |leaf: &LeafId, _: &_| {
            let shape = shapes.next().expect("as many leaves as shapes");
            match leaf {
                LeafId::Step => replicas.upload(&[0u32], &[], Layout::Mirrored),
                _ => replicas.upload(vec![0f32; shape.num_elements()], &shape.dims, Layout::Mirrored),
            }
        };
        let mut state = State::start(step.signature(), zeros).expect("fits");
        let (tokens, classes) = (tokens(Size::Tiny, 1), [0; BATCH_SIZE]);
        let data = Dataset::new(&tokens, &classes, (0..BATCH_SIZE).collect());
        let batch = data.batches(BATCH_SIZE, Order::Sequential).next().expect("a batch");
        let mut inputs = upload_batch(&replicas, step.signature(), &batch).expect("fits");
        let rate = replicas.upload(&[1e-5f32], &[], Layout::Mirrored).expect("fits");
        let seed = replicas.upload(&[0u32], &[], Layout::Mirrored).expect("fits");
        inputs.extend([(InputId::LearningRate, rate), (InputId::Seed, seed)]);
        let meet = MeetInput::new(&replicas).expect("fits");
        let inputs = [&inputs, meet.when(false)];
        bencher.iter(|| {
            let pending = step.update(&replicas, &mut state, &inputs).expect("the step is queued");
            pending.wait().expect("the step runs");
        });
    });
}

/// The largest resident set so far, where the system tells.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or("unknown".into(), |line| line.trim().to_owned())
}

criterion_group!(benches, train, replicas, snapshot, xla_alone);
criterion_main!(benches);
