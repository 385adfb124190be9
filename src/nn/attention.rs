use super::{Dense, Init, Mode, ParamPath, dropout};
use crate::hlo::{Comparison, DotDimensions, Tensor};

/// Multi-head self-attention (Vaswani et al., 2017), `BertSelfAttention` in transformers.
pub struct SelfAttention<'g> {
    query: Dense<'g>,
    key: Dense<'g>,
    value: Dense<'g>,
    num_attention_heads: usize,
    dropout: f64,
}

impl<'g> SelfAttention<'g> {
    pub fn new(
        hidden: usize,
        num_attention_heads: usize,
        dropout: f64,
        init: Init,
        params: ParamPath<'_, 'g>,
    ) -> Self {
        let dense = |name: &str| Dense::new(hidden, hidden, init, params.pp(name));
        Self { query: dense("query"), key: dense("key"), value: dense("value"), num_attention_heads, dropout }
    }

    /// `x` `[batch, seq, hidden]` to the same, with the softmax in `f32`. Keys where `mask` `s32[batch, seq]` is 0 get no attention.
    pub fn forward(&self, x: Tensor<'g>, mask: Option<Tensor<'g>>, mode: &Mode<'g>) -> Tensor<'g> {
        let [batch, seq, hidden] = [x.dim(0), x.dim(1), x.dim(2)];
        let size = hidden / self.num_attention_heads;
        let element_type = x.shape().element_type;
        let heads =
            |dense: &Dense<'g>| dense.forward(x).reshape(&[batch, seq, self.num_attention_heads, size]);
        let (query, key, value) = (heads(&self.query), heads(&self.key), heads(&self.value));

        // Keys come before queries: sums over keys then go over whole vectors of queries.
        let by_head = |lhs: [usize; 2], rhs: [usize; 2]| DotDimensions {
            lhs_batch: vec![0, lhs[0]],
            rhs_batch: vec![0, rhs[0]],
            lhs_contracting: vec![lhs[1]],
            rhs_contracting: vec![rhs[1]],
        };
        // [batch, heads, key, query]
        let products = key.dot_general(query, by_head([2, 3], [2, 3]));
        let wide = products.shape().element_type;
        let mut scores = products.convert(element_type).convert(wide) * (1.0 / (size as f64).sqrt());
        if let Some(mask) = mask {
            let kept = mask.compare(Comparison::Ne, mask.like(0.0)).reshape(&[batch, 1, seq, 1]);
            // The lowest f32, as in transformers: a text of padding alone attends evenly instead of giving NaN.
            scores = kept.select(scores, scores.like(f64::from(f32::MIN)));
        }
        let weights = dropout(scores.softmax_over(2).convert(element_type), self.dropout, mode);

        // [batch, heads, size, query]
        let context = value.dot_general(weights, by_head([2, 1], [1, 2]));
        context.convert(element_type).transpose(&[0, 3, 1, 2]).reshape(&[batch, seq, hidden])
    }
}
