//! Running a compiled evaluation or prediction over a data set.

use super::step::{Step, StepConfig, encode_step, eval_step, predict_step};
use crate::data::{Batch, Dataset, Order};
use crate::error::Result;
use crate::hlo::Graph;
use crate::model::BertConfig;
use crate::nn::Weight;
use crate::pjrt::{Argument, Buffer, Completion, Execution, LoadedExecutable, PendingRead};
use crate::strategy::Strategy;

/// What a model says of a labelled data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean over the examples, in nats.
    pub loss: f64,
    /// The share of examples whose most probable class is their label.
    pub accuracy: f64,
    /// `[examples, classes]`, row-major.
    pub probabilities: Vec<f32>,
}

/// A compiled program without training, and the rows that it takes at a time.
pub struct Inference {
    executable: LoadedExecutable,
    weights: Vec<Weight>,
    /// Over all replicas.
    batch_size: usize,
}

impl Inference {
    /// Compiles [`eval_step`].
    pub fn for_evaluation(strategy: &Strategy, config: &StepConfig) -> Result<Self> {
        let graph = Graph::new();
        Self::compile(strategy, eval_step(&graph, config), config.batch_size)
    }

    /// Compiles [`predict_step`].
    pub fn for_prediction(strategy: &Strategy, config: &StepConfig) -> Result<Self> {
        let graph = Graph::new();
        Self::compile(strategy, predict_step(&graph, config), config.batch_size)
    }

    /// Compiles [`encode_step`] for `batch_size` rows per replica.
    pub fn for_encoding(
        strategy: &Strategy,
        config: &BertConfig,
        batch_size: usize,
        max_length: usize,
        mask: bool,
    ) -> Result<Self> {
        let graph = Graph::new();
        let step = encode_step(&graph, config, batch_size, max_length, mask, strategy.replicas());
        Self::compile(strategy, step, batch_size)
    }

    fn compile(strategy: &Strategy, step: Step<'_>, rows_per_replica: usize) -> Result<Self> {
        let executable = strategy.compile(&step.program)?;
        Ok(Self { executable, weights: step.weights, batch_size: rows_per_replica * strategy.replicas() })
    }

    /// The weights that it takes, in order.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// Loss, accuracy and probabilities on `data`, for a compiled [`eval_step`]. `weights` is
    /// `[local replica][weight]`.
    pub fn evaluate(
        &self,
        strategy: &Strategy,
        weights: &[&[Buffer]],
        data: &Dataset<'_>,
    ) -> Result<Evaluation> {
        let (mut loss, mut correct, mut probabilities) = (0.0, 0.0, Vec::new());
        self.run(strategy, weights, data, true, |rows, mut outputs| {
            loss += f64::from(outputs[0][0]);
            correct += f64::from(outputs[0][1]);
            probabilities.extend(self.real_rows(rows, outputs.remove(1)));
            Ok(())
        })?;
        let examples = data.len() as f64;
        Ok(Evaluation { loss: loss / examples, accuracy: correct / examples, probabilities })
    }

    /// The one output of a compiled [`predict_step`] or [`encode_step`], a batch at a time in the order of `data`:
    /// `each` is given the values of the batch's rows, row-major.
    pub fn predict(
        &self,
        strategy: &Strategy,
        weights: &[&[Buffer]],
        data: &Dataset<'_>,
        mut each: impl FnMut(Vec<f32>) -> Result<()>,
    ) -> Result<()> {
        self.run(strategy, weights, data, false, |rows, mut outputs| {
            each(self.real_rows(rows, outputs.remove(0)))
        })
    }

    /// The values of a batch's first `rows` rows: the others only fill it up.
    fn real_rows(&self, rows: usize, mut values: Vec<f32>) -> Vec<f32> {
        values.truncate(rows * (values.len() / self.batch_size));
        values
    }

    /// Runs each batch, one ahead of the reading, and hands the number of its real rows and its outputs to `each`:
    /// those of one local replica, since all replicas return the same.
    fn run(
        &self,
        strategy: &Strategy,
        weights: &[&[Buffer]],
        data: &Dataset<'_>,
        labelled: bool,
        mut each: impl FnMut(usize, Vec<Vec<f32>>) -> Result<()>,
    ) -> Result<()> {
        let mut ahead: Option<Pending> = None;
        for batch in data.batches(self.batch_size, Order::Sequential) {
            let next = self.launch(strategy, weights, &batch, labelled)?;
            if let Some(done) = ahead.replace(next) {
                each(done.rows, done.wait()?)?;
            }
        }
        ahead.map_or(Ok(()), |last| each(last.rows, last.wait()?))
    }

    fn launch(
        &self,
        strategy: &Strategy,
        weights: &[&[Buffer]],
        batch: &Batch,
        labelled: bool,
    ) -> Result<Pending> {
        let inputs = strategy.upload_batch(batch, labelled)?;
        let arguments = weights.iter().zip(&inputs);
        let arguments =
            arguments.map(|(weights, inputs)| weights.iter().chain(inputs).map(Argument::Borrow).collect());
        let Execution { outputs, completion } = self.executable.execute_async(arguments.collect())?;
        let outputs = outputs[0].iter().map(Buffer::read).collect::<std::result::Result<_, _>>()?;
        Ok(Pending { rows: batch.rows.len(), outputs, completion })
    }
}

/// A batch that the device works on.
struct Pending {
    rows: usize,
    outputs: Vec<PendingRead<f32>>,
    completion: Completion,
}

impl Pending {
    fn wait(self) -> Result<Vec<Vec<f32>>> {
        self.completion.wait()?;
        Ok(self.outputs.into_iter().map(PendingRead::wait).collect::<std::result::Result<_, _>>()?)
    }
}
