//! Shape rules and values of operations on random shapes, against XLA and ndarray.
//!
//! Each program compiles only if XLA infers the shapes that the graph states.

use crate::common::graph::{Checks, Compiled, HostArray, dot_reference, uniform, uniform_f32};
use bert_xla::hlo::{DotDimensions, Graph, Program, Tensor};
use bert_xla::shape::Shape;
use ndarray::{ArrayD, Axis, SliceInfoElem};
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

fn config() -> ProptestConfig {
    // Each case compiles a program, which takes some 10 ms.
    ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() }
}

/// Up to `rank` dimensions, now and then an empty one.
fn dims(rank: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1 => Just(0), 12 => 1..5usize], 0..=rank)
}

fn permutation(rank: usize) -> impl Strategy<Value = Vec<usize>> {
    Just((0..rank).collect::<Vec<_>>()).prop_shuffle()
}

fn with_permutation(dims: Vec<usize>) -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    let rank = dims.len();
    (Just(dims), permutation(rank))
}

/// Sizes, start, limit and stride of each dimension.
fn slices() -> impl Strategy<Value = Vec<[usize; 4]>> {
    let slice = (0..7usize, any::<[Index; 2]>(), 1..4usize).prop_map(|(size, ends, stride)| {
        let [a, b] = ends.map(|end| end.index(size + 1));
        [size, a.min(b), a.max(b), stride]
    });
    prop::collection::vec(slice, 0..4)
}

/// Size, low, high and interior padding of each dimension.
fn paddings() -> impl Strategy<Value = Vec<[usize; 4]>> {
    prop::collection::vec((0..4usize, 0..3usize, 0..3usize, 0..3usize).prop_map(Into::into), 0..4)
}

fn column(rows: &[[usize; 4]], index: usize) -> Vec<usize> {
    rows.iter().map(|row| row[index]).collect()
}

fn slice_info(start: usize, end: usize, step: usize) -> SliceInfoElem {
    SliceInfoElem::Slice { start: start as isize, end: Some(end as isize), step: step as isize }
}

