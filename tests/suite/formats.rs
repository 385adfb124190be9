//! Tables in Parquet and JSON Lines, as pandas 3.1.1 and pyarrow 26.0.1 write them, against the rows that pandas reads from
//! the same table in CSV. The files of `tests/fixtures/tables` are made by
//!
//! ```python
//! import json, sys, math, pandas as pd, pyarrow as pa, pyarrow.parquet as pq
//! out = sys.argv[1]
//! texts = ["barcha behi", '7abbit "jeddan"', "a, b; c", "two\nlines\r\nand more", "très bien ☕", "😀 مرحبا", "007", "NA", " spaced ",
//!          "barcha behi", "tab\there", "x" * 300]
//! df = pd.DataFrame({"ID": range(100, 112), "text": texts, "label": [1, 0, -1] * 4})
//! df.to_csv(f"{out}/rows.csv", index=False)
//! df.to_parquet(f"{out}/rows.parquet", row_group_size=5)
//! df.to_json(f"{out}/rows.jsonl", orient="records", lines=True)
//! df.to_json(f"{out}/rows.ndjson", orient="records", lines=True, force_ascii=False)
//! types = pa.table({
//!     "label": pa.array(df.label.astype(float)), "small": pa.array(df.label, pa.int8()),
//!     "unsigned": pa.array([2**64 - 1, 7, 0] * 4, pa.uint64()), "single": pa.array([0.1, -0.0, 2.0] * 4, pa.float32()),
//!     "double": pa.array([0.5, 1e22, -0.125] * 4), "truth": pa.array([True, False, None] * 4),
//!     "gap": pa.array([1, None, 3] * 4, pa.float64()), "none": pa.nulls(12),
//!     "word": pa.array(["yes", "no", None] * 4).dictionary_encode(), "text": pa.array(texts, pa.large_string()),
//!     "bytes": pa.array([text.encode() for text in texts], pa.binary()), "ID": pa.array(df.ID, pa.int32()),
//!     "broken": pa.array([b"a", b"\xff", b"b"] * 4, pa.binary()), "when": pa.array([0] * 12, pa.timestamp("ms")),
//!     "list": pa.array([["a"]] * 12), "object": pa.array([{"a": "b"}] * 12)})
//! for name, how in {"snappy": {}, "zstd": {"compression": "zstd", "data_page_version": "2.0", "row_group_size": 7},
//!         "gzip": {"compression": "gzip", "use_dictionary": False, "data_page_size": 64, "write_batch_size": 2},
//!         "lz4": {"compression": "lz4", "version": "1.0", "row_group_size": 4}}.items():
//!     pq.write_table(types, f"{out}/types.{name}.parquet", **how)
//! types.drop_columns(["bytes", "broken", "when"]).to_pandas().to_json(f"{out}/types.jsonl", orient="records", lines=True)
//! def told(value):
//!     if pd.isna(value): return None
//!     return str(int(value)) if not isinstance(value, (str, bool)) and value == int(value) else str(value)
//! read = pd.read_csv(f"{out}/rows.csv", dtype=str, keep_default_na=False)
//! frame = types.drop_columns(["bytes", "broken", "when", "list", "object"]).to_pandas()
//! expected = {"rows": read.to_dict("list"), "types": {name: [told(value) for value in frame[name].to_numpy()] for name in frame}}
//! json.dump(expected, open(f"{out}/expected.json", "w"), ensure_ascii=False, indent=0)
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use bert_xla::data::{
    BadRow, ColumnRef, DataError, Format, Labels, MAX_ROW, Place, Purpose, Table, TableFile, TableOptions,
};
use serde::Deserialize;

#[cfg(feature = "parquet")]
use crate::common::empty_folder;

#[derive(Deserialize)]
struct Expected {
    rows: BTreeMap<String, Vec<String>>,
    types: BTreeMap<String, Vec<Option<String>>>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tables").join(name)
}

fn expected() -> Expected {
    serde_json::from_slice(&fs::read(fixture("expected.json")).unwrap()).unwrap()
}

/// The formats that this build reads.
fn readable(names: &[&'static str]) -> Vec<&'static str> {
    let is_readable = |name: &&&str| cfg!(feature = "parquet") || !name.ends_with(".parquet");
    names.iter().filter(is_readable).copied().collect()
}

/// The files of all types.
fn types() -> Vec<&'static str> {
    readable(&[
        "types.snappy.parquet",
        "types.zstd.parquet",
        "types.gzip.parquet",
        "types.lz4.parquet",
        "types.jsonl",
    ])
}

fn name(column: &str) -> Option<ColumnRef> {
    Some(ColumnRef::Name(column.to_owned()))
}

fn text_of(column: &str) -> TableOptions {
    TableOptions { text_column: name(column), ..TableOptions::default() }
}

/// A table of JSON Lines with these bytes.
fn json(bytes: impl AsRef<[u8]>, options: &TableOptions, purpose: Purpose) -> Result<Table, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    fs::write(&path, bytes).unwrap();
    Table::read(&path, options, purpose)
}

