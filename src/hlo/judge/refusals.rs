//! Shapes that don't fit: XLA's builder refuses what the graph refuses, and takes what it takes.

use std::ops::Range;

use fastrand::Rng;

use super::attempts::attempt;
use super::builder::{Builder, Refusal};
use super::values::{INTEGERS, dims, xla_shape};
use crate::hlo::{Binary, DotDimensions, Op, Reduction};
use crate::shape::{ElementType, Shape};

/// The shape that XLA's builder infers, or its refusal.
fn judged(op: &Op, inputs: &[Shape]) -> Result<xla::Shape, Refusal> {
    let builder = Builder::new("attempt");
    let parameters = inputs.iter().map(|shape| builder.parameter("p", &xla_shape(shape)));
    let built = builder.apply(op, &parameters.collect::<xla::Result<Vec<_>>>()?)?;
    Ok(built.shape()?)
}

/// Where XLA's builder is laxer, and why the graph isn't: what is asked for, in full, as the graph takes it. Of the result, the
/// type may be another. The graph refuses nothing else that XLA takes, and takes nothing that XLA refuses.
fn in_full(op: &Op, inputs: &[Shape]) -> (Op, Vec<Shape>) {
    // XLA's builder looks neither at dimension and type of a count, which its verifier does, nor at state and type of a
    // generator, which platforms do.
    if let Op::Iota { shape, .. } | Op::RngBitGenerator { shape } = op {
        return (Op::Parameter { name: String::new(), shape: shape.clone() }, vec![]);
    }
    let mut inputs = inputs.to_vec();
    let places = match op {
        Op::DynamicSlice { .. } => 1..inputs.len(),
        Op::DynamicUpdateSlice => 2..inputs.len(),
        Op::Gather | Op::ScatterAdd => 1..2,
        _ => 0..0,
    };
    let mut values = inputs.iter_mut().enumerate().filter(|(i, _)| !places.contains(i));
    one_type(op, &mut values.by_ref().map(|(_, shape)| shape).collect::<Vec<_>>());
    whole_places(op, places, &mut inputs);
    one_size(op, &mut inputs);
    (op.clone(), inputs)
}

/// Values of an operation, all of one type.
fn one_type(op: &Op, values: &mut [&mut Shape]) {
    // Truths are added and multiplied in XLA; here they have `and` and `or`.
    let is_sum = match op {
        Op::Binary(Binary::Add | Binary::Multiply | Binary::Maximum | Binary::Minimum) => true,
        _ => matches!(op, Op::Reduce { .. } | Op::ScatterAdd | Op::AllReduce),
    };
    if is_sum && values.iter().all(|shape| shape.element_type == ElementType::Pred) {
        values.iter_mut().for_each(|shape| shape.element_type = ElementType::U8);
    }
    // Floats of several types mix in XLA, and numbers of any in a dot: here a conversion is a node, which rounds and has a
    // gradient.
    let is_dot = matches!(op, Op::DotGeneral { .. });
    let mixed = values.iter_mut().filter(|shape| is_dot || shape.element_type.is_float()).collect::<Vec<_>>();
    let of = mixed.first().map(|shape| shape.element_type);
    mixed.into_iter().zip(of.into_iter().cycle()).for_each(|(shape, of)| shape.element_type = of);
}

fn whole_places(op: &Op, places: Range<usize>, inputs: &mut Vec<Shape>) {
    // Any integers are places in XLA, if all are of one type; those of a model's tokens and of a loop are s32.
    let rank = inputs.first().map_or(0, Shape::rank);
    let own = &mut inputs[places.clone()];
    let of = own.first().map(|shape| shape.element_type).filter(|of| INTEGERS.contains(of));
    if own.iter().all(|shape| Some(shape.element_type) == of) {
        own.iter_mut().for_each(|shape| shape.element_type = ElementType::S32);
    }
    // The start of a slice was once one array of places, as XLA's builder still takes it.
    let is_slice = matches!(op, Op::DynamicSlice { .. } | Op::DynamicUpdateSlice);
    if is_slice && *own == [Shape::new(ElementType::S32, [rank])] {
        inputs.splice(places, vec![Shape::scalar(ElementType::S32); rank]);
    }
}

fn one_size(op: &Op, inputs: &mut [Shape]) {
    match (op, inputs) {
        // Scalars and dimensions of size 1 broadcast in XLA; here that is a node, with a gradient.
        (Op::Binary(_) | Op::Compare(_), inputs) => broadcast_ones(inputs),
        (Op::Select, inputs) => broadcast_scalars(inputs),
        (Op::Broadcast { dims, mapping }, [a]) => {
            for (size, to) in a.dims.iter_mut().zip(mapping).filter(|(size, _)| **size == 1) {
                *size = dims.get(*to).copied().unwrap_or(1);
            }
        }
        // Updates may be narrower than rows in XLA, which then leaves the rest of the row.
        (Op::ScatterAdd, [table, _, updates]) => {
            if let (Some(width), Some(size)) = (table.dims.last(), updates.dims.last_mut()) {
                *size = (*size).max(*width);
            }
        }
        _ => {}
    }
}

