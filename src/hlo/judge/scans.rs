//! Cases of loops: by XLA's own `while`, and taken trip by trip with none.

use xla::XlaOp;

use super::bench::Bench;
use super::builder::{Builder, Result};
use super::values::{Array, xla_shape};
use super::{CLIENT, run};
use crate::hlo::loops::Loop;
use crate::hlo::program::Program;
use crate::hlo::{Graph, Op, Scan, Tensor};
use crate::shape::{ElementType, Shape};

/// A loop over `scanned` with all that a loop can have: it leaves two arrays and gives two.
fn all_outputs<'g>(
    bench: &mut Bench<'g>,
    trips: usize,
    reversed: bool,
    of: ElementType,
    width: usize,
) -> Vec<Tensor<'g>> {
    let [start, other] = [0, 1].map(|_| bench.input(of, &[width]));
    let scanned = [bench.input(of, &[trips, width]), bench.input(ElementType::S32, &[trips])];
    let weight = bench.input(of, &[width]);
    let carried = [start, other, bench.index(&[])];
    let over = Scan { trips, reversed, carried: &carried, scanned: &scanned, invariant: &[weight] };
    let (left, _) = bench.graph.scan(over, |graph, trip| {
        let [a, b, count] = trip.carried[..] else { unreachable!("three are carried") };
        let (x, weight) = (trip.scanned[0], trip.invariant[0]);
        let next = a * weight + x;
        // A loop in a loop.
        let inner = Scan { trips: 3, carried: &[b], invariant: &[next], ..Scan::default() };
        let (inner, given) = graph.scan(inner, |_, trip| {
            let sum = trip.carried[0] + trip.invariant[0] * trip.index.convert(of);
            (vec![sum], vec![sum])
        });
        let left = vec![next, inner[0] - x, count + trip.scanned[1] - trip.index];
        (left, vec![given[0], next * b])
    });
    // With what each trip takes, which only gradients ask for.
    let Op::While { body, .. } = bench.graph.node(left[0].id).op else { unreachable!("what a loop leaves") };
    let inputs = [&carried[..], &scanned, &[weight]].concat();
    let output = |output| bench.graph.insert(Op::While { body: body.clone(), output }, &inputs);
    (0..body.num_outputs()).map(output).collect()
}

#[test]
fn loops() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    for of in [ElementType::F32, ElementType::F64, ElementType::S32, ElementType::U64] {
        for (trips, width) in [(1, 2), (4, 3), (2, 0)] {
            for reversed in [false, true] {
                let outputs = all_outputs(&mut bench, trips, reversed, of, width);
                bench.outputs.extend(outputs);
            }
        }
    }
    // That carries nothing; that gives nothing; one that goes over nothing.
    let x = bench.input(ElementType::F32, &[4, 2]);
    let over = Scan { trips: 4, reversed: true, scanned: &[x], ..Scan::default() };
    bench.outputs.extend(graph.scan(over, |_, trip| (vec![], vec![trip.scanned[0].exp()])).1);
    let over = Scan { trips: 3, carried: &[x], ..Scan::default() };
    bench.outputs.extend(graph.scan(over, |_, trip| (vec![trip.carried[0] * 0.5], vec![])).0);
    bench.judge();
}

#[test]
fn gradients_of_loops() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    for reversed in [false, true] {
        let outputs = all_outputs(&mut bench, 4, reversed, ElementType::F64, 3);
        let floats = outputs.iter().filter(|output| output.shape().element_type == ElementType::F64);
        let sums = floats.map(|output| output.sum(&(0..output.rank()).collect::<Vec<_>>()));
        let loss = sums.reduce(|a, b| a + b).unwrap();
        bench.outputs.extend(graph.gradients(loss, &bench.parameters).into_iter().flatten());
    }
    bench.judge();
}

