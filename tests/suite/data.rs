//! Reading tables, and batching them.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use bert_xla::data::{
    BadRow, ColumnRef, DataError, Dataset, Header, LabelMap, MAX_ROW, Order, Place, Purpose, Records, Role,
    Strings, Table, TableFile, TableOptions, Tokens, parse_quote, parse_separator,
};

struct File(tempfile::TempDir);

impl File {
    fn new(bytes: impl AsRef<[u8]>) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("rows.csv")
    }
}

fn read(bytes: impl AsRef<[u8]>, options: &TableOptions, purpose: Purpose) -> Result<Table, DataError> {
    Table::read(&File::new(bytes).path(), options, purpose)
}

fn strings<const N: usize>(texts: [&str; N]) -> Strings {
    texts.into_iter().collect()
}

fn train(bytes: impl AsRef<[u8]>) -> Table {
    read(bytes, &TableOptions::default(), Purpose::Train).unwrap()
}

fn bad_rows(bytes: impl AsRef<[u8]>, options: &TableOptions) -> (Vec<BadRow>, usize) {
    match read(bytes, options, Purpose::Train) {
        Err(DataError::BadRows { rows, total, .. }) => (rows, total),
        other => panic!("expected bad rows, got {other:?}"),
    }
}

fn label_text() -> TableOptions {
    TableOptions { separator: b';', header: Header::Absent, ..TableOptions::default() }
}

fn skipping(options: TableOptions) -> TableOptions {
    TableOptions { skip_bad_rows: true, ..options }
}

#[test]
fn the_recipes_file_by_header_names() {
    let table = train("\u{feff}label,ID,text\n-1,a,barcha\n0,b,007\n1,c,\"aaa, \"\"bbb\"\"\nccc\"\n");
    assert_eq!(table.texts, ["barcha", "007", "aaa, \"bbb\"\nccc"]);
    assert_eq!(table.classes, [1, 2, 3]);
    assert_eq!(table.ids, ["a", "b", "c"]);
    assert_eq!((table.duplicates, table.skipped), (0, 0));
    assert_eq!(class_counts(&table), [0, 1, 1, 1]);
}

#[test]
fn columns_by_position() {
    let named = TableOptions { header: Header::Present, ..TableOptions::default() };
    assert_eq!(read("x,y,z\n7,hello,1\n", &named, Purpose::Train).unwrap().ids, ["7"]);
    let options = label_text();
    let table = read("1;a b\n-1;c\n", &options, Purpose::Train).unwrap();
    assert_eq!((table.texts, table.ids), (strings(["a b", "c"]), strings(["1", "2"])));
    let table = read("9;a b\n8;c\n", &options, Purpose::Predict).unwrap();
    assert_eq!((table.texts, table.ids), (strings(["a b", "c"]), strings(["9", "8"])));
    let table = read("one\ntwo\n", &options, Purpose::Predict).unwrap();
    assert_eq!((table.texts, table.ids), (strings(["one", "two"]), strings(["1", "2"])));
}

#[test]
fn columns_that_are_given() {
    let options = TableOptions {
        separator: parse_separator(r"\t").unwrap(),
        text_column: Some("Tweet".parse().unwrap()),
        label_column: Some(ColumnRef::Position(0)),
        ..TableOptions::default()
    };
    let table = read("sentiment\ttweet\tid\n1\tahla, bik\t42\r\n", &options, Purpose::Train).unwrap();
    assert_eq!((&table.texts[0], &table.ids[0]), ("ahla, bik", "42"));

    let wrong = TableOptions { text_column: Some("comment".parse().unwrap()), ..TableOptions::default() };
    let error = read("id,text,label\n1,a,1\n", &wrong, Purpose::Train).unwrap_err();
    assert!(error.to_string().ends_with("no column `comment` for the text; the columns are id, text, label"));
    let wrong = TableOptions { id_column: Some(ColumnRef::Position(3)), ..TableOptions::default() };
    assert!(read("id,text,label\n1,a,1\n", &wrong, Purpose::Train).unwrap_err().is_input_error());
    let error = read("id,tweet,label\n1,a,1\n", &TableOptions::default(), Purpose::Train).unwrap_err();
    assert!(
        error.to_string().ends_with("no column is the text; the columns are id, tweet, label"),
        "{error}"
    );
    assert!(
        matches!(error, DataError::NoColumn { role: Role::Text, column: None, width: 3, .. }),
        "{error:?}"
    );
    let error = read("label;text\n1;a, b\n0;c\n", &TableOptions::default(), Purpose::Train).unwrap_err();
    assert!(error.to_string().ends_with("no column is the label; the file has one column"), "{error}");
    assert!(matches!(error, DataError::NoColumn { role: Role::Label, width: 1, .. }), "{error:?}");
}

