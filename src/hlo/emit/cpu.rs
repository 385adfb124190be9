//! What XLA's CPU compiler is to be told, and others need not be: where it computes a value again, moves one, or copies one,
//! though it need not.

use std::collections::HashMap;

use super::{Block, Emitter};
use crate::hlo::graph::{Graph, Node, NodeId};
use crate::hlo::messages::{array_shape, metadata, write_attributes};
use crate::hlo::op::{DotDimensions, Op, Scalar};
use crate::proto;
use crate::shape::{ElementType, Shape};

/// Elements of an array from which on a copy is worth avoiding.
const LARGE: usize = 1 << 14;

/// Rows up to which a weight takes longer to pack than to multiply with.
const FEW_ROWS: usize = 512;

impl Emitter {
    /// A branch of a [barrier](Block::barrier): gives its argument back, or its negative.
    fn branch(&mut self, shape: &Shape, negative: bool) -> i64 {
        let array = array_shape(shape);
        let parameter = self.instruction("parameter", array.clone());
        let mut root_id = parameter.id;
        let parameter_names = vec![parameter.name.clone()];
        let mut instructions = vec![parameter];
        if negative {
            let operand_ids = vec![root_id];
            let negate =
                proto::HloInstructionProto { operand_ids, ..self.instruction("negate", array.clone()) };
            root_id = negate.id;
            instructions.push(negate);
        }
        let id = self.fresh_id();
        let name = self.names.claim(if negative { "never" } else { "always" });
        let program_shape = proto::ProgramShapeProto {
            parameters: vec![array.clone()],
            result: Some(array),
            parameter_names,
        };
        let program_shape = Some(program_shape);
        self.computations.push(proto::HloComputationProto { name, instructions, program_shape, id, root_id });
        id
    }
}

