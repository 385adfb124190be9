//! The graph as a data structure: what it refuses, what it emits, what memory a program takes over.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::common::graph::{Compiled, client};
use bert_xla::hlo::{Binary, Derived, DotDimensions, Graph, Op, Program, Reduction, Scalar, Tensor, Unary};
use bert_xla::pjrt::Argument;
use bert_xla::shape::{ElementType, Shape};

use ElementType::{F32, Pred, S32, U32, U64};

fn parameter<'g>(graph: &'g Graph, element_type: ElementType, dims: &[usize]) -> Tensor<'g> {
    let shape = Shape::new(element_type, dims);
    graph.parameter(shape.to_string(), shape)
}

#[test]
fn shape_errors_name_the_operation_and_every_shape() {
    let graph = Graph::new();
    let f = |dims: &[usize]| parameter(&graph, F32, dims);
    let s = |dims: &[usize]| parameter(&graph, S32, dims);
    let p = |dims: &[usize]| parameter(&graph, Pred, dims);
    let dot = |batch: [usize; 2], contracting: [usize; 2]| {
        let dimensions = DotDimensions {
            lhs_batch: vec![batch[0]],
            rhs_batch: vec![batch[1]],
            lhs_contracting: vec![contracting[0]],
            rhs_contracting: vec![contracting[1]],
        };
        Op::DotGeneral { dimensions, sums: F32 }
    };
    let slice = |start: usize, limit: usize, stride: usize| Op::Slice {
        start: vec![start],
        limit: vec![limit],
        stride: vec![stride],
    };
    let reduce = |kind: Reduction, dims: &[usize]| Op::Reduce { kind, dims: dims.to_vec() };
    let add = Op::Binary(Binary::Add);
    #[rustfmt::skip]
    let cases = [
        (add.clone(), vec![f(&[2, 3]), f(&[3, 2])],
            "add: shapes f32[2,3] and f32[3,2] differ; inputs f32[2,3] and f32[3,2]"),
        (add.clone(), vec![f(&[2]), s(&[2])], "add: shapes f32[2] and s32[2] differ; inputs f32[2] and s32[2]"),
        (add.clone(), vec![p(&[2]), p(&[2])], "add: not defined on pred; inputs pred[2] and pred[2]"),
        (add, vec![f(&[2])], "add: takes 2 inputs, given 1; inputs f32[2]"),
        (Op::Binary(Binary::Xor), vec![f(&[2]), f(&[2])], "xor: not defined on f32; inputs f32[2] and f32[2]"),
        (Op::Binary(Binary::ShiftLeft), vec![p(&[2]), p(&[2])],
            "shift-left: not defined on pred; inputs pred[2] and pred[2]"),
        (Op::Unary(Unary::Exp), vec![s(&[2])], "exponential: not defined on s32; inputs s32[2]"),
        (Op::Unary(Unary::Not), vec![f(&[2])], "not: not defined on f32; inputs f32[2]"),
        (Op::Unary(Unary::Abs), vec![parameter(&graph, U32, &[2])], "abs: not defined on u32; inputs u32[2]"),
        (Op::Unary(Unary::Sign), vec![parameter(&graph, U64, &[2])], "sign: not defined on u64; inputs u64[2]"),
        (Op::Select, vec![p(&[2]), f(&[2]), f(&[3])],
            "select: shapes f32[2] and f32[3] differ; inputs pred[2] and f32[2] and f32[3]"),
        (Op::Select, vec![s(&[2]), f(&[2]), f(&[2])],
            "select: shapes s32[2] and pred[2] differ; inputs s32[2] and f32[2] and f32[2]"),
        (Op::Iota { shape: Shape::new(S32, [2]), dim: 1 }, vec![], "iota: no dimension 1 in s32[2]; inputs "),
        (Op::BitcastConvert(U64), vec![f(&[3])], "bitcast-convert: u64 needs a last dimension of 2; inputs f32[3]"),
        (Op::Broadcast { dims: vec![2, 3], mapping: vec![0] }, vec![f(&[3])],
            "broadcast: doesn't broadcast to f32[2,3] along [0]; inputs f32[3]"),
        (Op::Reshape { dims: vec![4] }, vec![f(&[2, 3])],
            "reshape: f32[4] has another number of elements; inputs f32[2,3]"),
        (Op::Transpose { permutation: vec![0, 0] }, vec![f(&[2, 3])],
            "transpose: [0, 0] is no permutation; inputs f32[2,3]"),
        (slice(1, 4, 1), vec![f(&[3])], "slice: no slice [1]..[4] by [1]; inputs f32[3]"),
        (slice(0, 3, 0), vec![f(&[3])], "slice: no slice [0]..[3] by [0]; inputs f32[3]"),
        (Op::DynamicSlice { sizes: vec![4] }, vec![f(&[3]), s(&[])],
            "dynamic-slice: [4] elements don't fit; inputs f32[3] and s32[]"),
        (Op::DynamicSlice { sizes: vec![1, 1] }, vec![f(&[3, 3]), s(&[])],
            "dynamic-slice: a start of rank 1; inputs f32[3,3] and s32[]"),
        (Op::DynamicSlice { sizes: vec![1] }, vec![f(&[3]), f(&[])],
            "dynamic-slice: shapes f32[] and s32[] differ; inputs f32[3] and f32[]"),
        (Op::DynamicUpdateSlice, vec![f(&[3]), f(&[4]), s(&[])],
            "dynamic-update-slice: [4] elements don't fit; inputs f32[3] and f32[4] and s32[]"),
        (Op::DynamicUpdateSlice, vec![f(&[3]), s(&[1]), s(&[])],
            "dynamic-update-slice: element types differ; inputs f32[3] and s32[1] and s32[]"),
        (Op::DynamicUpdateSlice, vec![f(&[3])],
            "dynamic-update-slice: takes an input, an update and its start, given 1; inputs f32[3]"),
        (Op::Concatenate { dim: 0 }, vec![f(&[2, 3]), f(&[2, 4])],
            "concatenate: f32[2,3] and f32[2,4] differ outside dimension 0; inputs f32[2,3] and f32[2,4]"),
        (Op::Concatenate { dim: 1 }, vec![f(&[2])], "concatenate: no dimension 1; inputs f32[2]"),
        (Op::Concatenate { dim: 0 }, vec![], "concatenate: takes at least one input; inputs "),
        (Op::Pad { low: vec![1], high: vec![1], interior: vec![0] }, vec![f(&[2, 3]), f(&[])],
            "pad: padding of rank 1; inputs f32[2,3] and f32[]"),
        (Op::Pad { low: vec![1], high: vec![1], interior: vec![0] }, vec![f(&[2]), s(&[])],
            "pad: shapes s32[] and f32[] differ; inputs f32[2] and s32[]"),
        (dot([0, 0], [2, 1]), vec![f(&[2, 3, 4]), f(&[2, 5, 6])],
            "dot: contracting dimensions [2] and [1] don't pair; inputs f32[2,3,4] and f32[2,5,6]"),
        (dot([1, 1], [2, 2]), vec![f(&[2, 3, 4]), f(&[2, 5, 4])],
            "dot: batch dimensions [1] and [1] don't pair; inputs f32[2,3,4] and f32[2,5,4]"),
        (dot([0, 0], [0, 0]), vec![f(&[2, 3]), f(&[2, 3])],
            "dot: a dimension is named twice; inputs f32[2,3] and f32[2,3]"),
        (reduce(Reduction::Sum, &[2]), vec![f(&[2, 3]), f(&[])],
            "reduce: no dimensions [2]; inputs f32[2,3] and f32[]"),
        (reduce(Reduction::Max, &[1, 1]), vec![f(&[2, 3]), f(&[])],
            "reduce: no dimensions [1, 1]; inputs f32[2,3] and f32[]"),
        (reduce(Reduction::Max, &[0]), vec![p(&[2]), p(&[])],
            "reduce: not defined on pred; inputs pred[2] and pred[]"),
        (reduce(Reduction::Sum, &[0]), vec![f(&[2]), s(&[])],
            "reduce: shapes s32[] and f32[] differ; inputs f32[2] and s32[]"),
        (Op::Iota { shape: Shape::new(Pred, [2]), dim: 0 }, vec![], "iota: not defined on pred; inputs "),
        (Op::Gather, vec![f(&[0, 3]), s(&[2])], "gather: the table has no rows; inputs f32[0,3] and s32[2]"),
        (Op::Gather, vec![f(&[5]), s(&[2])], "gather: the table must have rank 2; inputs f32[5] and s32[2]"),
        (Op::Gather, vec![f(&[5, 3]), f(&[2])], "gather: the indices must be s32; inputs f32[5,3] and f32[2]"),
        (Op::ScatterAdd, vec![f(&[5, 3]), s(&[2]), f(&[2, 4])],
            "scatter: shapes f32[2,3] and f32[2,4] differ; inputs f32[5,3] and s32[2] and f32[2,4]"),
        (Op::RngBitGenerator { shape: Shape::new(U32, [4]) }, vec![f(&[2])],
            "rng-bit-generator: the state must be u64[2]; inputs f32[2]"),
        (Op::RngBitGenerator { shape: Shape::new(F32, [4]) }, vec![parameter(&graph, U64, &[2])],
            "rng-bit-generator: the bits must be u32, not f32[4]; inputs u64[2]"),
        (Op::AllReduce, vec![p(&[2])], "all-reduce: not defined on pred; inputs pred[2]"),
        (Op::AllGather { replicas: 2 }, vec![f(&[])],
            "all-gather: a scalar has no first dimension; inputs f32[]"),
        (Op::AllGather { replicas: 0 }, vec![f(&[2])], "all-gather: over no replicas; inputs f32[2]"),
        (Op::AllGather { replicas: 2 }, vec![f(&[2]), f(&[2])],
            "all-gather: takes 1 inputs, given 2; inputs f32[2] and f32[2]"),
        (Op::ReduceScatter { replicas: 4 }, vec![f(&[6, 4])],
            "reduce-scatter: no 4 equal parts; inputs f32[6,4]"),
        (Op::ReduceScatter { replicas: 0 }, vec![f(&[2])], "reduce-scatter: over no replicas; inputs f32[2]"),
        (Op::ReduceScatter { replicas: 2 }, vec![f(&[2, 0])],
            "reduce-scatter: not defined on an empty array; inputs f32[2,0]"),
        (Op::ReduceScatter { replicas: 2 }, vec![f(&[])],
            "reduce-scatter: a scalar has no first dimension; inputs f32[]"),
        (Op::ReduceScatter { replicas: 2 }, vec![p(&[2])],
            "reduce-scatter: not defined on pred; inputs pred[2]"),
        (Op::AllToAll { replicas: 4 }, vec![f(&[6, 4])], "all-to-all: no 4 equal parts; inputs f32[6,4]"),
        (Op::AllToAll { replicas: 2 }, vec![f(&[])],
            "all-to-all: a scalar has no first dimension; inputs f32[]"),
        (Op::DotGeneral { dimensions: DotDimensions::default(), sums: U32 }, vec![f(&[2]), f(&[3])],
            "dot: no sums in u32; inputs f32[2] and f32[3]"),
        (Op::Derived(Derived::Softmax { dim: 0 }), vec![f(&[2]), f(&[3])],
            "derived: shapes f32[2] and f32[3] differ; inputs f32[2] and f32[3]"),
        (Op::Derived(Derived::Softmax { dim: 0 }), vec![f(&[2])],
            "derived: of 1 arguments, given 0; inputs f32[2]"),
    ];
    for (op, inputs, expected) in cases {
        let error = graph.apply(op, &inputs).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
#[should_panic(expected = "add: shapes f32[2,3] and f32[2,4] differ; inputs f32[2,3] and f32[2,4]")]
fn operators_panic_with_the_same_text() {
    let graph = Graph::new();
    let _ = parameter(&graph, F32, &[2, 3]) + parameter(&graph, F32, &[2, 4]);
}

#[test]
#[should_panic(
    expected = "select: shapes f32[2,3] and f32[2] differ; inputs pred[3] and f32[2,3] and f32[2]"
)]
fn select_panics_with_every_shape() {
    let graph = Graph::new();
    let _ =
        parameter(&graph, Pred, &[3]).select(parameter(&graph, F32, &[2, 3]), parameter(&graph, F32, &[2]));
}

