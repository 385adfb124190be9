//! One pass over a table, in bounded memory: its rows checked, and their labels and columns understood.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::bad_rows::BadRows;
use super::batch::{Batch, Reader, Values};
use super::columns::Columns;
use super::csv::CsvReader;
use super::json::JsonReader;
use super::labels::Known;
use super::rows::Limits;
use super::window::Source;
use super::{DataError, Format, LabelMap, Labels, Purpose, TableFile, TableOptions, read_error};
use crate::storage::open_once;

/// A row of a table that is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub text: String,
    /// `None` for [`Purpose::Predict`]; with [`Labels::Auto`](super::Labels), the number of its label by first appearance.
    pub class: Option<u32>,
    /// Of the id column, or else the row's number among the file's sound rows, from 1.
    pub id: String,
}

/// What a pass over a table has met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Rows that are used.
    pub rows: usize,
    /// Rows left out because they can't be used.
    pub skipped: usize,
    /// Rows left out because an earlier one has the same text.
    pub duplicates: usize,
    /// Those among them whose label is another.
    pub contradicting: usize,
    /// Rows that are used although their text is empty, or null.
    pub empty: usize,
    /// The columns, from 0, that were taken by their position: `text 1, label 2, id 0`; `None` where names were found or
    /// given.
    pub guess: Option<String>,
    /// SHA-256 of all that is used, in order: two passes with the same one gave the same records.
    pub digest: [u8; 32],
}

/// Iterates over the rows of a file that are used, in its order. CSV and JSON Lines are in UTF-8; a byte order mark is left
/// out. Every text is taken as it is written: one that looks like a number stays as it is. Numbers and booleans of other
/// formats are what pandas would write in CSV, `7`, `0.5` or `True`, but whole ones have no point, `1` for `1.0`. A null is
/// an empty id, an empty text where no labels are looked for, and else a row that can't be used.
///
/// Memory is bounded, however long the file, but for some 50 bytes per text of [`Purpose::Train`]: a few MiB of the
/// file are read and parsed at a time, or a row, which is at most [`MAX_ROW`](super::MAX_ROW) bytes long; of Parquet, a page
/// of each column.
///
/// # Errors
/// The last item may be one. If rows can't be used (a wrong number of fields, a quote not closed properly, more
/// bytes than that, invalid UTF-8, no JSON object, a nested value, an unknown or empty label, an empty text), then without `skip_bad_rows` it is
/// [`DataError::BadRows`], which counts all of them, to the end of the file: at the latest from the first of them on,
/// no record is given.
pub struct Records {
    path: PathBuf,
    skip_bad_rows: bool,
    reader: Box<dyn Reader>,
    batch: Batch,
    tally: Tally,
    ended: bool,
    /// Told now and then how many bytes were unpacked: whether to go on.
    goes_on: Box<dyn Fn(u64) -> bool + Send>,
}

impl Records {
    /// Asks `goes_on` every few rows, sound or not, with the bytes that were unpacked of a compressed file. Once it says no,
    /// the pass ends in [`DataError::Stopped`].
    #[must_use]
    pub fn while_so(self, goes_on: impl Fn(u64) -> bool + Send + 'static) -> Self {
        Self { goes_on: Box::new(goes_on), ..self }
    }

    /// A single pass over a file, which may be a pipe, or in a bucket.
    pub fn open(path: &Path, options: &TableOptions, purpose: Purpose) -> Result<Self, DataError> {
        if options.format_of(path) == Format::Parquet {
            // It begins with its end.
            return TableFile::open(path, options, purpose)?.records();
        }
        let file = open_once(path).map_err(read_error(path))?;
        Self::of_stream(path, Box::new(file), options, purpose, Limits::default())
    }

    /// Of a file that is read from start to end. `path` is for messages.
    pub(super) fn of_stream(
        path: &Path,
        source: Source,
        options: &TableOptions,
        purpose: Purpose,
        limits: Limits,
    ) -> Result<Self, DataError> {
        let reader: Box<dyn Reader> = match options.format_of(path) {
            Format::JsonLines => Box::new(JsonReader::new(path, source, options, purpose, limits)?),
            _ => Box::new(CsvReader::new(path, source, options, purpose, limits)?),
        };
        Ok(Self::new(path, reader, options, purpose))
    }

    /// `path` is for messages.
    pub(super) fn new(
        path: &Path,
        reader: Box<dyn Reader>,
        options: &TableOptions,
        purpose: Purpose,
    ) -> Self {
        Self {
            path: path.to_owned(),
            skip_bad_rows: options.skip_bad_rows,
            reader,
            batch: Batch::default(),
            tally: Tally::new(purpose, &options.labels),
            ended: false,
            goes_on: Box::new(|_| true),
        }
    }

    /// What the pass has met so far: in the whole of the file, once it has ended.
    pub fn summary(&self) -> Summary {
        let &Tally { used: rows, duplicates, contradicting, empty, ref bad, ref digest, .. } = &self.tally;
        let digest = digest.clone().finalize().into();
        let guess = self.reader.columns().and_then(Columns::guess);
        Summary { rows, skipped: bad.total, duplicates, contradicting, empty, guess, digest }
    }

