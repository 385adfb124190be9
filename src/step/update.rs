//! Adam as Keras writes it (Kingma and Ba, 2014, section 2's reordered form: epsilon is outside the bias correction), and
//! what may be done to weights and gradients before.

use crate::hlo::Tensor;
use crate::shape::ElementType;

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-7;

/// Adam at one step: the same rule for every weight.
pub struct Adam<'g> {
    /// The learning rate with both bias corrections, `f32[]`.
    corrected_rate: Tensor<'g>,
    /// The share of a matrix that goes at each step, `f32[]`.
    decay: Option<Tensor<'g>>,
}

/// A weight with its first and second moment, all of one shape.
#[derive(Clone, Copy)]
pub struct AdamState<'g> {
    pub weight: Tensor<'g>,
    pub m: Tensor<'g>,
    pub v: Tensor<'g>,
}

impl<'g> Adam<'g> {
    /// `learning_rate` `f32[]`; `step` `u32[]` counts from 1. With a `weight_decay`, it is AdamW (Loshchilov and Hutter, 2017).
    pub fn new(learning_rate: Tensor<'g>, step: Tensor<'g>, weight_decay: f64) -> Self {
        let t = step.convert(ElementType::F32);
        // 1 - beta^t by expm1: in f32, 1 - 0.999 loses four digits.
        let correction = |beta: f64| -(t * beta.ln()).expm1();
        let decay = (weight_decay != 0.0).then(|| learning_rate * weight_decay);
        Self { corrected_rate: learning_rate * correction(BETA_2).sqrt() / correction(BETA_1), decay }
    }

    /// The state after one step down `gradient`.
    pub fn update(&self, state: AdamState<'g>, gradient: Tensor<'g>) -> AdamState<'g> {
        let m = state.m * BETA_1 + gradient * (1.0 - BETA_1);
        let v = state.v * BETA_2 + gradient.square() * (1.0 - BETA_2);
        let decayed = match self.decay {
            Some(decay) if state.weight.rank() > 1 => state.weight - state.weight * decay,
            _ => state.weight,
        };
        let weight = decayed - self.corrected_rate * m / (v.sqrt() + EPSILON);
        AdamState { weight, m, v }
    }
}

/// What gradients of this norm are multiplied with, so that it becomes `most` at the most (`tf.clip_by_global_norm`).
pub fn clip(norm: Tensor<'_>, most: f64) -> Tensor<'_> {
    norm.like(most) / norm.maximum(norm.like(most))
}
