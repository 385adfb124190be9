//! The split against scikit-learn's own.

use bert_xla::data::{Split, train_test_split};
use serde::Deserialize;

/// `train_test_split(range(n), test_size=test_size, random_state=seed)`: sizes, first 20 and last 5 of each part.
#[derive(Deserialize)]
struct Case {
    n: usize,
    test_size: f64,
    #[serde(default = "recipe_seed")]
    seed: u32,
    n_train: usize,
    n_test: usize,
    train_head: Vec<usize>,
    test_head: Vec<usize>,
    train_tail: Vec<usize>,
    test_tail: Vec<usize>,
}

fn recipe_seed() -> u32 {
    42
}

#[test]
fn equals_scikit_learn() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../fixtures/sklearn_split.json")).unwrap();
    assert!(cases.len() >= 5);
    for case in cases {
        let Split { train, test } = train_test_split(case.n, case.test_size, case.seed).unwrap();
        let label = format!("n = {}, test_size = {}, seed = {}", case.n, case.test_size, case.seed);
        assert_eq!((train.len(), test.len()), (case.n_train, case.n_test), "{label}");
        assert!(train.starts_with(&case.train_head) && train.ends_with(&case.train_tail), "{label}");
        assert!(test.starts_with(&case.test_head) && test.ends_with(&case.test_tail), "{label}");
        let mut all = [train, test].concat();
        all.sort();
        assert!(all.into_iter().eq(0..case.n), "{label}: some row is missing");
    }
}

#[test]
fn refuses_empty_parts() {
    for (rows, test_size) in [(0, 0.1), (1, 0.1), (10, 0.0), (10, 1.0), (10, f64::NAN), (3, 0.9)] {
        let error = train_test_split(rows, test_size, 42).unwrap_err();
        assert!(error.is_input_error(), "{rows} {test_size}");
    }
}
