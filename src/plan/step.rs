//! What the compiler says of one step's program.

use serde::Serialize;

use super::target::Compiler;
use super::{Analysis, Bound, Chip, Collective, Error, Result};
use crate::hlo::Graph;
use crate::pjrt::{Executable, MemoryStats, Value};
use crate::step::{StepConfig, StepKind};

/// Instructions that [`StepPlan`] keeps of the costliest ones.
const COSTLIEST: usize = 10;

/// A step that was compiled ahead of time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepPlan {
    pub step: StepKind,
    pub compile_seconds: f64,
    pub memory: Memory,
    /// Operations of one run on one device: the compiler's count where it makes one, else [`dot_flops`](Self::dot_flops).
    pub flops: f64,
    /// Those of the matrix products, by our own count: what the published peak is of. The others go beside them.
    pub dot_flops: f64,
    /// The compiler's count of "bytes accessed", where it makes one: every operand and result of every instruction, also
    /// those that it keeps on the chip.
    pub bytes_accessed: Option<f64>,
    /// The least time for `dot_flops` and [`Analysis::hbm_bytes`], by the published figures of the chip.
    pub roofline_seconds: f64,
    pub bound: Bound,
    /// [`Analysis::cycles`] at the chip's clock, where that is published.
    pub estimated_seconds: Option<f64>,
    /// What the collectives take on a ring of the slice's chips, by their published interconnect, if none of it goes on beside
    /// other work.
    pub collective_seconds: Option<f64>,
    /// How much of that can go on beside other work, as the compiler has put it.
    pub beside_seconds: Option<f64>,
    /// The estimate and the collectives, one after another: the step.
    pub step_seconds: Option<f64>,
    /// The same, less what can go on beside other work.
    pub least_seconds: Option<f64>,
    #[serde(flatten)]
    pub analysis: Analysis,
    /// The optimized module, `hlo_with_config`.
    #[serde(skip)]
    pub optimized: Vec<u8>,
}

/// What a step takes of one device's memory, in bytes, as the compiler planned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Weights, optimizer state and the batch.
    pub arguments: u64,
    /// The part of `arguments` that is updated in place.
    pub state: u64,
    /// Results beyond the state.
    pub outputs: u64,
    pub temporaries: u64,
    pub code: u64,
    /// All of these, `state` once.
    pub total: u64,
    /// What the device has for a program.
    pub available: u64,
    pub fits: bool,
}

impl Memory {
    fn new(stats: MemoryStats, chip: &Chip) -> Self {
        let bytes = |bytes: i64| bytes.max(0).unsigned_abs();
        let (arguments, state) = (bytes(stats.arguments), bytes(stats.aliased));
        let outputs = bytes(stats.outputs).saturating_sub(state);
        let (temporaries, code) = (bytes(stats.temporaries), bytes(stats.generated_code));
        let total = arguments + outputs + temporaries + code;
        let available = chip.usable_bytes;
        Self { arguments, state, outputs, temporaries, code, total, available, fits: total <= available }
    }
}

impl StepPlan {
    /// Compiles one step.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the compiler finds that it needs more memory than the device has; a failure of the
    /// compiler; an optimized module that can't be read.
    pub fn new(compiler: &Compiler, step: StepKind, config: &StepConfig) -> Result<Self> {
        let graph = Graph::new();
        let program = step.build(&graph, config).program;
        let compiled = compiler.compile(&program, config.replicas);
        let (executable, compile_time) = compiled.map_err(|error| match error {
            Error::Pjrt(error) if error.is_out_of_memory() => Error::TooLarge {
                step,
                target: compiler.target().name().to_owned(),
                reason: error.to_string(),
            },
            other => other,
        })?;
        let chip = compiler.target().chip();
        let optimized = executable.optimized_program()?;
        let analysis = Analysis::new(&optimized, COSTLIEST)?;
        let counted = |property| counted(&executable, property);
        let dot_flops = program.dot_flops() as f64;
        let roofline = chip.roofline(config.execution.precision, dot_flops, analysis.hbm_bytes as f64);
        let estimated_seconds =
            analysis.cycles.zip(chip.clock_hz).map(|(cycles, clock)| cycles as f64 / clock);
        let chips = config.replicas.div_ceil(chip.devices_per_chip);
        let between = |share: fn(&Collective) -> f64| {
            let bandwidth = chip.interconnect?;
            let seconds =
                |one: &Collective| share(one) * one.ring_seconds(chips, chip.devices_per_chip, bandwidth);
            // The sum of none would be -0.
            Some(analysis.collectives.iter().map(seconds).fold(0.0, |sum, one| sum + one))
        };
        let (collective_seconds, beside_seconds) = (between(|_| 1.0), between(Collective::beside));
        let step_seconds = estimated_seconds.zip(collective_seconds).map(|(own, between)| own + between);
        Ok(Self {
            step,
            compile_seconds: compile_time.as_secs_f64(),
            memory: Memory::new(executable.memory_stats()?, chip),
            flops: counted("flops").unwrap_or(dot_flops),
            dot_flops,
            bytes_accessed: counted("bytes accessed"),
            roofline_seconds: roofline.seconds(),
            bound: roofline.bound(),
            estimated_seconds,
            collective_seconds,
            beside_seconds,
            step_seconds,
            least_seconds: step_seconds.zip(beside_seconds).map(|(all, beside)| all - beside),
            analysis,
            optimized,
        })
    }
}

