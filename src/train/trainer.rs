//! The training loop: the state on the devices, one execution per step, and the metrics read one step late.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Error, Result};
use crate::data::{Batch, Dataset, Order};
use crate::exec::{self, Executable, Inputs, Pending, Placed, Replicas, State};
use crate::hlo::Graph;
use crate::infer::{EvalProgram, Evaluation, MeetInput, upload_batch};
use crate::model::ClassifierConfig;
use crate::nn::Weight;
use crate::pjrt::MemoryStats;
use crate::run::Tensor;
use crate::step::{InputId, Layout, LeafId, Moment, OutputId, StepConfig, train_step, zeros_step};
use crate::weights::InitialValues;

/// What a model trains with.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// Examples per step, over all replicas.
    pub batch_size: usize,
    pub learning_rate: f32,
    /// Of the head's first values, the order of the examples and dropout.
    pub seed: u32,
}

/// What training starts from.
pub enum Origin<'a> {
    /// These weights, with which no step was done.
    Weights(&'a InitialValues<'a>),
    /// The state after some steps.
    Saved { steps: u64, tensor: &'a SavedTensor<'a> },
}

/// The values of a weight, or of a moment, by its name and shape, row-major. All are asked for, once each, in an order that
/// is the same in all processes.
pub type SavedTensor<'a> = dyn Fn(&str, &[usize]) -> Result<Vec<f32>> + 'a;

/// Why training pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The epoch's steps are done.
    EpochEnds,
    /// As many steps are done as were asked for.
    Step,
    /// A host has asked all to meet.
    Meeting,
}

/// A model in training.
pub struct Trainer {
    replicas: Arc<Replicas>,
    config: StepConfig,
    options: TrainOptions,
    step: Executable,
    eval: EvalProgram,
    state: State,
    trained: Vec<Weight>,
    /// Weights that are kept for the checkpoint alone, with their values.
    untrained: Vec<(Weight, Vec<f32>)>,
    /// Learning rate and seed.
    constants: Inputs,
    meet: MeetInput,
    steps_done: u64,
    compile_time: Duration,
}

/// What an epoch has measured so far.
#[derive(Clone, Debug, Default)]
pub struct EpochMetrics {
    /// Batches of its order that are done.
    pub steps: u64,
    /// Mean over the examples, each seen by the weights of its own step, in nats.
    pub loss: f64,
    /// Keras': see [`Evaluation::accuracy`].
    pub accuracy: f64,
    pub examples: usize,
    /// From one step's end to the next one's; of the steps that this process has done.
    pub step_times: Vec<Duration>,
}

impl Trainer {
    /// Compiles the steps and puts the state on the devices.
    pub fn new(
        replicas: Arc<Replicas>,
        model: &ClassifierConfig,
        options: TrainOptions,
        origin: Origin<'_>,
    ) -> Result<Self> {
        let weights = model.weights();
        let rows = replicas.rows(options.batch_size)?;
        let config = StepConfig { model: model.clone(), rows, replicas: replicas.count() };
        if let Origin::Weights(values) = &origin {
            values.check(&weights)?;
        }
        let compile = || {
            let started = Instant::now();
            let step = Executable::compile(&replicas, train_step(&Graph::new(), &config))?;
            let compile_time = started.elapsed();
            let zeros = match origin {
                Origin::Weights(_) => {
                    let graph = Graph::new();
                    Some(Executable::compile_local(&replicas, zeros_step(&graph, step.signature()))?)
                }
                Origin::Saved { .. } => None,
            };
            Ok((step, compile_time, zeros, EvalProgram::compile(&replicas, &config)?))
        };
        let (step, compile_time, zeros, eval) = replicas.meet("compiling", compile().map_err(exec_error))?;
        let is_trained = |weight: &Weight| step.signature().takes(&InputId::Leaf(weight.leaf()));
        let (trained, untrained): (Vec<_>, Vec<_>) = weights.into_iter().partition(is_trained);
        let load = || {
            let mut first =
                FirstValues { origin, zeros: zeros.map(|zeros| zeros.make(&replicas)).transpose()? };
            let state = first.state(&replicas, &step, &trained)?;
            let keep = |weight: Weight| Ok((weight.clone(), first.values(&weight)?));
            let untrained = untrained.into_iter().map(keep).collect::<Result<_>>()?;
            let rate = replicas.upload(&[options.learning_rate], &[], Layout::Mirrored)?;
            let seed = replicas.upload(&[options.seed], &[], Layout::Mirrored)?;
            let constants = vec![(InputId::LearningRate, rate), (InputId::Seed, seed)];
            Ok::<_, Error>((state, untrained, constants, MeetInput::new(&replicas)?, first.steps()))
        };
        let loaded = replicas.meet("loading the weights", load())?;
        let (state, untrained, constants, meet, steps_done) = loaded;
        Ok(Self {
            replicas,
            config,
            options,
            step,
            eval,
            state,
            trained,
            untrained,
            constants,
            meet,
            steps_done,
            compile_time,
        })
    }

