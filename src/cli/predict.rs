//! `bert-xla predict`: labels the rows of a table.

use std::path::PathBuf;

use clap::Args;

use super::options::TrainedArgs;
use crate::data::{Dataset, Purpose};
use crate::error::Result;
use crate::tables::{class_name, predicted_classes, write_submission};
use crate::train::{Inference, StepKind};

/// Label the rows of a table, and write ID,label in its order.
///
/// A row gets the most probable of the classes that a label stands for; classes without one (class 0 of the recipe)
/// were never trained.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  bert-xla predict --run run --data test.csv --output submission.csv")]
pub struct PredictArgs {
    /// The file to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    // Last, since its headings would go on over what follows.
    #[command(flatten)]
    trained: TrainedArgs,
}

pub fn run(args: &PredictArgs) -> Result<()> {
    let (run, table) = args.trained.open(Purpose::Predict)?;
    let tokens = run.tokenize(&table.texts)?;
    let data = Dataset::new(&tokens, &[], (0..tokens.len()).collect(), run.model.mask);

    let strategy = args.trained.device.connect()?;
    run.agree(&strategy, StepKind::Predict, args.trained.batch_size, &data)?;
    let config = run.step_config(&strategy, args.trained.batch_size)?;
    let inference = Inference::for_prediction(&strategy, &config)?;
    let weights = run.upload_weights(&strategy, inference.weights())?;
    let weights = weights.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let mut classes = Vec::with_capacity(table.texts.len());
    let num_classes = run.model.head.num_classes;
    inference.predict(&strategy, &weights, &data, |probabilities| {
        classes.extend(predicted_classes(&probabilities, num_classes, &run.labels));
        Ok(())
    })?;

    let labels = classes.iter().map(|class| class_name(&run.labels, *class)).collect::<Vec<_>>();
    if strategy.is_chief() {
        write_submission(&args.output, &table.ids, &labels)?;
    }
    let mut summary = format!("{}: {} rows\n", args.output.display(), labels.len());
    for label in run.labels.labels() {
        let count = labels.iter().filter(|predicted| *predicted == label).count();
        summary.push_str(&format!("{label:>8}: {count}\n"));
    }
    super::print(&summary)
}
