//! `bert-xla predict`: labels the rows of a table.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::options::TrainedArgs;
use super::output::{Output, check_is_other};
use super::{Console, Error, Result, guess_note, part, plural};
use crate::data::{Labels, Purpose, Summary, TableFile};
use crate::infer::Ensemble;
use crate::run::{Submission, write_submission};
use crate::storage::FileError;

/// Label the rows of a table, and write ID,label in its order.
///
/// A row gets the most probable of the classes that a label stands for; classes without one (class 0 of the recipe)
/// were never trained. Of several runs, it gets the label with the highest mean probability.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    bert-xla predict --run run --data test.csv --output submission.csv\n  \
    bert-xla predict --run a --run b --weights 2,1 --data test.csv --probabilities --output submission.csv")]
pub struct PredictArgs {
    /// The file to write; also gs://bucket/path
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Also write a column p_LABEL for each label's probability. Classes without a label have none, so that a row may sum
    /// to less than 1
    #[arg(long)]
    probabilities: bool,
    // Last, since its headings would go on over what follows.
    #[command(flatten)]
    trained: TrainedArgs,
}

/// Rows that are read, labelled and written at a time, unless their texts are long or their labels many.
const ROWS: usize = 4096;

/// The most probabilities that are held at a time, but those of a batch.
const PROBABILITIES: usize = 1 << 22;

pub fn run(args: &PredictArgs, console: &Arc<Console>) -> Result<()> {
    let trained = &args.trained;
    let runs = trained.open_runs()?;
    let read = runs.files().chain([trained.data.clone()]).collect::<Vec<_>>();
    check_is_other("--output", &read, &args.output)?;
    let options = trained.table.options(Labels::Given(runs.labels().clone()));
    let table = TableFile::open(&trained.data, &options, Purpose::Predict)?;
    // All of it, before a device is taken.
    let checked = table.check()?;

    let replicas = trained.connect(&runs, console)?;
    if let Some(note) = guess_note(checked.guess.as_ref()) {
        console.note(&note);
    }
    let (is_chief, output) = (replicas.is_chief(), Output::new(replicas.clone()));
    let ensemble = Ensemble::open(&runs, replicas, trained.batch_size, checked.digest)?;
    let mut counts = HashMap::<u32, usize>::new();
    let mut label = |submission: Option<&mut Submission<'_>>| {
        let labelling = Labelling { table: &table, ensemble: &ensemble, args };
        let (read, written) = output.steps(|| labelling.run(submission, &mut counts))?;
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
    for (label, class) in runs.labels().iter() {
        summary.push_str(&format!("{label:>8}: {}\n", counts.get(&class).copied().unwrap_or_default()));
    }
    Ok(console.print(&summary)?)
}

/// The way of a table's rows through models.
struct Labelling<'a> {
    table: &'a TableFile,
    ensemble: &'a Ensemble,
    args: &'a PredictArgs,
}

impl Labelling<'_> {
    /// Labels the rows one part after another, writes them if there is a `submission`, and counts the answers; gives what was
    /// read, and whether all was written. That it wasn't is told at the end: on a slice, the others are on their way through
    /// the table, too.
    fn run(
        &self,
        mut submission: Option<&mut Submission<'_>>,
        counts: &mut HashMap<u32, usize>,
    ) -> Result<(Summary, std::result::Result<(), FileError>)> {
        let (labels, batch_size) = (self.ensemble.labels(), self.args.trained.batch_size);
        let rows = ROWS.min(PROBABILITIES / labels.classes().len()).next_multiple_of(batch_size);
        let mut records = self.table.records()?;
        let mut written = Ok(());
        loop {
            let part = part(&mut records, rows, |record| &record.text)?;
            if part.is_empty() {
                return Ok((records.summary(), written));
            }
            let (ids, texts): (Vec<_>, Vec<_>) =
                part.into_iter().map(|record| (record.id, record.text)).unzip();
            let probabilities = self.ensemble.probabilities(&texts)?;
            let answers = labels.most_probable(&probabilities);
            answers.iter().for_each(|class| *counts.entry(*class).or_default() += 1);
            if let (Some(submission), Ok(())) = (&mut submission, &written) {
                let probabilities = self.args.probabilities.then_some(&*probabilities);
                written = submission
                    .add(&ids, labels, &answers, probabilities)
                    .map_err(FileError::new("can't write", "the labels"));
            }
        }
    }
}

fn changed(data: &Path) -> Error {
    Error::Usage(format!("{}: the table was changed while it was read; nothing was written", data.display()))
}