#[test]
#[should_panic(expected = "broadcast: doesn't broadcast to f32[2,5] along [1]; inputs f32[3]")]
fn broadcast_to_panics_with_both_shapes() {
    let graph = Graph::new();
    let _ = parameter(&graph, F32, &[3]).broadcast_to(&[2, 5]);
}

#[test]
#[should_panic(expected = "dot: contracting dimensions [1] and [1] don't pair; inputs f32[2,3] and f32[5,4]")]
fn derived_functions_panic_in_their_primitive() {
    let graph = Graph::new();
    let _ = parameter(&graph, F32, &[2, 3]).linear(parameter(&graph, F32, &[5, 4]));
}

#[test]
fn a_panic_points_at_the_line_that_called() {
    let graph = Graph::new();
    let (x, y) = (parameter(&graph, S32, &[3]), parameter(&graph, F32, &[2, 4]));
    let at = std::sync::Arc::new(std::sync::Mutex::new(vec![]));
    let (seen, here) = (at.clone(), std::thread::current().id());
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() == here {
            seen.lock().unwrap().push(panic.location().unwrap().file().to_owned());
        }
    }));
    let calls: [&dyn Fn() -> usize; 4] =
        [&|| (x.convert(F32) + y).rank(), &|| x.exp().rank(), &|| x.gelu().rank(), &|| {
            y.layer_norm(x, x, 0.1).rank()
        }];
    let caught = calls.map(|call| catch_unwind(AssertUnwindSafe(call)));
    std::panic::set_hook(usual);
    assert!(caught.iter().all(Result::is_err));
    assert_eq!(*at.lock().unwrap(), [file!(); 4]);
}

