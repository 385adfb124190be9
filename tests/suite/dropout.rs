//! Dropout's masks: a pure function of seed, step, site and replica, and otherwise independent.

use crate::common::graph::{Compiled, HostArray};
use bert_xla::hlo::{Graph, Program, Tensor};
use bert_xla::nn::{DropoutBits, Mode, Randomness, dropout};
use bert_xla::shape::{ElementType, Shape};
use ndarray::Array1;

const LEN: usize = 1 << 16;
const RATE: f64 = 0.3;

fn train<'g>(graph: &'g Graph, seed: Tensor<'g>, step: Tensor<'g>, bits: DropoutBits) -> Mode<'g> {
    Mode { element_type: ElementType::F32, randomness: Some(Randomness::new(graph, seed, step, bits)) }
}

/// Two sites of dropout on `f32[LEN]` and the gradient of the first, by `x`, on as many replicas.
fn compile(rate: f64, replicas: usize) -> Compiled {
    let graph = Graph::new();
    let scalar = |name: &str| graph.parameter(name, Shape::scalar(ElementType::U32));
    let (seed, step) = (scalar("seed"), scalar("step"));
    let x = graph.parameter("x", Shape::new(ElementType::F32, [LEN]));
    let mode = train(&graph, seed, step, DropoutBits::default());
    let [first, second] = [(); 2].map(|()| dropout(x, rate, &mode));
    let gradient = graph.gradients((first * first.like(3.0)).sum(&[0]), &[x])[0].unwrap();
    Compiled::new(&Program::new("dropout", vec![seed, step, x], vec![first, second, gradient]), replicas)
}

fn inputs(seed: u32, step: u32, x: &Array1<f32>) -> Vec<HostArray> {
    vec![HostArray::scalar(seed), HostArray::scalar(step), (&**x).into()]
}

/// What survives of ones.
fn kept(output: &HostArray) -> Vec<bool> {
    output.to::<f32>().iter().map(|x| *x != 0.0).collect()
}

/// How many standard deviations `count` of `LEN` is off a probability.
fn deviation(count: usize, probability: f64) -> f64 {
    let len = LEN as f64;
    (count as f64 - len * probability) / (len * probability * (1.0 - probability)).sqrt()
}

/// Independent masks agree as often as two coins do.
fn assert_independent(name: &str, a: &[bool], b: &[bool]) {
    let agreeing = a.iter().zip(b).filter(|(a, b)| a == b).count();
    let off = deviation(agreeing, RATE * RATE + (1.0 - RATE) * (1.0 - RATE));
    assert!(off.abs() < 4.0, "{name}: {agreeing} of {LEN} agree, {off:.1} sigma off");
}

#[test]
fn masks_differ_by_seed_step_site_and_replica_alone() {
    let (ones, compiled) = (Array1::ones(LEN), compile(RATE, 4));
    let run = |seed: u32, step: u32| {
        let outputs = compiled.run_replicated(&vec![inputs(seed, step, &ones); 4]);
        outputs.iter().map(|list| [kept(&list[0]), kept(&list[1])]).collect::<Vec<_>>()
    };
    let base = run(7, 100);
    assert_eq!(base, run(7, 100), "the same seed and step");
    let (other_seed, other_step) = (run(8, 100), run(7, 101));
    // Nor is a step of one seed the next step of another.
    let (swapped, shifted) = (run(100, 7), run(8, 99));
    let mask = &base[0][0];
    let others = [
        ("another site", &base[0][1]),
        ("replica 1", &base[1][0]),
        ("replica 2", &base[2][0]),
        ("replica 3", &base[3][0]),
        ("another site of another replica", &base[1][1]),
        ("another seed", &other_seed[0][0]),
        ("another step", &other_step[0][0]),
        ("seed and step swapped", &swapped[0][0]),
        ("seed up, step down", &shifted[0][0]),
    ];
    for (name, other) in others {
        assert_independent(name, mask, other);
    }
    assert_independent("replicas 1 and 2", &base[1][0], &base[2][0]);
    for list in base.iter().chain(&other_seed).chain(&other_step).flatten() {
        let off = deviation(list.iter().filter(|kept| **kept).count(), 1.0 - RATE);
        assert!(off.abs() < 4.0, "the keep rate is {off:.1} sigma off");
    }
    // Neighbours are independent as well.
    assert_independent("neighbours", &mask[1..], &mask[..LEN - 1]);
}

