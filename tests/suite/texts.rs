//! Texts in any script and of any length, from a table to answers.

use std::fs;

use bert_xla::data::{Tokenizer, TokenizerFiles};
use proptest::prelude::*;
use proptest::sample::select;
use safetensors::SafeTensors;

use crate::common::cli::{asset, command, text, with_run};
use crate::common::empty_folder;

/// Arabic with its vowels, an emoji of several joined by U+200D, zero-width and right-to-left marks, what overrides the
/// order, many accents on a letter, other planes, scripts without spaces, NUL, and what is white space alone.
fn texts() -> Vec<String> {
    let mut texts = [
        "هذا الفيلم جميل جدّاً",
        "يِا رَبِّي",
        "👩‍👩‍👧‍👦 bahi 👍🏽 🇹🇳",
        "a\u{200b}b\u{200c}c\u{200d}d\u{feff}e",
        "\u{200f}barcha\u{200e} \u{202e}behi\u{202c} \u{2066}x\u{2069}",
        "e\u{301}\u{302}\u{303} é ｅ ﬁ",
        "𝔹𝕖𝕣𝕥 𒀀 \u{10ffff}",
        "中文没有空格 日本語 ภาษาไทย",
        "nul \0 inside",
        "\u{a0}\u{2003}\u{3000}.",
        "\u{301}",
        "\u{fffd}",
        "tab\tand \"quotes\", and a\u{2028}line",
        "हिन्दी தமிழ் ქართული ελληνικά עִבְרִית",
    ]
    .map(str::to_owned)
    .to_vec();
    // 10 MB each: words, a single word, marks alone.
    texts.push("behi barcha ".repeat(10_000_000 / 12));
    texts.push("x".repeat(10_000_000));
    texts.push(format!("{}behi", "\u{200b}".repeat(3_333_333)));
    texts
}

#[test]
fn texts_in_any_script_and_of_any_length_are_trained_on_and_answered() {
    let folder = empty_folder("texts");
    let (data, run) = (folder.join("data.csv"), folder.join("run"));
    let (labels, sentences, states) =
        (folder.join("labels.csv"), folder.join("lines"), folder.join("states"));
    let texts = texts();
    let row = |(i, text): (usize, &String)| {
        format!("id {i}\u{200f},\"{}\",{}\n", text.replace('"', "\"\""), ["-1", "0", "1"][i % 3])
    };
    fs::write(&data, format!("id,text,label\n{}", texts.iter().enumerate().map(row).collect::<String>()))
        .unwrap();
    let mut train = command(&["train", "--backend", "cpu", "--random-weights", "--max-length", "24"]);
    train
        .args(["--epochs", "1", "--dev-size", "0.3"])
        .arg("--train")
        .arg(&data)
        .arg("--model")
        .arg(asset("tiny"));
    let output = train.arg("--output").arg(&run).output().unwrap();
    let said = text(output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("17 texts (0 duplicates dropped, 0 bad rows skipped)"), "{said}");

    let output = with_run("evaluate", &run, &data, &["--json"]).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["rows"], texts.len(), "{told}");

    let output = with_run("predict", &run, &data, &["--output", labels.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    let written = fs::read_to_string(&labels).unwrap();
    let ids = written.lines().skip(1).map(|line| line.split_once(',').unwrap().0.to_owned());
    let expected = (0..texts.len()).map(|i| format!("id {i}\u{200f}"));
    assert!(ids.eq(expected), "{written}");

    fs::write(&sentences, texts.join("\n")).unwrap();
    let mut encode = command(&["encode", "--backend", "cpu", "--max-length", "24", "--model"]);
    encode.arg(&run).arg("--input").arg(&sentences).arg("--output").arg(&states);
    let output = encode.output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    let bytes = fs::read(&states).unwrap();
    let ids = SafeTensors::deserialize(&bytes).unwrap().tensor("input_ids").unwrap();
    assert_eq!(ids.shape(), [texts.len(), 24]);
}

/// What the tokenizer's own library makes of the whole of a text.
fn whole(tokenizer: &tokenizers::Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_fast(text, true).unwrap().get_ids().to_vec()
}

#[test]
fn the_beginning_of_a_long_text_has_the_tokens_of_the_whole() {
    const LENGTH: usize = 12;
    let path = asset("tiny/tokenizer.json");
    let ours = Tokenizer::open(&TokenizerFiles::Json(path.clone()), LENGTH).unwrap();
    let mut library = tokenizers::Tokenizer::from_file(path).unwrap();
    library.with_padding(None);
    let truncation = tokenizers::TruncationParams { max_length: LENGTH, ..Default::default() };
    library.with_truncation(Some(truncation)).unwrap();
    let parts = [
        "behi", "barcha", " ", "  ", "\n", "\t", "\u{b}", "\0", "\u{200b}", "\u{301}", "e", "中", "[SEP]",
        "[MASK]", " [CLS] ", ".", "!", "É", "\u{fdfa}", "İ", "ß", "👍🏽", "\u{a0}",
    ];
    // Long ones of a few tokens, too.
    let part = (select(parts.to_vec()), prop_oneof![4 => 1..4usize, 1 => 200..3000usize]);
    let text = prop::collection::vec(part, 1..30)
        .prop_map(|parts| parts.into_iter().map(|(part, count)| part.repeat(count)).collect::<String>());
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    proptest::test_runner::TestRunner::new(config)
        .run(&prop::collection::vec(text, 1..4), |texts| {
            let tokens = ours.encode(&texts).unwrap();
            for (row, text) in texts.iter().enumerate() {
                prop_assert_eq!(tokens.row(row).collect::<Vec<_>>(), whole(&library, text));
            }
            Ok(())
        })
        .unwrap();
}