/// Dimensions of both sides of a dot, and their roles, in random order on each side.
fn dots() -> impl Strategy<Value = (Vec<usize>, Vec<usize>, DotDimensions)> {
    let sizes = || prop::collection::vec(1..4usize, 0..3);
    (sizes(), sizes(), sizes(), sizes()).prop_flat_map(|(batch, contracted, lhs, rhs)| {
        let shared = [batch.clone(), contracted].concat();
        let (lhs, rhs) = ([shared.clone(), lhs].concat(), [shared.clone(), rhs].concat());
        let orders = (permutation(lhs.len()), permutation(rhs.len()));
        orders.prop_map(move |(lhs_at, rhs_at)| {
            // Dimension i of the list lies at place `at[i]` of the array.
            let placed = |sizes: &[usize], at: &[usize]| {
                let mut dims = vec![0; sizes.len()];
                at.iter().zip(sizes).for_each(|(at, size)| dims[*at] = *size);
                dims
            };
            let (batch, shared) = (0..batch.len(), batch.len()..shared.len());
            let roles = DotDimensions {
                lhs_batch: lhs_at[batch.clone()].to_vec(),
                rhs_batch: rhs_at[batch].to_vec(),
                lhs_contracting: lhs_at[shared.clone()].to_vec(),
                rhs_contracting: rhs_at[shared].to_vec(),
            };
            (placed(&lhs, &lhs_at), placed(&rhs, &rhs_at), roles)
        })
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn broadcast(dims in dims(4), dropped in any::<[Index; 2]>(), ones in any::<[u8; 2]>()) {
        let graph = Graph::new();
        let mut checks = Checks::new(&graph);
        // Each side loses some leading dimensions and shrinks others to 1.
        let side = |dropped: Index, ones: u8| {
            let kept = dims.iter().enumerate().skip(dropped.index(dims.len() + 1));
            kept.map(|(d, size)| if ones >> d & 1 == 1 { 1 } else { *size }).collect::<Vec<_>>()
        };
        let (a, b) = (side(dropped[0], ones[0]), side(dropped[1], ones[1]));
        let (a, b) = (uniform_f32(1, &a, -1.0, 1.0), uniform_f32(2, &b, -1.0, 1.0));
        let (x, y) = (checks.input(&*a), checks.input(&*b));
        checks.equal("multiply", x * y, &(&a * &b));
        checks.equal("subtract", y - x, &(&b - &a));
        checks.equal("broadcast_to", x.broadcast_to(&dims), &a.broadcast(dims.clone()).unwrap().to_owned());
        checks.run();
    }

    #[test]
    fn transpose_and_reshape((dims, order) in dims(4).prop_flat_map(with_permutation), split in any::<Index>()) {
        let graph = Graph::new();
        let mut checks = Checks::new(&graph);
        let a = uniform_f32(3, &dims, -1.0, 1.0);
        let x = checks.input(&*a);
        let transposed = a.clone().permuted_axes(order.clone());
        checks.equal("transpose", x.transpose(&order), &transposed);
        let (left, right) = transposed.shape().split_at(split.index(dims.len() + 1));
        let merged = [left.iter().product(), 1, right.iter().product()];
        let expected = ArrayD::from_shape_vec(&merged[..], transposed.iter().copied().collect()).unwrap();
        checks.equal("reshape", x.transpose(&order).reshape(&merged), &expected);
        checks.run();
    }

    #[test]
    fn slice(slices in slices()) {
        let graph = Graph::new();
        let mut checks = Checks::new(&graph);
        let a = uniform_f32(4, &column(&slices, 0), -1.0, 1.0);
        let x = checks.input(&*a);
        let info = slices.iter().map(|[_, start, limit, stride]| slice_info(*start, *limit, *stride));
        let expected = a.slice(&info.collect::<Vec<_>>()[..]).to_owned();
        checks.equal("slice", x.slice(&column(&slices, 1), &column(&slices, 2), &column(&slices, 3)), &expected);
        checks.run();
    }

    #[test]
    fn pad(paddings in paddings()) {
        let graph = Graph::new();
        let mut checks = Checks::new(&graph);
        let a = uniform_f32(5, &column(&paddings, 0), -1.0, 1.0);
        let x = checks.input(&*a);
        let y = x.pad(x.like(9.0), &column(&paddings, 1), &column(&paddings, 2), &column(&paddings, 3));
        let spread = |size: usize, interior: usize| (size + size.saturating_sub(1) * interior, interior + 1);
        let sizes = paddings.iter().map(|[size, low, high, interior]| low + spread(*size, *interior).0 + high);
        let mut expected = ArrayD::from_elem(sizes.collect::<Vec<_>>(), 9.0f32);
        let own = paddings.iter().map(|[size, low, _, interior]| {
            let (length, step) = spread(*size, *interior);
            slice_info(*low, low + length, step)
        });
        expected.slice_mut(&own.collect::<Vec<_>>()[..]).assign(&a);
        checks.equal("pad", y, &expected);
        checks.run();
    }

    #[test]
    fn concatenation(mut dims in dims(3), at in any::<Index>(), sizes in prop::collection::vec(0..4usize, 1..4)) {
        let graph = Graph::new();
        let mut checks = Checks::new(&graph);
        let dim = at.index(dims.len() + 1);
        dims.insert(dim, 0);
        let arrays = sizes.iter().enumerate().map(|(seed, size)| {
            dims[dim] = *size;
            uniform_f32(seed as u64, &dims, -1.0, 1.0)
        });
        let arrays = arrays.collect::<Vec<_>>();
        let inputs = arrays.iter().map(|array| checks.input(&**array)).collect::<Vec<_>>();
        let views = arrays.iter().map(|array| array.view()).collect::<Vec<_>>();
        let expected = ndarray::concatenate(Axis(dim), &views).unwrap();
        checks.equal("concatenate", graph.concatenate(&inputs, dim), &expected);
        checks.run();
    }

    #[test]
    fn reduce((sizes, folded) in dims(4).prop_flat_map(|dims| {
        let all = (0..dims.len()).collect::<Vec<_>>();
        (Just(dims), subsequence(all.clone(), 0..=all.len()).prop_shuffle())
    })) {
        let graph = Graph::new();
        let mut checks = Checks::new(&graph);
        let a = uniform(6, &sizes, -1.0, 1.0);
        let x = checks.input(&*a);
        let mut order = folded.clone();
        order.sort_unstable_by(|a, b| b.cmp(a));
        let fold = |start: f64, f: fn(&f64, &f64) -> f64| {
            order.iter().fold(a.clone(), |array, d| array.fold_axis(Axis(*d), start, f))
        };
        let sum = fold(0.0, |a, b| a + b);
        // Sums of numbers of both signs cancel: the bar is absolute.
        checks.close("sum", x.sum(&folded) + 1e3, &(&sum + 1e3), 1e-13);
        checks.close("max", x.max(&folded), &fold(f64::NEG_INFINITY, |a, b| a.max(*b)), 0.0);
        let kept = order.iter().rev().fold(sum, |array, d| array.insert_axis(Axis(*d)));
        checks.close("keep_dims", x.sum(&folded).keep_dims(&folded) + 1e3, &(&kept + 1e3), 1e-13);
        checks.run();
    }

    #[test]
    fn dot((lhs, rhs, roles) in dots()) {
        let graph = Graph::new();
        let mut checks = Checks::new(&graph);
        let (a, b) = (uniform(7, &lhs, 0.1, 1.0), uniform(8, &rhs, 0.1, 1.0));
        let (x, y) = (checks.input(&*a), checks.input(&*b));
        let expected = dot_reference(&a, &b, &roles);
        let product = x.dot_general(y, roles);
        checks.close("dot", product, &expected, 1e-13);

        // Of the sum of the products, which is linear in each side: x . dx = y . dy = the sum.
        let all = |tensor: Tensor<'_>| (0..tensor.rank()).collect::<Vec<_>>();
        let total = product.sum(&all(product));
        let gradients = graph.gradients(total, &[x, y]);
        for (name, input, gradient) in [("dx", x, gradients[0].unwrap()), ("dy", y, gradients[1].unwrap())] {
            let along = (input * gradient).sum(&all(input));
            checks.close(name, along, &*ndarray::arr0(expected.sum()), 1e-12);
        }
        checks.run();
    }
}

/// Smooth functions from any shape of rank 1 to 3 to another.
const STEPS: [for<'g> fn(Tensor<'g>) -> Tensor<'g>; 12] = [
    |x| x.tanh() * 2.0,
    |x| x.softplus() + 0.1,
    |x| x.gelu(),
    |x| (x.square() + 1.0).log(),
    |x| (x.square() + 0.5).rsqrt(),
    |x| x.softmax() * 3.0,
    |x| x - x.mean(&[0]).keep_dims(&[0]),
    |x| x.transpose(&(0..x.rank()).rev().collect::<Vec<_>>()).exp() * 0.1,
    |x| x.graph().concatenate(&[x, x.tanh()], x.rank() - 1),
    |x| x.reshape(&[x.dims().iter().product()]).erf(),
    |x| x.pad(x.like(0.3), &vec![1; x.rank()], &vec![0; x.rank()], &vec![1; x.rank()]).square(),
    |x| {
        let last = x.dim(x.rank() - 1);
        let weight = x.graph().iota(Shape::new(x.shape().element_type, [2, last]), 1) * 0.3 - 0.4;
        x.linear(weight)
    },
];

proptest! {
    #![proptest_config(config())]

    /// The gradient along a random direction is the slope of the loss along it.
    #[test]
    fn gradient_of_compositions(
        sizes in prop::collection::vec(1..4usize, 1..=3),
        steps in prop::collection::vec(0..STEPS.len(), 1..5),
    ) {
        let graph = Graph::new();
        let values = uniform(9, &sizes, -1.0, 1.0);
        let direction = uniform(10, &sizes, -1.0, 1.0);
        let x = graph.parameter("x", HostArray::from(&*values).shape);
        let d = graph.parameter("d", x.shape());
        let y = steps.iter().fold(x, |y, step| STEPS[*step](y));
        let all = (0..y.rank()).collect::<Vec<_>>();
        let loss = (y * y.sum(&all).tanh() + y.square()).sum(&all);
        let gradient = graph.gradients(loss, &[x])[0].unwrap();
        let along = (gradient * d).sum(&(0..x.rank()).collect::<Vec<_>>());
        let compiled = Compiled::new(&Program::new("slope", vec![x, d], vec![loss, along]), 1);
        let at = |step: f64| {
            let moved = &values + &(&direction * step);
            let outputs = compiled.run(&[(&*moved).into(), (&*direction).into()]);
            [outputs[0].to_f64()[[]], outputs[1].to_f64()[[]]]
        };
        const STEP: f64 = 1e-5;
        let (expected, [loss, found]) = ((at(STEP)[0] - at(-STEP)[0]) / (2.0 * STEP), at(0.0));
        let bar = 1e-6 * expected.abs() + 1e-9 * (1.0 + loss.abs());
        prop_assert!((found - expected).abs() < bar, "{found:e}, expected {expected:e}, loss {loss:e}");
    }
}
