//! Batches of a fixed size and of like lengths, in an order that the seed and the epoch alone decide.
//!
//! Making a batch copies a few kilobytes, microseconds beside a step of milliseconds, so there is no thread for it.

use std::borrow::Cow;
use std::ops::{Add, Range};

use rand_mt::Mt;

use super::split::shuffle;
use super::{Buckets, Tokens, permutation};

/// The rows of a tokenized table to go through.
#[derive(Clone, Debug)]
pub struct Dataset<'a> {
    tokens: &'a Tokens,
    /// Of every row of `tokens`; empty where there are no labels.
    classes: &'a [u32],
    rows: Cow<'a, [usize]>,
    buckets: Buckets,
    /// Which of so many equal parts of each batch are read.
    fed: (Range<usize>, usize),
}

/// The order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As given, but for what buckets change.
    Sequential,
    /// Shuffled anew each epoch: position `i` holds row `p[i]`, with `p` =
    /// `numpy.random.RandomState([seed & 0xffffffff, seed >> 32, epoch]).permutation(n)`. Of several buckets, each takes its
    /// rows in that order, and the batches are then shuffled, by the same generator.
    Shuffled { seed: u64, epoch: u32 },
}

impl<'a> Dataset<'a> {
    /// `rows` are row numbers of `tokens`; `classes` has one class per row of `tokens`, or is empty where there are no
    /// labels.
    ///
    /// # Panics
    /// If a row is out of range, or the number of classes is not the number of rows.
    pub fn new(tokens: &'a Tokens, classes: &'a [u32], rows: Vec<usize>) -> Self {
        Self::over(tokens, classes, rows.into())
    }

    /// As [`new`](Self::new), of rows that somebody else has.
    pub fn of(tokens: &'a Tokens, classes: &'a [u32], rows: &'a [usize]) -> Self {
        Self::over(tokens, classes, rows.into())
    }

    fn over(tokens: &'a Tokens, classes: &'a [u32], rows: Cow<'a, [usize]>) -> Self {
        assert!(
            classes.is_empty() || classes.len() == tokens.len(),
            "{} classes for {} rows",
            classes.len(),
            tokens.len()
        );
        assert!(rows.iter().all(|&row| row < tokens.len()), "a row is not below {}", tokens.len());
        Self { tokens, classes, rows, buckets: Buckets::one(tokens.max_length()), fed: (0..1, 1) }
    }

    /// The same for who feeds these parts, of `count` equal ones of each batch, alone: rows of others are not read, and padding
    /// stands for them.
    pub fn fed_to(self, parts: Range<usize>, count: usize) -> Self {
        Self { fed: (parts, count), ..self }
    }

    /// The same in batches of these lengths.
    pub fn in_buckets(self, buckets: Buckets) -> Self {
        Self { buckets, ..self }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Number of tokens of each row.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        self.rows.iter().map(|row| self.tokens.length(*row))
    }

    /// The rows in batches of `batch_size`, of which one at most is not full: as many as without buckets. Each has as few
    /// tokens as its rows allow: what doesn't fill a batch of its own length goes with longer rows.
    ///
    /// # Panics
    /// If `batch_size` is 0.
    pub fn batches(&self, batch_size: usize, order: Order) -> Batches<'_> {
        assert!(batch_size > 0, "a batch needs a row");
        let mut rng = match order {
            Order::Sequential => None,
            Order::Shuffled { seed, epoch } => {
                Some(Mt::new_with_key([seed as u32, (seed >> 32) as u32, epoch]))
            }
        };
        let positions = match &mut rng {
            None => (0..self.len()).collect(),
            Some(rng) => permutation(self.len(), rng),
        };
        let (positions, mut parts) = self.parts(positions, batch_size);
        if let Some(rng) = rng.as_mut().filter(|_| self.buckets.iter().len() > 1) {
            let full = self.len() / batch_size;
            shuffle(&mut parts[..full], rng);
        }
        Batches { dataset: self, positions, parts: parts.into_iter(), batch_size }
    }

    /// The positions in an order in which each batch is a range of them, and these ranges: the one that is not full comes
    /// last.
    fn parts(&self, positions: Vec<usize>, batch_size: usize) -> (Vec<usize>, Vec<Part>) {
        let mut of_bucket = vec![vec![]; self.buckets.iter().len()];
        if let [only] = &mut of_bucket[..] {
            *only = positions;
        } else {
            for position in positions {
                let length = self.tokens.length(self.rows[position]);
                of_bucket[self.buckets.index(length)].push(position);
            }
        }
        let (mut ordered, mut parts, mut left) = (vec![], vec![], vec![]);
        for (mut own, length) in of_bucket.into_iter().zip(self.buckets.iter()) {
            // Those that are left of shorter ones come first.
            if !left.is_empty() {
                own.splice(..0, left);
            }
            left = own.split_off(own.len() / batch_size * batch_size);
            let starts = (ordered.len()..ordered.len() + own.len()).step_by(batch_size);
            parts.extend(starts.map(|start| Part { rows: start..start + batch_size, length }));
            // Of one bucket, nothing is copied.
            if ordered.is_empty() { ordered = own } else { ordered.append(&mut own) }
        }
        if !left.is_empty() {
            let longest = left.iter().map(|position| self.tokens.length(self.rows[*position])).max();
            let length = self.buckets.of(longest.unwrap_or_default());
            parts.push(Part { rows: ordered.len()..ordered.len() + left.len(), length });
            ordered.append(&mut left);
        }
        (ordered, parts)
    }

    fn batch(&self, positions: &[usize], length: usize, batch_size: usize) -> Batch {
        let mut batch = Batch {
            input_ids: Vec::with_capacity(batch_size * length),
            lengths: Vec::with_capacity(batch_size),
            labels: Vec::with_capacity(batch_size),
            weights: Vec::with_capacity(batch_size),
            positions: positions.to_vec(),
        };
        let pad_id = self.tokens.pad_id() as i32;
        let (parts, count) = &self.fed;
        for i in 0..batch_size {
            let row = self.rows[*positions.get(i).unwrap_or(&positions[0])];
            let is_fed = parts.contains(&(i * count / batch_size));
            if is_fed {
                batch.input_ids.extend(self.tokens.row(row).map(|id| id as i32));
            }
            batch.input_ids.resize((i + 1) * length, pad_id);
            batch.lengths.push(if is_fed { self.tokens.length(row) } else { 0 });
            batch.labels.extend(self.classes.get(row).map(|&class| class as i32));
            batch.weights.push(if i < positions.len() { 1.0 } else { 0.0 });
        }
        batch
    }
}

