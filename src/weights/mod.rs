//! Weights and the files around them: from a folder or the Hub, in the safetensors format, under the checkpoint's names,
//! and the values that those start with which no file gives.

mod download;
mod http;
mod hub;
mod initial;
mod names;
mod pretrained;
mod safetensors;

use std::path::{Path, PathBuf};

use ::safetensors::Dtype;

use crate::storage::BoxError;
pub use http::Timeouts;
pub use hub::{CONFIG, Hub, HubError, ModelFiles, TOKENIZER, WEIGHTS};
pub use initial::InitialValues;
pub use names::key;
pub use pretrained::{open_pretrained, open_tokenizer, open_weights};
pub use safetensors::{TensorFiles, save_safetensors, write_safetensors};

/// Why weights could not be read or written, or don't fit their model. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("can't read {}: {message}", path.display())]
    Read { path: PathBuf, message: String },
    #[error("tensor `{name}` is {}", twice(first, second))]
    Duplicate { name: String, first: PathBuf, second: PathBuf },
    #[error("{}: there is no tensor `{name}`{}", path.display(), nearest(close))]
    Missing { path: PathBuf, name: String, close: Option<String> },
    #[error("{}: tensor `{name}` has the shape {found:?}, expected {expected:?}", path.display())]
    Shape { path: PathBuf, name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("{}: tensor `{name}` has the type {dtype:?}, expected F32, F16 or BF16", path.display())]
    Type { path: PathBuf, name: String, dtype: Dtype },
    #[error(
        "{}: tensor `{name}` {shape:?}{}: the model that config.json describes has no such weight",
        path.display(), more(*others)
    )]
    Unknown {
        path: PathBuf,
        /// The first of them.
        name: String,
        shape: Vec<usize>,
        /// How many there are besides.
        others: usize,
    },
    #[error("{}: this model reads at most {most} tokens, not {max_length}", config.display())]
    MaxLength { config: PathBuf, max_length: usize, most: usize },
    #[error(
        "{}: vocab_size is {vocab_size}, but the tokenizer beside it has {tokens} tokens: the files are not of one model",
        config.display()
    )]
    Vocabulary { config: PathBuf, vocab_size: usize, tokens: usize },
    #[error("can't write {}: {source}", path.display())]
    Write { path: PathBuf, source: BoxError },
}

impl WeightsError {
    /// True where a file is at fault, false where writing failed.
    pub fn is_input_error(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }
}

fn twice(first: &Path, second: &Path) -> String {
    match first == second {
        true => format!("twice in {}", first.display()),
        false => format!("in both {} and {}", first.display(), second.display()),
    }
}

fn nearest(close: &Option<String>) -> String {
    close.as_ref().map_or_else(String::new, |name| format!("; the nearest name is `{name}`"))
}

fn more(others: usize) -> String {
    if others == 0 { String::new() } else { format!(" and {others} more") }
}
