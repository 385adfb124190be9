//! Sound rows to columns of strings, by polars.

use std::io::Cursor;
use std::sync::Arc;

use polars::prelude::*;

use super::Place;
use super::batch::Batch;
use super::columns::Columns;
use super::rows::{BYTE_ORDER_MARK, SoundRows, Syntax};

/// How polars reads the rows of a file, the header among them.
pub(super) struct Parser(CsvReadOptions);

impl Parser {
    /// For rows of `width` fields.
    pub fn new(width: usize, syntax: Syntax) -> Self {
        let schema: Schema = (0..width).map(|i| Field::new(name(i), DataType::String)).collect();
        let syntax = CsvParseOptions::default()
            .with_separator(syntax.separator)
            .with_quote_char(syntax.quote)
            .with_missing_is_null(false);
        let options = CsvReadOptions::default()
            .with_has_header(false)
            .with_schema(Some(Arc::new(schema)))
            .with_rechunk(true)
            .with_parse_options(syntax);
        Self(options)
    }

    /// Leaves the other columns out.
    pub fn only(self, columns: &Columns) -> Self {
        Self(self.0.with_projection(Some(Arc::new(columns.used()))))
    }

    fn parse(&self, mut csv: Vec<u8>, rows: usize) -> PolarsResult<DataFrame> {
        // Polars leaves one out, but here it is the text's.
        if csv.starts_with(BYTE_ORDER_MARK) {
            csv.splice(..0, BYTE_ORDER_MARK.iter().copied());
        }
        let frame = self.0.clone().into_reader_with_file_handle(Cursor::new(csv)).finish()?;
        polars_ensure!(frame.height() == rows, ComputeError: "{} rows were read of {rows}", frame.height());
        Ok(frame)
    }

    /// The fields of a single row.
    pub fn parse_row(&self, row: &SoundRows) -> PolarsResult<Vec<String>> {
        let frame = self.parse(row.csv.clone(), 1)?;
        let field = |column: &Column| Ok(column.str()?.get(0).unwrap_or_default().to_owned());
        frame.columns().iter().map(field).collect()
    }

    /// Many rows.
    pub fn parse_rows(&self, rows: SoundRows, columns: &Columns) -> PolarsResult<Batch> {
        let frame = self.parse(rows.csv, rows.lines.len())?;
        let strings = |column: usize| frame.column(&name(column))?.str().cloned();
        Ok(Batch {
            places: rows.lines.into_iter().map(Place::Line).collect(),
            texts: strings(columns.text)?,
            labels: columns.label.map(strings).transpose()?,
            ids: columns.id.map(strings).transpose()?,
            next: 0,
        })
    }
}

fn name(column: usize) -> PlSmallStr {
    column.to_string().into()
}
