//! The recipe's head: Flatten, two dense layers with relu and dropout, and one with softplus.

use serde::{Deserialize, Serialize};

use crate::hlo::Tensor;
use crate::nn::{Dense, Init, Mode, ParamPath, dropout};

/// The head's sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadConfig {
    /// Widths of the hidden dense layers.
    pub hidden: Vec<usize>,
    /// Dropout after each hidden layer while training.
    pub dropout: f64,
    pub num_classes: usize,
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self { hidden: vec![512, 440], dropout: 0.3, num_classes: 4 }
    }
}

pub struct Head<'g> {
    hidden: Vec<Dense<'g>>,
    output: Dense<'g>,
    dropout: f64,
}

impl<'g> Head<'g> {
    /// Declares `dense_1`, `dense_2`..., as Keras names them, for `inputs` = `seq * hidden` features.
    pub fn new(inputs: usize, config: &HeadConfig, params: ParamPath<'_, 'g>) -> Self {
        let widths = config.hidden.iter().chain([&config.num_classes]);
        let fan_ins = [&inputs].into_iter().chain(&config.hidden);
        let dense = |(i, (inputs, outputs)): (usize, (&usize, &usize))| {
            Dense::new(*inputs, *outputs, Init::GlorotUniform, params.pp(&format!("dense_{}", i + 1)))
        };
        let mut hidden = fan_ins.zip(widths).enumerate().map(dense).collect::<Vec<_>>();
        let output = hidden.remove(hidden.len() - 1);
        Self { hidden, output, dropout: config.dropout }
    }

    /// Hidden states `[batch, seq, hidden]` to positive, unnormalized class scores `[batch, classes]`.
    pub fn forward(&self, states: Tensor<'g>, mode: &Mode<'g>) -> Tensor<'g> {
        let batch = states.dim(0);
        let mut x = states.reshape(&[batch, states.dim(1) * states.dim(2)]);
        for dense in &self.hidden {
            x = dropout(dense.forward(x).relu(), self.dropout, mode);
        }
        self.output.forward(x).softplus()
    }
}