/// A property of the compiler's cost analysis, if it makes one.
fn counted(executable: &Executable, property: &str) -> Option<f64> {
    match executable.cost_analysis().ok()?.remove(property)? {
        Value::Float(value) => Some(f64::from(value)),
        _ => None,
    }
}

/// The largest batch of a command, over all replicas.
pub const MOST_ROWS: usize = 1 << 16;

/// The largest batch, in rows per replica, whose train step fits, searched upwards from `config`'s: by doubling, and
/// then by halving the interval, to 1 row below 8 and to 8 rows from there on, the height of a tile of TPU's
/// registers. `tried` is told each batch and whether it fits. `None` if not even one row does.
///
/// # Errors
/// Those of [`StepPlan::new`].
pub fn largest_batch(
    compiler: &Compiler,
    config: &StepConfig,
    mut tried: impl FnMut(usize, bool),
) -> Result<Option<usize>> {
    search(config.rows, MOST_ROWS / config.replicas, |rows| {
        let config = StepConfig { rows, ..config.clone() };
        let fits = match StepPlan::new(compiler, StepKind::Train, &config) {
            Ok(plan) => plan.memory.fits,
            Err(Error::TooLarge { .. }) => false,
            Err(error) => return Err(error),
        };
        tried(rows, fits);
        Ok(fits)
    })
}

/// The largest number up to `most` that fits, from `start`.
fn search(start: usize, most: usize, mut fits: impl FnMut(usize) -> Result<bool>) -> Result<Option<usize>> {
    // The largest that fits so far, and the smallest that doesn't.
    let (mut low, mut high) = (0, None);
    let mut rows = start.min(most);
    loop {
        if fits(rows)? {
            low = rows;
        } else {
            high = Some(rows);
        }
        rows = match high {
            None if low == most => return Ok(Some(low)),
            None => (low * 2).min(most),
            Some(high) => {
                let unit = if high > 8 { 8 } else { 1 };
                // The middle, rounded down to the unit, but above `low`.
                let next = ((low + (high - low) / 2) / unit * unit).max((low / unit + 1) * unit);
                if next >= high {
                    // Between a `low` that is no multiple of the unit and the next one there may be nothing left.
                    return Ok((low > 0).then_some(low));
                }
                next
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_the_largest_batch_that_fits() {
        let find = |start, largest: usize| {
            let mut tried = 0;
            let found = search(start, 2048, |rows| {
                tried += 1;
                assert!(tried < 30, "start {start}, largest {largest}");
                Ok(rows <= largest)
            });
            found.unwrap()
        };
        for start in [1, 2, 3, 16, 100, 512] {
            assert_eq!(find(start, 0), None);
            assert_eq!(find(start, usize::MAX), Some(2048), "no more than a command takes");
            for largest in 1..8 {
                assert_eq!(find(start, largest), Some(largest), "start {start}");
            }
            for largest in [8, 9, 15, 16, 17, 100, 263, 264, 1000] {
                let found = find(start, largest).unwrap();
                assert!(found <= largest && largest - found < 8, "start {start}: {found} of {largest}");
            }
        }
    }

    /// From a step of v3: what is updated in place counts once.
    #[test]
    fn memory_counts_the_state_once() {
        let stats = MemoryStats {
            generated_code: 7,
            arguments: 1000,
            outputs: 910,
            aliased: 900,
            temporaries: 50,
            peak: None,
        };
        let chip = Chip::gpu("h100").unwrap();
        let memory = Memory::new(stats, &Chip { usable_bytes: 1067, ..*chip });
        assert_eq!((memory.total, memory.state, memory.outputs, memory.fits), (1067, 900, 10, true));
        assert!(!Memory::new(stats, &Chip { usable_bytes: 1066, ..*chip }).fits);
    }
}
