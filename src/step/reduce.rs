//! How the replicas' gradients become one update: the seam between the backward pass and the optimizer.

use super::signature::Layout;
use crate::hlo::Tensor;

/// Every replica holds all weights and all of the optimizer's state, and makes the same update.
#[derive(Clone, Copy)]
pub(super) struct Mirrored {
    pub replicas: usize,
}

impl Mirrored {
    /// How the weights and the optimizer's state lie over the replicas.
    pub const STATE: Layout = Layout::Mirrored;

    /// What a replica's optimizer works with, of a gradient of the replica's own examples: here the sum over all
    /// replicas, whole.
    pub fn reduce<'g>(self, gradient: Tensor<'g>) -> Tensor<'g> {
        self.sum(gradient)
    }

    /// What the next forward pass reads, of what the optimizer has updated: here that itself.
    pub fn publish<'g>(self, updated: Tensor<'g>) -> Tensor<'g> {
        updated
    }

    /// The sum over the replicas.
    pub fn sum<'g>(self, tensor: Tensor<'g>) -> Tensor<'g> {
        if self.replicas == 1 { tensor } else { tensor.all_reduce_sum() }
    }
}
