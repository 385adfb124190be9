//! `bert-xla encode`: sentences to hidden states.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use sha2::{Digest, Sha256};

use super::options::{DeviceArgs, count};
use super::output::{Output, check_is_other};
use super::{Console, Error, Result, part};
use crate::data::{DataError, MAX_ROW, Tokenizer, Tokens};
use crate::infer::Encoder;
use crate::model::BertConfig;
use crate::run::layout::{FILES, RUN};
use crate::run::{self, model_files};
use crate::shape::{ElementType, Shape};
use crate::step::EncodeConfig;
use crate::storage::{FileError, open_for_passes};
use crate::weights::{Hub, open_pretrained, open_tokenizer, save_safetensors};

/// Write the encoder's last hidden states for sentences, one a line of the input.
///
/// The output holds input_ids and attention_mask (s32 [n, max_length]) and last_hidden_state
/// (f32 [n, max_length, hidden]).
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  \
    bert-xla encode --model ./minilm --input sentences.txt --max-length 32 --mask --output states.safetensors")]
pub struct EncodeArgs {
    /// The encoder: a folder, or a model id of the Hugging Face Hub
    #[arg(long, value_name = "ID|DIR")]
    model: String,
    /// Branch, tag or commit of the model id
    #[arg(long)]
    revision: Option<String>,
    /// Sentences, one a line, in UTF-8
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Tokens per sentence; longer ones are cut, shorter ones padded
    #[arg(long, default_value_t = 140, value_name = "TOKENS")]
    max_length: usize,
    /// Hide the padding from attention
    #[arg(long)]
    mask: bool,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Sentences per step, over all replicas
    #[arg(long, default_value_t = 16, value_parser = count(), value_name = "N")]
    batch_size: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Sentences that are read, encoded and written at a time, unless they are long.
const ROWS: usize = 1024;

/// The longest sentence in bytes, as of a table's rows.
const LINE: u64 = MAX_ROW as u64;

pub fn run(args: &EncodeArgs, console: &Arc<Console>) -> Result<()> {
    let model = Path::new(&args.model);
    // Of a run, also those that are not read.
    let kept = FILES.into_iter().chain([RUN]).map(|name| model.join(name));
    check_is_other("--output", &kept.chain([args.input.clone()]).collect::<Vec<_>>(), &args.output)?;
    let files = model_files(&args.model, args.revision.as_deref(), true, &Hub::from_env()?.with_progress())?;
    check_is_other("--output", &files.paths(), &args.output)?;
    let bert = BertConfig::read(&files.config)?;
    let tokenizer = open_tokenizer::<Error>(&files, &bert, args.max_length)?;
    let config = EncodeConfig { bert, max_length: args.max_length, mask: args.mask };
    let tensors = open_pretrained(&files, &config.weights())?;
    config.check(&tensors)?;
    let sentences = Sentences::open(&args.input)?;
    let hash = sentences.hash.clone().chain_update(tokenizer.to_json()?);

    let replicas = Arc::new(args.device.connect(console)?);
    console.note_padding(&config.bert, &tokenizer);
    let (is_chief, output) = (replicas.is_chief(), Output::new(replicas.clone()));
    let encoder = Encoder::open(&config, &tensors, replicas, args.batch_size, hash)?;
    let job = Encoding { sentences: &sentences, tokenizer: &tokenizer, encoder: &encoder, args };
    let encoded = match is_chief {
        true => job.save(config.bert.hidden_size, &output),
        // As many passes as the chief makes, so that none waits long for another.
        false => (0..3).try_for_each(|i| job.part(i, &output, &mut std::io::sink())),
    };
    output.end(encoded)?;
    let told = format!("{}: {} sentences", args.output.display(), sentences.count);
    Ok(console.print_of(&args.output, &told)?)
}

/// A file of sentences, which is gone through more than once.
struct Sentences {
    path: PathBuf,
    file: File,
    count: usize,
    /// Of all of them.
    hash: Sha256,
}

impl Sentences {
    /// Checks a whole file. One that can be read just once, such as a pipe, is copied into a temporary file.
    fn open(path: &Path) -> Result<Self> {
        let read = |source| DataError::Read { path: path.to_owned(), source };
        let file = open_for_passes(path).map_err(read)?;
        let mut sentences = Self { path: path.to_owned(), file, count: 0, hash: Sha256::new() };
        let (mut count, mut hash) = (0, Sha256::new());
        for sentence in sentences.iter()? {
            let sentence = sentence?;
            count += 1;
            add(&mut hash, &sentence);
        }
        if count == 0 {
            return Err(sentences.error("no sentence; expected one a line"));
        }
        (sentences.count, sentences.hash) = (count, hash);
        Ok(sentences)
    }

    fn error(&self, message: &str) -> Error {
        Error::Run(run::Error::Input { path: self.path.clone(), message: message.to_owned() })
    }

