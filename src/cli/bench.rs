//! `bert-xla bench`: how long training's steps take on the devices that are here.

use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::execution::ExecutionArgs;
use super::model::ClassifierArgs;
use super::options::{DeviceArgs, count};
use super::{Console, Result, plural, size};
use crate::data::{Dataset, Tokens};
use crate::exec::Replicas;
use crate::hlo::Graph;
use crate::model::{ClassifierConfig, Size};
use crate::pjrt::MemoryStats;
use crate::plan::Chip;
use crate::step::{StepConfig, Training, train_step};
use crate::train::{Origin, Programs, TrainOptions, Trainer};
use crate::weights::InitialValues;

/// Time training's steps on the devices that are here, with random weights and made-up texts.
///
/// A step is what `train` does for a batch: forward, backward, and Adam's update. Each case is compiled, runs --warmup steps
/// that don't count, and then --steps that do.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    bert-xla bench                                             # the recipe's step on the best device\n  \
    bert-xla bench --size minilm --batch-size 16,64,256 --length 32,64,128\n  \
    bert-xla bench --size tiny --backend cpu --replicas 4 --json")]
pub struct BenchArgs {
    /// The encoder: tiny, minilm, mbert, bert-base or bert-large; several with commas
    #[arg(long, value_delimiter = ',', action = clap::ArgAction::Set, default_value = "mbert", value_name = "SIZE,...")]
    size: Vec<Size>,
    /// Examples per step, over all replicas; several with commas
    #[arg(
        long,
        value_delimiter = ',',
        action = clap::ArgAction::Set,
        value_parser = count(),
        default_value = "16",
        value_name = "N,..."
    )]
    batch_size: Vec<usize>,
    /// Tokens per text, in place of --max-length; several with commas
    #[arg(long, value_delimiter = ',', action = clap::ArgAction::Set, value_parser = count(), value_name = "TOKENS,...")]
    length: Vec<usize>,
    /// Steps that count
    #[arg(long, default_value_t = 10, value_parser = count(), value_name = "N")]
    steps: usize,
    /// Steps before those
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16), value_name = "N")]
    warmup: u16,
    /// Print one JSON line for each case
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    execution: ExecutionArgs,
    #[command(flatten)]
    classifier: ClassifierArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// How long a case's steps took.
#[derive(Serialize)]
struct Case {
    size: &'static str,
    batch_size: usize,
    length: usize,
    backend: String,
    device_kind: String,
    replicas: usize,
    precision: String,
    /// What is computed again in the backward pass, if anything: see --remat.
    remat: Option<&'static str>,
    parameters: usize,
    compile_seconds: f64,
    /// Of a step on each device: what it takes, and what it needs besides. `None` where the runtime doesn't tell.
    memory: Option<Memory>,
    steps: usize,
    step_ms: Times,
    examples_per_second: f64,
    /// Of matrix products, on each device.
    dot_flops: u64,
    /// What that is of the chip's published peak, in the median step; `None` where none is published.
    share_of_peak: Option<f64>,
}

/// In bytes.
#[derive(Clone, Copy, Serialize)]
struct Memory {
    arguments: i64,
    temporaries: i64,
}

/// Of steps, in milliseconds.
#[derive(Clone, Copy, Serialize)]
struct Times {
    min: f64,
    lower_quartile: f64,
    median: f64,
    upper_quartile: f64,
    max: f64,
}

impl Times {
    /// Of at least one. Quartiles lie between two as NumPy's do.
    fn new(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let at = share * (times.len() - 1) as f64;
            let (below, above) = (times[at.floor() as usize], times[at.ceil() as usize]);
            below + (above - below) * at.fract()
        };
        let [min, lower_quartile, median, upper_quartile, max] = [0.0, 0.25, 0.5, 0.75, 1.0].map(quantile);
        Self { min, lower_quartile, median, upper_quartile, max }
    }
}

pub fn run(args: &BenchArgs, console: &Arc<Console>) -> Result<()> {
    // What can't be is found before a device is taken.
    let mut models = vec![];
    for size in &args.size {
        let classifiers = match &args.length[..] {
            [] => vec![args.classifier.clone()],
            lengths => lengths.iter().map(|length| args.classifier.with_max_length(*length)).collect(),
        };
        for classifier in classifiers {
            models.push((*size, classifier.of_size(*size)?));
        }
    }
    let replicas = Arc::new(args.device.connect(console)?);
    for batch_size in &args.batch_size {
        replicas.rows(*batch_size)?;
    }
    for (size, model) in &models {
        for batch_size in &args.batch_size {
            let case = measure(args, &replicas, *size, model, *batch_size)?;
            match args.json {
                true => console.print_json(serde_json::to_string(&case))?,
                false => console.print(&case.text())?,
            }
        }
    }
    Ok(())
}

