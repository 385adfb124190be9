//! A file of JSON Lines, read in batches: an object per line, whose keys are the columns.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::bad_rows::{BadRows, Place, excerpt};
use super::batch::{Batch, Cells, Reader, boolean, float};
use super::columns::{Columns, Role};
use super::format::{Format, foreign};
use super::rows::{BYTE_ORDER_MARK, Limits};
use super::window::{Beyond, Source, Window};
use super::{DataError, Header, Purpose, TableOptions, read_error};

pub(super) struct JsonReader {
    path: PathBuf,
    options: TableOptions,
    purpose: Purpose,
    limits: Limits,
    window: Window,
    /// The line at which the window starts, from 1.
    line: usize,
    /// Known from the first object on: its keys, and which of them are used.
    layout: Option<(Vec<String>, Columns)>,
}

/// What the window starts with.
enum Line {
    /// A line of that many bytes, its line break not counted.
    Whole(usize),
    TooLong,
    End,
}

impl JsonReader {
    /// `path` is for messages.
    pub fn new(
        path: &Path,
        source: Source,
        options: &TableOptions,
        purpose: Purpose,
        limits: Limits,
    ) -> Result<Self, DataError> {
        // A line break beyond the longest line is to be seen, too.
        let mut window = Window::new(source, limits.chunk, limits.row + 1);
        window.fill().map_err(read_error(path))?;
        if window.bytes().starts_with(BYTE_ORDER_MARK) {
            window.advance(BYTE_ORDER_MARK.len());
        }
        if let Some(other) = foreign(window.bytes(), Format::JsonLines) {
            return Err(read_error(path)(std::io::Error::new(std::io::ErrorKind::InvalidData, other)));
        }
        // Its columns have names.
        let options = TableOptions { header: Header::Present, ..options.clone() };
        Ok(Self { path: path.to_owned(), options, purpose, limits, window, line: 1, layout: None })
    }

    fn next_line(&mut self) -> std::io::Result<Line> {
        if !self.window.fill()? {
            return Ok(Line::End);
        }
        loop {
            let bytes = self.window.ahead();
            match (bytes.iter().position(|&byte| byte == b'\n'), self.window.beyond()) {
                (Some(end), _) => return Ok(Line::Whole(end)),
                (None, Beyond::End) => return Ok(Line::Whole(bytes.len())),
                (None, Beyond::Limit) => return Ok(Line::TooLong),
                (None, Beyond::More) => self.window.grow()?,
            }
        }
    }

    fn skip_line(&mut self) -> std::io::Result<()> {
        while self.window.fill()? {
            let bytes = self.window.bytes();
            let end = bytes.iter().position(|&byte| byte == b'\n');
            self.window.advance(end.map_or(bytes.len(), |end| end + 1));
            if end.is_some() {
                break;
            }
        }
        self.line += 1;
        Ok(())
    }

    /// The values of the object on the line of that length at the window's start; or why there are none.
    fn take(&mut self, length: usize) -> Result<Result<Cells, String>, DataError> {
        let line = &self.window.bytes()[..length];
        let Object(members) = match serde_json::from_slice(line) {
            Ok(object) => object,
            Err(error) => return Ok(Err(wrong(&error, line))),
        };
        let (keys, columns) = match &mut self.layout {
            Some(layout) => layout,
            unknown => {
                let keys = members.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
                let columns = Columns::find(&self.path, &keys, keys.len(), &self.options, self.purpose)?;
                unknown.insert((keys, columns))
            }
        };
        // Of a key that is there twice, the last one counts, as in Python.
        let find =
            |role: Role, column: usize| match members.iter().rev().find(|(key, _)| *key == keys[column]) {
                None | Some((_, Cell::Null)) => Ok(None),
                Some((_, Cell::Text(text))) => Ok(Some(text.clone())),
                Some((_, Cell::Nested)) => Err(format!("the {role} is a list or an object")),
                Some((_, Cell::Rounded)) => {
                    Err(format!("the {role} is a number of more digits than are kept; write it in quotes"))
                }
            };
        let all = || {
            Ok(Cells {
                text: find(Role::Text, columns.text)?,
                label: columns.label.map(|column| find(Role::Label, column)).transpose()?,
                id: columns.id.map(|column| find(Role::Id, column)).transpose()?,
            })
        };
        Ok(all())
    }
}

impl Reader for JsonReader {
    fn read(&mut self, bad: &mut BadRows) -> Result<Option<Batch>, DataError> {
        let mut rows = vec![];
        let mut bytes = 0;
        while bytes < self.limits.chunk {
            let place = Place::Line(self.line);
            match self.next_line().map_err(read_error(&self.path))? {
                Line::End if rows.is_empty() => return Ok(None),
                Line::End => break,
                Line::Whole(length) => {
                    bytes += length + 1;
                    if !self.window.bytes()[..length].trim_ascii().is_empty() {
                        match self.take(length)? {
                            Ok(cells) => rows.push((place, cells)),
                            Err(reason) => bad.add(place, || reason),
                        }
                    }
                }
                Line::TooLong => {
                    let start = excerpt(self.window.bytes());
                    bad.add(place, || {
                        format!("a row of more than {} bytes starts with `{start}`", self.limits.row)
                    });
                }
            }
            self.skip_line().map_err(read_error(&self.path))?;
        }
        Ok(Some(Batch::of(rows)))
    }

    fn columns(&self) -> Option<&Columns> {
        self.layout.as_ref().map(|(_, columns)| columns)
    }
}

/// What is wrong with a line.
fn wrong(error: &serde_json::Error, line: &[u8]) -> String {
    let text = error.to_string();
    // Of one line, its number says nothing.
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("not a JSON object: {what}, at column {} of `{}`", error.column(), excerpt(line))
}

/// An object's, at most: each takes far more memory than its bytes.
const MEMBERS: usize = 1 << 14;

/// The members of an object, in its order.
struct Object(Vec<(String, Cell)>);

/// A value, as far as a column may hold it.
enum Cell {
    Null,
    /// A string, or what stands for a number or a boolean.
    Text(String),
    Nested,
    /// A number that is not kept to its last digit.
    Rounded,
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Object, M::Error> {
                let mut members = vec![];
                while let Some(member) = map.next_entry()? {
                    if members.len() == MEMBERS {
                        return Err(M::Error::custom(format!("it has more than {MEMBERS} members")));
                    }
                    members.push(member);
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Cell;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Cell, E> {
                Ok(Cell::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Cell, E> {
                Ok(Cell::Text(boolean(value).to_owned()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Cell, E> {
                Ok(Cell::Text(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Cell, E> {
                Ok(Cell::Text(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Cell, E> {
                // From here on, not every whole number is one.
                const WHOLE: f64 = (1u64 << 53) as f64;
                Ok(if value.abs() < WHOLE {
                    float(value).map_or(Cell::Null, Cell::Text)
                } else {
                    Cell::Rounded
                })
            }

            fn visit_str<E>(self, value: &str) -> Result<Cell, E> {
                Ok(Cell::Text(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Cell, E> {
                Ok(Cell::Text(value))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Cell, S::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Cell::Nested)
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Cell, M::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Cell::Nested)
            }
        }
        deserializer.deserialize_any(Any)
    }
}
