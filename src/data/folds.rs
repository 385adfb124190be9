//! scikit-learn's `KFold` and `StratifiedKFold`, row for row.
//!
//! Source: [`_split.py`](https://github.com/scikit-learn/scikit-learn/blob/1.9.1/sklearn/model_selection/_split.py).

use std::collections::HashMap;

use rand_mt::Mt;

use super::split::{permutation, shuffle};
use super::{DataError, Split};

/// Rows in as many parts as there are folds. Each fold holds one of them out, and trains on all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folds {
    /// Of each row, the fold that holds it out, from 0.
    fold_of: Vec<usize>,
    folds: usize,
    /// Rows of the smallest class, if it has fewer than there are folds: not every fold holds one of them out. `None` where
    /// classes play no part.
    pub smallest_class: Option<usize>,
}

impl Folds {
    /// Number of folds, two or more.
    pub fn count(&self) -> usize {
        self.folds
    }

    /// What scikit-learn's `split` yields at place `fold`, both parts in the order of the rows; from [`Self::count`] on, no row
    /// is held out.
    pub fn split(&self, fold: usize) -> Split {
        let (test, train) = (0..self.fold_of.len()).partition(|row| self.fold_of[*row] == fold);
        Split { train, test }
    }
}

/// `sklearn.model_selection.KFold(folds, shuffle=True, random_state=seed).split(range(rows))`: the same rows in the same
/// order.
///
/// # Errors
/// Fewer than two folds, or more than there are rows.
pub fn k_fold(rows: usize, folds: usize, seed: u32) -> Result<Folds, DataError> {
    check(rows, folds)?;
    let mut fold_of = vec![0; rows];
    let mut shuffled = permutation(rows, &mut Mt::new(seed)).into_iter();
    for fold in 0..folds {
        let size = rows / folds + usize::from(fold < rows % folds);
        shuffled.by_ref().take(size).for_each(|row| fold_of[row] = fold);
    }
    Ok(Folds { fold_of, folds, smallest_class: None })
}

/// `sklearn.model_selection.StratifiedKFold(folds, shuffle=True, random_state=seed).split(classes, classes)`, `classes` having
/// one per row: the same rows in the same order. Each part has about the same share of every class. Where scikit-learn
/// warns of a class with too few rows, [`Folds::smallest_class`] tells.
///
/// # Errors
/// Fewer than two folds, more than there are rows, or more than any class has rows.
pub fn stratified_k_fold(classes: &[u32], folds: usize, seed: u32) -> Result<Folds, DataError> {
    let rows = classes.len();
    check(rows, folds)?;
    // In the order in which they appear.
    let mut numbers = HashMap::new();
    let mut by_class = Vec::<Vec<usize>>::new();
    for (row, class) in classes.iter().enumerate() {
        let number = *numbers.entry(class).or_insert(by_class.len());
        if number == by_class.len() {
            by_class.push(vec![]);
        }
        by_class[number].push(row);
    }
    let sizes = || by_class.iter().map(Vec::len);
    if sizes().all(|size| size < folds) {
        return Err(error(rows, folds, "no class has as many rows"));
    }
    let smallest_class = sizes().min().filter(|size| *size < folds);

    let mut rng = Mt::new(seed);
    let mut fold_of = vec![0; rows];
    // Of the rows sorted by class, each next one goes to the next fold: so many of a class does a fold hold out.
    let mut dealt = 0;
    for rows in &by_class {
        let mut counts = vec![0; folds];
        (dealt..dealt + rows.len()).for_each(|at| counts[at % folds] += 1);
        dealt += rows.len();
        let counted = counts.into_iter().enumerate();
        let mut of_class =
            counted.flat_map(|(fold, count)| std::iter::repeat_n(fold, count)).collect::<Vec<_>>();
        shuffle(&mut of_class, &mut rng);
        rows.iter().zip(of_class).for_each(|(row, fold)| fold_of[*row] = fold);
    }
    Ok(Folds { fold_of, folds, smallest_class })
}

fn check(rows: usize, folds: usize) -> Result<(), DataError> {
    match folds {
        0 | 1 => Err(error(rows, folds, "there must be two or more")),
        _ if folds > rows => Err(error(rows, folds, "each needs a row")),
        _ => Ok(()),
    }
}

fn error(rows: usize, folds: usize, message: &str) -> DataError {
    DataError::Folds { rows, folds, message: message.to_owned() }
}
