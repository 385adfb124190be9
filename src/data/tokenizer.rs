//! Texts to token ids, by the checkpoint's own WordPiece tokenizer.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{
    AddedToken, Encoding, ModelWrapper, NormalizerWrapper, PaddingParams, PaddingStrategy, PostProcessor,
    PreTokenizerWrapper, TruncationParams,
};

use super::tokens::TokenWriter;
use super::{DataError, Tokens};

/// The files that a tokenizer is built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerFiles {
    /// `tokenizer.json`
    Json(PathBuf),
    /// `vocab.txt`, and `tokenizer_config.json` if there is one.
    Vocab { vocab: PathBuf, config: Option<PathBuf> },
}

/// Turns texts into `[CLS] ... [SEP]` of `max_length` tokens at most.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    max_length: usize,
    pad_id: u32,
    /// What `tokenizer.json` says of padding, less its length.
    padding: Option<PaddingParams>,
    words: Words,
}

/// Of a text, mostly enough for a token.
const BYTES: usize = 64;

/// Each of these is a word.
const PUNCTUATION: [char; 5] = [',', '.', ';', '!', '?'];

/// A token of a text.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Piece {
    pub id: u32,
    /// As the vocabulary has it.
    pub text: String,
    /// Whether it was added to the text's own.
    pub special: bool,
    /// Where it is in the text, in characters from 0: up to the one before `stop`.
    pub start: usize,
    pub stop: usize,
}