#[test]
#[should_panic(expected = "%0: f32[2] belongs to another graph")]
fn a_tensor_of_another_graph_is_refused() {
    let (graph, other) = (Graph::new(), Graph::new());
    let _ = graph.apply(Op::Unary(Unary::Exp), &[parameter(&other, F32, &[2])]);
}

#[test]
#[should_panic(expected = "program p: parameter f32[2] is used, but not given")]
fn a_program_needs_the_parameters_that_it_uses() {
    let graph = Graph::new();
    Program::new("p", vec![], vec![parameter(&graph, F32, &[2]) * 2.0]);
}

#[test]
#[should_panic(expected = "program p: parameter f32[2] is given twice")]
fn a_program_takes_each_parameter_once() {
    let graph = Graph::new();
    let x = parameter(&graph, F32, &[2]);
    Program::new("p", vec![x, x], vec![x * 2.0]);
}

#[test]
#[should_panic(expected = "program p: %2: f32[2] is no parameter")]
fn a_program_takes_nothing_but_parameters() {
    let graph = Graph::new();
    let x = parameter(&graph, F32, &[2]);
    let y = x.exp().tanh();
    Program::new("p", vec![x, y], vec![y]);
}

#[test]
#[should_panic(expected = "output 0 can't take over parameter 0")]
fn an_alias_needs_equal_shapes() {
    let graph = Graph::new();
    let x = parameter(&graph, F32, &[2]);
    Program::new("p", vec![x], vec![x.sum(&[0])]).alias(0, 0);
}

