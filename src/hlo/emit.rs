//! A graph as a serialized `HloModuleProto`: this file and `messages.rs` alone know XLA's messages.

mod cpu;

use std::borrow::Cow;
use std::collections::HashMap;

use prost::Message;

use super::graph::{Node, NodeId};
use super::loops::{Function, Loop};
use super::messages::{alias_proto, array_shape, literal, metadata, tuple_shape, write_attributes};
use super::names::Names;
use super::op::{Op, Reduction, Scalar};
use super::program::{Program, loop_outputs};
use crate::proto;
use crate::shape::{ElementType, Shape};

impl Program<'_> {
    /// The serialized `HloModuleProto`.
    pub fn to_hlo_proto(&self) -> Vec<u8> {
        Emitter::default().module(self).encode_to_vec()
    }

    /// The same for XLA's CPU compiler, which is told more, so that it computes, moves and copies less. The values are the same.
    pub fn to_cpu_hlo_proto(&self) -> Vec<u8> {
        Emitter { widens: true, is_for_cpu: true, ..Emitter::default() }.module(self).encode_to_vec()
    }

    /// With the factors of products as wide as their sums, and no more of what the CPU is told.
    #[cfg(all(test, feature = "xla-extension"))]
    pub(super) fn to_widened_hlo_proto(&self) -> Vec<u8> {
        Emitter { widens: true, ..Emitter::default() }.module(self).encode_to_vec()
    }
}

/// What the computations of one module share.
#[derive(Default)]
struct Emitter {
    names: Names,
    /// Those that are whole: each after those that it calls.
    computations: Vec<proto::HloComputationProto>,
    /// Two-argument computations that reduce, scatter, all-reduce and reduce-scatter call.
    reducers: HashMap<(Reduction, ElementType), i64>,
    last_id: i64,
    /// See [`Program::to_cpu_hlo_proto`].
    is_for_cpu: bool,
    /// Whether the factors of products are converted to the type of their sums.
    widens: bool,
}

impl Emitter {
    fn module(mut self, program: &Program<'_>) -> proto::HloModuleProto {
        let parameter_names = program.parameter_names(&mut self.names);
        let mut block = Block::new(&mut self, program);
        block.nodes(&parameter_names);
        let mut outputs = block.outputs();
        if block.emitter.is_for_cpu {
            block.update_in_place(&mut outputs);
        }
        let result = tuple_shape(&program.output_shapes());
        let root_id = block.push("tuple", result.clone(), outputs, |_| ());
        let program_shape = proto::ProgramShapeProto {
            parameters: program.parameter_shapes().iter().map(array_shape).collect(),
            result: Some(result),
            parameter_names,
        };
        let entry_computation_id = block.finish("main".into(), root_id, program_shape.clone());
        proto::HloModuleProto {
            name: program.name.clone(),
            entry_computation_name: "main".into(),
            entry_computation_id,
            computations: self.computations,
            host_program_shape: Some(program_shape),
            id: 1,
            input_output_alias: Some(alias_proto(&program.aliases)),
        }
    }

    /// A function of one tuple, as a `while` calls it: gives the tuple of its outputs, or the single one that it has.
    fn function(&mut self, name: &str, function: &Function, is_single: bool) -> i64 {
        let program = function.program(name);
        let name = self.names.claim(name);
        let shapes = program.parameter_shapes();
        let state = tuple_shape(&shapes);
        let mut block = Block::new(self, &program);
        let parameter = block.push("parameter", state.clone(), vec![], |_| ());
        let parameter_names = vec![block.instructions[0].name.clone()];
        for (index, tensor) in program.parameters.iter().enumerate() {
            block.take(tensor.id, parameter, index, &shapes[index]);
        }
        block.nodes(&[]);
        let outputs = block.outputs();
        let (root_id, result) = match is_single {
            true => (outputs[0], array_shape(&program.outputs[0].shape())),
            false => (block.push("tuple", state.clone(), outputs, |_| ()), state.clone()),
        };
        let shape =
            proto::ProgramShapeProto { parameters: vec![state], result: Some(result), parameter_names };
        block.finish(name, root_id, shape)
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
        self.last_id += 1;
        self.last_id
    }

