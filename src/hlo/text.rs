//! A program as HLO text, written for people: one instruction a line, grouped by layer.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;

use super::graph::{Graph, Node, NodeId, Tensor};
use super::loops::{Function, Loop};
use super::names::Names;
use super::op::{Op, Reduction, Scalar};
use super::program::{Program, loop_outputs, resolve};
use crate::shape::{ElementType, Shape};

impl Program<'_> {
    /// HLO text. Parameters keep their names, other values are named by operation and numbered in the order they are computed, and a
    /// comment opens each layer's part.
    pub fn to_text(&self) -> String {
        let mut text = Text::default();
        let parameters = self.parameter_names(&mut text.names);
        let mut entry = "ENTRY main {\n".to_owned();
        let mut names = HashMap::new();
        for (number, (tensor, name)) in self.parameters.iter().zip(parameters).enumerate() {
            let _ = writeln!(entry, "  %{name} = {} parameter({number})", tensor.shape());
            names.insert(tensor.id, format!("%{name}"));
        }
        text.nodes(self, "", &mut names, &mut entry);
        let outputs = outputs(self, &names);
        let shapes = shape_list(&self.output_shapes());
        let result = text.names.claim("result");
        let _ = writeln!(entry, "\n  ROOT %{result} = ({shapes}) tuple({outputs})\n}}");
        format!("{}{}{}{entry}", self.header(), text.reducers(), text.functions)
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
}

/// What the computations of one module share.
#[derive(Default)]
struct Text {
    names: Names,
    /// The small computations that reduce, scatter, all-reduce and reduce-scatter call.
    reducers: BTreeSet<(u8, ElementType)>,
    /// Those that loops call.
    functions: String,
}

impl Text {
    /// Writes to `text` the nodes of `program` that have no name yet; all names begin with `prefix`.
    fn nodes(
        &mut self,
        program: &Program<'_>,
        prefix: &str,
        names: &mut HashMap<NodeId, String>,
        text: &mut String,
    ) {
        let graph = program.graph;
        let nodes = program.live_nodes();
        let mut scope = String::new();
        // A number is the node's place among all, parameters included.
        let values = nodes
            .iter()
            .filter(|(_, node)| !matches!(node.op, Op::StopGradient | Op::Barrier | Op::Derived(_)));
        for (number, (id, node)) in values.enumerate() {
            if names.contains_key(id) {
                continue;
            }
            if *node.scope != *scope {
                scope = node.scope.to_string();
                let _ = writeln!(text, "\n  // {}", if scope.is_empty() { "(top level)" } else { &scope });
            }
            let inputs =
                node.inputs.iter().map(|input| names[&resolve(graph, *input)].clone()).collect::<Vec<_>>();
            let name = format!("%{}", self.names.claim(&format!("{prefix}{}.{number}", node.op.name())));
            if let Op::While { body, .. } = &node.op {
                self.while_loop(body, &name, &inputs, &loop_outputs(&nodes, node), names, text);
                continue;
            }
            self.reducers.extend(reducer(node).map(|(kind, element_type)| (kind as u8, element_type)));
            let _ = writeln!(text, "  {}", instruction(graph, &name, node, &inputs));
            names.insert(*id, name);
        }
    }

    /// A loop called `name`, with all of its `outputs` that are used, and their nodes.
    fn while_loop(
        &mut self,
        body: &Loop,
        name: &str,
        inputs: &[String],
        outputs: &[(usize, NodeId)],
        names: &mut HashMap<NodeId, String>,
        text: &mut String,
    ) {
        let (lowered, places) = body.lower(&outputs.iter().map(|(output, _)| *output).collect::<Vec<_>>());
        let (called, condition) = (
            self.function("body", &lowered.body, false),
            self.function("condition", &lowered.condition, true),
        );
        let start = format!("{name}.start");
        let _ = writeln!(text, "  {start} = s32[] constant(0)");
        let (carried, others) = inputs.split_at(body.carries());
        let mut state = [&[start], carried].concat();
        for (i, shape) in lowered.stacks.iter().enumerate() {
            let (zero, stack) = (format!("{name}.zero.{i}"), format!("{name}.stack.{i}"));
            let _ = writeln!(text, "  {zero} = {}[] constant(0)", shape.element_type);
            let _ = writeln!(text, "  {stack} = {shape} broadcast({zero}), dimensions={{}}");
            state.push(stack);
        }
        state.extend_from_slice(others);
        let shapes = lowered.body.program("body").parameter_shapes();
        let list = shape_list(&shapes);
        let _ = writeln!(text, "  {name}.state = ({list}) tuple({})", state.join(", "));
        let _ =
            writeln!(text, "  {name} = ({list}) while({name}.state), condition=%{condition}, body=%{called}");
        for ((output, id), place) in outputs.iter().zip(places) {
            let part = format!("{name}.{output}");
            let _ = writeln!(text, "  {part} = {} get-tuple-element({name}), index={place}", shapes[place]);
            names.insert(*id, part);
        }
    }

