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

    /// `x` `[batch, seq, hidden]` to the same. Keys where `mask` `s32[batch, seq]` is 0 get no attention.
    pub fn forward(&self, x: Tensor<'g>, mask: Option<Tensor<'g>>, mode: &Mode<'g>) -> Tensor<'g> {
        let [batch, seq, hidden] = [x.dim(0), x.dim(1), x.dim(2)];
        let size = hidden / self.num_attention_heads;
        let heads =
            |dense: &Dense<'g>| dense.forward(x).reshape(&[batch, seq, self.num_attention_heads, size]);
        let (query, key, value) = (heads(&self.query), heads(&self.key), heads(&self.value));

        // [batch, heads, query, key]
        let by_head = |contracting: [usize; 2], lhs_heads: usize| DotDimensions {
            lhs_batch: vec![0, lhs_heads],
            rhs_batch: vec![0, 2],
            lhs_contracting: vec![contracting[0]],
            rhs_contracting: vec![contracting[1]],
        };
        let mut scores = query.dot_general(key, by_head([3, 3], 2)) * (1.0 / (size as f64).sqrt());
        if let Some(mask) = mask {
            let kept = mask.compare(Comparison::Ne, mask.like(0.0)).reshape(&[batch, 1, 1, seq]);
            // The lowest f32, as in transformers: a text of padding alone attends evenly instead of giving NaN.
            scores = kept.select(scores, scores.like(f64::from(f32::MIN)));
        }
        let weights = dropout(scores.softmax(), self.dropout, mode);

        // [batch, heads, query, size]
        let context = weights.dot_general(value, by_head([3, 1], 1));
        context.transpose(&[0, 2, 1, 3]).reshape(&[batch, seq, hidden])
    }
}