impl Block<'_, '_, '_> {
    /// Converts the operands of a product to the type of its sums.
    pub(super) fn widen(&mut self, inputs: &[NodeId], operands: &mut [i64], sums: ElementType) {
        for (input, operand) in inputs.iter().zip(operands) {
            let Shape { element_type, dims } = self.program.graph.node(*input).shape;
            if element_type != sums {
                *operand = self.push("convert", array_shape(&Shape::new(sums, dims)), vec![*operand], |_| ());
            }
        }
    }

    /// Makes one dimension of several that a product contracts, where that moves nothing, and says which are which then: the CPU's
    /// compiler would transpose the operands, which are of `element_type`.
    pub(super) fn merge(
        &mut self,
        inputs: &[NodeId],
        operands: &mut [i64],
        dimensions: &DotDimensions,
        element_type: ElementType,
    ) -> DotDimensions {
        let DotDimensions { lhs_batch, rhs_batch: _, lhs_contracting, rhs_contracting } = dimensions;
        let is_run = |dims: &[usize]| dims.windows(2).all(|pair| pair[1] == pair[0] + 1);
        let runs = [lhs_contracting, rhs_contracting];
        if !lhs_batch.is_empty() || lhs_contracting.len() < 2 || !runs.iter().all(|dims| is_run(dims)) {
            return dimensions.clone();
        }
        for ((input, operand), run) in inputs.iter().zip(operands).zip(runs) {
            let mut dims = self.program.graph.node(*input).shape.dims;
            let merged = run.iter().map(|dim| dims[*dim]).product();
            dims.splice(run[0]..run[0] + run.len(), [merged]);
            let shape = array_shape(&Shape::new(element_type, dims));
            *operand = self.push("reshape", shape, vec![*operand], |_| ());
        }
        let [lhs_contracting, rhs_contracting] = runs.map(|run| vec![run[0]]);
        DotDimensions { lhs_contracting, rhs_contracting, ..Default::default() }
    }

    /// The product of a few rows and a weight `[out, in]`, computed as the weight's with the rows and then transposed. Else oneDNN
    /// packs the weight anew, which takes far longer than the product itself does: MiniLM's answer to one text took 10 ms, of
    /// which this was 6. `None` for any other product.
    pub(super) fn turned(
        &mut self,
        node: &Node,
        operands: &[i64],
        dimensions: &DotDimensions,
        sums: ElementType,
    ) -> Option<i64> {
        let graph = self.program.graph;
        let [rows, weight] = [node.inputs[0], node.inputs[1]].map(|id| graph.node(id).shape.dims);
        let DotDimensions { lhs_batch, lhs_contracting, rhs_contracting, .. } = dimensions;
        let (_, outer) = rows.split_last()?;
        let is_linear = lhs_batch.is_empty() && *lhs_contracting == [outer.len()] && *rhs_contracting == [1];
        let is_small =
            outer.iter().product::<usize>() <= FEW_ROWS && weight.iter().product::<usize>() >= LARGE;
        let is_weight = || matches!(graph.node(origin(graph, node.inputs[1])).op, Op::Parameter { .. });
        if !is_linear || weight.len() != 2 || !is_small || !is_weight() {
            return None;
        }
        let turned = Shape::new(sums, [&weight[..1], outer].concat());
        let dimensions = DotDimensions {
            lhs_contracting: rhs_contracting.clone(),
            rhs_contracting: lhs_contracting.clone(),
            ..Default::default()
        };
        let op = Op::DotGeneral { sums, dimensions };
        let product =
            self.push(op.name(), array_shape(&turned), vec![operands[1], operands[0]], |instruction| {
                instruction.metadata = Some(metadata(node));
                write_attributes(&op, graph, node, instruction);
            });
        // Or the compiler makes the same of it again.
        let product = self.times_one(product, &turned, None);
        let order = (1..=outer.len() as i64).chain([0]).collect();
        Some(self.push("transpose", array_shape(&node.shape), vec![product], |instruction| {
            instruction.dimensions = order;
            instruction.metadata = Some(metadata(node));
        }))
    }

    /// The value itself, or else what it never is: a choice that the CPU's compiler can't make, and fuses nothing with. (What
    /// XLA has for this, an `opt-barrier`, is gone there before it fuses.)
    pub(super) fn barrier(&mut self, id: NodeId, node: &Node) {
        let value = self.value(node.inputs[0]);
        let always = self.always();
        let called = vec![self.emitter.branch(&node.shape, false), self.emitter.branch(&node.shape, true)];
        let choice =
            self.push("conditional", array_shape(&node.shape), vec![always, value, value], |instruction| {
                instruction.called_computation_ids = called;
                instruction.metadata = Some(metadata(node));
            });
        self.emitted.insert(id, choice);
    }

    /// `pred[]`: true, which the CPU's compiler can't know.
    fn always(&mut self) -> i64 {
        let replica = self.push("replica-id", array_shape(&Shape::scalar(ElementType::U32)), vec![], |_| ());
        let most = self.constant(Scalar::new(ElementType::U32, f64::from(u32::MAX)));
        let always = array_shape(&Shape::scalar(ElementType::Pred));
        self.push("compare", always, vec![replica, most], |one| one.comparison_direction = "NE".into())
    }

    /// The value, once another one is there, in a way that the CPU's compiler doesn't take what is computed from it for what
    /// is computed from the value.
    pub(super) fn disguised(&mut self, id: NodeId, node: &Node) {
        let value = self.value(node.inputs[0]);
        let product = self.once(value, &node.shape, node.inputs[1]);
        self.emitted.insert(id, product);
    }

    /// `value`, of this shape, times a 1 of which the CPU's compiler doesn't know that it isn't computed from node `other`. No
    /// bit changes, and this fuses with what reads it. (An `opt-barrier` is gone too early.)
    fn once(&mut self, value: i64, shape: &Shape, other: NodeId) -> i64 {
        let other = self.any_element(other, shape.element_type);
        self.times_one(value, shape, Some(other))
    }

    /// `value`, of this shape, times a 1 of which the CPU's compiler doesn't know that it isn't `other`, a scalar, or else 2.
    fn times_one(&mut self, value: i64, shape: &Shape, other: Option<i64>) -> i64 {
        let one = self.constant(Scalar::new(shape.element_type, 1.0));
        let other = other.unwrap_or_else(|| self.constant(Scalar::new(shape.element_type, 2.0)));
        let always = self.always();
        let scalar = array_shape(&Shape::scalar(shape.element_type));
        let one = self.push("select", scalar, vec![always, one, other], |_| ());
        let ones = self.push("broadcast", array_shape(shape), vec![one], |_| ());
        self.push("multiply", array_shape(shape), vec![value, ones], |_| ())
    }

    /// An element of a node's value, as a scalar of `element_type`; 1 where it has none.
    fn any_element(&mut self, id: NodeId, element_type: ElementType) -> i64 {
        let shape = self.program.graph.node(id).shape;
        if shape.num_elements() == 0 {
            return self.constant(Scalar::new(element_type, 1.0));
        }
        let first = Shape::new(shape.element_type, vec![1; shape.rank()]);
        let value = self.value(id);
        let first = self.push("slice", array_shape(&first), vec![value], |instruction| {
            let dimension = proto::SliceDimensions { start: 0, limit: 1, stride: 1 };
            instruction.slice_dimensions = vec![dimension; shape.rank()];
        });
        let scalar = array_shape(&Shape::scalar(shape.element_type));
        let first = self.push("reshape", scalar, vec![first], |_| ());
        self.push("convert", array_shape(&Shape::scalar(element_type)), vec![first], |_| ())
    }

    /// Has outputs take over their parameters' memory without a copy. The compiler makes one of a parameter where something
    /// reads it of which it doesn't know that it comes before the output, as a layer's gradient with respect to its input does
    /// not before its weight's update: now it does.
    pub(super) fn update_in_place(&mut self, outputs: &mut [i64]) {
        let graph = self.program.graph;
        let mut products = HashMap::<NodeId, Vec<NodeId>>::new();
        for (id, node) in self.program.live_nodes() {
            if let Op::DotGeneral { .. } = node.op {
                let factors = node.inputs.iter().map(|input| origin(graph, *input));
                factors.for_each(|factor| products.entry(factor).or_default().push(id));
            }
        }
        for (output, parameter) in &self.program.aliases {
            let (result, parameter) =
                (self.program.outputs[*output].id, self.program.parameters[*parameter].id);
            let shape = graph.node(result).shape;
            let Some(readers) = products.get(&parameter) else { continue };
            if shape.num_elements() < LARGE || !shape.element_type.is_float() {
                continue;
            }
            let before = graph.reaching(&[result]);
            for reader in readers.iter().filter(|reader| !before[**reader]) {
                outputs[*output] = self.once(outputs[*output], &shape, *reader);
            }
        }
    }
}

/// The node whose values `id` has, moved or converted.
fn origin(graph: &Graph, mut id: NodeId) -> NodeId {
    loop {
        let Node { op, inputs, .. } = graph.node(id);
        match op {
            Op::Convert(_) | Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } => id = inputs[0],
            _ => return id,
        }
    }
}
