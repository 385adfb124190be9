use serde::{Deserialize, Serialize};

use super::head::{Encoded, Head, Scores};
use super::{Bert, BertConfig, HeadConfig};
use crate::hlo::{Comparison, Graph, Tensor};
use crate::nn::{Mode, Params, Part, Weight};
use crate::shape::ElementType;

/// The encoder's place among the weights' names; the head stands beside it.
pub const ENCODER: &str = "bert";

/// Everything that fixes the classifier's graph but the batch size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassifierConfig {
    pub bert: BertConfig,
    pub head: HeadConfig,
    /// Tokens per text, padding included.
    pub max_length: usize,
    /// Whether an attention mask hides the padding; the recipe attends to it.
    pub mask: bool,
    /// Whether the padding's own hidden states are zero for a head that reads them: with the mask, so that a text's scores
    /// don't depend on how much it is padded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zero_padding: bool,
    /// Whether the embedding of `[PAD]` stays as it is, as in PyTorch (`padding_idx`). Keras, and so the recipe,
    /// trains it.
    pub freeze_padding: bool,
}

impl ClassifierConfig {
    /// The weights that the classifier declares, in order.
    pub fn weights(&self) -> Vec<Weight> {
        let graph = Graph::new();
        let params = Params::new(&graph, ElementType::F32);
        Classifier::new(self, &graph, &params);
        params.declared().into_iter().map(|(weight, _)| weight).collect()
    }

    /// Whether a text's scores are the same however much it is padded.
    pub fn ignores_padding(&self) -> bool {
        self.mask && (self.zero_padding || !self.head.reads_padding())
    }

    /// Number of values in all weights.
    pub fn num_parameters(&self) -> usize {
        self.weights().iter().map(|weight| weight.shape.num_elements()).sum()
    }
}

/// BERT under [`ENCODER`], and the head beside it.
pub struct Classifier<'g> {
    graph: &'g Graph,
    pub bert: Bert<'g>,
    head: Box<dyn Head<'g> + 'g>,
    zero_padding: bool,
}

impl<'g> Classifier<'g> {
    pub fn new(config: &ClassifierConfig, graph: &'g Graph, params: &Params<'g>) -> Self {
        let mut bert = Bert::new(&config.bert, graph, params.root(Part::Encoder).pp(ENCODER));
        if config.freeze_padding {
            bert = bert.freeze_padding(config.bert.pad_token_id);
        }
        let states = [config.max_length, config.bert.hidden_size];
        let head = config.head.build(states, params.root(Part::Head));
        Self { graph, bert, head, zero_padding: config.zero_padding }
    }

    /// `input_ids` `s32[batch, seq]` and the mask of the same shape, or none, to class scores `[batch, classes]`. Texts may
    /// be shorter than the configuration has them.
    pub fn forward(&self, input_ids: Tensor<'g>, mask: Option<Tensor<'g>>, mode: &Mode<'g>) -> Scores<'g> {
        let states = self.graph.scope("bert", || self.bert.forward(input_ids, mask, mode));
        let states = match mask.filter(|_| self.zero_padding) {
            Some(mask) => {
                let is_token = mask.compare(Comparison::Ne, mask.like(0.0));
                is_token.keep_dims(&[2]).select(states, states.like(0.0))
            }
            None => states,
        };
        let encoded = Encoded { bert: &self.bert, states, mask };
        self.graph.scope("head", || self.head.forward(encoded, mode))
    }
}