#[test]
fn equal_expressions_are_one_node() {
    let graph = Graph::new();
    let (x, y) = (parameter(&graph, F32, &[2, 3]), parameter(&graph, F32, &[3]));
    assert_eq!(x + y, x + y);
    assert_ne!(x + y, x - y);
    assert_ne!(x.like(0.0), x.like(-0.0), "compared by bits");
    assert_eq!(x.like(f64::NAN), x.like(f64::NAN), "compared by bits");
    assert_eq!(graph.parameter("w", x.shape()), graph.parameter("w", x.shape()));
    assert_ne!(graph.parameter("w", x.shape()), graph.parameter("v", x.shape()));
    // What changes nothing adds no node.
    assert_eq!(x.reshape(&[2, 3]), x);
    assert_eq!(x.reshape(&[6]).reshape(&[2, 3]), x);
    assert_eq!(x.transpose(&[0, 1]), x);
    assert_eq!(x.broadcast_to(&[2, 3]), x);
    assert_eq!(x.convert(F32), x);
    assert_eq!(x.sum(&[]), x);
    assert_eq!(x.all_gather(1), x);
    assert_eq!(x.reduce_scatter_sum(1), x);
    assert_eq!(x.all_to_all(1), x);
    assert_ne!(x.stop_gradient(), x);
    assert!((x * y).depends_on(y) && (x * y).depends_on(x * y) && !x.depends_on(x * y));
    assert_eq!(format!("{:?}", x), "%0: f32[2,3]");
}

