use super::{Init, ParamPath};
use crate::hlo::{Comparison, Tensor};

/// A table of vectors, `[rows, hidden]`.
pub struct Embedding<'g> {
    weight: Tensor<'g>,
    frozen: Option<u32>,
}

impl<'g> Embedding<'g> {
    pub fn new(rows: usize, hidden: usize, init: Init, params: ParamPath<'_, 'g>) -> Self {
        Self { weight: params.get("weight", &[rows, hidden], init), frozen: None }
    }

    /// Lets no gradient reach one row, as PyTorch's `padding_idx` does.
    pub fn freeze(self, row: u32) -> Self {
        Self { frozen: Some(row), ..self }
    }

    /// The rows at `ids` `s32[batch, seq]`: `[batch, seq, hidden]`.
    pub fn forward(&self, ids: Tensor<'g>) -> Tensor<'g> {
        let vectors = self.weight.gather(ids);
        let Some(row) = self.frozen else { return vectors };
        let frozen = ids.compare(Comparison::Eq, ids.like(f64::from(row)));
        frozen.reshape(&[ids.dim(0), ids.dim(1), 1]).select(vectors.stop_gradient(), vectors)
    }

    /// Rows `0..count`: `[count, hidden]`.
    pub fn first_rows(&self, count: usize) -> Tensor<'g> {
        self.weight.narrow(0, 0, count)
    }
}
