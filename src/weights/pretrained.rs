//! The parts of a pretrained model, checked against its configuration.

use super::names::key;
use super::{ModelFiles, TensorFiles, WeightsError};
use crate::data::{DataError, Tokenizer};
use crate::model::{BertConfig, ClassifierConfig};

/// The tokenizer of a model, for texts of `max_length` tokens.
///
/// # Errors
/// Texts longer than the model reads, or a vocabulary larger than its embedding.
pub fn open_tokenizer<E: From<WeightsError> + From<DataError>>(
    files: &ModelFiles,
    bert: &BertConfig,
    max_length: usize,
) -> Result<Tokenizer, E> {
    let (config, most, vocab_size) = (files.config.clone(), bert.max_position_embeddings, bert.vocab_size);
    if max_length > most {
        return Err(WeightsError::MaxLength { config, max_length, most }.into());
    }
    let tokenizer = Tokenizer::open(&files.tokenizer, max_length)?;
    let tokens = tokenizer.vocab_size();
    if tokens > vocab_size {
        return Err(WeightsError::Vocabulary { config, vocab_size, tokens }.into());
    }
    Ok(tokenizer)
}

/// Opens the weights of `model`, or of its encoder alone.
///
/// # Errors
/// A tensor that has no place in the model.
pub fn open_weights(files: &ModelFiles, model: &ClassifierConfig) -> Result<TensorFiles, WeightsError> {
    let tensors = TensorFiles::open(files)?;
    let weights = model.weights();
    let known = weights.iter().map(|weight| key(&weight.name)).collect::<Vec<_>>();
    if let [first, others @ ..] = tensors.unused(&known).as_slice() {
        return Err(WeightsError::Unknown {
            path: files.weights.first().cloned().unwrap_or_default(),
            name: (*first).to_owned(),
            shape: tensors.shape(first).unwrap_or_default().to_vec(),
            others: others.len(),
        });
    }
    Ok(tensors)
}
