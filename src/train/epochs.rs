//! The epochs of a session: steps, evaluation, a record, a checkpoint.

use std::time::Instant;

use super::Result;
use super::job::{Ending, Job, Observer};
use super::keep::{Keep, KeptEpoch};
use super::keeper::{Keeper, Meeting};
use super::metrics::EpochMetrics;
use super::trainer::{Pause, Trainer};
use crate::data::Dataset;
use crate::infer::Evaluation;
use crate::report::{Classification, EpochRecord, History, median};
use crate::run::layout::STEPS;
use crate::run::{Best, Progress, StepLog, Within};
use crate::storage;

/// A session's parts while it runs.
pub(super) struct Epochs<'s, 't> {
    pub job: &'s Job,
    pub trainer: &'t mut Trainer,
    pub history: &'t mut History,
    pub progress: &'t mut Progress,
    pub keeper: Keeper<'s>,
    /// The chief's, unless it can't be written.
    pub steps: Option<StepLog>,
    /// Training ends after so many epochs without a better one.
    pub patience: Option<u32>,
}

/// What an epoch has come to: an evaluation, or the reason to stop before it.
type Measured = std::result::Result<Evaluation, String>;

/// The clocks of an epoch, in seconds: of this process, and before it was started.
struct Clock {
    started: Instant,
    before: Within,
}

impl Clock {
    fn seconds(&self) -> f64 {
        self.before.seconds + self.started.elapsed().as_secs_f64()
    }

    /// What is done of the epoch.
    fn within(&self, metrics: &EpochMetrics) -> Within {
        let in_steps = metrics.step_times.iter().map(std::time::Duration::as_secs_f64).sum::<f64>();
        Within {
            steps: metrics.steps,
            examples: metrics.examples,
            loss: metrics.loss,
            accuracy: metrics.accuracy,
            seconds: self.seconds(),
            step_seconds: self.before.step_seconds + in_steps,
        }
    }
}

impl Epochs<'_, '_> {
    pub fn run(
        &mut self,
        train: &Dataset<'_>,
        dev: &Dataset<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Ending> {
        let epochs = self.job.recipe.epochs;
        let steps = self.job.steps_per_epoch();
        for epoch in self.progress.epoch + 1..=epochs {
            let before = self.progress.within.clone().unwrap_or_default();
            observer.epoch_starts(epoch, epochs, steps, before.steps);
            let mut metrics = EpochMetrics {
                steps: before.steps,
                loss: before.loss,
                accuracy: before.accuracy,
                examples: before.examples,
                step_times: vec![],
            };
            let clock = Clock { started: Instant::now(), before };
            let evaluation = match self.measure(train, dev, epoch, &mut metrics, &clock, observer)? {
                Ok(evaluation) => evaluation,
                Err(reason) => {
                    self.save(None, None, observer);
                    return Ok(Ending::Stopped { reason, step: self.progress.step });
                }
            };
            let mut record = self.record(epoch, &clock.within(&metrics), &metrics, &evaluation)?;
            self.history.push(record.clone());
            let Keep { epoch: kept, metric } = self.job.recipe.keep;
            let value = metric.of(&record);
            if self.progress.best.as_ref().is_none_or(|best| metric.is_better(value, best.value)) {
                self.progress.best = Some(Best { epoch, value });
            }
            (self.progress.epoch, self.progress.within) = (epoch, None);
            if let (KeptEpoch::Best, Some(best)) = (kept, &self.progress.best) {
                self.history.keep(best.epoch);
                record.kept = Some(best.epoch == epoch);
            }
            // Before it is told, which can fail.
            self.save(Some(evaluation), Some(&record), observer);
            let told = observer.epoch_ends(&record).map_err(super::Error::from);
            self.trainer.replicas().meet("saving", told)?;
            if self.progress.has_waited(self.patience) {
                break;
            }
        }
        Ok(Ending::Finished)
    }

    /// Trains to the end of an epoch and evaluates, with checkpoints on the way.
    fn measure(
        &mut self,
        train: &Dataset<'_>,
        dev: &Dataset<'_>,
        epoch: u32,
        metrics: &mut EpochMetrics,
        clock: &Clock,
        observer: &mut dyn Observer,
    ) -> Result<Measured> {
        let steps_per_epoch = self.job.steps_per_epoch();
        loop {
            let (keeper, steps) = (&self.keeper, &mut self.steps);
            let pause = self.trainer.train(
                train,
                epoch,
                metrics,
                |steps| keeper.is_due_after(steps),
                || keeper.asks(),
                |step, metrics| {
                    observer.step(step, metrics);
                    log(steps, observer, |steps| steps.add(&step.record(epoch)));
                },
            )?;
            self.progress.step = self.trainer.steps_done();
            self.progress.within = Some(clock.within(metrics));
            let Meeting { stops, saves } = match pause {
                // The epoch's own checkpoint is about to come.
                Pause::Step => Meeting { stops: None, saves: metrics.steps < steps_per_epoch },
                Pause::Meeting => keeper.meet()?,
                Pause::EpochEnds => match self.trainer.evaluate(dev, &|| keeper.asks_to_end())? {
                    Some(evaluation) => return Ok(Ok(evaluation)),
                    None => keeper.meet()?,
                },
            };
            if let Some(reason) = stops {
                return Ok(Err(reason));
            }
            if saves {
                self.save(None, None, observer);
            }
        }
    }

    /// Has a checkpoint made; at the end of an epoch, with its evaluation and record.
    fn save(
        &mut self,
        evaluation: Option<Evaluation>,
        record: Option<&EpochRecord>,
        observer: &mut dyn Observer,
    ) {
        let mut logs = observer.saves(record);
        logs.extend(log(&mut self.steps, observer, StepLog::logged));
        let note = &mut |text: &str| observer.note(text);
        self.keeper.save(self.trainer, self.progress, self.history, evaluation, logs, note);
    }

    fn record(
        &self,
        epoch: u32,
        done: &Within,
        metrics: &EpochMetrics,
        evaluation: &Evaluation,
    ) -> Result<EpochRecord> {
        let times = metrics.step_times.iter().map(|time| time.as_secs_f64() * 1e3).collect::<Vec<_>>();
        let Job { source, parts, recipe } = self.job;
        let classes = parts.dev.iter().map(|row| source.table.classes[*row]).collect::<Vec<_>>();
        let answers = recipe.labels.answers(&evaluation.probabilities, source.model.head.num_classes());
        let name = |class| recipe.labels.name_of(class).into_owned();
        let scores = Classification::new(&classes, &answers, evaluation.loss, name)?;
        Ok(EpochRecord {
            epoch,
            step: self.progress.step,
            loss: done.loss,
            accuracy: done.accuracy,
            val_loss: Some(evaluation.loss),
            val_accuracy: Some(evaluation.accuracy),
            val_f1: Some(scores.macro_average.f1),
            seconds: done.seconds,
            step_ms: median(&times).unwrap_or(f64::NAN),
            examples_per_second: done.examples as f64 / done.step_seconds,
            learning_rate: self.trainer.learning_rate(self.progress.step.saturating_sub(1)),
            kept: None,
        })
    }
}

/// Does something with the log of steps. Training goes on without it if that fails, which is told once.
fn log<T>(
    steps: &mut Option<StepLog>,
    observer: &mut dyn Observer,
    act: impl FnOnce(&mut StepLog) -> storage::Result<T>,
) -> Option<T> {
    let done = act(steps.as_mut()?);
    done.map_err(|error| {
        observer.note(&format!("{error}; training goes on, and {STEPS} tells no more of it"));
        *steps = None;
    })
    .ok()
}
