//! `bert-xla evaluate`: loss, accuracy and per-class scores of a run on a labelled table.

use std::sync::Arc;

use clap::Args;

use super::options::TrainedArgs;
use super::{Console, Result, guess_note, plural};
use crate::data::{Labels, Purpose, TableFile};
use crate::infer::Predictor;
use crate::report::Classification;
use crate::run::Run;

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

pub fn run(args: &EvaluateArgs, console: &Arc<Console>) -> Result<()> {
    let trained = &args.trained;
    let run = Run::open(&trained.run)?;
    let options = trained.table.options(&trained.data, Labels::Given(run.labels.clone()))?;
    let table = TableFile::open(&trained.data, &options, Purpose::Evaluate)?;
    let (table, summary) = table.collect()?;

    let replicas = Arc::new(trained.device.connect(console)?);
    console.note_padding(&run.model.bert, &run.tokenizer);
    let predictor = Predictor::open(&run, replicas, trained.batch_size, summary.digest)?;
    if let Some(note) = guess_note(summary.guess.as_ref()) {
        console.note(&note);
    }
    if summary.skipped > 0 {
        console.note(&format!("{}: {} left out", trained.data.display(), plural(summary.skipped, "bad row")));
    }
    let evaluation = predictor.evaluate(&table.texts, &table.classes)?;

    let (labels, num_classes) = (predictor.labels(), predictor.model().head.num_classes());
    let answers = labels.answers(&evaluation.probabilities, num_classes).collect::<Vec<_>>();
    let name = |class| labels.name_of(class).into_owned();
    let report = Classification::new(&table.classes, &answers, evaluation.loss, name)?;
    match args.json {
        true => console.print_json(serde_json::to_string_pretty(&report)),
        false => Ok(console.print(&format!("{report}\n"))?),
    }
}
