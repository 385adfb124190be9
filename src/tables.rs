//! The CSV files of predictions.

use std::borrow::Cow;
use std::path::Path;

use polars::prelude::*;

use crate::data::LabelMap;
use crate::error::{Error, Result};
use crate::files::write_atomic;

/// The held-out rows with their labels and probabilities.
pub struct DevPredictions<'a> {
    /// Row numbers, from 0, in the table without duplicates.
    pub rows: &'a [usize],
    /// Of every row of that table.
    pub classes: &'a [u32],
    /// `[rows, num_classes]`, row-major.
    pub probabilities: &'a [f32],
    pub num_classes: usize,
    pub labels: &'a LabelMap,
}

/// Writes `row,label,predicted` and a column of probabilities per class, `p_` and the class's label.
pub fn write_dev_predictions(path: &Path, predictions: &DevPredictions<'_>) -> Result<()> {
    let DevPredictions { rows, classes, probabilities, num_classes, labels } = *predictions;
    let predicted = predicted_classes(probabilities, num_classes, labels);
    let mut columns = vec![
        Column::new("row".into(), rows.iter().map(|row| *row as u64).collect::<Vec<_>>()),
        Column::new(
            "label".into(),
            rows.iter().map(|row| class_name(labels, classes[*row])).collect::<Vec<_>>(),
        ),
        Column::new("predicted".into(), predicted.map(|class| class_name(labels, class)).collect::<Vec<_>>()),
    ];
    for class in 0..num_classes {
        let values = probabilities.iter().skip(class).step_by(num_classes).copied().collect::<Vec<_>>();
        let name = format!("p_{}", class_name(labels, class as u32).replace(' ', "_"));
        columns.push(Column::new(name.into(), values));
    }
    write_csv(path, columns)
}

/// Writes `ID,label`.
pub fn write_submission(path: &Path, ids: &[String], labels: &[Cow<'_, str>]) -> Result<()> {
    write_csv(
        path,
        vec![
            Column::new("ID".into(), ids),
            Column::new("label".into(), labels.iter().map(|label| label.as_ref()).collect::<Vec<_>>()),
        ],
    )
}

/// The most probable class of each row, among those that a label stands for: one that no label names was never
/// trained, and can't be written down.
pub fn predicted_classes<'a>(
    probabilities: &'a [f32],
    num_classes: usize,
    labels: &'a LabelMap,
) -> impl Iterator<Item = u32> + 'a {
    let named = (0..num_classes as u32).filter(|class| labels.label_of(*class).is_some()).collect::<Vec<_>>();
    probabilities.chunks(num_classes).map(move |row| {
        let better =
            |best: u32, class: u32| if row[class as usize] > row[best as usize] { class } else { best };
        named.iter().copied().reduce(better).unwrap_or_default()
    })
}

/// The label of a class, or `class N`.
pub fn class_name(labels: &LabelMap, class: u32) -> Cow<'_, str> {
    labels.label_of(class).map_or_else(|| format!("class {class}").into(), Cow::Borrowed)
}

fn write_csv(path: &Path, columns: Vec<Column>) -> Result<()> {
    let failed = |error: PolarsError| std::io::Error::other(error);
    write_atomic(path, |file| {
        let mut frame = DataFrame::new_infer_height(columns).map_err(failed)?;
        CsvWriter::new(file).finish(&mut frame).map_err(failed)
    })
    .map_err(Error::file("can't write", path))
}