#[test]
fn a_file_without_a_header_does_not_lose_its_first_row() {
    let with = |header| TableOptions { header, ..TableOptions::default() };
    let is_data = |csv: &str, options: &TableOptions, purpose, shown: &str| {
        let error = read(csv, options, purpose).unwrap_err();
        let message = format!("the first row, `{shown}`, reads as data, not as column names");
        assert!(error.to_string().ends_with(&message), "{error}");
        assert!(matches!(error, DataError::HeaderIsData { .. }), "{error:?}");
    };
    let headless = "1;a\n-1;b\n";
    is_data(headless, &TableOptions { header: Header::Expected, ..label_text() }, Purpose::Train, "1, a");
    // What has no label column, or a damaged label, tells it no less.
    let expected = with(Header::Expected);
    is_data("1,a\n2,b\n", &expected, Purpose::Predict, "1, a");
    is_data("a\nb\n", &expected, Purpose::Predict, "a");
    is_data("7,a,%1\n8,b,1\n", &expected, Purpose::Evaluate, "7, a, %1");
    let at_1 = TableOptions { text_column: Some(ColumnRef::Position(1)), ..expected.clone() };
    is_data("1,a\n2,b\n", &at_1, Purpose::Predict, "1, a");
    // A header that was damaged doesn't make one of the row after it.
    is_data("id,\"text\n1,a\n2,b\n", &skipping(expected.clone()), Purpose::Predict, "1, a");
    // A column that isn't looked for tells nothing, and no column is called by a number.
    let labelled = TableOptions { label_column: Some(ColumnRef::Name("sentiment".into())), ..at_1.clone() };
    is_data("1,a,b\n2,c,d\n", &labelled, Purpose::Predict, "1, a, b");
    is_data("1,text\n2,b\n", &expected, Purpose::Predict, "1, text");
    assert_eq!(read("text,nan,Inf\na,b,c\n", &expected, Purpose::Predict).unwrap().texts, ["a"]);
    // A name is found, but the label is one.
    let last = TableOptions { label_column: Some(ColumnRef::Position(1)), ..expected.clone() };
    is_data("text,1\na,0\n", &last, Purpose::Train, "text, 1");

    let texts = |csv: &str, options: &TableOptions| {
        read(csv, options, Purpose::Predict).unwrap().texts.iter().collect::<Vec<_>>().join("")
    };
    assert_eq!(texts("1,a\n2,b\n", &with(Header::Absent)), "ab");
    // Names that are unknown: said to be some, or one of them given.
    assert_eq!(texts("Nr,tweet\n1,a\n2,b\n", &with(Header::Present)), "ab");
    assert_eq!(texts("1,a\n2,b\n", &with(Header::Present)), "b");
    // A header that is left out would make one of the row after it.
    let latin = b"num\xe9ro,texte\n1,a\n2,b\n";
    let error = read(latin, &skipping(with(Header::Present)), Purpose::Predict).unwrap_err();
    assert!(
        error.to_string().contains("the header can't be read: line 1: not valid UTF-8 (byte 0xe9)"),
        "{error}"
    );
    let tweet = TableOptions { text_column: Some(ColumnRef::Name("tweet".into())), ..expected };
    assert_eq!(texts("Nr,tweet\n1,a\n2,b\n", &tweet), "ab");
}

