//! How a table is laid out, and what it is read for.

use std::path::Path;

use super::{ColumnRef, DataError, Format, LabelMap, Labels};

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
