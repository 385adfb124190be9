//! How a watch ends: what came of the run is copied here, and the VM is deleted.

use std::thread;

use super::Watch;
use crate::storage::is_bucket;
use crate::tpu_vm::decide::{Lookup, Sight};
use crate::tpu_vm::job::{Machine, Start, Watched};
use crate::tpu_vm::verbs::Fetch;
use crate::tpu_vm::worker::NO_RUN;
use crate::tpu_vm::{Error, Result};

/// How often it is tried to copy what came of a run.
const MOST_BRINGS: u32 = 5;

impl Watch<'_> {
    /// The run has ended: brings what came of it, and deletes the VM if it is to. `None` where the VM goes meanwhile. One that
    /// can't be reached, with a run that is nowhere else, is left.
    pub(super) fn finish(
        &mut self,
        machine: &Machine,
        start: &Start,
        end: Watched,
    ) -> Result<Option<Watched>> {
        if end == Watched::Done {
            self.tell("the run is done");
        }
        let mut tries = 0;
        while !self.bring(start, end) {
            tries += 1;
            if tries == MOST_BRINGS && is_in_bucket(start) {
                break;
            }
            if tries == MOST_BRINGS {
                self.say_that_it_is_left("giving up");
                return Ok(Some(Watched::Failed));
            }
            thread::sleep(self.options.poll);
            let sight = self.look(machine)?;
            self.count_hours(&sight);
            if !may_be_ready(&sight) {
                return Ok(None);
            }
        }
        if end == Watched::Failed {
            // Whoever watches next has mended something.
            self.job.progress.restarts = 0;
            self.keep();
        }
        match self.options.delete_when_done {
            true => self.conclude(machine, end).map(Some),
            false => Ok(Some(end)),
        }
    }

    /// Its hours are over: whatever comes of the rest, the VM goes.
    pub(super) fn wind_down(
        &mut self,
        machine: &Machine,
        start: &Start,
        mut sight: Sight,
    ) -> Result<Watched> {
        let hours = self.job.progress.ready_seconds / 3600.0;
        self.tell(&format!("{hours:.2} hours are over: asking the run to save and end"));
        let mut tries = 0;
        while tries < MOST_BRINGS && may_be_ready(&sight) {
            if let Lookup::Found(_) = sight.workers {
                let stopped = self.verbs().stop(self.options.stop_wait);
                if self.has_done(stopped) && self.bring(start, Watched::OutOfHours) {
                    break;
                }
            }
            tries += 1;
            thread::sleep(self.options.poll);
            sight = self.look(machine)?;
        }
        self.conclude(machine, Watched::OutOfHours)
    }

    /// It has been of no use for too long.
    pub(super) fn give_the_vm_up(&mut self, machine: &Machine, start: &Start, why: &str) -> Result<Watched> {
        let line = format!("still {why}: giving up");
        if self.options.delete_when_done && is_in_bucket(start) {
            self.tell(&line);
            return self.conclude(machine, Watched::Failed);
        }
        self.say_that_it_is_left(&line);
        Ok(Watched::Failed)
    }

    fn say_that_it_is_left(&mut self, line: &str) {
        let (name, zone) = (&self.vm.name, &self.vm.zone);
        let line = format!(
            "{line}; the VM is left as it is, and may cost money until `bert-xla tpu-vm delete {name} --zone {zone}`"
        );
        self.tell(&line);
    }

    /// Copies the run here, or its log alone where the run is in a bucket; of one that has failed, what there is. False where
    /// that failed.
    fn bring(&mut self, start: &Start, end: Watched) -> bool {
        let output = start.output();
        let folder = &self.options.folder;
        let verbs = self.verbs();
        let log = || verbs.fetch_log(folder);
        let mut what = "the run, with its log, is";
        let brought = if is_in_bucket(start) {
            what = "its log is";
            log()
        } else {
            let run = Some(output).filter(|output| !output.is_empty());
            match verbs.fetch(&Fetch { folder, run, checkpoints: end != Watched::Done }) {
                // It has not come so far.
                Err(Error::Refused(failure)) if failure.status == NO_RUN && end != Watched::Done => {
                    what = "no run; its log, if there is one, is";
                    log().or(Ok(()))
                }
                fetched => fetched,
            }
        };
        if !self.has_done(brought) {
            return false;
        }
        let place = folder.display();
        let at = if is_in_bucket(start) { format!("; the run is {output}") } else { String::new() };
        self.tell(&format!("{what} in {place}{at}"));
        true
    }

    /// Deletes the VM, and sees to it that it is gone. That it is to go is kept first: one that is gone by then isn't missed.
    pub(super) fn conclude(&mut self, machine: &Machine, end: Watched) -> Result<Watched> {
        self.job.progress.ended = Some(end);
        self.keep();
        loop {
            let verbs = self.verbs();
            let queued = if machine.is_queued { asked(verbs.queued()) } else { Lookup::Absent };
            match (queued, asked(verbs.node())) {
                (Lookup::Absent, Lookup::Absent) => break,
                (Lookup::Found(queued), _) if !queued.is_going() => self.delete_at_last(true),
                (Lookup::Absent, Lookup::Found(node)) if !node.is_going() => self.delete_at_last(false),
                (Lookup::Unknown(error), _) | (_, Lookup::Unknown(error)) => {
                    self.tell(&format!("the API says nothing: {error}"));
                }
                _ => self.tell("DELETING"),
            }
            thread::sleep(self.options.poll);
        }
        self.tell("deleted: it costs nothing any more");
        self.record.remove()?;
        Ok(end)
    }

    fn delete_at_last(&mut self, is_queued: bool) {
        self.tell("deleting the VM");
        let deleted = self.verbs().delete(is_queued);
        self.has_done(deleted);
    }
}

fn is_in_bucket(start: &Start) -> bool {
    is_bucket(start.output().as_ref())
}

/// Whether there may be a VM that can be asked for something.
fn may_be_ready(sight: &Sight) -> bool {
    match &sight.node {
        Lookup::Found(node) => node.is_ready(),
        Lookup::Unknown(_) => true,
        Lookup::Absent => false,
    }
}

fn asked<T>(answer: Result<Lookup<T>>) -> Lookup<T> {
    answer.unwrap_or_else(|error| Lookup::Unknown(error.to_string()))
}
