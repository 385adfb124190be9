//! Dropout whose masks are a pure function of seed, step, replica and site: nothing random is kept in the state.

use std::cell::Cell;

use crate::hlo::{Comparison, Graph, Tensor};
use crate::shape::{ElementType, Shape};

/// Whether the model trains, with what randomness, or only answers.
pub enum Mode<'g> {
    Train(Randomness<'g>),
    Inference,
}

/// A key that each site of the model draws its own random bits from.
pub struct Randomness<'g> {
    /// `u32[4]`.
    key: Tensor<'g>,
    sites: Cell<u32>,
}

impl<'g> Randomness<'g> {
    /// A key for this `seed` and `step`, both `u32[]`; another one on each replica.
    pub fn new(graph: &'g Graph, seed: Tensor<'g>, step: Tensor<'g>) -> Self {
        let mut key = graph.iota(Shape::new(ElementType::U32, [4]), 0);
        for word in [seed, step, graph.replica_id()] {
            key = mix(key + word);
        }
        Self { key, sites: Cell::new(0) }
    }

    /// The randomness of one part of a step, by its `index` `s32[]`.
    pub fn part(self, index: Tensor<'g>) -> Self {
        Self { key: mix(self.key + index.convert(ElementType::U32)), ..self }
    }

    /// Random `u32` bits of `dims`, different at each call.
    fn bits(&self, dims: &[usize]) -> Tensor<'g> {
        let site = self.sites.replace(self.sites.get() + 1);
        let state = self.key ^ f64::from(scramble(site + 1));
        state.reshape(&[2, 2]).bitcast_convert(ElementType::U64).random_bits(dims)
    }
}

/// Zeroes each element of `x` with probability `rate` and scales the others by `1 / (1 - rate)`
/// (Srivastava et al., 2014). Changes nothing in inference or at rate 0.
pub fn dropout<'g>(x: Tensor<'g>, rate: f64, mode: &Mode<'g>) -> Tensor<'g> {
    let Mode::Train(randomness) = mode else { return x };
    if rate == 0.0 {
        return x;
    }
    x.graph().scope("dropout", || {
        let bits = randomness.bits(&x.dims());
        let threshold = bits.like((rate * 2f64.powi(32)).round());
        bits.compare(Comparison::Ge, threshold).select(x * (1.0 / (1.0 - rate)), x.like(0.0))
    })
}

/// The finalizer of MurmurHash3: each input bit changes each output bit half of the time.
fn mix(mut h: Tensor<'_>) -> Tensor<'_> {
    h = (h ^ (h >> 16.0)) * f64::from(0x85eb_ca6b_u32);
    h = (h ^ (h >> 13.0)) * f64::from(0xc2b2_ae35_u32);
    h ^ (h >> 16.0)
}

/// [`mix`] on the host, for the constants of the sites.
fn scramble(mut h: u32) -> u32 {
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}
