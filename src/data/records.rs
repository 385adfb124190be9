//! The rows of a separated file before polars parses them: where each starts, and whether it is sound.
//!
//! A quote counts only where it opens a field, as in RFC 4180; elsewhere it is a character of the text. A quoted
//! field must close before a separator or the end of its row, so that a stray quote costs its own line and never
//! swallows the rows after it. The sound rows are copied out in a form that every CSV reader reads alike.

use std::ops::Range;

use super::BadRow;

/// The sound rows of a file, and the others.
pub(super) struct Records {
    /// The sound rows, one after another, each ended by a newline; valid UTF-8.
    pub csv: Vec<u8>,
    /// The line of the file, from 1, on which each sound row starts.
    pub lines: Vec<usize>,
    /// Number of fields in every sound row.
    pub width: usize,
    pub bad: Vec<BadRow>,
}

/// Scans a whole file; a byte order mark and blank lines are left out. The first sound row sets the number of
/// fields that the others must have.
pub(super) fn scan(bytes: &[u8], separator: u8, quote: Option<u8>) -> Records {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut records =
        Records { csv: Vec::with_capacity(bytes.len() + 1), lines: Vec::new(), width: 0, bad: Vec::new() };
    let mut start = 0;
    let mut line = 1;
    while start < bytes.len() {
        let (row, next) = match split_row(bytes, start, separator, quote) {
            Ok(row) => row,
            Err(BrokenQuote) => {
                let end = line_end(bytes, start);
                let reason =
                    format!("a quoted field is not closed properly in `{}`", excerpt(&bytes[start..end]));
                records.bad.push(BadRow { line, reason });
                (Vec::new(), end + 1)
            }
        };
        if let (Some(first), Some(last)) = (row.first(), row.last()) {
            records.add(line, &bytes[first.start..last.end], &row, bytes, separator, quote);
        }
        let consumed = &bytes[start..next.min(bytes.len())];
        line += consumed.iter().filter(|&&byte| byte == b'\n').count();
        start = next;
    }
    records
}

impl Records {
    /// Adds one row, or its fault.
    fn add(
        &mut self,
        line: usize,
        raw: &[u8],
        row: &[Range<usize>],
        bytes: &[u8],
        separator: u8,
        quote: Option<u8>,
    ) {
        if let Err(error) = std::str::from_utf8(raw) {
            let byte = raw[error.valid_up_to()];
            let reason = format!("not valid UTF-8 (byte 0x{byte:02x}) in `{}`", excerpt(raw));
            return self.bad.push(BadRow { line, reason });
        }
        if self.lines.is_empty() {
            self.width = row.len();
        }
        if row.len() != self.width {
            let noun = if row.len() == 1 { "field" } else { "fields" };
            let reason =
                format!("{} {noun} where the first row has {} in `{}`", row.len(), self.width, excerpt(raw));
            return self.bad.push(BadRow { line, reason });
        }
        self.lines.push(line);
        for (i, field) in row.iter().enumerate() {
            if i > 0 {
                self.csv.push(separator);
            }
            push_field(&mut self.csv, &bytes[field.clone()], quote);
        }
        self.csv.push(b'\n');
    }
}

/// A quoted field without its closing quote, or with text after it.
struct BrokenQuote;

/// The fields of the row at `start`, quotes included, and where the next row starts; no field for a blank line.
fn split_row(
    bytes: &[u8],
    start: usize,
    separator: u8,
    quote: Option<u8>,
) -> Result<(Vec<Range<usize>>, usize), BrokenQuote> {
    let mut row = Vec::new();
    let mut field = start;
    loop {
        let end = match quote {
            Some(quote) if bytes.get(field) == Some(&quote) => {
                let end = closing_quote(bytes, field, quote).ok_or(BrokenQuote)? + 1;
                let after = &bytes[end..];
                let closed = after.is_empty()
                    || after[0] == separator
                    || after[0] == b'\n'
                    || after.starts_with(b"\r\n");
                if !closed {
                    return Err(BrokenQuote);
                }
                end
            }
            _ => bytes[field..]
                .iter()
                .position(|&byte| byte == separator || byte == b'\n')
                .map_or(bytes.len(), |length| field + length),
        };
        if bytes.get(end) == Some(&separator) {
            row.push(field..end);
            field = end + 1;
            continue;
        }
        // The row ends here: at a newline, at `\r\n` or at the end of the file.
        let newline = line_end(bytes, end);
        let end = if bytes[field..end].ends_with(b"\r") { end - 1 } else { end };
        if !(row.is_empty() && field == end) {
            row.push(field..end);
        }
        return Ok((row, newline + 1));
    }
}

/// Where the quote that closes the field opened at `field` is; a doubled quote stands for one of the text's.
fn closing_quote(bytes: &[u8], field: usize, quote: u8) -> Option<usize> {
    let mut at = field + 1;
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == quote)?;
        if bytes.get(at + 1) != Some(&quote) {
            return Some(at);
        }
        at += 2;
    }
}

/// Where the newline at or after `from` is, or the end of the file.
fn line_end(bytes: &[u8], from: usize) -> usize {
    bytes[from..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |length| from + length)
}

/// Copies a field, put in quotes if it holds a quote without being quoted.
fn push_field(csv: &mut Vec<u8>, field: &[u8], quote: Option<u8>) {
    let Some(quote) = quote.filter(|quote| field.first() != Some(quote) && field.contains(quote)) else {
        return csv.extend_from_slice(field);
    };
    csv.push(quote);
    for &byte in field {
        if byte == quote {
            csv.push(quote);
        }
        csv.push(byte);
    }
    csv.push(quote);
}

/// The beginning of a row or value, fit for one line of a message.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const MAX_CHARS: usize = 40;
    let text = String::from_utf8_lossy(bytes);
    let mut short: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CHARS).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        short.push('…');
    }
    short
}
