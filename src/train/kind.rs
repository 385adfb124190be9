//! The steps by name.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::step::{StepConfig, eval_step, predict_step, train_step};
use crate::error::{Error, Result};
use crate::hlo::{Graph, Program};

/// The steps whose programs a job runs.
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

    /// The step's program, in `graph`.
    pub fn program<'g>(self, graph: &'g Graph, config: &StepConfig) -> Program<'g> {
        match self {
            Self::Train => train_step(graph, config).program,
            Self::Eval => eval_step(graph, config).program,
            Self::Predict => predict_step(graph, config).program,
        }
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for StepKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = || Error::Usage(format!("`{name}` is none of train, eval and predict"));
        Self::ALL.into_iter().find(|step| step.name() == name).ok_or_else(known)
    }
}
