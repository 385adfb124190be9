//! Every primitive of the graph, run through XLA against ndarray.

use crate::common::graph::{Checks, Compiled, HostArray, dot_reference, uniform, uniform_f32};
use bert_xla::hlo::{Comparison, DotDimensions, Graph, Op, Program, Tensor};
use bert_xla::shape::{ElementType, Shape};
use half::bf16;
use ndarray::{Array, Array1, Array2, ArrayD, Axis, Slice, array, concatenate, s};

/// XLA's float functions on the CPU are a few units in the last place off.
const F32: f64 = 2e-6;

fn wide(x: &ArrayD<f32>) -> ArrayD<f64> {
    x.mapv(f64::from)
}

fn integers(seed: u64, len: usize) -> Array1<u32> {
    let mut random = fastrand::Rng::with_seed(seed);
    Array::from_shape_fn(len, |_| random.u32(..))
}

/// A function of floats: its name, how the graph builds it, and its reference.
type Function = (&'static str, for<'g> fn(Tensor<'g>) -> Tensor<'g>, fn(f64) -> f64);

/// Each unary function, of arguments of both signs.
const FUNCTIONS: [Function; 15] = [
    ("abs", |x| x.abs(), f64::abs),
    ("sign", |x| x.sign(), f64::signum),
    ("negate", |x| -x, |x| -x),
    ("exp", |x| x.exp(), libm::exp),
    ("expm1", |x| x.expm1(), libm::expm1),
    ("tanh", |x| x.tanh(), libm::tanh),
    ("sigmoid", |x| x.sigmoid(), |x| 1.0 / (1.0 + libm::exp(-x))),
    ("sin", |x| x.sin(), libm::sin),
    ("cos", |x| x.cos(), libm::cos),
    ("erf", |x| x.erf(), libm::erf),
    ("log of x^2", |x| x.square().log(), |x| 2.0 * libm::log(x.abs())),
    ("log1p of |x|", |x| x.abs().log1p(), |x| libm::log1p(x.abs())),
    ("sqrt of |x|", |x| x.abs().sqrt(), |x| x.abs().sqrt()),
    ("rsqrt of |x|", |x| x.abs().rsqrt(), |x| 1.0 / x.abs().sqrt()),
    ("reciprocal", |x| x.like(1.0) / x, |x| 1.0 / x),
];

#[test]
fn unary_functions_of_floats() {
    // Tiny values are where the naive forms of expm1 and log1p lose everything.
    for (seed, size) in [(1, 4.0), (2, 1e-6)] {
        let graph = Graph::new();
        let mut checks = Checks::new(&graph);
        let (single, double) = (uniform_f32(seed, &[64], -size, size), uniform(seed, &[64], -size, size));
        let (x, y) = (checks.input(&*single), checks.input(&*double));
        for (name, build, reference) in FUNCTIONS {
            // The logarithm of a square near 1 amplifies the rounding of the square.
            let f32_bar = if name.starts_with("log of") { 1e-4 } else { F32 };
            checks.close(&format!("{name} f32"), build(x), &wide(&single).mapv(reference), f32_bar);
            checks.close(&format!("{name} f64"), build(y), &double.mapv(reference), 1e-12);
        }
        checks.run();
    }
}

/// Against central differences of the reference.
#[test]
fn gradients_of_unary_functions() {
    const STEP: f64 = 1e-5;
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    // Away from 0, where some have a kink or a pole.
    let sizes = uniform(29, &[2, 20], 0.3, 2.0);
    let values = sizes * array![[1.0], [-1.0]];
    let x = checks.input(&*values);
    for (name, build, reference) in FUNCTIONS {
        let gradient = graph.gradients(build(x).sum(&[0, 1]), &[x])[0];
        let gradient = gradient.unwrap_or_else(|| graph.full(x.shape(), 0.0));
        let slope = values.mapv(|x| (reference(x + STEP) - reference(x - STEP)) / (2.0 * STEP));
        checks.close(name, gradient, &slope, 1e-6);
    }
    checks.run();
}

#[test]
fn arithmetic_on_floats_and_integers() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let (a, b) = (uniform_f32(3, &[3, 4], -2.0, 2.0), uniform_f32(4, &[3, 4], 0.5, 2.0));
    let (x, y) = (checks.input(&*a), checks.input(&*b));
    checks.equal("add", x + y, &(&a + &b));
    checks.equal("subtract", x - y, &(&a - &b));
    checks.equal("multiply", x * y, &(&a * &b));
    checks.close("divide", x / y, &wide(&(&a / &b)), F32);
    checks.equal("maximum", x.maximum(y), &ndarray::Zip::from(&a).and(&b).map_collect(|a, b| a.max(*b)));
    checks.equal("minimum", x.minimum(y), &ndarray::Zip::from(&a).and(&b).map_collect(|a, b| a.min(*b)));
    checks.equal("add a number", x + 1.5, &(&a + 1.5));
    checks.equal("subtract a number", x - 1.5, &(&a - 1.5));
    checks.equal("multiply by a number", x * 1.5, &(&a * 1.5));
    checks.equal("divide by a number", x / 2.0, &(&a / 2.0));

    let (i, j) = (array![7, -7, 0, i32::MAX, i32::MIN], array![2, 2, 5, 1, -1]);
    let (p, q) = (checks.input(&*i), checks.input(&*j));
    let zip = |f: fn(i32, i32) -> i32| ndarray::Zip::from(&i).and(&j).map_collect(|i, j| f(*i, *j));
    checks.equal("add s32 wraps", p + q, &zip(i32::wrapping_add));
    checks.equal("subtract s32 wraps", p - q, &zip(i32::wrapping_sub));
    checks.equal("multiply s32 wraps", p * q, &zip(i32::wrapping_mul));
    checks.equal("divide s32 towards zero", p / q, &zip(i32::wrapping_div));
    checks.equal("maximum s32", p.maximum(q), &zip(i32::max));
    checks.equal("abs s32", p.abs(), &i.mapv(i32::wrapping_abs));
    checks.equal("sign s32", p.sign(), &i.mapv(i32::signum));
    checks.equal("negate s32", -p, &i.mapv(i32::wrapping_neg));
    checks.run();
}

