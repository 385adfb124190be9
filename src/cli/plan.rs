//! `bert-xla plan`: what a job will take of hardware that isn't here.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args};
use serde::Serialize;

use super::compare::{Price, compare};
use super::execution::ExecutionArgs;
use super::model::{ClassifierArgs, MAX_LENGTH};
use super::options::count;
use super::plan_text::{details, table};
use super::{Console, Error, Result, plural, size};
use crate::exec;
use crate::model::{BertConfig, ClassifierConfig, HeadConfig, Size};
use crate::pjrt::Backend;
use crate::plan::{self, Chip, Compiler, GpuTarget, LANES, Slice, StepPlan, Target, largest_batch};
use crate::report::bar_chart;
use crate::run::{model_files, read_json, settings};
use crate::step::{StepConfig, StepKind};
use crate::storage::write_file;
use crate::weights::Hub;

/// Compile a job's steps for TPUs or a GPU that needn't be here: memory, time, and where it goes.
///
/// The compiler is the one that the job itself will use: libtpu for TPUs, XLA's CUDA plugin for GPUs. It is
/// installed if it is missing. Nothing runs, so times are the roofline's and the compiler's estimates.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("target").required(true), after_help = "Examples:\n  \
    bert-xla plan --topology v3-8                              # the recipe on 8 cores, 2 rows each\n  \
    bert-xla plan --topology v5e:2x4 --size tiny --json\n  \
    bert-xla plan --topology v6e:2x2 --model ./minilm --max-length 64 --batch-size 256 --step train\n  \
    bert-xla plan --topology v3:2x2x1 --largest-batch\n  \
    bert-xla plan --topology v3:2x2x1 --step train --chart plan.png --optimized-hlo train.hlo\n  \
    bert-xla plan --gpu h100 --batch-size 64\n  \
    bert-xla plan --compare v2-8,v3-8,v5e-8,v6e-8,h100 --rows 3000 --price v3-8=8.0 --chart compared.png")]
pub struct PlanArgs {
    /// A slice of TPUs: its chip and the number of chips along each axis, such as v3:2x2x1 or v5e:2x4, or Cloud TPU's
    /// name of it, such as v3-8
    #[arg(long, group = "target", value_parser = NonEmptyStringValueParser::new(), value_name = "SLICE")]
    topology: Option<String>,
    /// One GPU: a100, h100 or h200
    #[arg(long, group = "target", value_name = "NAME")]
    gpu: Option<String>,
    /// Several slices and GPUs, to see the train step on them side by side
    #[arg(
        long,
        group = "target",
        value_delimiter = ',',
        value_parser = NonEmptyStringValueParser::new(),
        action = clap::ArgAction::Set,
        value_name = "NAME,...",
        conflicts_with_all = ["step", "optimized_hlo", "replicas"]
    )]
    compare: Option<Vec<String>>,
    /// With --compare: say how long an epoch of so many rows takes
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), requires = "compare", value_name = "N")]
    pub(super) rows: Option<u64>,
    /// With --compare and --rows: what an hour of a target costs, to be told what an epoch does
    #[arg(long, value_delimiter = ',', requires = "rows", value_name = "NAME=PRICE,...")]
    pub(super) price: Vec<Price>,
    /// As a job with --deterministic would be compiled for that GPU
    #[arg(long, conflicts_with_all = ["topology", "compare"])]
    deterministic: bool,
    /// The encoder: tiny, minilm, mbert, bert-base or bert-large
    #[arg(long, default_value_t = Size::MBert, value_name = "SIZE")]
    size: Size,
    /// The encoder, as a folder or a model id of the Hugging Face Hub; its weights are not read
    #[arg(long, conflicts_with = "size", value_name = "ID|DIR")]
    model: Option<String>,
    /// Examples per step, over all replicas
    #[arg(long, default_value_t = 16, value_parser = count(), value_name = "N")]
    pub(super) batch_size: usize,
    /// Data-parallel replicas [default: all devices of the slice, as a job on several hosts has it]
    #[arg(long, value_parser = count(), value_name = "N")]
    replicas: Option<usize>,
    /// train, eval or predict; may repeat [default: all three]
    #[arg(long, value_name = "STEP")]
    step: Vec<StepKind>,
    /// Search the largest batch whose train step fits, instead, or with --compare besides; each try is a compilation
    #[arg(long, conflicts_with_all = ["step", "optimized_hlo"])]
    pub(super) largest_batch: bool,
    /// Draw the first step's cycles by part of the model, or the compared targets' steps [default file: plan.png]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "plan.png")]
    pub(super) chart: Option<PathBuf>,
    /// Write the first step's program as the compiler left it, as HLO text
    #[arg(long, value_name = "FILE")]
    optimized_hlo: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    // Last, since their headings would go on over what follows.
    #[command(flatten)]
    pub(super) execution: ExecutionArgs,
    #[command(flatten)]
    classifier: ClassifierArgs,
}

