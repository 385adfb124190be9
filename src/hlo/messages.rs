//! What an instruction's message holds beyond its operands: shape, attributes, literal.

use super::graph::{Graph, Node};
use super::op::{Op, Scalar};
use crate::proto::{self, primitive_type as primitive};
use crate::shape::{ElementType, Shape};

pub(super) fn metadata(node: &Node) -> proto::OpMetadata {
    proto::OpMetadata { op_type: node.op.name().into(), op_name: node.scope.to_string() }
}

/// The attributes of `op` beyond shape and operands.
pub(super) fn write_attributes(
    op: &Op,
    graph: &Graph,
    node: &Node,
    instruction: &mut proto::HloInstructionProto,
) {
    let i64s = |dims: &[usize]| dims.iter().map(|d| *d as i64).collect::<Vec<_>>();
    match op {
        Op::Parameter { .. } | Op::ReplicaId | Op::Unary(_) | Op::Binary(_) | Op::Select => {}
        Op::Convert(_) | Op::BitcastConvert(_) | Op::Reshape { .. } => {}
        Op::DynamicUpdateSlice | Op::While { .. } => {}
        // No replica groups: all replicas are one group.
        Op::AllReduce | Op::StopGradient | Op::Barrier | Op::After | Op::Derived(_) => {}
        Op::AllGather { .. } | Op::ReduceScatter { .. } => instruction.dimensions = vec![0],
        Op::Constant(scalar) => instruction.literal = Some(literal(*scalar)),
        Op::Iota { dim, .. } | Op::Concatenate { dim } => instruction.dimensions = vec![*dim as i64],
        Op::Compare(comparison) => instruction.comparison_direction = comparison.name().into(),
        Op::Broadcast { mapping, .. } => instruction.dimensions = i64s(mapping),
        Op::Transpose { permutation } => instruction.dimensions = i64s(permutation),
        Op::Reduce { dims, .. } => instruction.dimensions = i64s(dims),
        Op::Slice { start, limit, stride } => {
            let dims = start.iter().zip(limit).zip(stride);
            instruction.slice_dimensions = dims
                .map(|((start, limit), stride)| proto::SliceDimensions {
                    start: *start as i64,
                    limit: *limit as i64,
                    stride: *stride as i64,
                })
                .collect();
        }
        Op::DynamicSlice { sizes } => instruction.dynamic_slice_sizes = i64s(sizes),
        Op::Pad { low, high, interior } => {
            let dims = low.iter().zip(high).zip(interior);
            let dimensions = dims
                .map(|((low, high), interior)| proto::PaddingConfigDimension {
                    edge_padding_low: *low as i64,
                    edge_padding_high: *high as i64,
                    interior_padding: *interior as i64,
                })
                .collect();
            instruction.padding_config = Some(proto::PaddingConfig { dimensions });
        }
        Op::AllToAll { replicas } => {
            instruction.dimensions = vec![0];
            // XLA takes the number of parts from the group.
            let group = proto::ReplicaGroup { replica_ids: (0..*replicas as i64).collect() };
            instruction.replica_groups = vec![group];
        }
        Op::DotGeneral { dimensions: dims, .. } => {
            instruction.dot_dimension_numbers = Some(proto::DotDimensionNumbers {
                lhs_contracting_dimensions: i64s(&dims.lhs_contracting),
                rhs_contracting_dimensions: i64s(&dims.rhs_contracting),
                lhs_batch_dimensions: i64s(&dims.lhs_batch),
                rhs_batch_dimensions: i64s(&dims.rhs_batch),
            });
        }
        Op::Gather => {
            let (rank, width) = (node.shape.rank() as i64, node.shape.dims[node.shape.rank() - 1]);
            instruction.gather_dimension_numbers = Some(proto::GatherDimensionNumbers {
                offset_dims: vec![rank - 1],
                collapsed_slice_dims: vec![0],
                start_index_map: vec![0],
                index_vector_dim: rank - 1,
            });
            instruction.gather_slice_sizes = vec![1, width as i64];
        }
        Op::ScatterAdd => {
            let rank = graph.node(node.inputs[2]).shape.rank() as i64;
            instruction.scatter_dimension_numbers = Some(proto::ScatterDimensionNumbers {
                update_window_dims: vec![rank - 1],
                inserted_window_dims: vec![0],
                scatter_dims_to_operand_dims: vec![0],
                index_vector_dim: rank - 1,
            });
        }
        Op::RngBitGenerator { .. } => instruction.rng_algorithm = proto::RNG_DEFAULT,
    }
}

pub(super) fn literal(scalar: Scalar) -> proto::LiteralProto {
    let bits = scalar.bits();
    let mut literal = proto::LiteralProto {
        shape: Some(array_shape(&Shape::scalar(scalar.element_type))),
        ..Default::default()
    };
    match scalar.element_type {
        ElementType::Pred => literal.preds = vec![bits != 0],
        ElementType::U8 => literal.u8s = vec![bits as u8],
        ElementType::S32 => literal.s32s = vec![bits as u32 as i32],
        ElementType::S64 => literal.s64s = vec![bits as i64],
        ElementType::U32 => literal.u32s = vec![bits as u32],
        ElementType::U64 => literal.u64s = vec![bits],
        ElementType::F16 => literal.f16s = (bits as u16).to_le_bytes().to_vec(),
        ElementType::Bf16 => literal.bf16s = (bits as u16).to_le_bytes().to_vec(),
        ElementType::F32 => literal.f32s = vec![f32::from_bits(bits as u32)],
        ElementType::F64 => literal.f64s = vec![f64::from_bits(bits)],
    }
    literal
}

pub(super) fn alias_proto(aliases: &[(usize, usize)]) -> proto::HloInputOutputAliasProto {
    let entry = |(output, parameter): &(usize, usize)| proto::AliasEntryProto {
        output_shape_index: vec![*output as i64],
        parameter_number: *parameter as i64,
        parameter_shape_index: vec![],
        kind: proto::MUST_ALIAS,
    };
    proto::HloInputOutputAliasProto { entries: aliases.iter().map(entry).collect() }
}

pub(super) fn array_shape(shape: &Shape) -> proto::ShapeProto {
    proto::ShapeProto {
        element_type: match shape.element_type {
            ElementType::Pred => primitive::PRED,
            ElementType::U8 => primitive::U8,
            ElementType::S32 => primitive::S32,
            ElementType::S64 => primitive::S64,
            ElementType::U32 => primitive::U32,
            ElementType::U64 => primitive::U64,
            ElementType::F16 => primitive::F16,
            ElementType::Bf16 => primitive::BF16,
            ElementType::F32 => primitive::F32,
            ElementType::F64 => primitive::F64,
        },
        dimensions: shape.dims.iter().map(|d| *d as i64).collect(),
        layout: Some(proto::LayoutProto {
            minor_to_major: (0..shape.rank() as i64).rev().collect(),
            tail_padding_alignment_in_elements: 1,
            ..Default::default()
        }),
        is_dynamic_dimension: vec![false; shape.rank()],
        ..Default::default()
    }
}

pub(super) fn tuple_shape(shapes: &[Shape]) -> proto::ShapeProto {
    proto::ShapeProto {
        element_type: primitive::TUPLE,
        tuple_shapes: shapes.iter().map(array_shape).collect(),
        ..Default::default()
    }
}
