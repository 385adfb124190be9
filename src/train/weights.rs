//! Where the weights' first values come from.

use std::borrow::Cow;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Normal, Uniform};
use sha2::{Digest, Sha256};

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::nn::{Init, Weight};
use crate::pjrt::Buffer;
use crate::strategy::Strategy;

/// The values of a weight at the start.
pub enum InitialValues<'a> {
    /// As declared; a function of the seed.
    Random { seed: u32 },
    /// The encoder's from the checkpoint, the head's as declared. So is the pooler, which nothing uses, if the
    /// checkpoint has none.
    Pretrained { checkpoint: &'a Checkpoint, seed: u32 },
    /// All from the checkpoint.
    Trained(&'a Checkpoint),
}

impl InitialValues<'_> {
    /// Row-major values of `weight`.
    ///
    /// # Errors
    /// A weight that the checkpoint should have and lacks, or has in another shape.
    pub fn get(&self, weight: &Weight) -> Result<Cow<'_, [f32]>> {
        match self.source(weight) {
            Source::Tensor(checkpoint, key) => Ok(checkpoint.tensor_f32(key, &weight.shape.dims)?),
            Source::Declaration { seed } => Ok(Cow::Owned(random_values(weight, seed))),
        }
    }

    /// Whether [`get`](Self::get) would find all of `weights`, to be told before a long compilation.
    pub fn check(&self, weights: &[Weight]) -> Result<()> {
        for weight in weights {
            if let Source::Tensor(checkpoint, key) = self.source(weight) {
                checkpoint.check(key, &weight.shape.dims)?;
            }
        }
        Ok(())
    }

    fn source<'w>(&self, weight: &'w Weight) -> Source<'_, 'w> {
        let key = checkpoint_key(&weight.name);
        match *self {
            Self::Random { seed } => Source::Declaration { seed },
            Self::Trained(checkpoint) => Source::Tensor(checkpoint, key),
            Self::Pretrained { checkpoint, seed } => {
                let is_encoder = weight.name.starts_with("bert.");
                let may_lack = weight.name.starts_with("bert.pooler.") && checkpoint.shape(key).is_none();
                match is_encoder && !may_lack {
                    true => Source::Tensor(checkpoint, key),
                    false => Source::Declaration { seed },
                }
            }
        }
    }
}

/// What gives a weight its values.
enum Source<'a, 'w> {
    /// The tensor of this name.
    Tensor(&'a Checkpoint, &'w str),
    Declaration {
        seed: u32,
    },
}

/// The name under which a [`Checkpoint`] keeps a weight: without the model's prefix.
pub fn checkpoint_key(name: &str) -> &str {
    name.strip_prefix("bert.").unwrap_or(name)
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
    }
}

/// Puts `weights` on every local replica: `[local replica][weight]`.
pub fn upload_weights(
    strategy: &Strategy,
    weights: &[Weight],
    values: &InitialValues<'_>,
) -> Result<Vec<Vec<Buffer>>> {
    let mut replicas =
        (0..strategy.local_replicas()).map(|_| Vec::with_capacity(weights.len())).collect::<Vec<_>>();
    for weight in weights {
        let buffers = strategy.mirror(&values.get(weight)?, &weight.shape.dims)?;
        replicas.iter_mut().zip(buffers).for_each(|(replica, buffer)| replica.push(buffer));
    }
    Ok(replicas)
}
