//! For which lengths of texts a model that answers is worth compiling.

use std::collections::BTreeMap;

use crate::data::{Buckets, Padding};
use crate::model::ClassifierConfig;
use crate::pjrt::Backend;

/// The lengths that batches may have, which grow in number: one is added once so much was computed on padding without it as its
/// program costs to compile. In all processes of a slice at the same time, since they are asked the same.
pub(super) struct Lengths {
    max_length: usize,
    /// Of a model that reads padding, none.
    candidates: Buckets,
    chosen: Vec<usize>,
    /// Tokens of padding that each candidate would have saved.
    missed: BTreeMap<usize, u64>,
    /// From so many on, it is compiled.
    worth: u64,
    /// What became of all texts so far.
    pub padding: Padding,
}

/// Half of a batch can hardly be padding with lengths that are doubled from one to the next.
const CANDIDATES: [usize; 6] = [8, 16, 32, 64, 128, 256];

impl Lengths {
    pub fn new(model: &ClassifierConfig, backend: Backend) -> Self {
        // About what is computed in the time that a compilation takes: seconds, at a tenth of a TFLOP/s, or at some hundred.
        let flops = if backend == Backend::Cpu { 2e11 } else { 1e15 };
        let (hidden, inner) = (model.bert.hidden_size as f64, model.bert.intermediate_size as f64);
        let of_token = model.bert.num_hidden_layers as f64 * (8.0 * hidden * hidden + 4.0 * hidden * inner);
        let max_length = model.max_length;
        let candidates = match model.ignores_padding() {
            true => Buckets::new(CANDIDATES, max_length),
            false => Buckets::one(max_length),
        };
        Self {
            max_length,
            candidates,
            chosen: vec![],
            missed: BTreeMap::new(),
            worth: (flops / of_token) as u64,
            padding: Padding::default(),
        }
    }

    /// Those for texts of these lengths, which come next.
    pub fn choose(&mut self, lengths: impl Iterator<Item = usize>) -> Buckets {
        let now = Buckets::new(self.chosen.iter().copied(), self.max_length);
        if self.chosen.len() + 1 < self.candidates.iter().len() {
            for tokens in lengths {
                let best = self.candidates.of(tokens);
                *self.missed.entry(best).or_default() += (now.of(tokens) - best) as u64;
            }
            let worth = self.missed.iter().filter(|(_, missed)| **missed >= self.worth.max(1));
            self.chosen.extend(worth.map(|(length, _)| *length));
            self.missed.retain(|length, _| !self.chosen.contains(length));
        }
        Buckets::new(self.chosen.iter().copied(), self.max_length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HeadConfig, Size};

    fn lengths(zero_padding: bool) -> Lengths {
        let model = ClassifierConfig {
            bert: Size::MiniLm.config(),
            head: HeadConfig::default(),
            max_length: 100,
            mask: true,
            zero_padding,
            freeze_padding: false,
        };
        Lengths::new(&model, Backend::Cpu)
    }

    /// A token of MiniLM's takes 6 (8 * 384^2 + 4 * 384 * 1536) operations: 2e11 are 9,419 tokens.
    #[test]
    fn a_length_is_chosen_once_padding_has_cost_as_much() {
        let mut lengths = lengths(true);
        // Each of these saves 84 tokens at length 16; 68 at 32.
        let texts = |tokens: usize, count: usize| std::iter::repeat_n(tokens, count);
        assert_eq!(lengths.choose(texts(10, 112)), Buckets::one(100));
        assert_eq!(lengths.choose(texts(20, 100)), Buckets::one(100));
        assert_eq!(lengths.choose(texts(10, 1)), Buckets::new([16], 100));
        // Shorter ones are held against what there is now.
        assert_eq!(lengths.choose(texts(5, 1000)), Buckets::new([16], 100));
        assert_eq!(lengths.choose(texts(20, 39)), Buckets::new([16, 32], 100));
        assert_eq!(lengths.choose(texts(5, 178)), Buckets::new([8, 16, 32], 100));
        assert_eq!(lengths.choose(texts(60, 10_000)), Buckets::new([8, 16, 32, 64], 100));
    }

    #[test]
    fn a_model_that_reads_padding_has_one_length() {
        assert_eq!(lengths(false).choose(std::iter::repeat_n(5, 1_000_000)), Buckets::one(100));
    }
}
