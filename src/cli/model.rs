//! The classifier that the flags of several commands describe.

use clap::{Args, ValueEnum};

use super::options::count;
use super::{Error, Result};
use crate::data::MAX_CLASSES;
use crate::model::head::{DenseHeadConfig, LinearHeadConfig, LstmHeadConfig, OutputActivation};
use crate::model::{BertConfig, ClassifierConfig, HeadConfig, Size};

/// The recipe's tokens per text.
pub const MAX_LENGTH: usize = 140;

/// Of an LSTM, unless a flag says otherwise.
const LSTM_UNITS: usize = 128;

/// The classifier on an encoder.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ClassifierArgs {
    /// Tokens per text; longer ones are cut, shorter ones padded [default: 140, or the run's that --model is; fewer for the
    /// sizes tiny and minilm]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// Hide the padding from attention and from the head (the recipe attends to it): a text's scores don't depend on its length
    /// in tokens then
    #[arg(long)]
    mask: bool,
    /// Width of the output [default: the highest class of the labels, plus one]
    #[arg(long, value_parser = count().range(1..=MAX_CLASSES as u64), value_name = "N")]
    pub num_classes: Option<usize>,
    /// What turns hidden states into classes: `dense`, the recipe's, Flatten and dense layers; `lstm` or `bilstm` before
    /// the dense layers in place of Flatten; `cls`, a BertForSequenceClassification; `mean`, the same on the mean of the
    /// hidden states [default: dense, or the run's that --model is] [possible values: dense, lstm, bilstm, cls, mean]
    #[arg(long, hide_possible_values = true)]
    head: Option<HeadKind>,
    /// Widths of the hidden dense layers [default: 512,440]
    #[arg(long, value_delimiter = ',', action = clap::ArgAction::Set, value_parser = count(), value_name = "N,...")]
    hidden: Option<Vec<usize>>,
    /// Of the last dense layer [default: softplus]
    #[arg(long, value_parser = activation, value_name = "softplus|softmax")]
    activation: Option<OutputActivation>,
    /// Units of the LSTM, in each direction [default: 128]
    #[arg(long, value_parser = count(), value_name = "N")]
    lstm_units: Option<usize>,
    /// Dropout of the head: after each hidden dense layer, or on the text's vector [default: 0.3, and for cls and mean what
    /// the model's config.json says]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    dropout: Option<f64>,
    /// Dropout within the encoder [default: what the model's config.json says]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    encoder_dropout: Option<f64>,
    /// Leave the embedding of [PAD] as it is, as PyTorch does (Keras trains it)
    #[arg(long)]
    freeze_padding: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HeadKind {
    Dense,
    Lstm,
    Bilstm,
    Cls,
    Mean,
}

impl HeadKind {
    fn of(head: &HeadConfig) -> Self {
        match head {
            HeadConfig::Dense(_) => Self::Dense,
            HeadConfig::Lstm(_) => Self::Lstm,
            HeadConfig::Bilstm(_) => Self::Bilstm,
            HeadConfig::Cls(_) => Self::Cls,
            HeadConfig::Mean(_) => Self::Mean,
        }
    }
}

fn activation(name: &str) -> std::result::Result<OutputActivation, String> {
    let all = [OutputActivation::Softplus, OutputActivation::Softmax];
    let found = all.into_iter().find(|activation| activation.name() == name);
    found.ok_or_else(|| "expected softplus or softmax".to_owned())
}

