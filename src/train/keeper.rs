//! When training pauses, and what is kept then: one decision for all hosts of a slice.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use super::cadence::Cadence;
use super::job::{Ending, Job};
use super::saver::Saver;
use super::stop::Stop;
use super::trainer::Trainer;
use super::{Error, Result};
use crate::exec::Replicas;
use crate::infer::Evaluation;
use crate::report::History;
use crate::run::{Progress, Snapshot};
use crate::storage::Logged;

/// Has checkpoints made, and tells when all hosts are to meet for one.
pub(super) struct Keeper<'s> {
    replicas: Arc<Replicas>,
    job: &'s Job,
    cadence: Cadence,
    /// The chief's.
    saver: RefCell<Option<Saver<'s>>>,
    stop: &'s Stop,
    /// Why a commit has failed, until all hosts know.
    failed: RefCell<Option<Error>>,
    saved_at: Cell<Instant>,
    /// The last step that was given to be committed, and the last that is.
    given: Cell<Option<u64>>,
    kept: Cell<Option<u64>>,
}

impl<'s> Keeper<'s> {
    /// `kept` is the step that the run goes on from, if its folder has that.
    pub fn new(
        replicas: Arc<Replicas>,
        job: &'s Job,
        cadence: Cadence,
        saver: Option<Saver<'s>>,
        stop: &'s Stop,
        kept: Option<u64>,
    ) -> Self {
        Self {
            replicas,
            job,
            cadence,
            saver: RefCell::new(saver),
            stop,
            failed: RefCell::default(),
            saved_at: Cell::new(Instant::now()),
            given: Cell::new(kept),
            kept: Cell::new(kept),
        }
    }

    /// Whether a checkpoint is due after so many steps.
    pub fn is_due_after(&self, steps: u64) -> bool {
        self.cadence.is_due_after(steps)
    }

    /// Whether this host asks all to meet while an epoch trains.
    pub fn asks(&self) -> bool {
        self.asks_to_end() || self.is_due()
    }

    /// Whether it does while there is nothing new to save.
    pub fn asks_to_end(&self) -> bool {
        if let Some(saver) = &mut *self.saver.borrow_mut()
            && let Err(error) = saver.check()
        {
            self.fail(error);
        }
        self.stop.reason().is_some() || self.failed.borrow().is_some()
    }

    /// What was given last is not committed.
    fn fail(&self, error: Error) {
        self.failed.replace(Some(error));
        self.given.set(self.kept.get());
    }

    /// The chief's clock counts.
    fn is_due(&self) -> bool {
        self.saver.borrow().is_some() && self.cadence.is_due_since(self.saved_at.get().elapsed())
    }

    /// All hosts meet: why training is to stop, if it is, and whether a checkpoint is to be made.
    ///
    /// # Errors
    /// A commit that has failed, in all of them.
    pub fn meet(&self) -> Result<Meeting> {
        const PHASE: &str = "saving";
        let own = [self.stop.reason().is_some(), self.is_due()];
        let all = self.replicas.gather(PHASE, &own.map(u32::from))?;
        let failed = self.failed.take().map_or(Ok(()), Err);
        self.replicas.meet(PHASE, failed)?;
        let any = |word: usize| all.iter().any(|words| words[word] != 0);
        let elsewhere = || "another host of the slice was asked to".to_owned();
        let stops = any(0).then(|| self.stop.reason().unwrap_or_else(elsewhere));
        Ok(Meeting { stops, saves: any(1) })
    }

    /// Has the state committed, unless that of this step is; with an evaluation, it is a whole epoch's. What this fails with
    /// is told when all hosts meet next. Before that, `logs` are published.
    pub fn save(
        &self,
        trainer: &Trainer,
        progress: &Progress,
        history: &History,
        evaluation: Option<Evaluation>,
        logs: Vec<Logged>,
        note: &mut dyn FnMut(&str),
    ) {
        self.saved_at.set(Instant::now());
        let is_new = evaluation.is_some() || self.given.get() != Some(progress.step);
        let mut saver = self.saver.borrow_mut();
        let waited = match saver.as_mut().filter(|_| is_new) {
            Some(saver) => saver.wait(|| note(&waiting(self.given.get()))).map(|()| Some(saver)),
            None => Ok(None),
        };
        if let Ok(Some(_)) = &waited {
            self.kept.set(self.given.get());
        }
        // Whether there is something to save or not: a host that does save waits for the others' shares.
        let (saver, tensors) = match waited {
            Ok(Some(saver)) => {
                let tensors = trainer.snapshot(saver.spare());
                (saver, tensors)
            }
            Ok(None) => return trainer.join_snapshot().unwrap_or_else(|error| self.fail(error)),
            Err(error) => {
                // Other hosts may be about to do the next step: they are told when all meet.
                self.fail(trainer.join_snapshot().err().unwrap_or(error));
                return;
            }
        };
        let [weights, first, second] = match tensors {
            Ok(tensors) => tensors,
            Err(error) => return self.fail(error),
        };
        let snapshot = Snapshot {
            progress: progress.clone(),
            history: history.clone(),
            predictions: evaluation
                .map(|found| self.job.predictions(&self.job.parts.dev, found.probabilities)),
            weights,
            moments: [first, second],
            logs,
        };
        saver.save(snapshot);
        self.given.set(Some(progress.step));
    }

    /// Waits until everything is committed, and for the other hosts.
    ///
    /// # Errors
    /// That of `end`, or of the last commit.
    pub fn end(&self, end: Result<Ending>, note: &mut dyn FnMut(&str)) -> Result<Ending> {
        let committed = match &mut *self.saver.borrow_mut() {
            Some(saver) => saver.wait(|| note(&waiting(self.given.get()))),
            None => Ok(()),
        };
        let committed = self.failed.take().map_or(committed, Err);
        if committed.is_ok() {
            self.kept.set(self.given.get());
        }
        let end = match end {
            // All hosts come here.
            Ok(ending) => self.replicas.meet("saving", committed).map(|()| ending),
            // One that ends alone doesn't wait for others. Weights that are no numbers come before the loss that they lead to.
            Err(error @ Error::Diverged { .. }) => Err(committed.err().unwrap_or(error)),
            Err(error) => Err(error),
        };
        end.map_err(|error| error.with_kept(self.kept.get()))
    }
}

fn waiting(step: Option<u64>) -> String {
    let step = step.unwrap_or_default();
    format!("Waiting until the checkpoint of step {step} is written: the disk or the network is slow")
}

/// What the hosts have agreed on.
pub(super) struct Meeting {
    /// Why training stops.
    pub stops: Option<String>,
    pub saves: bool,
}