/// The outputs of a loop, trip by trip.
fn unrolled(builder: &Builder, body: &Loop, inputs: &[XlaOp]) -> Result<Vec<XlaOp>> {
    let (carried, others) = inputs.split_at(body.carries());
    let (scanned, invariant) = others.split_at(body.scanned().len());
    let mut left = carried.to_vec();
    let mut stacks = vec![vec![]; body.num_outputs() - carried.len()];
    let mut order = (0..body.trips()).collect::<Vec<_>>();
    if body.reversed {
        order.reverse();
    }
    for index in order {
        let entries = scanned.iter().map(|array| entry(array, index)).collect::<xla::Result<Vec<_>>>()?;
        let taken = [&[builder.integer(index)?], &left[..], &entries, invariant].concat();
        let given = builder.outputs(&body.step(), &taken)?;
        for (stack, value) in stacks.iter_mut().zip(given[carried.len()..].iter().chain(&left)) {
            let sizes = value.array_shape()?.dims().to_vec();
            stack.push(value.reshape(&[&[1], &sizes[..]].concat())?);
        }
        left = given[..carried.len()].to_vec();
    }
    for mut stack in stacks {
        if body.reversed {
            stack.reverse();
        }
        left.push(stack[0].concat_in_dim(&stack[1..], 0)?);
    }
    Ok(left)
}

fn entry(array: &XlaOp, index: usize) -> xla::Result<XlaOp> {
    let sizes = array.array_shape()?.dims()[1..].to_vec();
    array.slice_in_dim1(index as i64, index as i64 + 1, 0)?.reshape(&sizes)
}

#[test]
fn a_loop_is_its_trips() {
    for (trips, reversed) in [(1, false), (4, false), (4, true)] {
        let graph = Graph::new();
        let mut bench = Bench::new(&graph);
        let outputs = all_outputs(&mut bench, trips, reversed, ElementType::F64, 3);
        let program = Program::new("trips", bench.parameters.clone(), outputs.clone());
        let builder = Builder::new("trips");
        let parameters = program.parameter_shapes();
        let parameters = parameters.iter().map(|shape| builder.parameter("p", &xla_shape(shape)).unwrap());
        let Op::While { body, .. } = graph.node(outputs[0].id).op else {
            unreachable!("an output of a loop")
        };
        let parameters = parameters.collect::<Vec<_>>();
        let [start, other, scanned, counts, weight, count] = &parameters[..] else {
            unreachable!("six inputs")
        };
        let inputs = [start, other, count, scanned, counts, weight].map(Clone::clone);
        let found = unrolled(&builder, &body, &inputs).unwrap();
        for (found, shape) in found.iter().zip(program.output_shapes()) {
            assert_eq!(found.shape().unwrap(), xla_shape(&shape));
        }
        let module = builder.tuple(&found).unwrap().build().unwrap();
        let executable = CLIENT.compile(&module).unwrap();
        let inputs = bench.values.iter().map(Array::literal).collect::<Vec<_>>();
        let found = executable.execute(&inputs).unwrap().remove(0);
        let expected = run(&super::ours(&program), &program, &bench.values);
        for (expected, found) in expected.iter().zip(found) {
            let found = Array::read(&found.to_literal_sync().unwrap(), &expected.shape);
            // Products and sums of another fusion are rounded elsewhere.
            assert_eq!(expected.difference(&found, Some(1e-12)), None, "{}", program.to_text());
        }
    }
}

/// What a trip leaves must be what the next takes: XLA's `while` says so too.
#[test]
fn what_a_trip_leaves_is_of_one_shape() {
    let builder = Builder::new("body");
    let state = xla_shape(&Shape::new(ElementType::F32, [2]));
    let a = builder.parameter("a", &state).unwrap();
    let longer = a.concat_in_dim(std::slice::from_ref(&a), 0).unwrap().build().unwrap();
    let condition = Builder::new("condition");
    condition.parameter("a", &state).unwrap();
    let more = condition.integer(0).unwrap().lt(&condition.integer(1).unwrap()).unwrap().build().unwrap();
    let outer = Builder::new("outer");
    let start = outer.parameter("start", &state).unwrap();
    assert!(XlaOp::while_(more, longer, start).is_err());

    let graph = Graph::new();
    let start = graph.parameter("start", Shape::new(ElementType::F32, [2]));
    let over = Scan { trips: 2, carried: &[start], ..Scan::default() };
    let longer =
        || graph.scan(over, |graph, trip| (vec![graph.concatenate(&[trip.carried[0]; 2], 0)], vec![]));
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(longer));
    assert!(refused.is_err(), "what a trip leaves is longer than what it took");
}
