//! A complete program: some inputs and outputs of a graph.

use super::graph::{Graph, Node, NodeId, Tensor};
use super::op::Op;
use crate::shape::Shape;

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

    /// The nodes that an output depends on, and every parameter, in topological order.
    pub(super) fn live_nodes(&self) -> Vec<(NodeId, Node)> {
        let mut live = self.graph.reaching(&self.outputs.iter().map(|tensor| tensor.id).collect::<Vec<_>>());
        self.parameters.iter().for_each(|tensor| live[tensor.id] = true);
        (0..live.len()).filter(|id| live[*id]).map(|id| (id, self.graph.node(id))).collect()
    }
}

/// The node whose value `id` has: [`Op::StopGradient`], [`Op::Derived`] and [`Op::Barrier`] change nothing.
pub(super) fn resolve(graph: &Graph, mut id: NodeId) -> NodeId {
    loop {
        let node = graph.node(id);
        match node.op {
            Op::StopGradient | Op::Barrier | Op::Derived(_) => id = node.inputs[0],
            _ => return id,
        }
    }
}

/// The outputs among `nodes` of the loop that `node` is one of, and their nodes.
pub(super) fn loop_outputs(nodes: &[(NodeId, Node)], node: &Node) -> Vec<(usize, NodeId)> {
    let Op::While { body, .. } = &node.op else { return vec![] };
    let output = |(id, other): &(NodeId, Node)| match &other.op {
        Op::While { body: its, output } if its == body && other.inputs == node.inputs => Some((*output, *id)),
        _ => None,
    };
    nodes.iter().filter_map(output).collect()
}