fn measure(
    args: &BenchArgs,
    replicas: &Arc<Replicas>,
    size: Size,
    model: &ClassifierConfig,
    batch_size: usize,
) -> Result<Case> {
    let execution = args.execution.options().resolve(replicas.precision(), replicas.count());
    let length = model.max_length;
    let training = Training::default();
    let programs = Programs::compile(replicas.clone(), model, batch_size, &training, execution, &[length])?;
    let compile_seconds = programs.compile_time().as_secs_f64();
    let memory = programs.memory_stats().ok();
    let memory = memory.map(|MemoryStats { arguments, temporaries, .. }| Memory { arguments, temporaries });
    let values = InitialValues::Random { seed: 0 };
    let mut trainer = Trainer::start(programs.into(), TrainOptions::new(1e-5, 0), Origin::Weights(&values))?;
    // The texts of a few batches, again and again.
    let warmup = usize::from(args.warmup);
    let (texts, rows) = (4 * batch_size, (warmup + args.steps) * batch_size);
    let id = |row: usize, at: usize| ((row * 31 + at * 17) % model.bert.vocab_size) as u32;
    let text = |row| (0..length).map(|at| id(row, at)).collect::<Vec<_>>();
    let tokens = Tokens::new((0..texts).map(text), length, model.bert.pad_token_id);
    let classes = (0..texts as u32).map(|row| row % model.head.num_classes() as u32).collect::<Vec<_>>();
    let data = Dataset::new(&tokens, &classes, (0..rows).map(|row| row % texts).collect());
    let mut times = vec![];
    trainer.train_epoch(&data, 1, |step| times.push(step.time.as_secs_f64() * 1e3))?;
    let step_ms = Times::new(times.split_off(warmup));
    let seconds = step_ms.median / 1e3;
    let config = StepConfig::new(model.clone(), replicas.rows(batch_size)?, replicas.count());
    let graph = Graph::new();
    let dot_flops = train_step(&graph, &StepConfig { execution, ..config }).program.dot_flops();
    let device_kind = replicas.device_kind();
    let peak = Chip::of_kind(&device_kind).map(|chip| chip.peak(execution.precision).0);
    Ok(Case {
        size: size.name(),
        batch_size,
        length,
        backend: replicas.backend().to_string(),
        device_kind,
        replicas: replicas.count(),
        precision: execution.precision.to_string(),
        remat: execution.residuals.name(),
        parameters: model.num_parameters(),
        compile_seconds,
        memory,
        steps: args.steps,
        step_ms,
        examples_per_second: batch_size as f64 / seconds,
        dot_flops,
        share_of_peak: peak.map(|peak| dot_flops as f64 / seconds / peak),
    })
}

impl Case {
    fn text(&self) -> String {
        let Self { size: model, batch_size, length, device_kind, precision, step_ms, .. } = self;
        let Times { min, lower_quartile, median, upper_quartile, max } = step_ms;
        let share = match self.share_of_peak {
            Some(share) => format!("{:.1} % of the published peak", 100.0 * share),
            None => "no published peak".to_owned(),
        };
        let remat = self.remat.map_or_else(String::new, |name| format!(", --remat {name}"));
        let memory = self.memory.map_or_else(String::new, |Memory { arguments, temporaries }| {
            let [arguments, temporaries] = [arguments, temporaries].map(|bytes| bytes.unsigned_abs());
            format!("{} for the state and a batch, {} besides; ", size(arguments), size(temporaries))
        });
        format!(
            "{model}, {} of {length} tokens, {precision}{remat}, {} of {device_kind}\n  \
             step: {median:.2} ms (quartiles {lower_quartile:.2} and {upper_quartile:.2}, {min:.2} to {max:.2}) over {}\n  \
             {:.1} examples/s; {:.2} GFLOP in products of each replica, {:.1} GFLOP/s: {share}\n  \
             {memory}compiled in {:.1} s\n",
            plural(*batch_size, "text"),
            plural(self.replicas, "replica"),
            plural(self.steps, "step"),
            self.examples_per_second,
            self.dot_flops as f64 / 1e9,
            self.dot_flops as f64 / 1e6 / median,
            self.compile_seconds,
        )
    }
}
