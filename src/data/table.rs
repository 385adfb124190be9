//! Reads a separated file into texts, classes and ids.

use std::collections::HashSet;
use std::io::Cursor;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::{fmt, fs};

use polars::prelude::*;

use super::records::{self, Records, excerpt};
use super::{BadRow, DataError, LabelMap};

/// A column, by name or by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnRef {
    /// As in the header; letter case doesn't count.
    Name(String),
    /// From 0.
    Position(usize),
}

/// Digits are a position, all else is a name.
impl FromStr for ColumnRef {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Position))
    }
}

impl fmt::Display for ColumnRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "`{name}`"),
            Self::Position(position) => write!(f, "{position}"),
        }
    }
}

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
    /// An ASCII character.
    pub separator: u8,
    /// The ASCII character that may enclose a field; `None` where quotes are part of the text.
    pub quote: Option<u8>,
    /// Whether the first row names the columns.
    pub header: bool,
    pub text_column: Option<ColumnRef>,
    pub label_column: Option<ColumnRef>,
    pub id_column: Option<ColumnRef>,
    pub labels: LabelMap,
    /// Leave out and count rows that can't be used, rather than stop.
    pub skip_bad_rows: bool,
}

/// Comma-separated with a header, and the recipe's labels.
impl Default for TableOptions {
    fn default() -> Self {
        Self {
            separator: b',',
            quote: Some(b'"'),
            header: true,
            text_column: None,
            label_column: None,
            id_column: None,
            labels: LabelMap::default(),
            skip_bad_rows: false,
        }
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

/// The rows of a file that are used, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub texts: Vec<String>,
    /// One per text; empty for [`Purpose::Predict`].
    pub classes: Vec<u32>,
    /// One per text: the id column, or else the row's number among the file's sound rows, from 1.
    pub ids: Vec<String>,
    /// Rows left out because an earlier one has the same text.
    pub duplicates: usize,
    /// Rows left out because they can't be used.
    pub skipped: usize,
}

impl Table {
    /// Reads a UTF-8 file, with or without a byte order mark. Every value is taken as it is written: a text
    /// that looks like a number stays as it is.
    ///
    /// # Errors
    /// A row that can't be used (a wrong number of fields, a quote never closed, invalid UTF-8, an unknown label,
    /// an empty text) is an error that names its line, unless `skip_bad_rows` is set.
    pub fn read(path: &Path, options: &TableOptions, purpose: Purpose) -> Result<Self, DataError> {
        if options.quote == Some(options.separator) {
            return Err(DataError::Option("the separator and the quote are the same character".to_owned()));
        }
        let bytes = fs::read(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
        let Records { csv, lines, width, mut bad } = records::scan(&bytes, options.separator, options.quote);
        drop(bytes);
        if lines.is_empty() {
            return Self { skipped: bad.len(), ..Self::default() }.check(path, bad, options);
        }
        let frame = parse(csv, width, options)
            .and_then(|frame| check_height(frame, lines.len()))
            .map_err(|error| DataError::Parse { path: path.to_owned(), message: error.to_string() })?;
        let column_error = |message| DataError::Column { path: path.to_owned(), message };
        let columns = Columns::find(&frame, options, purpose).map_err(column_error)?;
        let values = |index: usize| string_column(&frame, index).map_err(column_error);
        let texts = values(columns.text)?;
        let labels = columns.label.map(values).transpose()?;
        let ids = columns.id.map(values).transpose()?;

        let mut table = Self::default();
        let mut seen = HashSet::new();
        for (row, &line) in lines.iter().enumerate().skip(usize::from(options.header)) {
            let text = texts.get(row).unwrap_or_default();
            let label = labels.map(|labels| labels.get(row).unwrap_or_default());
            let class = match class_of(text, label, &options.labels) {
                Ok(class) => class,
                Err(reason) => {
                    bad.push(BadRow { line, reason });
                    continue;
                }
            };
            if purpose == Purpose::Train && !seen.insert(text) {
                table.duplicates += 1;
                continue;
            }
            table.texts.push(text.to_owned());
            table.classes.extend(class);
            table.ids.push(match ids {
                Some(ids) => ids.get(row).unwrap_or_default().to_owned(),
                None => (row + usize::from(!options.header)).to_string(),
            });
        }
        table.skipped = bad.len();
        table.check(path, bad, options)
    }

    fn check(self, path: &Path, mut bad: Vec<BadRow>, options: &TableOptions) -> Result<Self, DataError> {
        const SHOWN: usize = 5;
        let path = path.to_owned();
        if !bad.is_empty() && !options.skip_bad_rows {
            let total = bad.len();
            bad.sort_by_key(|row| row.line);
            bad.truncate(SHOWN);
            return Err(DataError::BadRows { path, rows: bad, total });
        }
        if self.texts.is_empty() {
            return Err(DataError::NoRows { path, skipped: self.skipped });
        }
        Ok(self)
    }
}

/// The class of a labelled row, `None` for a row of a table without labels, or why it can't be used.
fn class_of(text: &str, label: Option<&str>, labels: &LabelMap) -> Result<Option<u32>, String> {
    let Some(label) = label else { return Ok(None) };
    if text.trim().is_empty() {
        return Err("the text is empty".to_owned());
    }
    labels.class_of(label).map(Some).ok_or_else(|| {
        let known: Vec<_> = labels.labels().collect();
        format!("label `{}` is not one of {}", excerpt(label.as_bytes()), known.join(", "))
    })
}

/// Parses sound rows, the header among them, into `width` columns of strings.
fn parse(csv: Vec<u8>, width: usize, options: &TableOptions) -> PolarsResult<DataFrame> {
    let schema: Schema = (0..width).map(|i| Field::new(i.to_string().into(), DataType::String)).collect();
    let syntax = CsvParseOptions::default()
        .with_separator(options.separator)
        .with_quote_char(options.quote)
        .with_missing_is_null(false);
    CsvReadOptions::default()
        .with_has_header(false)
        .with_schema(Some(Arc::new(schema)))
        .with_rechunk(true)
        .with_parse_options(syntax)
        .into_reader_with_file_handle(Cursor::new(csv))
        .finish()
}

fn check_height(frame: DataFrame, rows: usize) -> PolarsResult<DataFrame> {
    polars_ensure!(frame.height() == rows, ComputeError: "{} rows were read of {rows}", frame.height());
    Ok(frame)
}

fn string_column(frame: &DataFrame, index: usize) -> Result<&StringChunked, String> {
    let column = frame.select_at_idx(index).ok_or_else(|| format!("there is no column {index}"))?;
    column.str().map_err(|error| error.to_string())
}

/// The positions of the columns that are used.
#[derive(Debug)]
struct Columns {
    text: usize,
    label: Option<usize>,
    id: Option<usize>,
}

impl Columns {
    fn find(frame: &DataFrame, options: &TableOptions, purpose: Purpose) -> Result<Self, String> {
        let labelled = purpose != Purpose::Predict;
        let width = frame.width();
        let header: Vec<&str> = if options.header {
            (0..width)
                .map(|i| Ok(string_column(frame, i)?.get(0).unwrap_or_default()))
                .collect::<Result<_, String>>()?
        } else {
            Vec::new()
        };
        let named = |name: &str| header.iter().position(|column| column.trim().eq_ignore_ascii_case(name));
        let by_name = ["text", "label", "id"].iter().any(|name| named(name).is_some());
        let by_position = !by_name && options.text_column.is_none() && options.label_column.is_none();
        let (text, label, id) = match width {
            _ if !by_position => (None, None, None),
            1 => (Some(0), None, None),
            2 if labelled => (Some(1), Some(0), None),
            _ => (Some(1), Some(2), Some(0)),
        };

        let find = |role: &str, given: &Option<ColumnRef>, position: Option<usize>| match given {
            Some(ColumnRef::Name(name)) => named(name).map(Some).ok_or_else(|| {
                format!("there is no column `{name}` for the {role}; {}", describe(&header, width))
            }),
            Some(ColumnRef::Position(at)) if *at >= width => {
                Err(format!("there is no column {at} for the {role}; {}", describe(&header, width)))
            }
            Some(ColumnRef::Position(at)) => Ok(Some(*at)),
            None => Ok(named(role).or(position)),
        };
        let missing =
            |role| format!("no column is the {role}: pass --{role}-column; {}", describe(&header, width));
        let columns = Self {
            text: find("text", &options.text_column, text)?.ok_or_else(|| missing("text"))?,
            label: match labelled {
                true => Some(find("label", &options.label_column, label)?.ok_or_else(|| missing("label"))?),
                false => None,
            },
            id: find("id", &options.id_column, id)?,
        };
        // A file without a header would silently lose its first row.
        match columns.label.and_then(|label| header.get(label)) {
            Some(label) if options.labels.class_of(label).is_some() => {
                Err(format!("the first row holds the label `{label}`, not column names: pass --no-header"))
            }
            _ => Ok(columns),
        }
    }
}

fn describe(header: &[&str], width: usize) -> String {
    match header {
        _ if width == 1 => "the file has one column: is --separator right?".to_owned(),
        [] => format!("the file has {width} columns, counted from 0, and no header"),
        names => format!("the columns are {}", excerpt(names.join(", ").as_bytes())),
    }
}
