//! Loops: values by ndarray, gradients by central differences, and what becomes of them in a module.

use crate::common::graph::{Checks, HostArray, uniform};
use crate::gradients::{assert_all, case};
use bert_xla::hlo::{Graph, Program, Scan, Tensor};
use bert_xla::shape::{ElementType, Shape};
use ndarray::{ArrayD, Axis, array};

/// Over the first dimension of `x` `[trips, n]`: what is carried decays by `decay` and takes up `x w`; each trip gives its
/// tanh.
fn recurrent<'g>(
    [start, x, weight]: [Tensor<'g>; 3],
    reversed: bool,
    decay: f64,
) -> (Tensor<'g>, Tensor<'g>) {
    let trips = x.dim(0);
    let over = Scan { trips, reversed, carried: &[start], scanned: &[x], invariant: &[weight] };
    let (left, stacked) = start.graph().scan(over, |_, trip| {
        let [state, x, weight] = [trip.carried[0], trip.scanned[0], trip.invariant[0]];
        let state = state * decay + x.reshape(&[1, x.dim(0)]).linear(weight).reshape(&[x.dim(0)]).tanh();
        (vec![state], vec![state.tanh()])
    });
    (left[0], stacked[0])
}

/// The same by ndarray.
fn reference(start: &ArrayD<f64>, x: &ArrayD<f64>, weight: &ArrayD<f64>, reversed: bool) -> [ArrayD<f64>; 2] {
    let (mut state, mut stacked) = (start.clone(), ArrayD::zeros(x.raw_dim()));
    let weight = weight.view().into_dimensionality::<ndarray::Ix2>().unwrap();
    let mut order = (0..x.shape()[0]).collect::<Vec<_>>();
    if reversed {
        order.reverse();
    }
    for at in order {
        let entry = x.index_axis(Axis(0), at).into_dimensionality::<ndarray::Ix1>().unwrap();
        state = state * 0.5 + weight.dot(&entry).mapv(f64::tanh).into_dyn();
        stacked.index_axis_mut(Axis(0), at).assign(&state.mapv(f64::tanh));
    }
    [state, stacked]
}

#[test]
fn a_loop_carries_takes_entries_and_stacks_up() {
    for (trips, reversed) in [(1, false), (5, false), (5, true)] {
        let graph = Graph::new();
        let mut checks = Checks::new(&graph);
        let values =
            [uniform(1, &[3], -1.0, 1.0), uniform(2, &[trips, 3], -1.0, 1.0), uniform(3, &[3, 3], -1.0, 1.0)];
        let inputs = [0, 1, 2].map(|i| checks.input(&*values[i]));
        let (left, stacked) = recurrent(inputs, reversed, 0.5);
        let [expected_left, expected_stacked] = reference(&values[0], &values[1], &values[2], reversed);
        checks.close("left", left, &expected_left, 1e-12);
        checks.close("stacked", stacked, &expected_stacked, 1e-12);
        checks.run();
    }
}

#[test]
fn a_trip_knows_which_entry_it_takes() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let x = checks.input(&*array![3i32, 4, 5, 6].into_dyn());
    for (reversed, left) in [(false, 3456), (true, 6543)] {
        let zero = x.like(0.0);
        let over = Scan { trips: 4, reversed, carried: &[zero], scanned: &[x], ..Scan::default() };
        let (digits, stacked) = graph.scan(over, |_, trip| {
            let number = trip.carried[0] * 10.0 + trip.scanned[0];
            (vec![number], vec![trip.index, trip.index + trip.scanned[0]])
        });
        checks.equal("digits", digits[0], &ndarray::arr0(left));
        checks.equal("index", stacked[0], &array![0, 1, 2, 3]);
        checks.equal("sum", stacked[1], &array![3, 5, 7, 9]);
    }
    checks.run();
}

#[test]
fn loops_may_be_in_loops() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let values = uniform(4, &[3, 4, 2], -1.0, 1.0);
    let x = checks.input(&*values);
    let zero = graph.full(Shape::new(ElementType::F64, [2]), 0.0);
    let over = Scan { trips: 3, carried: &[zero], scanned: &[x], ..Scan::default() };
    let (left, _) = graph.scan(over, |graph, trip| {
        let over = Scan { trips: 4, carried: &trip.carried, scanned: &trip.scanned, ..Scan::default() };
        graph.scan(over, |_, trip| (vec![trip.carried[0] + trip.scanned[0]], vec![]))
    });
    checks.close("sum", left[0], &values.sum_axis(Axis(0)).sum_axis(Axis(0)), 1e-12);
    checks.run();
}

