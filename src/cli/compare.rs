//! `bert-xla plan --compare`: the train step on several targets, side by side.

use std::str::FromStr;

use serde::Serialize;

use super::plan::PlanArgs;
use super::{Console, Error, Result, plural, size};
use crate::plan::{self, Compiler, MOST_ROWS, StepPlan, Target, largest_batch};
use crate::report::bar_chart;
use crate::step::{StepConfig, StepKind};
use crate::storage::write_file;

/// What an hour of a target costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Price {
    target: String,
    an_hour: f64,
}

/// Parses `v3-8=8.0`.
impl FromStr for Price {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let price = text.rsplit_once('=').and_then(|(target, an_hour)| {
            let an_hour =
                an_hour.trim().parse::<f64>().ok().filter(|price| price.is_finite() && *price >= 0.0)?;
            Some(Self { target: target.trim().to_owned(), an_hour })
        });
        price.ok_or_else(|| "expected TARGET=PRICE, such as v3-8=8.0".to_owned())
    }
}

/// The train step on one target.
#[derive(Serialize)]
struct Candidate {
    /// As it was asked for.
    name: String,
    target: String,
    product: &'static str,
    devices: usize,
    replicas: usize,
    rows_per_replica: usize,
    /// Of the step, collectives included; of a GPU, no more than its roofline.
    step_seconds: Option<f64>,
    /// Whether it takes that at least: no compiler's estimate is in it.
    is_bound: bool,
    /// Whether the chip's clock follows from its peak.
    is_clock_derived: bool,
    collective_seconds: Option<f64>,
    /// Per device; more than there is where it doesn't fit.
    memory_bytes: Option<u64>,
    fits: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    largest_batch_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch_cost: Option<f64>,
}

#[derive(Serialize)]
struct Comparison<'a> {
    /// Its size, or where it is.
    model: String,
    max_length: usize,
    batch_size: usize,
    rows: Option<u64>,
    targets: &'a [Candidate],
}

pub(super) fn compare(args: &PlanArgs, names: &[String], console: &Console) -> Result<()> {
    if let Some(Price { target, .. }) = args.price.iter().find(|price| !names.contains(&price.target)) {
        return Err(Error::Usage(format!("--price {target}: it is not among --compare {}", names.join(","))));
    }
    if let Some(name) = (1..names.len()).find_map(|at| names[..at].contains(&names[at]).then_some(&names[at]))
    {
        return Err(Error::Usage(format!("--compare: {name} is there twice")));
    }
    // All that is wrong with a target before the first compilation.
    let ready = names.iter().map(|name| Ready::new(args, name)).collect::<Result<Vec<_>>>()?;
    let max_length = ready.first().map_or(0, |ready| ready.config.model.max_length);
    let candidates = ready.into_iter().map(|ready| candidate(args, console, ready));
    let candidates = candidates.collect::<Result<Vec<_>>>()?;
    if args.json {
        let comparison = Comparison {
            model: args.model_name(),
            max_length,
            batch_size: args.batch_size,
            rows: args.rows,
            targets: &candidates,
        };
        console.print_json(serde_json::to_string_pretty(&comparison))?;
    } else {
        console.print(&table(args, &candidates))?;
    }
    if let Some(path) = &args.chart {
        let bars = candidates
            .iter()
            .filter_map(|one| Some((format!("{}{}", one.mark(), one.name), one.step_seconds?)));
        let title = format!("Train step, {} examples", args.batch_size);
        write_file(path, &bar_chart(&title, "seconds per step", &bars.collect::<Vec<_>>())?)?;
        console.note(&format!("Drawn in {}", path.display()));
    }
    Ok(())
}

/// A target, ready to compile for.
struct Ready<'a> {
    name: &'a str,
    compiler: Compiler,
    config: StepConfig,
}

impl<'a> Ready<'a> {
    /// # Errors
    /// A target that isn't known, or over whose devices the batch can't be split.
    fn new(args: &PlanArgs, name: &'a str) -> Result<Self> {
        let compiler = Compiler::new(Target::parse(name)?)?;
        let placement = compiler.placement(None)?;
        let replicas = placement.replicas();
        let rows = placement.rows_per_replica(args.batch_size).map_err(|_| {
            let size = args.batch_size;
            let most = args.batch_size.next_multiple_of(replicas);
            Error::Usage(format!(
                "--batch-size {size}: {name} has {replicas} devices; give a multiple, such as {most}"
            ))
        })?;
        let execution = args.execution.options().resolve(compiler.target().precision(), replicas);
        let config = StepConfig { execution, ..StepConfig::new(args.model()?, rows, replicas) };
        Ok(Self { name, compiler, config })
    }
}

