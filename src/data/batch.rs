//! What the readers of all formats give: the columns that are used, some rows at a time.

use polars::prelude::*;

use super::bad_rows::BadRows;
use super::columns::Columns;
use super::{DataError, Place};

/// Reads a table of one format, from its first row to its last.
pub(super) trait Reader: Send {
    /// The next rows, or none at the end. Those that can't be read go to `bad`, and there may be no others for now.
    fn read(&mut self, bad: &mut BadRows) -> Result<Option<Batch>, DataError>;

    /// Bytes of all values that were read, where these may be far more than those of the file.
    fn unpacked(&self) -> u64 {
        0
    }

    /// The columns, once they are known.
    fn columns(&self) -> Option<&Columns>;
}

/// Some consecutive rows of a table, each a value per column, `None` where there is none.
#[derive(Default)]
pub(super) struct Batch {
    pub places: Vec<Place>,
    pub texts: StringChunked,
    pub labels: Option<StringChunked>,
    pub ids: Option<StringChunked>,
    /// The row that [`Self::next`] gives.
    pub next: usize,
}

/// The values of one row of a batch that is made.
pub(super) struct Cells {
    pub text: Option<String>,
    pub label: Option<Option<String>>,
    pub id: Option<Option<String>>,
}

/// The values of one row, as they are written.
pub(super) struct Values<'a> {
    pub place: Place,
    pub text: Option<&'a str>,
    /// `None` where there is no such column, or none is looked for.
    pub label: Option<Option<&'a str>>,
    pub id: Option<Option<&'a str>>,
}

impl Batch {
    /// These rows, of which all have the same columns.
    pub fn of(rows: Vec<(Place, Cells)>) -> Self {
        let column = |values: fn(&Cells) -> Option<&Option<String>>| {
            let values = rows.iter().map(|(_, cells)| values(cells).map(Option::as_deref));
            values.collect::<Option<StringChunked>>()
        };
        Self {
            texts: column(|cells| Some(&cells.text)).unwrap_or_default(),
            labels: column(|cells| cells.label.as_ref()),
            ids: column(|cells| cells.id.as_ref()),
            places: rows.iter().map(|(place, _)| *place).collect(),
            next: 0,
        }
    }

    pub fn next(&mut self) -> Option<Values<'_>> {
        let row = self.next;
        let place = *self.places.get(row)?;
        self.next += 1;
        Some(Values {
            place,
            text: self.texts.get(row),
            label: self.labels.as_ref().map(|labels| labels.get(row)),
            id: self.ids.as_ref().map(|ids| ids.get(row)),
        })
    }
}

/// As Python writes it, and so pandas in a CSV file.
pub(super) fn boolean(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

/// A number with as many digits as tell it from others, and none for a missing one (not a number). A whole one has no point:
/// pandas makes a column of whole numbers one of floats when a value is missing.
pub(super) fn float(value: impl Copy + Into<f64> + ToString) -> Option<String> {
    match value.into() {
        // A zero has no sign.
        0.0 => Some("0".to_owned()),
        wide => (!wide.is_nan()).then(|| value.to_string()),
    }
}