const STATE: (&[usize], f64, f64) = (&[3], -1.0, 1.0);
const ENTRIES: (&[usize], f64, f64) = (&[4, 3], -1.0, 1.0);
const SQUARE: (&[usize], f64, f64) = (&[3, 3], -1.0, 1.0);

#[test]
fn gradients_of_loops() {
    assert_all(&[
        case("what is left", &[STATE, ENTRIES, SQUARE], |x| recurrent([x[0], x[1], x[2]], false, 0.5).0),
        case("what is stacked", &[STATE, ENTRIES, SQUARE], |x| recurrent([x[0], x[1], x[2]], false, 0.5).1),
        case("both, reversed", &[STATE, ENTRIES, SQUARE], |x| {
            let (left, stacked) = recurrent([x[0].exp(), x[1].exp(), x[2]], true, 0.5);
            left * stacked
        }),
        case("one input for all", &[SQUARE], |x| {
            let start = x[0].narrow(0, 0, 1).reshape(&[3]);
            let (left, stacked) = recurrent([start, x[0], x[0]], false, 0.5);
            left + stacked
        }),
        case("a loop in a loop", &[STATE, (&[2, 4, 3], -1.0, 1.0)], |x| {
            let over = Scan { trips: 2, carried: &[x[0]], scanned: &[x[1]], ..Scan::default() };
            let (left, _) = x[0].graph().scan(over, |graph, trip| {
                let over =
                    Scan { trips: 4, carried: &trip.carried, scanned: &trip.scanned, ..Scan::default() };
                graph.scan(over, |_, trip| {
                    (vec![(trip.carried[0] * trip.scanned[0]).tanh() + trip.scanned[0]], vec![])
                })
            });
            left[0]
        }),
        case("an index that is carried", &[ENTRIES], |x| {
            let graph = x[0].graph();
            let (two, zero) =
                (graph.constant(ElementType::S32, 2.0), graph.full(Shape::new(ElementType::F64, [3]), 0.0));
            // Entries 2, 1, 0 and, being moved into the array, 0 once more.
            let over = Scan { trips: 4, carried: &[two, zero], invariant: &[x[0]], ..Scan::default() };
            let (left, _) = graph.scan(over, |_, trip| {
                let [at, sum] = [trip.carried[0], trip.carried[1]];
                (vec![at - 1.0, sum * 0.7 + trip.invariant[0].exp().entry(at)], vec![])
            });
            left[1]
        }),
        case("a gradient of a gradient", &[STATE, ENTRIES, SQUARE], |x| {
            let (left, stacked) = recurrent([x[0], x[1], x[2]], false, 0.5);
            let loss = left.square().sum(&[0]) + stacked.exp().sum(&[0, 1]);
            let found = x[0].graph().gradients(loss, &[x[1], x[2]]).into_iter().map(Option::unwrap);
            found.map(|gradient| gradient.square().sum(&[0, 1])).reduce(|a, b| a + b).unwrap()
        }),
    ]);
}

#[test]
fn gradients_of_dynamic_slices() {
    assert_all(&[
        case("dynamic-slice", &[(&[4, 3], -1.0, 1.0)], |x| {
            let [one, two] = [1.0, 2.0].map(|index| x[0].graph().constant(ElementType::S32, index));
            // The second start is moved from 2 to 1.
            x[0].exp().dynamic_slice(&[one, two], &[2, 2])
        }),
        case("dynamic-update-slice", &[(&[4, 3], -1.0, 1.0), (&[2, 2], -1.0, 1.0)], |x| {
            let [three, zero] = [3.0, 0.0].map(|index| x[0].graph().constant(ElementType::S32, index));
            x[0].exp().dynamic_update_slice(x[1].exp(), &[three, zero])
        }),
    ]);
}

/// A module of the recurrent loop over so many entries, with or without its gradient.
fn module(trips: usize, gradient: bool) -> (Vec<u8>, String, u64) {
    let graph = Graph::new();
    let input = |name: &str, dims: &[usize]| graph.parameter(name, Shape::new(ElementType::F32, dims));
    let inputs = [input("start", &[3]), input("x", &[trips, 3]), input("weight", &[3, 3])];
    let (left, _) = recurrent(inputs, false, 0.5);
    let loss = left.sum(&[0]);
    let found = if gradient { graph.gradients(loss, &[inputs[2]]) } else { vec![Some(loss)] };
    let program = Program::new("recurrent", inputs.to_vec(), vec![found[0].unwrap()]);
    (program.to_hlo_proto(), program.to_text(), program.dot_flops())
}

