//! Token ids against those of the `transformers` library.

use std::path::{Path, PathBuf};

use bert_xla::data::{DataError, Strings, TokenCache, Tokenizer, TokenizerFiles, Tokens};
use serde::Deserialize;

use crate::common::cli::asset;

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
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
        let padding = vec![tokens.pad_id(); case.ids.len() - tokens.length(row)];
        assert_eq!(tokens.row(row).chain(padding).collect::<Vec<_>>(), case.ids, "{:?}", case.text);
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
        tokens.row(0).eq(tokens.row(1))
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
    assert!(tokenizer.encode(&[""; 0]).unwrap().is_empty());
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
    let json = std::fs::read_to_string(asset("tiny/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["model"]["vocab"]["good"] = 50_000.into();
    std::fs::write(&path, json.to_string()).unwrap();
    assert_eq!(Tokenizer::open(&TokenizerFiles::Json(path), 8).unwrap().vocab_size(), 50_001);
}

/// The only file in a folder.
fn only_file(folder: &Path) -> PathBuf {
    let mut files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

#[test]
fn a_table_is_tokenized_once() {
    let folder = tempfile::tempdir().unwrap();
    let cache = TokenCache::new(folder.path().join("tokens"));
    let files = TokenizerFiles::Json(asset("tiny/tokenizer.json"));
    let tokenizer = Tokenizer::open(&files, 12).unwrap();
    let texts = (0..3000).map(|i| "brabi ya5i ".repeat(i % 5)).collect::<Strings>();
    let expected = tokenizer.encode(&texts).unwrap();
    assert!(
        (0..3000).any(|row| expected.length(row) == 2) && (0..3000).any(|row| expected.length(row) == 12)
    );
    assert_eq!(cache.tokens(&tokenizer, &texts).unwrap(), expected);
    let file = only_file(&folder.path().join("tokens"));
    let written = std::fs::read(&file).unwrap();
    // What is found there is not made again: of the same name, it is what somebody has put there.
    let others = (0..3000).map(|_| "ya5i").collect::<Strings>();
    let other_folder = tempfile::tempdir().unwrap();
    TokenCache::new(other_folder.path()).tokens(&tokenizer, &others).unwrap();
    std::fs::copy(only_file(other_folder.path()), &file).unwrap();
    assert_eq!(cache.tokens(&tokenizer, &texts).unwrap(), tokenizer.encode(&others).unwrap());

    // What is damaged is, however little of it.
    for damage in [0, 4000, written.len() / 2, written.len() - 70, written.len() - 20, written.len() - 1] {
        let mut damaged = written.clone();
        damaged[damage] ^= 1;
        std::fs::write(&file, damaged).unwrap();
        assert_eq!(cache.tokens(&tokenizer, &texts).unwrap(), expected, "byte {damage}");
        std::fs::write(&file, &written[..damage]).unwrap();
        assert_eq!(cache.tokens(&tokenizer, &texts).unwrap(), expected, "{damage} bytes");
        assert_eq!(std::fs::read(&file).unwrap(), written);
    }

    // Other texts, lengths and tokenizers have files of their own.
    let shorter = Tokenizer::open(&files, 11).unwrap();
    assert_eq!(cache.tokens(&shorter, &texts).unwrap(), shorter.encode(&texts).unwrap());
    assert_eq!(cache.tokens(&tokenizer, &others).unwrap(), tokenizer.encode(&others).unwrap());
    let vocabulary = fixture("uncased/vocab.txt");
    let word_piece = Tokenizer::open(&TokenizerFiles::Vocab { vocab: vocabulary, config: None }, 12).unwrap();
    assert_eq!(cache.tokens(&word_piece, &texts).unwrap(), word_piece.encode(&texts).unwrap());
    assert_eq!(std::fs::read_dir(folder.path().join("tokens")).unwrap().count(), 4);

    // A folder that can't be made costs nothing but the time.
    let nowhere = folder.path().join("file");
    std::fs::write(&nowhere, "").unwrap();
    assert_eq!(TokenCache::new(nowhere.join("tokens")).tokens(&tokenizer, &texts).unwrap(), expected);
}
