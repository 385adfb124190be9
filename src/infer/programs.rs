//! Running a compiled evaluation, prediction or encoding over a data set.

use std::ops::ControlFlow;

use super::upload::{MeetInput, upload_batch};
use crate::data::{Dataset, Order};
use crate::exec::{Error, Executable, Outputs, Pending, Replicas, Result, State};
use crate::hlo::Graph;
use crate::step::{
    EncodeConfig, InputId, OutputId, Signature, Step, StepConfig, encode_step, eval_step, predict_step,
};

/// What a model says of a labelled data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean over the examples, in nats.
    pub loss: f64,
    /// The share of examples whose most probable class is their label: Keras' accuracy, which looks at all classes,
    /// those without a label too.
    pub accuracy: f64,
    /// `[examples, classes]`, row-major.
    pub probabilities: Vec<f32>,
}

/// A compiled [`eval_step`].
pub struct EvalProgram(Runner);

/// A compiled [`predict_step`].
pub struct PredictProgram(Runner);

/// A compiled [`encode_step`].
pub struct EncodeProgram(Runner);

impl EvalProgram {
    pub fn compile(replicas: &Replicas, config: &StepConfig) -> Result<Self> {
        Ok(Self(Runner::compile(replicas, eval_step(&Graph::new(), config), config.rows)?))
    }

    /// Loss, accuracy and probabilities on `data`. `weights` is any state that has the model's weights.
    ///
    /// Before each batch, `asks` says whether this host asks all hosts to meet. Once one has, in all hosts after the same
    /// batch, there is no evaluation.
    pub fn evaluate(
        &self,
        replicas: &Replicas,
        weights: &State,
        data: &Dataset<'_>,
        asks: &dyn Fn() -> bool,
    ) -> Result<Option<Evaluation>> {
        let (mut loss, mut correct, mut probabilities) = (0.0, 0.0, Vec::new());
        let end = self.0.run(replicas, weights, data, asks, |rows, mut outputs| {
            let metrics = outputs.take(&OutputId::Metrics);
            if metrics[2] > 0.0 {
                return Ok::<_, Error>(ControlFlow::Break(()));
            }
            loss += f64::from(metrics[0]);
            correct += f64::from(metrics[1]);
            probabilities.extend(self.0.real_rows(rows, outputs.take(&OutputId::Probabilities)));
            Ok(ControlFlow::Continue(()))
        })?;
        let examples = data.len() as f64;
        let evaluation = Evaluation { loss: loss / examples, accuracy: correct / examples, probabilities };
        Ok(end.is_continue().then_some(evaluation))
    }
}

impl PredictProgram {
    pub fn compile(replicas: &Replicas, config: &StepConfig) -> Result<Self> {
        Ok(Self(Runner::compile(replicas, predict_step(&Graph::new(), config), config.rows)?))
    }

    /// Class probabilities, a batch at a time in the order of `data`: `each` is given those of the batch's rows,
    /// row-major.
    pub fn predict<E: From<Error>>(
        &self,
        replicas: &Replicas,
        weights: &State,
        data: &Dataset<'_>,
        each: impl FnMut(Vec<f32>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.0.run_for(&OutputId::Probabilities, replicas, weights, data, each)
    }
}

impl EncodeProgram {
    /// For `rows` texts on each replica.
    pub fn compile(replicas: &Replicas, config: &EncodeConfig, rows: usize) -> Result<Self> {
        let graph = Graph::new();
        Ok(Self(Runner::compile(replicas, encode_step(&graph, config, rows, replicas.count()), rows)?))
    }

    pub fn signature(&self) -> &Signature {
        self.0.executable.signature()
    }

    /// Hidden states `[rows, max_length, hidden]`, a batch at a time in the order of `data`.
    pub fn encode<E: From<Error>>(
        &self,
        replicas: &Replicas,
        weights: &State,
        data: &Dataset<'_>,
        each: impl FnMut(Vec<f32>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.0.run_for(&OutputId::HiddenStates, replicas, weights, data, each)
    }
}

/// A compiled step, and the rows that it takes at a time.
struct Runner {
    executable: Executable,
    /// Over all replicas.
    batch_size: usize,
    /// Of a step that takes it.
    meet: Option<MeetInput>,
}

impl Runner {
    fn compile(replicas: &Replicas, step: Step<'_>, rows: usize) -> Result<Self> {
        let executable = Executable::compile(replicas, step)?;
        let takes = executable.signature().takes(&InputId::Meet);
        let meet = takes.then(|| MeetInput::new(replicas)).transpose()?;
        Ok(Self { executable, batch_size: rows * replicas.count(), meet })
    }

    /// The values of a batch's first `rows` rows: the others only fill it up.
    fn real_rows(&self, rows: usize, mut values: Vec<f32>) -> Vec<f32> {
        values.truncate(rows * (values.len() / self.batch_size));
        values
    }

    /// [`run`](Self::run) for a single output.
    fn run_for<E: From<Error>>(
        &self,
        output: &OutputId,
        replicas: &Replicas,
        weights: &State,
        data: &Dataset<'_>,
        mut each: impl FnMut(Vec<f32>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let end = self.run(replicas, weights, data, &|| false, |rows, mut outputs| {
            each(self.real_rows(rows, outputs.take(output)))?;
            Ok(ControlFlow::Continue(()))
        });
        end.map(|_| ())
    }

    /// Runs each batch, one ahead of the reading, and hands the number of its real rows and its outputs to `each`. When
    /// that breaks, the batch that is queued already ends first. A step that takes it is told before each batch whether
    /// this host `asks` all hosts to meet.
    fn run<E: From<Error>>(
        &self,
        replicas: &Replicas,
        weights: &State,
        data: &Dataset<'_>,
        asks: &dyn Fn() -> bool,
        mut each: impl FnMut(usize, Outputs) -> std::result::Result<ControlFlow<()>, E>,
    ) -> std::result::Result<ControlFlow<()>, E> {
        let mut ahead: Option<(usize, Pending)> = None;
        for batch in data.batches(self.batch_size, Order::Sequential) {
            let asks = asks();
            if asks && !replicas.is_shared() {
                return Ok(ControlFlow::Break(()));
            }
            let uploaded = upload_batch(replicas, self.executable.signature(), &batch)?;
            let mut inputs = vec![&uploaded];
            inputs.extend(self.meet.as_ref().map(|meet| meet.when(asks)));
            let next = (batch.rows.len(), self.executable.query(replicas, weights, &inputs)?);
            if let Some((rows, done)) = ahead.replace(next)
                && each(rows, done.wait()?)?.is_break()
            {
                ahead.map(|(_, last)| last.wait()).transpose()?;
                return Ok(ControlFlow::Break(()));
            }
        }
        ahead.map_or(Ok(ControlFlow::Continue(())), |(rows, last)| each(rows, last.wait()?))
    }
}
