//! How a session begins: with the run that its folder holds, or with a new one.

use super::job::{Job, SaveOptions};
use super::resume::Saved;
use super::{Error, Result};
use crate::exec::Replicas;
use crate::run::{self, Progress, Terms, Writer};
use crate::storage::Folder;

/// What a session has before it begins.
pub(super) struct Beginning<'a> {
    pub replicas: &'a Replicas,
    pub root: &'a Folder,
    pub job: &'a Job,
    pub terms: &'a Terms,
    pub save: &'a SaveOptions,
    /// Whether a run of the same job that is finished is to be replaced.
    pub replaces_finished: bool,
    /// Of a member of an ensemble: a run that is of none, or of another, is replaced.
    pub attempt: Option<u64>,
    /// What the chief does before it writes.
    pub claim: &'a dyn Fn() -> Result<()>,
    /// What older runs say of the job's data.
    pub older_data: &'a dyn Fn() -> String,
}

/// What it begins with.
pub(super) enum Begun {
    /// The name of a run, known to the chief alone, and where it goes on, if it was begun before.
    Run { run: String, saved: Option<Box<Saved>> },
    /// Nothing is left to do.
    Finished {
        epochs: u32,
        /// The process that has the run, where the chief hasn't.
        elsewhere: Option<usize>,
    },
}

impl Beginning<'_> {
    /// Finds what to go on with, and makes the chief's `writer` the one that writes there.
    ///
    /// # Errors
    /// As [`Saved::find`] and [`Writer::start`] have them, in all processes.
    pub fn begin(&self, mut writer: Option<&mut Writer>, note: &mut dyn FnMut(&str)) -> Result<Begun> {
        const PHASE: &str = "preparing the output";
        // In a bucket, another process may go on writing until this one says that it will: that is said first once what was
        // found here has changed, so that it changes no more.
        for says_first in [false, true] {
            if says_first {
                let claimed = writer.as_mut().map_or(Ok(()), |writer| writer.claim());
                self.replicas.meet(PHASE, claimed.map_err(Error::from))?;
            }
            let saved = Saved::find(self, note)?;
            let is_finished = |saved: &Saved| saved.is_finished(self.job.recipe.epochs, self.save.patience);
            let saved = saved.filter(|saved| !(self.replaces_finished && is_finished(saved)));
            if let Some(saved) = &saved {
                self.check_place(&saved.progress)?;
            }
            let is_finished = saved.as_ref().is_some_and(is_finished);
            let begun = match (writer.as_mut(), &saved) {
                (None, _) => Ok(Some(String::new())),
                (Some(writer), Some(saved)) if is_finished => {
                    let finished = if saved.is_own() { writer.finish(&saved.progress) } else { Ok(()) };
                    finished.map(|()| Some(String::new())).map_err(Error::from)
                }
                (Some(writer), saved) => self.write(writer, saved.as_ref()),
            };
            let begun = self.replicas.meet(PHASE, begun)?;
            if !self.has_all(begun.is_some())? {
                continue;
            }
            return Ok(match saved {
                Some(saved) if is_finished => Begun::Finished {
                    epochs: saved.progress.epoch,
                    elsewhere: (saved.giver != 0).then_some(saved.giver),
                },
                saved => Begun::Run { run: begun.unwrap_or_default(), saved: saved.map(Box::new) },
            });
        }
        Err(run::Error::TakenOver { path: self.root.path().to_owned() }.into())
    }

    /// Has the chief begin; `None` if another process has written there meanwhile.
    fn write(&self, writer: &mut Writer, saved: Option<&Saved>) -> Result<Option<String>> {
        let Self { save, attempt, .. } = self;
        if saved.is_none() {
            writer.check_start(save.replace, *attempt)?;
        }
        (self.claim)()?;
        Ok(match saved {
            Some(saved) => writer.go_on(&saved.progress, save.keep_last)?,
            None => writer.start(save.keep_last, save.replace, *attempt)?,
        })
    }

    /// Whether the chief has begun; nobody keeps it from that where there are locks.
    fn has_all(&self, own: bool) -> Result<bool> {
        if self.root.is_local() {
            return Ok(own);
        }
        let all = self.replicas.gather("preparing the output", &[u32::from(own)])?;
        Ok(all.iter().all(|words| words[0] == 1))
    }

    /// # Errors
    /// A checkpoint whose steps aren't those of its epochs: no run of this job has made it.
    fn check_place(&self, saved: &Progress) -> Result<()> {
        let Progress { step, epoch, within, .. } = saved;
        let per_epoch = self.job.steps_per_epoch();
        let within = within.as_ref().map_or(0, |within| within.steps);
        let steps = u64::from(*epoch).checked_mul(per_epoch).and_then(|whole| whole.checked_add(within));
        if within <= per_epoch && steps == Some(*step) {
            return Ok(());
        }
        let message = format!(
            "its checkpoint can't be gone on from: it is after {step} steps, and tells of {epoch} epochs of {per_epoch} \
             steps and {within} more"
        );
        Err(run::Error::Input { path: self.root.path().to_owned(), message }.into())
    }
}
