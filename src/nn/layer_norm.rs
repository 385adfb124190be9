use super::{Init, ParamPath};
use crate::hlo::Tensor;
use crate::shape::Shape;

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

    /// `[..., hidden]` to the same, computed in `f32`.
    pub fn forward(&self, x: Tensor<'g>) -> Tensor<'g> {
        let Shape { element_type, .. } = x.shape();
        x.graph().scope("layer_norm", || {
            let wide = x.convert(self.weight.shape().element_type);
            wide.layer_norm(self.weight, self.bias, self.epsilon).convert(element_type)
        })
    }
}