fn bad_rows(result: Result<Table, DataError>) -> Vec<BadRow> {
    match result {
        Err(DataError::BadRows { rows, .. }) => rows,
        other => panic!("expected bad rows, got {other:?}"),
    }
}

#[test]
fn every_format_holds_pandas_rows() {
    let Expected { rows, .. } = expected();
    let mut digests = vec![];
    for file in readable(&["rows.csv", "rows.parquet", "rows.jsonl", "rows.ndjson"]) {
        let (path, options) = (fixture(file), TableOptions::default());
        let table = Table::read(&path, &options, Purpose::Evaluate).unwrap();
        assert_eq!(table.texts, rows["text"], "{file}");
        assert_eq!(table.ids, rows["ID"], "{file}");
        let labels = table.classes.iter().map(|class| table.labels.label_of(*class).unwrap());
        assert!(labels.eq(&rows["label"]), "{file}");
        let table = Table::read(&path, &options, Purpose::Train).unwrap();
        assert_eq!((table.texts.len(), table.duplicates, table.skipped), (11, 1, 0), "{file}");
        // By another name, or position.
        let options = TableOptions {
            text_column: Some(ColumnRef::Position(1)),
            label_column: name("LABEL"),
            id_column: name("id"),
            ..options
        };
        let summary = TableFile::open(&path, &options, Purpose::Evaluate).unwrap().check().unwrap();
        assert_eq!((summary.rows, &summary.guess), (12, &None), "{file}");
        digests.push(summary.digest);
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
}

#[test]
fn values_are_what_pandas_would_write() {
    let Expected { types: columns, .. } = expected();
    for file in types() {
        for (column, expected) in &columns {
            // Pandas writes ten digits to JSON, nothing for an infinity, and 1e22 is not kept to its last digit there.
            if file.ends_with(".jsonl") && ["single", "double"].contains(&column.as_str()) {
                continue;
            }
            let expected = expected.iter().map(|value| value.clone().unwrap_or_default());
            let options = TableOptions { id_column: name(column), ..text_of(column) };
            let table = Table::read(&fixture(file), &options, Purpose::Predict).unwrap();
            let expected = expected.collect::<Vec<_>>();
            assert_eq!(table.texts, expected, "{file}: {column}");
            assert_eq!(table.ids, expected, "{file}: {column}");
        }
    }
    for file in types().into_iter().filter(|file| file.ends_with(".parquet")) {
        let table = Table::read(&fixture(file), &text_of("bytes"), Purpose::Predict).unwrap();
        let texts = columns["text"].iter().map(|text| text.clone().unwrap());
        assert_eq!(table.texts, texts.collect::<Vec<_>>(), "{file}");
    }
}

#[test]
fn a_null_is_a_bad_row_where_labels_are_looked_for() {
    for file in types() {
        let (path, place) = (fixture(file), if file.ends_with(".jsonl") { Place::Line } else { Place::Row });
        let reason = |reason: &str| reason.to_owned();
        let labelled = |text: &str, label: &str, skip_bad_rows| {
            let labels = Labels::Auto;
            let options = TableOptions { label_column: name(label), labels, skip_bad_rows, ..text_of(text) };
            Table::read(&path, &options, Purpose::Evaluate)
        };
        let rows = bad_rows(labelled("text", "truth", false));
        let nulls =
            [3, 6, 9, 12].map(|row| BadRow { place: place(row), reason: reason("the label is null") });
        assert_eq!(rows, nulls, "{file}");
        let table = labelled("text", "truth", true).unwrap();
        assert_eq!((table.labels.to_string(), table.skipped), ("False=0,True=1".to_owned(), 4), "{file}");
        assert_eq!(table.classes, [1, 0, 1, 0, 1, 0, 1, 0], "{file}");
        let rows = bad_rows(labelled("gap", "label", false));
        assert_eq!(rows[0], BadRow { place: place(2), reason: reason("the text is null") }, "{file}");
        // Whole numbers that became floats are those of the recipe.
        let table = Table::read(&path, &TableOptions::default(), Purpose::Evaluate).unwrap();
        assert_eq!(table.classes, [3, 2, 1].repeat(4), "{file}");
    }
}

#[cfg(feature = "parquet")]
#[test]
fn columns_of_other_types_are_refused() {
    for file in types().into_iter().filter(|file| file.ends_with(".parquet")) {
        let read = |column| Table::read(&fixture(file), &text_of(column), Purpose::Predict).unwrap_err();
        for (column, what) in [("list", "a list"), ("object", "an object"), ("when", "of type Timestamp")] {
            let error = read(column);
            let expected = format!("{file}: the column `{column}`, for the text, is {what}");
            assert!(error.to_string().contains(&expected) && error.is_input_error(), "{error}");
        }
        let DataError::BadRows { rows, total, .. } = read("broken") else { panic!("{file}") };
        let reason = "the text is not valid UTF-8 (byte 0xff) in `\u{fffd}`".to_owned();
        assert_eq!((&rows[0], total), (&BadRow { place: Place::Row(2), reason }, 4), "{file}");
    }
}

#[test]
fn lines_that_are_no_object_are_bad_rows() {
    let lines = [
        r#"{"text": "a", "label": 1, "id": "x"}"#,
        "",
        r#"{"text": "b", "label": 1"#,
        r#"["c", 1]"#,
        r#"{"text": ["d"], "label": 1}"#,
        r#"{"text": "e", "label": {"f": 1}}"#,
        r#"{"label": -1, "text": "g", "more": [{}, [1]]}"#,
        r#"{"text": "h"}"#,
        r#"{"text": "i", "label": 1} {}"#,
        r#"{"text": "j", "label": 0, "id": 123456789012345678901234567890}"#,
        r#"{"text": "k", "label": 0, "id": 18446744073709551615}"#,
        r#"{"text": "l", "label": 0, "id": 1.0, "label": 1}"#,
        "{\"text\": \"m\u{0}\", \"label\": 0}",
    ];
    let file = format!("\u{feff}{}", lines.join("\r\n"));
    let rows = bad_rows(json(&file, &TableOptions::default(), Purpose::Evaluate));
    let of = |line, reason: &str| BadRow { place: Place::Line(line), reason: reason.to_owned() };
    let expected = [
        of(
            3,
            "not a JSON object: EOF while parsing an object, at column 25 of `{\"text\": \"b\", \"label\": 1 `",
        ),
        of(4, "not a JSON object: invalid type: sequence, expected an object, at column 0 of `[\"c\", 1] `"),
        of(5, "the text is a list or an object"),
        of(6, "the label is a list or an object"),
        of(8, "the label is null"),
    ];
    assert_eq!(rows, expected);
    let options = TableOptions { skip_bad_rows: true, ..TableOptions::default() };
    let table = json(&file, &options, Purpose::Evaluate).unwrap();
    assert_eq!((table.texts.iter().collect::<Vec<_>>().join(""), table.skipped), ("agkl".to_owned(), 8));
    assert_eq!(
        (table.classes, table.ids.iter().collect::<Vec<_>>().join("|")),
        (vec![3, 1, 2, 3], "x||18446744073709551615|1".to_owned())
    );

    let nested = format!("{{\"text\": \"a\", \"x\": {}}}\n", "[".repeat(1 << 20));
    let error = json(nested, &TableOptions::default(), Purpose::Predict).unwrap_err();
    assert!(matches!(error, DataError::BadRows { total: 1, .. }), "{error}");
    let error = json("[{\"text\": \"a\"}]", &TableOptions::default(), Purpose::Predict).unwrap_err();
    assert!(
        error.to_string().ends_with("it is a JSON array; write its objects a line each (JSON Lines)"),
        "{error}"
    );
}

#[test]
fn keys_are_columns_by_their_names_alone() {
    // The first row may lack others.
    let single = "{\"review_id\": 1}\n{\"review_id\": 2, \"text\": \"good\"}\n";
    let error = json(single, &TableOptions::default(), Purpose::Predict).unwrap_err();
    assert!(error.to_string().ends_with("no column is the text; the columns are review_id"), "{error}");
    // Their order says nothing.
    let options = TableOptions {
        text_column: Some("b".parse().unwrap()),
        label_column: Some("a".parse().unwrap()),
        ..TableOptions::default()
    };
    let rows = "{\"a\": \"1\", \"b\": \"x\"}\n{\"b\": \"y\", \"a\": 0}\n";
    let table = json(rows, &options, Purpose::Evaluate).unwrap();
    assert_eq!((table.texts.iter().collect::<Vec<_>>().join(""), table.classes), ("xy".into(), vec![3, 2]));
    for (rows, message) in [
        ("{}\n", "no column is the text; there are none"),
        ("{\"tweet\": \"a\"}\n", "no column is the text; the columns are tweet"),
        ("{\"text\": \"a\"}\n", "no column is the label; the columns are text"),
        ("{\"id\": 1, \"tweet\": \"a\"}\n", "no column is the text; the columns are id, tweet"),
        ("{\"n\": 7, \"tweet\": \"a\", \"y\": 1}\n", "no column is the text; the columns are n, tweet, y"),
        ("", "there are no rows"),
        ("\n\n", "there are no rows"),
    ] {
        let error = json(rows, &TableOptions::default(), Purpose::Train).unwrap_err();
        assert!(error.to_string().ends_with(message), "{error}");
    }
}

#[test]
fn a_line_beyond_the_limit_is_bad() {
    let row = |text: &str| format!("{{\"label\": 1, \"text\": \"{text}\"}}\n");
    let long = |length: usize| row(&"x".repeat(length + 1 - row("").len()));
    let file = |length| [row("a"), long(length), row("b")].concat();
    assert_eq!(json(file(MAX_ROW), &TableOptions::default(), Purpose::Train).unwrap().texts.len(), 3);
    let rows = bad_rows(json(file(MAX_ROW + 1), &TableOptions::default(), Purpose::Train));
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].place, Place::Line(2));
    assert!(
        rows[0].reason.starts_with("a row of more than 67108864 bytes starts with `{\"label\": 1, "),
        "{rows:?}"
    );
}

