//! Cases of each operation that XLA's builder has, but loops.

use xla::{Literal, XlaBuilder};

use super::CLIENT;
use super::bench::Bench;
use super::builder::{BINARY, COMPARISONS, REDUCTIONS, UNARY};
use super::values::{Array, NUMBERS, SPECIAL, TYPES};
use crate::hlo::{Binary, DotDimensions, Graph, Op, Scalar};
use crate::shape::{ElementType, Shape};

/// Dimensions of rank 0 to 4, some of them empty.
const DIMS: [&[usize]; 7] = [&[], &[5], &[0], &[2, 3], &[3, 0, 2], &[2, 1, 3], &[2, 3, 1, 2]];

/// The same for operations that go element by element, and that are many.
const FEW: [&[usize]; 3] = [&[], &[30], &[2, 3, 0, 2]];

#[test]
fn leaves() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    for element_type in TYPES {
        SPECIAL.into_iter().for_each(|value| bench.case(Op::Constant(Scalar::new(element_type, value)), &[]));
    }
    for &element_type in NUMBERS {
        for dims in DIMS {
            let shape = Shape::new(element_type, dims);
            (0..dims.len()).for_each(|dim| bench.case(Op::Iota { shape: shape.clone(), dim }, &[]));
        }
    }
    let state = bench.input(ElementType::U64, &[2]);
    for dims in DIMS {
        bench.case(Op::RngBitGenerator { shape: Shape::new(ElementType::U32, dims) }, &[state]);
    }
    bench.judge();
}

/// A constant is the value that XLA's own conversion from `f64` gives, for all that its type can hold or be rounded to.
#[test]
fn constants_are_rounded_as_by_xla() {
    let builder = XlaBuilder::new("constants");
    let halfway =
        [1.0 + 2f64.powi(-9), 1.0 + 3.0 * 2f64.powi(-9), 1.0 + 2f64.powi(-11), 1.0 + 2f64.powi(-24)];
    let values =
        [0.0, 0.1, 1.0, -1.0 / 3.0, 65504.0, 65520.0, -1e-8, 6e-8, 3.3e38, -1e-40, 1e-300, 255.0, 7.0];
    for element_type in TYPES {
        let fits = |value: &f64| {
            let is_whole = value.fract() == 0.0 && (0.0..256.0).contains(value);
            element_type.is_float() || (is_whole && element_type != ElementType::Pred)
        };
        for value in values.iter().chain(&halfway).copied().filter(fits) {
            let of = super::values::element_type(element_type).primitive_type();
            let computation = builder_constant(&builder, value, of);
            let executable = CLIENT.compile(&computation).unwrap();
            let found = executable.execute::<Literal>(&[]).unwrap()[0][0].to_literal_sync().unwrap();
            let shape = Shape::scalar(element_type);
            let expected = Array::read(&found, &shape);
            let own = Array::new(&shape, |_| Scalar::new(element_type, value));
            assert_eq!(own.bytes, expected.bytes, "{value} as {element_type}");
        }
    }
}

fn builder_constant(builder: &XlaBuilder, value: f64, of: xla::PrimitiveType) -> xla::XlaComputation {
    builder.c0(value).unwrap().convert(of).unwrap().build().unwrap()
}

#[test]
fn unary() {
    for element_type in TYPES {
        let graph = Graph::new();
        let mut bench = Bench::new(&graph);
        for dims in FEW {
            let a = bench.input(element_type, dims);
            let taken = UNARY.iter().filter(|op| op.takes(element_type));
            taken.for_each(|op| bench.case(Op::Unary(*op), &[a]));
        }
        bench.judge();
    }
}

#[test]
fn binary() {
    let shifts = [Binary::ShiftLeft, Binary::ShiftRightLogical];
    for element_type in TYPES {
        let graph = Graph::new();
        let mut bench = Bench::new(&graph);
        for dims in FEW {
            let shape = Shape::new(element_type, dims);
            let pair = [bench.input(element_type, dims), bench.input(element_type, dims)];
            let taken = BINARY.iter().filter(|op| !shifts.contains(op)).map(|op| Op::Binary(*op));
            let taken = taken.filter(|op| op.shape(&[&shape, &shape]).is_ok());
            taken.for_each(|op| bench.case(op, &pair));
        }
        bench.judge();
    }
}

