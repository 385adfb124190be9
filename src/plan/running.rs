//! Which instructions of a module run, and how often.

use std::collections::BTreeMap;

use super::module::BackendConfig;
use super::traffic::Computations;
use crate::proto::{HloComputationProto, HloInstructionProto};

/// The instructions of a computation, and of those that it calls and loops over.
#[derive(Default)]
pub(super) struct Running<'a> {
    /// Each with the number of times that it runs; of the branches of a conditional, of which one runs, none.
    pub instructions: Vec<(&'a HloInstructionProto, u64)>,
    /// Conditionals, and loops that run nobody knows how often: what is in those has no times.
    pub uncounted: usize,
}

/// What runs when `computation` does.
pub(super) fn running<'a>(
    computation: &'a HloComputationProto,
    computations: &Computations<'a>,
) -> Running<'a> {
    let mut found = Running::default();
    found.add(computation, 1, computations);
    found
}

impl<'a> Running<'a> {
    fn add(&mut self, computation: &'a HloComputationProto, times: u64, computations: &Computations<'a>) {
        for one in &computation.instructions {
            self.instructions.push((one, times));
            let inside = match &*one.opcode {
                "call" => times,
                "while" => {
                    trips(one, computation, computations).map_or(0, |trips| times.saturating_mul(trips))
                }
                "conditional" => 0,
                _ => continue,
            };
            self.uncounted += usize::from(times > 0 && inside == 0);
            for called in one.called_computation_ids.iter().filter_map(|id| computations.get(id)) {
                self.add(called, inside, computations);
            }
        }
    }
}

/// How often each computation runs that `entry` calls, by fusions and loops too, or those that it calls; and that itself. A loop
/// that runs nobody knows how often, and the branches of a conditional, count once.
pub(super) fn times(entry: &HloComputationProto, computations: &Computations<'_>) -> BTreeMap<i64, u64> {
    fn add(
        computation: &HloComputationProto,
        times: u64,
        computations: &Computations<'_>,
        within: &mut Vec<i64>,
        found: &mut BTreeMap<i64, u64>,
    ) {
        // None calls itself, but a file may say so.
        if within.contains(&computation.id) {
            return;
        }
        within.push(computation.id);
        let all = found.entry(computation.id).or_default();
        *all = all.saturating_add(times);
        // The end of what was started apart has its computation too.
        let is_end = |one: &&HloInstructionProto| !matches!(&*one.opcode, "async-update" | "async-done");
        for one in computation.instructions.iter().filter(is_end) {
            let trips = match &*one.opcode {
                "while" => trips(one, computation, computations).unwrap_or(1),
                _ => 1,
            };
            for called in one.called_computation_ids.iter().filter_map(|id| computations.get(id)) {
                add(called, times.saturating_mul(trips), computations, within, found);
            }
        }
        within.pop();
    }
    let mut found = BTreeMap::new();
    add(entry, 1, computations, &mut vec![], &mut found);
    found
}

/// How often the loop `one` of `computation` runs: as the compiler has found out, or as its condition says, which compares a
/// count from 0 with a constant. `None` for another kind of loop.
pub(super) fn trips(
    one: &HloInstructionProto,
    computation: &HloComputationProto,
    computations: &Computations<'_>,
) -> Option<u64> {
    if let Some(trips) = BackendConfig::of(one).trips() {
        return Some(trips);
    }
    let [_, condition] = one.called_computation_ids[..] else { return None };
    let condition = computations.get(&condition)?;
    let root = find(condition, condition.root_id)?;
    let ([count, limit], "LT") = (&root.operand_ids[..], &*root.comparison_direction) else { return None };
    let place = find(condition, *count).filter(|count| count.opcode == "get-tuple-element")?.tuple_index;
    let start = find(computation, *one.operand_ids.first()?).filter(|start| start.opcode == "tuple")?;
    let start = constant(computation, *start.operand_ids.get(usize::try_from(place).ok()?)?)?;
    let limit = constant(condition, *limit)?;
    u64::try_from(limit).ok().filter(|_| start == 0)
}

fn find(computation: &HloComputationProto, id: i64) -> Option<&HloInstructionProto> {
    computation.instructions.iter().find(|one| one.id == id)
}

/// The value of a constant `s32[]`, or of a copy of one.
fn constant(computation: &HloComputationProto, id: i64) -> Option<i32> {
    let one = find(computation, id)?;
    match &*one.opcode {
        "copy" | "bitcast" => constant(computation, *one.operand_ids.first()?),
        "constant" => one.literal.as_ref()?.s32s.first().copied(),
        _ => None,
    }
}
