//! The recipe's head: Flatten, two dense layers with relu and dropout, and one with softplus.

use serde::{Deserialize, Serialize};

use super::{Encoded, Head, Layer, Scores};
use crate::hlo::Tensor;
use crate::nn::{Dense, FlattenDense, Init, Mode, ParamPath, dropout};

/// The sizes of the recipe's dense layers, whatever they come after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DenseHeadConfig {
    /// Widths of the hidden dense layers.
    pub hidden: Vec<usize>,
    /// Dropout after each hidden layer while training.
    pub dropout: f64,
    pub num_classes: usize,
    /// Of the last layer.
    #[serde(default, skip_serializing_if = "OutputActivation::is_recipes")]
    pub activation: OutputActivation,
}

/// What makes positive scores of the last dense layer's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputActivation {
    /// The recipe's.
    #[default]
    Softplus,
    Softmax,
}

impl OutputActivation {
    /// Settings of runs that know no other don't name it.
    fn is_recipes(&self) -> bool {
        *self == Self::default()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Softplus => "softplus",
            Self::Softmax => "softmax",
        }
    }
}

impl Default for DenseHeadConfig {
    fn default() -> Self {
        Self { hidden: vec![512, 440], dropout: 0.3, num_classes: 4, activation: OutputActivation::default() }
    }
}

impl DenseHeadConfig {
    /// The layers for hidden states `[batch, seq, hidden]`.
    pub(super) fn describe(&self, [seq, hidden]: [usize; 2]) -> Vec<Layer> {
        let flatten = Layer::new("flatten", format!("[batch, {}]", seq * hidden));
        [flatten].into_iter().chain(self.describe_layers()).collect()
    }

    /// The dense layers alone.
    pub(super) fn describe_layers(&self) -> Vec<Layer> {
        let mut layers = vec![];
        for (i, width) in self.hidden.iter().enumerate() {
            let output = format!("[batch, {width}]");
            layers.push(Layer::weighted(format!("{} (relu)", name(i)), &output, name(i)));
            layers.push(Layer::new(format!("dropout_{} ({})", i + 1, self.dropout), output));
        }
        let last = name(self.hidden.len());
        let output = format!("[batch, {}]", self.num_classes);
        layers.push(Layer::weighted(format!("{last} ({})", self.activation.name()), output, last));
        layers
    }
}

/// As Keras names them: `dense_1`, `dense_2`...
fn name(index: usize) -> String {
    format!("dense_{}", index + 1)
}

/// The dense layers after the first one, of which they take sums `[batch, width]`.
pub(super) struct DenseLayers<'g> {
    layers: Vec<Dense<'g>>,
    dropout: f64,
    activation: OutputActivation,
}

impl<'g> DenseLayers<'g> {
    /// Declares the first by `first`, which is given its width and its place, and the others.
    pub fn new<First>(
        config: &DenseHeadConfig,
        params: &ParamPath<'_, 'g>,
        first: impl FnOnce(usize, ParamPath<'_, 'g>) -> First,
    ) -> (First, Self) {
        let widths = config.hidden.iter().chain([&config.num_classes]).copied().collect::<Vec<_>>();
        let first = first(widths[0], params.pp(&name(0)));
        let layer = |i: usize| Dense::new(widths[i - 1], widths[i], Init::GlorotUniform, params.pp(&name(i)));
        let layers = (1..widths.len()).map(layer).collect();
        (first, Self { layers, dropout: config.dropout, activation: config.activation })
    }

    /// From the sums of the first to scores.
    pub fn forward(&self, mut sums: Tensor<'g>, mode: &Mode<'g>) -> Scores<'g> {
        for dense in &self.layers {
            sums = dense.sums(dropout(sums.convert(mode.element_type).relu(), self.dropout, mode));
        }
        Scores::Positive(match self.activation {
            OutputActivation::Softplus => sums.softplus(),
            OutputActivation::Softmax => sums.softmax(),
        })
    }
}

pub(super) struct DenseHead<'g> {
    first: FlattenDense<'g>,
    others: DenseLayers<'g>,
}

impl<'g> DenseHead<'g> {
    /// Declares the dense layers for hidden states `[batch, seq, hidden]`.
    pub fn new(states: [usize; 2], config: &DenseHeadConfig, params: &ParamPath<'_, 'g>) -> Self {
        let first =
            |width, params: ParamPath<'_, 'g>| FlattenDense::new(states, width, Init::GlorotUniform, params);
        let (first, others) = DenseLayers::new(config, params, first);
        Self { first, others }
    }
}

impl<'g> Head<'g> for DenseHead<'g> {
    /// What stands for padding counts as any other token, whatever the mask.
    fn forward(&self, Encoded { states, .. }: Encoded<'_, 'g>, mode: &Mode<'g>) -> Scores<'g> {
        self.others.forward(self.first.sums(states), mode)
    }
}