#[test]
fn a_module_does_not_grow_with_the_trips() {
    for gradient in [false, true] {
        let [(short, ..), (long, ..)] = [8, 512].map(|trips| module(trips, gradient));
        // Numbers take a byte more.
        assert!(long.len() <= short.len() + 64, "{} and {} bytes", short.len(), long.len());
    }
}

#[test]
fn what_only_the_gradient_needs_is_stacked_for_it_alone() {
    let (_, text, _) = module(8, false);
    assert!(!text.contains("dynamic-update-slice") && text.contains("dynamic-slice"), "{text}");
    let (_, text, _) = module(8, true);
    let count = |what: &str| text.matches(what).count();
    // The loss itself isn't asked for, but the forward pass is, once.
    assert_eq!((count(" while("), count(" dynamic-update-slice(")), (2, 1), "{text}");
}

#[test]
fn operations_in_a_loop_count_once_a_trip() {
    // A product of [1,3] and [3,3] takes 2 * 3 * 3; the gradient takes it again, and the products of both of its sides.
    assert_eq!(module(8, false).2, 8 * 18);
    // x needs no gradient.
    assert_eq!(module(8, true).2, 8 * 3 * 18);
}

#[test]
fn text_shows_the_loop() {
    let graph = Graph::new();
    let x = graph.parameter("x", Shape::new(ElementType::F32, [5, 3]));
    let zero = graph.full(Shape::new(ElementType::F32, [3]), 0.0);
    let (_, sums) = graph.scope("sums", || {
        let over = Scan { trips: 5, carried: &[zero], scanned: &[x], ..Scan::default() };
        graph.scan(over, |_, trip| {
            let sum = trip.carried[0] + trip.scanned[0];
            (vec![sum], vec![sum])
        })
    });
    let text = Program::new("sums", vec![x], vec![sums[0]]).to_text();
    let expected = include_str!("../fixtures/loop.hlo");
    assert_eq!(text, expected, "{text}");
}

/// A loop of `trips` over `x` `[5,3]` that starts from a zero and leaves what `step` makes of state and entry.
fn refused(trips: usize, step: impl for<'b> Fn(Tensor<'b>, Tensor<'b>) -> Tensor<'b>) {
    let graph = Graph::new();
    let x = graph.parameter("x", Shape::new(ElementType::F32, [5, 3]));
    let zero = graph.full(Shape::new(ElementType::F32, [3]), 0.0);
    let over = Scan { trips, carried: &[zero], scanned: &[x], ..Scan::default() };
    graph.scan(over, |_, trip| (vec![step(trip.carried[0], trip.scanned[0])], vec![]));
}

#[test]
#[should_panic(expected = "a loop of 4 trips can't go over %0: f32[5,3]")]
fn entries_must_be_as_many_as_trips() {
    refused(4, |state, entry| state + entry);
}

#[test]
#[should_panic(expected = "while: shapes f32[] and f32[3] differ; inputs f32[3] and f32[5,3]")]
fn what_a_trip_leaves_must_be_what_the_next_takes() {
    refused(5, |state, entry| (state + entry).sum(&[0]));
}

#[test]
#[should_panic(expected = "program step: parameter z is used, but not given")]
fn a_step_sees_what_its_trip_holds_alone() {
    let graph = Graph::new();
    let zero = graph.full(Shape::new(ElementType::F32, [3]), 0.0);
    let over = Scan { trips: 5, carried: &[zero], ..Scan::default() };
    graph.scan(over, |graph, trip| (vec![graph.parameter("z", trip.carried[0].shape())], vec![]));
}

/// By XLA's documentation of both: a start is moved so that what is taken, or put, lies within.
#[test]
fn dynamic_slices_move_their_start() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let values = uniform(6, &[4, 3], -1.0, 1.0);
    let (x, update) = (checks.input(&*values), checks.input(&*array![[7.0, 8.0]]));
    for (row, moved) in [(-5i32, 0), (0, 0), (2, 2), (9, 2)] {
        let start = [checks.input(HostArray::scalar(row)), checks.input(HostArray::scalar(1))];
        let taken = values.slice(ndarray::s![moved..moved + 2, 1..3]).to_owned();
        checks.equal("taken", x.dynamic_slice(&start, &[2, 2]), &taken);
    }
    for (row, moved) in [(-5i32, 0), (1, 1), (9, 3)] {
        let start = [checks.input(HostArray::scalar(row)), checks.input(HostArray::scalar(1))];
        let mut put = values.clone();
        put.slice_mut(ndarray::s![moved..moved + 1, 1..3]).assign(&array![[7.0, 8.0]]);
        checks.equal("put", x.dynamic_update_slice(update, &start), &put);
    }
    checks.run();
}
