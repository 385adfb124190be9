//! What `bert-xla plan` prints of steps.

use super::size;
use crate::plan::{Bound, Chip, StepPlan};

/// A column per step, each for one device.
pub(super) fn table(chip: &Chip, steps: &[StepPlan]) -> String {
    type Cell = fn(&StepPlan) -> String;
    let rows: [(&str, Cell); 19] = [
        ("compiled in", |step| format!("{:.1} s", step.compile_seconds)),
        ("arguments", |step| size(step.memory.arguments)),
        ("  updated in place", |step| size(step.memory.state)),
        ("other results", |step| size(step.memory.outputs)),
        ("temporaries", |step| size(step.memory.temporaries)),
        ("code", |step| size(step.memory.code)),
        ("memory, in all", |step| {
            let verdict = if step.memory.fits { "fits" } else { "too much" };
            format!("{} {verdict}", size(step.memory.total))
        }),
        ("  available", |step| size(step.memory.available)),
        ("operations", |step| format!("{:.2} GFLOP", step.flops / 1e9)),
        ("  in matrix products", |step| format!("{:.2} GFLOP", step.dot_flops / 1e9)),
        ("bytes accessed", |step| {
            step.bytes_accessed.map_or("-".to_owned(), |bytes| format!("{:.2} GB", bytes / 1e9))
        }),
        ("  in its memory", |step| format!("{:.2} GB", step.analysis.hbm_bytes as f64 / 1e9)),
        ("roofline", |step| {
            let bound = match step.bound {
                Bound::Compute => "compute",
                Bound::Memory => "memory",
            };
            format!("{:.2} ms {bound}", step.roofline_seconds * 1e3)
        }),
        ("estimate", |step| {
            step.analysis
                .cycles
                .map_or("-".to_owned(), |cycles| format!("{:.3} Mcycles", cycles as f64 / 1e6))
        }),
        ("  in time", |step| milliseconds(step.estimated_seconds)),
        ("between devices", |step| {
            let bytes = step.analysis.collectives.iter().map(|collective| collective.bytes).sum::<u64>();
            if bytes == 0 { "-".to_owned() } else { size(bytes) }
        }),
        ("  in time", |step| milliseconds(step.collective_seconds)),
        ("  beside other work", |step| milliseconds(step.beside_seconds.filter(|seconds| *seconds > 0.0))),
        ("step, in all", |step| milliseconds(step.step_seconds)),
    ];
    let mut text = format!("{:<20}", "Per device and step");
    steps.iter().for_each(|step| text.push_str(&format!("{:>20}", step.step.name())));
    for (name, cell) in rows {
        text.push_str(&format!("\n{name:<20}"));
        steps.iter().for_each(|step| text.push_str(&format!("{:>20}", cell(step))));
    }
    text.push_str(&match (steps.iter().any(|step| step.analysis.cycles.is_some()), chip.clock_hz) {
        (true, Some(clock)) => {
            let derived = if chip.is_clock_derived { ", which follow from the published peak" } else { "" };
            format!(
                "\nThe estimate is the compiler's, without collectives; in time at {:.0} MHz{derived}.\n",
                clock / 1e6
            )
        }
        (true, None) => {
            "\nThe estimate is the compiler's, without collectives; the chip's clock is not published.\n"
                .to_owned()
        }
        (false, _) => "\nThis compiler makes no estimate of time.\n".to_owned(),
    });
    text
}

fn milliseconds(seconds: Option<f64>) -> String {
    seconds.map_or("-".to_owned(), |seconds| format!("{:.2} ms", seconds * 1e3))
}

/// Where one step's time goes.
pub(super) fn details(step: &StepPlan) -> String {
    let analysis = &step.analysis;
    let mut text = format!("\n{} step", step.step);
    if let Some(cycles) = analysis.cycles {
        text.push_str(&format!(": {cycles} cycles\n"));
        for group in &analysis.groups {
            text.push_str(&format!("  {:>5.1}%  {}\n", percent(group.cycles, cycles), group.name));
        }
        text.push_str("  the costliest instructions:\n");
        for one in &analysis.costliest {
            let share = percent(one.cycles, cycles);
            let layer = if one.layer.is_empty() { "(no layer)" } else { &one.layer };
            text.push_str(&format!("  {share:>5.1}%  {layer}  [{}]\n", one.name));
        }
    } else {
        text.push_str(":\n");
    }
    for collective in &analysis.collectives {
        let (opcode, bytes, results) =
            (&collective.opcode, size(collective.bytes), size(collective.result_bytes));
        text.push_str(&format!(
            "  {} {opcode}, {bytes} of operands, {results} of results\n",
            collective.count
        ));
    }
    for one in &analysis.fusions {
        text.push_str(&format!("  {} fusions of kind {}\n", one.count, one.kind));
    }
    // What TPU's compiler calls so are marks of its own.
    for one in analysis.library_calls.iter().filter(|_| analysis.cycles.is_none()) {
        text.push_str(&format!("  {} calls of {}\n", one.count, one.target));
    }
    text
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}
