//! A graph as a serialized `HloModuleProto`: the only file that knows XLA's messages.

use std::collections::HashMap;

use prost::Message;

use super::graph::{Graph, Node, NodeId, Tensor};
use super::names::Names;
use super::op::{Op, Reduction, Scalar};
use crate::proto::{self, primitive_type as primitive};
use crate::shape::{ElementType, Shape};

/// A complete program: some inputs and outputs of a graph, and which output takes over which input's memory.
pub struct Program<'g> {
    pub(super) graph: &'g Graph,
    pub(super) name: String,
    pub(super) parameters: Vec<Tensor<'g>>,
    pub(super) outputs: Vec<Tensor<'g>>,
    /// (output, parameter) pairs.
    pub(super) aliases: Vec<(usize, usize)>,
}

impl<'g> Program<'g> {
    /// The program that takes `parameters`, in this order, and returns the tuple of `outputs`.
    ///
    /// # Panics
    /// If `outputs` is empty; if `parameters` holds something else than parameters, one of them twice, or lacks one
    /// that an output depends on.
    #[track_caller]
    pub fn new(name: &str, parameters: Vec<Tensor<'g>>, outputs: Vec<Tensor<'g>>) -> Self {
        let graph = outputs.first().expect("a program has at least one output").graph;
        let program = Self { graph, name: name.to_owned(), parameters, outputs, aliases: Vec::new() };
        let mut given = Vec::new();
        for parameter in &program.parameters {
            let id = graph.own(*parameter);
            let Op::Parameter { name, .. } = graph.node(id).op else {
                panic!("program {}: {parameter:?} is no parameter", program.name);
            };
            assert!(!given.contains(&id), "program {}: parameter {name} is given twice", program.name);
            given.push(id);
        }
        program.outputs.iter().for_each(|output| _ = graph.own(*output));
        for (id, node) in program.live_nodes() {
            if let Op::Parameter { name, .. } = &node.op {
                assert!(
                    given.contains(&id),
                    "program {}: parameter {name} is used, but not given",
                    program.name
                );
            }
        }
        program
    }

    /// Lets output `output` take over the memory of parameter `parameter`, which the caller then donates.
    ///
    /// # Panics
    /// If their shapes differ, or one of them is aliased already.
    #[track_caller]
    pub fn alias(&mut self, output: usize, parameter: usize) {
        let (to, from) = (self.outputs[output], self.parameters[parameter]);
        assert_eq!(to.shape(), from.shape(), "output {output} can't take over parameter {parameter}");
        let is_taken = self.aliases.iter().any(|(o, p)| *o == output || *p == parameter);
        assert!(!is_taken, "output {output} or parameter {parameter} is aliased already");
        self.aliases.push((output, parameter));
    }

    /// Shapes of the parameters, in order.
    pub fn parameter_shapes(&self) -> Vec<Shape> {
        self.parameters.iter().map(|tensor| tensor.shape()).collect()
    }

    /// Shapes of the outputs, in order.
    pub fn output_shapes(&self) -> Vec<Shape> {
        self.outputs.iter().map(|tensor| tensor.shape()).collect()
    }

    /// The serialized `HloModuleProto`.
    pub fn to_hlo_proto(&self) -> Vec<u8> {
        Emitter::new(self).module().encode_to_vec()
    }

    /// The nodes that an output depends on, and every parameter, in topological order.
    pub(super) fn live_nodes(&self) -> Vec<(NodeId, Node)> {
        let mut live = self.graph.reaching(&self.outputs.iter().map(|tensor| tensor.id).collect::<Vec<_>>());
        self.parameters.iter().for_each(|tensor| live[tensor.id] = true);
        (0..live.len()).filter(|id| live[*id]).map(|id| (id, self.graph.node(id))).collect()
    }
}

/// The node whose value `id` has: [`Op::StopGradient`] is not emitted.
pub(super) fn resolve(graph: &Graph, mut id: NodeId) -> NodeId {
    loop {
        let node = graph.node(id);
        match node.op {
            Op::StopGradient => id = node.inputs[0],
            _ => return id,
        }
    }
}