    pub fn replicas(&self) -> &Arc<Replicas> {
        &self.replicas
    }

    /// How long the compiler took for the train step.
    pub fn compile_time(&self) -> Duration {
        self.compile_time
    }

    /// Memory of the compiled train step, per replica.
    pub fn memory_stats(&self) -> Result<MemoryStats> {
        Ok(self.step.memory_stats()?)
    }

    /// Optimizer steps since training began.
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// One pass over `data`, in the order of `epoch`. After each step, `progress` is given the running means of loss
    /// and accuracy.
    ///
    /// # Errors
    /// As of [`train`](Self::train).
    pub fn train_epoch(
        &mut self,
        data: &Dataset<'_>,
        epoch: u32,
        progress: impl FnMut(f64, f64),
    ) -> Result<EpochMetrics> {
        let mut metrics = EpochMetrics::default();
        self.train(data, epoch, &mut metrics, |_| false, || false, progress)?;
        Ok(metrics)
    }

    /// Goes on with a pass over `data`, in the order of `epoch`, of which `metrics` tells how much is done: until its end,
    /// until the step after which `is_due`, given the steps done since training began, or until a host `asks` all to
    /// meet. It asks by the step itself, so that all hosts pause after the same one; where there is one alone, it need not.
    /// When this returns, no step is under way.
    ///
    /// # Errors
    /// A loss that is not finite, or a failure of the device.
    pub fn train(
        &mut self,
        data: &Dataset<'_>,
        epoch: u32,
        metrics: &mut EpochMetrics,
        is_due: impl Fn(u64) -> bool,
        mut asks: impl FnMut() -> bool,
        mut progress: impl FnMut(f64, f64),
    ) -> Result<Pause> {
        let order = Order::Shuffled { seed: u64::from(self.options.seed), epoch };
        let done = metrics.steps as usize;
        let mut last_end = Instant::now();
        let mut finish = |step: PendingStep| {
            let (rows, steps, [loss, correct, asking]) = (step.rows, step.steps, step.wait()?);
            if !loss.is_finite() {
                return Err(Error::diverged(format!("the loss is {loss}"), steps));
            }
            metrics.add(rows, loss, correct);
            metrics.step_times.push(std::mem::replace(&mut last_end, Instant::now()).elapsed());
            progress(metrics.loss, metrics.accuracy);
            Ok(asking > 0.0)
        };
        // The next step is queued before the last one's metrics are read, so that the device never waits.
        let mut ahead: Option<PendingStep> = None;
        let (mut pause, mut meeting) = (Pause::EpochEnds, false);
        for batch in data.batches(self.options.batch_size, order).skip(done) {
            let asks = asks();
            if asks && !self.replicas.is_shared() {
                meeting = true;
                break;
            }
            let step = self.launch(&batch, asks)?;
            if let Some(done) = ahead.replace(step) {
                meeting |= finish(done)?;
            }
            if meeting || is_due(self.steps_done) {
                pause = Pause::Step;
                break;
            }
        }
        if let Some(last) = ahead {
            meeting |= finish(last)?;
        }
        Ok(if meeting { Pause::Meeting } else { pause })
    }

    /// Loss, accuracy and probabilities on `data` as the weights are now; `None` once a host `asks` all to meet, as in
    /// [`train`](Self::train).
    ///
    /// # Errors
    /// A loss that is not finite, so that weights that an epoch's last step spoiled are noticed; or a failure of the
    /// device.
    pub fn evaluate(&self, data: &Dataset<'_>, asks: &dyn Fn() -> bool) -> Result<Option<Evaluation>> {
        let evaluation = self.eval.evaluate(&self.replicas, &self.state, data, asks)?;
        match evaluation {
            Some(Evaluation { loss, .. }) if !loss.is_finite() => {
                Err(Error::diverged(format!("the loss is {loss}"), self.steps_done))
            }
            other => Ok(other),
        }
    }

    /// Copies of everything that training goes on from, of weights and of both moments, as they are now. The names of the
    /// moments are those of the state's leaves. The memory of an earlier copy that is no longer needed is used again.
    ///
    /// # Errors
    /// A state that was lost in a step that failed.
    pub fn snapshot(&self, spare: [Vec<Tensor>; 3]) -> Result<[Vec<Tensor>; 3]> {
        let leaf = |weight: &Weight, id: LeafId| (id, weight.shape.dims.clone());
        let of = |id: fn(&Weight) -> LeafId| self.trained.iter().map(move |weight| leaf(weight, id(weight)));
        let leaves = of(Weight::leaf).chain(of(first_moment)).chain(of(second_moment)).collect::<Vec<_>>();
        let ids = leaves.iter().map(|(id, _)| id);
        // As many of each as are trained; those that are not come last among the weights.
        let trained = self.trained.len();
        let spare = spare.into_iter().flat_map(|tensors| tensors.into_iter().take(trained));
        let spare = spare.map(|tensor| tensor.values).collect();
        let values = self.state.to_host_all(&self.replicas, ids, spare)?;
        let tensors = leaves.into_iter().zip(values);
        let mut tensors = tensors.map(|((id, dims), values)| Tensor { name: id.to_string(), dims, values });
        let mut next = || tensors.by_ref().take(trained).collect::<Vec<_>>();
        let [mut weights, first, second] = [next(), next(), next()];
        weights.extend(self.untrained.iter().map(|(weight, values)| Tensor {
            name: weight.name.clone(),
            dims: weight.shape.dims.clone(),
            values: values.clone(),
        }));
        Ok([weights, first, second])
    }