#[test]
fn duplicates_are_dropped_for_training_alone() {
    let csv = "id,text,label\n1,a,1\n2,b,0\n3,a,-1\n4,A,1\n";
    let table = train(csv);
    assert_eq!((table.ids, table.classes, table.duplicates), (strings(["1", "2", "4"]), vec![3, 2, 3], 1));
    assert_eq!(read(csv, &TableOptions::default(), Purpose::Evaluate).unwrap().texts.len(), 4);
    let table = read(csv, &TableOptions::default(), Purpose::Predict).unwrap();
    assert_eq!(
        (table.texts.iter().collect::<Vec<_>>().join(""), table.classes, table.duplicates),
        ("abaA".into(), vec![], 0)
    );
}

#[test]
fn predictions_keep_every_row() {
    let csv = "ID,text\n10,\n11,\"\"\n\n12,NaN\n";
    let table = read(csv, &TableOptions::default(), Purpose::Predict).unwrap();
    assert_eq!(
        (table.ids.iter().collect::<Vec<_>>().join(" "), table.texts),
        ("10 11 12".into(), strings(["", "", "NaN"]))
    );
}

#[test]
fn bad_rows_are_named_with_their_lines() {
    let csv = b"id,text,label\n1,\"two\nlines\",1\n2,b,%1\n3,c\n4,\xff\xfe,1\n5,,1\n6,d,1,x\n7,e,2\n8,f,0\n";
    let (rows, total) = bad_rows(csv, &TableOptions::default());
    let shown: Vec<_> = rows.iter().map(|row| format!("{}: {}", row.place, row.reason)).collect();
    assert_eq!(
        shown,
        [
            "line 4: label `%1` is not one of -1, 0, 1",
            "line 5: 2 fields where the first row has 3 in `3,c`",
            "line 6: not valid UTF-8 (byte 0xff) in `4,\u{fffd}\u{fffd},1`",
            "line 7: the text is empty",
            "line 8: 4 fields where the first row has 3 in `6,d,1,x`",
        ]
    );
    assert_eq!(total, 6);
    let error = read(csv, &TableOptions::default(), Purpose::Train).unwrap_err();
    assert!(error.is_input_error());
    let message = error.to_string();
    assert!(
        message.contains("rows.csv: 6 rows can't be used: line 4: ") && message.ends_with("; and 1 more"),
        "{message}"
    );
    assert!(!message.contains('\n'));

    let table = read(csv, &skipping(TableOptions::default()), Purpose::Train).unwrap();
    assert_eq!((table.ids.iter().collect::<Vec<_>>().join(" "), table.skipped), ("1 8".into(), 6));
}

#[test]
fn a_stray_quote_costs_its_own_line() {
    // Within a field a quote is a character like any other.
    let table = read("1;5\" screen\n1;b\n-1;c \"d\n", &label_text(), Purpose::Train).unwrap();
    assert_eq!(table.texts, ["5\" screen", "b", "c \"d"]);
    // One that opens a field and is never closed, or is closed before more text, costs its own line.
    let csv = "1;a\n1;\"never closed\n0;b\n1;\"closed\" early\n-1;c\n";
    let (rows, _) = bad_rows(csv, &label_text());
    assert_eq!(rows.iter().map(|row| row.place).collect::<Vec<_>>(), [2, 4].map(Place::Line));
    let table = read(csv, &skipping(label_text()), Purpose::Train).unwrap();
    assert_eq!((table.texts.iter().collect::<Vec<_>>().join(""), table.skipped), ("abc".into(), 2));
    // One that finds a close merges lines: nothing tells them from a text of two lines.
    let table = read("0;a\n1;\";) b\n-1;\"\n0;c\n", &label_text(), Purpose::Train).unwrap();
    assert_eq!(table.texts, ["a", ";) b\n-1;", "c"]);
    // Or all of them belong to the text.
    let options = TableOptions { quote: parse_quote("none").unwrap(), ..label_text() };
    let table = read(csv, &options, Purpose::Train).unwrap();
    assert_eq!(table.texts, ["a", "\"never closed", "b", "\"closed\" early", "c"]);
}

