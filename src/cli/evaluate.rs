//! `bert-xla evaluate`: loss, accuracy and per-class scores of a run on a labelled table.

use clap::Args;

use super::options::TrainedArgs;
use crate::data::{Dataset, Purpose};
use crate::error::Result;
use crate::report::Classification;
use crate::train::{Inference, StepKind};

/// Measure a trained classifier on a labelled table: loss, accuracy, and each class's precision, recall and F1.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  bert-xla evaluate --run run --data test.csv")]
pub struct EvaluateArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    // Last, since its headings would go on over what follows.
    #[command(flatten)]
    trained: TrainedArgs,
}

pub fn run(args: &EvaluateArgs) -> Result<()> {
    let (run, table) = args.trained.open(Purpose::Evaluate)?;
    let tokens = run.tokenize(&table.texts)?;
    let data = Dataset::new(&tokens, &table.classes, (0..tokens.len()).collect(), run.model.mask);

    let strategy = args.trained.device.connect()?;
    run.agree(&strategy, StepKind::Eval, args.trained.batch_size, &data)?;
    let config = run.step_config(&strategy, args.trained.batch_size)?;
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
