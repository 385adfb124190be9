//! The numbers of each step, kept as one JSON line per step.

use serde::Serialize;

/// What one step measured. A number that is not finite is `null` in the file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// Optimizer steps done with it, since training began.
    pub step: u64,
    /// The epoch that it is in, from 1.
    pub epoch: u32,
    /// Mean over its examples by the weights before it, in nats.
    pub loss: f64,
    /// Of its examples, as Keras counts it; 0 to 1.
    pub accuracy: f64,
    pub learning_rate: f64,
    /// Norm of all gradients together, before they are clipped, where the step tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f64>,
    /// Over all replicas.
    pub examples_per_second: f64,
    /// From the end of the step before, in milliseconds.
    pub step_ms: f64,
}

impl StepRecord {
    /// One line of JSON, ended by a newline.
    pub fn to_line(&self) -> String {
        // Numbers and fixed names: nothing that JSON can't hold, so that there is no error to have.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}
