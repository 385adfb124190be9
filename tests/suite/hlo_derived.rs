//! Functions built from the primitives, run through XLA against ndarray and `libm` in `f64`.

use crate::common::graph::{Checks, uniform, uniform_f32};
use bert_xla::hlo::{Comparison, Graph};
use bert_xla::shape::ElementType;
use ndarray::{Array, ArrayD, Axis, array};

/// Units in the last place of `f32` that XLA's functions on the CPU are off.
const F32: f64 = 2e-6;

fn wide(x: &ArrayD<f32>) -> ArrayD<f64> {
    x.mapv(f64::from)
}

#[test]
fn activations() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let base = uniform(22, &[100], -3.0, 3.0);
    let x = checks.input(&*base);
    let phi = |x: f64| 0.5 * libm::erfc(-x / 2f64.sqrt());
    checks.close("gelu", x.gelu(), &base.mapv(|x| x * phi(x)), 1e-9);
    let tanh = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    checks.close("gelu_tanh", x.gelu_tanh(), &base.mapv(|x| x / (1.0 + (-2.0 * tanh(x)).exp())), 1e-9);
    checks.equal("relu", x.relu(), &base.mapv(|x| x.max(0.0)));
    checks.equal("square", x.square(), &base.mapv(|x| x * x));
    checks.equal("clip", x.clip(-1.0, 2.0), &base.mapv(|x| x.clamp(-1.0, 2.0)));
    checks.close("softplus", x.softplus(), &base.mapv(|x| libm::log1p(libm::exp(x))), 1e-12);
    checks.run();
}

#[test]
fn softplus_neither_overflows_nor_rounds_to_zero_early() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let values = array![-100.0, -80.0, -20.0, 0.0, 20.0, 100.0, 1000.0];
    let expected = values.mapv(|x: f64| if x > 30.0 { x } else { libm::log1p(libm::exp(x)) });
    let x = checks.input(&*values);
    checks.close("f64", x.softplus(), &expected, 1e-13);
    // e^-100 is below the smallest normal f32, and flushed to zero.
    let y = checks.input(&*values.mapv(|x| x as f32));
    checks.close("f32", y.softplus(), &expected, F32);
    let slope = graph.gradients(y.softplus().sum(&[0]), &[y])[0].unwrap();
    checks.close("slope", slope, &values.mapv(|x| 1.0 / (1.0 + libm::exp(-x))), F32);
    checks.run();
}

#[test]
fn softmax_and_classes() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let base = uniform(23, &[2, 3, 5], -4.0, 4.0);
    let x = checks.input(&*base);
    let exp = base.mapv(f64::exp);
    let expected = &exp / &exp.sum_axis(Axis(2)).insert_axis(Axis(2));
    checks.close("softmax", x.softmax(), &expected, 1e-12);
    checks.close("softmax of large logits", (x + 1e4).softmax(), &expected, 1e-10);
    let masked = checks.input(&*array![[0.0f32, f32::MIN, 0.0], [f32::MIN, f32::MIN, f32::MIN]]);
    let third = 1.0 / 3.0;
    checks.close("masked softmax", masked.softmax(), &array![[0.5, 0.0, 0.5], [third, third, third]], F32);

    let labels = array![3, 0, 1, 7];
    let y = checks.input(&*labels);
    let hot = Array::from_shape_fn((4, 4), |(i, class)| f32::from(u8::from(labels[i] == class as i32)));
    checks.equal("one_hot", y.one_hot(4, ElementType::F32), &hot);
    let scores = array![[0.1f32, 0.9, 0.9, -1.0], [5.0, 1.0, 1.0, 5.0], [-3.0, -2.0, -1.0, 0.0]];
    let z = checks.input(&*scores);
    checks.equal("argmax takes the first of equals", z.argmax(), &array![1, 0, 3]);
    let undefined = checks.input(&*array![[0.0f32, f32::NAN], [f32::NAN, f32::NAN]]);
    checks.equal("argmax with NaN stays a class", undefined.argmax(), &array![0, 0]);
    checks.run();
}

#[test]
fn layer_norm_is_stable_for_inputs_with_a_large_mean() {
    const EPSILON: f64 = 1e-12;
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    // A spread of about 0.3 around 3000: E[x^2] - E[x]^2 in f32 would have no correct digit.
    let base = uniform_f32(24, &[4, 64], 2999.5, 3000.5);
    let (weight, bias) = (uniform_f32(25, &[64], 0.5, 1.5), uniform_f32(26, &[64], -0.5, 0.5));
    let (x, w, b) = (checks.input(&*base), checks.input(&*weight), checks.input(&*bias));
    let reference = |x: &ArrayD<f64>| {
        let centered = x - &x.mean_axis(Axis(1)).unwrap().insert_axis(Axis(1));
        let variance = centered.mapv(|c| c * c).mean_axis(Axis(1)).unwrap().insert_axis(Axis(1));
        &centered / &variance.mapv(|v| (v + EPSILON).sqrt()) * &wide(&weight) + wide(&bias)
    };
    // The mean itself is rounded to f32, whose steps are 2.4e-4 there.
    let difference =
        (x.layer_norm(w, b, EPSILON) - checks.input(&*reference(&wide(&base)).mapv(|y| y as f32))).abs();
    let bound = difference.max(&[0, 1]).compare(Comparison::Lt, graph.constant(ElementType::F32, 2e-3));
    checks.equal("f32 within 2e-3 of f64", bound, &ndarray::arr0(true));
    let small = uniform(27, &[2, 3, 64], -1.0, 1.0);
    let (v, w, b) = (checks.input(&*small), checks.input(&*wide(&weight)), checks.input(&*wide(&bias)));
    let rows = small.to_shape(vec![6, 64]).unwrap().to_owned();
    let expected = reference(&rows).to_shape(vec![2, 3, 64]).unwrap().to_owned();
    checks.close("f64", v.layer_norm(w, b, EPSILON) + 2.0, &(expected + 2.0), 1e-12);
    checks.run();
}
