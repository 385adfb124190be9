//! The values that training starts with: a model's, or those that were saved.

use std::collections::HashMap;

use half::bf16;

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
        let ports = step.signature().leaves().collect::<HashMap<_, _>>();
        // Of the weights so far: they come first.
        let mut rounded = HashMap::new();
        State::start(step.signature(), |leaf, port| {
            let made =
                self.zeros.as_mut().and_then(|zeros| zeros.remove(leaf)).or_else(|| rounded.remove(leaf));
            if let Some(made) = made {
                return Ok(made);
            }
            let (LeafId::Weight(name) | LeafId::Moment(_, name) | LeafId::Rounded(name)) = leaf else {
                return Ok(replicas.upload(&[self.steps() as u32], &[], Layout::Mirrored)?);
            };
            let weight = weights[&**name];
            let values = match &mut self.origin {
                Origin::Weights(values) => values.get(weight)?,
                Origin::Saved { tensor, .. } => tensor(&leaf.to_string(), &weight.shape.dims)?.into(),
            };
            let dims = match port.layout {
                Layout::Dealt(_) => &port.shape.dims,
                Layout::Mirrored | Layout::Sharded => &weight.shape.dims,
            };
            let own_rounded = LeafId::Rounded(name.clone());
            if matches!(leaf, LeafId::Weight(_)) && ports.contains_key(&own_rounded) {
                let values = values.iter().map(|value| bf16::from_f32(*value)).collect::<Vec<_>>();
                rounded.insert(own_rounded, replicas.upload(values, dims, port.layout)?);
            }
            Ok(replicas.upload(values, dims, port.layout)?)
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