/// What a plan says, apart from its steps.
#[derive(Serialize)]
struct Job {
    target: String,
    chip: &'static Chip,
    /// What matrices are multiplied in, and the published peak of that.
    precision: &'static str,
    peak_flops: f64,
    compiler: String,
    devices: usize,
    replicas: usize,
    /// Its size, or where it is.
    model: String,
    max_length: usize,
    batch_size: usize,
    rows_per_replica: usize,
    /// Of the tiles that a row of attention's scores takes, how much the row itself is; `None` for a GPU.
    tiles_in_use: Option<f64>,
}

#[derive(Serialize)]
struct Plan<'a> {
    #[serde(flatten)]
    job: &'a Job,
    steps: &'a [StepPlan],
}

/// The answer to `--largest-batch`.
#[derive(Serialize)]
struct LargestBatch<'a> {
    #[serde(flatten)]
    job: &'a Job,
    largest_rows_per_replica: usize,
    largest_batch_size: usize,
}

pub fn run(args: &PlanArgs, console: &Console) -> Result<()> {
    if let Some(names) = &args.compare {
        return compare(args, names, console);
    }
    if args.rows.is_some() || !args.price.is_empty() {
        return Err(Error::Usage("--rows and --price are told of the targets of --compare".into()));
    }
    if args.chart.is_some() && args.largest_batch {
        return Err(Error::Usage(
            "--chart draws a plan, or with --compare several; not --largest-batch".into(),
        ));
    }
    let target = args.target()?;
    if args.chart.is_some() && target.backend() == Backend::Gpu {
        let message = "--chart draws cycles, which only TPU's compiler estimates; use it with --topology";
        return Err(Error::Usage(message.into()));
    }
    let model = args.model()?;
    let compiler = Compiler::new(target)?.deterministic(args.deterministic);
    let placement = compiler.placement(args.replicas)?;
    let rows = placement.rows_per_replica(args.batch_size).map_err(exec::Error::from)?;
    let execution = args.execution.options().resolve(compiler.target().precision(), placement.replicas());
    let config = StepConfig { execution, ..StepConfig::new(model, rows, placement.replicas()) };
    let (peak_flops, precision) = compiler.target().chip().peak(execution.precision);
    let job = Job {
        target: compiler.target().name().to_owned(),
        chip: compiler.target().chip(),
        precision,
        peak_flops,
        compiler: compiler.version()?,
        devices: compiler.devices(),
        replicas: placement.replicas(),
        model: args.model_name(),
        max_length: config.model.max_length,
        batch_size: args.batch_size,
        rows_per_replica: rows,
        tiles_in_use: (compiler.target().backend() == Backend::Tpu).then(|| {
            let length = config.model.max_length;
            length as f64 / length.next_multiple_of(LANES) as f64
        }),
    };
    if args.largest_batch {
        return search(args, console, &compiler, &job, &config);
    }
    let (steps, too_large) = args.compile(console, &compiler, &config)?;
    // What took minutes to find out is told, whatever fails after it.
    if args.json {
        console.print_json(serde_json::to_string_pretty(&Plan { job: &job, steps: &steps }))?;
    } else {
        console.print(&format!("{}\n{}", job.text(), table(job.chip, &steps)))?;
        steps.iter().try_for_each(|step| console.print(&details(step)))?;
    }
    steps.first().map_or(Ok(()), |step| args.write_files(step, console))?;
    too_large.map_or(Ok(()), Err)
}

impl PlanArgs {
    fn target(&self) -> Result<Target> {
        match (&self.topology, &self.gpu) {
            (Some(topology), _) => Ok(Target::Tpu(Slice::parse(topology)?)),
            (None, Some(gpu)) => Ok(Target::Gpu(GpuTarget::new(gpu)?)),
            (None, None) => Err(Error::Usage("plan needs --topology, --gpu or --compare".into())),
        }
    }

    pub(super) fn model_name(&self) -> String {
        self.model.clone().unwrap_or_else(|| self.size.to_string())
    }

