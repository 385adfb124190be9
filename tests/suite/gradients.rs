//! Reverse-mode gradients against central differences in `f64`, one line for each operation and function; those of one
//! array, element by element, are in `hlo_ops.rs` beside their values.

use crate::common::graph::{Checks, Compiled, HostArray, uniform};
use bert_xla::hlo::{Comparison, DotDimensions, Graph, Program, Residuals, Tensor};
use bert_xla::shape::{ElementType, Shape};
use ndarray::array;

/// Dimensions of an input, and the range of its random values.
pub type Input = (&'static [usize], f64, f64);

/// A function to differentiate, by all of its inputs.
pub struct Case {
    name: &'static str,
    inputs: Vec<Input>,
    build: for<'g> fn(&[Tensor<'g>]) -> Tensor<'g>,
}

pub fn case(name: &'static str, inputs: &[Input], build: for<'g> fn(&[Tensor<'g>]) -> Tensor<'g>) -> Case {
    Case { name, inputs: inputs.to_vec(), build }
}

/// `sum(f(inputs) * weights)` with random weights, so that each output has a gradient of its own.
fn weighted_sum(output: Tensor<'_>) -> Tensor<'_> {
    let graph = output.graph();
    let Shape { element_type, dims } = output.shape();
    let count = dims.iter().product();
    let index = graph.iota(Shape::new(element_type, [count]), 0).reshape(&dims);
    // Quadratic in the index: no two weights are related linearly.
    let weights = (index + 1.0) * (index * 0.37 - 1.1);
    (output * weights).sum(&(0..dims.len()).collect::<Vec<_>>())
}

/// The gradient of `case` at random inputs, and what is wrong with it; it is the same where the forward pass is computed again.
fn failure(case: &Case) -> Option<String> {
    let graph = Graph::new();
    let values = case
        .inputs
        .iter()
        .enumerate()
        .map(|(i, (dims, low, high))| HostArray::from(&*uniform(100 + i as u64, dims, *low, *high)));
    let values = values.collect::<Vec<_>>();
    let parameters =
        values.iter().enumerate().map(|(i, value)| graph.parameter(format!("p{i}"), value.shape.clone()));
    let parameters = parameters.collect::<Vec<_>>();
    let loss = weighted_sum((case.build)(&parameters));
    let gradients = [Residuals::All, Residuals::Products, Residuals::Barriers]
        .map(|residuals| graph.gradients_from(residuals, loss, &parameters))
        .concat();
    let outputs = std::iter::once(loss).chain(gradients.into_iter().map(|g| g.expect(case.name))).collect();
    let compiled = Compiled::for_cpu(&Program::new("gradient", parameters, outputs), 1);
    let outputs = compiled.run(&values);

    const STEP: f64 = 1e-5;
    let loss = |input: usize, index: usize, by: f64| {
        let mut moved = values.clone();
        moved[input] = values[input].nudged(index, by);
        compiled.run(&moved)[0].to_f64()[[]]
    };
    let (kept, recomputed) = outputs[1..].split_at(values.len());
    for (kept, again) in kept.iter().cycle().zip(recomputed) {
        let (kept, again) = (kept.to_f64(), again.to_f64());
        if kept.iter().zip(&again).any(|(kept, again)| (kept - again).abs() > 1e-12 * kept.abs()) {
            return Some(format!("{}: {again} where it is computed again, not {kept}", case.name));
        }
    }
    let magnitude = outputs[0].to_f64()[[]].abs();
    let mut largest: f64 = 0.0;
    for (input, gradient) in kept.iter().enumerate() {
        assert_eq!(gradient.shape, values[input].shape, "{}", case.name);
        for (index, found) in gradient.to_f64().into_iter().enumerate() {
            let expected = (loss(input, index, STEP) - loss(input, index, -STEP)) / (2.0 * STEP);
            largest = largest.max(expected.abs());
            // The second term is the rounding of the difference itself.
            if (found - expected).abs() > 1e-6 * expected.abs() + 1e-9 * (1.0 + magnitude) {
                let name = case.name;
                return Some(format!(
                    "{name}: input {input}, element {index}: {found:e}, expected {expected:e}"
                ));
            }
        }
    }
    (largest < 1e-3).then(|| format!("{}: gradients of at most {largest:e} test nothing", case.name))
}

pub fn assert_all(cases: &[Case]) {
    let failures = cases.iter().filter_map(failure).collect::<Vec<_>>();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

const ANY: Input = (&[2, 3], -2.0, 2.0);
const POSITIVE: Input = (&[2, 3], 0.3, 2.0);

#[test]
fn element_wise() {
    assert_all(&[
        case("add", &[ANY, ANY], |x| x[0] + x[1]),
        case("subtract", &[ANY, ANY], |x| x[0] - x[1]),
        case("multiply", &[ANY, ANY], |x| x[0] * x[1]),
        case("divide", &[ANY, POSITIVE], |x| x[0] / x[1]),
        case("maximum", &[ANY, ANY], |x| x[0].maximum(x[1])),
        case("minimum", &[ANY, ANY], |x| x[0].minimum(x[1])),
        case("an input used three times", &[ANY], |x| x[0] * x[0] + x[0]),
        case("a number on the right", &[ANY], |x| (x[0] - 0.5) * 3.0 / 7.0 + 1.0),
        case("select", &[ANY, ANY], |x| x[0].compare(Comparison::Gt, x[1]).select(x[0] * 2.0, x[1] * x[1])),
        case("convert", &[ANY], |x| x[0].square().convert(ElementType::F64)),
        case("through an integer", &[ANY], |x| {
            x[0] * x[0].convert(ElementType::S32).convert(ElementType::F64)
        }),
    ]);
}

#[test]
fn moving_elements() {
    assert_all(&[
        case("broadcast of a scalar", &[(&[], -1.0, 1.0), ANY], |x| x[0] * x[1]),
        case("broadcast of a row", &[(&[3], -1.0, 1.0), ANY], |x| x[0] * x[1]),
        case("broadcast of a column", &[(&[2, 1], -1.0, 1.0), ANY], |x| x[0] * x[1]),
        case("both sides grow", &[(&[2, 1], -1.0, 1.0), (&[3], -1.0, 1.0)], |x| x[0] * x[1]),
        case("broadcast_to", &[(&[2, 1], -1.0, 1.0)], |x| x[0].square().broadcast_to(&[4, 2, 3])),
        case("reshape", &[ANY], |x| x[0].square().reshape(&[3, 2]).exp()),
        case("transpose", &[(&[2, 3, 2], -1.0, 1.0)], |x| x[0].exp().transpose(&[2, 0, 1])),
        case("slice", &[(&[4, 5], -1.0, 1.0)], |x| x[0].exp().slice(&[1, 0], &[3, 4], &[1, 1])),
        case("slice by", &[(&[4, 8], -1.0, 1.0)], |x| x[0].exp().slice(&[0, 1], &[4, 7], &[3, 2])),
        case("narrow", &[(&[4, 2], -1.0, 1.0)], |x| x[0].exp().narrow(0, 1, 3)),
        case("concatenate", &[ANY, (&[2, 1], -1.0, 1.0)], |x| {
            x[0].graph().concatenate(&[x[0], x[1], x[0].exp()], 1)
        }),
        case("pad", &[ANY, (&[], -1.0, 1.0)], |x| x[0].exp().pad(x[1].exp(), &[1, 0], &[0, 2], &[2, 1])),
        case("gather", &[(&[4, 3], -1.0, 1.0)], |x| {
            let ids = (x[0].graph().iota(Shape::new(ElementType::S32, [2, 3]), 1) * 3.0) & 3.0;
            x[0].exp().gather(ids)
        }),
        case("scatter-add", &[(&[4, 3], -1.0, 1.0), (&[5, 3], -1.0, 1.0)], |x| {
            let ids = x[0].graph().iota(Shape::new(ElementType::S32, [5]), 0) & 2.0;
            x[0].scatter_add(ids, x[1].exp()).square()
        }),
    ]);
}

/// `batch`, then contracting dimensions, of the left and of the right side.
fn dot<'g>(x: &[Tensor<'g>], batch: [&[usize]; 2], contracting: [&[usize]; 2]) -> Tensor<'g> {
    let dims = DotDimensions {
        lhs_batch: batch[0].to_vec(),
        rhs_batch: batch[1].to_vec(),
        lhs_contracting: contracting[0].to_vec(),
        rhs_contracting: contracting[1].to_vec(),
    };
    x[0].dot_general(x[1], dims)
}

#[test]
fn dots() {
    assert_all(&[
        case("matrices", &[ANY, (&[3, 2], -1.0, 1.0)], |x| dot(x, [&[], &[]], [&[1], &[0]])),
        case("vectors", &[(&[4], -1.0, 1.0), (&[4], -1.0, 1.0)], |x| dot(x, [&[], &[]], [&[0], &[0]])),
        case("outer", &[(&[3], -1.0, 1.0), (&[2], -1.0, 1.0)], |x| dot(x, [&[], &[]], [&[], &[]])),
        case("linear", &[(&[2, 2, 3], -1.0, 1.0), (&[4, 3], -1.0, 1.0)], |x| x[0].linear(x[1])),
        case("two contracted, crossed", &[(&[2, 3, 4], -1.0, 1.0), (&[4, 2, 3], -1.0, 1.0)], |x| {
            dot(x, [&[], &[]], [&[1, 2], &[2, 0]])
        }),
        case("three contracted, rotated", &[(&[2, 3, 4, 2], -1.0, 1.0), (&[4, 2, 3], -1.0, 1.0)], |x| {
            dot(x, [&[], &[]], [&[2, 0, 1], &[0, 1, 2]])
        }),
        case("batch", &[(&[2, 3, 4], -1.0, 1.0), (&[2, 4, 2], -1.0, 1.0)], |x| {
            dot(x, [&[0], &[0]], [&[2], &[1]])
        }),
        case("batch not leading", &[(&[3, 2, 4], -1.0, 1.0), (&[4, 5, 2], -1.0, 1.0)], |x| {
            dot(x, [&[1], &[2]], [&[2], &[0]])
        }),
        case(
            "two batches, two contracted",
            &[(&[2, 3, 2, 2], -1.0, 1.0), (&[2, 2, 3, 2, 3], -1.0, 1.0)],
            |x| dot(x, [&[1, 2], &[2, 0]], [&[3, 0], &[3, 1]]),
        ),
        case("attention", &[(&[1, 3, 2, 2], -1.0, 1.0), (&[1, 3, 2, 2], -1.0, 1.0)], |x| {
            dot(x, [&[0, 2], &[0, 2]], [&[3], &[3]]).softmax()
        }),
    ]);
}

#[test]
fn reductions_and_derived_functions() {
    assert_all(&[
        case("sum", &[(&[2, 3, 2], -1.0, 1.0)], |x| x[0].exp().sum(&[1])),
        case("sum of two", &[(&[2, 3, 2], -1.0, 1.0)], |x| x[0].exp().sum(&[2, 0])),
        case("max", &[(&[2, 3, 2], -1.0, 1.0)], |x| x[0].exp().max(&[1])),
        case("max of two", &[(&[2, 3, 2], -1.0, 1.0)], |x| x[0].exp().max(&[0, 2])),
        case("mean", &[(&[2, 3, 2], -1.0, 1.0)], |x| x[0].exp().mean(&[0, 1])),
        case("keep_dims", &[ANY], |x| x[0] * x[0].sum(&[0]).keep_dims(&[0])),
        case("square", &[ANY], |x| x[0].square()),
        case("relu", &[ANY], |x| x[0].relu()),
        case("softplus", &[ANY], |x| x[0].softplus()),
        case("softplus far out", &[(&[2], 15.0, 20.0), (&[2], -6.0, -4.0)], |x| {
            x[0].softplus() * x[1].softplus()
        }),
        case("gelu", &[ANY], |x| x[0].gelu()),
        case("gelu_tanh", &[ANY], |x| x[0].gelu_tanh()),
        case("clip", &[(&[20], -2.0, 2.0)], |x| x[0].clip(-1.0, 0.5)),
        case("softmax", &[(&[2, 4], -2.0, 2.0)], |x| x[0].softmax()),
        case("layer_norm", &[(&[2, 5], -2.0, 2.0), (&[5], 0.5, 1.5), (&[5], -1.0, 1.0)], |x| {
            x[0].layer_norm(x[1], x[2], 1e-12)
        }),
        case("log of normalized", &[(&[2, 4], -2.0, 2.0)], |x| {
            let positive = x[0].softplus();
            (positive / positive.sum(&[1]).keep_dims(&[1])).clip(1e-7, 1.0 - 1e-7).log()
        }),
    ]);
}

#[test]
fn gradients_of_gradients() {
    fn slope(y: for<'g> fn(Tensor<'g>) -> Tensor<'g>, x: Tensor<'_>) -> Tensor<'_> {
        let loss = y(x);
        let all = (0..loss.rank()).collect::<Vec<_>>();
        x.graph().gradients(loss.sum(&all), &[x])[0].unwrap()
    }
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let values = uniform(200, &[6], -1.5, 1.5);
    let x = checks.input(&*values);
    // (x^3)'' = 6x;  tanh'' = -2 tanh (1 - tanh^2)
    let cube = graph.gradients(slope(|x| x * x * x, x).sum(&[0]), &[x])[0].unwrap();
    checks.close("cube", cube, &values.mapv(|x| 6.0 * x), 1e-12);
    let tanh = graph.gradients(slope(|x| x.tanh(), x).sum(&[0]), &[x])[0].unwrap();
    checks.close("tanh", tanh, &values.mapv(|x| -2.0 * x.tanh() * (1.0 - x.tanh().powi(2))), 1e-10);
    checks.run();
    assert_all(&[
        case("softmax of softmax", &[(&[2, 3], -1.0, 1.0)], |x| slope(|x| x.softmax().square(), x[0])),
        case("a dot twice", &[(&[3, 3], -1.0, 1.0)], |x| slope(|x| x.linear(x).exp(), x[0])),
        case("gelu twice", &[ANY], |x| slope(|x| x.gelu(), x[0])),
    ]);
}

