//! Token ids against those of the `transformers` library.

use std::path::{Path, PathBuf};

use bert_xla::data::{DataError, Tokenizer, TokenizerFiles, Tokens};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<i32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wordpiece").join(name)
}

fn check(files: &TokenizerFiles, expected: &Path) -> Tokens {
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(expected).unwrap()).unwrap();
    assert!(!cases.is_empty());
    let texts: Vec<_> = cases.iter().map(|case| case.text.clone()).collect();
    let tokens = Tokenizer::open(files, cases[0].ids.len()).unwrap().encode(&texts).unwrap();
    assert_eq!((tokens.len(), tokens.max_length()), (cases.len(), cases[0].ids.len()));
    for (row, case) in cases.iter().enumerate() {
        assert_eq!(tokens.row(row), case.ids, "{:?}", case.text);
        assert_eq!(tokens.length(row), case.ids.iter().filter(|&&id| id != 0).count());
    }
    tokens
}

#[test]
fn equals_transformers_from_a_vocabulary() {
    for name in ["cased", "uncased"] {
        let vocab = fixture(name).join("vocab.txt");
        // With no tokenizer_config.json, the vocabulary tells whether letter case counts.
        check(&TokenizerFiles::Vocab { vocab, config: None }, &fixture(name).join("ids.json"));
    }
}

#[test]
fn the_tokenizers_own_settings_decide_lower_casing() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tokenizer_config.json");
    std::fs::write(&config, r#"{"do_lower_case": true, "model_max_length": 512}"#).unwrap();
    let vocab = fixture("cased").join("vocab.txt");
    let texts = ["YEZZI".to_owned(), "yezzi".to_owned()];
    let rows_are_equal = |config: Option<PathBuf>| {
        let files = TokenizerFiles::Vocab { vocab: vocab.clone(), config };
        let tokens = Tokenizer::open(&files, 8).unwrap().encode(&texts).unwrap();
        tokens.row(0) == tokens.row(1)
    };
    assert!(rows_are_equal(Some(config)));
    assert!(!rows_are_equal(None));
}

#[test]
fn equals_transformers_on_a_real_checkpoint() {
    let expected = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/minilm_tokens.json");
    if !expected.exists() {
        return eprintln!("skipped: {} is not here", expected.display());
    }
    let Some(folder) = crate::common::minilm::folder() else { return };
    // This file's own truncation and padding are to 128 tokens.
    let files = TokenizerFiles::Json(folder.join("tokenizer.json"));
    let from_json = check(&files, &expected);
    let vocab = TokenizerFiles::Vocab { vocab: folder.join("vocab.txt"), config: None };
    assert_eq!(check(&vocab, &expected), from_json);
    assert_eq!(Tokenizer::open(&files, 32).unwrap().vocab_size(), 30_522);
}

#[test]
fn many_texts_keep_their_order() {
    let files = TokenizerFiles::Vocab { vocab: fixture("uncased").join("vocab.txt"), config: None };
    let tokenizer = Tokenizer::open(&files, 12).unwrap();
    // More than one chunk, and each row of another length.
    let texts: Vec<String> = (0..9000).map(|i| "bik ".repeat(i % 12)).collect();
    let tokens = tokenizer.encode(&texts).unwrap();
    let lengths: Vec<usize> = (0..texts.len()).map(|row| tokens.length(row)).collect();
    assert!(lengths.iter().enumerate().all(|(i, &length)| length == (i % 12 + 2).min(12)));
    assert!(tokenizer.encode(&[]).unwrap().is_empty());
}

#[test]
fn unusable_tokenizers_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("tokenizer.json"), "{}").unwrap();
    std::fs::write(path("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\na\n").unwrap();
    let message = |files: TokenizerFiles, max_length| {
        let error = Tokenizer::open(&files, max_length).err().expect("refused");
        assert!(error.is_input_error());
        error.to_string()
    };
    let vocab = |vocab| TokenizerFiles::Vocab { vocab, config: None };
    assert!(
        message(TokenizerFiles::Json(path("tokenizer.json")), 8).contains("tokenizer.json: not a usable")
    );
    assert!(message(vocab(path("vocab.txt")), 8).contains("there is no [SEP] token"));
    assert!(message(vocab(path("absent.txt")), 8).contains("absent.txt"));
    let uncased = vocab(fixture("uncased").join("vocab.txt"));
    assert!(message(uncased.clone(), 2).contains("leaves no room"));
    assert!(matches!(Tokenizer::open(&uncased, 0), Err(DataError::Option(_))));
}

/// An added token may have an id far beyond the others.
#[test]
fn ids_without_a_token_count_for_the_size_of_the_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let json = std::fs::read_to_string(crate::common::cli::asset("tiny/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["model"]["vocab"]["good"] = 50_000.into();
    std::fs::write(&path, json.to_string()).unwrap();
    assert_eq!(Tokenizer::open(&TokenizerFiles::Json(path), 8).unwrap().vocab_size(), 50_001);
}
