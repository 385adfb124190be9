//! scikit-learn's `train_test_split`, row for row, also stratified by classes.
//!
//! Sources: [`_split.py`](https://github.com/scikit-learn/scikit-learn/blob/1.9.1/sklearn/model_selection/_split.py),
//! [`extmath.py`](https://github.com/scikit-learn/scikit-learn/blob/1.9.1/sklearn/utils/extmath.py).

use std::collections::BTreeMap;

use rand_mt::Mt;

use super::{DataError, LabelMap};

/// Row numbers of the two parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    pub train: Vec<usize>,
    pub test: Vec<usize>,
}

/// `sklearn.model_selection.train_test_split(range(rows), test_size=test_size, random_state=seed)`: the same rows
/// in the same order. The test part has `ceil(test_size * rows)` rows and the training part all others, each shuffled.
///
/// # Errors
/// If `test_size` is not between 0 and 1, or if either part would be empty.
pub fn train_test_split(rows: usize, test_size: f64, seed: u32) -> Result<Split, DataError> {
    let num_test = num_test(rows, test_size)?;
    let mut test = permutation(rows, &mut Mt::new(seed));
    let train = test.split_off(num_test);
    Ok(Split { train, test })
}

/// `sklearn.model_selection.train_test_split(range(n), test_size=test_size, random_state=seed, stratify=classes)`, `n` being
/// the number of `classes`, one per row: the same rows in the same order. Each part has as large a share of every class as
/// the whole has, as near as whole rows allow. `labels` name the classes in messages.
///
/// # Errors
/// Those of [`train_test_split`]; a class of a single row; a part with fewer rows than there are classes.
pub fn stratified_train_test_split(
    classes: &[u32],
    labels: &LabelMap,
    test_size: f64,
    seed: u32,
) -> Result<Split, DataError> {
    let rows = classes.len();
    let num_test = num_test(rows, test_size)?;
    let num_train = rows - num_test;
    let error = |message: String| Err(DataError::Stratify { rows, test_size, message });
    let mut by_class = rows_by_class(classes);
    if let Some((class, _)) = by_class.iter().find(|(_, rows)| rows.len() < 2) {
        return error(format!("there is one row of `{}`, and both parts need one", labels.name_of(*class)));
    }
    for (part, size) in [("training", num_train), ("test", num_test)] {
        if size < by_class.len() {
            return error(format!("{size} to be the {part} part, of {} classes", by_class.len()));
        }
    }

    let mut rng = Mt::new(seed);
    let mut counts = by_class.values().map(Vec::len).collect::<Vec<_>>();
    let train_counts = approximate_mode(&counts, num_train, &mut rng);
    counts.iter_mut().zip(&train_counts).for_each(|(count, taken)| *count -= taken);
    let test_counts = approximate_mode(&counts, num_test, &mut rng);
    let (mut train, mut test) = (vec![], vec![]);
    for (rows, (num_train, num_test)) in by_class.values_mut().zip(train_counts.into_iter().zip(test_counts))
    {
        shuffle(rows, &mut rng);
        let mut rows = rows.iter().copied();
        train.extend(rows.by_ref().take(num_train));
        test.extend(rows.take(num_test));
    }
    shuffle(&mut train, &mut rng);
    shuffle(&mut test, &mut rng);
    Ok(Split { train, test })
}

/// How many of `rows` are held out.
fn num_test(rows: usize, test_size: f64) -> Result<usize, DataError> {
    let error = |message: &str| Err(DataError::Split { rows, test_size, message: message.to_owned() });
    if !(test_size > 0.0 && test_size < 1.0) {
        return error("the share must lie between 0 and 1");
    }
    let num_test = (test_size * rows as f64).ceil() as usize;
    if num_test == 0 || num_test >= rows {
        return error("both parts need a row");
    }
    Ok(num_test)
}

/// The rows of each class, both in order.
fn rows_by_class(classes: &[u32]) -> BTreeMap<u32, Vec<usize>> {
    let mut by_class = BTreeMap::<u32, Vec<usize>>::new();
    classes.iter().enumerate().for_each(|(row, class)| by_class.entry(*class).or_default().push(row));
    by_class
}

/// How many of each class are in `draws` rows, if each is as likely as its count in `counts`: every share is rounded down,
/// and what is left goes to the largest remainders, by lot among equal ones. scikit-learn's function of this name; the
/// order of its operations decides which remainders are equal.
fn approximate_mode(counts: &[usize], draws: usize, rng: &mut Mt) -> Vec<usize> {
    let total = counts.iter().sum::<usize>() as f64;
    let shares = counts.iter().map(|count| *count as f64 / total * draws as f64).collect::<Vec<_>>();
    let mut drawn = shares.iter().map(|share| share.floor() as usize).collect::<Vec<_>>();
    let mut left = draws.saturating_sub(drawn.iter().sum());
    let remainders = shares.iter().map(|share| share - share.floor()).collect::<Vec<_>>();
    let mut values = remainders.clone();
    values.sort_unstable_by(|a, b| b.total_cmp(a));
    values.dedup();
    for value in values {
        if left == 0 {
            break;
        }
        let mut equal = (0..counts.len()).filter(|class| remainders[*class] == value).collect::<Vec<_>>();
        // Drawn even where all of them are taken.
        shuffle(&mut equal, rng);
        equal.truncate(left);
        left -= equal.len();
        equal.into_iter().for_each(|class| drawn[class] += 1);
    }
    drawn
}

/// `numpy.random.RandomState(...).permutation(n)` with the same MT19937 state.
///
/// # Panics
/// If `n` is more than 2^32, where NumPy draws 64 bits.
pub fn permutation(n: usize, rng: &mut Mt) -> Vec<usize> {
    let mut rows = (0..n).collect::<Vec<_>>();
    shuffle(&mut rows, rng);
    rows
}

/// `numpy.random.RandomState(...).shuffle(values)` with the same MT19937 state: Fisher-Yates from the end, each
/// index drawn by masking 32 bits and rejecting what is too large ([`random_interval`][source]).
///
/// # Panics
/// If there are more than 2^32 values, where NumPy draws 64 bits.
///
/// [source]: https://github.com/numpy/numpy/blob/v2.0.0/numpy/random/src/distributions/distributions.c
pub(super) fn shuffle<T>(values: &mut [T], rng: &mut Mt) {
    for i in (1..values.len()).rev() {
        // Holds as documented: so many rows would not fit in memory as texts.
        let max = u32::try_from(i).expect("at most 2^32 rows");
        let mask = u32::MAX >> max.leading_zeros();
        let j = loop {
            let value = rng.next_u32() & mask;
            if value <= max {
                break value;
            }
        };
        values.swap(i, j as usize);
    }
}
