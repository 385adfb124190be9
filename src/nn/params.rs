//! One declaration makes a weight everything that it is: graph parameter, checkpoint key, shape and initial value.

use std::cell::RefCell;

use crate::hlo::{Graph, Tensor};
use crate::shape::{ElementType, Shape};

/// How a weight that no checkpoint gives starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Zeros,
    Ones,
    /// Normal with mean 0 and this standard deviation (BERT's `initializer_range`).
    Normal(f32),
    /// Uniform in +-sqrt(6 / (fan_in + fan_out)) of a `[out, in]` matrix (Glorot and Bengio, 2010; Keras' default).
    GlorotUniform,
    /// Columns of an `[out, in]` matrix that are orthogonal and of length 1, uniform among all such, or rows if there are
    /// fewer of those (Saxe et al., 2013; Keras' for recurrent kernels).
    Orthogonal,
    /// 1 for the forget gates of an LSTM, the second of four equal parts, and else 0 (Jozefowicz et al., 2015; Keras'
    /// `unit_forget_bias`).
    ForgetGate,
}

/// The part of a classifier that a weight is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A pretrained checkpoint has it.
    Encoder,
    /// The encoder's pooler, which not every checkpoint has.
    Pooler,
    /// It starts as declared.
    Head,
}

/// How the forward pass reads a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// All of it.
    Whole,
    /// A table, of which it reads the rows of a batch's tokens.
    Rows,
    /// A matrix `[out, positions * features]`, which it multiplies with vectors that are features of so many positions, one
    /// position after another.
    Features { positions: usize },
}

/// A declared weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Checkpoint key and parameter name, such as `bert.encoder.layer.0.output.dense.weight`.
    pub name: String,
    pub shape: Shape,
    pub init: Init,
    pub part: Part,
    pub access: Access,
}

/// A weight of which each of some replicas has an equal part: of one replica alone, all.
#[derive(Clone, Copy)]
pub struct Spread<'g> {
    /// Of a table `[rows, width]` with [`Access::Rows`], the `i`-th replica's: `rows / replicas` of them, or more, which fill
    /// up the last one's. With [`Access::Features`], `[out, positions * features / replicas]`: its part of each position's.
    pub tensor: Tensor<'g>,
    pub replicas: usize,
}

/// Where the values of weights come from, in a graph.
type Source<'g> = Box<dyn Fn(&Weight) -> Spread<'g> + 'g>;

/// The weights of a model, in the order of their declaration.
pub struct Params<'g> {
    element_type: ElementType,
    source: Source<'g>,
    declared: RefCell<Vec<(Weight, Tensor<'g>)>>,
}

impl<'g> Params<'g> {
    /// No weights yet; all of them will be of `element_type`, and parameters of the graph.
    pub fn new(graph: &'g Graph, element_type: ElementType) -> Self {
        let parameter = |weight: &Weight| graph.parameter(weight.name.clone(), weight.shape.clone());
        let source = move |weight: &Weight| Spread { tensor: parameter(weight), replicas: 1 };
        Self { element_type, source: Box::new(source), declared: RefCell::default() }
    }

    /// No weights yet: `source` is to give each, an `f32`. It gives all of one that is read whole.
    pub fn from(source: impl Fn(&Weight) -> Spread<'g> + 'g) -> Self {
        Self { element_type: ElementType::F32, source: Box::new(source), declared: RefCell::default() }
    }

    /// The top of the tree of names, for weights of `part`.
    pub fn root(&self, part: Part) -> ParamPath<'_, 'g> {
        ParamPath { params: self, path: String::new(), part }
    }

    /// Every weight declared so far, with what stands for it in the graph.
    pub fn declared(&self) -> Vec<(Weight, Tensor<'g>)> {
        self.declared.borrow().clone()
    }
}

/// A place in the tree of names. [`pp`](Self::pp) goes down as `cd` does.
#[derive(Clone)]
pub struct ParamPath<'p, 'g> {
    params: &'p Params<'g>,
    path: String,
    part: Part,
}

impl<'g> ParamPath<'_, 'g> {
    pub fn pp(&self, name: &str) -> Self {
        Self { path: self.full(name), ..self.clone() }
    }

    /// This place, for weights of another part.
    pub fn part(&self, part: Part) -> Self {
        Self { part, ..self.clone() }
    }

    /// Declares the weight `name` here.
    pub fn get(&self, name: &str, dims: &[usize], init: Init) -> Tensor<'g> {
        self.declare(name, dims, init, Access::Whole).tensor
    }

    /// Declares a weight of which each replica may have a part.
    pub fn spread(&self, name: &str, dims: &[usize], init: Init, access: Access) -> Spread<'g> {
        self.declare(name, dims, init, access)
    }

    fn declare(&self, name: &str, dims: &[usize], init: Init, access: Access) -> Spread<'g> {
        let shape = Shape::new(self.params.element_type, dims);
        let weight = Weight { name: self.full(name), shape, init, part: self.part, access };
        let spread = (self.params.source)(&weight);
        self.params.declared.borrow_mut().push((weight, spread.tensor));
        spread
    }

    fn full(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}
