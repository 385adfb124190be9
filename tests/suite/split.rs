//! The splits against scikit-learn's own.

use std::fs;

use bert_xla::data::{
    DataError, Folds, LabelMap, Purpose, Split, Table, TableOptions, k_fold, stratified_k_fold,
    stratified_train_test_split, train_test_split,
};
use bert_xla::run::layout;
use serde::Deserialize;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::common::cli::{self, asset, fails, text};
use crate::common::empty_folder;
use crate::common::runs::{newest_checkpoint, read_json};

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

/// What scikit-learn 1.9.1 and NumPy 2.4.6 made of tables of up to ten classes, by
///
/// ```python
/// import hashlib, json, warnings, numpy as np
/// from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
/// def rows(array):
///     text = json.dumps([int(row) for row in array], separators=(",", ":"))
///     return json.loads(text) if len(array) <= 30 else hashlib.sha256(text.encode()).hexdigest()
/// def case(split, **given):
///     with warnings.catch_warnings(record=True) as told:
///         warnings.simplefilter("always")
///         try: given["splits"] = [[rows(train), rows(test)] for train, test in split()]
///         except ValueError as error: given["error"] = str(error)
///     return given | {"warning": str(told[0].message) if told else None}
/// draw = lambda n, p, seed: np.random.RandomState(seed).choice(len(p), size=n, p=np.array(p) / sum(p))
/// tables = [np.tile([0, 1], 5), np.tile([3, 1, 2], 7), np.repeat([2, 0, 1], [12, 9, 2]), np.repeat([5, 6, 7, 8], 2),
///           np.repeat([1, 2, 3], [40, 40, 21]), np.repeat([4, 9], [9, 1]), draw(50, [5, 3, 1, 1], 0), draw(137, [1] * 7, 1),
///           draw(1000, [50, 30, 15, 5], 2), draw(2947, [0, 1498, 0, 1449], 3)]
/// seeds = [0, 42, 2**32 - 1]
/// made = {"tables": ["".join(map(str, y)) for y in tables]}
/// made["stratified"] = [case(lambda: [train_test_split(np.arange(len(y)), test_size=size, random_state=seed, stratify=y)],
///     table=table, test_size=size, seed=seed) for table, y in enumerate(tables) for size in [.1, .25, .5, .9] for seed in seeds]
/// made["stratified_k_fold"] = [case(lambda: StratifiedKFold(k, shuffle=True, random_state=seed).split(y, y),
///     table=table, folds=k, seed=seed) for table, y in enumerate(tables) for k in [2, 5, 9] for seed in seeds]
/// made["k_fold"] = [case(lambda: KFold(k, shuffle=True, random_state=seed).split(np.arange(n)), rows=n, folds=k, seed=seed)
///     for n, k in [(2, 2), (7, 3), (10, 10), (23, 5), (100, 7), (2947, 5), (3, 4), (10, 1)] for seed in seeds]
/// lists = [f'"{name}": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]" for name, cases in made.items()]
/// print("{" + ",\n".join(lists) + "}")
/// ```
#[derive(Deserialize)]
struct Splits {
    /// A digit per row.
    tables: Vec<String>,
    stratified: Vec<Made>,
    k_fold: Vec<Made>,
    stratified_k_fold: Vec<Made>,
}

#[derive(Deserialize)]
struct Made {
    #[serde(default)]
    table: usize,
    #[serde(default)]
    rows: usize,
    #[serde(default)]
    test_size: f64,
    #[serde(default)]
    folds: usize,
    seed: u32,
    splits: Option<Vec<[Json; 2]>>,
    error: Option<String>,
    warning: Option<String>,
}

impl Splits {
    fn read() -> Self {
        serde_json::from_str(include_str!("../fixtures/sklearn_folds.json")).unwrap()
    }

    fn classes(&self, made: &Made) -> Vec<u32> {
        self.tables[made.table].chars().map(|class| class.to_digit(10).unwrap()).collect()
    }
}

impl Made {
    /// Compares the rows and their order; of an error, which one it is.
    #[track_caller]
    fn check(&self, found: Result<Vec<Split>, DataError>) {
        let Self { table, rows, test_size, folds, seed, .. } = self;
        let name = format!("table {table}, {rows} rows, test_size {test_size}, {folds} folds, seed {seed}");
        let found = match found {
            Ok(found) => found,
            Err(error) => return assert_eq!(ours(self.error.as_ref().expect(&name)), Some(told(&error))),
        };
        let expected = self.splits.as_ref().unwrap_or_else(|| panic!("{name}: {:?}", self.error));
        assert_eq!(found.len(), expected.len(), "{name}");
        for (found, [train, test]) in found.iter().zip(expected) {
            assert_eq!(told_rows(&found.train), *train, "{name}");
            assert_eq!(told_rows(&found.test), *test, "{name}");
        }
    }
}