    /// The computation `(a, b) -> a + b` or `max(a, b)` on scalars.
    fn reducer(&mut self, kind: Reduction, element_type: ElementType) -> i64 {
        if let Some(found) = self.reducers.get(&(kind, element_type)) {
            return *found;
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
        self.computations.push(computation);
        self.reducers.insert((kind, element_type), id);
        id
    }
}

/// One computation while it is written.
struct Block<'e, 'p, 'g> {
    emitter: &'e mut Emitter,
    program: &'p Program<'g>,
    instructions: Vec<proto::HloInstructionProto>,
    /// Instruction of each node.
    emitted: HashMap<NodeId, i64>,
}

impl<'e, 'p, 'g> Block<'e, 'p, 'g> {
    fn new(emitter: &'e mut Emitter, program: &'p Program<'g>) -> Self {
        Self { emitter, program, instructions: vec![], emitted: HashMap::new() }
    }

    /// Writes all nodes that are not written yet; the parameters of a module are called `parameter_names`.
    fn nodes(&mut self, parameter_names: &[String]) {
        let nodes = self.program.live_nodes();
        for (id, node) in &nodes {
            match &node.op {
                _ if self.emitted.contains_key(id) => {}
                Op::StopGradient | Op::Derived(_) => {}
                Op::Barrier if !self.emitter.is_for_cpu => {}
                Op::Barrier => self.barrier(*id, node),
                Op::After if self.emitter.is_for_cpu => self.disguised(*id, node),
                Op::After => self.after(*id, node),
                Op::While { body, .. } => self.while_loop(body, node, &loop_outputs(&nodes, node)),
                _ => self.node(*id, node, parameter_names),
            }
        }
    }

    fn outputs(&self) -> Vec<i64> {
        self.operands(self.program.outputs.iter().map(|tensor| &tensor.id))
    }

