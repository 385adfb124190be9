//! `bert-xla evaluate`: loss, accuracy and per-class scores of runs on a labelled table.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::options::TrainedArgs;
use super::output::{check_is_csv, check_is_other, check_is_outside, check_is_png, place};
use super::{Console, Error, Result, guess_note, plural};
use crate::data::{Labels, Purpose, TableFile};
use crate::infer::Ensemble;
use crate::report::{Classification, confusion_chart};
use crate::run::WrongRows;
use crate::storage::write_file;

/// Measure a trained classifier on a labelled table: loss, accuracy, and each class's precision, recall and F1.
///
/// Of several runs, all of this is of their mean probabilities.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    bert-xla evaluate --run run --data test.csv\n  \
    bert-xla evaluate --run run --data test.csv --confusion confusion.png --errors errors.csv")]
pub struct EvaluateArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw the confusion matrix into this PNG file; labels beyond Latin letters are told by their class's number. Also
    /// gs://bucket/path
    #[arg(long, value_name = "FILE")]
    confusion: Option<PathBuf>,
    /// Write the rows whose answer is wrong into this CSV file, those first of which the model is surest; also
    /// gs://bucket/path
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
    // Last, since its headings would go on over what follows.
    #[command(flatten)]
    trained: TrainedArgs,
}

pub fn run(args: &EvaluateArgs, console: &Arc<Console>) -> Result<()> {
    let trained = &args.trained;
    let runs = trained.open_runs()?;
    let read = runs.files().chain([trained.data.clone()]).collect::<Vec<_>>();
    for (flag, output) in [("--confusion", &args.confusion), ("--errors", &args.errors)] {
        if let Some(output) = output {
            check_is_other(flag, &read, output)?;
            check_is_outside(flag, runs.checkpoints(), output)?;
        }
    }
    if let Some(errors) = &args.errors {
        check_is_csv("--errors", errors)?;
    }
    if let Some(confusion) = &args.confusion {
        check_is_png("--confusion", confusion)?;
    }
    if let (Some(confusion), Some(errors)) = (&args.confusion, &args.errors)
        && place(confusion) == place(errors)
    {
        let message = "--confusion and --errors name the same file";
        return Err(Error::Usage(format!("{message}, {}", confusion.display())));
    }
    let options = trained.table.options(&trained.data, Labels::Given(runs.labels().clone()))?;
    let table = TableFile::open(&trained.data, &options, Purpose::Evaluate)?;
    let (table, summary) = table.collect()?;

    let replicas = trained.connect(&runs, console)?;
    let batch_size = trained.batch_size(summary.rows);
    let ensemble = Ensemble::open(&runs, replicas.clone(), batch_size, summary.digest)?;
    if let Some(note) = guess_note(summary.guess.as_ref()) {
        console.note(&note);
    }
    if summary.skipped > 0 {
        console.note(&format!("{}: {} left out", trained.data.display(), plural(summary.skipped, "bad row")));
    }
    let scores = ensemble.evaluate(&table.texts, &table.classes)?;
    ensemble.padding().saved().iter().for_each(|saved| console.note(saved));

    let labels = ensemble.labels();
    let answers = labels.most_probable(&scores.probabilities);
    let name = |class| labels.name_of(class).into_owned();
    let report = Classification::new(&table.classes, &answers, scores.loss, name)?;
    let printed = match args.json {
        true => console.print_json(serde_json::to_string_pretty(&report)),
        false => console.print(&format!("{report}\n")).map_err(Error::from),
    };
    let wrong = WrongRows { table: &table, answers: &answers, probabilities: &scores.probabilities, labels };
    // The chief's alone may fail.
    let write = |()| if replicas.is_chief() { write_files(args, &report, &wrong, console) } else { Ok(()) };
    replicas.meet("saving", printed.and_then(write))
}

/// Writes what was asked for beside the report.
fn write_files(
    args: &EvaluateArgs,
    report: &Classification,
    wrong: &WrongRows<'_>,
    console: &Console,
) -> Result<()> {
    if let Some(path) = &args.confusion {
        write_file(path, &confusion_chart(report)?)?;
        console.note(&format!("Drawn in {}", path.display()));
    }
    if let Some(path) = &args.errors {
        wrong.save(path)?;
        console.note(&format!("Wrong answers in {}", path.display()));
    }
    Ok(())
}
