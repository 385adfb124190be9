//! Tables and sentences.

use std::fs;

use super::{Case, TRAIN};

const PREDICT: &str = "predict --backend cpu --run {demo} --data {}/data.csv --output {}/new/labels.csv";
const ENCODE: &str =
    "encode --backend cpu --max-length 8 --model {demo} --input {}/sentences.txt --output {}/new/states";
const EVALUATE: &str = "evaluate --backend cpu --run {demo} --data {}/data.csv";

fn of(command: &str, name: &str, bytes: impl Into<Vec<u8>>, flags: &str, message: &str) -> Case {
    let bytes = bytes.into();
    let case = Case::new(format!("table: {name}"), format!("{command} {flags}"), message);
    case.make(move |folder| fs::write(folder.join("data.csv"), bytes).unwrap())
}

fn train(name: &str, bytes: impl Into<Vec<u8>>, flags: &str, message: &str) -> Case {
    of(TRAIN, name, bytes, flags, message)
}

/// A table of another name.
fn named(file: &'static str, name: &str, bytes: impl Into<Vec<u8>>, flags: &str, message: &str) -> Case {
    let (command, bytes) = (TRAIN.replace("data.csv", file), bytes.into());
    let case = Case::new(format!("table: {name}"), format!("{command} {flags}"), message);
    case.make(move |folder| fs::write(folder.join(file), bytes).unwrap())
}

fn at(command: &str, name: &str, path: &str, message: &str) -> Case {
    Case::new(format!("table: {name}"), command.replace("{}/data.csv", path), message)
}

fn sentences(name: &str, bytes: impl Into<Vec<u8>>, message: &str) -> Case {
    let bytes = bytes.into();
    let case = Case::new(format!("sentences: {name}"), ENCODE, message);
    case.make(move |folder| fs::write(folder.join("sentences.txt"), bytes).unwrap())
}

fn utf16(bytes: fn(u16) -> [u8; 2], mark: [u8; 2]) -> Vec<u8> {
    mark.into_iter().chain("id,text,label\n1,a,1\n".encode_utf16().flat_map(bytes)).collect()
}

/// Of a table that pandas wrote, see [`formats`](crate::formats).
#[cfg(feature = "parquet")]
pub fn parquet() -> Vec<Case> {
    let types = include_bytes!("../../fixtures/tables/types.snappy.parquet");
    let rows = include_bytes!("../../fixtures/tables/rows.parquet");
    let case = |name, bytes: &[u8], flags, message| named("data.parquet", name, bytes, flags, message);
    let mut damaged = rows.to_vec();
    damaged[345] ^= 2;
    vec![
        case(
            "Parquet: a damaged page",
            &damaged,
            "",
            "{}/data.parquet: it can't be read as Parquet: Parquet error: its parts contradict each other",
        ),
        case(
            "Parquet: empty",
            b"",
            "",
            "{}/data.parquet: it can't be read as Parquet: EOF: Parquet file too small. Size is 0 but need 8",
        ),
        case(
            "Parquet: cut short",
            &rows[..rows.len() - 9],
            "",
            "{}/data.parquet: it can't be read as Parquet: Parquet error: Invalid Parquet file. Corrupt footer",
        ),
        case(
            "Parquet: a CSV file",
            b"id,text,label\n1,a,1\n",
            "",
            "{}/data.parquet: it can't be read as Parquet: Parquet error: Invalid Parquet file. Corrupt footer",
        ),
        case(
            "Parquet: a column of lists",
            types,
            "--text-column list",
            "{}/data.parquet: the column `list`, for the text, is a list; expected text, numbers or \
                booleans",
        ),
        case(
            "Parquet: a column that isn't there",
            rows,
            "--text-column tweet",
            "{}/data.parquet: there is no column `tweet` for the text; the columns are ID, text, label",
        ),
        case(
            "Parquet: a missing label",
            types,
            "--label-column word --labels auto",
            "{}/data.parquet: 4 rows can't be used: row 3: the label is null; row 6: the label is \
                null; row 9: the label is null; row 12: the label is null; correct them, or pass \
                --skip-bad-rows to leave them out",
        ),
    ]
}

