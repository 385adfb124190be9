//! `bert-xla predict`: labels the rows of a table.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use clap::Args;

use super::options::TrainedArgs;
use super::output::{Output, check_is_csv, check_is_other, check_is_outside};
use super::{Console, Error, Result, guess_note, part, plural};
use crate::data::{Labels, Purpose, Summary, TableFile, Tokens};
use crate::infer::Ensemble;
use crate::report::one_line;
use crate::run::{Submission, write_submission};
use crate::storage::{FileError, is_stdout};

/// Label the rows of a table, and write ID,label in its order.
///
/// A row gets the most probable of the classes that a label stands for; classes without one (class 0 of the recipe)
/// were never trained. Of several runs, it gets the label with the highest mean probability.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    bert-xla predict --run run --data test.csv --output submission.csv\n  \
    bert-xla predict --run a --run b --weights 2,1 --data test.csv --probabilities --output submission.csv")]
pub struct PredictArgs {
    /// The CSV file to write, with columns ID and label; also gs://bucket/path
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
    check_is_outside("--output", runs.checkpoints(), &args.output)?;
    check_is_csv("--output", &args.output)?;
    let options = trained.table.options(&trained.data, Labels::Given(runs.labels().clone()))?;
    let table = TableFile::open(&trained.data, &options, Purpose::Predict)?;
    // All of it, before a device is taken.
    let checked = table.check()?;

    let replicas = trained.connect(&runs, console)?;
    if let Some(note) = guess_note(checked.guess.as_ref()) {
        console.note(&note);
    }
    let (is_chief, output) = (replicas.is_chief(), Output::new(replicas.clone()));
    let batch_size = trained.batch_size(checked.rows);
    let ensemble = Ensemble::open(&runs, replicas, batch_size, checked.digest)?;
    let mut counts = HashMap::<u32, usize>::new();
    let mut label = |submission: Option<&mut Submission<'_>>| {
        let labelling = Labelling { table: &table, ensemble: &ensemble, batch_size, args };
        let (read, written) = output.steps(|| labelling.run(submission, &mut counts))?;
        written?;
        if read.digest == checked.digest { Ok(()) } else { Err(changed(&trained.data)) }
    };
    let labelled = match is_chief {
        true => write_submission(&args.output, |submission| label(Some(submission))),
        false => label(None),
    };
    // A reader that closes it early, as `head` does, is no failure.
    let is_closed = |error: &Error| {
        matches!(error, Error::File(failed) if failed.source.kind() == ErrorKind::BrokenPipe)
            && is_stdout(&args.output)
    };
    output.end(labelled.or_else(|error| if is_closed(&error) { Ok(()) } else { Err(error) }))?;
    ensemble.padding().saved().iter().for_each(|saved| console.note(saved));
    let skipped = match checked.skipped {
        0 => String::new(),
        skipped => format!(", {} left out", plural(skipped, "bad row")),
    };
    if checked.empty > 0 {
        let empty = plural(checked.empty, "row");
        console.note(&format!("{}: {empty} without a text; labelled all the same", trained.data.display()));
    }
    let mut summary = format!("{}: {}{skipped}\n", args.output.display(), plural(checked.rows, "row"));
    for (label, class) in runs.labels().iter() {
        summary.push_str(&format!(
            "{:>8}: {}\n",
            one_line(label),
            counts.get(&class).copied().unwrap_or_default()
        ));
    }
    Ok(console.print_of(&args.output, summary.trim_end())?)
}

/// The way of a table's rows through models.
struct Labelling<'a> {
    table: &'a TableFile,
    ensemble: &'a Ensemble,
    batch_size: usize,
    args: &'a PredictArgs,
}

/// Rows on their way: their ids, and the tokens that each model takes of their texts.
type Part = (Vec<String>, Vec<Tokens>);

impl Labelling<'_> {
    /// Labels the rows one part after another, writes them if there is a `submission`, and counts the answers; gives what was
    /// read, and whether all was written. That it wasn't is told at the end: on a slice, the others are on their way through
    /// the table, too.
    fn run(
        &self,
        mut submission: Option<&mut Submission<'_>>,
        counts: &mut HashMap<u32, usize>,
    ) -> Result<(Summary, std::result::Result<(), FileError>)> {
        let labels = self.ensemble.labels();
        let mut written = Ok(());
        let read = self.with_parts(|(ids, tokens)| {
            let probabilities = self.ensemble.probabilities_of(&tokens)?;
            let answers = labels.most_probable(&probabilities);
            answers.iter().for_each(|class| *counts.entry(*class).or_default() += 1);
            if let (Some(submission), Ok(())) = (&mut submission, &written) {
                let probabilities = self.args.probabilities.then_some(&*probabilities);
                written = submission
                    .add(&ids, None, labels, &answers, probabilities)
                    .map_err(FileError::new("can't write", "the labels"));
            }
            Ok(())
        })?;
        Ok((read, written))
    }

    /// Gives `each` the rows, a part at a time in their order. The next one is read and tokenized meanwhile, so that the
    /// devices don't wait for it.
    fn with_parts(&self, mut each: impl FnMut(Part) -> Result<()>) -> Result<Summary> {
        let rows = ROWS.min(PROBABILITIES / self.ensemble.labels().classes().len());
        let rows = rows.next_multiple_of(self.batch_size);
        let (table, tokenizers) = (self.table, self.ensemble.tokenizers());
        // Nothing waits in it: no more than two parts are held, one on each side.
        let (sender, parts) = sync_channel(0);
        thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut records = table.records()?;
                loop {
                    let part = part(&mut records, rows, |record| &record.text)?;
                    if part.is_empty() {
                        return Ok(records.summary());
                    }
                    let (ids, texts): (Vec<_>, Vec<_>) =
                        part.into_iter().map(|record| (record.id, record.text)).unzip();
                    let tokens = tokenizers.encode(&texts)?;
                    if sender.send((ids, tokens)).is_err() {
                        // Nobody takes it any more, and says why.
                        return Ok(records.summary());
                    }
                }
            });
            // Dropped before the reader is waited for, whatever happens here.
            parts.into_iter().try_for_each(&mut each)?;
            reader.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

fn changed(data: &Path) -> Error {
    Error::Usage(format!("{}: the table was changed while it was read; nothing was written", data.display()))
}