#[test]
fn a_program_holds_each_live_expression_once_and_no_dead_one() {
    let graph = Graph::new();
    let (x, unused) = (parameter(&graph, F32, &[4]), parameter(&graph, S32, &[2]));
    let _dead = x.exp().erf();
    let _dead = graph.gradients(x.tanh().sum(&[0]), &[x]);
    let output = x.exp() + x.exp() * x.exp().stop_gradient();
    let text = Program::new("live", vec![x, unused], vec![output, x.exp()]).to_text();
    let count = |opcode: &str| text.matches(&format!(" {opcode}(")).count();
    let counts = ["parameter", "exponential", "multiply", "add", "tuple"].map(count);
    assert_eq!(counts, [2, 1, 1, 1, 1], "{text}");
    assert_eq!(["erf", "tanh", "stop-gradient", "reduce"].map(count), [0; 4], "{text}");
}

#[test]
fn text_of_a_program() {
    let graph = Graph::new();
    let x = graph.parameter("x", Shape::new(F32, [2, 3]));
    let w = graph.parameter("w", Shape::new(F32, [4, 3]));
    let hidden = graph.scope("layer", || graph.scope("dense", || x.linear(w) * 0.5));
    let loss = hidden.tanh().sum(&[0, 1]);
    let mut program = Program::new("tiny", vec![x, w], vec![loss, w - 1.0]);
    program.alias(1, 1);
    let expected = "\
HloModule tiny, input_output_alias={ {1}: (1, {}, must-alias) }

%add_f32 {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %r = f32[] add(%a, %b)
}

ENTRY main {
  %x = f32[2,3] parameter(0)
  %w = f32[4,3] parameter(1)

  // layer/dense
  %dot.2 = f32[2,4] dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %constant.3 = f32[] constant(0.5)
  %broadcast.4 = f32[2,4] broadcast(%constant.3), dimensions={}
  %multiply.5 = f32[2,4] multiply(%dot.2, %broadcast.4)

  // (top level)
  %tanh.6 = f32[2,4] tanh(%multiply.5)
  %constant.7 = f32[] constant(0)
  %reduce.8 = f32[] reduce(%tanh.6, %constant.7), dimensions={0,1}, to_apply=%add_f32
  %constant.9 = f32[] constant(1)
  %broadcast.10 = f32[4,3] broadcast(%constant.9), dimensions={}
  %subtract.11 = f32[4,3] subtract(%w, %broadcast.10)

  ROOT %result = (f32[], f32[4,3]) tuple(%reduce.8, %subtract.11)
}
";
    assert_eq!(program.to_text(), expected);
    assert_eq!(program.parameter_shapes(), [Shape::new(F32, [2, 3]), Shape::new(F32, [4, 3])]);
    assert_eq!(program.output_shapes(), [Shape::scalar(F32), Shape::new(F32, [4, 3])]);
}

