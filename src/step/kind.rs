//! The steps by name.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::{Step, StepConfig, eval_step, predict_step, train_step};
use crate::hlo::Graph;

/// The steps of a classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepKind {
    Train,
    Eval,
    Predict,
}

impl StepKind {
    pub const ALL: [Self; 3] = [Self::Train, Self::Eval, Self::Predict];

    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Eval => "eval",
            Self::Predict => "predict",
        }
    }

    /// The step, in `graph`.
    pub fn build<'g>(self, graph: &'g Graph, config: &StepConfig) -> Step<'g> {
        match self {
            Self::Train => train_step(graph, config),
            Self::Eval => eval_step(graph, config),
            Self::Predict => predict_step(graph, config),
        }
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for StepKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let unknown = || format!("`{name}` is none of train, eval and predict");
        Self::ALL.into_iter().find(|step| step.name() == name).ok_or_else(unknown)
    }
}