#[test]
fn compare_and_select() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    for element_type in TYPES {
        for dims in FEW {
            let pair = [bench.input(element_type, dims), bench.input(element_type, dims)];
            COMPARISONS.iter().for_each(|op| bench.case(Op::Compare(*op), &pair));
            let condition = bench.input(ElementType::Pred, dims);
            bench.case(Op::Select, &[condition, pair[0], pair[1]]);
        }
    }
    bench.judge();
}

#[test]
fn convert() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    for from in TYPES {
        for dims in FEW {
            let a = bench.input(from, dims);
            TYPES.into_iter().for_each(|to| bench.case(Op::Convert(to), &[a]));
        }
    }
    bench.judge();
}

#[test]
fn broadcast() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    for dims in DIMS {
        // Each set of dimensions that the input has.
        for kept in 0..1usize << dims.len() {
            let mapping = (0..dims.len()).filter(|d| kept >> d & 1 == 1).collect::<Vec<_>>();
            let a = bench.any(&mapping.iter().map(|d| dims[*d]).collect::<Vec<_>>());
            bench.case(Op::Broadcast { dims: dims.to_vec(), mapping }, &[a]);
        }
    }
    bench.judge();
}

#[test]
fn reshape_and_transpose() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    let shapes: [(&[usize], &[usize]); 9] = [
        (&[], &[1]),
        (&[1, 1], &[]),
        (&[6], &[2, 3]),
        (&[2, 3, 4], &[4, 6]),
        (&[3, 8], &[2, 2, 3, 2]),
        (&[0], &[3, 0]),
        (&[2, 0, 4], &[0]),
        (&[2, 1, 3], &[1, 2, 3, 1]),
        (&[4, 3], &[4, 3]),
    ];
    for (from, to) in shapes {
        let a = bench.any(from);
        bench.case(Op::Reshape { dims: to.to_vec() }, &[a]);
    }
    for dims in [&[][..], &[3], &[2, 3], &[3, 0, 2], &[4, 2, 3], &[2, 3, 1, 4]] {
        for permutation in permutations(dims.len()) {
            let a = bench.any(dims);
            bench.case(Op::Transpose { permutation }, &[a]);
        }
    }
    bench.judge();
}

fn permutations(rank: usize) -> Vec<Vec<usize>> {
    let Some(last) = rank.checked_sub(1) else { return vec![vec![]] };
    let insert = |order: Vec<usize>| (0..rank).map(move |at| [&order[..at], &[last], &order[at..]].concat());
    permutations(last).into_iter().flat_map(insert).collect()
}

/// A slice of one dimension is one of XLA's builder; of several it is a chain, with the same result.
#[test]
fn slice() {
    for is_single in [true, false] {
        let graph = Graph::new();
        let mut bench = Bench::new(&graph);
        for dims in DIMS.repeat(6) {
            let (mut start, mut limit, mut stride) =
                (vec![0; dims.len()], dims.to_vec(), vec![1; dims.len()]);
            let only = bench.random.usize(0..dims.len().max(1));
            for d in (0..dims.len()).filter(|d| !is_single || *d == only) {
                start[d] = bench.random.usize(0..=dims[d]);
                limit[d] = bench.random.usize(start[d]..=dims[d]);
                stride[d] = bench.random.usize(1..4);
            }
            let a = bench.any(dims);
            // XLA's builder has no slice of a scalar.
            if !(is_single && dims.is_empty()) {
                bench.case(Op::Slice { start, limit, stride }, &[a]);
            }
        }
        if is_single { bench.judge() } else { bench.judge_results() }
    }
}

#[test]
fn dynamic_slices() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    for dims in DIMS.repeat(8) {
        let sizes = dims.iter().map(|size| bench.random.usize(0..=*size)).collect::<Vec<_>>();
        let starts = dims.iter().map(|_| bench.index(&[])).collect::<Vec<_>>();
        let element_type = bench.element_type();
        let (a, update) = (bench.input(element_type, dims), bench.input(element_type, &sizes));
        bench.case(Op::DynamicSlice { sizes }, &[&[a], &starts[..]].concat());
        bench.case(Op::DynamicUpdateSlice, &[&[a, update], &starts[..]].concat());
    }
    bench.judge();
}

