//! The training loop: the state on the devices, one execution per step, and the metrics read one step late.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::programs::Programs;
use super::{Error, Result};
use crate::data::{Batch, Dataset, Order};
use crate::exec::{self, Executable, Inputs, Pending, Placed, Replicas, State};
use crate::infer::{Evaluation, MeetInput, upload_batch};
use crate::model::ClassifierConfig;
use crate::nn::Weight;
use crate::report::StepRecord;
use crate::run::Tensor;
use crate::step::{InputId, Layout, LeafId, Moment, OutputId, Signature, StepConfig, Training};
use crate::weights::InitialValues;

/// What a model trains with, beside what is in its programs.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    pub learning_rate: f32,
    /// Of the head's first values, the order of the examples and dropout.
    pub seed: u32,
    /// Steps in which the learning rate rises.
    pub warmup_steps: u64,
    /// Steps of the whole run, for a schedule that has an end.
    pub total_steps: u64,
    /// How much an example of each class counts; as many as there are classes where the programs take them.
    pub class_weights: Vec<f32>,
}

impl TrainOptions {
    /// As the recipe trains, at a constant rate.
    pub fn new(learning_rate: f32, seed: u32) -> Self {
        Self { learning_rate, seed, warmup_steps: 0, total_steps: 0, class_weights: vec![] }
    }
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
    programs: Rc<Programs>,
    options: TrainOptions,
    state: State,
    /// Those that a step updates, and then those that it only reads.
    used: Vec<Weight>,
    trained: usize,
    /// Weights that are kept for the checkpoint alone, with their values.
    unused: Vec<(Weight, Vec<f32>)>,
    /// What all steps take.
    constants: Inputs,
    meet: MeetInput,
    steps_done: u64,
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

/// What one step has measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMetrics {
    /// Steps done with it, since training began.
    pub step: u64,
    pub examples: usize,
    /// Over the examples, in nats, by the weights before it.
    pub loss_sum: f64,
    /// Examples that the model got right: Keras', see [`Evaluation::accuracy`].
    pub correct: f64,
    pub learning_rate: f64,
    /// Of all gradients together, before they are clipped, where the step tells it.
    pub gradient_norm: Option<f64>,
    /// From the end of the step before.
    pub time: Duration,
}

impl StepMetrics {
    /// Mean over the examples, in nats.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.examples as f64
    }

    pub fn accuracy(&self) -> f64 {
        self.correct / self.examples as f64
    }

    /// What is written down of it, as a step of `epoch`.
    pub fn record(&self, epoch: u32) -> StepRecord {
        let seconds = self.time.as_secs_f64();
        StepRecord {
            step: self.step,
            epoch,
            loss: self.loss(),
            accuracy: self.accuracy(),
            learning_rate: self.learning_rate,
            gradient_norm: self.gradient_norm,
            examples_per_second: self.examples as f64 / seconds,
            step_ms: seconds * 1e3,
        }
    }
}

impl Trainer {
    /// Compiles the recipe's steps for `batch_size` examples at a time and starts with them.
    pub fn new(
        replicas: Arc<Replicas>,
        model: &ClassifierConfig,
        batch_size: usize,
        options: TrainOptions,
        origin: Origin<'_>,
    ) -> Result<Self> {
        if let Origin::Weights(values) = &origin {
            values.check(&model.weights())?;
        }
        let programs = Programs::compile(replicas, model, batch_size, &Training::default())?;
        Self::start(Rc::new(programs), options, origin)
    }

    /// Puts the state on the devices.
    pub fn start(programs: Rc<Programs>, options: TrainOptions, origin: Origin<'_>) -> Result<Self> {
        let Programs { replicas, config, step, .. } = &*programs;
        let (used, unused): (Vec<_>, Vec<_>) = {
            let is_used = |weight: &Weight| step.signature().takes(&InputId::Leaf(weight.leaf()));
            config.model.weights().into_iter().partition(is_used)
        };
        let (mut ordered, frozen): (Vec<_>, Vec<_>) = {
            let is_trained = |weight: &Weight| step.signature().takes(&InputId::Leaf(first_moment(weight)));
            used.into_iter().partition(is_trained)
        };
        let trained = ordered.len();
        ordered.extend(frozen);
        let used = ordered;
        let load = || {
            let zeros = match &origin {
                Origin::Weights(values) => {
                    values.check(used.iter().chain(&unused))?;
                    Some(programs.zeros()?.make(replicas)?)
                }
                Origin::Saved { .. } => None,
            };
            let mut first = FirstValues { origin, zeros };
            let state = first.state(replicas, step, &used)?;
            let keep = |weight: Weight| Ok((weight.clone(), first.values(&weight)?));
            let unused = unused.into_iter().map(keep).collect::<Result<_>>()?;
            let constants = options.constants(replicas, step.signature())?;
            Ok::<_, Error>((state, unused, constants, MeetInput::new(replicas)?, first.steps()))
        };
        let loaded = replicas.meet("loading the weights", load())?;
        let (state, unused, constants, meet, steps_done) = loaded;
        Ok(Self { programs, options, state, used, trained, unused, constants, meet, steps_done })
    }

