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

/// A declared weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Checkpoint key and parameter name, such as `bert.encoder.layer.0.output.dense.weight`.
    pub name: String,
    pub shape: Shape,
    pub init: Init,
    pub part: Part,
}

/// The weights of a model, in the order of their declaration.
pub struct Params<'g> {
    graph: &'g Graph,
    element_type: ElementType,
    declared: RefCell<Vec<(Weight, Tensor<'g>)>>,
}

impl<'g> Params<'g> {
    /// No weights yet; all of them will be of `element_type`.
    pub fn new(graph: &'g Graph, element_type: ElementType) -> Self {
        Self { graph, element_type, declared: RefCell::default() }
    }

    /// The top of the tree of names, for weights of `part`.
    pub fn root(&self, part: Part) -> ParamPath<'_, 'g> {
        ParamPath { params: self, path: String::new(), part }
    }

    /// Every weight declared so far, with its graph parameter.
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
        let shape = Shape::new(self.params.element_type, dims);
        let name = self.full(name);
        let tensor = self.params.graph.parameter(name.clone(), shape.clone());
        self.params.declared.borrow_mut().push((Weight { name, shape, init, part: self.part }, tensor));
        tensor
    }

    fn full(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}
