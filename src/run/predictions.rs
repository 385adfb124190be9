//! The CSV files of predictions.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use polars::prelude::*;

use crate::data::{LabelMap, Strings, Table};
use crate::model::head::CLIP;
use crate::report::{Classification, ReportError};
use crate::storage::{FileError, write_atomic};

/// The held-out rows with their labels and probabilities.
pub struct DevPredictions<'a> {
    /// Row numbers, from 0, in the table without duplicates.
    pub rows: &'a [usize],
    /// The first row of each file that the table is of: rows are told as their file's.
    pub files: &'a [usize],
    /// Of every row of that table.
    pub ids: &'a Strings,
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
        let answers = labels.answers(probabilities, num_classes);
        let mut columns = vec![
            Column::new("row".into(), rows.iter().map(|row| in_file(*row)).collect::<Vec<_>>()),
            texts("id", &mut rows.iter().map(|row| ids[*row].to_owned())),
            texts("label", &mut rows.iter().map(|row| name(classes[*row]))),
            texts("predicted", &mut answers.into_iter().map(name)),
        ];
        columns.extend(probability_columns(labels, 0..num_classes as u32, probabilities));
        write_csv(writer, true, columns)
    }
}

impl DevPredictions<'_> {
    /// How the answers compare with the labels; the loss is the mean of `-log p`, clipped as in training.
    pub fn classification(&self) -> Result<Classification, ReportError> {
        let &Self { rows, classes, ref probabilities, num_classes, labels, .. } = self;
        let truth = rows.iter().map(|row| classes[*row]).collect::<Vec<_>>();
        let answers = labels.answers(probabilities, num_classes);
        let of_rows = probabilities.chunks(num_classes.max(1)).zip(&truth);
        let losses =
            of_rows.map(|(row, class)| -f64::from(row[*class as usize]).clamp(CLIP, 1.0 - CLIP).ln());
        let loss = losses.sum::<f64>() / truth.len() as f64;
        Classification::new(&truth, &answers, loss, |class| labels.name_of(class).into_owned())
    }
}

/// Reads back what [`DevPredictions::write`] wrote: each row's number and its probabilities.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(bytes: Vec<u8>) -> Result<Vec<(usize, Vec<f64>)>, String> {
    let error = |error: PolarsError| error.to_string();
    let frame = CsvReader::new(io::Cursor::new(bytes)).finish().map_err(error)?;
    let rows = frame.column("row").and_then(|rows| rows.cast(&DataType::UInt64)).map_err(error)?;
    let rows = rows.u64().map_err(error)?.iter().map(|row| row.unwrap_or_default() as usize);
    let mut found = rows.map(|row| (row, vec![])).collect::<Vec<_>>();
    // After row, id, label and prediction.
    for column in frame.columns().iter().skip(4) {
        let values = column.cast(&DataType::Float64).map_err(error)?;
        let values = values.f64().map_err(error)?;
        found.iter_mut().zip(values.iter()).for_each(|((_, row), value)| row.push(value.unwrap_or_default()));
    }
    Ok(found)
}

/// A column for each of `classes`, of `probabilities` `[rows, classes]`: `p_` and the class's name.
fn probability_columns(
    labels: &LabelMap,
    classes: impl ExactSizeIterator<Item = u32>,
    probabilities: &[f32],
) -> Vec<Column> {
    let (mut names, width) = (HashSet::new(), classes.len());
    let column = |(at, class): (usize, u32)| {
        let values = probabilities.iter().skip(at).step_by(width).copied().collect::<Vec<_>>();
        let mut name = match labels.label_of(class) {
            Some(label) => format!("p_{label}"),
            None => format!("p_class_{class}"),
        };
        // A label may be `class_0`.
        while !names.insert(name.clone()) {
            name.push('_');
        }
        Column::new(name.into(), values)
    };
    classes.enumerate().map(column).collect()
}

/// A file of `ID,label`, and a column of probabilities per label if they are wanted, to which rows are added.
pub struct Submission<'a> {
    writer: &'a mut dyn Write,
    has_header: bool,
}

