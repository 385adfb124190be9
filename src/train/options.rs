//! What a training is told, beside its programs.

use crate::exec::{self, Inputs, Replicas};
use crate::step::{InputId, Layout, Signature};

/// What a model trains with, beside what is in its programs.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    pub learning_rate: f32,
    /// Of the head's first values, the order of the examples and dropout.
    pub seed: u32,
    /// Steps in which the learning rate rises.
    pub warmup_steps: u64,
    /// Steps of the whole run, for a schedule that has an end.
    pub total_steps: u64,
    /// How much an example of each class counts; as many as there are classes where the programs take them.
    pub class_weights: Vec<f32>,
}

impl TrainOptions {
    /// As the recipe trains, at a constant rate.
    pub fn new(learning_rate: f32, seed: u32) -> Self {
        Self { learning_rate, seed, warmup_steps: 0, total_steps: 0, class_weights: vec![] }
    }
}

impl TrainOptions {
    /// What all steps take of these, on the replicas.
    pub(super) fn constants(&self, replicas: &Replicas, signature: &Signature) -> exec::Result<Inputs> {
        let scalar = |value: f32| replicas.upload(&[value], &[], Layout::Mirrored);
        let inputs = signature.inputs.iter().filter_map(|port| {
            let placed = match &port.id {
                InputId::LearningRate => scalar(self.learning_rate),
                InputId::WarmupSteps => scalar(self.warmup_steps as f32),
                InputId::TotalSteps => scalar(self.total_steps as f32),
                InputId::Seed => replicas.upload(&[self.seed], &[], Layout::Mirrored),
                InputId::ClassWeights => {
                    replicas.upload(&self.class_weights, &[self.class_weights.len()], Layout::Mirrored)
                }
                _ => return None,
            };
            Some(placed.map(|placed| (port.id.clone(), placed)))
        });
        inputs.collect()
    }
}
