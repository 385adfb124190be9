//! A BERT checkpoint's `config.json`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Why a configuration can't be used. Each message is one line.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct ConfigError {
    pub path: PathBuf,
    pub message: String,
}

impl ConfigError {
    /// Always true: the file is at fault.
    pub fn is_input_error(&self) -> bool {
        true
    }
}

/// The sizes of a BERT encoder, under the Hugging Face names; other fields of the file don't matter here.
///
/// Values that `config.json` leaves out are BERT-base's, as in the `transformers` library.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BertConfig {
    /// `bert`: no other family is supported.
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    /// The most tokens that a text can have.
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
    pub hidden_act: Activation,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    /// On a text's vector, before the layer that classifies it; that of the hidden states where it isn't given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classifier_dropout: Option<f64>,
    pub pad_token_id: u32,
    /// Always `absolute`; `relative_key` and its kin are other models.
    pub position_embedding_type: PositionEmbedding,
}

/// The activation between the two dense layers of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// By the error function.
    #[serde(alias = "gelu_python")]
    Gelu,
    /// By the hyperbolic tangent.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    Relu,
}

/// How a token's position enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionEmbedding {
    Absolute,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            model_type: "bert".to_owned(),
            vocab_size: 30_522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            classifier_dropout: None,
            pad_token_id: 0,
            position_embedding_type: PositionEmbedding::Absolute,
        }
    }
}

/// What `cause` is about, which doesn't say it.
fn wrong_field(config: &serde_json::Value, cause: serde_json::Error) -> String {
    let alone = |(name, value): (&String, &serde_json::Value)| {
        let field = serde_json::json!({ name: value });
        Some(format!("{name}: {}", serde_json::from_value::<BertConfig>(field).err()?))
    };
    config.as_object().and_then(|fields| fields.iter().find_map(alone)).unwrap_or(cause.to_string())
}

impl BertConfig {
    /// Reads and checks a `config.json`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let error = |message: String| ConfigError { path: path.to_owned(), message };
        let text = std::fs::read(path).map_err(|cause| error(format!("can't read it: {cause}")))?;
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|cause| error(cause.to_string()))?;
        if !value.is_object() {
            return Err(error("expected a JSON object".to_owned()));
        }
        // The family first: another family's own values should not be what is complained of.
        if let Some(family) = value.get("model_type").filter(|family| *family != "bert") {
            return Err(error(format!("model_type is {family}; only \"bert\" is supported")));
        }
        let config: Self =
            serde_json::from_value(value.clone()).map_err(|cause| error(wrong_field(&value, cause)))?;
        config.check().map_err(error)?;
        Ok(config)
    }

    /// Dropout on the text's vector, as `BertForSequenceClassification` has it.
    pub fn classifier_dropout(&self) -> f64 {
        self.classifier_dropout.unwrap_or(self.hidden_dropout_prob)
    }

    /// What is wrong with the sizes, if anything is.
    pub fn check(&self) -> Result<(), String> {
        // With the most that each can be, far above any real encoder's.
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 16),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 16),
            ("type_vocab_size", self.type_vocab_size, 1 << 16),
        ];
        let rates = [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            ("attention_probs_dropout_prob", self.attention_probs_dropout_prob),
        ];
        let of_classifier = self.classifier_dropout.map(|rate| ("classifier_dropout", rate));
        let mut rates = rates.into_iter().chain(of_classifier);
        if let Some((name, rate)) = rates.find(|(_, rate)| !(0.0..1.0).contains(rate)) {
            return Err(format!("{name} is {rate}; expected a share from 0 to less than 1"));
        }
        if let Some((name, size, most)) = sizes.iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
            return Err(format!("{name} is {size}; expected 1 to {most}"));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(format!(
                "hidden_size {} can't be divided among {} attention heads",
                self.hidden_size, self.num_attention_heads
            ));
        }
        if self.layer_norm_eps.is_nan() || self.layer_norm_eps <= 0.0 {
            return Err(format!("layer_norm_eps is {}, not above 0", self.layer_norm_eps));
        }
        if self.pad_token_id as usize >= self.vocab_size {
            return Err(format!(
                "pad_token_id {} is not below vocab_size {}",
                self.pad_token_id, self.vocab_size
            ));
        }
        Ok(())
    }
}
