//! `bert-xla evaluate`: loss, accuracy and per-class scores of a run on a labelled table.

use std::path::PathBuf;

use clap::Args;

use super::options::{DeviceArgs, TableArgs, count};
use crate::data::{Dataset, Purpose, Table};
use crate::error::Result;
use crate::report::Classification;
use crate::run_folder::RunFolder;
use crate::train::Inference;

/// Measure a trained classifier on a labelled table: loss, accuracy, and each class's precision, recall and F1.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  bert-xla evaluate --run run --data test.csv")]
pub struct EvaluateArgs {
    /// The --output of a training run
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,
    /// The labelled table
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Texts per step, over all replicas
    #[arg(long, default_value_t = 16, value_parser = count(), value_name = "N")]
    pub batch_size: usize,
    #[command(flatten)]
    pub table: TableArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

pub fn run(args: &EvaluateArgs) -> Result<()> {
    let run = RunFolder::open(&args.run)?;
    let table = Table::read(&args.data, &args.table.options(&run.labels), Purpose::Evaluate)?;
    let tokens = run.tokenize(&table.texts)?;
    let data = Dataset::new(&tokens, &table.classes, (0..tokens.len()).collect(), run.model.mask);

    let strategy = args.device.connect()?;
    let config = run.step_config(&strategy, args.batch_size)?;
    let inference = Inference::for_evaluation(&strategy, &config)?;
    let weights = run.upload_weights(&strategy, inference.weights())?;
    let weights = weights.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let evaluation = inference.evaluate(&strategy, &weights, &data)?;

    let num_classes = run.model.head.num_classes;
    let named = |class| Some((class, run.labels.label_of(class)?));
    let names = (0..num_classes as u32).filter_map(named).collect::<Vec<_>>();
    let report =
        Classification::from_probabilities(&table.classes, &evaluation.probabilities, num_classes, &names)?;
    if args.json {
        super::print_json(serde_json::to_string_pretty(&report))
    } else {
        super::print(&format!("{report}\n"))
    }
}