    /// Every weight of the model.
    pub fn weights(&self) -> Vec<&Weight> {
        self.trained.iter().chain(self.untrained.iter().map(|(weight, _)| weight)).collect()
    }

    /// The values of one of [`weights`](Self::weights) as they are now, row-major.
    ///
    /// # Panics
    /// If it is none of them.
    pub fn values(&self, weight: &Weight) -> Result<Vec<f32>> {
        match self.untrained.iter().find(|(untrained, _)| untrained == weight) {
            Some((_, values)) => Ok(values.clone()),
            None => Ok(self.state.to_host(&self.replicas, &weight.leaf())?),
        }
    }

    /// The state on the devices.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What answers with the weights as they are now: their configuration, and the weights themselves, where they are.
    ///
    /// # Errors
    /// A state that was lost in a step that failed.
    pub fn into_trained(self) -> Result<(StepConfig, State)> {
        Ok((self.config, self.state.into_weights()?))
    }

    /// Queues one optimizer step.
    fn launch(&mut self, batch: &Batch, asks: bool) -> Result<PendingStep> {
        let inputs = upload_batch(&self.replicas, self.step.signature(), batch)?;
        let inputs = [&self.constants, self.meet.when(asks), &inputs];
        let pending = self.step.update(&self.replicas, &mut self.state, &inputs)?;
        self.steps_done += 1;
        Ok(PendingStep { rows: batch.rows.len(), steps: self.steps_done, pending })
    }
}

fn first_moment(weight: &Weight) -> LeafId {
    LeafId::Moment(Moment::First, weight.name.clone())
}

fn second_moment(weight: &Weight) -> LeafId {
    LeafId::Moment(Moment::Second, weight.name.clone())
}

fn exec_error(error: exec::Error) -> Error {
    error.into()
}

impl EpochMetrics {
    /// Adds a step: sums over its `rows` examples.
    fn add(&mut self, rows: usize, loss: f64, correct: f64) {
        let before = self.examples as f64;
        self.steps += 1;
        self.examples += rows;
        let after = self.examples as f64;
        self.loss = (self.loss * before + loss) / after;
        self.accuracy = (self.accuracy * before + correct) / after;
    }
}

/// The values that training starts with.
struct FirstValues<'a> {
    origin: Origin<'a>,
    /// All but the weights, where no step was done.
    zeros: Option<HashMap<LeafId, Placed>>,
}

impl FirstValues<'_> {
    fn state(&mut self, replicas: &Replicas, step: &Executable, weights: &[Weight]) -> Result<State> {
        let weights = weights.iter().map(|weight| (&*weight.name, weight)).collect::<HashMap<_, _>>();
        State::start(step.signature(), |leaf| {
            if let Some(zeros) = self.zeros.as_mut().and_then(|zeros| zeros.remove(leaf)) {
                return Ok(zeros);
            }
            let (LeafId::Weight(name) | LeafId::Moment(_, name)) = leaf else {
                return Ok(replicas.upload(&[self.steps() as u32], &[], Layout::Mirrored)?);
            };
            let weight = weights[&**name];
            let dims = &weight.shape.dims;
            let values = match &mut self.origin {
                Origin::Weights(values) => values.get(weight)?,
                Origin::Saved { tensor, .. } => tensor(&leaf.to_string(), dims)?.into(),
            };
            Ok(replicas.upload(values, dims, Layout::Mirrored)?)
        })
    }

    /// Those of a weight that is no part of the state.
    fn values(&mut self, weight: &Weight) -> Result<Vec<f32>> {
        match &mut self.origin {
            Origin::Weights(values) => Ok(values.get(weight)?.into_owned()),
            Origin::Saved { tensor, .. } => tensor(&weight.name, &weight.shape.dims),
        }
    }

    fn steps(&self) -> u64 {
        match self.origin {
            Origin::Weights(_) => 0,
            Origin::Saved { steps, .. } => steps,
        }
    }
}

/// A step that the devices work on.
struct PendingStep {
    rows: usize,
    /// Steps done with it, since training began.
    steps: u64,
    pending: Pending,
}

impl PendingStep {
    /// The sums of loss and of correct answers over the step's examples, and of the replicas whose host asks to meet.
    fn wait(self) -> Result<[f64; 3]> {
        let values = self.pending.wait()?.take(&OutputId::Metrics);
        Ok([0, 1, 2].map(|i| values.get(i).map_or(0.0, |value| f64::from(*value))))
    }
}
