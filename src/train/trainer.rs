//! The training loop: the state on the devices, one execution per step, and the metrics read one step late.

use std::time::{Duration, Instant};

use super::inference::{Evaluation, Inference};
use super::step::{StepConfig, train_step};
use super::weights::{InitialValues, upload_weights};
use crate::data::{Batch, Dataset, Order};
use crate::error::{Error, Result};
use crate::hlo::Graph;
use crate::model::ClassifierConfig;
use crate::nn::Weight;
use crate::pjrt::{Argument, Buffer, Completion, Execution, LoadedExecutable, MemoryStats, PendingRead};
use crate::strategy::Strategy;

/// What a run trains with, beyond the model.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// Rows per step, over all replicas.
    pub batch_size: usize,
    pub learning_rate: f32,
    /// Of the head's first values, the order of the examples and dropout.
    pub seed: u32,
}

/// A model in training.
pub struct Trainer {
    strategy: Strategy,
    options: TrainOptions,
    executable: LoadedExecutable,
    eval: Inference,
    /// `[local replica]`: the trained weights, their first moments, their second moments, and the step count.
    state: Vec<Vec<Buffer>>,
    trained: Vec<Weight>,
    /// Weights that are kept for the checkpoint alone, with their values.
    untrained: Vec<(Weight, Vec<f32>)>,
    /// `[local replica]`: learning rate and seed.
    constants: Vec<Vec<Buffer>>,
    steps_done: u64,
    compile_time: Duration,
}

/// What an epoch measured while it trained.
#[derive(Clone, Debug, Default)]
pub struct EpochMetrics {
    /// Mean over the examples, each seen by the weights of its own step, in nats.
    pub loss: f64,
    pub accuracy: f64,
    pub examples: usize,
    /// From one step's end to the next one's.
    pub step_times: Vec<Duration>,
}

impl Trainer {
    /// Compiles the steps and puts the state on the devices.
    pub fn new(
        strategy: Strategy,
        model: &ClassifierConfig,
        options: TrainOptions,
        values: &InitialValues<'_>,
    ) -> Result<Self> {
        let batch_size = strategy.rows_per_replica(options.batch_size)?;
        let weights = model.weights();
        values.check(&weights)?;
        let config = StepConfig { model: model.clone(), batch_size, replicas: strategy.replicas() };
        let graph = Graph::new();
        let step = train_step(&graph, &config);
        let started = Instant::now();
        let executable = strategy.compile(&step.program)?;
        let compile_time = started.elapsed();
        let eval = Inference::for_evaluation(&strategy, &config)?;

        let trained = step.weights;
        let state = initial_state(&strategy, &trained, values)?;
        let is_untrained = |weight: &Weight| !trained.contains(weight);
        let keep = |weight: Weight| Ok((weight.clone(), values.get(&weight)?.into_owned()));
        let untrained = weights.into_iter().filter(is_untrained).map(keep).collect::<Result<_>>()?;
        let learning_rate = strategy.mirror(&[options.learning_rate], &[])?;
        let seed = strategy.mirror(&[options.seed], &[])?;
        let constants = learning_rate.into_iter().zip(seed).map(|(rate, seed)| vec![rate, seed]).collect();
        Ok(Self {
            strategy,
            options,
            executable,
            eval,
            state,
            trained,
            untrained,
            constants,
            steps_done: 0,
            compile_time,
        })
    }

    pub fn strategy(&self) -> &Strategy {
        &self.strategy
    }

    /// How long the compiler took for the train step.
    pub fn compile_time(&self) -> Duration {
        self.compile_time
    }

    /// Memory of the compiled train step, per replica.
    pub fn memory_stats(&self) -> Result<MemoryStats> {
        Ok(self.executable.executable().memory_stats()?)
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
        let weights = self.state.iter().map(|replica| &replica[..self.trained.len()]).collect::<Vec<_>>();
        let evaluation = self.eval.evaluate(&self.strategy, &weights, data)?;
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
        self.values_on(0, weight)
    }

    /// As [`values`](Self::values), as one local replica has them: all have the same.
    ///
    /// # Panics
    /// If there is no such weight or replica.
    pub fn values_on(&self, replica: usize, weight: &Weight) -> Result<Vec<f32>> {
        if let Some((_, values)) = self.untrained.iter().find(|(untrained, _)| untrained == weight) {
            return Ok(values.clone());
        }
        let index = self.trained.iter().position(|trained| trained == weight);
        let index = index.unwrap_or_else(|| panic!("the model has no weight {}", weight.name));
        Ok(self.state[replica][index].to_host()?)
    }

    /// Queues one optimizer step.
    fn launch(&mut self, batch: &Batch) -> Result<PendingStep> {
        let inputs = self.strategy.upload_batch(batch, true)?;
        let state = std::mem::take(&mut self.state);
        let arguments =
            state.into_iter().zip(&self.constants).zip(&inputs).map(|((state, constants), inputs)| {
                let borrowed = constants.iter().chain(inputs).map(Argument::Borrow);
                state.into_iter().map(Argument::Donate).chain(borrowed).collect()
            });
        let Execution { mut outputs, completion } = self.executable.execute_async(arguments.collect())?;
        // Every replica returns the same metrics, the sums over all of them.
        let metrics = outputs.iter_mut().filter_map(Vec::pop).collect::<Vec<_>>();
        self.state = outputs;
        self.steps_done += 1;
        Ok(PendingStep { rows: batch.rows.len(), metrics: metrics[0].read()?, completion })
    }
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

/// Weights by `values`, moments and step count zero: `[local replica][..]` in the order of the train step's inputs.
fn initial_state(
    strategy: &Strategy,
    weights: &[Weight],
    values: &InitialValues<'_>,
) -> Result<Vec<Vec<Buffer>>> {
    let mut state = upload_weights(strategy, weights, values)?;
    let mut push = |buffers: Vec<Buffer>| {
        state.iter_mut().zip(buffers).for_each(|(replica, buffer)| replica.push(buffer));
    };
    for _moment in ["m", "v"] {
        for weight in weights {
            push(strategy.mirror(&vec![0f32; weight.shape.num_elements()], &weight.shape.dims)?);
        }
    }
    push(strategy.mirror(&[0u32], &[])?);
    Ok(state)
}

/// A step that the devices work on.
struct PendingStep {
    rows: usize,
    metrics: PendingRead<f32>,
    completion: Completion,
}

impl PendingStep {
    /// The sums of loss and of correct answers over the step's examples.
    fn wait(self) -> Result<[f64; 2]> {
        self.completion.wait()?;
        let values = self.metrics.wait()?;
        Ok([f64::from(values[0]), f64::from(values[1])])
    }
}
