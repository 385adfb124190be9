//! A file of separated fields, read in batches.

use std::path::{Path, PathBuf};

use polars::error::PolarsError;

use super::bad_rows::BadRows;
use super::batch::{Batch, Reader};
use super::columns::Columns;
use super::parse::Parser;
use super::rows::{Limits, Rows, SoundRows, Syntax};
use super::window::Source;
use super::{DataError, Header, Purpose, TableOptions, read_error};

pub(super) struct CsvReader {
    path: PathBuf,
    options: TableOptions,
    purpose: Purpose,
    syntax: Syntax,
    limits: Limits,
    rows: Rows,
    /// Known from the first row on.
    layout: Option<(Parser, Columns)>,
}

impl CsvReader {
    /// `path` is for messages.
    pub fn new(
        path: &Path,
        source: Source,
        options: &TableOptions,
        purpose: Purpose,
        limits: Limits,
    ) -> Result<Self, DataError> {
        if options.quote == Some(options.separator) {
            let both = char::from(options.separator);
            return Err(DataError::Option(format!("the separator and the quote are both `{both}`")));
        }
        let syntax = Syntax { separator: options.separator, quote: options.quote };
        let rows = Rows::new(source, syntax, limits).map_err(read_error(path))?;
        let (path, options) = (path.to_owned(), options.clone());
        Ok(Self { path, options, purpose, syntax, limits, rows, layout: None })
    }

    fn lay_out(&self, first: &SoundRows) -> Result<(Parser, Columns), DataError> {
        let width = self.rows.width();
        let parser = Parser::new(width, self.syntax);
        let header = match self.options.header {
            Header::Absent => Vec::new(),
            Header::Expected | Header::Present => parser.parse_row(first).map_err(self.parse_error())?,
        };
        let columns = Columns::find(&self.path, &header, width, &self.options, self.purpose)?;
        Ok((parser.only(&columns), columns))
    }

    fn parse_error(&self) -> impl FnOnce(PolarsError) -> DataError {
        let path = self.path.clone();
        move |error| DataError::Parse { path, message: error.to_string() }
    }
}

impl Reader for CsvReader {
    fn read(&mut self, bad: &mut BadRows) -> Result<Option<Batch>, DataError> {
        // The first row decides the columns, and may be no data.
        let first = self.layout.is_none();
        let size = if first { 1 } else { self.limits.chunk };
        let rows = self.rows.read(size, bad).map_err(read_error(&self.path))?;
        // What comes after a header that was left out would be taken for it.
        if first
            && self.options.header == Header::Present
            && let Some(row) = bad.shown.first()
        {
            return Err(DataError::BadHeader { path: self.path.clone(), row: row.clone() });
        }
        if rows.lines.is_empty() {
            return Ok(None);
        }
        if first {
            self.layout = Some(self.lay_out(&rows)?);
        }
        match &self.layout {
            Some((parser, columns)) if !(first && self.options.header != Header::Absent) => {
                parser.parse_rows(rows, columns).map(Some).map_err(self.parse_error())
            }
            _ => Ok(Some(Batch::default())),
        }
    }

    fn columns(&self) -> Option<&Columns> {
        self.layout.as_ref().map(|(_, columns)| columns)
    }
}
