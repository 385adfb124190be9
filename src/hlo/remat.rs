//! Rematerialization: what the backward pass reads of the forward pass is computed again once it is read, and isn't in memory
//! until then (Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost").

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::str::FromStr;

use super::graph::{Graph, Node, NodeId, Tensor};
use super::op::Op;
use crate::shape::ElementType;

/// What is in memory of the forward pass until the backward pass reads it. The rest is computed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residuals {
    /// All that it reads.
    #[default]
    All,
    /// What [`Barriers`](Self::Barriers) keeps, and products: JAX's policy `checkpoint_dots`.
    Products,
    /// [Barriers](Tensor::barrier), and what is small or costly: reductions, rows of tables, what replicas and loops give.
    Barriers,
}

impl Residuals {
    /// What users call it, where it is not the default.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Products => Some("cheap"),
            Self::Barriers => Some("layers"),
        }
    }
}

/// Parses `cheap` and `layers`.
impl FromStr for Residuals {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = [Self::Products, Self::Barriers].into_iter().find(|one| one.name() == Some(text));
        found.ok_or_else(|| "expected cheap or layers".to_owned())
    }
}

/// The copies of the forward pass' nodes that its backward pass reads, each by the node that it is a copy of.
pub(super) struct Recomputed {
    residuals: Residuals,
    copies: RefCell<HashMap<NodeId, NodeId>>,
}

/// What becomes of a node of the forward pass.
enum Fate {
    /// It is kept, and so is what is computed from nothing else than such nodes: mostly it is small.
    Kept,
    /// It is kept, and what is computed from it is computed again, once the gradient is there.
    Fenced,
    /// It is computed again.
    Again,
}

impl Recomputed {
    pub fn new(residuals: Residuals) -> Self {
        Self { residuals, copies: RefCell::default() }
    }

    /// The value of node `id`, for what follows from `gradient`.
    pub fn value<'g>(&self, id: NodeId, gradient: Tensor<'g>) -> Tensor<'g> {
        let graph = gradient.graph;
        let id = match self.fate(graph, &graph.node(id)) {
            Fate::Again => self.copy(id, gradient),
            Fate::Kept | Fate::Fenced => id,
        };
        Tensor { graph, id }
    }

    fn fate(&self, graph: &Graph, node: &Node) -> Fate {
        let keeps_products = self.residuals == Residuals::Products;
        let is_product = |id: NodeId| matches!(graph.node(id).op, Op::DotGeneral { .. });
        match &node.op {
            _ if self.residuals == Residuals::All => Fate::Kept,
            Op::Parameter { .. } | Op::Constant(_) | Op::Iota { .. } | Op::ReplicaId => Fate::Kept,
            Op::Reduce { .. } | Op::ScatterAdd | Op::While { .. } | Op::After => Fate::Kept,
            Op::AllReduce | Op::AllGather { .. } | Op::ReduceScatter { .. } | Op::AllToAll { .. } => {
                Fate::Kept
            }
            // There is no 1 to multiply them by.
            Op::Barrier | Op::Gather if node.shape.element_type == ElementType::Pred => Fate::Kept,
            Op::Barrier | Op::Gather => Fate::Fenced,
            Op::DotGeneral { .. } if keeps_products => Fate::Fenced,
            // Rounded, it is smaller.
            Op::Convert(_) if keeps_products && is_product(node.inputs[0]) => Fate::Fenced,
            _ => Fate::Again,
        }
    }

    /// What a copy reads in place of node `id`: a copy, or the node itself if it is kept.
    fn copy(&self, id: NodeId, gradient: Tensor<'_>) -> NodeId {
        if let Some(found) = self.copies.borrow().get(&id) {
            return *found;
        }
        let graph = gradient.graph;
        let node = graph.node(id);
        let fenced = |id| Tensor { graph, id }.after(gradient).id;
        let insert = |inputs: Vec<NodeId>| {
            let inputs = inputs.into_iter().map(|id| Tensor { graph, id }).collect::<Vec<_>>();
            let path = Rc::from(format!("gradient/{}", node.scope));
            graph.with_path(path, || graph.insert(node.op.clone(), &inputs).id)
        };
        let copy = match (self.fate(graph, &node), &node.op) {
            (Fate::Kept, _) => id,
            (Fate::Fenced, _) => fenced(id),
            (Fate::Again, Op::Derived(_)) => self.copy(node.inputs[0], gradient),
            // What it is drawn from depends on parameters alone, and would make it one with the first draw.
            (Fate::Again, Op::RngBitGenerator { .. }) => insert(vec![fenced(node.inputs[0])]),
            (Fate::Again, _) => insert(node.inputs.iter().map(|input| self.copy(*input, gradient)).collect()),
        };
        self.copies.borrow_mut().insert(id, copy);
        copy
    }
}
