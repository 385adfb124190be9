//! What turns hidden states into class scores: a file per head, and here the list of them.

mod dense;
mod linear;
mod lstm;
mod scores;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

pub use dense::{DenseHeadConfig, OutputActivation};
pub use linear::LinearHeadConfig;
pub use lstm::LstmHeadConfig;
pub use scores::{CLIP, Scores};

use super::Bert;
use super::summary::Layer;
use crate::hlo::Tensor;
use crate::nn::{Mode, ParamPath};
use dense::DenseHead;
use linear::{LinearHead, Pooling};
use lstm::LstmHead;

/// What the encoder makes of a batch of texts.
#[derive(Clone, Copy)]
pub struct Encoded<'m, 'g> {
    pub bert: &'m Bert<'g>,
    /// The last hidden states, `[batch, seq, hidden]`.
    pub states: Tensor<'g>,
    /// The attention mask `s32[batch, seq]` if the model takes one: 0 for padding; the first token of a text is never
    /// padding.
    pub mask: Option<Tensor<'g>>,
}

/// The layers after the encoder.
pub trait Head<'g> {
    fn forward(&self, encoded: Encoded<'_, 'g>, mode: &Mode<'g>) -> Scores<'g>;
}

/// Which head it is, and its sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HeadConfig {
    /// The recipe's: all hidden states, and dense layers.
    Dense(DenseHeadConfig),
    /// An LSTM, and dense layers.
    Lstm(LstmHeadConfig),
    /// One in each direction.
    Bilstm(LstmHeadConfig),
    /// transformers' `BertForSequenceClassification`.
    Cls(LinearHeadConfig),
    /// The same with the mean of the hidden states in place of the pooler.
    Mean(LinearHeadConfig),
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

    /// Its `type`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense(_) => "dense",
            Self::Lstm(_) => "lstm",
            Self::Bilstm(_) => "bilstm",
            Self::Cls(_) => "cls",
            Self::Mean(_) => "mean",
        }
    }

    /// The class of transformers that the classifier is one of; `BertModel`, the encoder's, for a head that none has.
    pub fn architecture(&self) -> &'static str {
        match self {
            Self::Cls(_) => "BertForSequenceClassification",
            Self::Dense(_) | Self::Lstm(_) | Self::Bilstm(_) | Self::Mean(_) => "BertModel",
        }
    }

    /// Width of the output.
    pub fn num_classes(&self) -> usize {
        match self {
            Self::Dense(head) => head.num_classes,
            Self::Lstm(head) | Self::Bilstm(head) => head.dense.num_classes,
            Self::Cls(head) | Self::Mean(head) => head.num_classes,
        }
    }

    /// Whether its scores are logits: see [`Scores`].
    pub fn gives_logits(&self) -> bool {
        matches!(self, Self::Cls(_) | Self::Mean(_))
    }

    /// Whether it reads the hidden states of padding that a mask hides.
    pub fn reads_padding(&self) -> bool {
        matches!(self, Self::Dense(_))
    }

    /// Whether it reads what BERT's pooler makes.
    pub fn uses_pooler(&self) -> bool {
        matches!(self, Self::Cls(_))
    }

    /// Declares the head's weights, for hidden states `[batch, seq, hidden]` at most.
    pub fn build<'g>(&self, states: [usize; 2], params: ParamPath<'_, 'g>) -> Box<dyn Head<'g> + 'g> {
        let [_, hidden] = states;
        match self {
            Self::Dense(head) => Box::new(DenseHead::new(states, head, &params)),
            Self::Lstm(head) => Box::new(LstmHead::new(hidden, head, false, &params)),
            Self::Bilstm(head) => Box::new(LstmHead::new(hidden, head, true, &params)),
            Self::Cls(head) => Box::new(LinearHead::new(hidden, head, Pooling::Pooler, &params)),
            Self::Mean(head) => Box::new(LinearHead::new(hidden, head, Pooling::Mean, &params)),
        }
    }

    /// The head layer by layer, for hidden states `[batch, seq, hidden]`.
    pub fn describe(&self, states: [usize; 2]) -> Vec<Layer> {
        let [_, hidden] = states;
        match self {
            Self::Dense(head) => head.describe(states),
            Self::Lstm(head) => head.describe(false),
            Self::Bilstm(head) => head.describe(true),
            Self::Cls(head) => head.describe(Pooling::Pooler, hidden),
            Self::Mean(head) => head.describe(Pooling::Mean, hidden),
        }
    }
}
