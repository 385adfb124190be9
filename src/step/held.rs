//! How a step holds the weights, and how the replicas' gradients become one update of them: the seam between the model, the
//! backward pass and the optimizer.

use std::cell::RefCell;

use super::signature::{Dealt, Interface, Layout, LeafId, OutputId};
use super::{InputId, Precision, StepConfig};
use crate::hlo::{Graph, Tensor};
use crate::model::Classifier;
use crate::nn::{Access, Params, Spread, Weight};
use crate::shape::{ElementType, Shape};

/// Rows of a share of a matrix are a multiple of this: the height of a tile of TPU's registers.
const TILE: usize = 8;

/// The replicas of a step.
#[derive(Clone, Copy)]
pub(super) struct Replicas {
    pub count: usize,
}

impl Replicas {
    /// The sum over the replicas.
    pub fn sum<'g>(self, tensor: Tensor<'g>) -> Tensor<'g> {
        if self.count == 1 { tensor } else { tensor.all_reduce_sum() }
    }
}

/// A weight as a step holds it: what it takes of it as state, and what the forward pass reads.
///
/// Mirrored, every replica has all of it, and makes the same update of the sum of all replicas' gradients. Dealt out, each
/// has a share, in `f32`, with its moments, and updates that alone (Xu et al., "Automatic Cross-Replica Sharding of Weight
/// Update in Data-Parallel Training", 2020; ZeRO's first stage): the forward pass gathers the shares. What is read in part
/// only, as a table is, and what is multiplied with less than it holds, stays where its shares are.
#[derive(Clone)]
pub(super) struct Held<'g> {
    pub weight: Weight,
    pub layout: Layout,
    /// `f32`: this replica's.
    pub own: Tensor<'g>,
    /// The same in bfloat16, as the last update left it.
    rounded: Option<Tensor<'g>>,
    /// `f32`: what the forward pass reads, and gradients are of.
    pub read: Tensor<'g>,
    replicas: Replicas,
    /// In which gradients travel.
    gradient_type: ElementType,
}

/// The model of `config`, and all of its weights, as parameters of `graph`.
pub(super) fn hold<'g>(graph: &'g Graph, config: &StepConfig) -> (Classifier<'g>, Vec<Held<'g>>) {
    let held = std::rc::Rc::new(RefCell::new(vec![]));
    let params = Params::from({
        let (held, config) = (held.clone(), config.clone());
        move |weight| {
            let one = Held::new(graph, weight, &config);
            let spread = Spread { tensor: one.read, replicas: one.spread() };
            held.borrow_mut().push(one);
            spread
        }
    });
    let model = Classifier::new(&config.model, graph, &params);
    let held = held.borrow().clone();
    (model, held)
}

impl<'g> Held<'g> {
    fn new(graph: &'g Graph, weight: &Weight, config: &StepConfig) -> Self {
        let replicas = Replicas { count: config.replicas };
        let execution = config.execution;
        let layout = layout(weight, replicas.count, execution.sharded);
        let shape = match layout {
            Layout::Mirrored | Layout::Sharded => weight.shape.clone(),
            Layout::Dealt(dealt) => Shape::new(weight.shape.element_type, part_dims(weight, dealt)),
        };
        let parameter = |leaf: LeafId, shape| graph.parameter(leaf.to_string(), shape);
        let own = parameter(weight.leaf(), shape.clone());
        let is_trained = !config.training.freeze.keeps(weight);
        let is_matrix = weight.shape.rank() > 1 && weight.access != Access::Rows;
        let is_rounded = execution.precision == Precision::Bf16 && is_matrix;
        let rounded = (is_rounded && is_trained).then(|| {
            parameter(LeafId::Rounded(weight.name.clone()), Shape::new(ElementType::Bf16, shape.dims))
        });
        let given = match rounded {
            Some(rounded) => rounded,
            None if is_rounded => own.convert(ElementType::Bf16),
            None => own,
        };
        let read = match (layout, weight.access) {
            (Layout::Dealt(dealt), Access::Whole) => {
                let all = given.all_gather(replicas.count);
                all.narrow(0, 0, dealt.size).reshape(&weight.shape.dims)
            }
            _ => given,
        };
        let gradient_type =
            if is_matrix { execution.gradient_precision.element_type() } else { ElementType::F32 };
        let read = read.convert(ElementType::F32);
        Self { weight: weight.clone(), layout, own, rounded, read, replicas, gradient_type }
    }

    /// Over how many replicas what the forward pass reads is spread.
    fn spread(&self) -> usize {
        let stays = matches!(self.layout, Layout::Dealt(_)) && self.weight.access != Access::Whole;
        if stays { self.replicas.count } else { 1 }
    }