/// Where a text can be cut, so that the tokens before depend on nothing after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    /// Nowhere that is known.
    Unknown,
    /// After white space, and before punctuation.
    Spaces,
    /// There, and before a Chinese character, each of which is a word.
    SpacesAndChinese,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, whose own truncation and padding are replaced, or builds BERT's tokenizer from
    /// `vocab.txt`. There, lower-casing is as `tokenizer_config.json` says; without that file, texts are
    /// lower-cased if the vocabulary has no upper-case letter.
    ///
    /// # Errors
    /// If a file can't be read or lacks a special token, or if `max_length` leaves no room for text.
    pub fn open(files: &TokenizerFiles, max_length: usize) -> Result<Self, DataError> {
        let (path, inner) = match files {
            TokenizerFiles::Json(path) => (path, tokenizers::Tokenizer::from_file(path)),
            TokenizerFiles::Vocab { vocab, config } => (vocab, word_piece(vocab, config.as_deref())),
        };
        let error = |message: String| DataError::Tokenizer { path: path.clone(), message };
        let mut inner = inner.map_err(|cause| error(format!("not a usable tokenizer: {cause}")))?;
        let padding = inner.get_padding().cloned();
        let padding =
            padding.map(|padding| PaddingParams { strategy: PaddingStrategy::BatchLongest, ..padding });
        let pad_id = match &padding {
            Some(padding) => padding.pad_id,
            None => inner
                .token_to_id("[PAD]")
                .ok_or_else(|| error("the vocabulary has no [PAD] token".to_owned()))?,
        };
        let special = inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if max_length <= special {
            return Err(DataError::Option(format!(
                "a length of {max_length} tokens leaves no room for text beside {special} special tokens"
            )));
        }
        let truncation = TruncationParams { max_length, ..TruncationParams::default() };
        inner.with_padding(None);
        inner.with_truncation(Some(truncation)).map_err(|cause| error(cause.to_string()))?;
        // A word that no vocabulary has, to be told before long work of what would fail then.
        match inner.encode_fast("\u{16df}".repeat(1000), true) {
            Err(cause) => return Err(error(format!("it can't tokenize: {cause}"))),
            Ok(tokens) if tokens.len() > max_length => {
                return Err(error(format!(
                    "it makes {} tokens where {max_length} are allowed",
                    tokens.len()
                )));
            }
            Ok(_) => {}
        }
        let words = words(&inner);
        Ok(Self { inner, max_length, pad_id, padding, words })
    }

    /// The tokenizer as a `tokenizer.json`, without a length limit. It pads with the same token.
    pub fn to_json(&self) -> Result<String, DataError> {
        let error = |cause: tokenizers::Error| DataError::Encode(cause.to_string());
        let mut unlimited = self.inner.clone();
        unlimited.with_padding(self.padding.clone());
        unlimited.with_truncation(None).map_err(error)?;
        unlimited.to_string(true).map_err(error)
    }

    /// One more than the highest token id, which the model's `vocab_size` must reach. There may be ids without a token.
    pub fn vocab_size(&self) -> usize {
        let ids = self.inner.get_vocab(true).into_values().chain([self.pad_id]);
        ids.max().map_or(0, |id| id as usize + 1)
    }

    /// The most tokens of a text.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The token after a text's end: what `tokenizer.json` pads with, else `[PAD]`.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// The special tokens, by transformers' names for them.
    pub fn special_tokens(&self) -> Vec<(&'static str, String)> {
        let pad = self.inner.id_to_token(self.pad_id).map(|token| ("pad_token", token));
        let named = [
            ("unk_token", "[UNK]"),
            ("cls_token", "[CLS]"),
            ("sep_token", "[SEP]"),
            ("mask_token", "[MASK]"),
        ];
        let known = named.into_iter().filter(|(_, token)| self.inner.token_to_id(token).is_some());
        pad.into_iter().chain(known.map(|(name, token)| (name, token.to_owned()))).collect()
    }

    /// Tokenizes all texts, on all cores; of a long one no more than its first tokens take, where its words are told
    /// apart by white space, or are Chinese characters.
    pub fn encode<'t, T: AsRef<str> + ?Sized + 't>(
        &self,
        texts: impl IntoIterator<Item = &'t T>,
    ) -> Result<Tokens, DataError> {
        let mut writer = self.writer(vec![]);
        self.encode_to(texts.into_iter().map(AsRef::as_ref), &mut writer)?;
        Ok(Tokens::of(writer.finish().map_err(encode_error)?, self.pad_id))
    }

    /// The tokens of a single text, and whether it has more than are read.
    pub fn encode_one(&self, text: &str) -> Result<(Vec<u32>, bool), DataError> {
        let (encoding, rest) = self.encode_beginning(text, |text| self.inner.encode_fast(text, true))?;
        let is_cut = !encoding.get_overflowing().is_empty() || self.has_token(rest)?;
        Ok((encoding.get_ids().to_vec(), is_cut))
    }

    /// Of a text no more than is read, where it can be cut; and the rest.
    fn encode_beginning<'t>(
        &self,
        text: &'t str,
        encode: impl Fn(&'t str) -> tokenizers::Result<Encoding>,
    ) -> Result<(Encoding, &'t str), DataError> {
        let mut length = BYTES * self.max_length;
        loop {
            let beginning = self.beginning(text, length);
            let encoding = encode(beginning).map_err(encode_error)?;
            let rest = &text[beginning.len()..];
            if rest.is_empty() || encoding.len() >= self.max_length {
                return Ok((encoding, rest));
            }
            length *= 2;
        }
    }

    /// Whether a text has any token, or is so long that it is taken to have some.
    fn has_token(&self, text: &str) -> Result<bool, DataError> {
        // Far more than people write without a word.
        const LONG: usize = 1 << 16;
        let text = text.trim();
        if text.is_empty() || text.len() > LONG {
            return Ok(!text.is_empty());
        }
        Ok(!self.inner.encode_fast(text, false).map_err(encode_error)?.is_empty())
    }

    /// The tokens that are read of a text, as they are written.
    pub fn pieces(&self, text: &str) -> Result<Vec<Piece>, DataError> {
        let (encoding, _) = self.encode_beginning(text, |text| self.inner.encode_char_offsets(text, true))?;
        let (ids, tokens) = (encoding.get_ids(), encoding.get_tokens());
        let (places, special) = (encoding.get_offsets(), encoding.get_special_tokens_mask());
        let piece = |at: usize| Piece {
            id: ids[at],
            text: tokens[at].clone(),
            special: special[at] == 1,
            start: places[at].0,
            stop: places[at].1,
        };
        Ok((0..encoding.len()).map(piece).collect())
    }

    /// What writes its tokens.
    pub(super) fn writer<W: Write>(&self, writer: W) -> TokenWriter<W> {
        TokenWriter::new(writer, self.max_length, self.vocab_size() as u32)
    }

    /// As [`encode`](Self::encode), to `writer`.
    pub(super) fn encode_to<'t, W: Write>(
        &self,
        mut texts: impl Iterator<Item = &'t str>,
        writer: &mut TokenWriter<W>,
    ) -> Result<(), DataError> {
        // An encoding holds far more than its ids; a chunk at a time bounds what they take.
        const CHUNK: usize = 4096;
        let first = BYTES * self.max_length;
        loop {
            let chunk = texts.by_ref().take(CHUNK).collect::<Vec<_>>();
            if chunk.is_empty() {
                return Ok(());
            }
            let beginnings: Vec<&str> = chunk.iter().map(|text| self.beginning(text, first)).collect();
            let encodings = self.inner.encode_batch_fast(beginnings, true).map_err(encode_error)?;
            for (text, mut encoding) in chunk.into_iter().zip(encodings) {
                let mut length = first;
                while encoding.len() < self.max_length && self.beginning(text, length).len() < text.len() {
                    length *= 2;
                    let beginning = self.beginning(text, length);
                    encoding = self.inner.encode_fast(beginning, true).map_err(encode_error)?;
                }
                writer.push(encoding.get_ids()).map_err(encode_error)?;
            }
        }
    }

    /// The text up to a place after so many bytes where it can be cut, or all of it.
    fn beginning<'t>(&self, text: &'t str, bytes: usize) -> &'t str {
        let start = text.ceil_char_boundary(bytes);
        let cut = |(at, c): (usize, char)| match (self.words, c) {
            (Words::Unknown, _) => None,
            (_, ' ' | '\t' | '\n' | '\r') => Some(start + at + 1),
            (_, c) if PUNCTUATION.contains(&c) => Some(start + at),
            (Words::SpacesAndChinese, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}') => Some(start + at),
            _ => None,
        };
        text[start..].char_indices().find_map(cut).map_or(text, |end| &text[..end])
    }
}

