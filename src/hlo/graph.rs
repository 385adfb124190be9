//! The graph: an append-only arena of nodes, each after its inputs, so its order is already topological.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::op::{Op, ShapeError};
use crate::shape::Shape;

/// Index of a node in its graph.
pub(super) type NodeId = usize;

/// One operation applied to earlier nodes.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub op: Op,
    pub inputs: Vec<NodeId>,
    pub shape: Shape,
    /// The layer that the node belongs to, such as `encoder/layer.0/attention`.
    pub scope: Rc<str>,
}

/// A program being built. [`Tensor`] is a handle to one of its nodes.
///
/// Equal operations on equal inputs are one node, so common subexpressions are never emitted twice.
///
/// ```
/// use bert_xla::hlo::Graph;
/// use bert_xla::shape::{ElementType, Shape};
///
/// let graph = Graph::new();
/// let x = graph.parameter("x", Shape::new(ElementType::F32, [2, 3]));
/// let y = (x * x).sum(&[0, 1]);
/// let dx = graph.gradients(y, &[x])[0].expect("x reaches y");
/// assert_eq!(dx.dims(), [2, 3]);
/// ```
#[derive(Default)]
pub struct Graph {
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    nodes: Vec<Node>,
    interned: HashMap<(Op, Vec<NodeId>), NodeId>,
    scope: Option<Rc<str>>,
}

/// A value of the graph: a cheap, copyable handle.
#[derive(Clone, Copy)]
pub struct Tensor<'g> {
    pub(super) graph: &'g Graph,
    pub(super) id: NodeId,
}

impl Graph {
    pub fn new() -> Self {
        Self::default()
    }

    /// An input of the program.
    pub fn parameter(&self, name: impl Into<String>, shape: Shape) -> Tensor<'_> {
        self.insert(Op::Parameter { name: name.into(), shape }, &[])
    }

    /// Applies `op` to `inputs`, or finds the node that already does.
    ///
    /// # Errors
    /// Shapes that `op` can't take.
    ///
    /// # Panics
    /// If an input is of another graph.
    #[track_caller]
    pub fn apply<'g>(&'g self, op: Op, inputs: &[Tensor<'g>]) -> Result<Tensor<'g>, ShapeError> {
        let ids = inputs.iter().map(|tensor| self.own(*tensor)).collect::<Vec<_>>();
        let key = (op, ids);
        let mut inner = self.inner.borrow_mut();
        if let Some(&id) = inner.interned.get(&key) {
            return Ok(Tensor { graph: self, id });
        }
        let shapes = key.1.iter().map(|id| &inner.nodes[*id].shape).collect::<Vec<_>>();
        let shape = key.0.shape(&shapes)?;
        let id = inner.nodes.len();
        let scope = inner.scope.clone().unwrap_or_else(|| Rc::from(""));
        inner.nodes.push(Node { op: key.0.clone(), inputs: key.1.clone(), shape, scope });
        inner.interned.insert(key, id);
        Ok(Tensor { graph: self, id })
    }

    /// [`apply`](Self::apply) for the operators and methods of [`Tensor`], where a shape that doesn't fit is a
    /// mistake in the program that builds the graph.
    #[track_caller]
    pub(super) fn insert<'g>(&'g self, op: Op, inputs: &[Tensor<'g>]) -> Tensor<'g> {
        match self.apply(op, inputs) {
            Ok(tensor) => tensor,
            Err(error) => panic!("{error}"),
        }
    }

    /// Runs `build` with `name` appended to the path that its nodes carry as metadata.
    pub fn scope<T>(&self, name: &str, build: impl FnOnce() -> T) -> T {
        let outer = self.inner.borrow().scope.clone();
        let path = match outer.as_deref() {
            None | Some("") => name.to_owned(),
            Some(outer) => format!("{outer}/{name}"),
        };
        self.with_path(Rc::from(path), build)
    }

    /// Runs `build` with the whole path replaced.
    pub(super) fn with_path<T>(&self, path: Rc<str>, build: impl FnOnce() -> T) -> T {
        let outer = self.inner.borrow_mut().scope.replace(path);
        let built = build();
        self.inner.borrow_mut().scope = outer;
        built
    }

    /// The path that nodes are given now.
    pub(super) fn path(&self) -> Rc<str> {
        self.inner.borrow().scope.clone().unwrap_or_else(|| Rc::from(""))
    }

    /// The node of this operation on these inputs, if there is one.
    pub(super) fn find(&self, op: Op, inputs: Vec<NodeId>) -> Option<NodeId> {
        self.inner.borrow().interned.get(&(op, inputs)).copied()
    }

    /// The node of `tensor`, which must be of this graph: an id means nothing in another one.
    #[track_caller]
    pub(super) fn own(&self, tensor: Tensor<'_>) -> NodeId {
        assert!(std::ptr::eq(self, tensor.graph), "{tensor:?} belongs to another graph");
        tensor.id
    }

    pub(super) fn node(&self, id: NodeId) -> Node {
        self.inner.borrow().nodes[id].clone()
    }

    /// For each node, whether it is an ancestor of one of `roots` (or one of them).
    pub(super) fn reaching(&self, roots: &[NodeId]) -> Vec<bool> {
        let inner = self.inner.borrow();
        let mut reaches = vec![false; inner.nodes.len()];
        for root in roots {
            reaches[*root] = true;
        }
        for id in (0..inner.nodes.len()).rev() {
            if reaches[id] {
                inner.nodes[id].inputs.iter().for_each(|input| reaches[*input] = true);
            }
        }
        reaches
    }

    /// For each node, whether one of `sources` is among its ancestors (or is it).
    pub(super) fn reached_from(&self, sources: &[NodeId]) -> Vec<bool> {
        let inner = self.inner.borrow();
        let mut reached = vec![false; inner.nodes.len()];
        for source in sources {
            reached[*source] = true;
        }
        for (id, node) in inner.nodes.iter().enumerate() {
            reached[id] |= node.inputs.iter().any(|input| reached[*input]);
        }
        reached
    }
}

impl<'g> Tensor<'g> {
    pub fn graph(self) -> &'g Graph {
        self.graph
    }

    pub fn shape(self) -> Shape {
        self.graph.inner.borrow().nodes[self.id].shape.clone()
    }

    pub fn dims(self) -> Vec<usize> {
        self.shape().dims
    }

    /// Size of dimension `dim`.
    pub fn dim(self, dim: usize) -> usize {
        self.graph.inner.borrow().nodes[self.id].shape.dims[dim]
    }

    /// Whether `other` is this tensor, or one that it is computed from.
    pub fn depends_on(self, other: Tensor<'g>) -> bool {
        self.graph.reaching(&[self.id])[other.id]
    }

    pub fn rank(self) -> usize {
        self.graph.inner.borrow().nodes[self.id].shape.rank()
    }
}

impl PartialEq for Tensor<'_> {
    /// The same node of the same graph.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.graph, other.graph) && self.id == other.id
    }
}

impl Eq for Tensor<'_> {}

impl std::fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "%{}: {}", self.id, self.shape())
    }
}
