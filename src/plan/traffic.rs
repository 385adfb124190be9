//! What the instructions of an optimized module move between a device and its memory.

use std::collections::HashMap;

use super::running::trips;
use crate::proto::{HloComputationProto, HloInstructionProto, ShapeProto, primitive_type as t};

/// The computations of a module by id.
pub(super) type Computations<'a> = HashMap<i64, &'a HloComputationProto>;

/// Bytes that one run of `computation` reads from the device's memory and writes to it.
///
/// The rules are those of XLA's "bytes accessed" (`HloCostAnalysis`): every operand and every output of every
/// instruction, once, with nothing for parameters, constants, tuples and bitcasts; the inside of a fusion stays on the
/// chip. Of a table that is gathered from, scattered into or sliced, only the part that moves. A loop's body counts
/// once a trip, or once where nobody knows how many there are; the heaviest branch of a conditional counts. Unlike XLA's count, this one leaves out what the compiler keeps
/// in memory on the chip (TPU's VMEM, layouts in memory space 1), and the padding of tiles.
pub(super) fn hbm_bytes(computation: &HloComputationProto, computations: &Computations<'_>) -> u64 {
    let scope = Scope::new(computation, computations);
    let called = |one: &HloInstructionProto| {
        let ids = one.called_computation_ids.clone().into_iter();
        ids.filter_map(|id| computations.get(&id)).map(|called| hbm_bytes(called, computations))
    };
    let bytes = |one: &HloInstructionProto| match &*one.opcode {
        "parameter" | "constant" | "tuple" | "get-tuple-element" | "bitcast" => 0,
        "call" => called(one).sum(),
        "while" => trips(one, computation, computations).unwrap_or(1) * called(one).sum::<u64>(),
        "conditional" => called(one).max().unwrap_or(0),
        // Of a pair, the first reads and the last writes.
        opcode if opcode.ends_with("-start") => scope.read(one),
        opcode if opcode.ends_with("-update") => 0,
        opcode if opcode.ends_with("-done") => output(one),
        _ => scope.read(one) + scope.written(one),
    };
    computation.instructions.iter().map(bytes).sum()
}

/// The instructions of one computation.
struct Scope<'a> {
    computation: &'a HloComputationProto,
    by_id: HashMap<i64, &'a HloInstructionProto>,
    computations: &'a Computations<'a>,
}

impl<'a> Scope<'a> {
    fn new(computation: &'a HloComputationProto, computations: &'a Computations<'a>) -> Self {
        let by_id = computation.instructions.iter().map(|one| (one.id, one)).collect();
        Self { computation, by_id, computations }
    }

    /// Of a fusion or an asynchronous instruction: what is in it.
    fn inside(&self, one: &HloInstructionProto) -> Option<Self> {
        let is_wrapper = matches!(&*one.opcode, "fusion" | "async-start");
        let called = one.called_computation_ids.first().filter(|_| is_wrapper)?;
        Some(Self::new(self.computations.get(called)?, self.computations))
    }

    fn read(&self, one: &HloInstructionProto) -> u64 {
        let inside = self.inside(one);
        (0..one.operand_ids.len()).map(|index| self.read_of(one, index, inside.as_ref())).sum()
    }

    /// What `one` reads of the operand at `index`.
    fn read_of(&self, one: &HloInstructionProto, index: usize, inside: Option<&Self>) -> u64 {
        match (&*one.opcode, index) {
            ("gather" | "slice" | "dynamic-slice", 0) => output(one),
            ("scatter", 0) => self.operand(one, 2),
            // In place.
            ("dynamic-update-slice", 0) => 0,
            _ => {
                let whole = self.operand(one, index);
                inside.map_or(whole, |inside| inside.read_of_parameter(index).min(whole))
            }
        }
    }

    fn read_of_parameter(&self, number: usize) -> u64 {
        let instructions = &self.computation.instructions;
        let is_it = |one: &&HloInstructionProto| {
            one.opcode == "parameter" && usize::try_from(one.parameter_number) == Ok(number)
        };
        let Some(parameter) = instructions.iter().find(is_it) else { return u64::MAX };
        let read_by = |user: &HloInstructionProto| {
            let operands = user.operand_ids.iter().enumerate().filter(|(_, id)| **id == parameter.id);
            let mut operands = operands.map(|(index, _)| index).peekable();
            let inside = operands.peek().and_then(|_| self.inside(user));
            operands.map(|index| self.read_of(user, index, inside.as_ref())).sum::<u64>()
        };
        instructions.iter().map(read_by).sum()
    }

    fn written(&self, one: &HloInstructionProto) -> u64 {
        match &*one.opcode {
            "scatter" => self.operand(one, 2),
            "dynamic-update-slice" => self.operand(one, 1),
            _ => {
                let whole = output(one);
                self.inside(one).and_then(|inside| inside.root()).map_or(whole, |root| root.min(whole))
            }
        }
    }

    /// What the result takes to write; `None` for several results.
    fn root(&self) -> Option<u64> {
        let root = self.by_id.get(&self.computation.root_id)?;
        (root.opcode != "tuple").then(|| self.written(root))
    }

    fn operand(&self, one: &HloInstructionProto, index: usize) -> u64 {
        one.operand_ids.get(index).and_then(|id| self.by_id.get(id)).map_or(0, |operand| output(operand))
    }
}

fn output(one: &HloInstructionProto) -> u64 {
    one.shape.as_ref().map_or(0, hbm_size)
}

/// Bytes of the values of `shape` that are in the device's memory: memory space 0.
fn hbm_size(shape: &ShapeProto) -> u64 {
    match &shape.layout {
        Some(layout) if layout.memory_space != 0 => 0,
        _ if shape.element_type == t::TUPLE => shape.tuple_shapes.iter().map(hbm_size).sum(),
        _ => byte_size(shape),
    }
}

/// Bytes of the values that a shape holds, without padding.
pub(super) fn byte_size(shape: &ShapeProto) -> u64 {
    let width = match shape.element_type {
        t::TUPLE => return shape.tuple_shapes.iter().map(byte_size).sum(),
        t::S16 | t::U16 | t::F16 | t::BF16 => 2,
        t::S32 | t::U32 | t::F32 => 4,
        t::S64 | t::U64 | t::F64 => 8,
        // Booleans, 8-bit integers and floats.
        _ => 1,
    };
    shape.dimensions.iter().map(|dim| dim.unsigned_abs()).product::<u64>() * width
}

#[cfg(test)]
mod tests;