#[test]
fn text_shows_the_attributes_of_every_operation() {
    let graph = Graph::new();
    let x = graph.parameter("x", Shape::new(F32, [4, 6]));
    let ids = graph.parameter("ids", Shape::new(S32, [3]));
    let rows = x.gather(ids);
    let outputs = vec![
        x.slice(&[0, 1], &[4, 5], &[1, 2]),
        x.pad(x.like(0.0), &[1, 0], &[2, 0], &[0, 3]),
        graph.concatenate(&[x, x.transpose(&[1, 0]).reshape(&[4, 6])], 0),
        x.scatter_add(ids, rows).all_reduce_sum(),
        x.max(&[1]),
        graph.constant(U64, 7.0).reshape(&[1]).broadcast_to(&[2]).random_bits(&[5]),
        graph.iota(Shape::new(S32, [2, 2]), 1),
        x.compare(bert_xla::hlo::Comparison::Le, x.like(f64::NEG_INFINITY)),
        graph.replica_id(),
        graph.constant(Pred, 1.0),
        x.all_gather(4),
        x.reduce_scatter_sum(2),
        x.all_to_all(2),
    ];
    let text = Program::new("attributes", vec![x, ids], outputs).to_text();
    for expected in [
        "= f32[4,2] slice(%x), slice={[0:4], [1:5:2]}\n",
        "= f32[7,21] pad(%x, ",
        ", padding=1_2_0x0_0_3\n",
        "= f32[6,4] transpose(%x), dimensions={1,0}\n",
        "= f32[8,6] concatenate(%x, ",
        ", dimensions={0}\n",
        "= f32[3,6] gather(%x, %ids), offset_dims={1}, collapsed_slice_dims={0}, start_index_map={0}, \
         index_vector_dim=1, slice_sizes={1,6}\n",
        "= f32[4,6] scatter(%x, %ids, ",
        ", update_window_dims={1}, inserted_window_dims={0}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, \
         to_apply=%add_f32\n",
        "= f32[4] reduce(%x, %constant.11), dimensions={1}, to_apply=%maximum_f32\n",
        "= u64[] constant(7)\n",
        ".generator = (u64[2], u32[5]) rng-bit-generator(",
        "= s32[2,2] iota(), iota_dimension=1\n",
        "direction=LE\n",
        "= f32[] constant(-inf)\n",
        "= u32[] replica-id()\n",
        "= pred[] constant(true)\n",
        ", replica_groups={}, to_apply=%add_f32\n",
        "= f32[16,6] all-gather(%x), replica_groups={}, dimensions={0}\n",
        "= f32[2,6] reduce-scatter(%x), replica_groups={}, dimensions={0}, to_apply=%add_f32\n",
        "= f32[4,6] all-to-all(%x), replica_groups={{0,1}}, dimensions={0}\n",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
}

/// XLA's parser takes a number without a point or an exponent for an integer of at most 64 bits, and no other name of what
/// is no number.
#[test]
fn text_has_constants_as_xla_reads_them() {
    let graph = Graph::new();
    for (element_type, value, expected) in [
        (F32, f64::NAN, "nan"),
        (F32, f64::INFINITY, "inf"),
        (F32, -0.0, "-0.0"),
        (F32, 0.1, "0.1"),
        (F32, f64::from(f32::MAX), "3.4028235e38"),
        (ElementType::Bf16, f64::NAN, "nan"),
        (ElementType::F64, -1e300, "-1e300"),
        (ElementType::F64, 3.0, "3"),
        (S32, f64::MIN, "-2147483648"),
        (ElementType::S64, f64::MIN, "-9223372036854775808"),
        (ElementType::S64, f64::MAX, "9223372036854775807"),
        (U64, f64::MAX, "18446744073709551615"),
    ] {
        let constant = graph.constant(element_type, value);
        let text = Program::new("constant", vec![], vec![constant]).to_text();
        assert!(text.contains(&format!(" constant({expected})\n")), "{expected} is not in\n{text}");
    }
}

/// Of which text can say nothing.
#[test]
fn a_scalar_has_no_padding() {
    let graph = Graph::new();
    let x = parameter(&graph, F32, &[]);
    assert_eq!(x.pad(x.like(1.0), &[], &[], &[]), x);
}

#[test]
fn what_a_table_without_rows_drops_has_no_gradient() {
    let graph = Graph::new();
    let (table, updates) = (parameter(&graph, F32, &[0, 3]), parameter(&graph, F32, &[2, 3]));
    let sums = table.scatter_add(parameter(&graph, S32, &[2]), updates);
    let gradients = graph.gradients(sums.sum(&[0, 1]), &[table, updates]);
    assert_eq!(gradients[0].map(Tensor::dims), Some(vec![0, 3]));
    assert_eq!(gradients[1], None);
}

#[test]
fn scalars_round_to_their_type_and_keep_its_bounds() {
    for (element_type, value, held) in [
        (ElementType::U8, 300.0, 255.0),
        (U32, -1.0, 0.0),
        (U32, 2f64.powi(32), f64::from(u32::MAX)),
        (S32, -2f64.powi(40), f64::from(i32::MIN)),
        (ElementType::S64, -7.0, -7.0),
        (ElementType::F16, 1.0 / 3.0, 0.333_251_953_125),
        (ElementType::Bf16, 1.0 / 3.0, 0.333_984_375),
        (F32, 1.0 / 3.0, f64::from(1.0f32 / 3.0)),
        (ElementType::F64, 1.0 / 3.0, 1.0 / 3.0),
    ] {
        assert_eq!(Scalar::new(element_type, value).to_f64(), held, "{value} as {element_type}");
    }
    assert_eq!(Scalar::new(S32, -1.0).bits(), u64::from(u32::MAX));
}

/// A state that each run of the program replaces: weights lose a tenth, the step counts up.
#[test]
fn donated_state_is_updated_in_place() {
    let graph = Graph::new();
    let (weights, step) = (parameter(&graph, F32, &[64, 1024]), parameter(&graph, S32, &[]));
    let rate = graph.parameter("rate", Shape::scalar(F32));
    let outputs = vec![step + 1.0, weights - weights * rate, weights.sum(&[0, 1])];
    let mut program = Program::new("update", vec![weights, step, rate], outputs);
    let fresh = Compiled::new(&program, 1);
    program.alias(1, 0);
    program.alias(0, 1);
    let in_place = Compiled::new(&program, 1);
    let bytes = 64 * 1024 * 4;
    assert_eq!(fresh.0.executable().memory_stats().unwrap().aliased, 0);
    let stats = in_place.0.executable().memory_stats().unwrap();
    assert!(stats.aliased >= bytes + 4, "{stats:?}");

    let device = client().addressable_device(0).unwrap();
    let mut weights = client().buffer_from_host(&vec![1.0f32; 64 * 1024], &[64, 1024], device).unwrap();
    let mut step = client().buffer_from_host(&[0], &[], device).unwrap();
    let rate = client().buffer_from_host(&[0.5f32], &[], device).unwrap();
    for run in 0..5 {
        let arguments = vec![Argument::Donate(weights), Argument::Donate(step), Argument::Borrow(&rate)];
        let outputs = in_place.0.execute(vec![arguments]).unwrap().remove(0);
        let [next_step, next_weights, sum] = outputs.try_into().ok().unwrap();
        assert_eq!(
            sum.to_host::<f32>().unwrap(),
            [65536.0 * 0.5f32.powi(run)],
            "the sum is of the old weights"
        );
        (step, weights) = (next_step, next_weights);
    }
    assert_eq!(step.to_host::<i32>().unwrap(), [5]);
    assert_eq!(weights.to_host::<f32>().unwrap(), vec![0.5f32.powi(5); 64 * 1024]);
}

#[test]
fn a_borrowed_argument_survives_a_program_that_would_take_its_memory() {
    let graph = Graph::new();
    let weights = parameter(&graph, F32, &[4]);
    let mut program = Program::new("update", vec![weights], vec![weights * 0.5]);
    program.alias(0, 0);
    let compiled = Compiled::new(&program, 1);
    let device = client().addressable_device(0).unwrap();
    let buffer = client().buffer_from_host(&[1.0f32; 4], &[4], device).unwrap();
    let outputs = compiled.0.execute(vec![vec![Argument::Borrow(&buffer)]]).unwrap();
    assert_eq!(outputs[0][0].to_host::<f32>().unwrap(), [0.5; 4]);
    assert_eq!(buffer.to_host::<f32>().unwrap(), [1.0; 4]);
}
