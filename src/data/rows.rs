//! The rows of a separated file before polars parses them: where each starts, and whether it is sound.
//!
//! A quote counts only where it opens a field, as in RFC 4180; elsewhere it is a character of the text. A quoted
//! field may span lines, and must close before a separator or the end of its row. A row with a field that doesn't,
//! or that is longer or has more fields than a limit, costs the line on which it starts, and the next line is a row anew. So a stray
//! quote that finds no such close takes no other line with it; one that happens to find a close, such as the opening
//! quote of a text that starts with a separator, does merge the lines up to there into its row.
//!
//! Going back to the next line is what could cost quadratic time. But how a row goes on from the start of a field
//! depends on nothing before it. So each field of a failed row is remembered, and a later row that comes to one of
//! them fails too: no field is gone through twice. Of fields that overlap at most one is quoted and one is not, apart
//! from runs of quotes, so all that is read again is a small multiple of the file. What is remembered lies within
//! the limit of the row at hand.
//!
//! The sound rows are copied out in a form that every CSV reader reads alike.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use super::bad_rows::{BadRows, Place, excerpt};
use super::format::{Format, foreign};
use super::window::{Beyond, Source, Window};

/// U+FEFF, in UTF-8.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The characters that give a file its rows and fields; each ASCII.
#[derive(Clone, Copy, Debug)]
pub(super) struct Syntax {
    pub separator: u8,
    pub quote: Option<u8>,
}

/// What bounds the memory of a pass, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// What is read and parsed at a time.
    pub chunk: usize,
    /// The longest row, its line break not counted.
    pub row: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { chunk: 4 << 20, row: MAX_ROW }
    }
}

/// The longest row in bytes: a text far beyond what an encoder reads, that memory can still be had for.
pub const MAX_ROW: usize = 64 << 20;

/// The most fields of a row: each has a place in memory, however short it is.
const MAX_FIELDS: usize = 1 << 14;

/// Some consecutive sound rows of a file.
#[derive(Debug, Default)]
pub(super) struct SoundRows {
    /// One after another, each ended by a newline; valid UTF-8.
    pub csv: Vec<u8>,
    /// The line of the file, from 1, on which each starts.
    pub lines: Vec<usize>,
}

/// Goes through the rows of a file; a byte order mark is left out, and so are blank lines where rows have several fields,
/// or before the first row.
pub(super) struct Rows {
    window: Window,
    syntax: Syntax,
    limits: Limits,
    /// The line at which the window starts, from 1.
    line: usize,
    /// Number of fields of every sound row, which the first one decides; 0 before it.
    width: usize,
    /// By distance from the window's start: why no row goes through a field that starts there, if that is known.
    failed: VecDeque<Option<Fault>>,
}

/// Why a row can't be told apart from what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A quoted field without its closing quote, or with text after it.
    OpenQuote,
    TooLong,
    TooWide,
    /// Nothing but that more of the file is to be seen first.
    Unseen,
}

/// A row at the start of the window.
struct Row {
    /// Where it ends, its line break not counted: at 0 for a blank line.
    end: usize,
    /// Where the next row starts.
    next: usize,
}

