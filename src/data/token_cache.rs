//! Token ids kept on disk, so that a table is tokenized once.

use std::fs::File;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::{DataError, Strings, Tokenizer, Tokens};
use crate::storage::{CacheFolder, hex};

/// A folder of tokenized tables. One is found by a hash of all that decides it: the texts, the tokenizer and its length. What is
/// there is mapped into memory: a process has those rows there that it reads.
#[derive(Debug)]
pub struct TokenCache(CacheFolder);

impl TokenCache {
    /// A cache in `folder`, of [`CacheFolder::DEFAULT_LIMIT`].
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(CacheFolder::new(folder, CacheFolder::DEFAULT_LIMIT, ["token", "tokenizing anew"]))
    }

    /// The tokens of `texts`, made by `tokenizer` if they are not there.
    ///
    /// # Errors
    /// A text that the tokenizer fails on.
    pub fn tokens(&self, tokenizer: &Tokenizer, texts: &Strings) -> Result<Tokens, DataError> {
        if !self.0.is_usable() {
            return tokenizer.encode(texts);
        }
        let name = name(tokenizer, texts)?;
        if let Some(file) = self.0.open(&name) {
            if let Some(tokens) = map(&file, tokenizer, texts) {
                self.0.used(&name);
                return Ok(tokens);
            }
            self.0.warn_damaged(&name);
        }
        let written = self.0.write(&name, |file| {
            let mut writer = tokenizer.writer(file);
            tokenizer.encode_to(texts.iter(), &mut writer).map_err(Failure::Caller)?;
            writer.finish()?;
            Ok(())
        });
        match written {
            Ok(file) => match map(&file, tokenizer, texts) {
                Some(tokens) => return Ok(tokens),
                None => self.0.warn_damaged(&name),
            },
            Err(Failure::Caller(error)) => return Err(error),
            Err(Failure::Disk(error)) => self.0.warn_unwritable(&error),
        }
        tokenizer.encode(texts)
    }
}

/// Why nothing was written.
enum Failure {
    Caller(DataError),
    Disk(std::io::Error),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Disk(error)
    }
}

/// What a file holds, if it is whole, and of as many texts.
fn map(file: &File, tokenizer: &Tokenizer, texts: &Strings) -> Option<Tokens> {
    let tokens = Tokens::map(file, tokenizer.pad_id()).ok().flatten()?;
    (tokens.len() == texts.len() && tokens.max_length() == tokenizer.max_length()).then_some(tokens)
}

fn name(tokenizer: &Tokenizer, texts: &Strings) -> Result<String, DataError> {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        // With its length, so that no two lists of parts run together to the same bytes.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(env!("CARGO_PKG_VERSION").as_bytes());
    add(tokenizer.to_json()?.as_bytes());
    add(&(tokenizer.max_length() as u64).to_le_bytes());
    texts.iter().for_each(|text| add(text.as_bytes()));
    Ok(hex(hash))
}
