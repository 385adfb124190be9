//! A program as HLO text, written for people: one instruction a line, grouped by layer.

use std::collections::HashMap;
use std::fmt::Write;

use super::emit::{Program, resolve};
use super::graph::{Graph, Node, NodeId};
use super::names::Names;
use super::op::{Op, Reduction, Scalar};
use crate::shape::{ElementType, Shape};

impl Program<'_> {
    /// HLO text. Parameters keep their names, other values are named by operation and numbered in the order they are computed, and a
    /// comment opens each layer's part.
    pub fn to_text(&self) -> String {
        let nodes = self.live_nodes();
        let mut taken = Names::default();
        let names = self.names(&nodes, &mut taken);
        let name = |id: NodeId| names[&resolve(self.graph, id)].as_str();
        let mut text = self.header();
        text.push_str(&reducers(&nodes));
        text.push_str("ENTRY main {\n");
        for (number, parameter) in self.parameters.iter().enumerate() {
            let _ = writeln!(text, "  {} = {} parameter({number})", name(parameter.id), parameter.shape());
        }
        let mut scope = "";
        for (id, node) in nodes.iter().filter(|(_, node)| is_written(&node.op)) {
            if *node.scope != *scope {
                scope = &node.scope;
                let _ = writeln!(text, "\n  // {}", if scope.is_empty() { "(top level)" } else { scope });
            }
            let inputs = node.inputs.iter().map(|input| name(*input)).collect::<Vec<_>>();
            let _ = writeln!(text, "  {}", instruction(self.graph, name(*id), node, &inputs));
        }
        let outputs = self.outputs.iter().map(|tensor| name(tensor.id)).collect::<Vec<_>>().join(", ");
        let shapes = shape_list(&self.output_shapes());
        let result = taken.claim("result");
        let _ = writeln!(text, "\n  ROOT %{result} = ({shapes}) tuple({outputs})\n}}");
        text
    }

    fn header(&self) -> String {
        let mut text = format!("HloModule {}", self.name);
        if !self.aliases.is_empty() {
            let alias = |(output, parameter): &(usize, usize)| {
                format!("{{{output}}}: ({parameter}, {{}}, must-alias)")
            };
            let aliases = self.aliases.iter().map(alias).collect::<Vec<_>>().join(", ");
            let _ = write!(text, ", input_output_alias={{ {aliases} }}");
        }
        text.push_str("\n\n");
        text
    }

    /// `%name` of each node that is written. A number is the node's place among all, parameters included.
    fn names(&self, nodes: &[(NodeId, Node)], taken: &mut Names) -> HashMap<NodeId, String> {
        let parameters = self.parameters.iter().zip(self.parameter_names(taken));
        let mut names =
            parameters.map(|(tensor, name)| (tensor.id, format!("%{name}"))).collect::<HashMap<_, _>>();
        let values = nodes.iter().filter(|(_, node)| !matches!(node.op, Op::StopGradient));
        for (number, (id, node)) in values.enumerate() {
            let name = || format!("%{}", taken.claim(&format!("{}.{number}", node.op.name())));
            names.entry(*id).or_insert_with(name);
        }
        names
    }
}

fn is_written(op: &Op) -> bool {
    !matches!(op, Op::Parameter { .. } | Op::StopGradient)
}

/// The small computations that reduce, scatter, all-reduce and reduce-scatter call.
fn reducers(nodes: &[(NodeId, Node)]) -> String {
    let mut used = nodes.iter().filter_map(|(_, node)| reducer(node)).collect::<Vec<_>>();
    used.sort_by_key(|(kind, element_type)| (*kind as u8, *element_type));
    used.dedup();
    let mut text = String::new();
    for (kind, element_type) in used {
        let opcode = kind.combiner();
        let _ = writeln!(
            text,
            "{} {{\n  %a = {element_type}[] parameter(0)\n  %b = {element_type}[] parameter(1)\n  \
             ROOT %r = {element_type}[] {opcode}(%a, %b)\n}}\n",
            reducer_name(kind, element_type)
        );
    }
    text
}

fn reducer(node: &Node) -> Option<(Reduction, ElementType)> {
    let kind = match node.op {
        Op::Reduce { kind, .. } => kind,
        Op::ScatterAdd | Op::AllReduce | Op::ReduceScatter { .. } => Reduction::Sum,
        _ => return None,
    };
    Some((kind, node.shape.element_type))
}

