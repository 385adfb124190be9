//! How a step holds the weights, and how the replicas' gradients become one update of them: the seam between the model, the
//! backward pass and the optimizer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::signature::{Dealt, Interface, Layout, LeafId, OutputId};
use super::{InputId, Precision, StepConfig};
use crate::hlo::{Graph, Tensor};
use crate::model::Classifier;
use crate::nn::{Access, Params, Spread, Weight};
use crate::shape::{ElementType, Shape};

/// Rows of a share of a matrix are a multiple of this: the height of a tile of TPU's registers.
const TILE: usize = 8;

/// The width of a tile.
const LANES: usize = 128;

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

/// A weight as a step holds it: what it takes of it as state, and what the forward pass is given.
///
/// Mirrored, every replica has all of it, and makes the same update of the sum of all replicas' gradients. Dealt out, each
/// has a share, in `f32`, with its moments, and updates that alone (Xu et al., "Automatic Cross-Replica Sharding of Weight
/// Update in Data-Parallel Training", 2020; ZeRO's first stage): the forward pass gathers the shares. What is read in part
/// only, as a table is, and what is multiplied with less than it holds, stays where its shares are, as long as less travels
/// then.
#[derive(Clone)]
pub(super) struct Held<'g> {
    pub given: Given<'g>,
    /// `f32`: this replica's.
    pub own: Tensor<'g>,
    /// The same in bfloat16, as the last update left it.
    rounded: Option<Tensor<'g>>,
    replicas: Replicas,
}

/// A weight as the forward pass is given it.
#[derive(Clone)]
pub(super) struct Given<'g> {
    pub weight: Weight,
    pub layout: Layout,
    /// Whether it is what this replica has, of a weight that is dealt out.
    stays: bool,
    /// The shape of what this replica has.
    own_dims: Vec<usize>,
    /// Of the weight's own type, or rounded.
    pub passed: Tensor<'g>,
    /// The same in `f32`: gradients are of this.
    pub read: Tensor<'g>,
    /// Over so many replicas it is dealt out.
    replicas: usize,
    /// In which gradients travel.
    gradient_type: ElementType,
}

/// The model of `config`, and all of its weights, as parameters of `graph`.
pub(super) fn hold<'g>(graph: &'g Graph, config: &StepConfig) -> (Classifier<'g>, Vec<Held<'g>>) {
    let held = Rc::new(RefCell::new(vec![]));
    let model = build(graph, config, {
        let (held, config) = (held.clone(), config.clone());
        move |weight| {
            let one = Held::new(graph, weight, &config);
            let spread = one.given.spread();
            held.borrow_mut().push(one);
            spread
        }
    });
    (model, held.take())
}

/// The model of `config` in another graph, to which what the weights' [`Given::passed`] stand for is passed, in the order of
/// `held`, as parameters.
pub(super) fn pass<'g>(
    graph: &'g Graph,
    config: &StepConfig,
    held: &[Held<'_>],
) -> (Classifier<'g>, Vec<Given<'g>>) {
    let given = held.iter().map(|held| held.given.again(graph)).collect::<Vec<_>>();
    let places = given.iter().map(|given| (given.weight.name.clone(), given.spread()));
    let places = places.collect::<HashMap<_, _>>();
    // The same model has the same weights.
    let model = build(graph, config, move |weight| places[&weight.name]);
    (model, given)
}

fn build<'g>(
    graph: &'g Graph,
    config: &StepConfig,
    source: impl Fn(&Weight) -> Spread<'g> + 'g,
) -> Classifier<'g> {
    Classifier::new(&config.model, graph, &Params::from(source))
}

impl<'g> Held<'g> {
    fn new(graph: &'g Graph, weight: &Weight, config: &StepConfig) -> Self {
        let replicas = Replicas { count: config.replicas };
        let execution = config.execution;
        let (layout, stays) = layout(weight, config);
        let own_dims = match layout {
            Layout::Mirrored | Layout::Sharded => weight.shape.dims.clone(),
            Layout::Dealt(dealt) => part_dims(weight, dealt),
        };
        let parameter = |leaf: LeafId, element_type| {
            graph.parameter(leaf.to_string(), Shape::new(element_type, &own_dims[..]))
        };
        let own = parameter(weight.leaf(), weight.shape.element_type);
        let is_trained = !config.training.freeze.keeps(weight);
        let is_matrix = weight.shape.rank() > 1 && weight.access != Access::Rows;
        let is_rounded = execution.precision == Precision::Bf16 && is_matrix;
        let rounded = (is_rounded && is_trained)
            .then(|| parameter(LeafId::Rounded(weight.name.clone()), ElementType::Bf16));
        let own_given = match rounded {
            Some(rounded) => rounded,
            None if is_rounded => own.convert(ElementType::Bf16),
            None => own,
        };
        let passed = match layout {
            Layout::Dealt(dealt) if !stays => {
                let all = own_given.all_gather(replicas.count);
                all.narrow(0, 0, dealt.size).reshape(&weight.shape.dims)
            }
            _ => own_given,
        };
        let gradient_type =
            if is_matrix { execution.gradient_precision.element_type() } else { ElementType::F32 };
        let read = passed.convert(ElementType::F32);
        let weight = weight.clone();
        let replicas_count = replicas.count;
        let given =
            Given { weight, layout, stays, own_dims, passed, read, replicas: replicas_count, gradient_type };
        Self { given, own, rounded, replicas }
    }

