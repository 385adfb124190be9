//! Against text in XLA's own form, for a module made by hand.

use prost::Message;

use super::*;
use crate::proto::{
    AliasEntryProto, ConvolutionDimensionNumbers, DotDimensionNumbers, HloInputOutputAliasProto,
    HloModuleConfigProto, HloModuleProtoWithConfig, LayoutProto, LiteralProto, PaddingConfig,
    PaddingConfigDimension, ShapeProto, SliceDimensions, TileProto, Window, WindowDimension,
    primitive_type as t,
};

fn instruction(id: i64, opcode: &str, shape: ShapeProto, operands: &[i64]) -> HloInstructionProto {
    HloInstructionProto {
        id,
        name: format!("{opcode}.{id}"),
        opcode: opcode.into(),
        shape: Some(shape),
        operand_ids: operands.into(),
        ..Default::default()
    }
}

/// Row-major, in tiles.
fn array(element_type: i32, dims: &[i64], tiles: &[&[i64]], memory_space: i64) -> ShapeProto {
    let tiles = tiles.iter().map(|tile| TileProto { dimensions: tile.to_vec() }).collect();
    let minor_to_major = (0..dims.len() as i64).rev().collect();
    let tail_padding_alignment_in_elements = 1;
    let layout = LayoutProto { minor_to_major, tiles, memory_space, tail_padding_alignment_in_elements };
    ShapeProto { element_type, dimensions: dims.into(), layout: Some(layout), ..Default::default() }
}

fn tuple(tuple_shapes: Vec<ShapeProto>) -> ShapeProto {
    ShapeProto { element_type: t::TUPLE, tuple_shapes, ..Default::default() }
}

fn f32(dims: &[i64]) -> ShapeProto {
    array(t::F32, dims, &[], 0)
}

fn computation(id: i64, name: &str, instructions: Vec<HloInstructionProto>) -> HloComputationProto {
    let root = instructions.last().unwrap();
    let inputs = || instructions.iter().filter(|one| one.opcode == "parameter");
    let program_shape = ProgramShapeProto {
        parameters: inputs().filter_map(|one| one.shape.clone()).collect(),
        parameter_names: inputs().map(|one| one.name.clone()).collect(),
        result: root.shape.clone(),
    };
    HloComputationProto {
        id,
        name: name.into(),
        root_id: root.id,
        program_shape: Some(program_shape),
        instructions,
    }
}

fn text(
    computations: Vec<HloComputationProto>,
    alias: Option<AliasEntryProto>,
    replica_count: i64,
) -> String {
    let module = HloModuleProto {
        name: "step".into(),
        computations,
        entry_computation_id: 1,
        input_output_alias: Some(HloInputOutputAliasProto { entries: alias.into_iter().collect() }),
        ..Default::default()
    };
    let config = Some(HloModuleConfigProto { replica_count });
    to_text(&HloModuleProtoWithConfig { hlo_module: Some(module), config }.encode_to_vec()).unwrap()
}

