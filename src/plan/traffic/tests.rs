//! Against counts made by hand with the rules of XLA's `HloCostAnalysis`.

use super::*;
use crate::proto::LayoutProto;

const TABLE: &[i64] = &[1000, 8];
const ROWS: &[i64] = &[5, 8];

/// `f32`, four bytes an element.
fn instruction(id: i64, opcode: &str, dims: &[i64], operands: &[i64]) -> HloInstructionProto {
    let shape = ShapeProto { element_type: t::F32, dimensions: dims.into(), ..Default::default() };
    HloInstructionProto {
        id,
        opcode: opcode.into(),
        shape: Some(shape),
        operand_ids: operands.into(),
        ..Default::default()
    }
}

fn parameter(id: i64, parameter_number: i64, dims: &[i64]) -> HloInstructionProto {
    HloInstructionProto { parameter_number, ..instruction(id, "parameter", dims, &[]) }
}

fn calling(called: &[i64], one: HloInstructionProto) -> HloInstructionProto {
    HloInstructionProto { called_computation_ids: called.into(), ..one }
}

/// The last instruction is the root.
fn computation(id: i64, instructions: Vec<HloInstructionProto>) -> HloComputationProto {
    let root_id = instructions.last().map_or(0, |one| one.id);
    HloComputationProto { id, root_id, instructions, ..Default::default() }
}

/// Bytes of the first computation.
fn bytes(computations: &[HloComputationProto]) -> u64 {
    let by_id = computations.iter().map(|one| (one.id, one)).collect();
    hbm_bytes(&computations[0], &by_id)
}

#[test]
fn operands_and_outputs_count_once_and_names_for_memory_not() {
    let entry = computation(
        1,
        vec![
            parameter(1, 0, &[2, 3]),
            instruction(2, "constant", &[3, 4], &[]),
            instruction(3, "bitcast", &[6], &[1]),
            instruction(4, "dot", &[2, 4], &[1, 2]),
            instruction(5, "multiply", &[2, 4], &[4, 4]),
            instruction(6, "tuple", &[], &[5, 1]),
            instruction(7, "get-tuple-element", &[2, 4], &[6]),
        ],
    );
    assert_eq!(bytes(&[entry]), 4 * ((6 + 12 + 8) + (8 + 8 + 8)));
}

#[test]
fn a_fusion_reads_its_operands_and_writes_its_output() {
    let fused = computation(
        2,
        vec![
            parameter(1, 0, ROWS),
            instruction(2, "negate", ROWS, &[1]),
            instruction(3, "add", ROWS, &[1, 2]),
            instruction(4, "reduce", &[5], &[3]),
        ],
    );
    let fusion = calling(&[2], instruction(2, "fusion", &[5], &[1]));
    assert_eq!(bytes(&[computation(1, vec![parameter(1, 0, ROWS), fusion]), fused]), 4 * (40 + 5));
}

/// Plain and in a fusion, where the table may be an operand of any place.
#[test]
fn of_a_table_only_the_rows_that_move_count() {
    let operands = || vec![parameter(1, 0, &[5]), parameter(2, 1, TABLE), parameter(3, 2, ROWS)];
    let fuse = |one: HloInstructionProto| {
        let dims = one.shape.as_ref().unwrap().dimensions.clone();
        let fused = [operands(), vec![one]].concat();
        let fusion = calling(&[2], instruction(4, "fusion", &dims, &[1, 2, 3]));
        bytes(&[computation(1, [operands(), vec![fusion]].concat()), computation(2, fused)])
    };
    let plain = |one: HloInstructionProto| bytes(&[computation(1, [operands(), vec![one]].concat())]);

    // Indices, rows read, rows written.
    let gather = instruction(4, "gather", ROWS, &[2, 1]);
    assert_eq!((plain(gather.clone()), fuse(gather)), (4 * (5 + 40 + 40), 4 * (5 + 40 + 40)));
    // Indices, updates, rows read and rows written.
    let scatter = instruction(4, "scatter", TABLE, &[2, 1, 3]);
    assert_eq!((plain(scatter.clone()), fuse(scatter)), (4 * (5 + 3 * 40), 4 * (5 + 3 * 40)));
    let slice = instruction(4, "slice", ROWS, &[2]);
    assert_eq!((plain(slice.clone()), fuse(slice)), (4 * 2 * 40, 4 * 2 * 40));
    // The update, the start indices and what is written over.
    let update = instruction(4, "dynamic-update-slice", TABLE, &[2, 3, 1]);
    assert_eq!((plain(update.clone()), fuse(update)), (4 * (40 + 5 + 40), 4 * (40 + 5 + 40)));

    // Whoever needs all of it reads all of it.
    let both = vec![
        parameter(1, 0, TABLE),
        instruction(2, "slice", ROWS, &[1]),
        instruction(3, "reduce", ROWS, &[1]),
        instruction(4, "add", ROWS, &[2, 3]),
    ];
    let fusion = calling(&[2], instruction(2, "fusion", ROWS, &[1]));
    let entry = computation(1, vec![parameter(1, 0, TABLE), fusion]);
    assert_eq!(bytes(&[entry, computation(2, both)]), 4 * (8000 + 40));
}

#[test]
fn what_is_called_counts_and_a_pair_counts_as_one() {
    let body = computation(2, vec![parameter(1, 0, &[5]), instruction(2, "negate", &[5], &[1])]);
    let lighter = computation(3, vec![parameter(1, 0, &[2]), instruction(2, "negate", &[2], &[1])]);
    let wrapped = computation(4, vec![parameter(1, 0, TABLE), instruction(2, "slice", ROWS, &[1])]);
    let entry = |one: Vec<HloInstructionProto>| {
        let entry = computation(1, [vec![parameter(1, 0, TABLE)], one].concat());
        bytes(&[entry, body.clone(), lighter.clone(), wrapped.clone()])
    };
    let (heavy, light) = (4 * 2 * 5, 4 * 2 * 2);
    assert_eq!(entry(vec![calling(&[2], instruction(2, "call", &[5], &[1]))]), heavy);
    assert_eq!(entry(vec![calling(&[2, 3], instruction(2, "while", &[5], &[1]))]), heavy + light);
    assert_eq!(entry(vec![calling(&[3, 2], instruction(2, "conditional", &[5], &[1]))]), heavy);

    let copy = vec![instruction(2, "copy-start", TABLE, &[1]), instruction(3, "copy-done", TABLE, &[2])];
    assert_eq!(entry(copy), 4 * 2 * 8000);
    let start = calling(&[4], instruction(2, "async-start", TABLE, &[1]));
    let done = calling(&[4], instruction(4, "async-done", ROWS, &[3]));
    assert_eq!(entry(vec![start, instruction(3, "async-update", TABLE, &[2]), done]), 4 * 2 * 40);
}

/// A prefetch: read from the device's memory once, into memory on the chip, and used there.
#[test]
fn memory_on_the_chip_does_not_count() {
    let on_chip = |one: HloInstructionProto| {
        let layout = LayoutProto { memory_space: 1, ..Default::default() };
        let shape = one.shape.clone().map(|shape| ShapeProto { layout: Some(layout), ..shape });
        HloInstructionProto { shape, ..one }
    };
    let entry = computation(
        1,
        vec![
            parameter(1, 0, &[100]),
            on_chip(instruction(2, "copy-start", &[100], &[1])),
            on_chip(instruction(3, "copy-done", &[100], &[2])),
            on_chip(instruction(4, "negate", &[100], &[3])),
            instruction(5, "multiply", &[100], &[3, 4]),
        ],
    );
    assert_eq!(bytes(&[entry]), 4 * (100 + 100));
}