fn broadcast_ones(inputs: &mut [Shape]) {
    broadcast_scalars(inputs);
    let [a, b] = inputs else { return };
    if a.rank() == b.rank() {
        for (a, b) in a.dims.iter_mut().zip(&mut b.dims) {
            let size = if *a == 1 { *b } else { *a };
            *a = size;
            *b = if *b == 1 { size } else { *b };
        }
    }
}

fn broadcast_scalars(inputs: &mut [Shape]) {
    let dims = inputs.iter().map(|shape| &shape.dims).find(|dims| !dims.is_empty()).cloned();
    for shape in inputs.iter_mut().filter(|shape| shape.rank() == 0) {
        shape.dims = dims.clone().unwrap_or_default();
    }
}

/// Whether the graph and XLA's builder say the same of an attempt, or only differ as [`in_full`] says.
fn agrees(op: &Op, inputs: &[Shape]) -> bool {
    let own = op.shape(&inputs.iter().collect::<Vec<_>>());
    let (full, whole) = in_full(op, inputs);
    let expected = full.shape(&whole.iter().collect::<Vec<_>>());
    match (own, expected, judged(op, inputs)) {
        (Ok(own), Ok(_), Ok(found)) => xla_shape(&own) == found,
        (Err(_), Ok(expected), Ok(xla::Shape::Array(found))) => found.dims() == dims(&expected.dims),
        (own, expected, found) => own.is_err() && expected.is_err() && found.is_err(),
    }
}

#[test]
fn xla_refuses_the_same() {
    const ATTEMPTS: usize = 40_000;
    let mut random = Rng::with_seed(7);
    let mut refused = 0;
    for _ in 0..ATTEMPTS {
        let (op, inputs) = attempt(&mut random);
        let own = op.shape(&inputs.iter().collect::<Vec<_>>());
        refused += usize::from(own.is_err());
        assert!(agrees(&op, &inputs), "{op:?} of {inputs:?}: {own:?}, and XLA {:?}", judged(&op, &inputs));
    }
    assert!((ATTEMPTS / 4..ATTEMPTS * 3 / 4).contains(&refused), "{refused} refused");
}

/// Each difference of [`in_full`] is there: XLA takes it, the graph doesn't.
#[test]
fn xla_is_laxer() {
    use ElementType::{Bf16, F32, Pred, S32, S64, U8, U64};
    let shape = |of: ElementType, dims: &[usize]| Shape::new(of, dims);
    let (row, scalar) = (shape(F32, &[3]), shape(F32, &[]));
    let add = Op::Binary(Binary::Add);
    let outer = Op::DotGeneral { dimensions: DotDimensions::default(), sums: ElementType::F32 };
    let table = shape(F32, &[4, 3]);
    for (op, inputs) in [
        (Op::Iota { shape: row.clone(), dim: 1 }, vec![]),
        (Op::Iota { shape: shape(Pred, &[3]), dim: 0 }, vec![]),
        (Op::RngBitGenerator { shape: row.clone() }, vec![shape(U64, &[2])]),
        (Op::RngBitGenerator { shape: shape(ElementType::U32, &[3]) }, vec![shape(U64, &[4])]),
        (add.clone(), vec![shape(Pred, &[3]), shape(Pred, &[3])]),
        (Op::Reduce { kind: Reduction::Max, dims: vec![0] }, vec![shape(Pred, &[3]), shape(Pred, &[])]),
        (add.clone(), vec![row.clone(), shape(Bf16, &[3])]),
        (outer, vec![row.clone(), shape(U8, &[3])]),
        (add.clone(), vec![row.clone(), scalar.clone()]),
        (add, vec![shape(F32, &[3, 1]), shape(F32, &[1, 2])]),
        (Op::Select, vec![shape(Pred, &[]), row.clone(), scalar]),
        (Op::Broadcast { dims: vec![2, 3], mapping: vec![1] }, vec![shape(F32, &[1])]),
        (Op::Gather, vec![table.clone(), shape(S64, &[2])]),
        (Op::DynamicSlice { sizes: vec![2] }, vec![row.clone(), shape(S32, &[1])]),
        (Op::ScatterAdd, vec![table, shape(S32, &[2]), shape(F32, &[2, 1])]),
    ] {
        assert!(op.shape(&inputs.iter().collect::<Vec<_>>()).is_err(), "{op:?} of {inputs:?}");
        assert!(judged(&op, &inputs).is_ok() && agrees(&op, &inputs), "{op:?} of {inputs:?}");
    }
}
