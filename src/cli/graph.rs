//! `bert-xla graph`: a step's program as text.

use std::path::PathBuf;

use clap::Args;

use super::execution::ExecutionArgs;
use super::model::ClassifierArgs;
use super::options::count;
use super::{Console, Result};
use crate::hlo::Graph;
use crate::model::Size;
use crate::step::{Precision, StepConfig, StepKind};
use crate::storage::write_file;

/// Print a step's program as HLO text, before XLA optimizes it: one instruction a line, grouped by layer.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    bert-xla graph --step train --size tiny\n  \
    bert-xla graph --step train --size mbert --replicas 8 --rows 2")]
pub struct GraphArgs {
    /// train, eval or predict
    #[arg(long, value_name = "STEP")]
    step: StepKind,
    /// The encoder: tiny, minilm, mbert, bert-base or bert-large
    #[arg(long, default_value_t = Size::MBert, value_name = "SIZE")]
    size: Size,
    /// Rows that each replica takes
    #[arg(long, alias = "batch-size", default_value_t = 16, value_parser = count(), value_name = "N")]
    rows: usize,
    /// Replicas that run it together
    #[arg(long, default_value_t = 1, value_parser = count(), value_name = "N")]
    replicas: usize,
    /// Write to a file instead of stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    // Last, since their headings would go on over what follows.
    #[command(flatten)]
    execution: ExecutionArgs,
    #[command(flatten)]
    classifier: ClassifierArgs,
}

pub fn run(args: &GraphArgs, console: &Console) -> Result<()> {
    let model = args.classifier.of_size(args.size)?;
    let execution = args.execution.options().resolve(Precision::F32, args.replicas);
    let config = StepConfig { execution, ..StepConfig::new(model, args.rows, args.replicas) };
    let graph = Graph::new();
    let program = args.step.build(&graph, &config).program;
    match &args.output {
        Some(path) => write_file(path, program.to_text().as_bytes())?,
        None => console.print(&program.to_text())?,
    }
    Ok(())
}