#[test]
fn many_rows_with_embedded_newlines_stay_apart() {
    // More than polars reads as one chunk.
    let rows = 40_000;
    let csv: String =
        (0..rows).map(|i| format!("{};\"text {i};\n\"\"quoted\"\"\r\nend\"\r\n", i % 2)).collect();
    let table = read(csv, &label_text(), Purpose::Train).unwrap();
    assert_eq!(table.texts.len(), rows);
    for (i, (text, class)) in table.texts.iter().zip(&table.classes).enumerate() {
        assert_eq!((text, *class), (&*format!("text {i};\n\"quoted\"\r\nend"), 2 + (i % 2) as u32));
    }
}

#[test]
fn empty_files_are_refused() {
    for csv in ["", "\u{feff}", "\n\n", "id,text,label\n"] {
        let error = read(csv, &TableOptions::default(), Purpose::Train).unwrap_err();
        assert!(error.is_input_error(), "{csv:?}: {error}");
    }
    let error = Table::read(Path::new("no/such.csv"), &TableOptions::default(), Purpose::Train).unwrap_err();
    assert!(error.to_string().contains("no/such.csv") && error.is_input_error());
}

#[test]
fn a_pass_gives_records_up_to_a_bad_row_and_counts_on() {
    let file = File::new("id,text,label\n1,a,1\n2,a,1\n3,b,7\n4,c,0\n5,d,8\n");
    let mut records = Records::open(&file.path(), &TableOptions::default(), Purpose::Train).unwrap();
    let first = records.next().unwrap().unwrap();
    assert_eq!((first.text.as_str(), first.class, first.id.as_str()), ("a", Some(3), "1"));
    let error = records.next().unwrap().unwrap_err();
    assert!(matches!(error, DataError::BadRows { total: 2, .. }), "{error}");
    assert!(records.next().is_none());

    let mut records =
        Records::open(&file.path(), &skipping(TableOptions::default()), Purpose::Train).unwrap();
    // A pass may go to another thread.
    let whole =
        move || (records.by_ref().map(|record| record.unwrap().id).collect::<String>(), records.summary());
    let (ids, summary) = std::thread::spawn(whole).join().unwrap();
    assert_eq!(ids, "14");
    assert_eq!((summary.rows, summary.skipped, summary.duplicates), (2, 2, 1));
}

#[test]
fn passes_over_a_table_are_alike() {
    let csv = "id,text\n1,a\n2,b\n";
    let table = |csv: &str| {
        let file = File::new(csv);
        TableFile::open(&file.path(), &TableOptions::default(), Purpose::Predict).unwrap()
    };
    // The file is gone by now, but open.
    let table_file = table(csv);
    let summary = table_file.check().unwrap();
    let mut passes = [table_file.records().unwrap(), table_file.records().unwrap()];
    for text in ["a", "b"] {
        passes.iter_mut().for_each(|pass| assert_eq!(pass.next().unwrap().unwrap().text, text));
    }
    for mut pass in passes {
        assert!(pass.next().is_none());
        assert_eq!(pass.summary(), summary);
    }
    // Written otherwise, but with the same records.
    assert_eq!(table("text,id\r\n\"a\",1\r\nb,2").check().unwrap(), summary);
    for other in ["id,text\n1,a\n3,b\n", "id,text\n1,a\n2,c\n", "id,text\n1,a2\n,b\n", "id,text\n1,a\n"] {
        assert_ne!(table(other).check().unwrap().digest, summary.digest, "{other:?}");
    }
    let error = table("id,text\n1\n").check().unwrap_err();
    assert!(matches!(error, DataError::BadRows { total: 1, .. }), "{error}");
}

#[test]
fn a_pipe_is_read_once_and_gone_through_twice() {
    let rows = 100_000;
    let csv: String = (0..rows).map(|i| format!("{i},text {i}\n")).collect();
    let options = TableOptions { header: Header::Absent, ..TableOptions::default() };
    let through_pipe = |read: &dyn Fn(&Path)| {
        std::thread::scope(|scope| {
            let (reader, mut writer) = std::io::pipe().unwrap();
            let csv = &csv;
            scope.spawn(move || writer.write_all(csv.as_bytes()).unwrap());
            read(&Path::new("/proc/self/fd").join(reader.as_raw_fd().to_string()));
        });
    };
    through_pipe(&|path| {
        let table = TableFile::open(path, &options, Purpose::Predict).unwrap();
        let summary = table.check().unwrap();
        assert_eq!(summary.rows, rows);
        let mut records = table.records().unwrap();
        assert_eq!(records.by_ref().last().unwrap().unwrap().text, format!("text {}", rows - 1));
        assert_eq!(records.summary(), summary);
    });
    through_pipe(&|path| {
        assert_eq!(Table::read(path, &options, Purpose::Predict).unwrap().texts.len(), rows);
    });
}

