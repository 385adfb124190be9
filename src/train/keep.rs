//! Which epoch's weights are kept, and when training stops for want of a better one.

use std::fmt;

use crate::report::EpochRecord;

/// Which epoch's weights a run gives its readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    pub epoch: KeptEpoch,
    /// By which epochs are compared.
    pub metric: Metric,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeptEpoch {
    Best,
    /// The recipe's.
    #[default]
    Last,
}

/// What is measured on the held-out rows after each epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Metric {
    #[default]
    ValLoss,
    /// Keras': see [`EpochRecord::accuracy`].
    ValAccuracy,
    /// The mean of the classes' F1, of the answers.
    F1,
}

impl KeptEpoch {
    pub fn name(self) -> &'static str {
        match self {
            Self::Best => "best",
            Self::Last => "last",
        }
    }
}

impl Metric {
    pub const ALL: [Self; 3] = [Self::ValLoss, Self::ValAccuracy, Self::F1];

    pub fn name(self) -> &'static str {
        match self {
            Self::ValLoss => "val_loss",
            Self::ValAccuracy => "val_accuracy",
            Self::F1 => "f1",
        }
    }

    /// An epoch's, or the worst there is.
    pub fn of(self, record: &EpochRecord) -> f64 {
        let found = match self {
            Self::ValLoss => record.val_loss,
            Self::ValAccuracy => record.val_accuracy,
            Self::F1 => record.val_f1,
        };
        found.unwrap_or(if self == Self::ValLoss { f64::INFINITY } else { f64::NEG_INFINITY })
    }

    /// Whether `value` is better than `other`: of equal ones, neither is.
    pub fn is_better(self, value: f64, other: f64) -> bool {
        if self == Self::ValLoss { value < other } else { value > other }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.epoch.name(), self.metric.name())
    }
}
