//! Where the weights' first values come from.

use std::borrow::Cow;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Normal, StandardNormal, Uniform};
use sha2::{Digest, Sha256};

use super::names::key;
use super::{TensorFiles, WeightsError};
use crate::nn::{Init, Part, Weight};

/// The values of a weight at the start.
pub enum InitialValues<'a> {
    /// As declared; a function of the seed.
    Random { seed: u32 },
    /// The encoder's from the checkpoint, the head's as declared, or also from there if it has one of that name and shape
    /// and `head` is asked for. The pooler is as declared if the checkpoint has none.
    Pretrained { checkpoint: &'a TensorFiles, head: bool, seed: u32 },
    /// All from the checkpoint.
    Trained(&'a TensorFiles),
}

impl InitialValues<'_> {
    /// Row-major values of `weight`.
    ///
    /// # Errors
    /// A weight that the checkpoint should have and lacks, or has in another shape.
    pub fn get(&self, weight: &Weight) -> Result<Cow<'_, [f32]>, WeightsError> {
        match self.source(weight) {
            Source::Tensor(checkpoint, key) => checkpoint.tensor_f32(key, &weight.shape.dims),
            Source::Declaration { seed } => Ok(Cow::Owned(random_values(weight, seed))),
        }
    }

    /// Whether [`get`](Self::get) would find all of `weights`, to be told before a long compilation.
    pub fn check<'w>(&self, weights: impl IntoIterator<Item = &'w Weight>) -> Result<(), WeightsError> {
        for weight in weights {
            if let Source::Tensor(checkpoint, key) = self.source(weight) {
                checkpoint.check(key, &weight.shape.dims)?;
            }
        }
        Ok(())
    }

    /// Whether a weight's values are a checkpoint's, and not as declared.
    pub fn is_taken(&self, weight: &Weight) -> bool {
        matches!(self.source(weight), Source::Tensor(..))
    }

    fn source<'w>(&self, weight: &'w Weight) -> Source<'_, 'w> {
        let key = key(&weight.name);
        match *self {
            Self::Random { seed } => Source::Declaration { seed },
            Self::Trained(checkpoint) => Source::Tensor(checkpoint, key),
            Self::Pretrained { checkpoint, head, seed } => {
                let is_there = match weight.part {
                    Part::Encoder => true,
                    Part::Pooler => checkpoint.shape(key).is_some(),
                    Part::Head => head && checkpoint.shape(key) == Some(&weight.shape.dims),
                };
                if is_there { Source::Tensor(checkpoint, key) } else { Source::Declaration { seed } }
            }
        }
    }
}

/// What gives a weight its values.
enum Source<'a, 'w> {
    /// The tensor of this name.
    Tensor(&'a TensorFiles, &'w str),
    Declaration {
        seed: u32,
    },
}

/// Values by the weight's [`Init`], a function of `seed` and the weight's name alone.
fn random_values(weight: &Weight, seed: u32) -> Vec<f32> {
    let count = weight.shape.num_elements();
    let mut key = Sha256::new();
    key.update(seed.to_le_bytes());
    key.update(weight.name.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(key.finalize().into());
    match weight.init {
        Init::Zeros => vec![0.0; count],
        Init::Ones => vec![1.0; count],
        Init::Normal(deviation) => {
            // Only a deviation that is not finite is refused.
            let normal = Normal::new(0.0, deviation).expect("a finite standard deviation");
            normal.sample_iter(&mut rng).take(count).collect()
        }
        Init::GlorotUniform => {
            let limit = (6.0 / weight.shape.dims.iter().sum::<usize>() as f32).sqrt();
            // Only an empty or infinite range is refused.
            let uniform = Uniform::new(-limit, limit).expect("a finite range");
            uniform.sample_iter(&mut rng).take(count).collect()
        }
        Init::Orthogonal => orthogonal(&weight.shape.dims, StandardNormal.sample_iter(&mut rng)),
        Init::ForgetGate => {
            let units = count / 4;
            (0..count).map(|i| f32::from(u8::from((units..2 * units).contains(&i)))).collect()
        }
    }
}

/// A matrix of these dimensions whose columns are orthogonal and of length 1, or its rows if there are fewer of those: from
/// normal numbers by Gram and Schmidt's process, which makes it uniform among all such (Mezzadri, 2007).
fn orthogonal(dims: &[usize], normal: impl Iterator<Item = f64>) -> Vec<f32> {
    let (rows, columns) = (dims[0], dims[1]);
    let (count, length) = (rows.min(columns), rows.max(columns));
    let normal = normal.take(count * length).collect::<Vec<_>>();
    let mut vectors = Vec::<Vec<f64>>::with_capacity(count);
    for vector in normal.chunks(length) {
        let mut vector = vector.to_vec();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        // Twice is enough against rounding (Kahan).
        for _ in 0..2 {
            for other in &vectors {
                let along = dot(&vector, other);
                vector.iter_mut().zip(other).for_each(|(value, other)| *value -= along * other);
            }
        }
        let norm = dot(&vector, &vector).sqrt();
        vector.iter_mut().for_each(|value| *value /= norm);
        vectors.push(vector);
    }
    let at =
        |row: usize, column: usize| if columns <= rows { vectors[column][row] } else { vectors[row][column] };
    (0..rows)
        .flat_map(|row| (0..columns).map(move |column| (row, column)))
        .map(|(r, c)| at(r, c) as f32)
        .collect()
}