#[test]
fn a_pipe_is_read_in_the_format_that_is_named() {
    for file in readable(&["rows.jsonl", "rows.parquet"]) {
        let format = Format::of(Path::new(file));
        let options = TableOptions { format: Some(format), ..TableOptions::default() };
        let expected = Table::read(&fixture(file), &options, Purpose::Train).unwrap();
        let through_pipe = |read: &dyn Fn(&Path)| {
            std::thread::scope(|scope| {
                let (reader, mut writer) = std::io::pipe().unwrap();
                scope.spawn(move || writer.write_all(&fs::read(fixture(file)).unwrap()).unwrap());
                read(&Path::new("/proc/self/fd").join(reader.as_raw_fd().to_string()));
            });
        };
        through_pipe(&|path| {
            assert_eq!(Table::read(path, &options, Purpose::Train).unwrap(), expected, "{file}");
        });
        through_pipe(&|path| {
            let table = TableFile::open(path, &options, Purpose::Train).unwrap();
            let summary = table.check().unwrap();
            assert_eq!(table.collect().unwrap(), (expected.clone(), summary), "{file}");
        });
    }
}

#[test]
fn formats_go_by_the_name() {
    for (path, format) in [
        ("a.parquet", Format::Parquet),
        ("gs://bucket/b.PARQUET", Format::Parquet),
        ("c.jsonl", Format::JsonLines),
        ("d.ndjson", Format::JsonLines),
        ("e.json", Format::JsonLines),
        ("f.csv", Format::Csv),
        ("parquet", Format::Csv),
        ("/dev/stdin", Format::Csv),
    ] {
        assert_eq!(Format::of(Path::new(path)), format, "{path}");
    }
}

