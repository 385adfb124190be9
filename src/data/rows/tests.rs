//! The rows of random small files against a plain reading of the rules, however a file is cut into chunks; and files
//! that are made to be slow.

use std::io::Cursor;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const SYNTAX: Syntax = Syntax { separator: b',', quote: Some(b'"') };

/// What is told of a file.
#[derive(Debug, Default, PartialEq)]
struct Told {
    /// The sound rows.
    csv: String,
    lines: Vec<usize>,
    /// The lines of the first few of the others.
    bad: Vec<usize>,
    total_bad: usize,
}

/// By [`Rows`], `size` bytes of sound rows at a time.
fn told(file: &[u8], syntax: Syntax, limits: Limits, size: usize) -> Told {
    let mut rows = Rows::new(Box::new(Cursor::new(file.to_vec())), syntax, limits).unwrap();
    let (mut told, mut bad) = (Told::default(), BadRows::default());
    loop {
        let sound = rows.read(size, &mut bad).unwrap();
        if sound.lines.is_empty() {
            break;
        }
        told.csv.push_str(&String::from_utf8(sound.csv).unwrap());
        told.lines.extend(sound.lines);
    }
    let line = |row: &crate::data::BadRow| match row.place {
        Place::Line(line) => line,
        Place::Row(_) => panic!("{row:?}"),
    };
    told.bad.extend(bad.shown.iter().map(line));
    Told { total_bad: bad.total, ..told }
}

/// By the rules, and with all that follows in view: quadratic time.
fn expected(file: &[u8], syntax: Syntax) -> Told {
    let (mut told, mut bad, mut width) = (Told::default(), Vec::new(), None);
    let (mut rest, mut line) = (file, 1);
    while !rest.is_empty() {
        let newline = rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len() - 1);
        let (fields, length) = split(rest, syntax).unwrap_or((vec![b"\xff"], newline + 1));
        let texts = fields.iter().map(|field| std::str::from_utf8(field).ok()).collect::<Option<Vec<_>>>();
        match texts {
            Some(fields) if fields == [""] && width != Some(1) => {}
            Some(fields) if *width.get_or_insert(fields.len()) == fields.len() => {
                told.lines.push(line);
                let separator = char::from(syntax.separator).to_string();
                let written = fields.iter().map(|field| written(field, syntax)).collect::<Vec<_>>();
                told.csv += &(written.join(&separator) + "\n");
            }
            _ => bad.push(line),
        }
        line += rest[..length].iter().filter(|&&byte| byte == b'\n').count();
        rest = &rest[length..];
    }
    told.total_bad = bad.len();
    bad.truncate(5);
    Told { bad, ..told }
}

/// The fields of the row that `bytes` start with, and its length with the line break, unless a quoted field is not
/// closed properly.
fn split(bytes: &[u8], syntax: Syntax) -> Option<(Vec<&[u8]>, usize)> {
    let quote = syntax.quote.filter(|quote| bytes.first() == Some(quote));
    let mut end = 0;
    if let Some(quote) = quote {
        end = 1;
        while *bytes.get(end)? != quote || bytes.get(end + 1) == Some(&quote) {
            end += if bytes[end] == quote { 2 } else { 1 };
        }
        end += 1;
    } else {
        while end < bytes.len() && bytes[end] != syntax.separator && bytes[end] != b'\n' {
            end += 1;
        }
        // A carriage return belongs to the line break.
        if !bytes[end..].starts_with(&[syntax.separator]) && bytes[..end].ends_with(b"\r") {
            end -= 1;
        }
    }
    let field = &bytes[..end];
    match &bytes[end..] {
        [] => Some((vec![field], end)),
        [b'\n', ..] => Some((vec![field], end + 1)),
        [b'\r', b'\n', ..] => Some((vec![field], end + 2)),
        [b'\r'] if quote.is_none() => Some((vec![field], end + 1)),
        [byte, after @ ..] if *byte == syntax.separator => {
            let (mut fields, length) = split(after, syntax)?;
            fields.insert(0, field);
            Some((fields, end + 1 + length))
        }
        _ => None,
    }
}

