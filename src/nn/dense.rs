use super::{Access, Init, ParamPath, Spread};
use crate::hlo::Tensor;

/// `x W^T + b`, with `W` `[out, in]` as in the Hub's checkpoints. Products are of `x`'s type, and summed in `f32`.
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
        self.sums(x).convert(x.shape().element_type)
    }

    /// The same, not rounded to `x`'s type.
    pub fn sums(&self, x: Tensor<'g>) -> Tensor<'g> {
        x.linear(self.weight.convert(x.shape().element_type)) + self.bias
    }
}

/// A [`Dense`] on a text's vectors one after another, Keras' `Flatten` and `Dense`. Of its weight, each replica may have some
/// features of every position: the vectors travel then, which are fewer.
pub struct FlattenDense<'g> {
    weight: Spread<'g>,
    bias: Tensor<'g>,
}

impl<'g> FlattenDense<'g> {
    /// For states `[batch, seq, hidden]`, or shorter ones.
    pub fn new([seq, hidden]: [usize; 2], outputs: usize, init: Init, params: ParamPath<'_, 'g>) -> Self {
        Self {
            weight: params.spread(
                "weight",
                &[outputs, seq * hidden],
                init,
                Access::Features { positions: seq },
            ),
            bias: params.get("bias", &[outputs], Init::Zeros),
        }
    }

    /// `[batch, seq, hidden]` to `[batch, out]`, not rounded to the states' type: as if the vectors that are missing at the end
    /// were zero.
    pub fn sums(&self, states: Tensor<'g>) -> Tensor<'g> {
        let [batch, seq, hidden] = [states.dim(0), states.dim(1), states.dim(2)];
        let Spread { tensor: weight, replicas } = self.weight;
        let element_type = states.shape().element_type;
        let part = hidden / replicas;
        // To each replica its features of all vectors, and from each its part of the sums.
        let features = states.reshape(&[batch, seq, replicas, part]).transpose(&[2, 0, 1, 3]);
        let features = features.reshape(&[replicas * batch, seq * part]).all_to_all(replicas);
        let weight = weight.narrow(1, 0, seq * part).convert(element_type);
        features.linear(weight).reduce_scatter_sum(replicas) + self.bias
    }
}
