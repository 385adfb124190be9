//! A step's interface: every input and output has a name, and the order in which a program takes them is known here
//! alone.

use std::fmt;

use bytemuck::Pod;

use crate::hlo::{Graph, Program, Tensor};
use crate::nn::Weight;
use crate::shape::{ElementType, Shape};

/// An array of the state, which one step leaves to the next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LeafId {
    /// A weight, by its name.
    Weight(String),
    /// One of Adam's running means for the weight of that name.
    Moment(Moment, String),
    /// The weight of that name rounded to bfloat16, for the next forward pass.
    Rounded(String),
    /// `u32[]`: the steps done.
    Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Of the gradient.
    First,
    /// Of its square.
    Second,
}

/// An input of a step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum InputId {
    Leaf(LeafId),
    /// `f32[]`: at its highest.
    LearningRate,
    /// `f32[]`: steps in which the learning rate rises to that.
    WarmupSteps,
    /// `f32[]`: steps after which it has fallen to 0.
    TotalSteps,
    /// `u32[]`
    Seed,
    /// `f32[classes]`: how much an example of each class counts.
    ClassWeights,
    /// `s32[rows, length]`
    InputIds,
    /// `s32[rows, length]`: 1 for a token, 0 for padding.
    AttentionMask,
    /// `s32[rows]`: the class of each example.
    Labels,
    /// `f32[rows]`: 1 for an example, 0 for a row that only fills up the last batch.
    ExampleWeights,
    /// `f32[1]`: 1 where the replica's host asks all hosts to meet after this step, else 0.
    Meet,
}

/// An output of a step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OutputId {
    /// As the step leaves it, in its input's memory.
    Leaf(LeafId),
    /// `f32[3]`: over all replicas, the sum over examples of the loss, the number that the model got right, and the number
    /// of replicas whose host asks all hosts to meet.
    Metrics,
    /// `f32[]`: of all gradients together, over all replicas.
    GradientNorm,
    /// `f32[replicas * rows, classes]`
    Probabilities,
    /// `f32[replicas * rows, length, hidden]`
    HiddenStates,
}

/// How an array lies over the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Whole on each of them.
    Mirrored,
    /// Each has an equal part of the first dimension, in replica order.
    Sharded,
    /// Each has an equal part of some dimension.
    Dealt(Dealt),
}

/// How an array is dealt out to the replicas: seen as `[outer, size, inner]`, row-major, it is filled up with zeros to
/// `[outer, replicas * part, inner]`, of which each has `[outer, part, inner]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dealt {
    pub outer: usize,
    pub size: usize,
    pub inner: usize,
    pub part: usize,
}

impl Dealt {
    /// What `replica` has of `whole`, row-major.
    pub fn deal<T: Pod>(&self, whole: &[T], replica: usize) -> Vec<T> {
        let Self { outer, size, inner, part } = *self;
        let mut own = vec![T::zeroed(); self.part_elements()];
        let taken = self.taken(replica).len() * inner;
        for o in 0..outer {
            let start = (o * size + replica * part) * inner;
            if taken > 0 {
                own[o * part * inner..][..taken].copy_from_slice(&whole[start..start + taken]);
            }
        }
        own
    }

    /// Puts what `replica` has into its places in `whole`.
    pub fn collect<T: Copy>(&self, own: &[T], replica: usize, whole: &mut [T]) {
        let Self { outer, size, inner, part } = *self;
        let taken = self.taken(replica).len() * inner;
        for o in 0..outer {
            let start = (o * size + replica * part) * inner;
            if taken > 0 {
                whole[start..start + taken].copy_from_slice(&own[o * part * inner..][..taken]);
            }
        }
    }

    /// Number of elements that each replica has.
    pub fn part_elements(&self) -> usize {
        self.outer * self.part * self.inner
    }

    /// Number of elements of the whole.
    pub fn elements(&self) -> usize {
        self.outer * self.size * self.inner
    }

    /// The entries of the dimension that `replica` has.
    fn taken(&self, replica: usize) -> std::ops::Range<usize> {
        let start = (replica * self.part).min(self.size);
        start..((replica + 1) * self.part).min(self.size)
    }
}

