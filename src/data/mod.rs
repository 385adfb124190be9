//! From a file of texts to batches of token ids: read and check the table, split it, tokenize once, batch.

mod batches;
mod labels;
mod records;
mod split;
mod table;
mod tokens;

use std::io;
use std::path::PathBuf;

pub use batches::{Batch, Batches, Dataset, Order, Share};
pub use labels::LabelMap;
pub use split::{Split, permutation, train_test_split};
pub use table::{ColumnRef, Purpose, Table, TableOptions, parse_quote, parse_separator};
pub use tokens::{Tokenizer, Tokens};

/// Why a table could not be read, split or tokenized. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("can't read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {message}", path.display())]
    Column { path: PathBuf, message: String },
    #[error("{}: {}; correct them, or pass --skip-bad-rows to leave them out", path.display(), list(rows, *total))]
    BadRows {
        path: PathBuf,
        /// The first few.
        rows: Vec<BadRow>,
        total: usize,
    },
    #[error("{}: no usable row ({skipped} left out)", path.display())]
    NoRows { path: PathBuf, skipped: usize },
    /// Polars and this crate's own scan disagree about the file.
    #[error("{}: reading the table failed: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    /// An option's value that can't be understood.
    #[error("{0}")]
    Option(String),
    #[error("can't split {rows} rows with a test share of {test_size}: {message}")]
    Split { rows: usize, test_size: f64, message: String },
    #[error("{}: {message}", path.display())]
    Tokenizer { path: PathBuf, message: String },
    #[error("tokenizing failed: {0}")]
    Encode(String),
}

impl DataError {
    /// True where the user's file or option is at fault, false where the program failed.
    pub fn is_input_error(&self) -> bool {
        !matches!(self, Self::Parse { .. } | Self::Encode(_))
    }
}

/// A row that can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// The line of the file, from 1, on which the row starts.
    pub line: usize,
    pub reason: String,
}

fn list(rows: &[BadRow], total: usize) -> String {
    let noun = if total == 1 { "row" } else { "rows" };
    let shown: Vec<_> = rows.iter().map(|row| format!("line {}: {}", row.line, row.reason)).collect();
    let more = match total - rows.len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    format!("{total} {noun} can't be used: {}{more}", shown.join("; "))
}
