//! Dropout whose masks are a pure function of seed, step, replica and site: nothing random is kept in the state.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::str::FromStr;

use crate::hlo::{Comparison, Graph, Tensor};
use crate::shape::{ElementType, Shape};

/// How the model computes.
pub struct Mode<'g> {
    /// Of the activations, and of the factors of products.
    pub element_type: ElementType,
    /// While it trains.
    pub randomness: Option<Randomness<'g>>,
}

impl Mode<'_> {
    /// Without dropout.
    pub fn inference(element_type: ElementType) -> Self {
        Self { element_type, randomness: None }
    }
}

/// The random bits that decide on one element at a site, of the 32 that are drawn at once: as many sites as they are
/// enough for, of one shape, share a draw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DropoutBits {
    /// Rates are multiples of 1/256.
    Eight,
    /// Of 1/65,536.
    #[default]
    Sixteen,
    ThirtyTwo,
}

impl DropoutBits {
    /// How many these are.
    pub fn count(self) -> u32 {
        match self {
            Self::Eight => 8,
            Self::Sixteen => 16,
            Self::ThirtyTwo => 32,
        }
    }
}

impl FromStr for DropoutBits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "8" => Ok(Self::Eight),
            "16" => Ok(Self::Sixteen),
            "32" => Ok(Self::ThirtyTwo),
            _ => Err("expected 8, 16 or 32".to_owned()),
        }
    }
}

/// A key that each site of the model draws its own random bits from.
pub struct Randomness<'g> {
    /// `u32[4]`.
    key: Tensor<'g>,
    draws: Cell<u32>,
    bits: DropoutBits,
    /// The last draw of each shape, and for how many sites it was enough so far.
    begun: RefCell<HashMap<Vec<usize>, (Tensor<'g>, u32)>>,
}

impl<'g> Randomness<'g> {
    /// A key for this `seed` and `step`, both `u32[]`; another one on each replica.
    pub fn new(graph: &'g Graph, seed: Tensor<'g>, step: Tensor<'g>, bits: DropoutBits) -> Self {
        let mut key = graph.iota(Shape::new(ElementType::U32, [4]), 0);
        for word in [seed, step, graph.replica_id()] {
            key = mix(key + word);
        }
        Self { key, draws: Cell::new(0), bits, begun: RefCell::default() }
    }

    /// The randomness of one part of a step, by its `index` `s32[]`.
    pub fn part(self, index: Tensor<'g>) -> Self {
        Self { key: mix(self.key + index.convert(ElementType::U32)), ..self }
    }

    /// `pred` of `dims`, different at each call: true with a probability of `rate`, rounded to what the bits allow; and that.
    fn is_dropped(&self, dims: &[usize], rate: f64) -> (Tensor<'g>, f64) {
        let count = self.bits.count();
        let mut begun = self.begun.borrow_mut();
        let (draw, site) = match begun.get(dims) {
            Some((draw, used)) if (used + 1) * count <= 32 => (*draw, *used),
            _ => (self.draw(dims), 0),
        };
        begun.insert(dims.to_vec(), (draw, site + 1));
        // This site's bits are moved to the top of the word. Those below them decide nothing: the threshold has none there.
        let bits = if site == 0 { draw } else { draw << f64::from(site * count) };
        let all = 2f64.powi(count as i32);
        let dropped = (rate * all).round().min(all - 1.0);
        let threshold = bits.like(dropped * 2f64.powi(32 - count as i32));
        (bits.compare(Comparison::Lt, threshold), dropped / all)
    }

    /// Random `u32` bits of `dims`, different at each call.
    fn draw(&self, dims: &[usize]) -> Tensor<'g> {
        let draw = self.draws.replace(self.draws.get() + 1);
        let state = self.key ^ f64::from(scramble(draw + 1));
        state.reshape(&[2, 2]).bitcast_convert(ElementType::U64).random_bits(dims)
    }
}

/// Zeroes each element of `x` with probability `rate` and scales the others by `1 / (1 - rate)`
/// (Srivastava et al., 2014). Changes nothing in inference or at rate 0.
pub fn dropout<'g>(x: Tensor<'g>, rate: f64, mode: &Mode<'g>) -> Tensor<'g> {
    let Some(randomness) = mode.randomness.as_ref().filter(|_| rate != 0.0) else { return x };
    x.graph().scope("dropout", || {
        let (is_dropped, rate) = randomness.is_dropped(&x.dims(), rate);
        // By the scale itself, not by what it is rounded to.
        let kept = x.convert(ElementType::F32) * (1.0 / (1.0 - rate));
        is_dropped.select(x.like(0.0), kept.convert(x.shape().element_type))
    })
}

/// The finalizer of MurmurHash3: each input bit changes each output bit half of the time.
fn mix(mut h: Tensor<'_>) -> Tensor<'_> {
    h = (h ^ (h >> 16.0)) * f64::from(0x85eb_ca6b_u32);
    h = (h ^ (h >> 13.0)) * f64::from(0xc2b2_ae35_u32);
    h ^ (h >> 16.0)
}

/// [`mix`] on the host, for the constants of the draws.
fn scramble(mut h: u32) -> u32 {
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}