#[test]
fn a_row_beyond_the_limit_is_bad() {
    let csv = |length: usize| format!("1;a\n1;{}\n-1;b\n", "x".repeat(length - 2));
    assert_eq!(read(csv(MAX_ROW), &label_text(), Purpose::Train).unwrap().texts.len(), 3);
    let (rows, total) = bad_rows(csv(MAX_ROW + 1), &label_text());
    let reason = format!("a row of more than 67108864 bytes starts with `1;{}…`", "x".repeat(38));
    assert_eq!((rows, total), (vec![BadRow { place: Place::Line(2), reason }], 1));
    let table = read(csv(2 * MAX_ROW), &skipping(label_text()), Purpose::Train).unwrap();
    assert_eq!((table.texts.iter().collect::<Vec<_>>().join(""), table.skipped), ("ab".into(), 1));
}

#[test]
fn a_file_full_of_stray_quotes_is_read_in_linear_time() {
    // Each line's second field goes on to the next, and none of the last one's is closed.
    for lines in [16_000, 64_000, 1_000_000] {
        let csv = "x\",\"\n".repeat(lines);
        assert_eq!(bad_rows(&csv, &TableOptions::default()).1, lines);
        let error = read(&csv, &skipping(TableOptions::default()), Purpose::Train).unwrap_err();
        assert!(matches!(error, DataError::NoRows { skipped, .. } if skipped == lines), "{error}");
    }
}

/// Counts by `cut`, `grep`, `sort` and `uniq` on the same file.
#[test]
fn the_tunizi_dataset() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/TUNIZI-Dataset.txt");
    if !path.exists() {
        return eprintln!("skipped: {} is not here", path.display());
    }
    let Err(DataError::BadRows { rows, total, .. }) = Table::read(&path, &label_text(), Purpose::Train)
    else {
        panic!("the damaged rows were not seen")
    };
    assert_eq!(
        (rows.iter().map(|row| row.place).collect::<Vec<_>>(), total),
        ([5, 1179].map(Place::Line).to_vec(), 2)
    );
    let table = Table::read(&path, &skipping(label_text()), Purpose::Evaluate).unwrap();
    assert_eq!((table.texts.len(), table.skipped, class_counts(&table)), (2998, 2, vec![0, 1500, 0, 1498]));
    assert_eq!(&table.texts[1], "man eheb rasoule mohamed");
    let table = Table::read(&path, &skipping(label_text()), Purpose::Train).unwrap();
    assert_eq!((table.texts.len(), table.duplicates), (2947, 51));
}

#[test]
fn label_maps() {
    let labels = LabelMap::default();
    assert_eq!(labels.to_string(), "-1=1,0=2,1=3");
    assert_eq!(labels, "-1=1,0=2,1=3".parse().unwrap());
    assert_eq!(labels.num_classes(), 4);
    assert_eq!((labels.class_of(" -1"), labels.class_of("2")), (Some(1), None));
    assert_eq!(
        (0..4).map(|class| labels.label_of(class)).collect::<Vec<_>>(),
        [None, Some("-1"), Some("0"), Some("1")]
    );
    assert_eq!("a=b=0".parse::<LabelMap>().unwrap().class_of("a=b"), Some(0));
    for wrong in ["", "1", "a=x", "a=0,a=1", "a=0,b=0", "a=-1", "a=99999"] {
        assert!(wrong.parse::<LabelMap>().is_err_and(|error| error.is_input_error()), "{wrong}");
    }
    for wrong in ["", ";;", "é", "\""] {
        assert!(parse_separator(wrong).is_err(), "{wrong}");
    }
}

/// Row `r` is `[r, 100 + r, 0]` with two tokens before its padding.
fn tokens(rows: usize) -> Tokens {
    Tokens::new((0..rows as u32).map(|row| [row, 100 + row]), 3, 0)
}