pub fn cases() -> Vec<Case> {
    let rows = |labels: &[&str]| {
        let rows = labels.iter().enumerate().map(|(i, label)| format!("{i},text {i},{label}\n"));
        format!("id,text,label\n{}", rows.collect::<String>())
    };
    vec![
        at(TRAIN, "missing", "{}/none.csv", "can't read {}/none.csv: No such file or directory (os error 2)"),
        at(TRAIN, "a folder", "{}/model", "can't read {}/model: Is a directory (os error 21)"),
        train("empty", "", "", "{}/data.csv: there are no rows"),
        at(TRAIN, "nothing", "/dev/null", "/dev/null: there are no rows"),
        train("a mark alone", "\u{feff}", "", "{}/data.csv: there are no rows"),
        train("blank lines", "\n\n\r\n", "", "{}/data.csv: there are no rows"),
        train("a header alone", "id,text,label\n", "", "{}/data.csv: there are no rows"),
        train(
            "a program",
            *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0>\0",
            "",
            "{}/data.csv: no column is the label; the file has one column; is --separator right?",
        ),
        train(
            "zeros",
            vec![0; 4096],
            "",
            "{}/data.csv: no column is the label; the file has one column; is --separator right?",
        ),
        train(
            "UTF-16, little-endian",
            utf16(u16::to_le_bytes, [0xff, 0xfe]),
            "",
            "can't read {}/data.csv: it is in UTF-16; write it in UTF-8 (iconv -f UTF-16 -t UTF-8)",
        ),
        train(
            "UTF-16, big-endian",
            utf16(u16::to_be_bytes, [0xfe, 0xff]),
            "",
            "can't read {}/data.csv: it is in UTF-16; write it in UTF-8 (iconv -f UTF-16 -t UTF-8)",
        ),
        train(
            "gzip",
            *b"\x1f\x8b\x08\0\0\0\0\0",
            "",
            "can't read {}/data.csv: it is compressed; unpack it (gunzip)",
        ),
        train(
            "a spreadsheet",
            *b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0",
            "",
            "can't read {}/data.csv: it is a spreadsheet or a zip file; export the table as CSV",
        ),
        train(
            "Parquet",
            *b"PAR1\x15\x04\x15\x10",
            "",
            "can't read {}/data.csv: it is in Parquet, but not named so (.parquet)",
        ),
        train(
            "Latin-1",
            *b"id,text,label\n1,\xe9t\xe9,1\n",
            "",
            "{}/data.csv: 1 row can't be used: line 2: not valid UTF-8 (byte 0xe9) in `1,�t�,1`; \
                correct them, or pass --skip-bad-rows to leave them out",
        ),
        train(
            "a header in Latin-1",
            *b"num\xe9ro,text,label\n1,a,1\n",
            "--header",
            "{}/data.csv: the header can't be read: line 1: not valid UTF-8 (byte 0xe9) in \
                `num�ro,text,label`",
        ),
        train(
            "no label",
            "id,text\n1,a\n",
            "",
            "{}/data.csv: no column is the label; the columns are id, text; pass --label-column",
        ),
        train(
            "no text",
            "id,comment,label\n1,a,1\n",
            "",
            "{}/data.csv: no column is the text; the columns are id, comment, label; pass --text-column",
        ),
        train(
            "another separator",
            "id;text;label\n1;a;1\n",
            "",
            "{}/data.csv: no column is the label; the file has one column; is --separator right?",
        ),
        train(
            "no header",
            "1,a,1\n2,b,0\n",
            "",
            "{}/data.csv: the first row, `1, a, 1`, reads as data, not as column names; pass \
                --no-header if it is data; if not, name a column (--text-column NAME), or pass \
                --header",
        ),
        train(
            "one column, no header",
            "a\nb\n",
            "--separator ;",
            "{}/data.csv: no column is the label; the file has one column; is --separator right?",
        ),
        train(
            "a text column that isn't there",
            rows(&["1"]),
            "--text-column tweet",
            "{}/data.csv: there is no column `tweet` for the text; the columns are id, text, label",
        ),
        train(
            "a label column beyond the last",
            rows(&["1"]),
            "--label-column 3",
            "{}/data.csv: there is no column 3 for the label; the columns are id, text, label",
        ),
        train(
            "an id column that isn't there",
            rows(&["1"]),
            "--id-column nr",
            "{}/data.csv: there is no column `nr` for the id; the columns are id, text, label",
        ),
        train(
            "no header and a name",
            "1,a,1\n",
            "--no-header --text-column text",
            "{}/data.csv: there is no column `text` for the text; the file has 3 columns, counted \
                from 0, and no header",
        ),
        train(
            "an unknown label",
            rows(&["1", "2"]),
            "",
            "{}/data.csv: 1 row can't be used: line 3: label `2` is not one of -1, 0, 1; correct \
                them, or pass --skip-bad-rows to leave them out; --labels of train says which labels \
                there are, or takes those of the table: --labels auto",
        ),
        train(
            "many unknown labels",
            rows(&["x"; 8]),
            "",
            "{}/data.csv: 8 rows can't be used: line 2: label `x` is not one of -1, 0, 1; line 3: \
                label `x` is not one of -1, 0, 1; line 4: label `x` is not one of -1, 0, 1; line 5: \
                label `x` is not one of -1, 0, 1; line 6: label `x` is not one of -1, 0, 1; and 3 \
                more; correct them, or pass --skip-bad-rows to leave them out; --labels of train \
                says which labels there are, or takes those of the table: --labels auto",
        ),
        train(
            "labels of others",
            rows(&["1", "0"]),
            "--labels neg=0,pos=1",
            "{}/data.csv: 2 rows can't be used: line 2: label `1` is not one of neg, pos; line 3: \
                label `0` is not one of neg, pos; correct them, or pass --skip-bad-rows to leave \
                them out; --labels of train says which labels there are, or takes those of the table: --labels auto",
        ),
        train(
            "no bad row left over",
            rows(&["x"; 2]),
            "--skip-bad-rows",
            "{}/data.csv: no row is left: 2 rows can't be used: line 2: label `x` is not one of \
                -1, 0, 1; line 3: label `x` is not one of -1, 0, 1",
        ),
        train(
            "an empty text",
            "id,text,label\n1,,1\n",
            "",
            "{}/data.csv: 1 row can't be used: line 2: the text is empty; correct them, or pass \
                --skip-bad-rows to leave them out",
        ),
        train(
            "too many fields",
            "id,text,label\n1,a, b,1\n",
            "",
            "{}/data.csv: 1 row can't be used: line 2: 4 fields where the first row has 3 in \
                `1,a, b,1`; correct them, or pass --skip-bad-rows to leave them out",
        ),
        train(
            "too few fields",
            "id,text,label\n1,a\n",
            "",
            "{}/data.csv: 1 row can't be used: line 2: 2 fields where the first row has 3 in \
                `1,a`; correct them, or pass --skip-bad-rows to leave them out",
        ),
        train(
            "an open quote",
            "id,text,label\n1,\"a,1\n2,b,1\n",
            "",
            "{}/data.csv: 1 row can't be used: line 2: a quoted field is not closed properly in \
                `1,\"a,1`; correct them, or pass --skip-bad-rows to leave them out",
        ),
        train(
            "a quote closed early",
            "id,text,label\n1,\"a\"b,1\n",
            "",
            "{}/data.csv: 1 row can't be used: line 2: a quoted field is not closed properly in \
                `1,\"a\"b,1`; correct them, or pass --skip-bad-rows to leave them out",
        ),
        train(
            "too many columns",
            format!("id{}\n", ",x".repeat(20_000)),
            "",
            "{}/data.csv: 1 row can't be used: line 1: a row of more than 16384 fields starts \
                with `id,x,x,x,x,x,x,x,x,x,x,x,x,x,x,x,x,x,x,x…`; correct them, or pass \
                --skip-bad-rows to leave them out",
        ),
        train(
            "a row too long",
            format!("id,text,label\n1,{},1\n", "x".repeat(64 << 20)),
            "",
            "{}/data.csv: 1 row can't be used: line 2: a row of more than 67108864 bytes starts \
                with `1,xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…`; correct them, or pass \
                --skip-bad-rows to leave them out",
        ),
        train(
            "one row",
            rows(&["1"]),
            "",
            "can't split 1 row with a test share of 0.1: both parts need a row; choose another \
                --dev-size, or a table of more rows",
        ),
        train(
            "one text",
            "id,text,label\n1,a,1\n2,a,1\n3,a,0\n",
            "",
            "can't split 1 row with a test share of 0.1: both parts need a row; choose another \
                --dev-size, or a table of more rows",
        ),
        train(
            "two rows and most held out",
            rows(&["1", "0"]),
            "--dev-size 0.9",
            "can't split 2 rows with a test share of 0.9: both parts need a row; choose another \
                --dev-size, or a table of more rows",
        ),
        train(
            "auto: one label",
            rows(&["x", " x"]),
            "--labels auto",
            "{}/data.csv: every row has the label `x`, and a classifier needs two; is --label-column \
                right?",
        ),
        train(
            "auto: too many labels",
            format!(
                "id,text,label\n{}",
                (0..10_001).map(|i| format!("{i},{i},{i:05}\n")).collect::<String>()
            ),
            "--labels auto",
            "{}/data.csv: there are more than 10000 labels, such as `00000`, `00001`, `00002`; is \
                --label-column right?",
        ),
        train(
            "auto: an empty label",
            rows(&["x", "", "y"]),
            "--labels auto",
            "{}/data.csv: 1 row can't be used: line 3: the label is empty; correct them, or pass \
                --skip-bad-rows to leave them out",
        ),
        train(
            "auto: too few classes",
            rows(&["x", "y", "z"]),
            "--labels auto --num-classes 2",
            "--num-classes 2: --labels auto needs 3",
        ),
        train(
            "stratified: a label of one row",
            rows(&["1", "0", "1", "1", "-1", "0"]),
            "--stratify --dev-size 0.5",
            "can't split 6 rows by class with a test share of 0.5: there is one row of `-1`, and \
                both parts need one; choose another --dev-size, or leave --stratify out",
        ),
        train(
            "stratified: too few held out",
            rows(&["1", "0", "1", "1", "0"]),
            "--stratify",
            "can't split 5 rows by class with a test share of 0.1: 1 to be the test part, of 2 \
                classes; choose another --dev-size, or leave --stratify out",
        ),
        of(
            EVALUATE,
            "no label to evaluate",
            "ID,text\n1,a\n",
            "",
            "{}/data.csv: no column is the label; the columns are ID, text; pass --label-column",
        ),
        of(
            EVALUATE,
            "an unknown label to evaluate",
            rows(&["1", "%1"]),
            "",
            "{}/data.csv: 1 row can't be used: line 3: label `%1` is not one of -1, 0, 1; correct \
                them, or pass --skip-bad-rows to leave them out; --labels of train says which labels \
                there are, or takes those of the table: --labels auto",
        ),
        at(
            EVALUATE,
            "missing to evaluate",
            "{}/none.csv",
            "can't read {}/none.csv: No such file or directory (os error 2)",
        ),
        at(
            PREDICT,
            "missing to predict",
            "{}/none.csv",
            "can't read {}/none.csv: No such file or directory (os error 2)",
        ),
        of(PREDICT, "empty to predict", "", "", "{}/data.csv: there are no rows"),
        of(
            PREDICT,
            "no header to predict",
            "1,a\n2,b\n",
            "",
            "{}/data.csv: the first row, `1, a`, reads as data, not as column names; pass \
                --no-header if it is data; if not, name a column (--text-column NAME), or pass \
                --header",
        ),
        of(
            PREDICT,
            "an open quote to predict",
            "id,text\n1,\"a\n",
            "",
            "{}/data.csv: 1 row can't be used: line 2: a quoted field is not closed properly in \
                `1,\"a`; correct them, or pass --skip-bad-rows to leave them out",
        ),
        of(
            PREDICT,
            "no text to predict",
            "id,comment,x\n1,a,b\n",
            "",
            "{}/data.csv: no column is the text; the columns are id, comment, x; pass --text-column",
        ),
        named(
            "data.jsonl",
            "JSON Lines: a separator",
            "{}\n",
            "--separator ;",
            "--separator is of CSV, but {}/data.jsonl is in JSON Lines: leave it out",
        ),
        named(
            "data.parquet",
            "Parquet: no header",
            "",
            "--no-header",
            "--no-header is of CSV, but {}/data.parquet is in Parquet: leave it out",
        ),
        train("a format of CSV's", "", "--format csv --quote none", "{}/data.csv: there are no rows"),
        train(
            "another format's quote",
            "",
            "--format jsonl --quote none",
            "--quote is of CSV, but {}/data.csv is in JSON Lines: leave it out",
        ),
        train(
            "an unknown format",
            "",
            "--format xlsx",
            "invalid value 'xlsx' for '--format <FORMAT>': format `xlsx`: expected csv, jsonl or parquet",
        ),
        named(
            "data.jsonl",
            "JSON Lines: a damaged line",
            "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\", \"label\"\n",
            "",
            "{}/data.jsonl: 1 row can't be used: line 2: not a JSON object: EOF while parsing an \
                object, at column 21 of `{\"text\": \"b\", \"label\"`; correct them, or pass \
                --skip-bad-rows to leave them out",
        ),
        named(
            "data.ndjson",
            "JSON Lines: no label",
            "{\"text\": \"a\"}\n",
            "",
            "{}/data.ndjson: no column is the label; the columns are text; pass --label-column",
        ),
        named(
            "data.json",
            "JSON Lines: an array",
            "[{\"text\": \"a\", \"label\": 1}]",
            "",
            "can't read {}/data.json: it is a JSON array; write its objects a line each (JSON Lines)",
        ),
        sentences("empty", "", "{}/sentences.txt: no sentence; expected one a line"),
        sentences("not UTF-8", *b"a\n\xff\n", "{}/sentences.txt: line 2 is not UTF-8"),
        sentences(
            "a line too long",
            "short\n".to_owned() + &"x".repeat((64 << 20) + 1),
            "{}/sentences.txt: line 2 is longer than 67108864 bytes",
        ),
        Case::new(
            "sentences: missing",
            ENCODE,
            "can't read {}/sentences.txt: No such file or directory (os error 2)",
        )
        .make(|folder| fs::remove_file(folder.join("sentences.txt")).unwrap()),
        Case::new(
            "sentences: a folder",
            ENCODE.replace("sentences.txt", "model"),
            "can't read {}/model: Is a directory (os error 21)",
        ),
    ]
}