impl ClassifierArgs {
    /// The classifier on the encoder `bert`, with as many tokens and classes unless the flags say otherwise; where they say
    /// nothing, `base` counts, the classifier that the encoder was trained with.
    ///
    /// # Errors
    /// A rate that is none, or more tokens than the encoder has positions for.
    pub fn config(
        &self,
        mut bert: BertConfig,
        max_length: usize,
        num_classes: usize,
        base: Option<&ClassifierConfig>,
    ) -> Result<ClassifierConfig> {
        let usage = |message: String| Err(Error::Usage(message));
        for (flag, rate) in [("--dropout", self.dropout), ("--encoder-dropout", self.encoder_dropout)] {
            if let Some(rate) = rate.filter(|rate| !(0.0..1.0).contains(rate)) {
                return usage(format!("{flag} {rate}: expected a share from 0 to less than 1"));
            }
        }
        if let Some(rate) = self.encoder_dropout {
            (bert.hidden_dropout_prob, bert.attention_probs_dropout_prob) = (rate, rate);
        }
        let max_length = self.max_length.unwrap_or(base.map_or(max_length, |base| base.max_length));
        let most = bert.max_position_embeddings;
        if max_length == 0 || max_length > most {
            return usage(format!("--max-length {max_length}: this encoder reads 1 to {most} tokens"));
        }
        let head = self.head(&bert, self.num_classes.unwrap_or(num_classes), base.map(|base| &base.head))?;
        let mask = self.mask || base.is_some_and(|base| base.mask);
        // A head that goes on from there reads what it was trained to read.
        let same = base.filter(|base| base.mask && base.head == head && base.max_length == max_length);
        let zero_padding = mask && head.reads_padding() && same.is_none_or(|base| base.zero_padding);
        let freeze_padding = self.freeze_padding || base.is_some_and(|base| base.freeze_padding);
        Ok(ClassifierConfig { bert, head, max_length, mask, zero_padding, freeze_padding })
    }

    /// The head for so many classes; where the flags say nothing, as `base` is, if that is of the same kind.
    ///
    /// # Errors
    /// A flag of another head's.
    fn head(&self, bert: &BertConfig, num_classes: usize, base: Option<&HeadConfig>) -> Result<HeadConfig> {
        let kind = self.head.unwrap_or(base.map_or(HeadKind::Dense, HeadKind::of));
        let (is_linear, is_lstm) = match kind {
            HeadKind::Dense => (false, false),
            HeadKind::Lstm | HeadKind::Bilstm => (false, true),
            HeadKind::Cls | HeadKind::Mean => (true, false),
        };
        let stray = [
            ("--hidden", self.hidden.is_some() && is_linear, "dense layers"),
            ("--activation", self.activation.is_some() && is_linear, "dense layers"),
            ("--lstm-units", self.lstm_units.is_some() && !is_lstm, "LSTM"),
        ];
        if let Some((flag, _, what)) = stray.into_iter().find(|(_, is_stray, _)| *is_stray) {
            let name = format!("{kind:?}").to_lowercase();
            return Err(Error::Usage(format!("{flag}: the head {name} has no {what}")));
        }
        let (mut default, mut units, mut dropout) =
            (DenseHeadConfig::default(), LSTM_UNITS, bert.classifier_dropout());
        match base.filter(|base| HeadKind::of(base) == kind) {
            Some(HeadConfig::Dense(dense)) => default = dense.clone(),
            Some(HeadConfig::Lstm(lstm) | HeadConfig::Bilstm(lstm)) => {
                (default, units) = (lstm.dense.clone(), lstm.units);
            }
            Some(HeadConfig::Cls(linear) | HeadConfig::Mean(linear)) => dropout = linear.dropout,
            None => {}
        }
        let dense = DenseHeadConfig {
            hidden: self.hidden.clone().unwrap_or(default.hidden),
            dropout: self.dropout.unwrap_or(default.dropout),
            num_classes,
            activation: self.activation.unwrap_or(default.activation),
        };
        let lstm = |dense| LstmHeadConfig { units: self.lstm_units.unwrap_or(units), dense };
        let linear = LinearHeadConfig { dropout: self.dropout.unwrap_or(dropout), num_classes };
        Ok(match kind {
            HeadKind::Dense => HeadConfig::Dense(dense),
            HeadKind::Lstm => HeadConfig::Lstm(lstm(dense)),
            HeadKind::Bilstm => HeadConfig::Bilstm(lstm(dense)),
            HeadKind::Cls => HeadConfig::Cls(linear),
            HeadKind::Mean => HeadConfig::Mean(linear),
        })
    }

    /// The same for so many tokens per text.
    pub fn with_max_length(&self, max_length: usize) -> Self {
        Self { max_length: Some(max_length), ..self.clone() }
    }

    /// The classifier on an encoder that is known by name.
    ///
    /// # Errors
    /// As of [`config`](Self::config).
    pub fn of_size(&self, size: Size) -> Result<ClassifierConfig> {
        self.config(size.config(), size.max_length(), HeadConfig::default().num_classes(), None)
    }
}
