//! What is committed at once.

use serde_json::{Value, json};

use super::card::{Card, Provenance};
use super::description::describe;
use super::layout::{
    ACCURACY_CHART, CARD, CONFIG, DEV_PREDICTIONS, HISTORY, LOSS_CHART, MOMENTS, PROGRESS, TOKENIZER, WEIGHTS,
};
use super::predictions::DevPredictions;
use super::progress::Progress;
use super::{Error, Result};
use crate::data::{LabelMap, Tokenizer};
use crate::model::ClassifierConfig;
use crate::report::{History, accuracy_chart, loss_chart};
use crate::shape::{ElementType, Shape};
use crate::storage::{Commit, Logged, Manifest};
use crate::weights::write_safetensors;

/// What a run says of its model: the same at each commit.
pub struct Description {
    config: String,
    tokenizer: String,
    card: Card,
}

impl Description {
    /// Of a model that is trained from one whose `config.json` holds `original`.
    pub fn new(
        original: &Value,
        tokenizer: &Tokenizer,
        model: &ClassifierConfig,
        labels: &LabelMap,
        provenance: Provenance,
    ) -> Result<Self> {
        let config = describe(original.clone(), model, labels);
        Ok(Self {
            config: format!("{config:#}\n"),
            tokenizer: tokenizer.to_json()?,
            card: Card::new(model, labels, tokenizer, provenance),
        })
    }
}

/// A named array of f32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<usize>,
    pub values: Vec<f32>,
}

/// All that is committed at once.
pub struct Snapshot<'a> {
    pub progress: Progress,
    pub history: History,
    /// Of a whole epoch's end: from then on, readers are given its model.
    pub predictions: Option<DevPredictions<'a>>,
    pub weights: Vec<Tensor>,
    /// Of the trained weights: the gradients' running means, and those of their squares.
    pub moments: [Vec<Tensor>; 2],
    /// Files that grow beside the checkpoints, as far as they tell of what led to this one.
    pub logs: Vec<Logged>,
}

impl Snapshot<'_> {
    /// # Errors
    /// Values that are no numbers.
    pub(super) fn check_finite(&self) -> Result<()> {
        let [first, second] = &self.moments;
        let mut tensors = self.weights.iter().chain(first).chain(second);
        match tensors.find(|tensor| !tensor.values.iter().all(|value| value.is_finite())) {
            Some(tensor) => Err(Error::NotFinite { tensor: tensor.name.clone(), step: self.progress.step }),
            None => Ok(()),
        }
    }

    /// Writes all files of a checkpoint.
    pub(super) fn write(&self, mut commit: Commit, description: &Description) -> Result<Manifest> {
        let Snapshot { progress, history, predictions, weights, moments: [first, second], logs: _ } = self;
        let mut add = |name: &str, bytes: &[u8]| commit.write(name, |writer| Ok(writer.write_all(bytes)?));
        // By the first file, one that is cut short is known to be ours.
        add(PROGRESS, format!("{:#}\n", json!(progress)).as_bytes())?;
        add(CONFIG, description.config.as_bytes())?;
        add(TOKENIZER, description.tokenizer.as_bytes())?;
        add(HISTORY, history.to_lines().as_bytes())?;
        if let Some(predictions) = predictions {
            add(LOSS_CHART, &loss_chart(history.epochs())?)?;
            add(ACCURACY_CHART, &accuracy_chart(history.epochs())?)?;
            add(CARD, description.card.text(progress, history, predictions.rows.len()).as_bytes())?;
            commit.write(DEV_PREDICTIONS, |writer| Ok(predictions.write(writer)?))?;
        }
        for (name, tensors) in [(WEIGHTS, weights), (MOMENTS[0], first), (MOMENTS[1], second)] {
            let shape = |tensor: &Tensor| Shape::new(ElementType::F32, tensor.dims.clone());
            let names = tensors.iter().map(|tensor| (tensor.name.clone(), shape(tensor))).collect::<Vec<_>>();
            // transformers looks for this to know which library's layout it is.
            let metadata = [("format", "pt")];
            commit.write(name, |writer| {
                write_safetensors(writer, &names, &metadata, |i, writer| {
                    Ok(writer.write_all(bytemuck::cast_slice(&tensors[i].values))?)
                })
            })?;
        }
        Ok(commit.finish()?)
    }
}