/// Equal arguments share the gradient of a maximum or minimum, and equal elements that of a reduction: the sum of the
/// shares is what a step along all of them changes.
#[test]
fn ties_share_the_gradient() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let (x, y) = (checks.input(&*array![1.0, 2.0, 3.0]), checks.input(&*array![1.0, 0.0, 5.0]));
    let max = graph.gradients(x.maximum(y).sum(&[0]), &[x, y]);
    checks.equal("maximum, left", max[0].unwrap(), &array![0.5, 1.0, 0.0]);
    checks.equal("maximum, right", max[1].unwrap(), &array![0.5, 0.0, 1.0]);
    let min = graph.gradients(x.minimum(y).sum(&[0]), &[x, y]);
    checks.equal("minimum, left", min[0].unwrap(), &array![0.5, 0.0, 1.0]);
    checks.equal("minimum, right", min[1].unwrap(), &array![0.5, 1.0, 0.0]);
    let z = checks.input(&*array![[4.0, 4.0, 1.0, 4.0], [0.0, 1.0, 2.0, 3.0]]);
    let third = 1.0 / 3.0;
    let max = graph.gradients(z.max(&[1]).sum(&[0]), &[z])[0].unwrap();
    checks.equal("max", max, &array![[third, third, 0.0, third], [0.0, 0.0, 0.0, 1.0]]);
    checks.run();
}

