//! What steps and epochs measure.

use std::time::{Duration, Instant};

use super::{Error, Result};
use crate::exec::Pending;
use crate::report::StepRecord;
use crate::step::OutputId;

/// What an epoch has measured so far.
#[derive(Clone, Debug, Default)]
pub struct EpochMetrics {
    /// Batches of its order that are done.
    pub steps: u64,
    /// Mean over the examples, each seen by the weights of its own step, in nats.
    pub loss: f64,
    /// Keras': see [`Evaluation::accuracy`](crate::infer::Evaluation::accuracy).
    pub accuracy: f64,
    pub examples: usize,
    /// From one step's end to the next one's; of the steps that this process has done.
    pub step_times: Vec<Duration>,
}

impl EpochMetrics {
    pub(super) fn add(&mut self, step: &StepMetrics) {
        let before = self.examples as f64;
        self.steps += 1;
        self.examples += step.examples;
        let after = self.examples as f64;
        self.loss = (self.loss * before + step.loss_sum) / after;
        self.accuracy = (self.accuracy * before + step.correct) / after;
        self.step_times.push(step.time);
    }
}

/// What one step has measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMetrics {
    /// Steps done with it, since training began.
    pub step: u64,
    pub examples: usize,
    /// Over the examples, in nats, by the weights before it.
    pub loss_sum: f64,
    /// Examples that the model got right: Keras', see [`Evaluation::accuracy`](crate::infer::Evaluation::accuracy).
    pub correct: f64,
    pub learning_rate: f64,
    /// Of all gradients together, before they are clipped, where the step tells it.
    pub gradient_norm: Option<f64>,
    /// From the end of the step before; more than none.
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

/// A step that the devices work on.
pub(super) struct PendingStep {
    pub examples: usize,
    pub step: u64,
    pub learning_rate: f64,
    pub has_norm: bool,
    pub pending: Pending,
}

impl PendingStep {
    /// What it has measured, and whether a host asks to meet; the step before it ended at `last_end`, which becomes its own.
    /// The step after it is known if it is queued.
    ///
    /// # Errors
    /// A loss that is not finite, or a failure of the device.
    pub fn wait(self, last_end: &mut Instant, next: Option<&mut Self>) -> Result<(StepMetrics, bool)> {
        let Self { examples, step, learning_rate, has_norm, pending } = self;
        let mut outputs = pending.wait()?;
        let next_end = next.and_then(|next| next.pending.ended());
        let end = end(*last_end, outputs.ended, next_end);
        let time = end.saturating_duration_since(std::mem::replace(last_end, end));
        let time = time.max(Duration::from_micros(1));
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
            time,
        };
        Ok((metrics, asking > 0.0))
    }
}

/// When a step ended, by what is told of it and of the next one. Threads of the runtime tell that, and may be late: where one is
/// told to have ended after the next one, it is taken to have done so halfway.
fn end(last: Instant, told: Instant, next: Option<Instant>) -> Instant {
    match next.filter(|next| *next <= told) {
        Some(next) => last + next.saturating_duration_since(last) / 2,
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_is_told_late_leaves_the_next_step_its_time() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(end(start, after(3), None), after(3));
        assert_eq!(end(start, after(3), Some(after(6))), after(3));
        assert_eq!(end(start, after(7), Some(after(6))), after(3));
        // The one before was told later still.
        assert_eq!(end(after(8), after(7), Some(after(7))), after(8));
    }
}