/// What one replica takes or returns under a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Port<Id> {
    pub id: Id,
    /// Of one replica's part.
    pub shape: Shape,
    pub layout: Layout,
}

/// The inputs and outputs of a step's program, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct Signature {
    pub inputs: Vec<Port<InputId>>,
    pub outputs: Vec<Port<OutputId>>,
}

impl Signature {
    /// The state that it takes.
    pub fn leaves(&self) -> impl Iterator<Item = (&LeafId, &Port<InputId>)> {
        self.inputs.iter().filter_map(|port| match &port.id {
            InputId::Leaf(leaf) => Some((leaf, port)),
            _ => None,
        })
    }

    /// Whether it takes an input.
    pub fn takes(&self, id: &InputId) -> bool {
        self.inputs.iter().any(|port| port.id == *id)
    }

    /// Whether an input's memory goes to an output, so that the input must be donated.
    pub fn updates(&self, id: &InputId) -> bool {
        matches!(id, InputId::Leaf(leaf) if self.outputs.iter().any(|port| port.id == OutputId::Leaf(leaf.clone())))
    }

    /// `weights` without those that this step doesn't take.
    pub fn used<'w>(&self, weights: &'w [Weight]) -> Vec<&'w Weight> {
        let takes = |weight: &&Weight| self.takes(&InputId::Leaf(weight.leaf()));
        weights.iter().filter(takes).collect()
    }
}

impl Weight {
    /// Its place in the state.
    pub fn leaf(&self) -> LeafId {
        LeafId::Weight(self.name.clone())
    }
}

/// A step's program and what it takes and returns.
pub struct Step<'g> {
    pub program: Program<'g>,
    pub signature: Signature,
}

/// A step's interface while the step is built: inputs and outputs are declared in any order.
pub(super) struct Interface<'g> {
    graph: &'g Graph,
    inputs: Vec<(Port<InputId>, Tensor<'g>)>,
    outputs: Vec<(Port<OutputId>, Tensor<'g>)>,
}

impl<'g> Interface<'g> {
    pub fn new(graph: &'g Graph) -> Self {
        Self { graph, inputs: vec![], outputs: vec![] }
    }

    /// Declares an input; `shape` is one replica's.
    pub fn input(&mut self, id: InputId, shape: Shape, layout: Layout) -> Tensor<'g> {
        let tensor = self.graph.parameter(id.to_string(), shape);
        self.adopt(id, tensor, layout);
        tensor
    }

    /// Declares a scalar input.
    pub fn scalar(&mut self, id: InputId, element_type: ElementType) -> Tensor<'g> {
        self.input(id, Shape::scalar(element_type), Layout::Mirrored)
    }

    /// Declares a parameter that is there already.
    pub fn adopt(&mut self, id: InputId, tensor: Tensor<'g>, layout: Layout) {
        self.inputs.push((Port { id, shape: tensor.shape(), layout }, tensor));
    }

    pub fn output(&mut self, id: OutputId, tensor: Tensor<'g>, layout: Layout) {
        self.outputs.push((Port { id, shape: tensor.shape(), layout }, tensor));
    }

    /// The program: inputs and outputs in the order of [`InputId::place`] and [`OutputId::place`], and within one place as
    /// they were declared. What leaves the state's leaves updated takes over their memory.
    pub fn finish(mut self, name: &str) -> Step<'g> {
        self.inputs.sort_by_key(|(port, _)| port.id.place());
        self.outputs.sort_by_key(|(port, _)| port.id.place());
        let (inputs, parameters): (Vec<_>, Vec<_>) = self.inputs.into_iter().unzip();
        let (outputs, results): (Vec<_>, Vec<_>) = self.outputs.into_iter().unzip();
        let mut program = Program::new(name, parameters, results);
        for (index, port) in outputs.iter().enumerate() {
            let OutputId::Leaf(leaf) = &port.id else { continue };
            let is_it = |input: &Port<InputId>| matches!(&input.id, InputId::Leaf(id) if id == leaf);
            if let Some(parameter) = inputs.iter().position(is_it) {
                program.alias(index, parameter);
            }
        }
        Step { program, signature: Signature { inputs, outputs } }
    }
}

