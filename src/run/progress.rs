//! How far a run has come, and with what it was started: what a checkpoint holds beside weights and moments.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `progress.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The version of this program that wrote it.
    pub version: String,
    /// Which run it is: the same from its first step on, however often it goes on.
    pub run: String,
    /// The command line that started it, or went on with it last.
    pub arguments: Vec<String>,
    pub terms: Terms,
    /// Optimizer steps done.
    pub step: u64,
    /// Whole epochs done.
    pub epoch: u32,
    /// What is done of the next one, unless nothing is.
    pub within: Option<Within>,
    /// The best epoch so far.
    pub best: Option<Best>,
    /// Whether it is that one which the run gives its readers, and not the last.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_best: bool,
}

impl Progress {
    /// Whether the last `patience` epochs have brought none that was better.
    pub fn has_waited(&self, patience: Option<u32>) -> bool {
        let since = self.best.as_ref().map_or(0, |best| self.epoch.saturating_sub(best.epoch));
        patience.is_some_and(|patience| since >= patience)
    }

    /// The whole epoch whose model the run gives its readers.
    pub fn kept_epoch(&self) -> u32 {
        match &self.best {
            Some(best) if self.keeps_best => best.epoch,
            _ => self.epoch,
        }
    }
}

/// What is done of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Within {
    /// Batches of its order.
    pub steps: u64,
    pub examples: usize,
    /// Running means over the examples.
    pub loss: f64,
    pub accuracy: f64,
    /// Time spent on it.
    pub seconds: f64,
    /// Time spent in its steps.
    pub step_seconds: f64,
}

/// The epoch that is best by the metric that the run goes by, the earliest of equal ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub epoch: u32,
    /// Its metric: older versions knew `val_loss` alone.
    #[serde(alias = "val_loss")]
    pub value: f64,
}

/// What decides a run, as resolved: no default is left open.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// What must stay as it is, lest it be another run.
    pub fixed: Map<String, Value>,
    /// What may change when it goes on.
    pub free: Map<String, Value>,
}

/// A term that has two values.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub name: String,
    pub before: Value,
    pub now: Value,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, before, now } = self;
        write!(f, "{name} was {}, now {}", shown(before), shown(now))
    }
}

/// A value as a person writes it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "not set".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The names that have another value in `now`, or are in one of both alone.
pub fn differences(before: &Map<String, Value>, now: &Map<String, Value>) -> Vec<Difference> {
    let value = |map: &Map<String, Value>, name: &str| map.get(name).cloned().unwrap_or(Value::Null);
    let names = now.keys().chain(before.keys().filter(|name| !now.contains_key(*name)));
    let pairs = names.map(|name| Difference {
        name: name.clone(),
        before: value(before, name),
        now: value(now, name),
    });
    pairs.filter(|pair| pair.before != pair.now).collect()
}

/// Adds `value` under `name`; of an object, its parts, as `name.part`.
pub fn flatten(map: &mut Map<String, Value>, name: &str, value: Value) {
    match value {
        Value::Object(parts) => {
            for (part, value) in parts {
                flatten(map, &format!("{name}.{part}"), value);
            }
        }
        other => _ = map.insert(name.to_owned(), other),
    }
}