#[test]
fn kinks_take_the_documented_side() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let x = checks.input(&*array![-1.0, 0.0, 1.0]);
    checks.equal("relu", graph.gradients(x.relu().sum(&[0]), &[x])[0].unwrap(), &array![0.0, 0.0, 1.0]);
    checks.equal("abs", graph.gradients(x.abs().sum(&[0]), &[x])[0].unwrap(), &array![-1.0, 0.0, 1.0]);
    let clip = graph.gradients(x.clip(-0.5, 1.0).sum(&[0]), &[x])[0].unwrap();
    checks.equal("clip keeps its bounds", clip, &array![0.0, 1.0, 1.0]);
    let softplus = graph.gradients(x.softplus().sum(&[0]), &[x])[0].unwrap();
    checks.close("softplus", softplus, &array![-1.0f64, 0.0, 1.0].mapv(|x| 1.0 / (1.0 + (-x).exp())), 1e-12);
    checks.run();
}

#[test]
fn what_does_not_reach_the_loss_has_no_gradient() {
    let graph = Graph::new();
    let input = |name: &str| graph.parameter(name, Shape::new(ElementType::F32, [3]));
    let (used, unused, stopped, counted) =
        (input("used"), input("unused"), input("stopped"), input("counted"));
    let derived = unused.exp();
    let steps = counted.convert(ElementType::S32).convert(ElementType::F32);
    let sides = counted.sign() + counted.compare(Comparison::Gt, used).convert(ElementType::F32);
    let loss = (used * 2.0 + stopped.stop_gradient() * used + steps + sides).sum(&[0]);
    let gradients = graph.gradients(loss, &[used, unused, stopped, counted, derived, loss]);
    let found = gradients.iter().map(Option::is_some).collect::<Vec<_>>();
    assert_eq!(found, [true, false, false, false, false, true]);
    assert_eq!(gradients[5], Some(loss.like(1.0)));
}