    /// What the classes of the records stand for, once the pass has ended; and where it has met the labels, the class in that
    /// map of each number that it gave.
    pub(super) fn labels(&self) -> (LabelMap, Option<Vec<u32>>) {
        self.tally.labels.resolve()
    }

    fn find(&mut self) -> Result<Option<Record>, DataError> {
        loop {
            while let Some(values) = self.batch.next() {
                let record = self.tally.admit(&values);
                if let Some(message) = self.tally.labels.fault(false) {
                    return Err(DataError::Labels { path: self.path.clone(), message });
                }
                if record.is_some() && !self.has_failed() {
                    return Ok(record);
                }
            }
            if !(self.goes_on)(self.reader.unpacked()) {
                return Err(DataError::Stopped { path: self.path.clone() });
            }
            match self.reader.read(&mut self.tally.bad)? {
                Some(batch) => self.batch = batch,
                None => return self.verdict().map(|()| None),
            }
        }
    }

    fn has_failed(&self) -> bool {
        self.tally.bad.total > 0 && !self.skip_bad_rows
    }

    /// At the end of the file: whether it can be used.
    fn verdict(&mut self) -> Result<(), DataError> {
        let path = self.path.clone();
        let total = self.tally.bad.total;
        if self.has_failed() {
            let BadRows { shown: rows, has_unknown_label, .. } = mem::take(&mut self.tally.bad);
            Err(DataError::BadRows { path, rows, total, has_unknown_label })
        } else if self.tally.used == 0 {
            Err(DataError::NoRows { path, skipped: total, rows: mem::take(&mut self.tally.bad.shown) })
        } else if let Some(message) = self.tally.labels.fault(true) {
            Err(DataError::Labels { path, message })
        } else {
            Ok(())
        }
    }
}

impl Iterator for Records {
    type Item = Result<Record, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = self.find().transpose();
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}

/// What has come of the rows so far.
struct Tally {
    purpose: Purpose,
    /// Sound rows, without the header.
    sound: usize,
    used: usize,
    duplicates: usize,
    contradicting: usize,
    empty: usize,
    bad: BadRows,
    labels: Known,
    /// Half the SHA-256 of every text, and its class: two texts with the same one would not be found in a lifetime.
    seen: HashMap<[u64; 2], Option<u32>>,
    digest: Sha256,
}

impl Tally {
    fn new(purpose: Purpose, labels: &Labels) -> Self {
        let (bad, labels) = (BadRows::default(), Known::new(labels));
        let (seen, digest) = (HashMap::new(), Sha256::new());
        let [sound, used, duplicates, contradicting, empty] = [0; 5];
        Self { purpose, sound, used, duplicates, contradicting, empty, bad, labels, seen, digest }
    }

    /// Makes a record of a row, unless it can't be used or is a duplicate.
    fn admit(&mut self, values: &Values<'_>) -> Option<Record> {
        let &Values { place, text, label, id } = values;
        self.sound += 1;
        // Where labels are looked for, there must be texts and labels.
        let missing = match (text, label) {
            (_, None) => None,
            (None, _) => Some("the text is null"),
            (Some(text), _) if text.trim().is_empty() => Some("the text is empty"),
            (_, Some(None)) => Some("the label is null"),
            _ => None,
        };
        if let Some(missing) = missing {
            self.bad.add(place, || missing.to_owned());
            return None;
        }
        let (text, label) = (text.unwrap_or_default(), label.flatten());
        if let Some(reason) = label.and_then(|label| self.labels.refusal(label)) {
            self.bad.add(place, reason);
            self.bad.has_unknown_label |= matches!(self.labels, Known::Given(_));
            return None;
        }
        self.empty += usize::from(text.trim().is_empty());
        let class = match self.purpose {
            Purpose::Train => match self.seen.entry(hash(text)) {
                Entry::Occupied(first) => {
                    self.duplicates += 1;
                    // Labels that only duplicates have are none.
                    let its = label.and_then(|label| self.labels.known(label));
                    self.contradicting += usize::from(*first.get() != its);
                    return None;
                }
                Entry::Vacant(new) => *new.insert(label.and_then(|label| self.labels.class_of(label))),
            },
            Purpose::Evaluate | Purpose::Predict => label.and_then(|label| self.labels.class_of(label)),
        };
        let id = id.map_or_else(|| self.sound.to_string(), |id| id.unwrap_or_default().to_owned());
        let record = Record { text: text.to_owned(), class, id };
        self.used += 1;
        record.add_to(&mut self.digest);
        Some(record)
    }
}

impl Record {
    fn add_to(&self, digest: &mut Sha256) {
        let Self { text, class, id } = self;
        for part in [text, id] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.update(class.map_or(-1, i64::from).to_le_bytes());
    }
}

fn hash(text: &str) -> [u64; 2] {
    let hash = Sha256::digest(text);
    [0, 8].map(|start| u64::from_le_bytes(std::array::from_fn(|i| hash[start + i])))
}

#[cfg(test)]
mod tests;
