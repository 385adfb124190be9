//! What turns hidden states into class scores: a file per head, and here the list of them.

mod dense;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

pub use dense::DenseHeadConfig;

use crate::hlo::Tensor;
use crate::nn::{Mode, ParamPath};
use dense::DenseHead;

/// The layers after the encoder.
pub trait Head<'g> {
    /// Hidden states `[batch, seq, hidden]`, and the attention mask `s32[batch, seq]` if the model takes one, to
    /// positive, unnormalized class scores `[batch, classes]`.
    fn forward(&self, states: Tensor<'g>, mask: Option<Tensor<'g>>, mode: &Mode<'g>) -> Tensor<'g>;
}

/// Which head it is, and its sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HeadConfig {
    Dense(DenseHeadConfig),
}

/// The recipe's.
impl Default for HeadConfig {
    fn default() -> Self {
        Self::Dense(DenseHeadConfig::default())
    }
}

impl HeadConfig {
    /// For a field of `config.json`: `type` says which head it is, and without that, as in older runs, it is the recipe's.
    pub fn deserialize_field<'de, D: Deserializer<'de>>(field: D) -> Result<Self, D::Error> {
        let mut json = serde_json::Map::deserialize(field)?;
        json.entry("type").or_insert_with(|| "dense".into());
        serde_json::from_value(json.into()).map_err(D::Error::custom)
    }

    /// Width of the output.
    pub fn num_classes(&self) -> usize {
        match self {
            Self::Dense(head) => head.num_classes,
        }
    }

    /// Declares the head's weights, for hidden states `[batch, seq, hidden]`.
    pub fn build<'g>(&self, states: [usize; 2], params: ParamPath<'_, 'g>) -> Box<dyn Head<'g> + 'g> {
        match self {
            Self::Dense(head) => Box::new(DenseHead::new(states, head, &params)),
        }
    }

    /// The head layer by layer, for hidden states `[batch, seq, hidden]`.
    pub fn describe(&self, states: [usize; 2]) -> Vec<Layer> {
        match self {
            Self::Dense(head) => head.describe(states),
        }
    }
}

/// A row of the model's summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub name: String,
    /// The shape of what comes out.
    pub output: String,
    /// Where its weights are in the tree of names; `None` for a layer without any.
    pub weights: Option<String>,
}

impl Layer {
    /// A layer without weights.
    pub fn new(name: impl Into<String>, output: impl Into<String>) -> Self {
        Self { name: name.into(), output: output.into(), weights: None }
    }

    /// A layer with weights under the name `weights`.
    pub fn weighted(name: impl Into<String>, output: impl Into<String>, weights: impl Into<String>) -> Self {
        Self { weights: Some(weights.into()), ..Self::new(name, output) }
    }
}
