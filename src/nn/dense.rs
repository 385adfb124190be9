use super::{Init, ParamPath};
use crate::hlo::Tensor;

/// `x W^T + b`, with `W` `[out, in]` as in the Hub's checkpoints.
pub struct Dense<'g> {
    weight: Tensor<'g>,
    bias: Tensor<'g>,
}

impl<'g> Dense<'g> {
    pub fn new(inputs: usize, outputs: usize, init: Init, params: ParamPath<'_, 'g>) -> Self {
        Self {
            weight: params.get("weight", &[outputs, inputs], init),
            bias: params.get("bias", &[outputs], Init::Zeros),
        }
    }

    /// `[..., in]` to `[..., out]`.
    pub fn forward(&self, x: Tensor<'g>) -> Tensor<'g> {
        x.linear(self.weight) + self.bias
    }
}