impl<'a> Submission<'a> {
    /// One that begins.
    pub fn new(writer: &'a mut dyn Write) -> Self {
        Self { writer, has_header: false }
    }

    /// One that goes on after its header.
    pub fn rest(writer: &'a mut dyn Write) -> Self {
        Self { writer, has_header: true }
    }

    /// Adds rows: the id of each and the label of its class, among `labels`; if they are given, its text, and its
    /// `probabilities` of the labels, `[rows, labels]`.
    pub fn add(
        &mut self,
        ids: &[String],
        texts: Option<&[String]>,
        labels: &LabelMap,
        answers: &[u32],
        probabilities: Option<&[f32]>,
    ) -> io::Result<()> {
        let names = answers.iter().map(|class| labels.name_of(*class)).collect::<Vec<_>>();
        let names = names.iter().map(AsRef::as_ref).collect::<Vec<&str>>();
        let mut columns = vec![Column::new("ID".into(), ids)];
        columns.extend(texts.map(|texts| Column::new("text".into(), texts)));
        columns.push(Column::new("label".into(), names));
        if let Some(probabilities) = probabilities {
            columns.extend(probability_columns(labels, labels.classes(), probabilities));
        }
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
    let written = write_atomic(path, |file| fill(&mut Submission::new(file)).map_err(Failure::Caller));
    written.map_err(|failure| match failure {
        Failure::Disk(error) => FileError::new("can't write", path)(error).into(),
        Failure::Caller(error) => error,
    })
}

/// What an evaluation has answered to a table.
pub struct WrongRows<'a> {
    pub table: &'a Table,
    /// The class that each row was given.
    pub answers: &'a [u32],
    /// `[rows, labels]`, row-major, in the order of [`LabelMap::classes`].
    pub probabilities: &'a [f32],
    pub labels: &'a LabelMap,
}

impl WrongRows<'_> {
    /// Writes the rows whose answer isn't their label, those with the most probable answer first:
    /// `id,text,label,predicted,p_predicted,p_label`, the last two the probabilities of the two labels before them.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        write_atomic(path, |file| self.write(file)).map_err(FileError::new("can't write", path))
    }

    fn write(&self, writer: &mut dyn Write) -> io::Result<()> {
        let Self { table: Table { texts, classes, ids, .. }, answers, probabilities, labels } = self;
        let columns = labels.classes().collect::<Vec<_>>();
        let probability = |row: usize, class: u32| {
            let column = columns.binary_search(&class).ok();
            column.map_or(0.0, |column| probabilities[row * columns.len() + column])
        };
        let of_answer = |row: &usize| probability(*row, answers[*row]);
        let mut wrong = (0..texts.len()).filter(|row| answers[*row] != classes[*row]).collect::<Vec<_>>();
        wrong.sort_by(|a, b| of_answer(b).total_cmp(&of_answer(a)));
        let text = |name: &str, text: &dyn Fn(usize) -> String| {
            Column::new(name.into(), wrong.iter().map(|row| text(*row)).collect::<Vec<_>>())
        };
        let number = |name: &str, number: &dyn Fn(usize) -> f32| {
            Column::new(name.into(), wrong.iter().map(|row| number(*row)).collect::<Vec<_>>())
        };
        let columns = vec![
            text("id", &|row| ids[row].to_owned()),
            text("text", &|row| texts[row].to_owned()),
            text("label", &|row| labels.name_of(classes[row]).into_owned()),
            text("predicted", &|row| labels.name_of(answers[row]).into_owned()),
            number("p_predicted", &|row| of_answer(&row)),
            number("p_label", &|row| probability(row, classes[row])),
        ];
        write_csv(writer, true, columns)
    }
}

fn write_csv(writer: &mut dyn Write, header: bool, columns: Vec<Column>) -> io::Result<()> {
    let mut frame = DataFrame::new_infer_height(columns).map_err(io::Error::other)?;
    CsvWriter::new(writer).include_header(header).finish(&mut frame).map_err(io::Error::other)
}