    pub fn replicas(&self) -> &Arc<Replicas> {
        &self.programs.replicas
    }

    pub fn programs(&self) -> &Rc<Programs> {
        &self.programs
    }

    /// Optimizer steps since training began.
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// One pass over `data`, in the order of `epoch`; `progress` is given each step.
    ///
    /// # Errors
    /// As of [`train`](Self::train).
    pub fn train_epoch(
        &mut self,
        data: &Dataset<'_>,
        epoch: u32,
        mut progress: impl FnMut(&StepMetrics),
    ) -> Result<EpochMetrics> {
        let mut metrics = EpochMetrics::default();
        self.train(data, epoch, &mut metrics, |_| false, || false, |step, _| progress(step))?;
        Ok(metrics)
    }

    /// Goes on with a pass over `data`, in the order of `epoch`, of which `metrics` tells how much is done: until its end,
    /// until the step after which `is_due`, given the steps done since training began, or until a host `asks` all to
    /// meet. It asks by the step itself, so that all hosts pause after the same one; where there is one alone, it need not.
    /// `progress` is given each step, and what `metrics` are with it. When this returns, no step is under way.
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
        mut progress: impl FnMut(&StepMetrics, &EpochMetrics),
    ) -> Result<Pause> {
        let order = Order::Shuffled { seed: u64::from(self.options.seed), epoch };
        let done = metrics.steps as usize;
        let mut last_end = Instant::now();
        let mut finish = |pending: PendingStep| {
            let time = |last_end: &mut Instant| std::mem::replace(last_end, Instant::now()).elapsed();
            let (step, asking) = pending.wait(|| time(&mut last_end))?;
            metrics.add(&step);
            progress(&step, metrics);
            Ok::<_, Error>(asking)
        };
        // The next step is queued before the last one's metrics are read, so that the device never waits.
        let mut ahead: Option<PendingStep> = None;
        let (mut pause, mut meeting) = (Pause::EpochEnds, false);
        for batch in data.batches(self.programs.examples_per_step(), order).skip(done) {
            let asks = asks();
            if asks && !self.replicas().is_shared() {
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
        let Programs { eval, replicas, .. } = &*self.programs;
        let evaluation = eval.evaluate(replicas, &self.state, data, asks)?;
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
        let trained = &self.used[..self.trained];
        let moments = |id: fn(&Weight) -> LeafId| trained.iter().map(move |weight| leaf(weight, id(weight)));
        let weights = self.used.iter().map(|weight| leaf(weight, weight.leaf()));
        let leaves = weights.chain(moments(first_moment)).chain(moments(second_moment)).collect::<Vec<_>>();
        let ids = leaves.iter().map(|(id, _)| id);
        // Those that no step uses come last among the weights.
        let counts = [self.used.len(), trained.len(), trained.len()];
        let spare =
            spare.into_iter().zip(counts).flat_map(|(tensors, count)| tensors.into_iter().take(count));
        let spare = spare.map(|tensor| tensor.values).collect();
        let values = self.state.to_host_all(self.replicas(), ids, spare)?;
        let tensors = leaves.into_iter().zip(values);
        let mut tensors = tensors.map(|((id, dims), values)| Tensor { name: id.to_string(), dims, values });
        let [mut weights, first, second] =
            counts.map(|count| tensors.by_ref().take(count).collect::<Vec<_>>());
        weights.extend(self.unused.iter().map(|(weight, values)| Tensor {
            name: weight.name.clone(),
            dims: weight.shape.dims.clone(),
            values: values.clone(),
        }));
        Ok([weights, first, second])
    }

    /// Every weight of the model.
    pub fn weights(&self) -> Vec<&Weight> {
        self.used.iter().chain(self.unused.iter().map(|(weight, _)| weight)).collect()
    }

    /// The values of one of [`weights`](Self::weights) as they are now, row-major.
    ///
    /// # Panics
    /// If it is none of them.
    pub fn values(&self, weight: &Weight) -> Result<Vec<f32>> {
        match self.unused.iter().find(|(unused, _)| unused == weight) {
            Some((_, values)) => Ok(values.clone()),
            None => Ok(self.state.to_host(self.replicas(), &weight.leaf())?),
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
        Ok((self.programs.config.clone(), self.state.into_weights()?))
    }

    /// Queues one optimizer step.
    fn launch(&mut self, batch: &Batch, asks: bool) -> Result<PendingStep> {
        let Programs { replicas, step, .. } = &*self.programs;
        let inputs = upload_batch(replicas, step.signature(), batch)?;
        let inputs = [&self.constants, self.meet.when(asks), &inputs];
        let pending = step.update(replicas, &mut self.state, &inputs)?;
        let learning_rate = self.learning_rate(self.steps_done);
        self.steps_done += 1;
        let has_norm = self.programs.config.training.gradient_norm;
        Ok(PendingStep {
            examples: batch.rows.len(),
            step: self.steps_done,
            learning_rate,
            has_norm,
            pending,
        })
    }

    /// That of the step after `done` steps.
    pub fn learning_rate(&self, done: u64) -> f64 {
        let TrainOptions { learning_rate, warmup_steps, total_steps, .. } = self.options;
        let factor = self.programs.config.training.schedule.factor(done, warmup_steps, total_steps);
        f64::from(learning_rate) * factor
    }
}

impl TrainOptions {
    /// What all steps take of these, on the replicas.
    fn constants(&self, replicas: &Replicas, signature: &Signature) -> exec::Result<Inputs> {
        let scalar = |value: f32| replicas.upload(&[value], &[], Layout::Mirrored);
        let inputs = signature.inputs.iter().filter_map(|port| {
            let placed = match &port.id {
                InputId::LearningRate => scalar(self.learning_rate),
                InputId::WarmupSteps => scalar(self.warmup_steps as f32),
                InputId::TotalSteps => scalar(self.total_steps as f32),
                InputId::Seed => replicas.upload(&[self.seed], &[], Layout::Mirrored),
                InputId::ClassWeights => {
                    replicas.upload(&self.class_weights, &[self.class_weights.len()], Layout::Mirrored)
                }
                _ => return None,
            };
            Some(placed.map(|placed| (port.id.clone(), placed)))
        });
        inputs.collect()
    }
}

fn first_moment(weight: &Weight) -> LeafId {
    LeafId::Moment(Moment::First, weight.name.clone())
}

fn second_moment(weight: &Weight) -> LeafId {
    LeafId::Moment(Moment::Second, weight.name.clone())
}

impl EpochMetrics {
    fn add(&mut self, step: &StepMetrics) {
        let before = self.examples as f64;
        self.steps += 1;
        self.examples += step.examples;
        let after = self.examples as f64;
        self.loss = (self.loss * before + step.loss_sum) / after;
        self.accuracy = (self.accuracy * before + step.correct) / after;
        self.step_times.push(step.time);
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
    examples: usize,
    step: u64,
    learning_rate: f64,
    has_norm: bool,
    pending: Pending,
}

impl PendingStep {
    /// What it has measured, and whether a host asks to meet; `time` is asked once it has ended.
    ///
    /// # Errors
    /// A loss that is not finite, or a failure of the device.
    fn wait(self, time: impl FnOnce() -> Duration) -> Result<(StepMetrics, bool)> {
        let Self { examples, step, learning_rate, has_norm, pending } = self;
        let mut outputs = pending.wait()?;
        let metrics = outputs.take(&OutputId::Metrics);
        let [loss, correct, asking] =
            [0, 1, 2].map(|i| metrics.get(i).map_or(0.0, |value| f64::from(*value)));
        if !loss.is_finite() {
            return Err(Error::diverged(format!("the loss is {loss}"), step));
        }
        let norm = has_norm.then(|| outputs.take(&OutputId::GradientNorm));
        let metrics = StepMetrics {
            step,
            examples,
            loss_sum: loss,
            correct,
            learning_rate,
            gradient_norm: norm.and_then(|norm| norm.first().copied().map(f64::from)),
            time: time(),
        };
        Ok((metrics, asking > 0.0))
    }
}
