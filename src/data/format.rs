//! The formats of tables.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::DataError;

/// How the bytes of a table are its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Fields between separators, a row per line.
    Csv,
    /// A JSON object per line; its keys are the columns.
    JsonLines,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    /// By how the file's name ends, in any letter case: `.parquet`, `.jsonl`, `.ndjson` or `.json`, else CSV.
    pub fn of(path: &Path) -> Self {
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("parquet") => Self::Parquet,
            Some("jsonl" | "ndjson" | "json") => Self::JsonLines,
            _ => Self::Csv,
        }
    }
}

impl FromStr for Format {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        match text {
            "csv" => Ok(Self::Csv),
            "jsonl" => Ok(Self::JsonLines),
            "parquet" => Ok(Self::Parquet),
            _ => Err(DataError::Option(format!("format `{text}`: expected csv, jsonl or parquet"))),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Csv => "CSV",
            Self::JsonLines => "JSON Lines",
            Self::Parquet => "Parquet",
        })
    }
}

/// Which other format a file is in that starts with these bytes, and what to do about it.
pub(super) fn foreign(bytes: &[u8], format: Format) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            Some("it is in UTF-16; write it in UTF-8 (iconv -f UTF-16 -t UTF-8)")
        }
        [0x1f, 0x8b, ..] => Some("it is compressed; unpack it (gunzip)"),
        [b'P', b'K', 3, 4, ..] => Some("it is a spreadsheet or a zip file; export the table as CSV"),
        [b'P', b'A', b'R', b'1', ..] => Some("it is in Parquet, but not named so (.parquet)"),
        [b'[', ..] if format == Format::JsonLines => {
            Some("it is a JSON array; write its objects a line each (JSON Lines)")
        }
        _ => None,
    }
}
