//! What turns hidden states into class scores: a file per head, and here the list of them.

mod dense;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

pub use dense::DenseHeadConfig;

use super::summary::Layer;
use crate::hlo::Tensor;
use crate::nn::{Mode, ParamPath};
use dense::DenseHead;

/// The layers after the encoder.
pub trait Head<'g> {
    /// Hidden states `[batch, seq, hidden]`, and the attention mask `s32[batch, seq]` if the model takes one (0 for
    /// padding; the first token of a text is never padding), to positive, unnormalized class scores `[batch, classes]`.
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

    /// The class of transformers that the classifier is one of; `BertModel`, the encoder's, for a head that none has.
    pub fn architecture(&self) -> &'static str {
        match self {
            Self::Dense(_) => "BertModel",
        }
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
