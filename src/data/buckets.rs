//! The lengths that batches are padded to.

use std::fmt;
use std::str::FromStr;

/// Lengths of batches, in order: a text goes with those of the shortest that holds it, so that little is computed on padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets(Vec<usize>);

impl Buckets {
    /// Lengths that are worth having are a multiple of this: the height of a tile of TPU's registers.
    const TILE: usize = 8;

    /// A single length.
    pub fn one(max_length: usize) -> Self {
        Self(vec![max_length])
    }

    /// Those of `lengths` that are shorter than `max_length`, and that.
    pub fn new(lengths: impl IntoIterator<Item = usize>, max_length: usize) -> Self {
        let mut lengths = lengths.into_iter().filter(|length| *length < max_length).collect::<Vec<_>>();
        lengths.push(max_length);
        lengths.sort_unstable();
        lengths.dedup();
        Self(lengths)
    }

    /// Up to `most` lengths below `max_length` with which texts of these `lengths` take the fewest tokens, padding included.
    pub fn best(lengths: impl IntoIterator<Item = usize>, max_length: usize, most: usize) -> Self {
        // How many texts take so many tiles, or fewer.
        let mut texts = vec![0_u64; max_length.div_ceil(Self::TILE) + 1];
        lengths.into_iter().for_each(|length| texts[length.min(max_length).div_ceil(Self::TILE)] += 1);
        let longest = texts.iter().rposition(|texts| *texts > 0).unwrap_or_default();
        let mut up_to = texts;
        (1..up_to.len()).for_each(|tiles| up_to[tiles] += up_to[tiles - 1]);
        // For texts of up to so many tiles: what they take at least, and the lengths of it, of which the last is that long.
        let mut best =
            (0..=longest).map(|end| (up_to[end] * end as u64, vec![end])).collect::<Vec<(u64, Vec<usize>)>>();
        for _ in 1..most {
            let with_one_more = |end: usize| {
                let cost = |start: usize| best[start].0 + (up_to[end] - up_to[start]) * end as u64;
                let start =
                    (1..end).min_by_key(|start| cost(*start)).filter(|start| cost(*start) < best[end].0);
                match start {
                    Some(start) => (cost(start), [&best[start].1[..], &[end]].concat()),
                    None => best[end].clone(),
                }
            };
            best = (0..=longest).map(with_one_more).collect();
        }
        let chosen = best.swap_remove(longest).1;
        let lengths = chosen.into_iter().filter(|tiles| *tiles > 0).map(|tiles| tiles * Self::TILE);
        Self::new(lengths, max_length)
    }

    /// The shortest that holds a text of so many tokens.
    pub fn of(&self, tokens: usize) -> usize {
        self.0[self.index(tokens)]
    }

    /// Which of them that is.
    pub(super) fn index(&self, tokens: usize) -> usize {
        self.0.partition_point(|length| *length < tokens).min(self.0.len() - 1)
    }

    /// From the shortest on.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = usize> + ExactSizeIterator {
        self.0.iter().copied()
    }

    /// The longest.
    pub fn max_length(&self) -> usize {
        self.0[self.0.len() - 1]
    }
}

/// `16,32,140`.
impl fmt::Display for Buckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths = self.0.iter().map(usize::to_string).collect::<Vec<_>>();
        f.write_str(&lengths.join(","))
    }
}

/// Which lengths are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BucketOptions {
    /// Those with which the texts take the fewest tokens.
    Auto,
    Given(Vec<usize>),
}

impl BucketOptions {
    /// How many lengths are chosen: each takes a compilation, and rows of its own to fill a batch.
    const MOST: usize = 6;

    /// For texts of these `lengths`, of `max_length` tokens at most.
    pub fn resolve(&self, lengths: impl IntoIterator<Item = usize>, max_length: usize) -> Buckets {
        match self {
            Self::Auto => Buckets::best(lengths, max_length, Self::MOST),
            Self::Given(given) => Buckets::new(given.iter().copied(), max_length),
        }
    }
}

/// Parses `auto`, or lengths with commas between them.
impl FromStr for BucketOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const MOST: usize = 32;
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let lengths = text.split(',').map(|length| match length.trim().parse() {
            Ok(length) if length > 0 => Ok(length),
            _ => Err(format!("`{length}` is no length; expected auto, or lengths such as 16,32,64")),
        });
        let lengths = lengths.collect::<Result<Vec<_>, _>>()?;
        if lengths.len() > MOST {
            return Err(format!("{} lengths; expected {MOST} at most", lengths.len()));
        }
        Ok(Self::Given(lengths))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_lengths_take_the_fewest_tokens_of_all() {
        let texts = [3, 5, 8, 9, 17, 17, 18, 30, 33, 64, 65, 100];
        let tokens = |buckets: &Buckets| texts.iter().map(|text| buckets.of(*text)).sum::<usize>();
        let multiples = (8..=104).step_by(8).collect::<Vec<usize>>();
        let mut fewest = usize::MAX;
        for a in &multiples {
            for b in &multiples {
                fewest = fewest.min(tokens(&Buckets::new([*a, *b, 104], 128)));
            }
        }
        let best = Buckets::best(texts, 128, 3);
        assert_eq!((tokens(&best), best.iter().len(), best.max_length()), (fewest, 4, 128));
        // No more than are of use, and none for nothing.
        assert_eq!(Buckets::best([7, 7, 20], 24, 4).to_string(), "8,24");
        assert_eq!(Buckets::best([], 24, 4), Buckets::one(24));
        assert_eq!(Buckets::best([24], 20, 4), Buckets::one(20));
    }

    #[test]
    fn a_text_goes_with_the_shortest_that_holds_it() {
        let buckets = "32,16,200,16".parse::<BucketOptions>().unwrap().resolve([], 40);
        assert_eq!(buckets.to_string(), "16,32,40");
        assert_eq!([0, 16, 17, 40, 99].map(|tokens| buckets.of(tokens)), [16, 16, 32, 40, 40]);
        assert!(
            ["", "0", "16,", "-1", "x", "auto,8"].iter().all(|text| text.parse::<BucketOptions>().is_err())
        );
    }
}
