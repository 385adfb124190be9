use super::{Init, ParamPath};
use crate::hlo::Tensor;

/// Layer normalization over the last dimension.
pub struct LayerNorm<'g> {
    weight: Tensor<'g>,
    bias: Tensor<'g>,
    epsilon: f64,
}

impl<'g> LayerNorm<'g> {
    pub fn new(hidden: usize, epsilon: f64, params: ParamPath<'_, 'g>) -> Self {
        Self {
            weight: params.get("weight", &[hidden], Init::Ones),
            bias: params.get("bias", &[hidden], Init::Zeros),
            epsilon,
        }
    }

    /// `[..., hidden]` to the same.
    pub fn forward(&self, x: Tensor<'g>) -> Tensor<'g> {
        x.graph().scope("layer_norm", || x.layer_norm(self.weight, self.bias, self.epsilon))
    }
}
