//! What steps take, put on the replicas under its name: batches, and weights.

use std::collections::HashMap;

use crate::data::Batch;
use crate::exec::{Inputs, Replicas, Result, State};
use crate::nn::Weight;
use crate::step::{InputId, Layout, Signature};
use crate::weights::InitialValues;

/// Puts on the replicas what a step takes of a batch.
///
/// # Panics
/// If the step takes labels, and the batch has none.
pub fn upload_batch(replicas: &Replicas, signature: &Signature, batch: &Batch) -> Result<Inputs> {
    let rows = batch.lengths.len();
    let tokens = [rows, batch.input_ids.len() / rows];
    let mut inputs = Inputs::new();
    for port in &signature.inputs {
        let placed = match &port.id {
            InputId::InputIds => replicas.upload(&batch.input_ids, &tokens, Layout::Sharded)?,
            InputId::AttentionMask => replicas.upload(batch.attention_mask(), &tokens, Layout::Sharded)?,
            InputId::Labels => {
                assert_eq!(batch.labels.len(), rows, "the step takes labels, but the rows have none");
                replicas.upload(&batch.labels, &[rows], Layout::Sharded)?
            }
            InputId::ExampleWeights => replicas.upload(&batch.weights, &[rows], Layout::Sharded)?,
            InputId::Leaf(_)
            | InputId::LearningRate
            | InputId::WarmupSteps
            | InputId::TotalSteps
            | InputId::Seed
            | InputId::ClassWeights
            | InputId::Meet => continue,
        };
        inputs.push((port.id.clone(), placed));
    }
    Ok(inputs)
}

/// Whether this host asks all hosts to meet after a step: what the step takes for either answer, put on the replicas once.
pub struct MeetInput {
    no: Inputs,
    yes: Inputs,
}

impl MeetInput {
    pub fn new(replicas: &Replicas) -> Result<Self> {
        let answer = |value: f32| -> Result<Inputs> {
            let values = vec![value; replicas.count()];
            Ok(vec![(InputId::Meet, replicas.upload(&values, &[values.len()], Layout::Sharded)?)])
        };
        Ok(Self { no: answer(0.0)?, yes: answer(1.0)? })
    }

    /// The input of the next step.
    pub fn when(&self, asks: bool) -> &Inputs {
        if asks { &self.yes } else { &self.no }
    }
}

/// Puts weights on the replicas: the state that `signature` takes, if it is weights alone.
///
/// # Panics
/// If the step takes another leaf, or a weight that the model doesn't have.
pub fn upload_weights(
    replicas: &Replicas,
    signature: &Signature,
    weights: &[Weight],
    values: &InitialValues<'_>,
) -> std::result::Result<State, super::Error> {
    let weights = weights.iter().map(|weight| (weight.leaf(), weight)).collect::<HashMap<_, _>>();
    State::start(signature, |leaf, _| {
        let weight = weights.get(leaf).unwrap_or_else(|| panic!("the model has no weight {leaf}"));
        Ok(replicas.upload(values.get(weight)?, &weight.shape.dims, Layout::Mirrored)?)
    })
}