impl Rows {
    /// # Errors
    /// If the file's first bytes can't be read, or are those of another format.
    pub fn new(source: Source, syntax: Syntax, limits: Limits) -> io::Result<Self> {
        // A line break beyond the longest row is to be seen, too.
        let mut window = Window::new(source, limits.chunk, limits.row + 2);
        window.fill()?;
        if let Some(other) = foreign(window.bytes(), Format::Csv) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, other));
        }
        while window.bytes().starts_with(BYTE_ORDER_MARK) {
            window.advance(BYTE_ORDER_MARK.len());
            window.fill()?;
        }
        Ok(Self { window, syntax, limits, line: 1, width: 0, failed: VecDeque::new() })
    }

    /// Number of fields of every sound row; 0 before the first one.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The next sound rows, just as many as make `size` bytes; none at the end of the file. Others on the way go to
    /// `bad`.
    pub fn read(&mut self, size: usize, bad: &mut BadRows) -> io::Result<SoundRows> {
        let mut sound = SoundRows::default();
        let mut starts = Vec::new();
        while sound.csv.len() < size && self.window.fill()? {
            match self.split(&mut starts) {
                // Where rows have one field, it is an empty one.
                Ok(Row { end: 0, next }) if self.width != 1 => self.advance(next),
                Ok(Row { end, next }) => {
                    self.take(end, &starts, &mut sound, bad);
                    self.advance(next);
                }
                Err(Fault::Unseen) => self.window.grow()?,
                Err(fault) => {
                    self.remember(fault, &starts);
                    let raw = self.window.bytes();
                    bad.add(Place::Line(self.line), || {
                        self.reason(fault, &raw[..line_end(raw).unwrap_or(raw.len())])
                    });
                    self.skip_line()?;
                }
            }
        }
        Ok(sound)
    }

    /// Finds the end of the row at the window's start, and where its fields start: all of them, or those up to the
    /// one at which it fails.
    fn split(&self, starts: &mut Vec<usize>) -> Result<Row, Fault> {
        let bytes = self.window.ahead();
        starts.clear();
        let mut start = 0;
        let mut end = loop {
            starts.push(start);
            if starts.len() > MAX_FIELDS {
                return Err(Fault::TooWide);
            }
            if let Some(Some(fault)) = self.failed.get(start) {
                return Err(*fault);
            }
            let end = match self.syntax.quote.filter(|quote| bytes.get(start) == Some(quote)) {
                Some(quote) => self.quoted_end(bytes, start, quote)?,
                None => self.plain_end(bytes, start)?,
            };
            if bytes.get(end) != Some(&self.syntax.separator) {
                break end;
            }
            start = end + 1;
        };
        let next = match &bytes[end..] {
            [b'\n', ..] => end + 1,
            [b'\r', b'\n', ..] => end + 2,
            _ => end,
        };
        if bytes[start..end].ends_with(b"\r") {
            end -= 1;
        }
        if end > self.limits.row { Err(Fault::TooLong) } else { Ok(Row { end, next }) }
    }

    /// Where the field at `start`, opened by a quote, ends: after the quote that closes it. A doubled quote stands
    /// for one of the text's.
    fn quoted_end(&self, bytes: &[u8], start: usize, quote: u8) -> Result<usize, Fault> {
        let mut at = start + 1;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(length) = rest.iter().position(|&byte| byte == quote) else {
                return Err(self.cut().unwrap_or(Fault::OpenQuote));
            };
            at += length + 1;
            match &bytes[at..] {
                // What follows tells whether this is the closing quote.
                [] | [b'\r'] if let Some(cut) = self.cut() => return Err(cut),
                [] | [b'\n', ..] | [b'\r', b'\n', ..] => return Ok(at),
                [byte, ..] if *byte == self.syntax.separator => return Ok(at),
                [byte, ..] if *byte == quote => at += 1,
                _ => return Err(Fault::OpenQuote),
            }
        }
    }

    /// Where the field at `start`, not opened by a quote, ends.
    fn plain_end(&self, bytes: &[u8], start: usize) -> Result<usize, Fault> {
        let ends = |&byte: &u8| byte == self.syntax.separator || byte == b'\n';
        match bytes[start..].iter().position(ends) {
            Some(length) => Ok(start + length),
            None => self.cut().map_or(Ok(bytes.len()), Err),
        }
    }

    /// Why a row can't go on to the end of what is to be seen, unless the file ends there.
    fn cut(&self) -> Option<Fault> {
        match self.window.beyond() {
            Beyond::End => None,
            Beyond::Limit => Some(Fault::TooLong),
            Beyond::More => Some(Fault::Unseen),
        }
    }

    /// Copies the row that ends at `end` out, or notes its fault.
    fn take(&mut self, end: usize, starts: &[usize], sound: &mut SoundRows, bad: &mut BadRows) {
        let raw = &self.window.bytes()[..end];
        let text = match std::str::from_utf8(raw) {
            Ok(text) => text,
            Err(error) => {
                let byte = raw[error.valid_up_to()];
                let reason = || format!("not valid UTF-8 (byte 0x{byte:02x}) in `{}`", excerpt(raw));
                return bad.add(Place::Line(self.line), reason);
            }
        };
        if self.width == 0 {
            self.width = starts.len();
        }
        let (width, expected) = (starts.len(), self.width);
        if width != expected {
            let noun = if width == 1 { "field" } else { "fields" };
            let reason =
                || format!("{width} {noun} where the first row has {expected} in `{}`", excerpt(raw));
            return bad.add(Place::Line(self.line), reason);
        }
        sound.push(text.as_bytes(), fields(starts, end), self.syntax);
        sound.lines.push(self.line);
    }

    /// Notes that no row goes through any of these fields of the row at hand.
    fn remember(&mut self, fault: Fault, starts: &[usize]) {
        let length = starts.last().map_or(0, |last| last + 1);
        if self.failed.len() < length {
            self.failed.resize(length, None);
        }
        starts.iter().for_each(|&start| self.failed[start] = Some(fault));
    }

    fn reason(&self, fault: Fault, line: &[u8]) -> String {
        let line = excerpt(line);
        match fault {
            Fault::OpenQuote => format!("a quoted field is not closed properly in `{line}`"),
            Fault::TooWide => format!("a row of more than {MAX_FIELDS} fields starts with `{line}`"),
            Fault::TooLong | Fault::Unseen => {
                format!("a row of more than {} bytes starts with `{line}`", self.limits.row)
            }
        }
    }

    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            if let Some(end) = line_end(self.window.bytes()) {
                self.advance(end + 1);
                return Ok(());
            }
            self.advance(self.window.bytes().len());
            if !self.window.fill()? {
                return Ok(());
            }
        }
    }

    fn advance(&mut self, length: usize) {
        self.line += self.window.bytes()[..length].iter().filter(|&&byte| byte == b'\n').count();
        self.window.advance(length);
        self.failed.drain(..length.min(self.failed.len()));
    }
}

impl SoundRows {
    /// Copies a row; a field is put in quotes if it holds a quote without being quoted.
    fn push(&mut self, row: &[u8], fields: impl Iterator<Item = Range<usize>>, syntax: Syntax) {
        for field in fields {
            if field.start > 0 {
                self.csv.push(syntax.separator);
            }
            let field = &row[field];
            match syntax.quote.filter(|quote| field.first() != Some(quote) && field.contains(quote)) {
                None => self.csv.extend_from_slice(field),
                Some(quote) => {
                    self.csv.push(quote);
                    for &byte in field {
                        self.csv.extend(std::iter::repeat_n(byte, if byte == quote { 2 } else { 1 }));
                    }
                    self.csv.push(quote);
                }
            }
        }
        self.csv.push(b'\n');
    }
}

/// The fields of a row that ends at `end`: a separator lies between each and the next.
fn fields(starts: &[usize], end: usize) -> impl Iterator<Item = Range<usize>> {
    let ends = starts.iter().skip(1).map(|start| start - 1).chain([end]);
    starts.iter().zip(ends).map(|(&start, end)| start..end)
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| byte == b'\n')
}

#[cfg(test)]
mod tests;
