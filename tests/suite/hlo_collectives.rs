//! Operations across replicas: values and gradients on 1, 2 and 4 devices of the CPU plugin.

use crate::common::graph::{Compiled, Host, HostArray, uniform, uniform_f32};
use bert_xla::hlo::{Graph, Program, Tensor};
use bert_xla::shape::{ElementType, Shape};
use half::bf16;
use ndarray::{Array, ArrayD, Axis, array};

/// One array of each replica.
fn arrays(inputs: &[ArrayD<impl Host>]) -> Vec<Vec<HostArray>> {
    inputs.iter().map(|input| vec![(&**input).into()]).collect()
}

/// The values of all replicas, one after another.
fn joined<T: Host>(inputs: &[ArrayD<T>]) -> ArrayD<T> {
    let views = inputs.iter().map(|input| input.view()).collect::<Vec<_>>();
    ndarray::concatenate(Axis(0), &views).unwrap()
}

/// Replica `replica`'s own of `replicas` equal parts along the first dimension.
fn part(array: &ArrayD<f64>, replica: usize, replicas: usize) -> ArrayD<f64> {
    array.axis_chunks_iter(Axis(0), array.shape()[0] / replicas).nth(replica).unwrap().to_owned()
}

fn sum(arrays: &[ArrayD<f64>]) -> ArrayD<f64> {
    arrays.iter().fold(ArrayD::zeros(arrays[0].shape()), |sum, array| sum + array)
}