#[test]
fn bits_and_shifts() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let (a, b) = (integers(5, 40), integers(6, 40));
    let (x, y) = (checks.input(&*a), checks.input(&*b));
    checks.equal("and", x & y, &(&a & &b));
    checks.equal("or", x | y, &(&a | &b));
    checks.equal("xor", x ^ y, &(&a ^ &b));
    checks.equal("not", !x, &a.mapv(|a| !a));
    checks.equal("shift left", x << 7.0, &a.mapv(|a| a << 7));
    checks.equal("shift right", x >> 31.0, &a.mapv(|a| a >> 31));
    checks.equal("shift out", x >> 32.0, &a.mapv(|_| 0u32));
    checks.equal(
        "multiply u32 wraps",
        x * y,
        &ndarray::Zip::from(&a).and(&b).map_collect(|a, b| a.wrapping_mul(*b)),
    );

    let signed = checks.input(&*array![-8, 8]);
    checks.equal("shift right of s32 is logical", signed >> 1.0, &array![0x7fff_fffc, 4]);
    let (p, q) = (array![true, true, false, false], array![true, false, true, false]);
    let (t, u) = (checks.input(&*p), checks.input(&*q));
    checks.equal("and pred", t & u, &(&p & &q));
    checks.equal("or pred", t | u, &(&p | &q));
    checks.equal("xor pred", t ^ u, &(&p ^ &q));
    checks.equal("not pred", !t, &p.mapv(|p| !p));
    checks.run();
}