#[test]
fn a_module_reads_as_xla_writes_it() {
    let bf16 = array(t::BF16, &[2, 4], &[&[4, 128], &[2, 1]], 0);
    let one = |fill: fn(&mut HloInstructionProto), mut one: HloInstructionProto| {
        fill(&mut one);
        one
    };
    let fused = computation(
        2,
        "fused_computation",
        vec![
            instruction(1, "parameter", f32(&[2, 4]), &[]),
            one(
                |one| {
                    one.metadata =
                        Some(OpMetadata { op_type: "convert".into(), op_name: "bert/layer.0".into() });
                },
                instruction(2, "convert", bf16.clone(), &[1]),
            ),
        ],
    );
    let fusion = one(
        |one| {
            one.fusion_kind = "kLoop".into();
            one.called_computation_ids = vec![2];
            one.backend_config = br#"{"window_config":{"estimated_cycles":"271"}}"#.into();
        },
        instruction(2, "fusion", bf16.clone(), &[1]),
    );
    let product = one(
        |one| {
            one.fusion_kind = "kCustom".into();
            one.called_computation_ids = vec![2];
            one.metadata = Some(OpMetadata { op_name: "head".into(), ..Default::default() });
            one.backend_config = br#"{"fusion_backend_config":{"kind":"__triton_gemm"}}"#.into();
        },
        instruction(3, "fusion", array(t::F32, &[], &[], 5), &[1, 2, 1, 2, 1, 2]),
    );
    let result = instruction(4, "tuple", tuple(vec![bf16, f32(&[])]), &[2, 3]);
    let parameter = instruction(1, "parameter", array(t::F32, &[2, 4], &[&[8, 128]], 1), &[]);
    let entry = computation(1, "main", vec![parameter, fusion, product, result]);
    let alias = AliasEntryProto { output_shape_index: vec![0], kind: MUST_ALIAS, ..Default::default() };
    let expected = r#"HloModule step, replica_count=8, input_output_alias={ {0}: (0, {}, must-alias) }

%fused_computation (parameter.1: f32[2,4]) -> bf16[2,4] {
  %parameter.1 = f32[2,4]{1,0} parameter(0)
  ROOT %convert.2 = bf16[2,4]{1,0:T(4,128)(2,1)} convert(%parameter.1), metadata={op_type="convert" op_name="bert/layer.0"}
}

ENTRY %main (parameter.1: f32[2,4]) -> (bf16[2,4], f32[]) {
  %parameter.1 = f32[2,4]{1,0:T(8,128)S(1)} parameter(0)
  %fusion.2 = bf16[2,4]{1,0:T(4,128)(2,1)} fusion(%parameter.1), kind=kLoop, calls=%fused_computation, estimated_cycles=271
  %fusion.3 = f32[]{:S(5)} fusion(%parameter.1, %fusion.2, %parameter.1, %fusion.2, %parameter.1, /*index=5*/%fusion.2), kind=kCustom, calls=%fused_computation, metadata={op_name="head"}, backend_kind="__triton_gemm"
  ROOT %tuple.4 = (bf16[2,4]{1,0:T(4,128)(2,1)}, f32[]) tuple(%fusion.2, %fusion.3)
}
"#;
    // The entry computation comes last, wherever it is in the module.
    assert_eq!(text(vec![entry, fused], Some(alias), 8), expected);
}

/// What `fill` makes of an instruction, without its name and shape.
fn printed(opcode: &str, fill: impl FnOnce(&mut HloInstructionProto)) -> String {
    let mut one = instruction(3, opcode, f32(&[]), &[1]);
    fill(&mut one);
    let mut text = String::new();
    write_instruction(&mut text, &one, &Names::from([(1, "x")]), &Names::from([(8, "a"), (9, "b")]));
    text.trim_end().split_once(" = f32[] ").unwrap().1.to_owned()
}

