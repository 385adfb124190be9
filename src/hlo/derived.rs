//! Functions built from the primitives. Their gradients follow from the primitives' own, but for those that have a rule of
//! their own, which takes less work.

use super::graph::Tensor;
use super::op::{Comparison, DotDimensions, Op, Scalar};
use crate::shape::{ElementType, Shape};

/// A function with a gradient rule of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Derived {
    /// [`Tensor::softmax_over`] `dim` of `x`.
    Softmax { dim: usize },
    /// [`Tensor::layer_norm`] of `x`, `weight` and `bias`.
    LayerNorm { epsilon: Scalar },
}

impl Derived {
    /// How many it has. Its value has the first one's shape.
    pub(super) fn arguments(self) -> usize {
        match self {
            Self::Softmax { .. } => 1,
            Self::LayerNorm { .. } => 3,
        }
    }

    /// The gradients of its arguments, those that are `needed`, for `g`, the gradient of its value `y`. What they read of the
    /// forward pass is what `value` makes of it.
    pub(super) fn gradients<'g>(
        self,
        y: Tensor<'g>,
        arguments: &[Tensor<'g>],
        needed: &[bool],
        g: Tensor<'g>,
        value: &dyn Fn(Tensor<'g>) -> Tensor<'g>,
    ) -> Vec<Option<Tensor<'g>>> {
        let last = [y.rank() - 1];
        match self {
            // dx = y (g - sum g y)
            Self::Softmax { dim } => {
                let y = value(y);
                vec![Some(y * (g - (g * y).sum(&[dim]).keep_dims(&[dim])))]
            }
            // With n = (x - mean) / deviation and d = g weight: dx = (d - mean d - n mean(d n)) / deviation,
            // dweight = sum g n, dbias = sum g. The gradient that follows from the primitives' goes over x - mean twice more.
            Self::LayerNorm { epsilon } => {
                let (x, weight) = (arguments[0], arguments[1]);
                let Normalized { centered, rate } = Normalized::new(x, epsilon.to_f64());
                let [centered, rate] = [centered, rate].map(value);
                let (n, d) = (centered * rate, g * weight);
                let mean = |tensor: Tensor<'g>| tensor.mean(&last).keep_dims(&last);
                let others = (0..last[0]).collect::<Vec<_>>();
                let dx = || (d - mean(d) - n * mean(d * n)) * rate;
                vec![
                    needed[0].then(dx),
                    needed[1].then(|| (g * n).sum(&others)),
                    needed[2].then(|| g.sum(&others)),
                ]
            }
        }
    }
}

/// What layer normalization makes of `x` before it scales it.
struct Normalized<'g> {
    /// `x` minus its mean, in its shape.
    centered: Tensor<'g>,
    /// One over the standard deviation, with 1 for the last dimension.
    rate: Tensor<'g>,
}

impl<'g> Normalized<'g> {
    /// The variance is taken in a second pass, over `x - mean`: the one-pass `E[x^2] - E[x]^2` cancels when the mean is large.
    fn new(x: Tensor<'g>, epsilon: f64) -> Self {
        let last = [x.rank() - 1];
        let centered = x - x.mean(&last).keep_dims(&last);
        let variance = centered.square().mean(&last).keep_dims(&last);
        Self { centered, rate: (variance + epsilon).rsqrt() }
    }
}

impl<'g> Tensor<'g> {
    /// `self`, which is `derived` of `arguments`, with its gradient.
    #[track_caller]
    fn derived(self, derived: Derived, arguments: &[Tensor<'g>]) -> Tensor<'g> {
        self.graph.insert(Op::Derived(derived), &[&[self], arguments].concat())
    }

    /// `x^2`.
    #[track_caller]
    pub fn square(self) -> Tensor<'g> {
        self * self
    }

    /// `max(x, 0)`, with gradient 0 at 0 as in Keras. What is not a number stays so.
    #[track_caller]
    pub fn relu(self) -> Tensor<'g> {
        let zero = self.like(0.0);
        self.compare(Comparison::Le, zero).select(zero, self)
    }

