//! What a head says of each class.

use crate::hlo::Tensor;

/// Keras' `epsilon()`: probabilities are clipped to `[1e-7, 1 - 1e-7]` before the logarithm.
pub const CLIP: f64 = 1e-7;

/// Class scores `[batch, classes]`.
#[derive(Clone, Copy)]
pub enum Scores<'g> {
    /// Positive and not normalized: a class's share of their sum is its probability, as in Keras where
    /// `from_logits=False`.
    Positive(Tensor<'g>),
    /// Their softmax is.
    Logits(Tensor<'g>),
}

impl<'g> Scores<'g> {
    /// As the head gives them; the greater, the more probable.
    pub fn values(self) -> Tensor<'g> {
        match self {
            Self::Positive(values) | Self::Logits(values) => values,
        }
    }

    /// `[batch, classes]`.
    pub fn probabilities(self) -> Tensor<'g> {
        match self {
            Self::Positive(scores) => scores / scores.sum(&[1]).keep_dims(&[1]),
            Self::Logits(logits) => logits.softmax(),
        }
    }

    /// Their logarithms, as the loss takes them: of positive scores, clipped as Keras does.
    pub fn log_probabilities(self) -> Tensor<'g> {
        match self {
            Self::Positive(_) => self.probabilities().clip(CLIP, 1.0 - CLIP).log(),
            Self::Logits(logits) => logits.log_softmax(),
        }
    }
}