/// A field as every reader of CSV understands it.
fn written(field: &str, syntax: Syntax) -> String {
    match syntax.quote.map(char::from) {
        Some(quote) if field.contains(quote) && !field.starts_with(quote) => {
            format!("{quote}{}{quote}", field.replace(quote, &format!("{quote}{quote}")))
        }
        _ => field.to_owned(),
    }
}

/// Files in which every byte matters.
fn files() -> impl Strategy<Value = Vec<u8>> {
    let parts: [&[u8]; 12] =
        [b"a", b"\"", b"\"", b"\"\"", b",", b",", b"\n", b"\n", b"\r\n", b"\r", b"\",\"", b"\xc3"];
    prop::collection::vec(select(parts.to_vec()), 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_as_the_rules_say(file in files(), chunk in 1..50usize, size in 1..50usize, quoted: bool) {
        let syntax = Syntax { quote: SYNTAX.quote.filter(|_| quoted), ..SYNTAX };
        let limits = Limits { chunk, row: file.len() };
        prop_assert_eq!(told(&file, syntax, limits, size), expected(&file, syntax));
    }

    #[test]
    fn chunks_dont_matter(file in files(), chunk in 1..50usize, size in 1..50usize, row in 1..20usize) {
        let whole = told(&file, SYNTAX, Limits { chunk: file.len() + 1, row }, usize::MAX);
        prop_assert_eq!(&told(&file, SYNTAX, Limits { chunk, row }, size), &whole);
        // A copied row is as long, but for quotes around a field and within it.
        let rows = whole.csv.split("\n").map(|line| line.len());
        prop_assert!(rows.max() <= Some(row + 2 * (row + 1)));
    }
}

#[test]
fn a_row_beyond_the_limit_costs_its_line() {
    let limits = Limits { chunk: 4, row: 10 };
    let ten = "123456,890";
    for (file, lines, bad) in [
        (format!("{ten}\n{ten}\r\n{ten}"), vec![1, 2, 3], vec![]),
        (format!("1,2\n{ten}1\n{ten}1234567890123\n3,4\n{ten}1"), vec![1, 4], vec![2, 3, 5]),
        ("1,\"3456\n8\"\n1,2".to_owned(), vec![1, 3], vec![]),
        ("1,\"3456\n89\"\n1,2".to_owned(), vec![2], vec![1, 3]),
    ] {
        let told = told(file.as_bytes(), SYNTAX, limits, 1);
        assert_eq!((told.lines, told.bad), (lines, bad), "{file:?}");
    }
}

#[test]
fn a_row_of_too_many_fields_costs_its_line() {
    let row = |fields: usize| ",".repeat(fields - 1) + "\n";
    let file = row(MAX_FIELDS + 1) + &row(MAX_FIELDS) + &row(MAX_FIELDS + 1);
    let told = told(file.as_bytes(), SYNTAX, Limits::default(), 1 << 20);
    assert_eq!((told.lines, told.bad), (vec![2], vec![1, 3]));
}

/// Going through what follows anew for each line would take hours.
#[test]
fn rows_take_linear_time() {
    let count = 1_000_000;
    let lines = [
        "x\",\"\n",
        "\"\n",
        ",\"\n",
        "x,\"\n",
        "\"\"\"\n",
        "x\",,,,\"\n",
        "\"\",\"\n",
        "\",\n",
        "x\",\"\"\"\n",
    ];
    for line in lines {
        for limits in [Limits::default(), Limits { row: usize::MAX / 2, ..Limits::default() }] {
            let told = told(line.repeat(count).as_bytes(), SYNTAX, limits, 1 << 20);
            assert!(told.lines.len() + told.total_bad <= count, "{line:?}");
            assert!(told.total_bad > 0 || !told.lines.is_empty());
        }
    }
    let told = told(lines[0].repeat(count).as_bytes(), SYNTAX, Limits::default(), 1);
    assert_eq!((told.lines.len(), told.total_bad), (0, count));
}
