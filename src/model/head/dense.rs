//! The recipe's head: Flatten, two dense layers with relu and dropout, and one with softplus.

use serde::{Deserialize, Serialize};

use super::{Head, Layer};
use crate::hlo::Tensor;
use crate::nn::{Dense, Init, Mode, ParamPath, dropout};

/// The sizes of the recipe's head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DenseHeadConfig {
    /// Widths of the hidden dense layers.
    pub hidden: Vec<usize>,
    /// Dropout after each hidden layer while training.
    pub dropout: f64,
    pub num_classes: usize,
}

impl Default for DenseHeadConfig {
    fn default() -> Self {
        Self { hidden: vec![512, 440], dropout: 0.3, num_classes: 4 }
    }
}

impl DenseHeadConfig {
    /// The layers for hidden states `[batch, seq, hidden]`.
    pub(super) fn describe(&self, [seq, hidden]: [usize; 2]) -> Vec<Layer> {
        let mut layers = vec![Layer::new("flatten", format!("[batch, {}]", seq * hidden))];
        for (i, width) in self.hidden.iter().enumerate() {
            let output = format!("[batch, {width}]");
            layers.push(Layer::weighted(format!("{} (relu)", name(i)), &output, name(i)));
            layers.push(Layer::new(format!("dropout_{} ({})", i + 1, self.dropout), output));
        }
        let last = name(self.hidden.len());
        let output = format!("[batch, {}]", self.num_classes);
        layers.push(Layer::weighted(format!("{last} (softplus)"), output, last));
        layers
    }
}

/// As Keras names them: `dense_1`, `dense_2`...
fn name(index: usize) -> String {
    format!("dense_{}", index + 1)
}

pub struct DenseHead<'g> {
    hidden: Vec<Dense<'g>>,
    output: Dense<'g>,
    dropout: f64,
}

impl<'g> DenseHead<'g> {
    /// Declares the dense layers for hidden states `[batch, seq, hidden]`.
    pub fn new([seq, hidden]: [usize; 2], config: &DenseHeadConfig, params: &ParamPath<'_, 'g>) -> Self {
        let inputs = seq * hidden;
        let widths = config.hidden.iter().chain([&config.num_classes]);
        let fan_ins = [&inputs].into_iter().chain(&config.hidden);
        let dense = |(i, (inputs, outputs)): (usize, (&usize, &usize))| {
            Dense::new(*inputs, *outputs, Init::GlorotUniform, params.pp(&name(i)))
        };
        let mut hidden = fan_ins.zip(widths).enumerate().map(dense).collect::<Vec<_>>();
        let output = hidden.remove(hidden.len() - 1);
        Self { hidden, output, dropout: config.dropout }
    }
}

impl<'g> Head<'g> for DenseHead<'g> {
    /// Padding counts as any other token, whatever the mask.
    fn forward(&self, states: Tensor<'g>, _: Option<Tensor<'g>>, mode: &Mode<'g>) -> Tensor<'g> {
        let batch = states.dim(0);
        let mut x = states.reshape(&[batch, states.dim(1) * states.dim(2)]);
        for dense in &self.hidden {
            x = dropout(dense.forward(x).relu(), self.dropout, mode);
        }
        self.output.forward(x).softplus()
    }
}
