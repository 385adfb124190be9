//! `bert-xla graph`: a step's program as text.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::options::count;
use crate::error::{Error, Result};
use crate::hlo::{Graph, Program};
use crate::model::{ClassifierConfig, HeadConfig, Size};
use crate::run_folder::write_text;
use crate::train::{StepConfig, eval_step, predict_step, train_step};

/// Print a step's program as HLO text, before XLA optimizes it: one instruction a line, grouped by layer.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    bert-xla graph --step train --size tiny\n  \
    bert-xla graph --step train --size mbert --replicas 8 --batch-size 2")]
pub struct GraphArgs {
    #[arg(long, value_enum)]
    step: StepName,
    /// The encoder: tiny, minilm, mbert, bert-base or bert-large
    #[arg(long, default_value_t = Size::MBert, value_name = "SIZE")]
    size: Size,
    /// Rows that each replica takes
    #[arg(long, default_value_t = 16, value_parser = count(), value_name = "N")]
    batch_size: usize,
    /// Replicas that run it together
    #[arg(long, default_value_t = 1, value_parser = count(), value_name = "N")]
    replicas: usize,
    /// Tokens per text [default: 140; 24 for tiny, 64 for minilm]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// With an attention mask
    #[arg(long)]
    mask: bool,
    /// Write to a file instead of stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StepName {
    Train,
    Eval,
    Predict,
}

pub fn run(args: &GraphArgs) -> Result<()> {
    let bert = args.size.config();
    let max_length = args.max_length.unwrap_or(args.size.max_length());
    let most = bert.max_position_embeddings;
    if max_length == 0 || max_length > most {
        let message = format!("--max-length {max_length}: {} reads 1 to {most} tokens", args.size);
        return Err(Error::Usage(message));
    }
    let model = ClassifierConfig {
        bert,
        head: HeadConfig::default(),
        max_length,
        mask: args.mask,
        freeze_padding: false,
    };
    let config = StepConfig { model, batch_size: args.batch_size, replicas: args.replicas };
    let graph = Graph::new();
    let program: Program<'_> = match args.step {
        StepName::Train => train_step(&graph, &config).program,
        StepName::Eval => eval_step(&graph, &config).program,
        StepName::Predict => predict_step(&graph, &config).program,
    };
    match &args.output {
        Some(path) => write_text(path, &program.to_text()),
        None => super::print(&program.to_text()),
    }
}
