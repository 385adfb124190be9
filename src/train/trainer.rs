//! The training loop: the state on the devices, one execution per step, and the metrics read one step late, but on a CPU.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::metrics::{EpochMetrics, PendingStep, StepMetrics};
use super::options::TrainOptions;
use super::origin::{FirstValues, Origin};
use super::programs::Programs;
use super::{Error, Result};
use crate::data::{Batch, Dataset, Order};
use crate::exec::{Inputs, Replicas, State};
use crate::infer::{Evaluation, MeetInput, upload_batch};
use crate::model::ClassifierConfig;
use crate::nn::Weight;
use crate::pjrt::Backend;
use crate::run::Tensor;
use crate::step::{Execution, InputId, LeafId, Moment, StepConfig, Training};

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
        let lengths = [model.max_length];
        let (training, execution) = (Training::default(), Execution::default());
        let programs = Programs::compile(replicas, model, batch_size, &training, execution, &lengths)?;
        Self::start(Rc::new(programs), options, origin)
    }

    /// Puts the state on the devices.
    pub fn start(programs: Rc<Programs>, options: TrainOptions, origin: Origin<'_>) -> Result<Self> {
        let Programs { replicas, config, .. } = &*programs;
        let step = programs.any_step();
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
        let mut finish = |pending: PendingStep, next: Option<&mut PendingStep>| {
            let (step, asking) = pending.wait(&mut last_end, next)?;
            metrics.add(&step);
            progress(&step, metrics);
            Ok::<_, Error>(asking)
        };
        // The next step is queued before the last one's metrics are read, so that the device never waits. Not on a CPU, where
        // memory for its temporaries might be taken before the last one's was given back, and a step takes longer than that saves.
        let queues = self.replicas().backend() != Backend::Cpu;
        let mut ahead: Option<PendingStep> = None;
        let (mut pause, mut meeting) = (Pause::EpochEnds, false);
        for batch in data.batches(self.programs.examples_per_step(), order).skip(done) {
            if let Some(last) = ahead.take_if(|_| !queues) {
                meeting |= finish(last, None)?;
                if meeting {
                    break;
                }
            }
            let asks = asks();
            if asks && !self.replicas().is_shared() {
                meeting = true;
                break;
            }
            let step = self.launch(&batch, asks)?;
            if let Some(done) = ahead.replace(step) {
                meeting |= finish(done, ahead.as_mut())?;
            }
            if meeting || is_due(self.steps_done) {
                pause = Pause::Step;
                break;
            }
        }
        if let Some(last) = ahead {
            meeting |= finish(last, None)?;
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
    ///
    /// On a slice where each process has shares of it, the others must [`join`](Self::join_snapshot).
    pub fn snapshot(&self, spare: [Vec<Tensor>; 3]) -> Result<[Vec<Tensor>; 3]> {
        let leaves = self.leaves();
        let ids = leaves.iter().map(|(id, _)| id);
        let trained = &self.used[..self.trained];
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

    /// Takes part in a [`snapshot`](Self::snapshot) that another process makes: as many as that makes.
    pub fn join_snapshot(&self) -> Result<()> {
        let leaves = self.leaves();
        Ok(self.state.join_all(self.replicas(), leaves.iter().map(|(id, _)| id))?)
    }

    /// What training goes on from, with its shape: weights, first moments, second moments.
    fn leaves(&self) -> Vec<(LeafId, Vec<usize>)> {
        let leaf = |weight: &Weight, id: LeafId| (id, weight.shape.dims.clone());
        let trained = &self.used[..self.trained];
        let moments = |id: fn(&Weight) -> LeafId| trained.iter().map(move |weight| leaf(weight, id(weight)));
        let weights = self.used.iter().map(|weight| leaf(weight, weight.leaf()));
        weights.chain(moments(first_moment)).chain(moments(second_moment)).collect()
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
        let replicas = &self.programs.replicas;
        let step = self.programs.step(batch.length());
        let inputs = upload_batch(replicas, step.signature(), batch)?;
        let inputs = [&self.constants, self.meet.when(asks), &inputs];
        let pending = step.update(replicas, &mut self.state, &inputs)?;
        let learning_rate = self.learning_rate(self.steps_done);
        self.steps_done += 1;
        let has_norm = self.programs.config.training.gradient_norm;
        Ok(PendingStep {
            examples: batch.positions.len(),
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

fn first_moment(weight: &Weight) -> LeafId {
    LeafId::Moment(Moment::First, weight.name.clone())
}

fn second_moment(weight: &Weight) -> LeafId {
    LeafId::Moment(Moment::Second, weight.name.clone())
}