#[test]
fn stop_gradient_passes_the_value_and_blocks_the_gradient() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let values = uniform(201, &[4], 0.5, 2.0);
    let x = checks.input(&*values);
    let loss = (x * x.square().stop_gradient()).sum(&[0]);
    checks.close("value", loss, &*ndarray::arr0(values.mapv(|x| x.powi(3)).sum()), 1e-12);
    checks.close("gradient", graph.gradients(loss, &[x])[0].unwrap(), &values.mapv(|x| x * x), 1e-12);
    checks.run();
}

#[test]
fn intermediate_values_have_gradients_too() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let values = uniform(202, &[4], -1.0, 1.0);
    let x = checks.input(&*values);
    let hidden = x.exp();
    let gradients = graph.gradients(hidden.square().sum(&[0]), &[hidden, x]);
    checks.close("hidden", gradients[0].unwrap(), &values.mapv(|x| 2.0 * x.exp()), 1e-12);
    checks.close("x", gradients[1].unwrap(), &values.mapv(|x| 2.0 * (2.0 * x).exp()), 1e-12);
    checks.run();
}

#[test]
#[should_panic(expected = "gradients: the loss must be a scalar of floats, not f32[3]")]
fn a_loss_that_is_no_scalar_is_refused() {
    let graph = Graph::new();
    let x = graph.parameter("x", Shape::new(ElementType::F32, [3]));
    graph.gradients(x, &[x]);
}

