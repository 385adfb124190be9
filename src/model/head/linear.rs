//! The heads that transformers' users expect: one vector for a text, dropout, and a linear layer that gives logits.

use serde::{Deserialize, Serialize};

use super::{Encoded, Head, Layer, Scores};
use crate::hlo::{Comparison, Tensor};
use crate::model::bert::INITIALIZER_RANGE;
use crate::nn::{Dense, Mode, ParamPath, dropout};
use crate::shape::ElementType;

/// The sizes of a linear head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearHeadConfig {
    /// On the text's vector, while training.
    pub dropout: f64,
    pub num_classes: usize,
}

/// How a text's vector is made of its hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pooling {
    /// BERT's pooler on the first one: `BertForSequenceClassification`.
    Pooler,
    /// The mean of those that the mask doesn't hide, or of all where there is no mask.
    Mean,
}

/// transformers' name for the linear layer.
const NAME: &str = "classifier";

impl LinearHeadConfig {
    pub(super) fn describe(&self, pooling: Pooling, hidden: usize) -> Vec<Layer> {
        let vector = format!("[batch, {hidden}]");
        let pooled = match pooling {
            Pooling::Pooler => Layer::new("first token, pooled (tanh)", &vector),
            Pooling::Mean => Layer::new("mean of the tokens", &vector),
        };
        let output = format!("[batch, {}]", self.num_classes);
        vec![
            pooled,
            Layer::new(format!("dropout ({})", self.dropout), vector),
            Layer::weighted(format!("{NAME} (logits)"), output, NAME),
        ]
    }
}

pub(super) struct LinearHead<'g> {
    pooling: Pooling,
    classifier: Dense<'g>,
    dropout: f64,
}

impl<'g> LinearHead<'g> {
    /// Declares the linear layer for hidden states `[batch, seq, hidden]`.
    pub fn new(
        hidden: usize,
        config: &LinearHeadConfig,
        pooling: Pooling,
        params: &ParamPath<'_, 'g>,
    ) -> Self {
        let classifier = Dense::new(hidden, config.num_classes, INITIALIZER_RANGE, params.pp(NAME));
        Self { pooling, classifier, dropout: config.dropout }
    }
}

impl<'g> Head<'g> for LinearHead<'g> {
    fn forward(&self, encoded: Encoded<'_, 'g>, mode: &Mode<'g>) -> Scores<'g> {
        let vector = match self.pooling {
            Pooling::Pooler => encoded.bert.pool(encoded.states),
            Pooling::Mean => mean(encoded.states, encoded.mask),
        };
        Scores::Logits(self.classifier.sums(dropout(vector, self.dropout, mode)))
    }
}

/// The mean over `[batch, seq, hidden]`'s vectors where `mask` `s32[batch, seq]` isn't 0: `[batch, hidden]`.
fn mean<'g>(states: Tensor<'g>, mask: Option<Tensor<'g>>) -> Tensor<'g> {
    // Sums of many narrow floats would be rounded again and again.
    let element_type = states.shape().element_type;
    let states = match element_type {
        ElementType::Bf16 => states.convert(ElementType::F32),
        _ => states,
    };
    let Some(mask) = mask else { return states.mean(&[1]).convert(element_type) };
    let is_kept = mask.compare(Comparison::Ne, mask.like(0.0)).convert(states.shape().element_type);
    let sum = (states * is_kept.keep_dims(&[2])).sum(&[1]);
    // A text has a token at least; a row that only fills up the last batch need not.
    (sum / is_kept.sum(&[1]).maximum(states.like(1.0)).keep_dims(&[1])).convert(element_type)
}