    fn operands<'i>(&self, inputs: impl IntoIterator<Item = &'i NodeId>) -> Vec<i64> {
        inputs.into_iter().map(|input| self.value(*input)).collect()
    }

    /// The instruction that has the value of a node.
    fn value(&self, id: NodeId) -> i64 {
        match self.emitted.get(&id) {
            Some(instruction) => *instruction,
            None => self.value(self.program.graph.node(id).inputs[0]),
        }
    }

    fn finish(self, name: String, root_id: i64, shape: proto::ProgramShapeProto) -> i64 {
        let id = self.emitter.fresh_id();
        let instructions = self.instructions;
        self.emitter.computations.push(proto::HloComputationProto {
            name,
            instructions,
            program_shape: Some(shape),
            id,
            root_id,
        });
        id
    }

    /// Adds an instruction and returns its id.
    fn push(
        &mut self,
        opcode: &str,
        shape: proto::ShapeProto,
        operand_ids: Vec<i64>,
        fill: impl FnOnce(&mut proto::HloInstructionProto),
    ) -> i64 {
        let instruction = self.emitter.instruction(opcode, shape);
        let mut instruction = proto::HloInstructionProto { operand_ids, ..instruction };
        fill(&mut instruction);
        let id = instruction.id;
        self.instructions.push(instruction);
        id
    }

    fn node(&mut self, id: NodeId, node: &Node, parameter_names: &[String]) {
        let graph = self.program.graph;
        let mut operands = self.operands(&node.inputs);
        let mut op = Cow::Borrowed(&node.op);
        if let Op::DotGeneral { sums, dimensions } = &node.op
            && self.emitter.widens
        {
            self.widen(&node.inputs, &mut operands, *sums);
            let mut dimensions = dimensions.clone();
            if self.emitter.is_for_cpu {
                dimensions = self.merge(&node.inputs, &mut operands, &dimensions, *sums);
                if let Some(product) = self.turned(node, &operands, &dimensions, *sums) {
                    self.emitted.insert(id, product);
                    return;
                }
            }
            op = Cow::Owned(Op::DotGeneral { sums: *sums, dimensions });
        }
        let mut shape = array_shape(&node.shape);
        let mut called = vec![];
        match &node.op {
            Op::Reduce { kind, .. } => called.push(self.emitter.reducer(*kind, node.shape.element_type)),
            Op::ScatterAdd | Op::AllReduce | Op::ReduceScatter { .. } => {
                called.push(self.emitter.reducer(Reduction::Sum, node.shape.element_type));
            }
            Op::RngBitGenerator { .. } => {
                shape = tuple_shape(&[Shape::new(ElementType::U64, [2]), node.shape.clone()]);
            }
            _ => {}
        }
        let number = self.program.parameters.iter().position(|tensor| tensor.id == id);
        let parameter = number.map(|number| (number as i64, parameter_names[number].clone()));
        let attributes = |instruction: &mut proto::HloInstructionProto| {
            instruction.called_computation_ids = called;
            instruction.metadata = Some(metadata(node));
            if let Some(parameter) = parameter {
                (instruction.parameter_number, instruction.name) = parameter;
            }
            write_attributes(&op, graph, node, instruction);
        };
        let instruction = self.push(node.op.name(), shape, operands, attributes);
        match node.op {
            // The new state is not needed: every draw has a key of its own.
            Op::RngBitGenerator { .. } => self.take(id, instruction, 1, &node.shape),
            _ => _ = self.emitted.insert(id, instruction),
        }
    }

    /// Element `index` of a tuple, as the value of a node.
    fn take(&mut self, id: NodeId, tuple: i64, index: usize, shape: &Shape) {
        let part = |instruction: &mut proto::HloInstructionProto| instruction.tuple_index = index as i64;
        let instruction = self.push("get-tuple-element", array_shape(shape), vec![tuple], part);
        self.emitted.insert(id, instruction);
    }

    fn after(&mut self, id: NodeId, node: &Node) {
        let operands = self.operands(&node.inputs);
        let shapes = node.inputs.iter().map(|input| self.program.graph.node(*input).shape);
        let both = tuple_shape(&shapes.collect::<Vec<_>>());
        let tuple = self.push("tuple", both.clone(), operands, |_| ());
        let barrier = self.push(node.op.name(), both, vec![tuple], |instruction| {
            instruction.metadata = Some(metadata(node));
        });
        self.take(id, barrier, 0, &node.shape);
    }

    /// A loop with all of its `outputs` that are used, and their nodes.
    fn while_loop(&mut self, body: &Loop, node: &Node, outputs: &[(usize, NodeId)]) {
        let (lowered, places) = body.lower(&outputs.iter().map(|(output, _)| *output).collect::<Vec<_>>());
        let called = vec![
            self.emitter.function("body", &lowered.body, false),
            self.emitter.function("condition", &lowered.condition, true),
        ];
        let mut start = vec![self.zeros(&Shape::scalar(ElementType::S32))];
        let (carried, others) = node.inputs.split_at(body.carries());
        start.extend(self.operands(carried));
        for stack in &lowered.stacks {
            start.push(self.zeros(stack));
        }
        start.extend(self.operands(others));
        let shapes = lowered.body.program("body").parameter_shapes();
        let start = self.push("tuple", tuple_shape(&shapes), start, |_| ());
        let end = self.push("while", tuple_shape(&shapes), vec![start], |instruction| {
            instruction.called_computation_ids = called;
            instruction.metadata = Some(metadata(node));
        });
        for ((_, id), place) in outputs.iter().zip(places) {
            self.take(*id, end, place, &shapes[place]);
        }
    }

    fn constant(&mut self, scalar: Scalar) -> i64 {
        let shape = array_shape(&Shape::scalar(scalar.element_type));
        self.push("constant", shape, vec![], |one| one.literal = Some(literal(scalar)))
    }

    fn zeros(&mut self, shape: &Shape) -> i64 {
        let constant = self.constant(Scalar::new(shape.element_type, 0.0));
        if shape.rank() == 0 {
            return constant;
        }
        self.push("broadcast", array_shape(shape), vec![constant], |_| ())
    }
}
