//! The rows of a file that can't be used.

use std::fmt;

/// A row that can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    pub place: Place,
    pub reason: String,
}

/// Where a row is in its file, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The line on which it starts.
    Line(usize),
    /// Its number, in a file that has no lines.
    Row(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// All of a file's: how many, and the first few of them.
#[derive(Debug, Default)]
pub(super) struct BadRows {
    /// By place.
    pub shown: Vec<BadRow>,
    pub total: usize,
    /// Whether any has a label that is none.
    pub has_unknown_label: bool,
}

impl BadRows {
    /// Counts a row, and keeps it if few lie before it: they may come in any order.
    pub fn add(&mut self, place: Place, reason: impl FnOnce() -> String) {
        const SHOWN: usize = 5;
        self.total += 1;
        let at = self.shown.partition_point(|row| row.place < place);
        if at < SHOWN {
            self.shown.truncate(SHOWN - 1);
            self.shown.insert(at, BadRow { place, reason: reason() });
        }
    }
}

/// What is shown of them.
pub(super) fn list(rows: &[BadRow], total: usize) -> String {
    let noun = if total == 1 { "row" } else { "rows" };
    let shown: Vec<_> = rows.iter().map(|row| format!("{}: {}", row.place, row.reason)).collect();
    let more = match total - rows.len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    format!("{total} {noun} can't be used: {}{more}", shown.join("; "))
}

/// The beginning of a row or value, fit for one line of a message.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const MAX_CHARS: usize = 40;
    // A character has at most 4 bytes.
    let bytes = &bytes[..bytes.len().min(4 * (MAX_CHARS + 1))];
    let text = String::from_utf8_lossy(bytes);
    let mut short: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CHARS).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        short.push('…');
    }
    short
}
