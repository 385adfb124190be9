//! `bert-xla predict`: labels the rows of a table.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::options::TrainedArgs;
use super::output::{Output, check_is_other};
use super::{Console, Error, Result, guess_note, part, plural};
use crate::data::{Labels, Purpose, Summary, TableFile};
use crate::infer::Predictor;
use crate::run::layout::{FILES, RUN};
use crate::run::{Run, Submission, write_submission};
use crate::storage::FileError;

/// Label the rows of a table, and write ID,label in its order.
///
/// A row gets the most probable of the classes that a label stands for; classes without one (class 0 of the recipe)
/// were never trained.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  bert-xla predict --run run --data test.csv --output submission.csv")]
pub struct PredictArgs {
    /// The file to write; also gs://bucket/path
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    // Last, since its headings would go on over what follows.
    #[command(flatten)]
    trained: TrainedArgs,
}

/// Rows that are read, labelled and written at a time, unless their texts are long.
const ROWS: usize = 4096;

pub fn run(args: &PredictArgs, console: &Arc<Console>) -> Result<()> {
    let trained = &args.trained;
    let run_files = FILES.into_iter().chain([RUN]).map(|name| trained.run.join(name)).collect::<Vec<_>>();
    let read = run_files.iter().chain([&trained.data]).map(PathBuf::as_path).collect::<Vec<_>>();
    check_is_other(&read, &args.output)?;
    let run = Run::open(&trained.run)?;
    let options = trained.table.options(&trained.data, Labels::Given(run.labels.clone()))?;
    let table = TableFile::open(&trained.data, &options, Purpose::Predict)?;
    // All of it, before a device is taken.
    let checked = table.check()?;

    let replicas = Arc::new(trained.device.connect(console)?);
    console.note_padding(&run.model.bert, &run.tokenizer);
    if let Some(note) = guess_note(checked.guess.as_ref()) {
        console.note(&note);
    }
    let (is_chief, output) = (replicas.is_chief(), Output::new(replicas.clone()));
    let predictor = Predictor::open(&run, replicas, trained.batch_size, checked.digest)?;
    let mut counts = HashMap::<u32, usize>::new();
    let mut label = |submission: Option<&mut Submission<'_>>| {
        let (read, written) = output.steps(|| label_rows(&table, &predictor, submission, &mut counts))?;
        written?;
        if read.digest == checked.digest { Ok(()) } else { Err(changed(&trained.data)) }
    };
    let labelled = match is_chief {
        true => write_submission(&args.output, |submission| label(Some(submission))),
        false => label(None),
    };
    output.end(labelled)?;
    let skipped = match checked.skipped {
        0 => String::new(),
        skipped => format!(", {} left out", plural(skipped, "bad row")),
    };
    let mut summary = format!("{}: {}{skipped}\n", args.output.display(), plural(checked.rows, "row"));
    for (label, class) in run.labels.iter() {
        summary.push_str(&format!("{label:>8}: {}\n", counts.get(&class).copied().unwrap_or_default()));
    }
    Ok(console.print(&summary)?)
}

/// Labels the rows of `table` one part after another, writes them if there is a `submission`, and counts the answers; gives
/// what was read, and whether all was written. That it wasn't is told at the end: on a slice, the others are on their way
/// through the table, too.
fn label_rows(
    table: &TableFile,
    predictor: &Predictor,
    mut submission: Option<&mut Submission<'_>>,
    counts: &mut HashMap<u32, usize>,
) -> Result<(Summary, std::result::Result<(), FileError>)> {
    let (labels, num_classes) = (predictor.labels(), predictor.model().head.num_classes());
    let rows = ROWS.next_multiple_of(predictor.batch_size());
    let mut records = table.records()?;
    let mut written = Ok(());
    loop {
        let part = part(&mut records, rows, |record| &record.text)?;
        if part.is_empty() {
            return Ok((records.summary(), written));
        }
        let (ids, texts): (Vec<_>, Vec<_>) = part.into_iter().map(|record| (record.id, record.text)).unzip();
        let probabilities = predictor.probabilities(&texts)?;
        let answers = labels.answers(&probabilities, num_classes).collect::<Vec<_>>();
        answers.iter().for_each(|class| *counts.entry(*class).or_default() += 1);
        if let (Some(submission), Ok(())) = (&mut submission, &written) {
            let names = answers.iter().map(|class| labels.name_of(*class)).collect::<Vec<_>>();
            written = submission.add(&ids, &names).map_err(FileError::new("can't write", "the labels"));
        }
    }
}

fn changed(data: &Path) -> Error {
    Error::Usage(format!("{}: the table was changed while it was read; nothing was written", data.display()))
}