    /// What a replica holds of the gradient of one part of its examples: that of its share over all replicas' parts, if it
    /// has a share, else of its own part alone.
    pub fn own_part(&self, gradient: Tensor<'g>) -> Tensor<'g> {
        match self.layout {
            Layout::Dealt(dealt) if self.weight.access == Access::Whole => {
                let dims = [self.replicas.count * dealt.part, dealt.inner];
                let rows = gradient.convert(self.gradient_type).reshape(&[dealt.size, dealt.inner]);
                let missing = dims[0] - dealt.size;
                let rows = if missing == 0 {
                    rows
                } else {
                    rows.pad(rows.like(0.0), &[0, 0], &[missing, 0], &[0, 0])
                };
                let own = rows.reduce_scatter_sum(self.replicas.count);
                own.convert(ElementType::F32).reshape(&self.own.dims())
            }
            // What stays was reached from all replicas.
            _ => gradient,
        }
    }

    /// The gradient of [`own`](Self::own) over all replicas, of the sum of [`own_part`](Self::own_part) over all parts.
    pub fn reduce(&self, own_part: Tensor<'g>) -> Tensor<'g> {
        match self.layout {
            Layout::Mirrored | Layout::Sharded => {
                self.replicas.sum(own_part.convert(self.gradient_type)).convert(ElementType::F32)
            }
            Layout::Dealt(_) => own_part,
        }
    }

    /// The parameters that stand for it.
    pub fn parameters(&self) -> Vec<Tensor<'g>> {
        [self.own].into_iter().chain(self.rounded).collect()
    }

    /// Takes, as inputs, what `outputs` depend on of it.
    pub fn adopt(&self, interface: &mut Interface<'g>, outputs: &[Tensor<'g>]) {
        let leaves = [(self.weight.leaf(), Some(self.own)), (self.rounded_leaf(), self.rounded)];
        for (leaf, tensor) in leaves {
            if let Some(tensor) =
                tensor.filter(|tensor| outputs.iter().any(|output| output.depends_on(*tensor)))
            {
                interface.adopt(InputId::Leaf(leaf), tensor, self.layout);
            }
        }
    }

    /// Takes all of it as inputs, to be updated.
    pub fn adopt_all(&self, interface: &mut Interface<'g>) {
        interface.adopt(InputId::Leaf(self.weight.leaf()), self.own, self.layout);
        if let Some(rounded) = self.rounded {
            interface.adopt(InputId::Leaf(self.rounded_leaf()), rounded, self.layout);
        }
    }

    /// Returns it updated.
    pub fn publish(&self, interface: &mut Interface<'g>, updated: Tensor<'g>) {
        interface.output(OutputId::Leaf(self.weight.leaf()), updated, self.layout);
        if self.rounded.is_some() {
            let rounded = updated.convert(ElementType::Bf16);
            interface.output(OutputId::Leaf(self.rounded_leaf()), rounded, self.layout);
        }
    }

    fn rounded_leaf(&self) -> LeafId {
        LeafId::Rounded(self.weight.name.clone())
    }
}

/// The Euclidean norm of all gradients together, `f32[]`, over all replicas, of what [`Held::reduce`] has made of each.
pub(super) fn norm<'g>(held: &[Held<'g>], reduced: &[Option<Tensor<'g>>], replicas: Replicas) -> Tensor<'g> {
    let sum = |is_dealt: bool| {
        let of_layout = |held: &Held<'g>| matches!(held.layout, Layout::Dealt(_)) == is_dealt;
        let gradients =
            held.iter().zip(reduced).filter(|(held, _)| of_layout(held)).filter_map(|(_, one)| *one);
        let squares = gradients.map(|one| one.square().sum(&(0..one.rank()).collect::<Vec<_>>()));
        squares.reduce(|sum, term| sum + term)
    };
    // Of shares, each replica has others.
    let sums = [sum(false), sum(true).map(|shares| replicas.sum(shares))];
    // There is a head, which is always trained.
    sums.into_iter().flatten().reduce(|a, b| a + b).expect("a gradient").sqrt()
}

/// How a weight lies over the replicas.
fn layout(weight: &Weight, replicas: usize, sharded: bool) -> Layout {
    let dims = &weight.shape.dims;
    if !sharded || replicas == 1 || dims.len() < 2 {
        return Layout::Mirrored;
    }
    // A tile for each replica, at least.
    let rows = || {
        let part = dims[0].div_ceil(replicas).next_multiple_of(TILE);
        let inner = dims[1..].iter().product();
        let dealt = Dealt { outer: 1, size: dims[0], inner, part };
        (dims[0] >= replicas * TILE).then_some(dealt)
    };
    let dealt = match weight.access {
        Access::Whole | Access::Rows => rows(),
        Access::Features { positions } => {
            let features = dims[1] / positions;
            let part = features / replicas;
            let dealt = Dealt { outer: dims[0] * positions, size: features, inner: 1, part };
            features.is_multiple_of(replicas).then_some(dealt)
        }
    };
    dealt.map_or(Layout::Mirrored, Layout::Dealt)
}

/// The shape of a replica's share.
fn part_dims(weight: &Weight, dealt: Dealt) -> Vec<usize> {
    let dims = &weight.shape.dims;
    match weight.access {
        Access::Whole | Access::Rows => [&[dealt.part], &dims[1..]].concat(),
        Access::Features { positions } => vec![dims[0], positions * dealt.part],
    }
}
