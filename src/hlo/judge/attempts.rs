//! Random operations on shapes that fit them more or less.

use fastrand::Rng;

use super::builder::{BINARY, COMPARISONS, REDUCTIONS, UNARY};
use super::cases::dots;
use super::values::TYPES;
use crate::hlo::Op;
use crate::shape::{ElementType, Shape};

fn any<T: Copy>(random: &mut Rng, list: &[T]) -> T {
    *random.choice(list).expect("there is one")
}

fn sizes(random: &mut Rng) -> Vec<usize> {
    (0..random.usize(0..4)).map(|_| any(random, &[0, 1, 1, 2, 2, 3])).collect()
}

fn shape(random: &mut Rng) -> Shape {
    Shape::new(any(random, &TYPES), sizes(random))
}

/// Mostly the same.
fn near(random: &mut Rng, shape: &Shape) -> Shape {
    let mut near = shape.clone();
    match random.u8(0..12) {
        0 | 1 => near.element_type = any(random, &TYPES),
        2 => near.dims = sizes(random),
        3 => near.dims.clear(),
        4 => near.dims = near_sizes(random, &near.dims),
        _ => {}
    }
    near
}

fn near_sizes(random: &mut Rng, sizes: &[usize]) -> Vec<usize> {
    let mut near = sizes.to_vec();
    match random.u8(0..10) {
        0 => near.push(random.usize(0..3)),
        1 => _ = near.pop(),
        2 => random.shuffle(&mut near),
        3 | 4 if !near.is_empty() => {
            let at = random.usize(0..near.len());
            near[at] = random.usize(0..4);
        }
        _ => {}
    }
    near
}

/// An operation and inputs that may not fit it.
pub fn attempt(random: &mut Rng) -> (Op, Vec<Shape>) {
    match random.u8(0..20) {
        0..6 => by_element(random),
        6..14 => moving(random),
        _ => folding(random),
    }
}

fn by_element(random: &mut Rng) -> (Op, Vec<Shape>) {
    let a = shape(random);
    let b = near(random, &a);
    match random.u8(0..7) {
        0 => (Op::Unary(any(random, UNARY)), vec![a]),
        // The builder lacks the shifts.
        1 | 2 => (Op::Binary(any(random, &BINARY[..9])), vec![a, b]),
        3 => (Op::Compare(any(random, COMPARISONS)), vec![a, b]),
        4 => {
            let condition = near(random, &Shape::new(ElementType::Pred, a.dims.clone()));
            (Op::Select, vec![condition, a, b])
        }
        5 => (Op::Convert(any(random, &TYPES)), vec![a]),
        _ => (Op::AllReduce, vec![a]),
    }
}

fn moving(random: &mut Rng) -> (Op, Vec<Shape>) {
    let a = shape(random);
    let (rank, b, value) = (a.rank(), near(random, &a), near(random, &Shape::scalar(a.element_type)));
    let mut some = || (0..rank).map(|_| random.usize(0..4)).collect::<Vec<_>>();
    let three = [some(), some(), some()];
    let start = (0..near_sizes(random, &a.dims).len())
        .map(|_| if random.u8(0..9) == 0 { shape(random) } else { Shape::scalar(ElementType::S32) })
        .collect::<Vec<_>>();
    match (random.u8(0..9), three) {
        (0, _) => {
            let mapping = (0..rank).filter(|_| random.bool()).collect::<Vec<_>>();
            let from = mapping.iter().map(|d| a.dims[*d]).collect::<Vec<_>>();
            let from = Shape::new(a.element_type, near_sizes(random, &from));
            (Op::Broadcast { dims: a.dims, mapping: near_sizes(random, &mapping) }, vec![from])
        }
        (1, _) => (Op::Reshape { dims: near_sizes(random, &a.dims) }, vec![a]),
        (2, _) => {
            let order = (0..rank).collect::<Vec<_>>();
            (Op::Transpose { permutation: near_sizes(random, &order) }, vec![a])
        }
        (3, [start, limit, stride]) => (Op::Slice { start, limit, stride }, vec![a]),
        (4, _) => (Op::DynamicSlice { sizes: near_sizes(random, &a.dims) }, [vec![a], start].concat()),
        (5, _) => (Op::DynamicUpdateSlice, [vec![a, b], start].concat()),
        (6, _) => {
            let all = [a.clone(), b, near(random, &a)];
            (Op::Concatenate { dim: random.usize(0..rank + 1) }, all[..random.usize(1..4)].to_vec())
        }
        (7, [low, high, interior]) => (Op::Pad { low, high, interior }, vec![a, value]),
        _ => (Op::Iota { shape: a, dim: random.usize(0..3) }, vec![]),
    }
}

fn folding(random: &mut Rng) -> (Op, Vec<Shape>) {
    let a = shape(random);
    let start = near(random, &Shape::scalar(a.element_type));
    match random.u8(0..6) {
        0 => {
            let (lhs, rhs, mut roles) = dots(random);
            let rhs = near(random, &Shape::new(a.element_type, rhs));
            if random.bool() {
                roles.lhs_batch = near_sizes(random, &roles.lhs_batch);
                roles.rhs_contracting = near_sizes(random, &roles.rhs_contracting);
            }
            (
                Op::DotGeneral { dimensions: roles, sums: a.element_type },
                vec![Shape::new(a.element_type, lhs), rhs],
            )
        }
        1 | 2 => {
            let dims = (0..a.rank()).filter(|_| random.bool()).collect::<Vec<_>>();
            (Op::Reduce { kind: any(random, REDUCTIONS), dims: near_sizes(random, &dims) }, vec![a, start])
        }
        3 => {
            let state = near(random, &Shape::new(ElementType::U64, [2]));
            let mut bits = near(random, &Shape::new(ElementType::U32, a.dims));
            // The crate knows no type of a single bit, which XLA gives for it.
            if bits.element_type == ElementType::Pred {
                bits.element_type = ElementType::U8;
            }
            (Op::RngBitGenerator { shape: bits }, vec![state])
        }
        _ => {
            let rows = any(random, &[0, 1, 3, 3]);
            let table = Shape::new(a.element_type, near_sizes(random, &[rows, 2]));
            let indices = near(random, &Shape::new(ElementType::S32, a.dims));
            let rows = [&indices.dims[..], &table.dims[table.rank().min(1)..]].concat();
            let updates = near(random, &Shape::new(a.element_type, rows));
            match random.bool() {
                true => (Op::Gather, vec![table, indices]),
                false => (Op::ScatterAdd, vec![table, indices, updates]),
            }
        }
    }
}
