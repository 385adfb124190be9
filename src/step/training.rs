//! What a train step does beyond the recipe's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Schedule;
use crate::model::ENCODER;
use crate::nn::{Part, Weight};

/// How a model is trained. The default is the recipe's: Adam at a constant rate on the gradients as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Training {
    pub schedule: Schedule,
    /// Whether the learning rate rises first.
    pub warms_up: bool,
    /// AdamW's decoupled decay (Loshchilov and Hutter, 2017), of matrices and embeddings alone: biases and what
    /// normalizes layers, which are vectors, have none.
    pub weight_decay: f64,
    /// The most that the norm of all gradients together may be: longer ones are scaled down.
    pub clip_norm: Option<f64>,
    /// Batches whose gradients one step sums up.
    pub accumulate: usize,
    /// The share of a target that is spread evenly over all classes (Szegedy et al., 2015), as Keras does.
    pub label_smoothing: f64,
    /// Whether examples count by the weight of their class, an input of the step: as in Keras, what is divided by is still
    /// their number.
    pub class_weights: bool,
    pub freeze: Freeze,
    /// Whether the step tells how long its gradient is, before it is clipped.
    pub gradient_norm: bool,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            schedule: Schedule::default(),
            warms_up: false,
            weight_decay: 0.0,
            clip_norm: None,
            accumulate: 1,
            label_smoothing: 0.0,
            class_weights: false,
            freeze: Freeze::default(),
            gradient_norm: false,
        }
    }
}

/// The part of the encoder that stays as it is: it has no moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Freeze {
    #[default]
    Nothing,
    Embeddings,
    /// The embeddings and so many of the first layers.
    Layers(usize),
}

impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Embeddings => f.write_str("embeddings"),
            Self::Layers(layers) => layers.fmt(f),
        }
    }
}

impl FromStr for Freeze {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "embeddings" => Ok(Self::Embeddings),
            _ => text.parse().map(Self::Layers).map_err(|_| {
                "expected `embeddings`, or how many of the first layers are frozen with them".to_owned()
            }),
        }
    }
}

impl Freeze {
    /// Whether `weight` stays as it is.
    pub fn keeps(self, weight: &Weight) -> bool {
        let layers = match self {
            Self::Nothing => return false,
            Self::Embeddings => 0,
            Self::Layers(layers) => layers,
        };
        let own = weight.name.strip_prefix(ENCODER).and_then(|name| name.strip_prefix('.'));
        let Some(own) = own.filter(|_| weight.part == Part::Encoder) else { return false };
        let layer = own.strip_prefix("encoder.layer.").and_then(|name| name.split('.').next()?.parse().ok());
        own.starts_with("embeddings.") || layer.is_some_and(|layer: usize| layer < layers)
    }
}
