//! How a table is read: in passes over its records, or at once into texts, classes and ids.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::batch::Reader;
use super::pass::Pass;
use super::records::{Records, Summary};
use super::rows::Limits;
use super::{DataError, Format, LabelMap, Purpose, Strings, TableOptions, read_error};
use crate::storage::open_for_passes;

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

    /// A file that was opened already, and can be read again. `path` is for messages, and for its format where `options` say
    /// none.
    pub fn of_file(path: &Path, file: File, options: &TableOptions, purpose: Purpose) -> Self {
        Self { path: path.to_owned(), file: Arc::new(file), options: options.clone(), purpose }
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

/// The rows of a file that are used, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub texts: Strings,
    /// One per text; empty for [`Purpose::Predict`].
    pub classes: Vec<u32>,
    /// What the classes stand for.
    pub labels: LabelMap,
    /// One per text: the id column, or else the row's number among the file's sound rows, from 1.
    pub ids: Strings,
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
            table.texts.push(&record.text);
            table.classes.extend(record.class);
            table.ids.push(&record.id);
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
