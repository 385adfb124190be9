//! The rows of a file that can't be used.

/// A row that can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// The line of the file, from 1, on which the row starts.
    pub line: usize,
    pub reason: String,
}

/// All of a file's: how many, and the first few of them.
#[derive(Debug, Default)]
pub(super) struct BadRows {
    /// By line.
    pub shown: Vec<BadRow>,
    pub total: usize,
}

impl BadRows {
    /// Counts a row, and keeps it if few lie before it: they may come in any order.
    pub fn add(&mut self, line: usize, reason: impl FnOnce() -> String) {
        const SHOWN: usize = 5;
        self.total += 1;
        let at = self.shown.partition_point(|row| row.line < line);
        if at < SHOWN {
            self.shown.truncate(SHOWN - 1);
            self.shown.insert(at, BadRow { line, reason: reason() });
        }
    }
}

/// What is shown of them.
pub(super) fn list(rows: &[BadRow], total: usize) -> String {
    let noun = if total == 1 { "row" } else { "rows" };
    let shown: Vec<_> = rows.iter().map(|row| format!("line {}: {}", row.line, row.reason)).collect();
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
