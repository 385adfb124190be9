//! The classifier that the flags of several commands describe.

use clap::Args;

use super::options::count;
use super::{Error, Result};
use crate::data::MAX_CLASSES;
use crate::model::head::DenseHeadConfig;
use crate::model::{BertConfig, ClassifierConfig, HeadConfig, Size};

/// The recipe's tokens per text.
pub const MAX_LENGTH: usize = 140;

/// The classifier on an encoder.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ClassifierArgs {
    /// Tokens per text; longer ones are cut, shorter ones padded [default: 140, fewer for the sizes tiny and minilm]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// Hide the padding from attention (the recipe attends to it)
    #[arg(long)]
    mask: bool,
    /// Width of the output [default: the highest class of the labels, plus one]
    #[arg(long, value_parser = count().range(1..=MAX_CLASSES as u64), value_name = "N")]
    pub num_classes: Option<usize>,
    /// Dropout after each hidden dense layer of the head
    #[arg(long, default_value_t = 0.3, value_name = "RATE")]
    dropout: f64,
    /// Dropout within the encoder [default: what the model's config.json says]
    #[arg(long, value_name = "RATE")]
    encoder_dropout: Option<f64>,
    /// Leave the embedding of [PAD] as it is, as PyTorch does (Keras trains it)
    #[arg(long)]
    freeze_padding: bool,
}

impl ClassifierArgs {
    /// The classifier on the encoder `bert`, with as many tokens and classes unless the flags say otherwise.
    ///
    /// # Errors
    /// A rate that is none, or more tokens than the encoder has positions for.
    pub fn config(
        &self,
        mut bert: BertConfig,
        max_length: usize,
        num_classes: usize,
    ) -> Result<ClassifierConfig> {
        let usage = |message: String| Err(Error::Usage(message));
        for (flag, rate) in [("--dropout", Some(self.dropout)), ("--encoder-dropout", self.encoder_dropout)] {
            if let Some(rate) = rate.filter(|rate| !(0.0..1.0).contains(rate)) {
                return usage(format!("{flag} {rate}: expected a share from 0 to less than 1"));
            }
        }
        if let Some(rate) = self.encoder_dropout {
            (bert.hidden_dropout_prob, bert.attention_probs_dropout_prob) = (rate, rate);
        }
        let max_length = self.max_length.unwrap_or(max_length);
        let most = bert.max_position_embeddings;
        if max_length == 0 || max_length > most {
            return usage(format!("--max-length {max_length}: this encoder reads 1 to {most} tokens"));
        }
        let num_classes = self.num_classes.unwrap_or(num_classes);
        let head = HeadConfig::Dense(DenseHeadConfig {
            dropout: self.dropout,
            num_classes,
            ..DenseHeadConfig::default()
        });
        Ok(ClassifierConfig { bert, head, max_length, mask: self.mask, freeze_padding: self.freeze_padding })
    }

    /// The classifier on an encoder that is known by name.
    ///
    /// # Errors
    /// As of [`config`](Self::config).
    pub fn of_size(&self, size: Size) -> Result<ClassifierConfig> {
        self.config(size.config(), size.max_length(), HeadConfig::default().num_classes())
    }
}
