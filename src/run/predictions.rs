//! The CSV files of predictions.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use polars::prelude::*;

use crate::data::LabelMap;
use crate::storage::{FileError, write_atomic};

/// The held-out rows with their labels and probabilities.
pub struct DevPredictions<'a> {
    /// Row numbers, from 0, in the table without duplicates.
    pub rows: &'a [usize],
    /// The first row of each file that the table is of: rows are told as their file's.
    pub files: &'a [usize],
    /// Of every row of that table.
    pub ids: &'a [String],
    /// Of every row of that table.
    pub classes: &'a [u32],
    /// `[rows, num_classes]`, row-major.
    pub probabilities: Vec<f32>,
    pub num_classes: usize,
    pub labels: &'a LabelMap,
}

impl DevPredictions<'_> {
    /// Writes `row,id,label,predicted` and a column of probabilities per class, `p_` and the class's name.
    pub fn write(&self, writer: &mut dyn Write) -> io::Result<()> {
        let &Self { rows, files, ids, classes, ref probabilities, num_classes, labels } = self;
        let texts = |name: &str, texts: &mut dyn Iterator<Item = String>| {
            Column::new(name.into(), texts.collect::<Vec<_>>())
        };
        let in_file = |row: usize| {
            let first = files.iter().copied().filter(|first| *first <= row).max().unwrap_or_default();
            (row - first) as u64
        };
        let name = |class| labels.name_of(class).into_owned();
        let mut answers = labels.answers(probabilities, num_classes);
        let mut columns = vec![
            Column::new("row".into(), rows.iter().map(|row| in_file(*row)).collect::<Vec<_>>()),
            texts("id", &mut rows.iter().map(|row| ids[*row].clone())),
            texts("label", &mut rows.iter().map(|row| name(classes[*row]))),
            texts("predicted", &mut answers.by_ref().map(name)),
        ];
        let mut names = HashSet::new();
        for class in 0..num_classes {
            let values = probabilities.iter().skip(class).step_by(num_classes).copied().collect::<Vec<_>>();
            let mut name = format!("p_{}", labels.name_of(class as u32).replace(' ', "_"));
            // Labels that differ in a space alone.
            while !names.insert(name.clone()) {
                name.push('_');
            }
            columns.push(Column::new(name.into(), values));
        }
        write_csv(writer, true, columns)
    }
}

/// A file of `ID,label`, to which rows are added.
pub struct Submission<'a> {
    writer: &'a mut dyn Write,
    has_header: bool,
}

impl Submission<'_> {
    /// Adds rows: the id and the label of each.
    pub fn add(&mut self, ids: &[String], labels: &[impl AsRef<str>]) -> io::Result<()> {
        let labels = labels.iter().map(AsRef::as_ref).collect::<Vec<&str>>();
        let columns = vec![Column::new("ID".into(), ids), Column::new("label".into(), labels)];
        write_csv(self.writer, !std::mem::replace(&mut self.has_header, true), columns)
    }
}

/// Writes a submission, whole or not at all: `fill` adds its rows.
///
/// # Errors
/// Those of `fill`, and of the disk.
pub fn write_submission<E: From<FileError>>(
    path: &Path,
    fill: impl FnOnce(&mut Submission<'_>) -> Result<(), E>,
) -> Result<(), E> {
    /// The disk's error, or the caller's.
    enum Failure<E> {
        Disk(io::Error),
        Caller(E),
    }
    impl<E> From<io::Error> for Failure<E> {
        fn from(error: io::Error) -> Self {
            Self::Disk(error)
        }
    }
    let written = write_atomic(path, |file| {
        fill(&mut Submission { writer: file, has_header: false }).map_err(Failure::Caller)
    });
    written.map_err(|failure| match failure {
        Failure::Disk(error) => FileError::new("can't write", path)(error).into(),
        Failure::Caller(error) => error,
    })
}

fn write_csv(writer: &mut dyn Write, header: bool, columns: Vec<Column>) -> io::Result<()> {
    let mut frame = DataFrame::new_infer_height(columns).map_err(io::Error::other)?;
    CsvWriter::new(writer).include_header(header).finish(&mut frame).map_err(io::Error::other)
}