/// A batch to come.
#[derive(Clone, Debug)]
struct Part {
    rows: Range<usize>,
    length: usize,
}

/// One global batch, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[batch, length]`
    pub input_ids: Vec<i32>,
    /// `[batch]`: tokens of each row before its padding.
    pub lengths: Vec<usize>,
    /// `[batch]`; empty where there are no labels.
    pub labels: Vec<i32>,
    /// `[batch]`: 1, or 0 for a row that only fills the batch (a repeat of its first row).
    pub weights: Vec<f32>,
    /// Which rows of the data set the batch's real rows are, from 0: fewer than `batch` in one that isn't full.
    pub positions: Vec<usize>,
}

impl Batch {
    /// Tokens of each row, padding included.
    pub fn length(&self) -> usize {
        self.input_ids.len() / self.lengths.len().max(1)
    }

    /// `[batch, length]`: 1 for a token, 0 for padding.
    pub fn attention_mask(&self) -> Vec<i32> {
        let row = |length: &usize| {
            let length = *length;
            (0..self.length()).map(move |at| i32::from(at < length))
        };
        self.lengths.iter().flat_map(row).collect()
    }
}

/// Iterates over the batches of one pass.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    dataset: &'a Dataset<'a>,
    positions: Vec<usize>,
    parts: std::vec::IntoIter<Part>,
    batch_size: usize,
}

impl Batches<'_> {
    /// The length of each batch to come.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        self.parts.as_slice().iter().map(|part| part.length)
    }

    fn make(&self, Part { rows, length }: Part) -> Batch {
        self.dataset.batch(&self.positions[rows], length, self.batch_size)
    }
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let part = self.parts.next()?;
        Some(self.make(part))
    }

    /// Passes batches over without making them.
    fn nth(&mut self, n: usize) -> Option<Batch> {
        let part = self.parts.nth(n)?;
        Some(self.make(part))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.parts.size_hint()
    }
}

impl ExactSizeIterator for Batches<'_> {}

/// How much of what was computed is padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Tokens of the texts themselves.
    pub tokens: u64,
    /// Those, and their padding, and rows that only fill up a batch.
    pub computed: u64,
    /// What it were with each text as long as a text can be.
    pub full: u64,
}

impl Add for Padding {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            tokens: self.tokens + other.tokens,
            computed: self.computed + other.computed,
            full: self.full + other.full,
        }
    }
}

impl Padding {
    /// Of texts of so many tokens together, in batches of these lengths; all have `batch_size` rows, of `max_length` tokens at most.
    pub fn of(tokens: usize, batches: &[usize], [batch_size, max_length]: [usize; 2]) -> Self {
        Self {
            tokens: tokens as u64,
            computed: (batches.iter().sum::<usize>() * batch_size) as u64,
            full: (batches.len() * batch_size * max_length) as u64,
        }
    }

    /// In words, if anything was saved.
    pub fn saved(&self) -> Option<String> {
        let Self { tokens, computed, full } = *self;
        let share = 100.0 * (full - computed) as f64 / full.max(1) as f64;
        (computed < full).then(|| {
            format!(
                "{computed} tokens computed for {tokens} of texts: {share:.0} % fewer than at full length"
            )
        })
    }
}
