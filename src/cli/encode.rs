//! `bert-xla encode`: sentences to hidden states.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use clap::Args;

use super::options::{DeviceArgs, count};
use crate::agreement::SharedInputs;
use crate::checkpoint::{Checkpoint, save_safetensors};
use crate::data::{DataError, Dataset, Tokens};
use crate::error::{Error, Result};
use crate::hlo::Graph;
use crate::hub::{Hub, ModelFiles};
use crate::model::BertConfig;
use crate::run_folder::open_tokenizer;
use crate::shape::{ElementType, Shape};
use crate::train::{Inference, InitialValues, encode_step, upload_weights};

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

pub fn run(args: &EncodeArgs) -> Result<()> {
    let files = ModelFiles::resolve(&args.model, args.revision.as_deref(), true, &Hub::from_env()?)?;
    let config = BertConfig::read(&files.config)?;
    let tokens = open_tokenizer(&files, &config, args.max_length)?.encode(&read_lines(&args.input)?)?;
    let data = Dataset::new(&tokens, &[], (0..tokens.len()).collect(), args.mask);
    let checkpoint = Checkpoint::open(&files)?;
    let values = InitialValues::Trained(&checkpoint);
    values.check(&encode_step(&Graph::new(), &config, 1, args.max_length, args.mask, 1).weights)?;

    let strategy = args.device.connect()?;
    let inputs = SharedInputs {
        program: &|graph| encode_step(graph, &config, 1, args.max_length, args.mask, 1).program,
        options: &args.batch_size,
        data: &[&data],
        weights: Some(&checkpoint),
    };
    inputs.agree(&strategy)?;
    let rows = strategy.rows_per_replica(args.batch_size)?;
    let inference = Inference::for_encoding(&strategy, &config, rows, args.max_length, args.mask)?;
    let weights = upload_weights(&strategy, inference.weights(), &values)?;
    let weights = weights.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let mut states = Vec::with_capacity(tokens.input_ids.len() * config.hidden_size);
    inference.predict(&strategy, &weights, &data, |rows| {
        states.extend(rows);
        Ok(())
    })?;
    if strategy.is_chief() {
        save(&args.output, &tokens, &states)?;
    }
    super::print(&format!("{}: {} sentences\n", args.output.display(), tokens.len()))
}

/// The lines of a UTF-8 file.
fn read_lines(path: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    let error = |message: String| Error::Input { path: path.to_owned(), message };
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let mut lines = bytes.split(|byte| *byte == b'\n').collect::<Vec<_>>();
    // A file ends with a line break, or lacks it: neither is one more sentence.
    lines.pop_if(|last| last.is_empty());
    if lines.is_empty() {
        return Err(error("no sentence; expected one a line".into()));
    }
    let text = |(i, line): (usize, &[u8])| match std::str::from_utf8(line) {
        Ok(line) => Ok(line.trim_end_matches('\r').to_owned()),
        Err(_) => Err(error(format!("line {} is not UTF-8", i + 1))),
    };
    lines.into_iter().enumerate().map(text).collect()
}

fn save(path: &Path, tokens: &Tokens, states: &[f32]) -> Result<()> {
    let (rows, length) = tokens.input_ids.dim();
    let hidden = states.len() / (rows * length);
    let ids = tokens.input_ids.iter().copied().collect::<Vec<i32>>();
    let is_token = |(row, position)| i32::from(position < tokens.length(row));
    let mask = (0..rows).flat_map(|row| (0..length).map(move |position| (row, position))).map(is_token);
    let mask = mask.collect::<Vec<i32>>();
    let tensors = [
        ("input_ids".to_owned(), Shape::new(ElementType::S32, [rows, length])),
        ("attention_mask".to_owned(), Shape::new(ElementType::S32, [rows, length])),
        ("last_hidden_state".to_owned(), Shape::new(ElementType::F32, [rows, length, hidden])),
    ];
    let bytes: [&[u8]; 3] =
        [bytemuck::cast_slice(&ids), bytemuck::cast_slice(&mask), bytemuck::cast_slice(states)];
    Ok(save_safetensors(path, &tensors, &[("format", "pt")], |i| Ok(Cow::Borrowed(bytes[i])))?)
}
