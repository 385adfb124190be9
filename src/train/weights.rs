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

/// The values of one weight at the start: from the checkpoint if it has the weight, otherwise as declared.
pub struct InitialValues<'a> {
    pub checkpoint: Option<&'a Checkpoint>,
    pub seed: u64,
}

impl InitialValues<'_> {
    /// Row-major values of `weight`.
    ///
    /// # Errors
    /// A weight of the encoder that the checkpoint lacks, or has in another shape.
    pub fn get(&self, weight: &Weight) -> Result<Cow<'_, [f32]>> {
        match self.checkpoint {
            Some(checkpoint) if checkpoint_holds(checkpoint, weight) => {
                Ok(checkpoint.tensor_f32(checkpoint_key(&weight.name), &weight.shape.dims)?)
            }
            _ => Ok(Cow::Owned(random_values(weight, self.seed))),
        }
    }
}

/// The name under which a [`Checkpoint`] keeps a weight: without the model's prefix.
pub fn checkpoint_key(name: &str) -> &str {
    name.strip_prefix("bert.").unwrap_or(name)
}

/// The encoder must be in a checkpoint; the head may start fresh, and so may the pooler, which nothing uses.
fn checkpoint_holds(checkpoint: &Checkpoint, weight: &Weight) -> bool {
    let required = weight.name.starts_with("bert.") && !weight.name.starts_with("bert.pooler.");
    required || checkpoint.shape(checkpoint_key(&weight.name)).is_some()
}

/// Values by the weight's [`Init`], a function of `seed` and the weight's name alone.
fn random_values(weight: &Weight, seed: u64) -> Vec<f32> {
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

/// Puts `weights` on every replica: `[replica][weight]`.
pub fn upload_weights(
    strategy: &Strategy,
    weights: &[Weight],
    values: &InitialValues<'_>,
) -> Result<Vec<Vec<Buffer>>> {
    let mut replicas =
        (0..strategy.replicas()).map(|_| Vec::with_capacity(weights.len())).collect::<Vec<_>>();
    for weight in weights {
        let buffers = strategy.mirror(&values.get(weight)?, &weight.shape.dims)?;
        replicas.iter_mut().zip(buffers).for_each(|(replica, buffer)| replica.push(buffer));
    }
    Ok(replicas)
}