#[test]
fn comparisons_and_select() {
    use Comparison::{Eq, Ge, Gt, Le, Lt, Ne};
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let (a, b) = (array![1.0f32, 2.0, 3.0, f32::NAN], array![2.0f32, 2.0, 2.0, f32::NAN]);
    let (x, y) = (checks.input(&*a), checks.input(&*b));
    type Holds = fn(&f32, &f32) -> bool;
    let table: [(Comparison, Holds); 6] =
        [(Eq, f32::eq), (Ne, f32::ne), (Lt, f32::lt), (Le, f32::le), (Gt, f32::gt), (Ge, f32::ge)];
    for (comparison, holds) in table {
        let expected = ndarray::Zip::from(&a).and(&b).map_collect(holds);
        checks.equal(comparison.name(), x.compare(comparison, y), &expected);
        let expected = expected.mapv(|holds| if holds { 1.0f32 } else { -1.0 });
        let chosen = x.compare(comparison, y).select(x.like(1.0), x.like(-1.0));
        checks.equal(&format!("select by {}", comparison.name()), chosen, &expected);
    }
    let (i, j) = (checks.input(&*array![-1, 1]), checks.input(&*array![u32::MAX, 1]));
    checks.equal("s32 compares signed", i.compare(Lt, i.like(0.0)), &array![true, false]);
    checks.equal("u32 compares unsigned", j.compare(Gt, j.like(5.0)), &array![true, false]);
    checks.run();
}

#[test]
fn conversions() {
    use ElementType::{Bf16, F32 as Single, F64, Pred, S32, U32};
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let floats = uniform_f32(7, &[50], -100.0, 100.0);
    let x = checks.input(&*floats);
    checks.equal("f32 to bf16 rounds to even", x.convert(Bf16), &floats.mapv(bf16::from_f32));
    checks.equal(
        "bf16 to f32",
        x.convert(Bf16).convert(Single),
        &floats.mapv(|f| bf16::from_f32(f).to_f32()),
    );
    checks.equal("f32 to f64", x.convert(F64), &wide(&floats));
    checks.equal("f32 to s32 truncates", x.convert(S32), &floats.mapv(|f| f as i32));
    checks.equal("f32 to u32", x.abs().convert(U32), &floats.mapv(|f| f.abs() as u32));
    checks.equal("f32 to pred", (x * 0.0).convert(Pred), &floats.mapv(|_| false));
    checks.equal("f32 to itself", x.convert(Single), &floats);
    let bits = integers(8, 50);
    let y = checks.input(&*bits);
    checks.equal("u32 to f32", y.convert(Single), &bits.mapv(|b| b as f32));
    checks.equal("u32 to s32 keeps the bits", y.convert(S32), &bits.mapv(|b| b as i32));
    checks.equal("u32 to pred", (y & 1.0).convert(Pred), &bits.mapv(|b| b % 2 == 1));
    checks.equal("pred to f32", (y & 1.0).convert(Pred).convert(Single), &bits.mapv(|b| (b % 2) as f32));
    checks.equal("pred to s32", (y & 1.0).convert(Pred).convert(S32), &bits.mapv(|b| (b % 2) as i32));

    checks.equal("f32 as u32", x.bitcast_convert(U32), &floats.mapv(f32::to_bits));
    let pairs = y.reshape(&[25, 2]).bitcast_convert(ElementType::U64);
    assert_eq!(pairs.shape(), Shape::new(ElementType::U64, [25]));
    checks.equal("u32 pairs as u64 and back", pairs.bitcast_convert(U32).reshape(&[50]), &bits);
    let words = (0..25).map(|i| f64::from(bits[2 * i]) + 2f64.powi(32) * f64::from(bits[2 * i + 1]));
    // The low word comes first; as f64 the sum is rounded to 53 bits.
    checks.close("u64 of two u32", pairs, &words.collect::<Array1<_>>(), 1e-15);
    checks.equal(
        "f64 as u32 pairs",
        graph.constant(F64, 1.0).bitcast_convert(U32),
        &array![0u32, 0x3ff0_0000],
    );
    checks.run();
}

#[test]
fn constants_hold_what_their_type_can() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let x = checks.input(HostArray::scalar(1.0f32));
    let scalar = |value: f64| ndarray::arr0(value);
    for (element_type, value, held) in [
        (ElementType::Pred, 3.0, 1.0),
        (ElementType::S32, -5.0, -5.0),
        (ElementType::S32, 1e12, f64::from(i32::MAX)),
        (ElementType::U32, f64::from(u32::MAX), f64::from(u32::MAX)),
        (ElementType::U32, 2f64.powi(32), f64::from(u32::MAX)),
        (ElementType::U32, -1.0, 0.0),
        (ElementType::Bf16, 1.001, 1.0),
        (ElementType::F32, 0.1, f64::from(0.1f32)),
        (ElementType::F32, f64::NEG_INFINITY, f64::NEG_INFINITY),
        (ElementType::F64, 0.1, 0.1),
    ] {
        let constant = graph.constant(element_type, value);
        checks.close(&format!("{element_type} {value}"), constant, &scalar(held), 0.0);
    }
    checks.equal(
        "full",
        graph.full(Shape::new(ElementType::S32, [2, 3]), 7.0),
        &Array2::from_elem((2, 3), 7),
    );
    checks.equal("like", x.like(2.5), &ndarray::arr0(2.5f32));
    checks.run();
}

