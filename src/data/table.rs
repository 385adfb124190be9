//! How a table is read: in passes over its records, or at once into texts, classes and ids.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::batch::Reader;
use super::records::{Records, Summary, read_error};
use super::rows::Limits;
use super::{ColumnRef, DataError, Format, LabelMap, Labels};
use crate::storage::open_for_passes;

/// What a table is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Labels are needed, and each text is kept once.
    Train,
    /// Labels are needed, and every row is kept.
    Evaluate,
    /// No label is looked for, and every row is kept, those with an empty text too.
    Predict,
}

/// Whether the first row of a file names its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// It is data.
    Absent,
    /// It does, and at least one of those that are used by its name, none by a number. One that doesn't is refused, lest a
    /// row of data be lost.
    Expected,
    /// It does, whatever it says.
    Present,
}

/// How a file is laid out.
///
/// Columns that are not given are found by the names `text`, `label` and `id` if the header has any of them.
/// Otherwise, if neither the text's nor the label's column is given, by position:
///
/// | columns | with labels | [`Purpose::Predict`] |
/// |---|---|---|
/// | 1 | - | text |
/// | 2 | label, text | id, text |
/// | 3 or more | id, text, label | id, text |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// `None` for what the file's name says, see [`Format::of`].
    pub format: Option<Format>,
    /// Of CSV: an ASCII character.
    pub separator: u8,
    /// Of CSV: the ASCII character that may enclose a field; `None` where quotes are part of the text.
    pub quote: Option<u8>,
    /// Of CSV; the columns of other formats have names always, which need not be those that are looked for.
    pub header: Header,
    pub text_column: Option<ColumnRef>,
    pub label_column: Option<ColumnRef>,
    pub id_column: Option<ColumnRef>,
    pub labels: Labels,
    /// Leave out and count rows that can't be used, rather than stop.
    pub skip_bad_rows: bool,
}

/// Comma-separated with a header, and the recipe's labels.
impl Default for TableOptions {
    fn default() -> Self {
        Self {
            format: None,
            separator: b',',
            quote: Some(b'"'),
            header: Header::Expected,
            text_column: None,
            label_column: None,
            id_column: None,
            labels: Labels::Given(LabelMap::default()),
            skip_bad_rows: false,
        }
    }
}

impl TableOptions {
    /// The format of the file at `path`.
    pub fn format_of(&self, path: &Path) -> Format {
        self.format.unwrap_or_else(|| Format::of(path))
    }
}

/// Parses a separator: one ASCII character, `\t` or `tab`.
pub fn parse_separator(text: &str) -> Result<u8, DataError> {
    match (text, text.as_bytes()) {
        (r"\t" | "tab", _) => Ok(b'\t'),
        (_, &[byte]) if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(byte),
        _ => Err(DataError::Option(format!("separator `{text}`: expected one ASCII character, or \\t"))),
    }
}

/// Parses a quote character: one ASCII character, or `none`.
pub fn parse_quote(text: &str) -> Result<Option<u8>, DataError> {
    match (text, text.as_bytes()) {
        ("none", _) => Ok(None),
        (_, &[byte]) if byte.is_ascii_punctuation() => Ok(Some(byte)),
        _ => Err(DataError::Option(format!("quote `{text}`: expected one ASCII character, or none"))),
    }
}

/// A table that can be gone through several times, be it a pipe.
#[derive(Clone, Debug)]
pub struct TableFile {
    path: PathBuf,
    /// Opened once: what is at the path later doesn't count.
    file: Arc<File>,
    options: TableOptions,
    purpose: Purpose,
}

impl TableFile {
    /// Opens a file. One that can be read just once, such as a pipe, is copied into a temporary file, to its end; so is
    /// one in a bucket.
    pub fn open(path: &Path, options: &TableOptions, purpose: Purpose) -> Result<Self, DataError> {
        let file = Arc::new(open_for_passes(path).map_err(read_error(path))?);
        Ok(Self { path: path.to_owned(), file, options: options.clone(), purpose })
    }

    /// A new pass, from the first record on. Passes don't disturb each other.
    pub fn records(&self) -> Result<Records, DataError> {
        let Self { path, file, options, purpose } = self;
        if options.format_of(path) == Format::Parquet {
            let reader = parquet_reader(path, file.clone(), options, *purpose)?;
            return Ok(Records::new(path, reader, options, *purpose));
        }
        let source = Box::new(Pass::new(file.clone(), 0));
        Records::of_stream(path, source, options, *purpose, Limits::default())
    }

    /// All records, and what the pass has met.
    pub fn collect(&self) -> Result<(Table, Summary), DataError> {
        Table::collect(self.records()?)
    }

    /// Makes a whole pass: an error that any other pass would end with is found here.
    pub fn check(&self) -> Result<Summary, DataError> {
        let mut records = self.records()?;
        records.try_for_each(|record| record.map(drop))?;
        Ok(records.summary())
    }
}

#[cfg(feature = "parquet")]
fn parquet_reader(
    path: &Path,
    file: Arc<File>,
    options: &TableOptions,
    purpose: Purpose,
) -> Result<Box<dyn Reader>, DataError> {
    Ok(Box::new(super::parquet::ParquetReader::new(path, file, options, purpose)?))
}

#[cfg(not(feature = "parquet"))]
fn parquet_reader(
    path: &Path,
    _: Arc<File>,
    _: &TableOptions,
    _: Purpose,
) -> Result<Box<dyn Reader>, DataError> {
    Err(DataError::NoParquet { path: path.to_owned() })
}

/// Reads a file that others read, too.
pub(super) struct Pass {
    file: Arc<File>,
    position: u64,
}

impl Pass {
    /// From the byte at `position` on.
    pub fn new(file: Arc<File>, position: u64) -> Self {
        Self { file, position }
    }
}

impl Read for Pass {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.position)?;
        self.position += length as u64;
        Ok(length)
    }
}

/// The rows of a file that are used, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub texts: Vec<String>,
    /// One per text; empty for [`Purpose::Predict`].
    pub classes: Vec<u32>,
    /// What the classes stand for.
    pub labels: LabelMap,
    /// One per text: the id column, or else the row's number among the file's sound rows, from 1.
    pub ids: Vec<String>,
    /// Rows left out because an earlier one has the same text.
    pub duplicates: usize,
    /// Those among them whose label is another.
    pub contradicting: usize,
    /// Rows left out because they can't be used.
    pub skipped: usize,
    /// See [`Summary::guess`].
    pub guess: Option<String>,
}

impl Table {
    /// Collects all [`Records`] of a file, which may be a pipe.
    pub fn read(path: &Path, options: &TableOptions, purpose: Purpose) -> Result<Self, DataError> {
        Ok(Self::collect(Records::open(path, options, purpose)?)?.0)
    }

    fn collect(mut records: Records) -> Result<(Self, Summary), DataError> {
        let mut table = Self::default();
        for record in &mut records {
            let record = record?;
            table.texts.push(record.text);
            table.classes.extend(record.class);
            table.ids.push(record.id);
        }
        let (labels, classes) = records.labels();
        if let Some(classes) = classes {
            table.classes.iter_mut().for_each(|class| *class = classes[*class as usize]);
        }
        let summary = records.summary();
        let Summary { duplicates, contradicting, skipped, ref guess, .. } = summary;
        let guess = guess.clone();
        Ok((Self { labels, duplicates, contradicting, skipped, guess, ..table }, summary))
    }
}