/// A function with a gradient rule of its own has the gradient that follows from the primitives it is made of.
#[test]
fn rules_of_their_own_agree_with_the_primitives() {
    type Build = for<'g> fn(&[Tensor<'g>]) -> Tensor<'g>;
    let softmax: Build = |x| {
        let last = [x[0].rank() - 1];
        let exp = (x[0] - x[0].max(&last).keep_dims(&last).stop_gradient()).exp();
        exp / exp.sum(&last).keep_dims(&last)
    };
    let layer_norm: Build = |x| {
        let last = [x[0].rank() - 1];
        let centered = x[0] - x[0].mean(&last).keep_dims(&last);
        let variance = centered.square().mean(&last).keep_dims(&last);
        centered * (variance + 1e-12).rsqrt() * x[1] + x[2]
    };
    let cases: [(&str, Build, Build, &[&[usize]]); 2] = [
        ("softmax", |x| x[0].softmax(), softmax, &[&[3, 2, 5]]),
        ("layer_norm", |x| x[0].layer_norm(x[1], x[2], 1e-12), layer_norm, &[&[3, 2, 7], &[7], &[7]]),
    ];
    for (name, own, primitives, dims) in cases {
        let graph = Graph::new();
        let values = dims.iter().enumerate().map(|(i, dims)| uniform(300 + i as u64, dims, -2.0, 2.0));
        let values = values.collect::<Vec<_>>();
        let mut checks = Checks::new(&graph);
        let x = values.iter().map(|value| checks.input(&**value)).collect::<Vec<_>>();
        let [of_own, of_primitives] =
            [own, primitives].map(|build| graph.gradients(weighted_sum(build(&x)), &x));
        for (i, (own, primitives)) in of_own.into_iter().zip(of_primitives).enumerate() {
            let (own, primitives) = (own.unwrap(), primitives.unwrap());
            assert!(i > 0 || own != primitives, "{name}: the rule is not used");
            let off = (own - primitives).abs();
            let all = (0..off.rank()).collect::<Vec<_>>();
            checks.close(&format!("{name}, argument {i}"), off.max(&all) + 1.0, &ndarray::arr0(1.0), 1e-10);
        }
        checks.run();
    }
}

/// Of bfloat16 factors, products are summed in f32, and so are their gradients' sums, which are then rounded once.
#[test]
fn products_of_narrow_factors_are_summed_in_f32() {
    use ElementType::{Bf16, F32};
    let graph = Graph::new();
    let wide = |name: &str, dims: &[usize]| graph.parameter(name, Shape::new(F32, dims));
    let (a, b) = (wide("a", &[2, 300]), wide("b", &[4, 300]));
    let product = a.convert(Bf16).linear(b.convert(Bf16));
    assert_eq!(product.shape(), Shape::new(F32, [2, 4]));
    let gradients = graph.gradients(product.square().sum(&[0, 1]), &[a, b]);
    // What reaches the conversions is not rounded on the way.
    let text = Program::new("narrow", vec![a, b], gradients.into_iter().flatten().collect()).to_text();
    assert_eq!(
        text.matches("f32[2,300] dot(").count() + text.matches("f32[4,300] dot(").count(),
        2,
        "{text}"
    );
    assert_eq!(text.matches("= bf16[2,300] convert(").count(), 1, "{text}");
    assert_eq!(text.matches("= bf16[4,300] convert(").count(), 1, "{text}");
}
