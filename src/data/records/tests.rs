//! Records of files that are cut into small chunks.

use std::io::Cursor;

use super::*;

#[test]
fn chunks_dont_matter() {
    // A byte order mark within the file is part of the value.
    let row =
        |i: usize| format!("\u{feff}{},\"text {}\n, \"\"of\"\" {i}\",{}\n", i * 7, i % 90, i as i64 % 4 - 1);
    let file = format!("id,text,label\n{}", (0..100).map(row).collect::<String>());
    let options = TableOptions { skip_bad_rows: true, ..TableOptions::default() };
    let read = |chunk| {
        let (source, path) = (Box::new(Cursor::new(file.clone())), Path::new("rows.csv"));
        let limits = Limits { chunk, row: 100 };
        let mut records = Records::of_stream(path, source, &options, Purpose::Train, limits).unwrap();
        let all = records.by_ref().collect::<Result<Vec<_>, _>>().unwrap();
        assert!(records.next().is_none());
        (all, records.summary())
    };
    let (records, summary) = read(1 << 20);
    assert_eq!((summary.rows, summary.skipped), (records.len(), 25));
    assert_eq!(
        records[1],
        Record { text: "text 1\n, \"of\" 1".into(), class: Some(2), id: "\u{feff}7".into() }
    );
    for chunk in [1, 2, 3, 10, 64, 1000] {
        assert_eq!(read(chunk), (records.clone(), summary.clone()), "{chunk}");
    }
}

#[test]
fn chunks_dont_matter_to_json() {
    let row = |i: usize| {
        let label = ["1", "-1", "true", "[]", "null"][i % 5];
        let space = " ".repeat(i % 7);
        format!(
            "{space}{{\"text\":{space}\"t\u{e9}xt {}\\n\",\"label\":{label}}}\n{}",
            i % 90,
            "\n".repeat(i % 2)
        )
    };
    let file = (0..100).map(row).collect::<String>() + &"x".repeat(300) + "\n{";
    let options = TableOptions { skip_bad_rows: true, ..TableOptions::default() };
    let read = |chunk| {
        let (source, path) = (Box::new(Cursor::new(file.clone())), Path::new("rows.jsonl"));
        let limits = Limits { chunk, row: 100 };
        let mut records = Records::of_stream(path, source, &options, Purpose::Train, limits).unwrap();
        let all = records.by_ref().collect::<Result<Vec<_>, _>>().unwrap();
        (all, records.summary())
    };
    let (records, summary) = read(1 << 20);
    assert_eq!((records.len(), summary.rows, summary.duplicates, summary.skipped), (36, 36, 4, 62));
    assert_eq!(records[1], Record { text: "t\u{e9}xt 1\n".into(), class: Some(1), id: "2".into() });
    for chunk in [1, 2, 3, 10, 64, 1000] {
        assert_eq!(read(chunk), (records.clone(), summary.clone()), "{chunk}");
    }
}

#[test]
fn a_pass_ends_when_it_is_not_to_go_on() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    // Its first row makes all of it unusable: none is given, and still it is asked.
    let file = "id,text\n1\n".to_owned() + &"2,x\n".repeat(1000);
    let (source, path) = (Box::new(Cursor::new(file)), Path::new("rows.csv"));
    let limits = Limits { chunk: 100, row: 100 };
    let records =
        Records::of_stream(path, source, &TableOptions::default(), Purpose::Predict, limits).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let mut records = records.while_so(move |_| count.fetch_add(1, Ordering::Relaxed) < 5);
    assert!(matches!(records.next(), Some(Err(DataError::Stopped { .. }))));
    assert!(records.next().is_none());
    assert_eq!(asked.load(Ordering::Relaxed), 6);
}

#[test]
fn an_object_of_very_many_members_is_no_row() {
    let many = |count: usize| format!("{{\"text\":\"x\"{}}}\n", ",\"\":0".repeat(count));
    let file = many(100) + &many(1 << 14);
    let (source, path) = (Box::new(Cursor::new(file)), Path::new("rows.jsonl"));
    let options = TableOptions { skip_bad_rows: true, ..TableOptions::default() };
    let mut records =
        Records::of_stream(path, source, &options, Purpose::Predict, Limits::default()).unwrap();
    assert_eq!(records.by_ref().count(), 1);
    assert_eq!(records.summary().skipped, 1);
}