#[test]
fn broadcasting_follows_numpy() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let base = uniform_f32(9, &[2, 3, 4], -1.0, 1.0);
    let x = checks.input(&*base);
    for dims in [&[][..], &[1], &[4], &[3, 1], &[1, 4], &[2, 1, 1], &[1, 3, 1], &[2, 1, 4], &[1, 1, 1]] {
        let other = uniform_f32(10, dims, -1.0, 1.0);
        let y = checks.input(&*other);
        checks.equal(&format!("x + {dims:?}"), x + y, &(&base + &other.broadcast(base.dim()).unwrap()));
        checks.equal(&format!("{dims:?} - x"), y - x, &(&other.broadcast(base.dim()).unwrap() - &base));
        let to = y.broadcast_to(&[2, 3, 4]);
        checks.equal(&format!("{dims:?} to [2, 3, 4]"), to, &other.broadcast(base.dim()).unwrap().to_owned());
    }
    let (column, row) = (uniform_f32(11, &[3, 1], -1.0, 1.0), uniform_f32(12, &[5], -1.0, 1.0));
    let (c, r) = (checks.input(&*column), checks.input(&*row));
    checks.equal("both sides grow", c * r, &(&column * &row));
    let larger = c.compare(Comparison::Gt, r);
    let greater = (&column - &row).mapv(|difference| difference > 0.0);
    checks.equal("compare broadcasts", larger, &greater);
    let chosen = greater.mapv(|greater| if greater { 1.0f32 } else { 0.0 });
    checks.equal("select broadcasts", larger.select(r.like(1.0), c.like(0.0)), &chosen);
    checks.run();
}

#[test]
fn moving_elements() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let base = uniform_f32(13, &[4, 3, 5], -1.0, 1.0);
    let x = checks.input(&*base);
    checks.equal("reshape", x.reshape(&[2, 6, 5]), &base.to_shape((2, 6, 5)).unwrap().to_owned());
    checks.equal(
        "reshape twice",
        x.reshape(&[60]).reshape(&[5, 12]),
        &base.to_shape((5, 12)).unwrap().to_owned(),
    );
    checks.equal("transpose", x.transpose(&[2, 0, 1]), &base.clone().permuted_axes(vec![2, 0, 1]));
    checks.equal(
        "slice",
        x.slice(&[1, 0, 2], &[3, 3, 5], &[1, 1, 1]),
        &base.slice(s![1..3, .., 2..5]).to_owned(),
    );
    checks.equal(
        "slice by",
        x.slice(&[0, 1, 1], &[4, 3, 5], &[3, 1, 2]),
        &base.slice(s![0..4;3, 1.., 1..5;2]).to_owned(),
    );
    checks.equal("slice of nothing", x.narrow(1, 2, 2), &base.slice(s![.., 2..2, ..]).to_owned());
    checks.equal("narrow", x.narrow(2, 1, 4), &base.slice_axis(Axis(2), Slice::from(1..4)).to_owned());
    let other = uniform_f32(14, &[4, 2, 5], -1.0, 1.0);
    let y = checks.input(&*other);
    let joined = concatenate![Axis(1), base, other, base];
    checks.equal("concatenate", graph.concatenate(&[x, y, x], 1), &joined);

    let value = graph.constant(ElementType::F32, 9.0);
    let mut padded = ArrayD::from_elem(vec![4 + 1 + 3 * 2, 3 + 2, 5 + 4], 9.0f32);
    padded.slice_mut(s![1..;3, ..3, 0..;2]).assign(&base);
    checks.equal("pad with interior", x.pad(value, &[1, 0, 0], &[0, 2, 0], &[2, 0, 1]), &padded);

    let shape = Shape::new(ElementType::S32, [3, 4]);
    checks.equal(
        "iota of rows",
        graph.iota(shape.clone(), 0),
        &Array::from_shape_fn((3, 4), |(i, _)| i as i32),
    );
    checks.equal("iota of columns", graph.iota(shape, 1), &Array::from_shape_fn((3, 4), |(_, j)| j as i32));
    checks.run();
}

