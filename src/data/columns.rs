//! Which columns of a table are used.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::bad_rows::excerpt;
use super::{DataError, Format, Header, Labels, Purpose, TableOptions};

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

/// What a column is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Text,
    Label,
    Id,
}

/// The name by which a header gives the column that role.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Label => "label",
            Self::Id => "id",
        })
    }
}

/// The positions of the columns that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    pub text: usize,
    pub label: Option<usize>,
    pub id: Option<usize>,
    /// Whether they are those that tables without names mostly have.
    pub by_position: bool,
}

impl Columns {
    /// `header` is empty for a table without one; `path` is for messages.
    ///
    /// # Errors
    /// If there is no such column, or an expected header reads as a row of data.
    pub fn find(
        path: &Path,
        header: &[String],
        width: usize,
        options: &TableOptions,
        purpose: Purpose,
    ) -> Result<Self, DataError> {
        let labelled = purpose != Purpose::Predict;
        let named = |name: &str| header.iter().position(|column| column.trim().eq_ignore_ascii_case(name));
        let by_name = ["text", "label", "id"].iter().any(|name| named(name).is_some());
        // The order of columns that have names always says nothing.
        let has_order = options.format_of(path) == Format::Csv;
        let by_position =
            has_order && !by_name && options.text_column.is_none() && options.label_column.is_none();
        let (text, label, id) = match width {
            _ if !by_position => (None, None, None),
            0 => (None, None, None),
            1 => (Some(0), None, None),
            2 if labelled => (Some(1), Some(0), None),
            _ => (Some(1), Some(2), Some(0)),
        };

        let missing = |role, column: Option<&ColumnRef>| DataError::NoColumn {
            path: path.to_owned(),
            role,
            column: column.cloned(),
            header: header.to_vec(),
            width,
            format: options.format_of(path),
        };
        let find = |role: Role, given: &Option<ColumnRef>, position: Option<usize>| match given {
            Some(column) => {
                let at = match column {
                    ColumnRef::Name(name) => named(name),
                    ColumnRef::Position(at) => Some(*at).filter(|at| *at < width),
                };
                at.map(Some).ok_or_else(|| missing(role, Some(column)))
            }
            None => Ok(named(&role.to_string()).or(position)),
        };
        let need = |role, given, position| find(role, given, position)?.ok_or_else(|| missing(role, None));
        let columns = Self {
            text: need(Role::Text, &options.text_column, text)?,
            label: labelled.then(|| need(Role::Label, &options.label_column, label)).transpose()?,
            id: find(Role::Id, &options.id_column, id)?,
            by_position,
        };
        // A file without a header would silently lose its first row.
        let label_column = options.label_column.as_ref().filter(|_| labelled);
        let mut given = [&options.text_column, &options.id_column].into_iter().flatten().chain(label_column);
        let names_one = by_name || given.any(|column| matches!(column, ColumnRef::Name(_)));
        // No column is called by a number, unless by a program that has no name for it.
        let has_number = header.iter().any(|name| name.trim().parse::<f64>().is_ok_and(f64::is_finite));
        let label = columns.label.and_then(|label| header.get(label));
        let is_label =
            |name: &str| matches!(&options.labels, Labels::Given(labels) if labels.class_of(name).is_some());
        let is_data = !names_one || has_number || label.is_some_and(|label| is_label(label));
        match options.header {
            Header::Expected if is_data => {
                Err(DataError::HeaderIsData { path: path.to_owned(), row: header.to_vec() })
            }
            _ => Ok(columns),
        }
    }

    /// What is taken for what, if nobody has said it: `text 1, label 2, id 0`.
    pub fn guess(&self) -> Option<String> {
        let columns = [(Role::Text, Some(self.text)), (Role::Label, self.label), (Role::Id, self.id)];
        let columns = columns.into_iter().filter_map(|(role, at)| Some(format!("{role} {}", at?)));
        self.by_position.then(|| columns.collect::<Vec<_>>().join(", "))
    }

    /// Those that are used, in order.
    pub fn used(&self) -> Vec<usize> {
        let mut used: Vec<_> = [Some(self.text), self.label, self.id].into_iter().flatten().collect();
        used.sort_unstable();
        used.dedup();
        used
    }
}

/// Says that a column is missing, and which ones there are.
pub(super) fn missing(
    role: Role,
    column: Option<&ColumnRef>,
    header: &[String],
    width: usize,
    format: Format,
) -> String {
    let missing = match column {
        Some(column) => format!("there is no column {column} for the {role}"),
        None => format!("no column is the {role}"),
    };
    match header {
        _ if width == 1 && format == Format::Csv => format!("{missing}; the file has one column"),
        [] if format == Format::Csv => {
            format!("{missing}; the file has {width} columns, counted from 0, and no header")
        }
        [] => format!("{missing}; there are none"),
        names => format!("{missing}; the columns are {}", shown(names)),
    }
}

/// A header as a message shows it.
pub(super) fn shown(header: &[String]) -> String {
    excerpt(header.join(", ").as_bytes())
}
