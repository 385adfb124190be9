use super::{Access, Init, ParamPath, Spread};
use crate::hlo::{Comparison, Tensor};
use crate::shape::ElementType;

/// A table of vectors, `[rows, hidden]`. Each replica may have some of its rows: the vectors travel then, which are fewer.
pub struct Embedding<'g> {
    weight: Spread<'g>,
    frozen: Option<u32>,
}

impl<'g> Embedding<'g> {
    pub fn new(rows: usize, hidden: usize, init: Init, params: ParamPath<'_, 'g>) -> Self {
        Self { weight: params.spread("weight", &[rows, hidden], init, Access::Rows), frozen: None }
    }

    /// Lets no gradient reach one row, as PyTorch's `padding_idx` does.
    pub fn freeze(self, row: u32) -> Self {
        Self { frozen: Some(row), ..self }
    }

    /// The rows at `ids` `s32[batch, seq]`: `[batch, seq, hidden]` of `element_type`.
    pub fn forward(&self, ids: Tensor<'g>, element_type: ElementType) -> Tensor<'g> {
        let vectors = self.lookup(ids, element_type);
        let Some(row) = self.frozen else { return vectors };
        let frozen = ids.compare(Comparison::Eq, ids.like(f64::from(row)));
        frozen.keep_dims(&[2]).select(vectors.stop_gradient(), vectors)
    }

    fn lookup(&self, ids: Tensor<'g>, element_type: ElementType) -> Tensor<'g> {
        let Spread { tensor: table, replicas } = self.weight;
        if replicas == 1 {
            return table.gather(ids).convert(element_type);
        }
        // Of all replicas' rows, those that are here; a sum over replicas, all but one of them zero, hands them out.
        let rows = table.dim(0);
        let ids = ids.all_gather(replicas);
        let own = ids - ids.graph().replica_id().convert(ElementType::S32) * rows as f64;
        let is_before = own.compare(Comparison::Lt, own.like(0.0));
        let is_behind = own.compare(Comparison::Ge, own.like(rows as f64));
        let found = table.gather(own).convert(element_type);
        let found = (is_before | is_behind).keep_dims(&[2]).select(found.like(0.0), found);
        found.reduce_scatter_sum(replicas)
    }
}
