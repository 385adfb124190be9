//! What a training tells its user while it runs.

use std::time::Duration;

use super::Console;
use crate::report::{EpochProgress, EpochRecord};
use crate::run::TensorBoard;
use crate::storage::{self, FileError, Folder, Logged};
use crate::train::{EpochMetrics, Observer, StepMetrics};

/// Shows a session on the console, and tells TensorBoard of it where that is asked for.
pub struct Progress<'a> {
    pub console: &'a Console,
    json: bool,
    quiet: bool,
    /// Of an ensemble.
    pub member: Option<String>,
    epoch: Option<EpochProgress>,
    /// Its number.
    number: u32,
    tensorboard: Option<TensorBoard>,
}

impl<'a> Progress<'a> {
    pub fn new(console: &'a Console, json: bool, quiet: bool) -> Self {
        Self { console, json, quiet, member: None, epoch: None, number: 0, tensorboard: None }
    }

    /// Starts event files for TensorBoard in `folder`, of a run that goes on after so many steps.
    pub fn write_events(&mut self, folder: &Folder, steps: u64) {
        self.tensorboard = self.unless_failed(TensorBoard::create(folder, steps));
    }

    /// Writes to TensorBoard's files. Training goes on without them if they can't be written, which is told once.
    fn tell_tensorboard<T>(
        &mut self,
        write: impl FnOnce(&mut TensorBoard) -> storage::Result<T>,
    ) -> Option<T> {
        let written = write(self.tensorboard.as_mut()?);
        self.unless_failed(written)
    }

    fn unless_failed<T>(&mut self, written: storage::Result<T>) -> Option<T> {
        let failed = |error: FileError| {
            self.console.note(&format!("{error}; training goes on, and TensorBoard is told no more of it"));
            self.tensorboard = None;
        };
        written.map_err(failed).ok()
    }
}

impl Observer for Progress<'_> {
    fn note(&mut self, text: &str) {
        self.console.note(text);
    }

    fn ready(&mut self, after: Duration) {
        self.console.note(&format!("Ready to train after {:.1} s", after.as_secs_f64()));
    }

    fn epoch_starts(&mut self, epoch: u32, epochs: u32, steps: u64, done: u64) {
        self.epoch = Some(EpochProgress::new(epoch, epochs, steps, done, self.quiet));
        self.number = epoch;
    }

    fn step(&mut self, step: &StepMetrics, epoch: &EpochMetrics) {
        let number = self.number;
        self.tell_tensorboard(|tensorboard| tensorboard.add_step(&step.record(number)));
        if let Some(bar) = &mut self.epoch {
            bar.step(epoch.loss, epoch.accuracy);
        }
    }

    fn saves(&mut self, record: Option<&EpochRecord>) -> Vec<Logged> {
        let written = self.tell_tensorboard(|tensorboard| {
            record.map_or(Ok(()), |record| tensorboard.add_epoch(record))?;
            tensorboard.logged()
        });
        written.unwrap_or_default()
    }

    fn epoch_ends(&mut self, record: &EpochRecord) -> std::result::Result<(), FileError> {
        if let Some(epoch) = self.epoch.take() {
            epoch.finish(record.val_loss.zip(record.val_accuracy));
        }
        match self.json {
            true => self.console.print(&format!("{}\n", record.to_line_of(self.member.as_deref()))),
            false => Ok(()),
        }
    }
}
