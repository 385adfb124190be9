//! The parts of a pretrained model, checked against its configuration.

use super::names::{is_encoders, key};
use super::{ModelFiles, TensorFiles, WeightsError};
use crate::data::{DataError, Tokenizer};
use crate::model::{BertConfig, ClassifierConfig};
use crate::nn::Weight;

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

/// Opens the weights of `model`, all of them.
///
/// # Errors
/// A tensor that has no place in the model.
pub fn open_weights(files: &ModelFiles, model: &ClassifierConfig) -> Result<TensorFiles, WeightsError> {
    let tensors = TensorFiles::open(files)?;
    check_places(files, &tensors, &unused(&tensors, &model.weights()))?;
    Ok(tensors)
}

/// Opens a checkpoint whose encoder is among `weights`. It may have heads, of pretraining or of another classifier.
///
/// # Errors
/// A tensor of the encoder's that is none of `weights`.
pub fn open_pretrained(files: &ModelFiles, weights: &[Weight]) -> Result<TensorFiles, WeightsError> {
    let tensors = TensorFiles::open(files)?;
    let strays = unused(&tensors, weights).into_iter().filter(|name| is_encoders(name)).collect::<Vec<_>>();
    check_places(files, &tensors, &strays)?;
    Ok(tensors)
}

/// The tensors that are none of `weights`.
fn unused(tensors: &TensorFiles, weights: &[Weight]) -> Vec<String> {
    let known = weights.iter().map(|weight| key(&weight.name)).collect();
    tensors.unused(&known).into_iter().map(str::to_owned).collect()
}

fn check_places(files: &ModelFiles, tensors: &TensorFiles, strays: &[String]) -> Result<(), WeightsError> {
    let [first, others @ ..] = strays else { return Ok(()) };
    Err(WeightsError::Unknown {
        path: files.weights.first().cloned().unwrap_or_default(),
        name: first.clone(),
        shape: tensors.shape(first).unwrap_or_default().to_vec(),
        others: others.len(),
    })
}