#[test]
fn batches_are_padded() {
    let (tokens, classes) = (tokens(7), [0, 1, 2, 3, 0, 1, 2]);
    let dataset = Dataset::new(&tokens, &classes, vec![6, 1, 3, 5, 2]);
    let batches: Vec<_> = dataset.batches(4, Order::Sequential).collect();
    assert_eq!(batches.len(), dataset.batches(4, Order::Sequential).len());
    assert_eq!(batches[0].positions, [0, 1, 2, 3]);
    assert_eq!(batches[0].input_ids, [6, 106, 0, 1, 101, 0, 3, 103, 0, 5, 105, 0]);
    assert_eq!(batches[0].labels, [2, 1, 3, 1]);
    assert_eq!(batches[1].positions, [4]);
    assert_eq!(batches[1].input_ids, [2, 102, 0].repeat(4));
    assert_eq!(batches[1].attention_mask(), [1, 1, 0].repeat(4));
    assert_eq!(batches[1].weights, [1.0, 0.0, 0.0, 0.0]);

    let unlabelled = Dataset::new(&tokens, &[], vec![0]);
    let batch = unlabelled.batches(2, Order::Sequential).next().unwrap();
    assert_eq!((&batch.labels, batch.attention_mask()), (&vec![], [1, 1, 0].repeat(2)));
}

/// `numpy.random.RandomState([7, 1, epoch]).permutation(10)`
#[test]
fn shuffled_orders_are_numpys() {
    let tokens = tokens(10);
    let dataset = Dataset::new(&tokens, &[], (0..10).collect());
    let order = |seed, epoch| -> Vec<usize> {
        dataset.batches(3, Order::Shuffled { seed, epoch }).flat_map(|batch| batch.positions).collect()
    };
    let seed = (1 << 32) + 7;
    assert_eq!(order(seed, 0), [2, 3, 7, 6, 4, 9, 5, 0, 1, 8]);
    assert_eq!(order(seed, 1), [5, 9, 2, 1, 6, 0, 7, 4, 3, 8]);
    assert_ne!(order(seed + 1, 0), order(seed, 0));
}

/// Number of rows of each of the recipe's four classes.
fn class_counts(table: &Table) -> Vec<usize> {
    (0..4).map(|class| table.classes.iter().filter(|of| **of == class).count()).collect()
}

#[test]
fn blank_lines_are_rows_where_rows_have_one_field() {
    for quote in [Some(b'"'), None] {
        let options = TableOptions { header: Header::Absent, quote, ..TableOptions::default() };
        let table = read("a\n\nb\r\n\r\nc\n", &options, Purpose::Predict).unwrap();
        assert_eq!(table.texts, ["a", "", "b", "", "c"]);
        assert_eq!(table.ids, ["1", "2", "3", "4", "5"]);
        let options = TableOptions { header: Header::Expected, quote, ..TableOptions::default() };
        let table = read("text\n\n\na\n\n\n", &options, Purpose::Predict).unwrap();
        assert_eq!(table.texts, ["", "", "a", "", ""]);
        let table = read("text\n\n", &options, Purpose::Predict).unwrap();
        assert_eq!(table.texts, [""]);
    }
}

#[test]
fn what_holds_no_rows_is_told_why() {
    for (bytes, part) in [
        (&b"\xff\xfei\0d\0"[..], "in UTF-16"),
        (b"\xfe\xff\0i\0d", "in UTF-16"),
        (b"\x1f\x8b\x08", "compressed"),
    ] {
        let error = read(bytes, &TableOptions::default(), Purpose::Predict).unwrap_err();
        assert!(error.is_input_error() && error.to_string().contains(part), "{error}");
    }
    let bad = read("id,text,label\n1,a,x\n", &skipping(TableOptions::default()), Purpose::Train).unwrap_err();
    let expected = "no row is left: 1 row can't be used: line 2: label `x` is not one of -1, 0, 1";
    assert!(bad.to_string().ends_with(expected), "{bad}");
    let empty = read("", &TableOptions::default(), Purpose::Predict).unwrap_err();
    assert!(empty.to_string().ends_with("there are no rows"), "{empty}");
}