    pub(super) fn model(&self) -> Result<ClassifierConfig> {
        let Some(model) = &self.model else { return self.classifier.of_size(self.size) };
        let files = model_files(model, None, false, &Hub::from_env()?.with_progress())?;
        let (json, bert) = (read_json(&files.config)?, BertConfig::read(&files.config)?);
        let base = settings(&files.config, &json, &bert)?.map(|(model, _)| model);
        let num_classes =
            base.as_ref().map_or(HeadConfig::default().num_classes(), |base| base.head.num_classes());
        self.classifier.config(bert, MAX_LENGTH, num_classes, base.as_ref())
    }

    /// Compiles the steps that were asked for; the error is about the first of those that are too large.
    fn compile(
        &self,
        console: &Console,
        compiler: &Compiler,
        config: &StepConfig,
    ) -> Result<(Vec<StepPlan>, Option<Error>)> {
        let steps = if self.step.is_empty() { &StepKind::ALL[..] } else { &self.step };
        let (mut plans, mut too_large) = (Vec::new(), None);
        for step in steps {
            console.note(&format!("Compiling the {step} step for {}", compiler.target().name()));
            match StepPlan::new(compiler, *step, config) {
                Ok(plan) => plans.push(plan),
                Err(error @ plan::Error::TooLarge { .. }) => too_large = too_large.or(Some(error.into())),
                Err(error) => return Err(error.into()),
            }
        }
        Ok((plans, too_large))
    }

    fn write_files(&self, step: &StepPlan, console: &Console) -> Result<()> {
        if let Some(path) = &self.chart {
            let bars = step.analysis.groups.iter();
            let bars = bars.map(|group| (group.name.to_owned(), group.cycles as f64)).collect::<Vec<_>>();
            let title = format!("{} step on {}", step.step, self.topology.as_deref().unwrap_or_default());
            write_file(path, &bar_chart(&title, "cycles per step", &bars)?)?;
            console.note(&format!("Drawn in {}", path.display()));
        }
        if let Some(path) = &self.optimized_hlo {
            let text = plan::to_text(&step.optimized).map_err(plan::Error::from)?;
            write_file(path, text.as_bytes())?;
            console.note(&format!("The compiled program is in {}", path.display()));
        }
        Ok(())
    }
}

fn search(
    args: &PlanArgs,
    console: &Console,
    compiler: &Compiler,
    job: &Job,
    config: &StepConfig,
) -> Result<()> {
    let tried = |rows: usize, fits: bool| {
        let verdict = if fits { "fits" } else { "does not fit" };
        console.note(&format!("{} per replica: {verdict}", plural(rows, "row")));
    };
    let Some(rows) = largest_batch(compiler, config, tried)? else {
        let message = format!("not even one row per replica fits {}: choose a smaller model", job.target);
        return Err(Error::Usage(message));
    };
    let batch_size = rows * config.replicas;
    if args.json {
        let largest = LargestBatch { job, largest_rows_per_replica: rows, largest_batch_size: batch_size };
        return console.print_json(serde_json::to_string_pretty(&largest));
    }
    let (rows, replicas) = (plural(rows, "row"), plural(config.replicas, "replica"));
    let text =
        format!("{}\nLargest batch that fits: {batch_size} ({rows} on each of {replicas})\n", job.text());
    Ok(console.print(&text)?)
}

impl Job {
    fn text(&self) -> String {
        let Self { target, chip, compiler, devices, replicas, batch_size, rows_per_replica, .. } = self;
        let tiles = self.tiles_in_use.filter(|share| *share < 1.0).map_or_else(String::new, |share| {
            let length = self.max_length;
            let tiles = length.div_ceil(LANES);
            format!(
                "{length} tokens: a row of attention's scores takes {} of {LANES}, {:.0} % of it in use\n",
                plural(tiles, "tile"),
                100.0 * share,
            )
        });
        format!(
            "{target}: {} of {}; {}, {} each, a batch of {batch_size}\n\
             Compiler: {compiler}\n\
             A device: {} at {:.0} GB/s, {:.1} TFLOP/s in {} ({})\n{tiles}",
            plural(*devices, "device"),
            chip.product,
            plural(*replicas, "replica"),
            plural(*rows_per_replica, "row"),
            size(chip.hbm_bytes),
            chip.hbm_bandwidth / 1e9,
            self.peak_flops / 1e12,
            self.precision,
            chip.source,
        )
    }
}