    /// The lines, from the first one on.
    fn iter(&self) -> Result<impl Iterator<Item = Result<String>>> {
        let failed = |source| DataError::Read { path: self.path.clone(), source };
        (&self.file).rewind().map_err(failed)?;
        let mut reader = BufReader::new(&self.file);
        let mut number = 0;
        Ok(std::iter::from_fn(move || {
            let mut line = Vec::new();
            number += 1;
            match reader.by_ref().take(LINE + 1).read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Err(source) => return Some(Err(failed(source).into())),
                Ok(read) if read as u64 > LINE && !line.ends_with(b"\n") => {
                    return Some(Err(self.error(&format!("line {number} is longer than {LINE} bytes"))));
                }
                Ok(_) => {}
            }
            line.pop_if(|last| *last == b'\n');
            let marked = if number == 1 { "\u{feff}".as_bytes() } else { b"" };
            let line = line.strip_prefix(marked).unwrap_or(&line);
            Some(match std::str::from_utf8(line) {
                Ok(line) => Ok(line.trim_end_matches('\r').to_owned()),
                Err(_) => Err(self.error(&format!("line {number} is not UTF-8"))),
            })
        }))
    }
}

fn add(hash: &mut Sha256, sentence: &str) {
    hash.update((sentence.len() as u64).to_le_bytes());
    hash.update(sentence);
}

/// Sentences on their way through an encoder.
struct Encoding<'a> {
    sentences: &'a Sentences,
    tokenizer: &'a Tokenizer,
    encoder: &'a Encoder,
    args: &'a EncodeArgs,
}

impl Encoding<'_> {
    /// Tokens, a part of the sentences at a time.
    ///
    /// # Errors
    /// Those of `each`; sentences that are not those of the first pass.
    fn each_part(&self, mut each: impl FnMut(Tokens) -> Result<()>) -> Result<()> {
        let rows = ROWS.next_multiple_of(self.args.batch_size);
        let mut sentences = self.sentences.iter()?;
        let mut hash = Sha256::new();
        loop {
            let part = part(&mut sentences, rows, |sentence: &String| sentence)?;
            if part.is_empty() {
                break;
            }
            part.iter().for_each(|sentence| add(&mut hash, sentence));
            each(self.tokenizer.encode(&part)?)?;
        }
        match hash.finalize() == self.sentences.hash.clone().finalize() {
            true => Ok(()),
            false => Err(self.sentences.error("it was changed while it was read; nothing was written")),
        }
    }

    /// Writes the hidden states, and gives whether all was written. That it wasn't is told at the end: on a slice, the
    /// others are on their way through the sentences, too.
    fn states(&self, writer: &mut dyn Write) -> Result<Result<()>> {
        let mut written = Ok(());
        self.each_part(|tokens| {
            self.encoder.encode(&tokens, |states| {
                if written.is_ok() {
                    written = self.write(writer, &states);
                }
                Ok::<_, Error>(())
            })
        })?;
        Ok(written)
    }

    fn write<T: bytemuck::NoUninit>(&self, writer: &mut dyn Write, values: &[T]) -> Result<()> {
        let written = writer.write_all(bytemuck::cast_slice(values));
        Ok(written.map_err(FileError::new("can't write", &self.args.output))?)
    }

    /// Writes the `i`-th tensor.
    fn part(&self, i: usize, output: &Output, writer: &mut dyn Write) -> Result<()> {
        let length = self.args.max_length;
        match i {
            0 => self.each_part(|tokens| {
                let padding = std::iter::repeat(tokens.pad_id());
                let row = |row| tokens.row(row).chain(padding.clone()).take(length).map(|id| id as i32);
                self.write(writer, &(0..tokens.len()).flat_map(row).collect::<Vec<i32>>())
            }),
            1 => self.each_part(|tokens| {
                let mask = |row| (0..length).map(move |at| (row, at));
                let mask = (0..tokens.len()).flat_map(mask);
                let mask = mask.map(|(row, at)| i32::from(at < tokens.length(row)));
                self.write(writer, &mask.collect::<Vec<i32>>())
            }),
            _ => output.steps(|| self.states(writer)).flatten(),
        }
    }

    /// Writes the file: first the tokens, which for that are made a second time, then the states.
    fn save(&self, hidden: usize, output: &Output) -> Result<()> {
        let (rows, length) = (self.sentences.count, self.args.max_length);
        let tensors = [
            ("input_ids".to_owned(), Shape::new(ElementType::S32, [rows, length])),
            ("attention_mask".to_owned(), Shape::new(ElementType::S32, [rows, length])),
            ("last_hidden_state".to_owned(), Shape::new(ElementType::F32, [rows, length, hidden])),
        ];
        // Not all that goes wrong is the file's fault.
        let mut failed = None;
        let saved = save_safetensors(&self.args.output, &tensors, &[("format", "pt")], |i, writer| {
            self.part(i, output, writer).map_err(|error| {
                failed = Some(error);
                "the encoding has failed".into()
            })
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(saved?),
        }
    }
}
