//! Batches of a fixed size, in an order that the seed and the epoch alone decide.
//!
//! Making a batch copies a few kilobytes, microseconds beside a step of milliseconds, so there is no thread for it.

use rand_mt::Mt;

use super::{Tokens, permutation};

/// The rows of a tokenized table to go through.
#[derive(Clone, Debug)]
pub struct Dataset<'a> {
    tokens: &'a Tokens,
    /// Of every row of `tokens`; empty where there are no labels.
    classes: &'a [u32],
    rows: Vec<usize>,
}

/// The order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As given.
    Sequential,
    /// Shuffled anew each epoch: position `i` holds row `p[i]`, with `p` =
    /// `numpy.random.RandomState([seed & 0xffffffff, seed >> 32, epoch]).permutation(n)`.
    Shuffled { seed: u64, epoch: u32 },
}

impl<'a> Dataset<'a> {
    /// `rows` are row numbers of `tokens`; `classes` has one class per row of `tokens`, or is empty where there are no
    /// labels.
    ///
    /// # Panics
    /// If a row is out of range, or the number of classes is not the number of rows.
    pub fn new(tokens: &'a Tokens, classes: &'a [u32], rows: Vec<usize>) -> Self {
        assert!(
            classes.is_empty() || classes.len() == tokens.len(),
            "{} classes for {} rows",
            classes.len(),
            tokens.len()
        );
        assert!(rows.iter().all(|&row| row < tokens.len()), "a row is not below {}", tokens.len());
        Self { tokens, classes, rows }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows in batches of `batch_size`, the last one padded.
    ///
    /// # Panics
    /// If `batch_size` is 0.
    pub fn batches(&self, batch_size: usize, order: Order) -> Batches<'_> {
        assert!(batch_size > 0, "a batch needs a row");
        let rows = match order {
            Order::Sequential => self.rows.clone(),
            Order::Shuffled { seed, epoch } => {
                let mut rng = Mt::new_with_key([seed as u32, (seed >> 32) as u32, epoch]);
                permutation(self.rows.len(), &mut rng).into_iter().map(|at| self.rows[at]).collect()
            }
        };
        Batches { dataset: self, rows, next: 0, batch_size }
    }

    fn batch(&self, rows: &[usize], batch_size: usize) -> Batch {
        let max_length = self.tokens.max_length();
        let mut batch = Batch {
            input_ids: Vec::with_capacity(batch_size * max_length),
            lengths: Vec::with_capacity(batch_size),
            labels: Vec::with_capacity(batch_size),
            weights: Vec::with_capacity(batch_size),
            rows: rows.to_vec(),
        };
        for i in 0..batch_size {
            let row = *rows.get(i).unwrap_or(&rows[0]);
            batch.input_ids.extend_from_slice(self.tokens.row(row));
            batch.lengths.push(self.tokens.length(row));
            batch.labels.extend(self.classes.get(row).map(|&class| class as i32));
            batch.weights.push(if i < rows.len() { 1.0 } else { 0.0 });
        }
        batch
    }
}

/// One global batch, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[batch, max_length]`
    pub input_ids: Vec<i32>,
    /// `[batch]`: tokens of each row before its padding.
    pub lengths: Vec<usize>,
    /// `[batch]`; empty where there are no labels.
    pub labels: Vec<i32>,
    /// `[batch]`: 1, or 0 for a row that only fills the batch (a repeat of its first row).
    pub weights: Vec<f32>,
    /// The row numbers of the batch's real rows: fewer than `batch` in a padded one.
    pub rows: Vec<usize>,
}

impl Batch {
    /// `[batch, max_length]`: 1 for a token, 0 for padding.
    pub fn attention_mask(&self) -> Vec<i32> {
        let max_length = self.input_ids.len() / self.lengths.len().max(1);
        let row = |length: &usize| {
            let length = *length;
            (0..max_length).map(move |at| i32::from(at < length))
        };
        self.lengths.iter().flat_map(row).collect()
    }
}

/// Iterates over the batches of one pass.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    dataset: &'a Dataset<'a>,
    rows: Vec<usize>,
    next: usize,
    batch_size: usize,
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let end = (self.next + self.batch_size).min(self.rows.len());
        let rows = &self.rows[self.next..end];
        if rows.is_empty() {
            return None;
        }
        self.next = end;
        Some(self.dataset.batch(rows, self.batch_size))
    }

    /// Passes batches over without making them.
    fn nth(&mut self, n: usize) -> Option<Batch> {
        self.next = n.saturating_mul(self.batch_size).saturating_add(self.next).min(self.rows.len());
        self.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.rows.len() - self.next).div_ceil(self.batch_size);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batches<'_> {}