/// As the fixture tells rows: many, by a hash.
fn told_rows(rows: &[usize]) -> Json {
    let text = serde_json::to_string(rows).unwrap();
    match rows.len() {
        ..=30 => serde_json::from_str(&text).unwrap(),
        _ => Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
    }
}

/// A message, from its colon on.
fn told(error: &DataError) -> String {
    assert!(error.is_input_error());
    error.to_string().split_once(": ").unwrap().1.to_owned()
}

/// What we say where scikit-learn says `theirs`.
fn ours(theirs: &str) -> Option<String> {
    let number_after = |text: &str| {
        let rest = theirs.split_once(text)?.1;
        Some(rest.split(|c: char| !c.is_ascii_digit()).next()?.to_owned())
    };
    let part = |part, size| {
        let classes = number_after("classes = ")?;
        Some(format!("{} to be the {part} part, of {classes} classes", number_after(size)?))
    };
    match theirs.split(' ').next()? {
        "Cannot" => Some("each needs a row".to_owned()),
        "k-fold" => Some("there must be two or more".to_owned()),
        "With" => Some("both parts need a row".to_owned()),
        "The" if theirs.contains("least populated") => {
            let class = number_after("Classes with too few members are: [")?;
            Some(format!("there is one row of `class {class}`, and both parts need one"))
        }
        "The" if theirs.contains("test_size") => part("test", "test_size = "),
        "The" => part("training", "train_size = "),
        _ => Some("no class has as many rows".to_owned()),
    }
}

#[test]
fn stratified_splits_equal_scikit_learns() {
    let splits = Splits::read();
    // No labels for the classes of these tables, but for some.
    let labels = LabelMap::new([("x".to_owned(), 10)]).unwrap();
    for made in &splits.stratified {
        let classes = splits.classes(made);
        let found = stratified_train_test_split(&classes, &labels, made.test_size, made.seed);
        made.check(found.map(|split| vec![split]));
    }
}

#[test]
fn folds_equal_scikit_learns() {
    let splits = Splits::read();
    let all = |folds: Folds| (0..folds.count()).map(|fold| folds.split(fold)).collect();
    for made in &splits.k_fold {
        let folds = k_fold(made.rows, made.folds, made.seed);
        made.check(folds.map(|folds| {
            assert_eq!(folds.smallest_class, None);
            all(folds)
        }));
    }
    for made in &splits.stratified_k_fold {
        let folds = stratified_k_fold(&splits.classes(made), made.folds, made.seed);
        made.check(folds.map(|folds| {
            let told = |size| {
                let folds = made.folds;
                format!(
                    "The least populated class in y has only {size} members, which is less than n_splits={folds}."
                )
            };
            assert_eq!(folds.smallest_class.map(told), made.warning);
            all(folds)
        }));
    }
}

/// The rows of [`stratified_train_test_split`], and the term that a run keeps of it.
#[test]
fn a_stratified_run_holds_out_those_rows_and_stays_so() {
    let output = empty_folder("labels_stratified").join("run");
    let ended = cli::train(&output, &["--epochs", "1", "--stratify"]).output().unwrap();
    assert!(ended.status.success(), "{}", text(ended.stderr));
    let predictions = fs::read_to_string(output.join("dev_predictions.csv")).unwrap();
    let rows = predictions.lines().skip(1).map(|line| line.split(',').next().unwrap().parse().unwrap());
    let table = Table::read(&asset("sample.csv"), &TableOptions::default(), Purpose::Train).unwrap();
    let split = stratified_train_test_split(&table.classes, &table.labels, 0.1, 42).unwrap();
    assert_eq!(rows.collect::<Vec<usize>>(), split.test);
    let terms = &read_json(&output.join(newest_checkpoint(&output)).join(layout::PROGRESS))["terms"]["fixed"];
    assert_eq!(terms["stratify"], true);

    let message = fails(&mut cli::train(&output, &["--epochs", "1"]), 2);
    assert!(message.contains("; stratify was true, now not set;"), "{message}");
    let again = cli::train(&output, &["--epochs", "1", "--resume"]).output().unwrap();
    assert!(text(again.stderr).contains("Nothing to do"));
}
