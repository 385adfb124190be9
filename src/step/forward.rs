//! The forward pass of a step: the batch, the model's scores, the loss and the metrics.

use super::StepConfig;
use super::held::Replicas;
use super::signature::{InputId, Interface, Layout};
use crate::hlo::{Comparison, Tensor};
use crate::model::Classifier;
use crate::model::head::Scores;
use crate::nn::Mode;
use crate::shape::{ElementType, Shape};

/// The texts of one replica's batch.
#[derive(Clone, Copy)]
pub(super) struct Texts<'g> {
    /// `s32[rows, length]`.
    pub input_ids: Tensor<'g>,
    /// Of the same shape, 0 for padding.
    pub mask: Option<Tensor<'g>>,
}

impl<'g> Texts<'g> {
    pub fn new(interface: &mut Interface<'g>, rows: usize, length: usize, mask: bool) -> Self {
        let mut tokens =
            |id| interface.input(id, Shape::new(ElementType::S32, [rows, length]), Layout::Sharded);
        Self { input_ids: tokens(InputId::InputIds), mask: mask.then(|| tokens(InputId::AttentionMask)) }
    }

    /// The scores that `model` gives them.
    pub fn scores(&self, model: &Classifier<'g>, mode: &Mode<'g>) -> Scores<'g> {
        model.forward(self.input_ids, self.mask, mode)
    }
}

/// One replica's share of a labelled batch.
#[derive(Clone, Copy)]
pub(super) struct Examples<'g> {
    pub texts: Texts<'g>,
    /// `s32[rows]`.
    pub labels: Tensor<'g>,
    /// `f32[rows]`: 1 for an example, 0 for a row that only fills up the last batch.
    pub weights: Tensor<'g>,
}

impl<'g> Examples<'g> {
    /// So many rows of them.
    pub fn new(interface: &mut Interface<'g>, config: &StepConfig, rows: usize) -> Self {
        let texts = Texts::new(interface, rows, config.length, config.model.mask);
        let mut vector =
            |id, element_type| interface.input(id, Shape::new(element_type, [rows]), Layout::Sharded);
        Self {
            texts,
            labels: vector(InputId::Labels, ElementType::S32),
            weights: vector(InputId::ExampleWeights, ElementType::F32),
        }
    }

    /// `f32[]`: the number of examples.
    pub fn count(&self) -> Tensor<'g> {
        self.weights.sum(&[0])
    }
}

/// `f32[1]`: 1 where the host asks all hosts to meet.
pub(super) fn meet<'g>(interface: &mut Interface<'g>) -> Tensor<'g> {
    interface.input(InputId::Meet, Shape::new(ElementType::F32, [1]), Layout::Sharded)
}

/// What the loss takes for the truth.
#[derive(Clone, Copy, Default)]
pub(super) struct Targets<'g> {
    pub label_smoothing: f64,
    /// `f32[classes]`, or all count alike.
    pub class_weights: Option<Tensor<'g>>,
}

/// Keras' `categorical_crossentropy`, summed over one replica's examples.
#[derive(Clone, Copy)]
pub(super) struct Loss<'g> {
    /// `f32[rows, classes]`.
    pub probabilities: Tensor<'g>,
    /// `f32[]`.
    pub sum: Tensor<'g>,
    /// `f32[]`: the number of examples whose most probable class, of all classes, is their label: Keras' accuracy.
    pub correct: Tensor<'g>,
}

impl<'g> Loss<'g> {
    pub fn new(scores: Scores<'g>, examples: &Examples<'g>, targets: Targets<'g>) -> Self {
        let probabilities = scores.probabilities();
        let (values, labels) = (scores.values(), examples.labels);
        let classes = values.dim(1);
        let one_hot = labels.one_hot(classes, ElementType::F32);
        let truth = match targets.label_smoothing {
            0.0 => one_hot,
            share => one_hot * (1.0 - share) + share / classes as f64,
        };
        let log = scores.log_probabilities();
        let mut loss = -(log * truth).sum(&[1]);
        if let Some(weights) = targets.class_weights {
            loss = loss * (one_hot * weights).sum(&[1]);
        }
        let correct = values.argmax().compare(Comparison::Eq, labels).convert(ElementType::F32);
        Self {
            probabilities,
            sum: (loss * examples.weights).sum(&[0]),
            correct: (correct * examples.weights).sum(&[0]),
        }
    }
}

/// `f32[3]`: over all replicas, the sums of losses and of correct answers, `f32[]`, and the number of replicas whose host asks
/// all hosts to meet, of `f32[1]`.
pub(super) fn metrics<'g>(sums: [Tensor<'g>; 2], meet: Tensor<'g>, replicas: Replicas) -> Tensor<'g> {
    let parts = [sums[0].reshape(&[1]), sums[1].reshape(&[1]), meet];
    replicas.sum(meet.graph().concatenate(&parts, 0))
}
