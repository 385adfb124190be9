//! Adam as Keras writes it (Kingma and Ba, 2014, section 2's reordered form: epsilon is outside the bias correction).

use crate::hlo::Tensor;
use crate::shape::ElementType;

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-7;

/// Adam at one step: the same rule for every weight.
pub struct Adam<'g> {
    /// The learning rate with both bias corrections, `f32[]`.
    corrected_rate: Tensor<'g>,
}

/// A weight with its first and second moment, all of one shape.
#[derive(Clone, Copy)]
pub struct AdamState<'g> {
    pub weight: Tensor<'g>,
    pub m: Tensor<'g>,
    pub v: Tensor<'g>,
}

impl<'g> Adam<'g> {
    /// `learning_rate` `f32[]`; `step` `u32[]` counts from 1.
    pub fn new(learning_rate: Tensor<'g>, step: Tensor<'g>) -> Self {
        let t = step.convert(ElementType::F32);
        // 1 - beta^t by expm1: in f32, 1 - 0.999 loses four digits.
        let correction = |beta: f64| -(t * beta.ln()).expm1();
        Self { corrected_rate: learning_rate * correction(BETA_2).sqrt() / correction(BETA_1) }
    }

    /// The state after one step down `gradient`.
    pub fn update(&self, state: AdamState<'g>, gradient: Tensor<'g>) -> AdamState<'g> {
        let m = state.m * BETA_1 + gradient * (1.0 - BETA_1);
        let v = state.v * BETA_2 + gradient.square() * (1.0 - BETA_2);
        let weight = state.weight - self.corrected_rate * m / (v.sqrt() + EPSILON);
        AdamState { weight, m, v }
    }
}