fn encode_error(cause: impl ToString) -> DataError {
    DataError::Encode(cause.to_string())
}

/// BERT's tokenizer goes through a text character by character, and white space and punctuation end a word. Only an
/// added token with some could go on beyond it.
fn words(tokenizer: &tokenizers::Tokenizer) -> Words {
    let mut added = tokenizer.get_added_tokens_decoder().into_values();
    let is_bert = matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)))
        && matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_))
        && added.all(|token| {
            token.content.bytes().all(|byte| byte.is_ascii_graphic()) && !token.content.contains(PUNCTUATION)
        });
    match tokenizer.get_normalizer() {
        Some(NormalizerWrapper::BertNormalizer(bert)) if is_bert && bert.handle_chinese_chars => {
            Words::SpacesAndChinese
        }
        None | Some(NormalizerWrapper::BertNormalizer(_)) if is_bert => Words::Spaces,
        _ => Words::Unknown,
    }
}

/// BERT's tokenizer, as the `transformers` library builds it from a vocabulary.
fn word_piece(vocab: &Path, config: Option<&Path>) -> tokenizers::Result<tokenizers::Tokenizer> {
    /// The settings of `tokenizer_config.json` that change the ids, with their defaults.
    #[derive(serde::Deserialize)]
    struct Config {
        do_lower_case: Option<bool>,
        strip_accents: Option<bool>,
        tokenize_chinese_chars: Option<bool>,
    }

    let model = WordPiece::builder().vocab(WordPiece::read_bytes(&fs::read(vocab)?)?).build()?;
    let config = match config {
        Some(path) => serde_json::from_slice(&fs::read(path)?)
            .map_err(|error| format!("tokenizer_config.json: {error}"))?,
        None => Config { do_lower_case: None, strip_accents: None, tokenize_chinese_chars: None },
    };
    let lower_case = config.do_lower_case.unwrap_or_else(|| !has_upper_case(&model));
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let id_of = |tokenizer: &tokenizers::Tokenizer, token: &str| {
        let id = tokenizer.token_to_id(token).ok_or_else(|| format!("there is no {token} token"))?;
        Ok::<_, String>((token.to_owned(), id))
    };
    let (sep, cls) = (id_of(&tokenizer, "[SEP]")?, id_of(&tokenizer, "[CLS]")?);
    let present: Vec<_> =
        special.into_iter().filter(|token| tokenizer.token_to_id(token).is_some()).collect();
    tokenizer.add_special_tokens(present.into_iter().map(|token| AddedToken::from(token, true)))?;
    tokenizer.with_normalizer(Some(BertNormalizer::new(
        true,
        config.tokenize_chinese_chars.unwrap_or(true),
        config.strip_accents,
        lower_case,
    )))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_post_processor(Some(BertProcessing::new(sep, cls)));
    Ok(tokenizer)
}

/// By ASCII letters: uncased vocabularies do hold capitals that have no lower case, such as a mathematical R.
fn has_upper_case(model: &WordPiece) -> bool {
    let vocab = tokenizers::Model::get_vocab(model);
    vocab.keys().any(|token| !token.starts_with('[') && token.contains(|c: char| c.is_ascii_uppercase()))
}