fn reducer_name(kind: Reduction, element_type: ElementType) -> String {
    format!("%{}_{element_type}", kind.combiner())
}

fn instruction(graph: &Graph, name: &str, node: &Node, inputs: &[&str]) -> String {
    let mut operands = inputs.join(", ");
    let shape = &node.shape;
    match &node.op {
        Op::Constant(scalar) => operands = scalar_text(*scalar),
        Op::RngBitGenerator { .. } => {
            let state = "u64[2]";
            return format!(
                "{name}.generator = ({state}, {shape}) rng-bit-generator({operands}), algorithm=rng_default\n  \
                 {name} = {shape} get-tuple-element({name}.generator), index=1"
            );
        }
        _ => {}
    }
    let mut text = format!("{name} = {shape} {}({operands}){}", node.op.name(), attributes(graph, node));
    if let Some((kind, element_type)) = reducer(node) {
        let _ = write!(text, ", to_apply={}", reducer_name(kind, element_type));
    }
    text
}

fn attributes(graph: &Graph, node: &Node) -> String {
    match &node.op {
        Op::Parameter { .. } | Op::Constant(_) | Op::ReplicaId | Op::Unary(_) | Op::Binary(_) => {
            String::new()
        }
        Op::Select | Op::Convert(_) | Op::BitcastConvert(_) | Op::Reshape { .. } => String::new(),
        Op::RngBitGenerator { .. } | Op::StopGradient => String::new(),
        Op::AllReduce => ", replica_groups={}".into(),
        Op::AllGather { .. } | Op::ReduceScatter { .. } => ", replica_groups={}, dimensions={0}".into(),
        Op::Iota { dim, .. } => format!(", iota_dimension={dim}"),
        Op::Compare(comparison) => format!(", direction={}", comparison.name()),
        Op::Broadcast { mapping, .. } => format!(", dimensions={}", list(mapping)),
        Op::Transpose { permutation } => format!(", dimensions={}", list(permutation)),
        Op::Concatenate { dim } => format!(", dimensions={{{dim}}}"),
        Op::Reduce { dims, .. } => format!(", dimensions={}", list(dims)),
        Op::Slice { start, limit, stride } => {
            let range = |d: usize| match stride[d] {
                1 => format!("[{}:{}]", start[d], limit[d]),
                by => format!("[{}:{}:{by}]", start[d], limit[d]),
            };
            format!(", slice={{{}}}", (0..start.len()).map(range).collect::<Vec<_>>().join(", "))
        }
        Op::Pad { low, high, interior } => {
            let dim = |d: usize| format!("{}_{}_{}", low[d], high[d], interior[d]);
            format!(", padding={}", (0..low.len()).map(dim).collect::<Vec<_>>().join("x"))
        }
        Op::DotGeneral(dims) => {
            let mut text = String::new();
            for (label, dims) in [
                ("lhs_batch_dims", &dims.lhs_batch),
                ("lhs_contracting_dims", &dims.lhs_contracting),
                ("rhs_batch_dims", &dims.rhs_batch),
                ("rhs_contracting_dims", &dims.rhs_contracting),
            ] {
                if !dims.is_empty() {
                    let _ = write!(text, ", {label}={}", list(dims));
                }
            }
            text
        }
        Op::Gather => {
            let last = node.shape.rank() - 1;
            format!(
                ", offset_dims={{{last}}}, collapsed_slice_dims={{0}}, start_index_map={{0}}, \
                 index_vector_dim={last}, slice_sizes={{1,{}}}",
                node.shape.dims[last]
            )
        }
        Op::ScatterAdd => {
            let last = graph.node(node.inputs[1]).shape.rank();
            format!(
                ", update_window_dims={{{last}}}, inserted_window_dims={{0}}, scatter_dims_to_operand_dims={{0}}, \
                 index_vector_dim={last}"
            )
        }
    }
}

fn scalar_text(scalar: Scalar) -> String {
    match scalar.element_type {
        ElementType::Pred => (scalar.bits() != 0).to_string(),
        ElementType::F32 => (scalar.to_f64() as f32).to_string(),
        _ => scalar.to_f64().to_string(),
    }
}

fn list(dims: &[usize]) -> String {
    format!("{{{}}}", dims.iter().map(usize::to_string).collect::<Vec<_>>().join(","))
}

fn shape_list(shapes: &[Shape]) -> String {
    shapes.iter().map(Shape::to_string).collect::<Vec<_>>().join(", ")
}
