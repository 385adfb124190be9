//! The forward pass of a step: the batch, the model's scores, the loss and the metrics.

use super::StepConfig;
use super::reduce::Mirrored;
use super::signature::{InputId, Interface, Layout};
use crate::hlo::{Comparison, Tensor};
use crate::model::Classifier;
use crate::nn::Mode;
use crate::shape::{ElementType, Shape};

/// Keras' `epsilon()`: probabilities are clipped to `[1e-7, 1 - 1e-7]` before the logarithm.
pub const CLIP: f64 = 1e-7;

/// The texts of one replica's batch.
pub(super) struct Texts<'g> {
    /// `s32[rows, max_length]`.
    pub input_ids: Tensor<'g>,
    /// Of the same shape, 0 for padding.
    pub mask: Option<Tensor<'g>>,
}

impl<'g> Texts<'g> {
    pub fn new(interface: &mut Interface<'g>, rows: usize, max_length: usize, mask: bool) -> Self {
        let mut tokens =
            |id| interface.input(id, Shape::new(ElementType::S32, [rows, max_length]), Layout::Sharded);
        Self { input_ids: tokens(InputId::InputIds), mask: mask.then(|| tokens(InputId::AttentionMask)) }
    }

    /// The scores `[rows, classes]` that `model` gives them.
    pub fn scores(&self, model: &Classifier<'g>, mode: &Mode<'g>) -> Tensor<'g> {
        model.forward(self.input_ids, self.mask, mode)
    }
}

/// One replica's share of a labelled batch.
pub(super) struct Batch<'g> {
    pub texts: Texts<'g>,
    /// `s32[rows]`.
    labels: Tensor<'g>,
    /// `f32[rows]`: 1 for an example, 0 for a row that only fills up the last batch.
    weights: Tensor<'g>,
    /// `f32[1]`: 1 where the host asks all hosts to meet.
    meet: Tensor<'g>,
}

impl<'g> Batch<'g> {
    pub fn new(interface: &mut Interface<'g>, config: &StepConfig) -> Self {
        let texts = Texts::new(interface, config.rows, config.model.max_length, config.model.mask);
        let mut vector =
            |id, element_type, len| interface.input(id, Shape::new(element_type, [len]), Layout::Sharded);
        Self {
            texts,
            labels: vector(InputId::Labels, ElementType::S32, config.rows),
            weights: vector(InputId::ExampleWeights, ElementType::F32, config.rows),
            meet: vector(InputId::Meet, ElementType::F32, 1),
        }
    }

    /// `f32[]`: the number of examples.
    pub fn examples(&self) -> Tensor<'g> {
        self.weights.sum(&[0])
    }
}

/// Keras' `categorical_crossentropy` on outputs that are not logits, summed over one replica's examples.
pub(super) struct Loss<'g> {
    /// `f32[rows, classes]`.
    pub probabilities: Tensor<'g>,
    /// `f32[]`.
    pub sum: Tensor<'g>,
    /// `f32[]`: the number of examples whose most probable class, of all classes, is their label: Keras' accuracy.
    correct: Tensor<'g>,
    /// The batch's.
    meet: Tensor<'g>,
}

impl<'g> Loss<'g> {
    /// `scores` `[rows, classes]`, positive.
    pub fn new(scores: Tensor<'g>, batch: &Batch<'g>) -> Self {
        let probabilities = normalize(scores);
        let one_hot = batch.labels.one_hot(scores.dim(1), ElementType::F32);
        let log = probabilities.clip(CLIP, 1.0 - CLIP).log();
        let loss = -(log * one_hot).sum(&[1]);
        let correct = scores.argmax().compare(Comparison::Eq, batch.labels).convert(ElementType::F32);
        Self {
            probabilities,
            sum: (loss * batch.weights).sum(&[0]),
            correct: (correct * batch.weights).sum(&[0]),
            meet: batch.meet,
        }
    }

    /// `f32[3]`: over all replicas, the loss sum, the number of correct answers, and that of replicas whose host asks all
    /// hosts to meet.
    pub fn metrics(&self, replicas: Mirrored) -> Tensor<'g> {
        let parts = [self.sum.reshape(&[1]), self.correct.reshape(&[1]), self.meet];
        replicas.sum(self.sum.graph().concatenate(&parts, 0))
    }
}

/// Each row divided by its sum.
pub(super) fn normalize(scores: Tensor<'_>) -> Tensor<'_> {
    scores / scores.sum(&[1]).keep_dims(&[1])
}
