//! Running a compiled evaluation, prediction or encoding over a data set.

use std::collections::BTreeMap;
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

/// An [`eval_step`], compiled for texts of some lengths.
pub struct EvalProgram(Runner);

/// A [`predict_step`], compiled for texts of some lengths.
pub struct PredictProgram(Runner);

/// A compiled [`encode_step`].
pub struct EncodeProgram(Runner);

impl EvalProgram {
    /// For no length yet.
    pub fn new(config: StepConfig) -> Self {
        Self(Runner::of_lengths(config, eval_step))
    }

    /// For the length that `config` has.
    pub fn compile(replicas: &Replicas, config: &StepConfig) -> Result<Self> {
        let mut program = Self::new(config.clone());
        program.add(replicas, &[config.length])?;
        Ok(program)
    }

    /// Compiles it for those of `lengths` that it [`lacks`](Self::lacks).
    pub fn add(&mut self, replicas: &Replicas, lengths: &[usize]) -> Result<()> {
        self.0.add(replicas, lengths)
    }

    /// Whether it wasn't compiled for all of `lengths`.
    pub fn lacks(&self, lengths: &[usize]) -> bool {
        self.0.lacks(lengths)
    }

    /// Loss, accuracy and probabilities on `data`. `weights` is any state that has the model's weights.
    ///
    /// The program must have been compiled for all lengths that batches of `data` have. Before each batch, `asks` says whether
    /// this host asks all hosts to meet. Once one has, in all hosts after the same batch, there is no evaluation.
    pub fn evaluate(
        &self,
        replicas: &Replicas,
        weights: &State,
        data: &Dataset<'_>,
        asks: &dyn Fn() -> bool,
    ) -> Result<Option<Evaluation>> {
        let (mut loss, mut correct) = (0.0, 0.0);
        let mut probabilities = InOrder::new(data.len());
        let end = self.0.run(replicas, weights, data, asks, |positions, mut outputs| {
            let metrics = outputs.take(&OutputId::Metrics);
            if metrics[2] > 0.0 {
                return Ok::<_, Error>(ControlFlow::Break(()));
            }
            loss += f64::from(metrics[0]);
            correct += f64::from(metrics[1]);
            let of_batch = outputs.take(&OutputId::Probabilities);
            probabilities.put(positions, &of_batch, of_batch.len() / self.0.batch_size);
            Ok(ControlFlow::Continue(()))
        })?;
        let examples = data.len() as f64;
        let probabilities = probabilities.values;
        let evaluation = Evaluation { loss: loss / examples, accuracy: correct / examples, probabilities };
        Ok(end.is_continue().then_some(evaluation))
    }
}

impl PredictProgram {
    /// For no length yet.
    pub fn new(config: StepConfig) -> Self {
        Self(Runner::of_lengths(config, predict_step))
    }

    /// For the length that `config` has.
    pub fn compile(replicas: &Replicas, config: &StepConfig) -> Result<Self> {
        let mut program = Self::new(config.clone());
        program.add(replicas, &[config.length])?;
        Ok(program)
    }

    /// Compiles it for those of `lengths` that it [`lacks`](Self::lacks).
    pub fn add(&mut self, replicas: &Replicas, lengths: &[usize]) -> Result<()> {
        self.0.add(replicas, lengths)
    }

    /// Whether it wasn't compiled for all of `lengths`.
    pub fn lacks(&self, lengths: &[usize]) -> bool {
        self.0.lacks(lengths)
    }

    /// Class probabilities `[rows, classes]` in the order of `data`, of which batches must have no other lengths than the
    /// program was compiled for.
    pub fn predict(&self, replicas: &Replicas, weights: &State, data: &Dataset<'_>) -> Result<Vec<f32>> {
        let mut probabilities = InOrder::new(data.len());
        self.0.run_for(&OutputId::Probabilities, replicas, weights, data, |positions, values, width| {
            probabilities.put(positions, &values, width);
            Ok::<_, Error>(())
        })?;
        Ok(probabilities.values)
    }
}

impl EncodeProgram {
    /// For `rows` texts on each replica.
    pub fn compile(replicas: &Replicas, config: &EncodeConfig, rows: usize) -> Result<Self> {
        let (config, count) = (config.clone(), replicas.count());
        let length = config.max_length;
        let mut runner =
            Runner::new(rows * count, Box::new(move |graph, _| encode_step(graph, &config, rows, count)));
        runner.add(replicas, &[length])?;
        Ok(Self(runner))
    }

    pub fn signature(&self) -> &Signature {
        // It is compiled for one length.
        self.0.executables.values().next().expect("a step").signature()
    }