#[test]
fn concatenate() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    for dims in &DIMS[1..] {
        for dim in 0..dims.len() {
            let element_type = bench.element_type();
            let parts = (0..=bench.random.usize(0..3)).map(|_| {
                let mut dims = dims.to_vec();
                dims[dim] = bench.random.usize(0..4);
                bench.input(element_type, &dims)
            });
            let parts = parts.collect::<Vec<_>>();
            bench.case(Op::Concatenate { dim }, &parts);
        }
    }
    bench.judge();
}

#[test]
fn pad() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    for dims in DIMS[1..].repeat(6) {
        let element_type = bench.element_type();
        let (a, value) = (bench.input(element_type, dims), bench.input(element_type, &[]));
        let mut sizes = || dims.iter().map(|_| bench.random.usize(0..3)).collect::<Vec<_>>();
        let op = Op::Pad { low: sizes(), high: sizes(), interior: sizes() };
        bench.case(op, &[a, value]);
    }
    bench.judge();
}

#[test]
fn dot() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    for element_type in TYPES {
        for _ in 0..12 {
            let (lhs, rhs, roles) = dots(&mut bench.random);
            let pair = [bench.input(element_type, &lhs), bench.input(element_type, &rhs)];
            bench.case(Op::DotGeneral { dimensions: roles, sums: element_type }, &pair);
        }
    }
    bench.judge();
}

/// The dimensions of both sides of a dot, their roles in any order.
pub fn dots(random: &mut fastrand::Rng) -> (Vec<usize>, Vec<usize>, DotDimensions) {
    let [batch, contracted] = [0, 0].map(|_| random.usize(0..3));
    let mut side = |sizes: &[usize]| {
        let own = (0..random.usize(0..3 - usize::from(batch + contracted > 2))).map(|_| random.usize(1..4));
        let sizes = [sizes, &own.collect::<Vec<_>>()].concat();
        let mut places = (0..sizes.len()).collect::<Vec<_>>();
        random.shuffle(&mut places);
        let mut dims = vec![0; sizes.len()];
        places.iter().zip(&sizes).for_each(|(place, size)| dims[*place] = *size);
        (dims, places)
    };
    // Now and then a dimension is empty.
    let sizes = (0..batch + contracted).map(|i| [2, 3, 1, 0, 4][i * 7 % 5]).collect::<Vec<_>>();
    let ((lhs, lhs_at), (rhs, rhs_at)) = (side(&sizes), side(&sizes));
    let roles = DotDimensions {
        lhs_batch: lhs_at[..batch].to_vec(),
        rhs_batch: rhs_at[..batch].to_vec(),
        lhs_contracting: lhs_at[batch..batch + contracted].to_vec(),
        rhs_contracting: rhs_at[batch..batch + contracted].to_vec(),
    };
    (lhs, rhs, roles)
}

#[test]
fn reduce() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    for &element_type in NUMBERS {
        for dims in DIMS {
            let (a, start) = (bench.input(element_type, dims), bench.input(element_type, &[]));
            for kind in REDUCTIONS {
                let mut folded = (0..dims.len()).collect::<Vec<_>>();
                bench.random.shuffle(&mut folded);
                folded.truncate(bench.random.usize(0..=dims.len()));
                bench.case(Op::Reduce { kind: *kind, dims: folded }, &[a, start]);
            }
        }
    }
    bench.judge();
}

#[test]
fn gather_and_scatter() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    for table in [[4, 3], [1, 2], [3, 0]] {
        for dims in [&[][..], &[6], &[0], &[2, 2], &[2, 1, 3]] {
            let indices = bench.index(dims);
            for element_type in TYPES {
                let rows = bench.input(element_type, &table);
                bench.case(Op::Gather, &[rows, indices]);
                if element_type != ElementType::Pred {
                    let updates = bench.input(element_type, &[dims, &table[1..]].concat());
                    bench.case(Op::ScatterAdd, &[rows, indices, updates]);
                }
            }
        }
    }
    bench.judge();
}

#[test]
fn all_reduce_and_stop_gradient() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    for &element_type in NUMBERS {
        for dims in DIMS {
            let a = bench.input(element_type, dims);
            bench.case(Op::AllReduce, &[a]);
            bench.case(Op::StopGradient, &[a]);
        }
    }
    bench.judge();
}