    /// The gradient of [`own`](Self::own) over all replicas, of the sum of [`own_part`](Given::own_part) over all parts.
    pub fn reduce(&self, own_part: Tensor<'g>) -> Tensor<'g> {
        match self.given.layout {
            Layout::Mirrored | Layout::Sharded => {
                let part = own_part.convert(self.given.gradient_type);
                self.replicas.sum(part).convert(ElementType::F32)
            }
            Layout::Dealt(_) => own_part,
        }
    }

    pub fn weight(&self) -> &Weight {
        &self.given.weight
    }

    /// Takes, as inputs, what `outputs` depend on of it.
    pub fn adopt(&self, interface: &mut Interface<'g>, outputs: &[Tensor<'g>]) {
        let leaves = [(self.weight().leaf(), Some(self.own)), (self.rounded_leaf(), self.rounded)];
        for (leaf, tensor) in leaves {
            if let Some(tensor) =
                tensor.filter(|tensor| outputs.iter().any(|output| output.depends_on(*tensor)))
            {
                interface.adopt(InputId::Leaf(leaf), tensor, self.given.layout);
            }
        }
    }

    /// Takes all of it as inputs, to be updated.
    pub fn adopt_all(&self, interface: &mut Interface<'g>) {
        interface.adopt(InputId::Leaf(self.weight().leaf()), self.own, self.given.layout);
        if let Some(rounded) = self.rounded {
            interface.adopt(InputId::Leaf(self.rounded_leaf()), rounded, self.given.layout);
        }
    }

    /// Returns it updated.
    pub fn publish(&self, interface: &mut Interface<'g>, updated: Tensor<'g>) {
        interface.output(OutputId::Leaf(self.weight().leaf()), updated, self.given.layout);
        if self.rounded.is_some() {
            let rounded = updated.convert(ElementType::Bf16);
            interface.output(OutputId::Leaf(self.rounded_leaf()), rounded, self.given.layout);
        }
    }

    fn rounded_leaf(&self) -> LeafId {
        LeafId::Rounded(self.weight().name.clone())
    }
}

impl<'g> Given<'g> {
    fn again<'n>(&self, graph: &'n Graph) -> Given<'n> {
        let passed = graph.parameter(&*self.weight.name, self.passed.shape());
        let (weight, own_dims) = (self.weight.clone(), self.own_dims.clone());
        let Self { layout, stays, replicas, gradient_type, .. } = *self;
        let read = passed.convert(ElementType::F32);
        Given { weight, layout, stays, own_dims, passed, read, replicas, gradient_type }
    }

    fn spread(&self) -> Spread<'g> {
        Spread { tensor: self.read, replicas: if self.stays { self.replicas } else { 1 } }
    }

    /// What a replica holds of the gradient of one part of its examples: that of its share over all replicas' parts, if it
    /// has a share, else of its own part alone.
    pub fn own_part(&self, gradient: Tensor<'g>) -> Tensor<'g> {
        match self.layout {
            Layout::Dealt(dealt) if !self.stays => {
                let dims = [self.replicas * dealt.part, dealt.inner];
                let rows = gradient.convert(self.gradient_type).reshape(&[dealt.size, dealt.inner]);
                let missing = dims[0] - dealt.size;
                let rows = if missing == 0 {
                    rows
                } else {
                    rows.pad(rows.like(0.0), &[0, 0], &[missing, 0], &[0, 0])
                };
                let own = rows.reduce_scatter_sum(self.replicas);
                own.convert(ElementType::F32).reshape(&self.own_dims)
            }
            // What stays was reached from all replicas.
            _ => gradient,
        }
    }
}

/// The Euclidean norm of all gradients together, `f32[]`, over all replicas, of what [`Held::reduce`] has made of each.
pub(super) fn norm<'g>(held: &[Held<'g>], reduced: &[Option<Tensor<'g>>], replicas: Replicas) -> Tensor<'g> {
    let sum = |is_dealt: bool| {
        let of_layout = |held: &Held<'g>| matches!(held.given.layout, Layout::Dealt(_)) == is_dealt;
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

/// How a weight lies over the replicas; and, of one that is dealt out, whether its shares stay where they are.
fn layout(weight: &Weight, config: &StepConfig) -> (Layout, bool) {
    let (dims, replicas) = (&weight.shape.dims, config.replicas);
    if !config.execution.sharded || replicas == 1 || dims.len() < 2 {
        return (Layout::Mirrored, false);
    }
    // A tile's height for each replica, or at least rows that are together as large as a tile.
    let part = match dims[0].div_ceil(replicas) {
        part if dims[0] >= replicas * TILE => part.next_multiple_of(TILE),
        part if dims[0] >= replicas && weight.shape.num_elements() >= replicas * TILE * LANES => part,
        _ => return (Layout::Mirrored, false),
    };
    let rows = Dealt { outer: 1, size: dims[0], inner: dims[1..].iter().product(), part };
    // Of all replicas: what they look up, or multiply, goes to each share, and what comes of it back.
    let texts = config.rows * replicas;
    match weight.access {
        Access::Whole => (Layout::Dealt(rows), false),
        Access::Rows => (Layout::Dealt(rows), texts * config.length <= dims[0]),
        Access::Features { positions } => {
            let features = dims[1] / positions;
            if features.is_multiple_of(replicas) && texts <= dims[1] {
                let part = features / replicas;
                let dealt = Dealt { outer: dims[0] * positions, size: features, inner: 1, part };
                (Layout::Dealt(dealt), true)
            } else {
                (Layout::Dealt(rows), false)
            }
        }
    }
}

/// The shape of a replica's share.
fn part_dims(weight: &Weight, dealt: Dealt) -> Vec<usize> {
    let dims = &weight.shape.dims;
    match weight.access {
        Access::Features { positions } if dealt.outer > 1 => vec![dims[0], positions * dealt.part],
        _ => [&[dealt.part], &dims[1..]].concat(),
    }
}
