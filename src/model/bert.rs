//! The BERT encoder (Devlin et al., 2018), with the names and the arithmetic of transformers' `BertModel`.

use super::config::{Activation, BertConfig};
use crate::hlo::{Graph, Tensor};
use crate::nn::{Dense, Embedding, Init, LayerNorm, Mode, ParamPath, Part, SelfAttention, dropout};

/// The standard deviation that BERT's weights start with.
pub(super) const INITIALIZER_RANGE: Init = Init::Normal(0.02);

/// Token ids in, one vector per token out.
pub struct Bert<'g> {
    graph: &'g Graph,
    embeddings: Embeddings<'g>,
    layers: Vec<Layer<'g>>,
    pooler: Dense<'g>,
}

impl<'g> Bert<'g> {
    /// Declares the weights under `embeddings`, `encoder` and `pooler`: the pooler also where only the last hidden states
    /// are read, to be kept with the checkpoint.
    pub fn new(config: &BertConfig, graph: &'g Graph, params: ParamPath<'_, 'g>) -> Self {
        let embeddings = Embeddings::new(config, params.pp("embeddings"));
        let layer = |i| Layer::new(config, params.pp("encoder").pp(&format!("layer.{i}")));
        let layers = (0..config.num_hidden_layers).map(layer).collect();
        let hidden = config.hidden_size;
        let pooler = params.part(Part::Pooler).pp("pooler");
        let pooler = Dense::new(hidden, hidden, INITIALIZER_RANGE, pooler.pp("dense"));
        Self { graph, embeddings, layers, pooler }
    }

    /// Keeps the embedding of `[PAD]` as it is while training.
    pub fn freeze_padding(mut self, pad_token_id: u32) -> Self {
        self.embeddings.word_embeddings = self.embeddings.word_embeddings.freeze(pad_token_id);
        self
    }

    /// `input_ids` `s32[batch, seq]` and an optional attention mask of the same shape (0 hides a token) to the last
    /// hidden states `[batch, seq, hidden]`, of the mode's element type.
    pub fn forward(&self, input_ids: Tensor<'g>, mask: Option<Tensor<'g>>, mode: &Mode<'g>) -> Tensor<'g> {
        let mut hidden = self.graph.scope("embeddings", || self.embeddings.forward(input_ids, mode));
        for (i, layer) in self.layers.iter().enumerate() {
            hidden = self.graph.scope(&format!("encoder/layer.{i}"), || layer.forward(hidden, mask, mode));
        }
        hidden
    }

    /// `BertPooler`: hidden states `[batch, seq, hidden]` to one vector per text, made of its first token's, `[batch, hidden]`.
    pub fn pool(&self, states: Tensor<'g>) -> Tensor<'g> {
        let first = states.narrow(1, 0, 1).reshape(&[states.dim(0), states.dim(2)]);
        self.graph.scope("pooler", || self.pooler.forward(first).tanh())
    }
}

/// `BertEmbeddings`: word, position and token type, normalized. Every token has type 0.
struct Embeddings<'g> {
    word_embeddings: Embedding<'g>,
    /// `[positions, hidden]`
    position_embeddings: Tensor<'g>,
    /// `[types, hidden]`
    token_type_embeddings: Tensor<'g>,
    layer_norm: LayerNorm<'g>,
    dropout: f64,
}

impl<'g> Embeddings<'g> {
    fn new(config: &BertConfig, params: ParamPath<'_, 'g>) -> Self {
        let table =
            |name: &str, rows| params.pp(name).get("weight", &[rows, config.hidden_size], INITIALIZER_RANGE);
        let words = params.pp("word_embeddings");
        Self {
            word_embeddings: Embedding::new(config.vocab_size, config.hidden_size, INITIALIZER_RANGE, words),
            position_embeddings: table("position_embeddings", config.max_position_embeddings),
            token_type_embeddings: table("token_type_embeddings", config.type_vocab_size),
            layer_norm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, params.pp("LayerNorm")),
            dropout: config.hidden_dropout_prob,
        }
    }

    /// `s32[batch, seq]` to `[batch, seq, hidden]`.
    fn forward(&self, input_ids: Tensor<'g>, mode: &Mode<'g>) -> Tensor<'g> {
        let words = self.word_embeddings.forward(input_ids, mode.element_type);
        let positions = self.position_embeddings.narrow(0, 0, input_ids.dim(1));
        let sum = words.convert(positions.shape().element_type)
            + positions
            + self.token_type_embeddings.narrow(0, 0, 1);
        let normalized = self.layer_norm.forward(sum).convert(mode.element_type);
        dropout(normalized, self.dropout, mode).barrier()
    }
}

/// `BertLayer`: self-attention and a feed-forward block, each added to its input and then normalized (post-LN).
struct Layer<'g> {
    attention: SelfAttention<'g>,
    attention_output: Output<'g>,
    intermediate: Dense<'g>,
    activation: Activation,
    output: Output<'g>,
}

impl<'g> Layer<'g> {
    fn new(config: &BertConfig, params: ParamPath<'_, 'g>) -> Self {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let attention = SelfAttention::new(
            hidden,
            config.num_attention_heads,
            config.attention_probs_dropout_prob,
            INITIALIZER_RANGE,
            params.pp("attention").pp("self"),
        );
        Self {
            attention,
            attention_output: Output::new(hidden, config, params.pp("attention").pp("output")),
            intermediate: Dense::new(
                hidden,
                intermediate,
                INITIALIZER_RANGE,
                params.pp("intermediate").pp("dense"),
            ),
            activation: config.hidden_act,
            output: Output::new(intermediate, config, params.pp("output")),
        }
    }

    /// `[batch, seq, hidden]` to the same.
    fn forward(&self, x: Tensor<'g>, mask: Option<Tensor<'g>>, mode: &Mode<'g>) -> Tensor<'g> {
        let graph = x.graph();
        let attended = graph.scope("attention", || {
            let context = self.attention.forward(x, mask, mode);
            self.attention_output.forward(context, x, mode)
        });
        graph.scope("feed_forward", || {
            let inner = self.intermediate.forward(attended);
            let inner = match self.activation {
                Activation::Gelu => inner.gelu(),
                Activation::GeluNew => inner.gelu_tanh(),
                Activation::Relu => inner.relu(),
            };
            self.output.forward(inner, attended, mode)
        })
    }
}

/// `BertSelfOutput` and `BertOutput`: dense, dropout, residual, layer normalization.
struct Output<'g> {
    dense: Dense<'g>,
    layer_norm: LayerNorm<'g>,
    dropout: f64,
}

impl<'g> Output<'g> {
    fn new(inputs: usize, config: &BertConfig, params: ParamPath<'_, 'g>) -> Self {
        Self {
            dense: Dense::new(inputs, config.hidden_size, INITIALIZER_RANGE, params.pp("dense")),
            layer_norm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, params.pp("LayerNorm")),
            dropout: config.hidden_dropout_prob,
        }
    }

    /// `x` `[batch, seq, inputs]` and `residual` `[batch, seq, hidden]` to `[batch, seq, hidden]`.
    fn forward(&self, x: Tensor<'g>, residual: Tensor<'g>, mode: &Mode<'g>) -> Tensor<'g> {
        self.layer_norm.forward(dropout(self.dense.forward(x), self.dropout, mode) + residual).barrier()
    }
}
