//! The recipe author's other heads: an LSTM over the hidden states, or one in each direction, then the dense layers.

use serde::{Deserialize, Serialize};

use super::dense::{DenseHeadConfig, DenseLayers};
use super::{Encoded, Head, Layer, Scores};
use crate::nn::{Dense, Init, Lstm, Mode, ParamPath};

/// The sizes of an LSTM and of what comes after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LstmHeadConfig {
    /// Of each direction.
    pub units: usize,
    #[serde(flatten)]
    pub dense: DenseHeadConfig,
}

/// Where the weights of the directions are: of one, and of both.
const ONE: [(&str, bool); 1] = [("lstm", false)];
const BOTH: [(&str, bool); 2] = [("forward_lstm", false), ("backward_lstm", true)];

fn directions(is_both: bool) -> &'static [(&'static str, bool)] {
    if is_both { &BOTH } else { &ONE }
}

impl LstmHeadConfig {
    pub(super) fn describe(&self, is_both: bool) -> Vec<Layer> {
        let output = format!("[batch, {}]", self.units);
        let lstm = directions(is_both).iter().map(|(name, _)| Layer::weighted(*name, &output, *name));
        let concatenated = Layer::new("concatenate", format!("[batch, {}]", 2 * self.units));
        lstm.chain(is_both.then_some(concatenated)).chain(self.dense.describe_layers()).collect()
    }
}

pub(super) struct LstmHead<'g> {
    lstm: Vec<Lstm<'g>>,
    first: Dense<'g>,
    others: DenseLayers<'g>,
}

impl<'g> LstmHead<'g> {
    /// Declares the layers for hidden states `[batch, seq, hidden]`.
    pub fn new(hidden: usize, config: &LstmHeadConfig, is_both: bool, params: &ParamPath<'_, 'g>) -> Self {
        let LstmHeadConfig { units, dense } = config;
        let lstm = |(name, reversed): &(&str, bool)| Lstm::new(hidden, *units, *reversed, params.pp(name));
        let lstm = directions(is_both).iter().map(lstm).collect::<Vec<_>>();
        let inputs = units * lstm.len();
        let first = |width, params: ParamPath<'_, 'g>| Dense::new(inputs, width, Init::GlorotUniform, params);
        let (first, others) = DenseLayers::new(dense, params, first);
        Self { lstm, first, others }
    }
}

impl<'g> Head<'g> for LstmHead<'g> {
    /// Padding that a mask hides leaves the states as they are; without a mask, it counts as any other token.
    fn forward(&self, Encoded { states, mask, .. }: Encoded<'_, 'g>, mode: &Mode<'g>) -> Scores<'g> {
        let last = self.lstm.iter().map(|lstm| states.graph().scope("lstm", || lstm.forward(states, mask)));
        let last = last.collect::<Vec<_>>();
        self.others.forward(self.first.sums(states.graph().concatenate(&last, 1)), mode)
    }
}
