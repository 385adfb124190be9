//! The values that training starts with: a model's, or those that were saved.

use std::collections::HashMap;

use super::Result;
use crate::exec::{Executable, Placed, Replicas, State};
use crate::nn::Weight;
use crate::step::{Layout, LeafId};
use crate::weights::InitialValues;

/// What training starts from.
pub enum Origin<'a> {
    /// These weights, with which no step was done.
    Weights(&'a InitialValues<'a>),
    /// The state after some steps.
    Saved { steps: u64, tensor: &'a SavedTensor<'a> },
}

/// The values of a weight, or of a moment, by its name and shape, row-major. All are asked for, once each, in an order that
/// is the same in all processes.
pub type SavedTensor<'a> = dyn Fn(&str, &[usize]) -> Result<Vec<f32>> + 'a;

/// The values that training starts with.
pub(super) struct FirstValues<'a> {
    pub origin: Origin<'a>,
    /// All but the weights, where no step was done.
    pub zeros: Option<HashMap<LeafId, Placed>>,
}

impl FirstValues<'_> {
    pub fn state(&mut self, replicas: &Replicas, step: &Executable, weights: &[Weight]) -> Result<State> {
        let weights = weights.iter().map(|weight| (&*weight.name, weight)).collect::<HashMap<_, _>>();
        State::start(step.signature(), |leaf| {
            if let Some(zeros) = self.zeros.as_mut().and_then(|zeros| zeros.remove(leaf)) {
                return Ok(zeros);
            }
            let (LeafId::Weight(name) | LeafId::Moment(_, name)) = leaf else {
                return Ok(replicas.upload(&[self.steps() as u32], &[], Layout::Mirrored)?);
            };
            let weight = weights[&**name];
            let dims = &weight.shape.dims;
            let values = match &mut self.origin {
                Origin::Weights(values) => values.get(weight)?,
                Origin::Saved { tensor, .. } => tensor(&leaf.to_string(), dims)?.into(),
            };
            Ok(replicas.upload(values, dims, Layout::Mirrored)?)
        })
    }

    /// Those of a weight that is no part of the state.
    pub fn values(&mut self, weight: &Weight) -> Result<Vec<f32>> {
        match &mut self.origin {
            Origin::Weights(values) => Ok(values.get(weight)?.into_owned()),
            Origin::Saved { tensor, .. } => tensor(&weight.name, &weight.shape.dims),
        }
    }

    pub fn steps(&self) -> u64 {
        match self.origin {
            Origin::Weights(_) => 0,
            Origin::Saved { steps, .. } => steps,
        }
    }
}