struct Emitter<'a, 'g> {
    program: &'a Program<'g>,
    names: Names,
    parameter_names: Vec<String>,
    instructions: Vec<proto::HloInstructionProto>,
    /// Instruction of each node.
    emitted: HashMap<NodeId, i64>,
    /// Two-argument computations that reduce, scatter, all-reduce and reduce-scatter call.
    reducers: Vec<(Reduction, ElementType, proto::HloComputationProto)>,
    next_id: i64,
}

impl<'a, 'g> Emitter<'a, 'g> {
    fn new(program: &'a Program<'g>) -> Self {
        let mut names = Names::default();
        let parameter_names = program.parameter_names(&mut names);
        Self {
            program,
            names,
            parameter_names,
            instructions: vec![],
            emitted: HashMap::new(),
            reducers: vec![],
            next_id: 1,
        }
    }

    fn module(mut self) -> proto::HloModuleProto {
        for (id, node) in self.program.live_nodes() {
            self.node(id, &node);
        }
        let graph = self.program.graph;
        let operands =
            self.program.outputs.iter().map(|tensor| self.emitted[&resolve(graph, tensor.id)]).collect();
        let result = tuple_shape(&self.program.output_shapes());
        let root_id = self.push("tuple", result.clone(), operands, |_| ());
        let program_shape = proto::ProgramShapeProto {
            parameters: self.program.parameter_shapes().iter().map(array_shape).collect(),
            result: Some(result),
            parameter_names: self.parameter_names,
        };
        let entry = proto::HloComputationProto {
            name: "main".into(),
            instructions: self.instructions,
            program_shape: Some(program_shape.clone()),
            id: self.next_id,
            root_id,
        };
        let mut computations = self.reducers.into_iter().map(|(_, _, reducer)| reducer).collect::<Vec<_>>();
        let entry_computation_id = entry.id;
        computations.push(entry);
        proto::HloModuleProto {
            name: self.program.name.clone(),
            entry_computation_name: "main".into(),
            entry_computation_id,
            computations,
            host_program_shape: Some(program_shape),
            id: 1,
            input_output_alias: Some(alias_proto(&self.program.aliases)),
        }
    }

    /// Adds an instruction and returns its id.
    fn push(
        &mut self,
        opcode: &str,
        shape: proto::ShapeProto,
        operand_ids: Vec<i64>,
        fill: impl FnOnce(&mut proto::HloInstructionProto),
    ) -> i64 {
        let mut instruction = proto::HloInstructionProto { operand_ids, ..self.instruction(opcode, shape) };
        fill(&mut instruction);
        let id = instruction.id;
        self.instructions.push(instruction);
        id
    }

    /// An instruction with an id and a name of its own, of no computation yet.
    fn instruction(&mut self, opcode: &str, shape: proto::ShapeProto) -> proto::HloInstructionProto {
        let id = self.fresh_id();
        proto::HloInstructionProto {
            name: self.names.claim(&format!("{opcode}.{id}")),
            opcode: opcode.into(),
            shape: Some(shape),
            id,
            ..Default::default()
        }
    }