    /// Writes a function of one tuple, which gives the tuple of its outputs, or the single one that it has; gives its name.
    fn function(&mut self, name: &str, function: &Function, is_single: bool) -> String {
        let program = function.program(name);
        let own = self.names.claim(name);
        let shapes = program.parameter_shapes();
        let state = self.names.claim(&format!("{own}.state"));
        let mut text = format!("%{own} {{\n  %{state} = ({}) parameter(0)\n", shape_list(&shapes));
        let mut names = HashMap::new();
        for (index, (tensor, shape)) in program.parameters.iter().zip(&shapes).enumerate() {
            let part = self.names.claim(&format!("{own}.state.{index}"));
            let _ = writeln!(text, "  %{part} = {shape} get-tuple-element(%{state}), index={index}");
            names.insert(tensor.id, format!("%{part}"));
        }
        self.nodes(&program, &format!("{own}."), &mut names, &mut text);
        let outputs = outputs(&program, &names);
        if is_single {
            // All else is there for it: it comes last.
            text = text.replace(&format!("  {outputs} = "), &format!("  ROOT {outputs} = "));
        } else {
            let result = self.names.claim(&format!("{own}.result"));
            let _ = writeln!(text, "\n  ROOT %{result} = ({}) tuple({outputs})", shape_list(&shapes));
        }
        text.push_str("}\n\n");
        self.functions.push_str(&text);
        own
    }

    fn reducers(&self) -> String {
        let mut text = String::new();
        for kind in [Reduction::Sum, Reduction::Max] {
            let used = self.reducers.iter().filter(|(number, _)| *number == kind as u8);
            for (_, element_type) in used {
                let opcode = kind.combiner();
                let _ = writeln!(
                    text,
                    "{} {{\n  %a = {element_type}[] parameter(0)\n  %b = {element_type}[] parameter(1)\n  \
                     ROOT %r = {element_type}[] {opcode}(%a, %b)\n}}\n",
                    reducer_name(kind, *element_type)
                );
            }
        }
        text
    }
}

/// What the outputs of `program` are called.
fn outputs(program: &Program<'_>, names: &HashMap<NodeId, String>) -> String {
    let name = |tensor: &Tensor<'_>| names[&resolve(program.graph, tensor.id)].as_str();
    program.outputs.iter().map(name).collect::<Vec<_>>().join(", ")
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

fn instruction(graph: &Graph, name: &str, node: &Node, inputs: &[String]) -> String {
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
        Op::After => {
            let shapes = node.inputs.iter().map(|input| graph.node(*input).shape.to_string());
            let both = shapes.collect::<Vec<_>>().join(", ");
            return format!(
                "{name}.both = ({both}) tuple({operands})\n  \
                 {name}.barrier = ({both}) opt-barrier({name}.both)\n  \
                 {name} = {shape} get-tuple-element({name}.barrier), index=0"
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
        Op::RngBitGenerator { .. } | Op::StopGradient | Op::Barrier | Op::After | Op::Derived(_) => {
            String::new()
        }
        Op::DynamicUpdateSlice | Op::While { .. } => String::new(),
        Op::AllReduce => ", replica_groups={}".into(),
        Op::AllGather { .. } | Op::ReduceScatter { .. } => ", replica_groups={}, dimensions={0}".into(),
        Op::AllToAll { replicas } => {
            let group = list(&(0..*replicas).collect::<Vec<_>>());
            format!(", replica_groups={{{group}}}, dimensions={{0}}")
        }
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
        Op::DynamicSlice { sizes } => format!(", dynamic_slice_sizes={}", list(sizes)),
        Op::Pad { low, high, interior } => {
            let dim = |d: usize| format!("{}_{}_{}", low[d], high[d], interior[d]);
            format!(", padding={}", (0..low.len()).map(dim).collect::<Vec<_>>().join("x"))
        }
        Op::DotGeneral { dimensions: dims, .. } => {
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
        // Whole: not all of them are numbers of f64.
        ElementType::U8 | ElementType::U32 | ElementType::U64 => scalar.bits().to_string(),
        ElementType::S32 => (scalar.bits() as i32).to_string(),
        ElementType::S64 => (scalar.bits() as i64).to_string(),
        ElementType::F16 | ElementType::Bf16 | ElementType::F32 | ElementType::F64 => float_text(scalar),
    }
}

/// As XLA reads it: without a point or an exponent it is an integer, which may be too large and has no negative zero.
fn float_text(scalar: Scalar) -> String {
    let value = scalar.to_f64();
    let is_plain = value.abs() < 1e16 && !(value == 0.0 && value.is_sign_negative());
    match scalar.element_type {
        _ if value.is_nan() => "nan".into(),
        ElementType::F32 if is_plain => (value as f32).to_string(),
        ElementType::F32 => format!("{:?}", value as f32),
        _ if is_plain => value.to_string(),
        _ => format!("{value:?}"),
    }
}

fn list(dims: &[usize]) -> String {
    format!("{{{}}}", dims.iter().map(usize::to_string).collect::<Vec<_>>().join(","))
}

fn shape_list(shapes: &[Shape]) -> String {
    shapes.iter().map(Shape::to_string).collect::<Vec<_>>().join(", ")
}
