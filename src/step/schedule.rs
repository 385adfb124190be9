//! How the learning rate goes over a run: transformers' schedules, of the number of steps done.

use serde::{Deserialize, Serialize};

use super::signature::{InputId, Interface};
use crate::hlo::{Comparison, Tensor};
use crate::shape::ElementType;

/// What the learning rate does once it is warm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays (`get_constant_schedule_with_warmup`).
    #[default]
    Constant,
    /// It falls to 0 in a straight line (`get_linear_schedule_with_warmup`).
    Linear,
    /// It falls to 0 along half a cosine (`get_cosine_schedule_with_warmup`).
    Cosine,
}

impl Schedule {
    pub const ALL: [Self; 3] = [Self::Constant, Self::Linear, Self::Cosine];

    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        }
    }

    /// Whether it depends on how many steps there will be.
    pub fn has_end(self) -> bool {
        self != Self::Constant
    }

    /// The share of the learning rate that step `done + 1` takes, of a run of `total` steps of which `warmup` warm up: the
    /// first of those takes 0.
    pub fn factor(self, done: u64, warmup: u64, total: u64) -> f64 {
        if done < warmup {
            return done as f64 / warmup as f64;
        }
        let left = total.saturating_sub(done) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => left,
            Self::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * left).cos()),
        }
    }

    /// The same in a step's program, `f32[]`, for `done` `u32[]`; `None` where it is always 1.
    pub(super) fn build<'g>(
        self,
        interface: &mut Interface<'g>,
        done: Tensor<'g>,
        warms_up: bool,
    ) -> Option<Tensor<'g>> {
        if !warms_up && !self.has_end() {
            return None;
        }
        let mut count = |id| interface.scalar(id, ElementType::F32);
        let warmup = warms_up.then(|| count(InputId::WarmupSteps));
        let total = self.has_end().then(|| count(InputId::TotalSteps));
        let done = done.convert(ElementType::F32);
        let (zero, one) = (done.like(0.0), done.like(1.0));
        let falling = total.map(|total| {
            let left = (total - done).maximum(zero) / (total - warmup.unwrap_or(zero)).maximum(one);
            match self {
                Self::Cosine => (-(left * std::f64::consts::PI).cos() + 1.0) * 0.5,
                Self::Constant | Self::Linear => left,
            }
        });
        let Some(warmup) = warmup else { return falling };
        let is_cold = done.compare(Comparison::Lt, warmup);
        Some(is_cold.select(done / warmup.maximum(one), falling.unwrap_or(one)))
    }
}