/// `build` of one `f64` input of each replica.
fn run(inputs: &[ArrayD<f64>], build: impl Fn(Tensor<'_>) -> Tensor<'_>) -> Vec<ArrayD<f64>> {
    let graph = Graph::new();
    let x = graph.parameter("x", Shape::new(ElementType::F64, inputs[0].shape()));
    let program = Program::new("collective", vec![x], vec![build(x)]);
    let outputs = Compiled::new(&program, inputs.len()).run_replicated(&arrays(inputs));
    outputs.iter().map(|output| output[0].to::<f64>()).collect()
}

#[test]
fn all_reduce_sums_over_the_replicas() {
    let graph = Graph::new();
    let x = graph.parameter("x", Shape::new(ElementType::F32, [3]));
    let replica = graph.replica_id();
    let outputs = vec![x.all_reduce_sum(), replica, (x * replica.convert(ElementType::F32)).all_reduce_sum()];
    let program = Program::new("replicas", vec![x], outputs);
    for replicas in [1, 4] {
        let inputs = (0..replicas).map(|r| array![1.0, 10.0, r as f32].into_dyn()).collect::<Vec<_>>();
        let outputs = Compiled::new(&program, replicas).run_replicated(&arrays(&inputs));
        let sum = |weight: fn(usize) -> f32| {
            let terms = inputs.iter().enumerate().map(|(r, input)| input * weight(r));
            terms.reduce(|sum, term| sum + term).unwrap()
        };
        for (r, output) in outputs.iter().enumerate() {
            assert_eq!(output[0].to::<f32>(), sum(|_| 1.0), "sum on replica {r} of {replicas}");
            assert_eq!(output[1].to::<u32>()[[]], r as u32);
            assert_eq!(output[2].to::<f32>(), sum(|r| r as f32));
        }
    }
}

#[test]
fn all_gather_gives_each_replica_the_values_of_all_bit_for_bit() {
    let graph = Graph::new();
    let x = graph.parameter("x", Shape::new(ElementType::F32, [2, 3, 5]));
    let special =
        [-0.0, f32::INFINITY, f32::MAX, f32::from_bits(1), f32::NAN, -f32::NAN, f32::from_bits(0x7fa0_1234)];
    for replicas in [1, 2, 4] {
        let program = Program::new("gather", vec![x], vec![x.all_gather(replicas)]);
        let input = |replica: usize| {
            let mut input = uniform_f32(replica as u64, &[2, 3, 5], -1e3, 1e3);
            input.iter_mut().zip(special).for_each(|(element, special)| *element = special);
            input
        };
        let inputs = (0..replicas).map(input).collect::<Vec<_>>();
        let expected = joined(&inputs).mapv(f32::to_bits);
        for output in Compiled::new(&program, replicas).run_replicated(&arrays(&inputs)) {
            assert_eq!(output[0].to::<f32>().mapv(f32::to_bits), expected, "{replicas} replicas");
        }
    }
}

#[test]
fn all_gather_takes_every_element_type() {
    fn check<T: Host>(value: fn(u32) -> T) {
        let graph = Graph::new();
        let x = graph.parameter("x", Shape::new(T::TYPE, [2, 3]));
        let program = Program::new("gather", vec![x], vec![x.all_gather(2)]);
        let input = |replica: u32| {
            Array::from_shape_fn((2, 3), |(i, j)| value(replica * 6 + i as u32 * 3 + j as u32)).into_dyn()
        };
        let inputs = [input(0), input(1)];
        for output in Compiled::new(&program, 2).run_replicated(&arrays(&inputs)) {
            assert_eq!(output[0], (&*joined(&inputs)).into(), "{}", T::TYPE);
        }
    }
    check(|i| i.count_ones() % 2 == 0);
    check(|i| i32::MIN + i as i32);
    check(|i| u32::MAX - i);
    check(|i| u64::MAX - u64::from(i));
    check(|i| -f64::from(i) * 0.1);
    check(|i| -bf16::from_f32(i as f32) / bf16::from_f32(3.0));
}

#[test]
fn reduce_scatter_gives_each_replica_its_part_of_the_sum() {
    for replicas in [1, 2, 4] {
        let inputs =
            (0..replicas).map(|r| uniform(r as u64, &[replicas * 3, 5], -1.0, 1.0)).collect::<Vec<_>>();
        let total = sum(&inputs);
        for (r, output) in run(&inputs, |x| x.reduce_scatter_sum(replicas)).iter().enumerate() {
            let expected = part(&total, r, replicas);
            assert_eq!(output.shape(), expected.shape());
            let off = (output - &expected).iter().fold(0.0, |most: f64, off| most.max(off.abs()));
            assert!(off < 1e-14, "replica {r} of {replicas} is off by {off}");
        }
    }
}

#[test]
fn an_all_gather_of_a_reduce_scatter_is_an_all_reduce() {
    for replicas in [2, 4] {
        // Whole numbers, whose sums are the same in any order.
        let inputs = (0..replicas).map(|r| uniform(r as u64, &[8, 3], -99.0, 99.0).mapv(f64::round));
        let inputs = inputs.collect::<Vec<_>>();
        let total = sum(&inputs);
        for output in run(&inputs, |x| x.reduce_scatter_sum(replicas).all_gather(replicas)) {
            assert_eq!(output, total, "{replicas} replicas");
        }
        let gathered = run(&inputs, |x| x.all_gather(replicas).reduce_scatter_sum(replicas));
        for (output, input) in gathered.iter().zip(&inputs) {
            assert_eq!(*output, input * replicas as f64, "every replica gathered the same");
        }
    }
}

#[test]
fn integers_are_summed_and_scattered() {
    let graph = Graph::new();
    let x = graph.parameter("x", Shape::new(ElementType::S32, [4]));
    let program = Program::new("integers", vec![x], vec![x.reduce_scatter_sum(2)]);
    let inputs = [array![1, 2, 3, i32::MAX].into_dyn(), array![10, 20, 30, 1].into_dyn()];
    let outputs = Compiled::new(&program, 2).run_replicated(&arrays(&inputs));
    assert_eq!(outputs[0][0].to::<i32>(), array![11, 22].into_dyn());
    assert_eq!(outputs[1][0].to::<i32>(), array![33, i32::MIN].into_dyn(), "wraps");
}

/// Replica `r`'s loss: `(r + 1) * sum(y^2)`, so that each has a gradient of its own.
fn loss_of(y: Tensor<'_>) -> Tensor<'_> {
    let scale = y.graph().replica_id().convert(ElementType::F64) + 1.0;
    y.square().sum(&(0..y.rank()).collect::<Vec<_>>()) * scale
}

/// The gradient on each replica, of [`loss_of`] of `build`.
fn gradients(inputs: &[ArrayD<f64>], build: impl Fn(Tensor<'_>) -> Tensor<'_>) -> Vec<ArrayD<f64>> {
    run(inputs, |x| x.graph().gradients(loss_of(build(x)), &[x])[0].unwrap())
}

/// Small whole numbers, so that the closed forms are exact.
fn whole_numbers(replicas: usize, rows: usize) -> Vec<ArrayD<f64>> {
    (0..replicas).map(|r| uniform(r as u64, &[rows, 3], -9.0, 9.0).mapv(f64::round)).collect()
}

#[test]
fn gradient_of_an_all_reduce_is_that_of_the_sum_of_losses() {
    // With s the sum of x over 4 replicas, d/dx of (1 + 2 + 3 + 4) * sum(s^2) = 20 s.
    let inputs = whole_numbers(4, 2);
    for gradient in gradients(&inputs, |x| x.all_reduce_sum()) {
        assert_eq!(gradient, sum(&inputs) * 20.0);
    }
}

#[test]
fn gradient_of_an_all_gather_is_that_of_the_sum_of_losses() {
    // Each replica's x is in all 4 losses: d/dx of (1 + 2 + 3 + 4) * sum(x^2) = 20 x.
    let inputs = whole_numbers(4, 2);
    for (gradient, input) in gradients(&inputs, |x| x.all_gather(4)).iter().zip(&inputs) {
        assert_eq!(*gradient, input * 20.0);
    }
}

#[test]
fn gradient_of_a_reduce_scatter_is_that_of_the_sum_of_losses() {
    // With s the sum of x, part r of it is in replica r's loss alone: 2 (r + 1) s.
    let inputs = whole_numbers(4, 8);
    let mut expected = sum(&inputs) * 2.0;
    expected.axis_chunks_iter_mut(Axis(0), 2).zip(1..).for_each(|(mut part, r)| part *= f64::from(r));
    for gradient in gradients(&inputs, |x| x.reduce_scatter_sum(4)) {
        assert_eq!(gradient, expected);
    }
}

/// Against central differences of the sum of all replicas' losses, element by element on every replica.
#[test]
fn gradients_through_both_are_slopes_of_the_sum_of_losses() {
    const STEP: f64 = 1e-5;
    let builds: [for<'g> fn(Tensor<'g>) -> Tensor<'g>; 3] = [
        |x| x.tanh().reduce_scatter_sum(2).exp().all_gather(2).sum(&[1]),
        |x| (x.square().all_gather(2).exp() * 0.1).reduce_scatter_sum(2).tanh(),
        |x| x.all_gather(2).softmax().all_reduce_sum().reduce_scatter_sum(2).log(),
    ];
    let inputs = [uniform(1, &[4, 3], -1.0, 1.0), uniform(2, &[4, 3], -1.0, 1.0)];
    for (number, build) in builds.into_iter().enumerate() {
        let graph = Graph::new();
        let x = graph.parameter("x", Shape::new(ElementType::F64, [4, 3]));
        let loss = loss_of(build(x));
        let gradient = graph.gradients(loss, &[x])[0].unwrap();
        let outputs = vec![loss.all_reduce_sum(), gradient];
        let compiled = Compiled::new(&Program::new("slope", vec![x], outputs), 2);
        let total = |replica: usize, index: usize, by: f64| {
            let mut moved = arrays(&inputs);
            moved[replica][0] = moved[replica][0].nudged(index, by);
            compiled.run_replicated(&moved)[0][0].to_f64()[[]]
        };
        for (replica, outputs) in compiled.run_replicated(&arrays(&inputs)).iter().enumerate() {
            for (index, found) in outputs[1].to_f64().into_iter().enumerate() {
                let expected = (total(replica, index, STEP) - total(replica, index, -STEP)) / (2.0 * STEP);
                assert!(
                    (found - expected).abs() < 1e-6 * expected.abs() + 1e-8,
                    "case {number}, replica {replica}, element {index}: {found:e}, expected {expected:e}"
                );
            }
        }
    }
}

/// Replica `i`'s `j`-th part is replica `j`'s `i`-th.
#[test]
fn all_to_all_hands_out_parts() {
    for replicas in [1, 2, 4] {
        let inputs =
            (0..replicas).map(|r| uniform(r as u64, &[replicas * 3, 5], -1.0, 1.0)).collect::<Vec<_>>();
        for (r, output) in run(&inputs, |x| x.all_to_all(replicas)).iter().enumerate() {
            let parts = inputs.iter().map(|input| part(input, r, replicas)).collect::<Vec<_>>();
            assert_eq!(*output, joined(&parts), "replica {r} of {replicas}");
        }
        assert_eq!(run(&inputs, |x| x.all_to_all(replicas).all_to_all(replicas)), inputs);
    }
}

#[test]
fn gradient_of_an_all_to_all_goes_back_to_where_each_part_was() {
    // Part j of replica i is in replica j's loss: d/dx of (j + 1) sum(x^2) = 2 (j + 1) x.
    let inputs = whole_numbers(4, 8);
    for (gradient, input) in gradients(&inputs, |x| x.all_to_all(4)).iter().zip(&inputs) {
        let parts = (0..4).map(|j| part(input, j, 4) * (2.0 * (j + 1) as f64)).collect::<Vec<_>>();
        assert_eq!(*gradient, joined(&parts));
    }
}
