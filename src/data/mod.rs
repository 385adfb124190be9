//! From a file of texts to batches of token ids: read and check the table, split it, tokenize once, batch.

mod bad_rows;
mod batch;
mod batches;
mod buckets;
mod columns;
#[cfg(feature = "parquet")]
mod contained;
mod csv;
mod folds;
mod format;
mod json;
mod labels;
mod options;
#[cfg(feature = "parquet")]
mod parquet;
mod parse;
mod pass;
mod records;
mod rows;
mod split;
mod strings;
mod table;
mod token_cache;
mod tokenizer;
mod tokens;
mod window;

use std::io;
use std::path::{Path, PathBuf};

pub use bad_rows::{BadRow, Place};
pub use batches::{Batch, Batches, Dataset, Order, Padding};
pub use buckets::{BucketOptions, Buckets};
pub use columns::{ColumnRef, Role};
pub use folds::{Folds, k_fold, stratified_k_fold};
pub use format::Format;
pub use labels::{LabelMap, Labels, MAX_CLASSES};
pub use options::{Header, Purpose, TableOptions, parse_quote, parse_separator};
pub use records::{Record, Records, Summary};
pub use rows::MAX_ROW;
pub use split::{Split, permutation, stratified_train_test_split, train_test_split};
pub use strings::Strings;
pub use table::{Table, TableFile};
pub use token_cache::TokenCache;
pub use tokenizer::{Piece, Tokenizer, TokenizerFiles};
pub use tokens::Tokens;

use crate::storage::is_outage;

/// Why a table could not be read, split or tokenized. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("can't read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The table lacks a column that is needed, or that was asked for.
    #[error("{}: {}", path.display(), columns::missing(*role, column.as_ref(), header, *width, *format))]
    NoColumn {
        path: PathBuf,
        role: Role,
        /// `None` where no column was given, and none has the role by name or position.
        column: Option<ColumnRef>,
        /// Empty for a table without one.
        header: Vec<String>,
        /// Number of columns; 1 is a sign of another separator, where one separates them.
        width: usize,
        format: Format,
    },
    /// A column of a Parquet file that holds what can't be used.
    #[error("{}: the column `{name}`, for the {role}, is {found}; expected text, numbers or booleans", path.display())]
    Column { path: PathBuf, role: Role, name: String, found: String },
    #[error("{}: it can't be read as Parquet: {message}", path.display())]
    Damaged { path: PathBuf, message: String },
    #[error(
        "{}: this bert-xla was built without Parquet: build it with the feature `parquet`, which is one of the default \
         ones; or export the table as CSV",
        path.display()
    )]
    NoParquet { path: PathBuf },
    /// The first row was to be the header, but names no column that is used, or has a number, or a label as rows have.
    #[error("{}: the first row, `{}`, reads as data, not as column names", path.display(), columns::shown(row))]
    HeaderIsData { path: PathBuf, row: Vec<String> },
    /// A row that can't be used, where the first one is said to be the header.
    #[error("{}: the header can't be read: {}: {}", path.display(), row.place, row.reason)]
    BadHeader { path: PathBuf, row: BadRow },
    /// A pass that was not to go on.
    #[error("{}: it wasn't read to its end", path.display())]
    Stopped { path: PathBuf },
    /// Rows that can't be used, where they are not to be skipped.
    #[error("{}: {}", path.display(), bad_rows::list(rows, *total))]
    BadRows {
        path: PathBuf,
        /// The first few.
        rows: Vec<BadRow>,
        total: usize,
        /// Whether any of them has a label that is none.
        has_unknown_label: bool,
    },
    #[error("{}: {}", path.display(), no_rows(rows, *skipped))]
    NoRows {
        path: PathBuf,
        skipped: usize,
        /// The first few of those that were skipped.
        rows: Vec<BadRow>,
    },
    /// The table's own labels, where they are to be its classes, are too few or too many.
    #[error("{}: {message}", path.display())]
    Labels { path: PathBuf, message: String },
    /// Polars and this crate's own scan disagree about the file.
    #[error("{}: reading the table failed: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    /// An option's value that can't be understood.
    #[error("{0}")]
    Option(String),
    #[error("can't split {rows} row{} with a test share of {test_size}: {message}", if *rows == 1 { "" } else { "s" })]
    Split { rows: usize, test_size: f64, message: String },
    #[error("can't split {rows} rows by class with a test share of {test_size}: {message}")]
    Stratify { rows: usize, test_size: f64, message: String },
    #[error("can't make {folds} folds of {rows} row{}: {message}", if *rows == 1 { "" } else { "s" })]
    Folds { rows: usize, folds: usize, message: String },
    #[error("{}: {message}", path.display())]
    Tokenizer { path: PathBuf, message: String },
    #[error("tokenizing failed: {0}")]
    Encode(String),
}

fn no_rows(rows: &[BadRow], skipped: usize) -> String {
    match skipped {
        0 => "there are no rows".to_owned(),
        skipped => format!("no row is left: {}", bad_rows::list(rows, skipped)),
    }
}

impl DataError {
    /// True where the user's file or option is at fault, false where the program failed.
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Parse { .. } | Self::Encode(_) => false,
            Self::Read { source, .. } => !is_outage(source),
            _ => true,
        }
    }
}

/// For `map_err`.
fn read_error(path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |source| DataError::Read { path: path.to_owned(), source }
}
