//! The training loop: the state on the devices, one execution per step, and the metrics read one step late.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Error, Result};
use crate::data::{Batch, Dataset, Order};
use crate::exec::{self, Executable, Inputs, Pending, Replicas, State};
use crate::hlo::Graph;
use crate::infer::{EvalProgram, Evaluation, MeetInput, upload_batch};
use crate::model::ClassifierConfig;
use crate::nn::Weight;
use crate::pjrt::MemoryStats;
use crate::step::{InputId, Layout, OutputId, StepConfig, train_step, zeros_step};
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

/// What an epoch measured while it trained.
#[derive(Clone, Debug, Default)]
pub struct EpochMetrics {
    /// Mean over the examples, each seen by the weights of its own step, in nats.
    pub loss: f64,
    /// Keras': see [`Evaluation::accuracy`].
    pub accuracy: f64,
    pub examples: usize,
    /// From one step's end to the next one's.
    pub step_times: Vec<Duration>,
}

impl Trainer {
    /// Compiles the steps and puts the state on the devices.
    pub fn new(
        replicas: Arc<Replicas>,
        model: &ClassifierConfig,
        options: TrainOptions,
        values: &InitialValues<'_>,
    ) -> Result<Self> {
        let weights = model.weights();
        values.check(&weights)?;
        let rows = replicas.rows(options.batch_size)?;
        let config = StepConfig { model: model.clone(), rows, replicas: replicas.count() };
        let compile = || {
            let started = Instant::now();
            let step = Executable::compile(&replicas, train_step(&Graph::new(), &config))?;
            let compile_time = started.elapsed();
            let zeros = Executable::compile_local(&replicas, zeros_step(&Graph::new(), step.signature()))?;
            Ok((step, compile_time, zeros, EvalProgram::compile(&replicas, &config)?))
        };
        let (step, compile_time, zeros, eval) = replicas.meet("compiling", compile().map_err(exec_error))?;
        let is_trained = |weight: &Weight| step.signature().takes(&InputId::Leaf(weight.leaf()));
        let (trained, untrained): (Vec<_>, Vec<_>) = weights.into_iter().partition(is_trained);
        let load = || {
            let state = initial_state(&replicas, &step, &zeros, &trained, values)?;
            let keep = |weight: Weight| Ok((weight.clone(), values.get(&weight)?.into_owned()));
            let untrained = untrained.into_iter().map(keep).collect::<Result<_>>()?;
            let rate = replicas.upload(&[options.learning_rate], &[], Layout::Mirrored)?;
            let seed = replicas.upload(&[options.seed], &[], Layout::Mirrored)?;
            let constants = vec![(InputId::LearningRate, rate), (InputId::Seed, seed)];
            Ok::<_, Error>((state, untrained, constants, MeetInput::new(&replicas)?))
        };
        let (state, untrained, constants, meet) = replicas.meet("loading the weights", load())?;
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
            steps_done: 0,
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
    /// A loss that is not finite, or a failure of the device.
    pub fn train_epoch(
        &mut self,
        data: &Dataset<'_>,
        epoch: u32,
        mut progress: impl FnMut(f64, f64),
    ) -> Result<EpochMetrics> {
        let order = Order::Shuffled { seed: u64::from(self.options.seed), epoch };
        let mut metrics = EpochMetrics::default();
        let mut last_end = Instant::now();
        let mut finish = |step: PendingStep, steps_done: u64| {
            let (rows, [loss, correct]) = (step.rows, step.wait()?);
            if !loss.is_finite() {
                return Err(Error::Diverged { loss, steps: steps_done });
            }
            metrics.add(rows, loss, correct);
            metrics.step_times.push(std::mem::replace(&mut last_end, Instant::now()).elapsed());
            progress(metrics.loss, metrics.accuracy);
            Ok(())
        };
        // The next step is queued before the last one's metrics are read, so that the device never waits.
        let mut ahead: Option<PendingStep> = None;
        for batch in data.batches(self.options.batch_size, order) {
            let step = self.launch(&batch)?;
            if let Some(done) = ahead.replace(step) {
                finish(done, self.steps_done - 1)?;
            }
        }
        if let Some(last) = ahead {
            finish(last, self.steps_done)?;
        }
        Ok(metrics)
    }

    /// Loss, accuracy and probabilities on `data` as the weights are now.
    ///
    /// # Errors
    /// A loss that is not finite, so that weights that an epoch's last step spoiled are noticed; or a failure of the
    /// device.
    pub fn evaluate(&self, data: &Dataset<'_>) -> Result<Evaluation> {
        let evaluation = self.eval.evaluate(&self.replicas, &self.state, data, &|| false)?;
        let evaluation = evaluation.expect("no host asks the others to meet");
        match evaluation.loss.is_finite() {
            true => Ok(evaluation),
            false => Err(Error::Diverged { loss: evaluation.loss, steps: self.steps_done }),
        }
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
    fn launch(&mut self, batch: &Batch) -> Result<PendingStep> {
        let inputs = upload_batch(&self.replicas, self.step.signature(), batch)?;
        let inputs = [&self.constants, self.meet.when(false), &inputs];
        let pending = self.step.update(&self.replicas, &mut self.state, &inputs)?;
        self.steps_done += 1;
        Ok(PendingStep { rows: batch.rows.len(), pending })
    }
}

fn exec_error(error: exec::Error) -> Error {
    error.into()
}

impl EpochMetrics {
    /// Adds a step: sums over its `rows` examples.
    fn add(&mut self, rows: usize, loss: f64, correct: f64) {
        let before = self.examples as f64;
        self.examples += rows;
        let after = self.examples as f64;
        self.loss = (self.loss * before + loss) / after;
        self.accuracy = (self.accuracy * before + correct) / after;
    }
}

/// Weights by `values`, all else from `zeros`.
fn initial_state(
    replicas: &Replicas,
    step: &Executable,
    zeros: &Executable,
    weights: &[Weight],
    values: &InitialValues<'_>,
) -> Result<State> {
    let mut zeros = zeros.make(replicas)?;
    let weights = weights.iter().map(|weight| (weight.leaf(), weight)).collect::<HashMap<_, _>>();
    State::start(step.signature(), |leaf| match zeros.remove(leaf) {
        Some(zeros) => Ok(zeros),
        None => {
            let weight = weights[leaf];
            Ok(replicas.upload(values.get(weight)?, &weight.shape.dims, Layout::Mirrored)?)
        }
    })
}

/// A step that the devices work on.
struct PendingStep {
    rows: usize,
    pending: Pending,
}

impl PendingStep {
    /// The sums of loss and of correct answers over the step's examples.
    fn wait(self) -> Result<[f64; 2]> {
        let values = self.pending.wait()?.take(&OutputId::Metrics);
        Ok([f64::from(values[0]), f64::from(values[1])])
    }
}