/// The expected lines are cut from XLA's dumps of train steps and, for loops, from its documentation.
#[test]
fn attributes_are_written_as_xla_writes_them() {
    let slices = |ranges: &[[i64; 3]]| {
        let slice = |[start, limit, stride]: &[i64; 3]| SliceDimensions {
            start: *start,
            limit: *limit,
            stride: *stride,
        };
        ranges.iter().map(slice).collect::<Vec<_>>()
    };
    let padding = |dims: &[[i64; 3]]| {
        let dims = dims.iter().map(|[low, high, interior]| PaddingConfigDimension {
            edge_padding_low: *low,
            edge_padding_high: *high,
            interior_padding: *interior,
        });
        Some(PaddingConfig { dimensions: dims.collect() })
    };
    #[rustfmt::skip]
    let cases = [
        (printed("broadcast", |_| ()), "broadcast(%x), dimensions={}"),
        (printed("reduce", |i| (i.dimensions, i.called_computation_ids) = (vec![0, 2], vec![8])),
            "reduce(%x), dimensions={0,2}, to_apply=%a"),
        (printed("iota", |i| (i.dimensions, i.operand_ids) = (vec![1], vec![])), "iota(), iota_dimension=1"),
        (printed("rng-bit-generator", |_| ()), "rng-bit-generator(%x), algorithm=rng_default"),
        (printed("parameter", |i| i.parameter_number = 7), "parameter(7)"),
        (printed("get-tuple-element", |i| i.tuple_index = 2), "get-tuple-element(%x), index=2"),
        (printed("slice", |i| i.slice_dimensions = slices(&[[0, 1, 1], [2, 8, 3]])),
            "slice(%x), slice={[0:1], [2:8:3]}"),
        (printed("pad", |i| i.padding_config = padding(&[[0, 0, 0], [0, 3, 0]])), "pad(%x), padding=0_0x0_3"),
        (printed("pad", |i| i.padding_config = padding(&[[-1, 0, 0], [0, 3, 1]])),
            "pad(%x), padding=-1_0_0x0_3_1"),
        (printed("compare", |i| i.comparison_direction = "LT".into()), "compare(%x), direction=LT"),
        (printed("custom-call", |i| i.custom_call_target = "__cublas$gemm".into()),
            r#"custom-call(%x), custom_call_target="__cublas$gemm""#),
        (printed("while", |i| i.called_computation_ids = vec![8, 9]), "while(%x), condition=%b, body=%a"),
        (printed("conditional", |i| i.called_computation_ids = vec![8, 9]),
            "conditional(%x), branch_computations={%a, %b}"),
        (printed("call", |i| i.called_computation_ids = vec![9]), "call(%x), to_apply=%b"),
        (printed("async-start", |i| i.called_computation_ids = vec![9]), "async-start(%x), calls=%b"),
        (printed("add", |i| i.operand_ids = vec![1, 4]), "add(%x, %?)"),
    ];
    for (text, expected) in cases {
        assert_eq!(text, expected);
    }
}

#[test]
fn products_name_their_dimensions() {
    let dot = printed("dot", |i| {
        i.dot_dimension_numbers = Some(DotDimensionNumbers {
            lhs_contracting_dimensions: vec![2],
            rhs_contracting_dimensions: vec![1],
            lhs_batch_dimensions: vec![0],
            rhs_batch_dimensions: vec![0],
        });
    });
    let expected =
        "lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}";
    assert_eq!(dot, format!("dot(%x), {expected}"));

    let dim = |size, stride, base_dilation| WindowDimension {
        size,
        stride,
        base_dilation,
        window_dilation: 1,
        ..Default::default()
    };
    let window = Window { dimensions: vec![dim(2, 1, 2), dim(12, 11, 12)] };
    let convolution = printed("convolution", |i| {
        i.window = Some(window);
        i.convolution_dimension_numbers = Some(ConvolutionDimensionNumbers {
            input_spatial_dimensions: vec![0, 1],
            input_batch_dimension: 2,
            input_feature_dimension: 3,
            kernel_spatial_dimensions: vec![0, 1],
            kernel_input_feature_dimension: 3,
            kernel_output_feature_dimension: 2,
            output_spatial_dimensions: vec![0, 1],
            output_batch_dimension: 2,
            output_feature_dimension: 3,
        });
    });
    let expected = "window={size=2x12 stride=1x11 lhs_dilate=2x12}, dim_labels=01bf_01oi->01bf";
    assert_eq!(convolution, format!("convolution(%x), {expected}"));
    let padded =
        WindowDimension { padding_low: 23, padding_high: 23, window_reversal: true, ..dim(47, 1, 1) };
    let reduce = printed("reduce-window", |i| {
        i.window = Some(Window { dimensions: vec![dim(1, 1, 1), padded] });
    });
    assert_eq!(reduce, "reduce-window(%x), window={size=1x47 pad=0_0x23_23 rhs_reversal=0x1}");
}

#[test]
fn small_constants_are_written_out() {
    let constant = |element_type, dims: &[i64], fill: fn(&mut LiteralProto)| {
        let mut literal =
            LiteralProto { shape: Some(array(element_type, dims, &[], 0)), ..Default::default() };
        fill(&mut literal);
        printed("constant", |i| i.literal = Some(literal))
    };
    let cases = [
        (constant(t::F32, &[], |l| l.f32s = vec![1e-7]), "1e-7"),
        (constant(t::F32, &[], |l| l.f32s = vec![1.0 / 0.9]), "1.1111112"),
        (constant(t::F32, &[], |l| l.f32s = vec![f32::NEG_INFINITY]), "-inf"),
        (constant(t::F32, &[], |l| l.f32s = vec![2.0]), "2"),
        // Bit patterns of 1.5 and -2.
        (constant(t::BF16, &[2], |l| l.bf16s = vec![0xc0, 0x3f, 0x00, 0xc0]), "{1.5, -2}"),
        (constant(t::F16, &[], |l| l.f16s = vec![0x00, 0x3e]), "1.5"),
        (constant(t::PRED, &[], |l| l.preds = vec![true]), "true"),
        (constant(t::U32, &[1], |l| l.u32s = vec![3_449_720_151]), "{3449720151}"),
        (constant(t::S32, &[2, 2], |l| l.s32s = vec![1, 2, 3, -4]), "{ {1, 2}, {3, -4} }"),
        (constant(t::S32, &[0], |_| ()), "{}"),
        (constant(t::U8, &[11], |l| l.u8s = vec![0; 11]), "{...}"),
        // A type whose values are not read.
        (constant(t::U16, &[], |_| ()), "{...}"),
    ];
    for (text, expected) in cases {
        assert_eq!(text, format!("constant({expected})"));
    }
}

#[test]
fn other_bytes_are_refused() {
    assert!(matches!(to_text(b"HloModule m"), Err(ModuleError::Decode(_))));
    assert!(matches!(to_text(b""), Err(ModuleError::NoEntry)));
}
