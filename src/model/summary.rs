//! The model layer by layer, as Keras' `model.summary()` prints it.

use std::fmt::Write;

use super::{ClassifierConfig, ENCODER};
use crate::nn::{Part, Weight};

/// A row of the model's summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub name: String,
    /// The shape of what comes out.
    pub output: String,
    /// Where its weights are in the tree of names; `None` for a layer without any.
    pub weights: Option<String>,
}

impl Layer {
    /// A layer without weights.
    pub fn new(name: impl Into<String>, output: impl Into<String>) -> Self {
        Self { name: name.into(), output: output.into(), weights: None }
    }

    /// A layer with weights under the name `weights`.
    pub fn weighted(name: impl Into<String>, output: impl Into<String>, weights: impl Into<String>) -> Self {
        Self { weights: Some(weights.into()), ..Self::new(name, output) }
    }
}

impl ClassifierConfig {
    /// The table of layers, output shapes and parameter counts, and the total.
    pub fn summary(&self) -> String {
        let weights = self.weights();
        let count = |is_counted: &dyn Fn(&Weight) -> bool| {
            let counted = weights.iter().filter(|weight| is_counted(weight));
            counted.map(|weight| weight.shape.num_elements()).sum::<usize>()
        };
        let mut text =
            format!("{:<34} {:<22} {:>14}\n{}\n", "Layer", "Output shape", "Param #", "=".repeat(72));
        for Layer { name, output, weights } in self.layers() {
            let prefix = weights.map(|name| format!("{name}."));
            let is_own = |weight: &Weight| prefix.as_ref().is_some_and(|own| weight.name.starts_with(own));
            let _ = writeln!(text, "{name:<34} {output:<22} {:>14}", thousands(count(&is_own)));
        }
        let (total, pooler) = (count(&|_| true), count(&|weight| weight.part == Part::Pooler));
        let unused = if self.head.uses_pooler() { 0 } else { pooler };
        let _ = write!(
            text,
            "{}\nTotal params: {}\nTrained by the loss: {}",
            "=".repeat(72),
            thousands(total),
            thousands(total - unused)
        );
        if unused > 0 {
            let _ = write!(text, "\nKept for the checkpoint, unused (pooler): {}", thousands(unused));
        }
        text
    }

    fn layers(&self) -> Vec<Layer> {
        let (seq, hidden) = (self.max_length, self.bert.hidden_size);
        let states = format!("[batch, {seq}, {hidden}]");
        let encoder = |name: &str, output: &str| {
            let name = format!("{ENCODER}.{name}");
            Layer::weighted(name.clone(), output, name)
        };
        let mut layers =
            vec![Layer::new("input_ids", format!("s32[batch, {seq}]")), encoder("embeddings", &states)];
        layers.extend(
            (0..self.bert.num_hidden_layers).map(|i| encoder(&format!("encoder.layer.{i}"), &states)),
        );
        let pooled = format!("[batch, {hidden}]");
        layers.push(encoder("pooler", if self.head.uses_pooler() { &pooled } else { "(unused)" }));
        layers.extend(self.head.describe([seq, hidden]));
        layers
    }
}

/// `233131676` as `233,131,676`.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
