//! Time of a whole train step (forward, backward, Adam) and examples per second, on the CPU plugin, which is
//! installed if it is missing.
//!
//! `cargo bench` runs the tiny, MiniLM-sized and full models; `cargo bench -- full` the article's alone. Weights are
//! random: a step's time doesn't depend on their values. Compile time and the compiled program's memory are printed
//! before each model's timings, and the process's peak memory after them.

use std::time::{Duration, Instant};

use bert_xla::data::{Dataset, Tokens};
use bert_xla::model::{BertConfig, ClassifierConfig, HeadConfig};
use bert_xla::pjrt::Backend;
use bert_xla::pjrt::install::ensure_installed;
use bert_xla::strategy::{Strategy, StrategyOptions};
use bert_xla::train::{InitialValues, TrainOptions, Trainer};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ndarray::Array2;

struct Case {
    name: &'static str,
    batch_size: usize,
    max_length: usize,
    bert: BertConfig,
    measurement: Duration,
}

fn cases() -> [Case; 3] {
    let bert = BertConfig::default();
    [
        Case {
            name: "tiny",
            batch_size: 8,
            max_length: 24,
            bert: BertConfig {
                vocab_size: 640,
                hidden_size: 64,
                num_hidden_layers: 2,
                num_attention_heads: 2,
                intermediate_size: 128,
                ..bert.clone()
            },
            measurement: Duration::from_secs(10),
        },
        Case {
            name: "minilm",
            batch_size: 16,
            max_length: 64,
            bert: BertConfig {
                hidden_size: 384,
                num_hidden_layers: 6,
                intermediate_size: 1536,
                ..bert.clone()
            },
            measurement: Duration::from_secs(20),
        },
        // The article's: bert-base-multilingual-cased.
        Case {
            name: "full",
            batch_size: 16,
            max_length: 140,
            bert: BertConfig { vocab_size: 119_547, ..bert },
            measurement: Duration::from_secs(100),
        },
    ]
}

fn trainer(case: &Case) -> Trainer {
    let plugin = Some(ensure_installed(Backend::Cpu).expect("the CPU plugin"));
    let options = StrategyOptions { backend: Some(Backend::Cpu), replicas: None, plugin };
    let strategy = Strategy::new(&options).expect("a CPU client");
    let model = ClassifierConfig {
        bert: case.bert.clone(),
        head: HeadConfig::default(),
        max_length: case.max_length,
        mask: false,
        freeze_padding: false,
    };
    let options = TrainOptions { batch_size: case.batch_size, learning_rate: 1e-5, seed: 0 };
    let started = Instant::now();
    let trainer = Trainer::new(strategy, &model, options, &InitialValues::Random { seed: 0 });
    let trainer = trainer.expect("the train step compiles");
    eprintln!(
        "{}: {} parameters; compiled in {:.1} s, ready to train after {:.1} s",
        case.name,
        model.num_parameters(),
        trainer.compile_time().as_secs_f64(),
        started.elapsed().as_secs_f64()
    );
    if let Ok(memory) = trainer.memory_stats() {
        eprintln!("{}: {memory:?}", case.name);
    }
    trainer
}

/// `steps` batches of made-up tokens.
fn tokens(case: &Case, steps: usize) -> Tokens {
    let rows = steps * case.batch_size;
    let id = |(row, position)| ((row * 31 + position * 17) % (case.bert.vocab_size - 200) + 100) as i32;
    Tokens {
        input_ids: Array2::from_shape_fn((rows, case.max_length), id),
        lengths: vec![case.max_length as u32; rows],
    }
}

fn step(criterion: &mut Criterion) {
    for case in cases() {
        let mut group = criterion.benchmark_group("train_step");
        group.throughput(Throughput::Elements(case.batch_size as u64));
        group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(case.measurement);
        let mut lazy: Option<Trainer> = None;
        group.bench_function(case.name, |bencher| {
            let trainer = lazy.get_or_insert_with(|| trainer(&case));
            bencher.iter_custom(|steps| {
                let tokens = tokens(&case, steps as usize);
                let classes = (0..tokens.len()).map(|row| row as u32 % 4).collect::<Vec<_>>();
                let data = Dataset::new(&tokens, &classes, (0..tokens.len()).collect(), false);
                let started = Instant::now();
                trainer.train_epoch(&data, 1, |_, _| ()).expect("the step runs");
                started.elapsed()
            });
        });
        if lazy.is_some() {
            eprintln!("{}: peak memory of the process {}", case.name, peak_memory());
        }
    }
}

/// The largest resident set so far, where the system tells.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or("unknown".into(), |line| line.trim().to_owned())
}

criterion_group!(benches, step);
criterion_main!(benches);