#[test]
fn dots_pair_the_dimensions_that_they_name() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    // Dimensions of both sides, then batch and contracting ones.
    type Case = (&'static [usize], &'static [usize], [&'static [usize]; 4]);
    let cases: [Case; 8] = [
        (&[3, 4], &[4, 5], [&[], &[], &[1], &[0]]),
        (&[4], &[4], [&[], &[], &[0], &[0]]),
        (&[3], &[2], [&[], &[], &[], &[]]),
        (&[3, 4, 2], &[5, 2, 4], [&[], &[], &[1, 2], &[2, 1]]),
        (&[2, 3, 4], &[2, 4, 5], [&[0], &[0], &[2], &[1]]),
        (&[3, 2, 4], &[4, 5, 2], [&[1], &[2], &[2], &[0]]),
        (&[2, 6, 3, 4], &[2, 3, 5, 4], [&[0, 2], &[0, 1], &[3], &[3]]),
        (&[4, 3, 2, 5], &[5, 2, 6, 3], [&[2, 1], &[1, 3], &[3], &[0]]),
    ];
    for (number, (lhs, rhs, [lhs_batch, rhs_batch, lhs_contracting, rhs_contracting])) in
        cases.into_iter().enumerate()
    {
        let dims = DotDimensions {
            lhs_batch: lhs_batch.to_vec(),
            rhs_batch: rhs_batch.to_vec(),
            lhs_contracting: lhs_contracting.to_vec(),
            rhs_contracting: rhs_contracting.to_vec(),
        };
        let (a, b) = (uniform(15, lhs, 0.1, 1.0), uniform(16, rhs, 0.1, 1.0));
        let (x, y) = (checks.input(&*a), checks.input(&*b));
        let expected = dot_reference(&a, &b, &dims);
        checks.close(&format!("dot {number}"), x.dot_general(y, dims), &expected, 1e-14);
    }
    let (a, w) = (uniform_f32(17, &[2, 3, 4], 0.1, 1.0), uniform_f32(18, &[5, 4], 0.1, 1.0));
    let (x, y) = (checks.input(&*a), checks.input(&*w));
    let rows = a.to_shape((6, 4)).unwrap().dot(&w.clone().into_dimensionality::<ndarray::Ix2>().unwrap().t());
    checks.close("linear", x.linear(y), &wide(&rows.to_shape(vec![2, 3, 5]).unwrap().to_owned()), F32);
    checks.run();
}

#[test]
fn reductions() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let base = uniform(19, &[3, 4, 5], -1.0, 1.0);
    let x = checks.input(&*base);
    let fold = |dims: &[usize], f: fn(&f64, &f64) -> f64, start: f64| {
        dims.iter().rev().fold(base.clone(), |array, d| array.fold_axis(Axis(*d), start, f))
    };
    for dims in [&[0][..], &[1], &[2], &[0, 2], &[1, 2], &[0, 1, 2], &[]] {
        let (sum, max) = (fold(dims, |a, b| a + b, 0.0), fold(dims, |a, b| a.max(*b), f64::NEG_INFINITY));
        let count = dims.iter().map(|d| base.shape()[*d]).product::<usize>();
        checks.close(&format!("sum {dims:?}"), x.sum(dims), &sum, 1e-12);
        checks.close(&format!("max {dims:?}"), x.max(dims), &max, 0.0);
        checks.close(&format!("mean {dims:?}"), x.mean(dims), &(&sum / count as f64), 1e-12);
    }
    checks.close("in any order", x.sum(&[2, 0]), &fold(&[0, 2], |a, b| a + b, 0.0), 1e-12);
    let kept = fold(&[0, 2], |a, b| a + b, 0.0).insert_axis(Axis(0)).insert_axis(Axis(2));
    checks.close("keep_dims", x.sum(&[2, 0]).keep_dims(&[2, 0]), &kept, 1e-12);
    let s32 = checks.input(&*array![[i32::MIN, -3], [i32::MIN, -7]]);
    checks.equal("max of s32", s32.max(&[0]), &array![i32::MIN, -3]);
    checks.equal("sum of s32", s32.narrow(1, 1, 2).sum(&[0, 1]), &ndarray::arr0(-10));
    let u32s = checks.input(&*array![3u32, u32::MAX]);
    checks.equal("max of u32", u32s.max(&[0]), &ndarray::arr0(u32::MAX));
    let empty = checks.input(&*Array2::<f32>::zeros((2, 0)));
    checks.equal("sum of nothing", empty.sum(&[1]), &array![0.0f32, 0.0]);
    checks.equal("max of nothing", empty.max(&[1]), &array![f32::NEG_INFINITY, f32::NEG_INFINITY]);
    checks.run();
}