    fn fresh_id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn node(&mut self, id: NodeId, node: &Node) {
        if matches!(node.op, Op::StopGradient) {
            return;
        }
        let graph = self.program.graph;
        let operands =
            node.inputs.iter().map(|input| self.emitted[&resolve(graph, *input)]).collect::<Vec<_>>();
        let mut shape = array_shape(&node.shape);
        let mut called = vec![];
        match &node.op {
            Op::Reduce { kind, .. } => called.push(self.reducer(*kind, node.shape.element_type)),
            Op::ScatterAdd | Op::AllReduce | Op::ReduceScatter { .. } => {
                called.push(self.reducer(Reduction::Sum, node.shape.element_type));
            }
            Op::RngBitGenerator { .. } => {
                shape = tuple_shape(&[Shape::new(ElementType::U64, [2]), node.shape.clone()]);
            }
            _ => {}
        }
        let number = self.program.parameters.iter().position(|tensor| tensor.id == id);
        let parameter = number.map(|number| (number as i64, self.parameter_names[number].clone()));
        let attributes = |instruction: &mut proto::HloInstructionProto| {
            instruction.called_computation_ids = called;
            let op_name = node.scope.to_string();
            instruction.metadata = Some(proto::OpMetadata { op_type: node.op.name().into(), op_name });
            if let Some(parameter) = parameter {
                (instruction.parameter_number, instruction.name) = parameter;
            }
            write_attributes(&node.op, graph, node, instruction);
        };
        let mut instruction = self.push(node.op.name(), shape, operands, attributes);
        if let Op::RngBitGenerator { .. } = node.op {
            // The new state is not needed: every draw has a key of its own.
            let bits = array_shape(&node.shape);
            instruction = self.push("get-tuple-element", bits, vec![instruction], |i| i.tuple_index = 1);
        }
        self.emitted.insert(id, instruction);
    }

    /// The computation `(a, b) -> a + b` or `max(a, b)` on scalars.
    fn reducer(&mut self, kind: Reduction, element_type: ElementType) -> i64 {
        if let Some((_, _, found)) = self.reducers.iter().find(|(k, e, _)| (*k, *e) == (kind, element_type)) {
            return found.id;
        }
        let shape = array_shape(&Shape::scalar(element_type));
        let mut instruction = |opcode: &str| self.instruction(opcode, shape.clone());
        let a = instruction("parameter");
        let b = proto::HloInstructionProto { parameter_number: 1, ..instruction("parameter") };
        let combined =
            proto::HloInstructionProto { operand_ids: vec![a.id, b.id], ..instruction(kind.combiner()) };
        let (root_id, id) = (combined.id, self.fresh_id());
        let computation = proto::HloComputationProto {
            name: format!("{}_{element_type}", kind.combiner()),
            instructions: vec![a, b, combined],
            program_shape: Some(proto::ProgramShapeProto {
                parameters: vec![shape.clone(); 2],
                result: Some(shape.clone()),
                parameter_names: vec!["a".into(), "b".into()],
            }),
            id,
            root_id,
        };
        self.reducers.push((kind, element_type, computation));
        id
    }
}

/// The attributes of `op` beyond shape and operands.
fn write_attributes(op: &Op, graph: &Graph, node: &Node, instruction: &mut proto::HloInstructionProto) {
    let i64s = |dims: &[usize]| dims.iter().map(|d| *d as i64).collect::<Vec<_>>();
    match op {
        Op::Parameter { .. } | Op::ReplicaId | Op::Unary(_) | Op::Binary(_) | Op::Select => {}
        Op::Convert(_) | Op::BitcastConvert(_) | Op::Reshape { .. } => {}
        // No replica groups: all replicas are one group.
        Op::AllReduce | Op::StopGradient => {}
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
        Op::DotGeneral(dims) => {
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

fn literal(scalar: Scalar) -> proto::LiteralProto {
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

fn alias_proto(aliases: &[(usize, usize)]) -> proto::HloInputOutputAliasProto {
    let entry = |(output, parameter): &(usize, usize)| proto::AliasEntryProto {
        output_shape_index: vec![*output as i64],
        parameter_number: *parameter as i64,
        parameter_shape_index: vec![],
        kind: proto::MUST_ALIAS,
    };
    proto::HloInputOutputAliasProto { entries: aliases.iter().map(entry).collect() }
}

fn array_shape(shape: &Shape) -> proto::ShapeProto {
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

fn tuple_shape(shapes: &[Shape]) -> proto::ShapeProto {
    proto::ShapeProto {
        element_type: primitive::TUPLE,
        tuple_shapes: shapes.iter().map(array_shape).collect(),
        ..Default::default()
    }
}