impl LeafId {
    fn place(&self) -> u8 {
        match self {
            Self::Weight(_) => 0,
            Self::Moment(Moment::First, _) => 1,
            Self::Moment(Moment::Second, _) => 2,
            Self::Rounded(_) => 3,
            Self::Step => 4,
        }
    }
}

impl InputId {
    /// Its place in the order of a program's parameters.
    fn place(&self) -> u8 {
        match self {
            Self::Leaf(leaf) => leaf.place(),
            Self::LearningRate => 5,
            Self::WarmupSteps => 6,
            Self::TotalSteps => 7,
            Self::Seed => 8,
            Self::ClassWeights => 9,
            Self::InputIds => 10,
            Self::AttentionMask => 11,
            Self::Labels => 12,
            Self::ExampleWeights => 13,
            Self::Meet => 14,
        }
    }
}

impl OutputId {
    /// Its place in the order of a program's results.
    fn place(&self) -> u8 {
        match self {
            Self::Leaf(leaf) => leaf.place(),
            Self::Metrics => 5,
            Self::GradientNorm => 6,
            Self::Probabilities => 7,
            Self::HiddenStates => 8,
        }
    }
}

/// The name of the program's parameter, and of the array in a file: a weight's own, `m.` and `v.` before it for its
/// moments, `step`.
impl fmt::Display for LeafId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weight(name) => f.write_str(name),
            Self::Moment(Moment::First, name) => write!(f, "m.{name}"),
            Self::Moment(Moment::Second, name) => write!(f, "v.{name}"),
            Self::Rounded(name) => write!(f, "rounded.{name}"),
            Self::Step => f.write_str("step"),
        }
    }
}

/// The name of the program's parameter.
impl fmt::Display for InputId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leaf(leaf) => return leaf.fmt(f),
            Self::LearningRate => "learning_rate",
            Self::WarmupSteps => "warmup_steps",
            Self::TotalSteps => "total_steps",
            Self::ClassWeights => "class_weights",
            Self::Seed => "seed",
            Self::InputIds => "input_ids",
            Self::AttentionMask => "attention_mask",
            Self::Labels => "labels",
            Self::ExampleWeights => "weights",
            Self::Meet => "meet",
        })
    }
}

impl fmt::Display for OutputId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leaf(leaf) => return leaf.fmt(f),
            Self::Metrics => "metrics",
            Self::GradientNorm => "gradient_norm",
            Self::Probabilities => "probabilities",
            Self::HiddenStates => "hidden_states",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_declaration_does_not_matter_across_places() {
        let graph = Graph::new();
        let mut interface = Interface::new(&graph);
        let vector = || Shape::new(ElementType::F32, [2]);
        let leaf = |name: &str| InputId::Leaf(LeafId::Weight(name.to_owned()));
        let rate = interface.scalar(InputId::LearningRate, ElementType::F32);
        let b = interface.input(leaf("b"), vector(), Layout::Mirrored);
        let step = interface.scalar(InputId::Leaf(LeafId::Step), ElementType::U32);
        let a = interface.input(leaf("a"), vector(), Layout::Mirrored);
        interface.output(OutputId::Metrics, b * rate, Layout::Mirrored);
        interface.output(OutputId::Leaf(LeafId::Step), step + 1.0, Layout::Mirrored);
        interface.output(OutputId::Leaf(LeafId::Weight("a".into())), a + b, Layout::Mirrored);
        let Step { program, signature } = interface.finish("step");
        let names = signature.inputs.iter().map(|port| port.id.to_string()).collect::<Vec<_>>();
        assert_eq!(names, ["b", "a", "step", "learning_rate"]);
        let outputs = signature.outputs.iter().map(|port| port.id.clone()).collect::<Vec<_>>();
        let weight = OutputId::Leaf(LeafId::Weight("a".into()));
        assert_eq!(outputs, [weight, OutputId::Leaf(LeafId::Step), OutputId::Metrics]);
        // Output 0 is `a`, parameter 1; output 1 is `step`, parameter 2. `b` has no output.
        assert!(program.to_text().contains("{ {0}: (1, {}, must-alias), {1}: (2, {}, must-alias) }"));
        assert!(signature.updates(&leaf("a")) && !signature.updates(&leaf("b")));
    }
}