#[test]
fn gather_and_scatter() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let table = uniform_f32(20, &[5, 3], -1.0, 1.0);
    let ids = array![[4, 0], [2, 2], [4, 4]];
    let updates = uniform_f32(21, &[3, 2, 3], -1.0, 1.0);
    let (t, i, u) = (checks.input(&*table), checks.input(&*ids), checks.input(&*updates));
    let flat = ids.iter().map(|id| *id as usize).collect::<Vec<_>>();
    let picked = table.select(Axis(0), &flat);
    checks.equal("gather", t.gather(i), &picked.to_shape(vec![3, 2, 3]).unwrap().to_owned());
    let mut added = wide(&table);
    for (row, update) in flat.iter().zip(updates.to_shape((6, 3)).unwrap().rows()) {
        added.index_axis_mut(Axis(0), *row).zip_mut_with(&update, |sum, update| *sum += f64::from(*update));
    }
    checks.close("scatter-add of repeated rows", t.scatter_add(i, u), &added, 1e-5);

    let outside = checks.input(&*array![-1, 5, 100]);
    let clamped = table.select(Axis(0), &[0, 4, 4]);
    checks.equal("gather clamps to the table", t.gather(outside), &clamped);
    let dropped = t.scatter_add(outside, t.narrow(0, 0, 3));
    checks.equal("scatter drops what lies outside", dropped, &table);
    let none = checks.input(&*Array1::<i32>::zeros(0));
    checks.equal("gather of no rows", t.gather(none), &Array2::<f32>::zeros((0, 3)));
    checks.run();
}

#[test]
fn stop_gradient_is_its_input() {
    let graph = Graph::new();
    let mut checks = Checks::new(&graph);
    let base = uniform(28, &[3], -1.0, 1.0);
    let x = checks.input(&*base);
    checks.equal("value", x.stop_gradient().stop_gradient(), &base);
    checks.equal("by hand", graph.apply(Op::StopGradient, &[x * 2.0]).unwrap(), &(&base * 2.0));
    checks.run();
}

/// The CPU's own form of a product of a few rows and a weight, against the definition.
#[test]
fn products_of_few_rows_are_those_of_many() {
    for (outer, outputs) in [(&[1][..], 128), (&[2, 3], 200), (&[3, 1, 2], 128), (&[600], 128), (&[], 128)] {
        let graph = Graph::new();
        let rows = uniform_f32(1, &[outer, &[160]].concat(), -1.0, 1.0);
        let weight = uniform_f32(2, &[outputs, 160], -1.0, 1.0);
        let [x, w] = [&rows, &weight].map(|value| HostArray::from(&**value));
        let (x_in, w_in) = (graph.parameter("x", x.shape.clone()), graph.parameter("w", w.shape.clone()));
        let product = x_in.linear(w_in);
        let program = Program::new("product", vec![x_in, w_in], vec![product]);
        let found = Compiled::for_cpu(&program, 1).run(&[x, w])[0].to_f64();
        let last = outer.len();
        let dims =
            DotDimensions { lhs_contracting: vec![last], rhs_contracting: vec![1], ..Default::default() };
        let [rows, weight] = [rows, weight].map(|values| values.mapv(f64::from));
        let expected = dot_reference(&rows, &weight, &dims);
        assert_eq!(found.shape(), expected.shape());
        let far = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far < 1e-4, "{outer:?}: {far}");
    }
}