    /// `ln(1 + e^x)`, which neither overflows nor rounds to zero early.
    #[track_caller]
    pub fn softplus(self) -> Tensor<'g> {
        self.maximum(self.like(0.0)) + (-self.abs()).exp().log1p()
    }

    /// The exact GELU: `x/2 (1 + erf(x / sqrt 2))` (Hendrycks and Gimpel, 2016).
    #[track_caller]
    pub fn gelu(self) -> Tensor<'g> {
        self * 0.5 * ((self * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0)
    }

    /// The GELU by tanh, `gelu_new` in transformers.
    #[track_caller]
    pub fn gelu_tanh(self) -> Tensor<'g> {
        let inner = (self + self * self * self * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
        self * 0.5 * (inner.tanh() + 1.0)
    }

    /// `x` limited to `[low, high]`; outside, the gradient is 0.
    #[track_caller]
    pub fn clip(self, low: f64, high: f64) -> Tensor<'g> {
        let below = self.compare(Comparison::Lt, self.like(low));
        let above = self.compare(Comparison::Gt, self.like(high));
        below.select(self.like(low), above.select(self.like(high), self))
    }

    /// The mean over `dims`, which disappear.
    #[track_caller]
    pub fn mean(self, dims: &[usize]) -> Tensor<'g> {
        let count = dims.iter().map(|d| self.dim(*d)).product::<usize>();
        self.sum(dims) * (1.0 / count as f64)
    }

    /// `self` with `dims` back as dimensions of size 1, so that it broadcasts against what it was reduced from.
    #[track_caller]
    pub fn keep_dims(self, dims: &[usize]) -> Tensor<'g> {
        let mut kept = self.dims();
        let mut dims = dims.to_vec();
        dims.sort_unstable();
        dims.into_iter().for_each(|d| kept.insert(d, 1));
        self.reshape(&kept)
    }

    /// [`softmax_over`](Self::softmax_over) the last dimension.
    #[track_caller]
    pub fn softmax(self) -> Tensor<'g> {
        self.softmax_over(self.rank() - 1)
    }

    /// Softmax over `dim`, shifted by its maximum so that `exp` can't overflow.
    #[track_caller]
    pub fn softmax_over(self, dim: usize) -> Tensor<'g> {
        let shifted = self - self.max(&[dim]).keep_dims(&[dim]).stop_gradient();
        let exp = shifted.exp();
        (exp / exp.sum(&[dim]).keep_dims(&[dim])).derived(Derived::Softmax { dim }, &[self])
    }

    /// The logarithm of [`softmax`](Self::softmax), which doesn't round to `ln 0`.
    #[track_caller]
    pub fn log_softmax(self) -> Tensor<'g> {
        let last = [self.rank() - 1];
        let shifted = self - self.max(&last).keep_dims(&last).stop_gradient();
        shifted - shifted.exp().sum(&last).log().keep_dims(&last)
    }

    /// Layer normalization over the last dimension (Ba et al., 2016): `weight (x - mean) / sqrt(var + epsilon) + bias`,
    /// with `weight` and `bias` `[hidden]`.
    #[track_caller]
    pub fn layer_norm(self, weight: Tensor<'g>, bias: Tensor<'g>, epsilon: f64) -> Tensor<'g> {
        let Normalized { centered, rate } = Normalized::new(self, epsilon);
        let epsilon = Scalar::new(ElementType::F64, epsilon);
        (centered * rate * weight + bias).derived(Derived::LayerNorm { epsilon }, &[self, weight, bias])
    }

    /// `x w^T`: `self` `[..., in]` by `weight` `[out, in]`, the layout of the Hub's checkpoints, is `[..., out]`.
    #[track_caller]
    pub fn linear(self, weight: Tensor<'g>) -> Tensor<'g> {
        let last = self.rank() - 1;
        let dimensions =
            DotDimensions { lhs_contracting: vec![last], rhs_contracting: vec![1], ..Default::default() };
        self.dot_general(weight, dimensions)
    }

    /// 1 where `self` `s32[n]` names the class, else 0: `[n, classes]` of `element_type`.
    #[track_caller]
    pub fn one_hot(self, classes: usize, element_type: ElementType) -> Tensor<'g> {
        let shape = Shape::new(self.shape().element_type, [self.dim(0), classes]);
        let index = self.graph.iota(shape, 1);
        self.reshape(&[self.dim(0), 1]).compare(Comparison::Eq, index).convert(element_type)
    }

    /// The index of the largest element of the last dimension, the first one of equals, as `s32`.
    #[track_caller]
    pub fn argmax(self) -> Tensor<'g> {
        let last = self.rank() - 1;
        let classes = self.dim(last);
        let index = self.graph.iota(Shape::new(ElementType::S32, self.dims()), last);
        // Not `Eq`: a row of NaN equals nothing, and would name a class past the last one.
        let is_less = self.compare(Comparison::Lt, self.max(&[last]).keep_dims(&[last]));
        let counted_down = is_less.select(index.like(0.0), index.like(classes as f64) - index);
        index.like(classes as f64) - counted_down.max(&[last])
    }
}