#[test]
fn what_is_kept_is_scaled_and_so_is_its_gradient() {
    for rate in [0.1, 0.5, 0.9] {
        let x = Array1::from_shape_fn(LEN, |i| i as f32 - 1e4 + 0.5);
        let outputs = compile(rate, 1).run(&inputs(1, 2, &x));
        let (output, gradient) = (outputs[0].to::<f32>(), outputs[2].to::<f32>());
        // Of the rate that 16 bits allow.
        let rate = (rate * 65536.0).round() / 65536.0;
        let scale = (1.0 / (1.0 - rate)) as f32;
        let mut kept = 0;
        for ((x, y), slope) in x.iter().zip(&output).zip(&gradient) {
            let expected = if *y == 0.0 { [0.0, 0.0] } else { [x * scale, 3.0 * scale] };
            kept += usize::from(*y != 0.0);
            assert_eq!([*y, *slope], expected, "rate {rate}, x {x}");
        }
        let off = deviation(kept, 1.0 - rate);
        assert!(off.abs() < 4.0, "rate {rate}: kept {kept} of {LEN}, {off:.1} sigma off");
    }
}

#[test]
fn inference_and_rate_zero_change_nothing() {
    let graph = Graph::new();
    let scalar = |name: &str| graph.parameter(name, Shape::scalar(ElementType::U32));
    let x = graph.parameter("x", Shape::new(ElementType::F32, [4]));
    assert_eq!(dropout(x, RATE, &Mode::inference(ElementType::F32)), x);
    let train = train(&graph, scalar("seed"), scalar("step"), DropoutBits::default());
    assert_eq!(dropout(x, 0.0, &train), x);
    let sites: [Tensor<'_>; 2] = [(); 2].map(|()| dropout(x, RATE, &train));
    assert_ne!(sites[0], sites[1], "each call is a site of its own");
}

/// The sites that share a draw are as independent of each other as those that don't, at the rate that their bits allow.
#[test]
fn sites_that_share_a_draw_are_independent() {
    const SITES: usize = 9;
    for (bits, dropped) in [
        (DropoutBits::Eight, 77.0 / 256.0),
        (DropoutBits::Sixteen, 19661.0 / 65536.0),
        (DropoutBits::ThirtyTwo, RATE),
    ] {
        let graph = Graph::new();
        let scalar = |name: &str| graph.parameter(name, Shape::scalar(ElementType::U32));
        let (seed, step) = (scalar("seed"), scalar("step"));
        let x = graph.parameter("x", Shape::new(ElementType::F32, [LEN]));
        let mode = train(&graph, seed, step, bits);
        let sites = [(); SITES].map(|()| dropout(x, RATE, &mode));
        let text = Program::new("sites", vec![seed, step, x], sites.to_vec()).to_text();
        let draws = text.matches("rng-bit-generator(").count();
        assert_eq!(draws, SITES.div_ceil(32 / bits.count() as usize), "{bits:?}");
        let compiled = Compiled::new(&Program::new("sites", vec![seed, step, x], sites.to_vec()), 1);
        let outputs = compiled.run(&inputs(3, 4, &Array1::ones(LEN)));
        let scale = (1.0 / (1.0 - dropped)) as f32;
        assert!(outputs[0].to::<f32>().iter().all(|y| *y == 0.0 || *y == scale), "{bits:?}");
        let masks = outputs.iter().map(kept).collect::<Vec<_>>();
        for (i, mask) in masks.iter().enumerate() {
            let off = deviation(mask.iter().filter(|kept| **kept).count(), 1.0 - dropped);
            assert!(off.abs() < 4.0, "{bits:?}, site {i}: {off:.1} sigma off");
            masks[..i]
                .iter()
                .for_each(|other| assert_independent(&format!("{bits:?}, site {i}"), mask, other));
        }
    }
}

/// A rate so small, or so large, that bits can't tell it from 0 or 1.
#[test]
fn no_rate_drops_all() {
    let graph = Graph::new();
    let scalar = |name: &str| graph.constant(ElementType::U32, name.len() as f64);
    let x = graph.parameter("x", Shape::new(ElementType::F32, [LEN]));
    let mode = train(&graph, scalar("seed"), scalar("step"), DropoutBits::Eight);
    let output = dropout(x, 0.9999, &mode);
    let compiled = Compiled::new(&Program::new("dropout", vec![x], vec![output]), 1);
    let output = compiled.run(&[(&*Array1::<f32>::ones(LEN)).into()])[0].to::<f32>();
    assert!(output.iter().all(|y| *y == 0.0 || *y == 256.0) && output.iter().any(|y| *y != 0.0));
}