#[cfg(feature = "parquet")]
#[test]
fn a_cut_file_is_told_in_a_line() {
    let path = empty_folder("formats_cut").join("rows.parquet");
    let bytes = fs::read(fixture("rows.parquet")).unwrap();
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        let error = Table::read(&path, &TableOptions::default(), Purpose::Train).unwrap_err();
        assert!(matches!(error, DataError::Damaged { .. }) && error.is_input_error(), "{length}: {error}");
        assert!(error.to_string().contains("rows.parquet: it can't be read as Parquet: "), "{error}");
    }
    fs::write(&path, "id,text,label\n1,a,1\n").unwrap();
    let error = Table::read(&path, &TableOptions::default(), Purpose::Train).unwrap_err();
    assert!(matches!(error, DataError::Damaged { .. }), "{error}");
}

/// Each byte of a file, in turn, with a bit turned: there are rows, or a line that says why not.
#[cfg(feature = "parquet")]
#[test]
fn a_damaged_file_is_told_in_a_line() {
    let path = empty_folder("formats_damaged").join("rows.parquet");
    let bytes = fs::read(fixture("rows.parquet")).unwrap();
    let mut contained = 0;
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 2;
        fs::write(&path, &bytes).unwrap();
        let Err(error) = Table::read(&path, &TableOptions::default(), Purpose::Evaluate) else { continue };
        let line = error.to_string();
        assert!(error.is_input_error() && !line.contains('\n'), "byte {at}: {line}");
        contained += usize::from(line.ends_with("its parts contradict each other"));
    }
    // What the reader has panicked of: if it does no more, nothing is to be contained.
    assert!(contained > 0);
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_build_without_parquet_says_how_to_get_it() {
    let error = Table::read(&fixture("rows.parquet"), &TableOptions::default(), Purpose::Train).unwrap_err();
    assert!(
        error.to_string().contains("build it with the feature `parquet`") && error.is_input_error(),
        "{error}"
    );
}
