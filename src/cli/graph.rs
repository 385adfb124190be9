//! `bert-xla graph`: a step's program as text.

use std::path::PathBuf;

use clap::Args;

use super::model::ClassifierArgs;
use super::options::count;
use crate::error::Result;
use crate::hlo::Graph;
use crate::model::Size;
use crate::run_folder::write_text;
use crate::train::{StepConfig, StepKind};

/// Print a step's program as HLO text, before XLA optimizes it: one instruction a line, grouped by layer.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    bert-xla graph --step train --size tiny\n  \
    bert-xla graph --step train --size mbert --replicas 8 --batch-size 2")]
pub struct GraphArgs {
    /// train, eval or predict
    #[arg(long, value_name = "STEP")]
    step: StepKind,
    /// The encoder: tiny, minilm, mbert, bert-base or bert-large
    #[arg(long, default_value_t = Size::MBert, value_name = "SIZE")]
    size: Size,
    /// Rows that each replica takes
    #[arg(long, default_value_t = 16, value_parser = count(), value_name = "N")]
    batch_size: usize,
    /// Replicas that run it together
    #[arg(long, default_value_t = 1, value_parser = count(), value_name = "N")]
    replicas: usize,
    /// Write to a file instead of stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    // Last, since its heading would go on over what follows.
    #[command(flatten)]
    classifier: ClassifierArgs,
}

pub fn run(args: &GraphArgs) -> Result<()> {
    let model = args.classifier.of_size(args.size)?;
    let config = StepConfig { model, batch_size: args.batch_size, replicas: args.replicas };
    let graph = Graph::new();
    let program = args.step.program(&graph, &config);
    match &args.output {
        Some(path) => write_text(path, &program.to_text()),
        None => super::print(&program.to_text()),
    }
}