    /// Hidden states `[rows, max_length, hidden]`, a batch at a time in the order of `data`.
    pub fn encode<E: From<Error>>(
        &self,
        replicas: &Replicas,
        weights: &State,
        data: &Dataset<'_>,
        mut each: impl FnMut(Vec<f32>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let output = OutputId::HiddenStates;
        self.0.run_for(&output, replicas, weights, data, |positions, mut values, width| {
            values.truncate(positions.len() * width);
            each(values)
        })
    }
}

/// Values of rows that come in another order.
struct InOrder {
    rows: usize,
    /// `[rows, width]`
    values: Vec<f32>,
}

impl InOrder {
    fn new(rows: usize) -> Self {
        Self { rows, values: vec![] }
    }

    /// Takes those at `positions`, `width` each: the first of `values`.
    fn put(&mut self, positions: &[usize], values: &[f32], width: usize) {
        self.values.resize(self.rows * width, 0.0);
        for (position, values) in positions.iter().zip(values.chunks_exact(width)) {
            self.values[position * width..][..width].copy_from_slice(values);
        }
    }
}

/// A step compiled for texts of some lengths, and the rows that it takes at a time.
struct Runner {
    step: StepOfLength,
    executables: BTreeMap<usize, Executable>,
    /// Over all replicas.
    batch_size: usize,
    /// Of a step that takes it.
    meet: Option<MeetInput>,
}

/// Builds a step for texts of a length.
type StepOfLength = Box<dyn for<'g> Fn(&'g Graph, usize) -> Step<'g> + Send + Sync>;

impl Runner {
    fn new(batch_size: usize, step: StepOfLength) -> Self {
        Self { step, executables: BTreeMap::new(), batch_size, meet: None }
    }

    /// Of what `step` builds for a configuration, whatever length that has.
    fn of_lengths(config: StepConfig, step: for<'g> fn(&'g Graph, &StepConfig) -> Step<'g>) -> Self {
        let batch_size = config.rows * config.replicas;
        // Named as it is, or it would be for one graph alone.
        let of_length: StepOfLength =
            Box::new(move |graph, length| step(graph, &StepConfig { length, ..config.clone() }));
        Self::new(batch_size, of_length)
    }

    fn lacks(&self, lengths: &[usize]) -> bool {
        lengths.iter().any(|length| !self.executables.contains_key(length))
    }

    fn add(&mut self, replicas: &Replicas, lengths: &[usize]) -> Result<()> {
        for length in lengths {
            if self.executables.contains_key(length) {
                continue;
            }
            let executable = Executable::compile(replicas, (self.step)(&Graph::new(), *length))?;
            if self.meet.is_none() && executable.signature().takes(&InputId::Meet) {
                self.meet = Some(MeetInput::new(replicas)?);
            }
            self.executables.insert(*length, executable);
        }
        Ok(())
    }

    /// [`run`](Self::run) for a single output: `each` is given its values, and how many a row has.
    fn run_for<E: From<Error>>(
        &self,
        output: &OutputId,
        replicas: &Replicas,
        weights: &State,
        data: &Dataset<'_>,
        mut each: impl FnMut(&[usize], Vec<f32>, usize) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let end = self.run(replicas, weights, data, &|| false, |positions, mut outputs| {
            let values = outputs.take(output);
            let width = values.len() / self.batch_size;
            each(positions, values, width)?;
            Ok(ControlFlow::Continue(()))
        });
        end.map(|_| ())
    }

    /// Runs each batch, one ahead of the reading, and hands the positions of its real rows, which are the first, and its
    /// outputs to `each`. When that breaks, the batch that is queued already ends first. A step that takes it is told before each batch whether
    /// this host `asks` all hosts to meet.
    ///
    /// # Panics
    /// If a batch has a length that no step was compiled for.
    fn run<E: From<Error>>(
        &self,
        replicas: &Replicas,
        weights: &State,
        data: &Dataset<'_>,
        asks: &dyn Fn() -> bool,
        mut each: impl FnMut(&[usize], Outputs) -> std::result::Result<ControlFlow<()>, E>,
    ) -> std::result::Result<ControlFlow<()>, E> {
        let mut ahead: Option<(Vec<usize>, Pending)> = None;
        for batch in data.batches(self.batch_size, Order::Sequential) {
            let asks = asks();
            if asks && !replicas.is_shared() {
                return Ok(ControlFlow::Break(()));
            }
            let executable = self.executables.get(&batch.length());
            let executable =
                executable.unwrap_or_else(|| panic!("no step for texts of {} tokens", batch.length()));
            let uploaded = upload_batch(replicas, executable.signature(), &batch)?;
            let mut inputs = vec![&uploaded];
            inputs.extend(self.meet.as_ref().map(|meet| meet.when(asks)));
            let next = (batch.positions, executable.query(replicas, weights, &inputs)?);
            if let Some((positions, done)) = ahead.replace(next)
                && each(&positions, done.wait()?)?.is_break()
            {
                ahead.map(|(_, last)| last.wait()).transpose()?;
                return Ok(ControlFlow::Break(()));
            }
        }
        ahead.map_or(Ok(ControlFlow::Continue(())), |(positions, last)| each(&positions, last.wait()?))
    }
}