fn candidate(args: &PlanArgs, console: &Console, ready: Ready<'_>) -> Result<Candidate> {
    let Ready { name, compiler, config } = ready;
    let (rows, replicas) = (config.rows, config.replicas);
    console.note(&format!("Compiling the train step for {name}"));
    let plan = match StepPlan::new(&compiler, StepKind::Train, &config) {
        Ok(plan) => Some(plan),
        Err(plan::Error::TooLarge { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let largest_batch_size = match args.largest_batch {
        true => {
            let tried = |rows: usize, fits: bool| {
                let verdict = if fits { "fits" } else { "does not fit" };
                console.note(&format!("{name}: {} per replica: {verdict}", plural(rows, "row")));
            };
            largest_batch(&compiler, &config, tried)?.map(|rows| rows * replicas)
        }
        false => None,
    };
    let chip = compiler.target().chip();
    let step_seconds = plan.as_ref().map(|plan| plan.step_seconds.unwrap_or(plan.roofline_seconds));
    let steps = args.rows.map(|rows| rows.div_ceil(args.batch_size as u64));
    let epoch_seconds = step_seconds.zip(steps).map(|(seconds, steps)| seconds * steps as f64);
    let price = args.price.iter().find(|price| price.target == name);
    Ok(Candidate {
        name: name.to_owned(),
        target: compiler.target().name().to_owned(),
        product: chip.product,
        devices: compiler.devices(),
        replicas,
        rows_per_replica: rows,
        step_seconds,
        is_bound: plan.as_ref().is_some_and(|plan| plan.step_seconds.is_none()),
        is_clock_derived: chip.is_clock_derived,
        collective_seconds: plan.as_ref().and_then(|plan| plan.collective_seconds),
        memory_bytes: plan.as_ref().map(|plan| plan.memory.total),
        fits: plan.as_ref().is_some_and(|plan| plan.memory.fits),
        largest_batch_size,
        epoch_seconds,
        epoch_cost: epoch_seconds.zip(price).map(|(seconds, price)| seconds / 3600.0 * price.an_hour),
    })
}

impl Candidate {
    /// What stands before its times: see the end of [`table`].
    fn mark(&self) -> &'static str {
        match (self.is_bound, self.is_clock_derived) {
            (true, _) => ">= ",
            (false, true) => "~ ",
            (false, false) => "",
        }
    }
}

fn table(args: &PlanArgs, candidates: &[Candidate]) -> String {
    let mut header = vec!["target", "devices", "step", "between them", "memory of each"];
    header.extend(args.largest_batch.then_some("largest batch"));
    header.extend(args.rows.map(|_| "an epoch"));
    header.extend((!args.price.is_empty()).then_some("costs"));
    let none = || "-".to_owned();
    let row = |one: &Candidate| {
        let mark = one.mark();
        let time = |seconds: Option<f64>, time: fn(f64) -> String| {
            seconds.map_or_else(none, |seconds| format!("{mark}{}", time(seconds)))
        };
        let mut cells = vec![
            one.name.clone(),
            format!("{} of {}", one.devices, one.product),
            time(one.step_seconds, |seconds| format!("{:.2} ms", seconds * 1e3)),
            one.collective_seconds.map_or_else(none, |seconds| format!("{:.2} ms", seconds * 1e3)),
            match one.memory_bytes {
                Some(bytes) if one.fits => size(bytes),
                Some(bytes) => format!("{}, too much", size(bytes)),
                None => "too much".to_owned(),
            },
        ];
        // No command takes a larger one, and none is searched.
        let largest = |size: usize| match size + one.replicas > MOST_ROWS {
            true => format!("{size} or more"),
            false => size.to_string(),
        };
        let largest = || one.largest_batch_size.map_or_else(none, largest);
        cells.extend(args.largest_batch.then(largest));
        cells.extend(args.rows.map(|_| time(one.epoch_seconds, in_words)));
        let cost = || one.epoch_cost.map_or_else(none, |cost| format!("{mark}{cost:.4}"));
        cells.extend((!args.price.is_empty()).then(cost));
        cells
    };
    let header = header.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let rows = [header].into_iter().chain(candidates.iter().map(row)).collect::<Vec<_>>();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths = (0..rows[0].len()).map(width).collect::<Vec<_>>();
    let mut text = format!("The train step, {}\n\n", plural(args.batch_size, "example"));
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, width))| match at {
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text.push_str("\nThe compiler's estimate and the collectives on a ring, one after another.\n");
    if candidates.iter().any(|one| one.is_clock_derived) {
        text.push_str("~  at the clock that follows from the published peak, where none is published\n");
    }
    if candidates.iter().any(|one| one.is_bound) {
        text.push_str(">= the roofline: products at the published peak, or memory at its bandwidth\n");
    }
    text
}

/// `1 h 2 min`, `3 min 4 s`, `5.67 s`.
fn in_words(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.2} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}
