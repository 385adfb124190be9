//! scikit-learn's `train_test_split`, row for row.

use rand_mt::Mt;

use super::DataError;

/// Row numbers of the two parts, each in shuffled order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    pub train: Vec<usize>,
    pub test: Vec<usize>,
}

/// `sklearn.model_selection.train_test_split(range(rows), test_size=test_size, random_state=seed)`: the same rows
/// in the same order. The test part has `ceil(test_size * rows)` rows and the training part all others.
///
/// # Errors
/// If `test_size` is not between 0 and 1, or if either part would be empty.
pub fn train_test_split(rows: usize, test_size: f64, seed: u32) -> Result<Split, DataError> {
    let error = |message: &str| DataError::Split { rows, test_size, message: message.to_owned() };
    if !(test_size > 0.0 && test_size < 1.0) {
        return Err(error("the share must lie between 0 and 1"));
    }
    let num_test = (test_size * rows as f64).ceil() as usize;
    if num_test == 0 || num_test >= rows {
        return Err(error("both parts need a row"));
    }
    let mut test = permutation(rows, &mut Mt::new(seed));
    let train = test.split_off(num_test);
    Ok(Split { train, test })
}

/// `numpy.random.RandomState(...).permutation(n)` with the same MT19937 state: Fisher-Yates from the end, each
/// index drawn by masking 32 bits and rejecting what is too large ([`random_interval`][source]).
///
/// # Panics
/// If `n` is more than 2^32, where NumPy draws 64 bits.
///
/// [source]: https://github.com/numpy/numpy/blob/v2.0.0/numpy/random/src/distributions/distributions.c
pub fn permutation(n: usize, rng: &mut Mt) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        // Holds as documented: so many rows would not fit in memory as texts.
        let max = u32::try_from(i).expect("at most 2^32 rows");
        let mask = u32::MAX >> max.leading_zeros();
        let j = loop {
            let value = rng.next_u32() & mask;
            if value <= max {
                break value;
            }
        };
        rows.swap(i, j as usize);
    }
    rows
}
