//! Keeps a job going on TPU VMs that are taken away: makes the VM anew, sets it up, and starts the run with the arguments that
//! it had, which then goes on from its newest checkpoint.
//!
//! What it is to do, and what it has done, is in the job's [`Record`]; what there is, it asks anew each time. So it can be
//! killed and started again at any moment: its commands may outlive it, and the next one waits until they have ended.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};

use super::decide::{Decision, Goal, Lookup, Sight, decide};
use super::gcloud::{Gcloud, Kind, Vm};
use super::job::{Job, Machine, Record, SetUp, Start, Watched};
use super::verbs::{Fetch, Verbs};
use super::{Error, Result};
use crate::storage::is_bucket;

#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// Between two looks.
    pub poll: Duration,
    /// For an answer of the API or the workers.
    pub patience: Duration,
    /// How long the VM may be on its way to a state before that is given up.
    pub longest_wait: Duration,
    /// How often the program is started again after it has failed.
    pub max_restarts: u32,
    /// For how long VMs may be ready, all together.
    pub max_hours: Option<f64>,
    /// How many seconds the run has to save when its hours are over.
    pub stop_wait: u32,
    /// Where what comes of it is copied to.
    pub folder: PathBuf,
    pub delete_when_done: bool,
}

/// A watch over one job.
struct Watch<'a> {
    vm: &'a Vm,
    record: &'a Record,
    options: &'a WatchOptions,
    say: &'a dyn Fn(&str),
    gcloud: Gcloud<'a>,
    job: Job,
    /// What was said last, which is not said again.
    said: String,
    /// Since when it waits for what can't be for long.
    waits: Option<(String, Instant)>,
    /// Creations, or starts, that came to nothing, and when the next one may be.
    creations: Pause,
    starts: Pause,
    /// How often what came of the run could not be copied.
    brings: u32,
    /// How often the workers of one VM have refused to be set up, or to start the run, in a row.
    refusals: u32,
}

/// How often it is tried to copy what came of a run.
const MOST_BRINGS: u32 = 5;

/// How often it is tried to set a VM up, or to start the run there: a program that doesn't run there never will.
const MOST_REFUSALS: u32 = 5;

/// Before something is tried again: twice as long each time, up to a limit.
#[derive(Default)]
struct Pause {
    tries: u32,
    until: Option<Instant>,
}

impl Pause {
    const MOST_DOUBLINGS: u32 = 4;

    fn is_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }

    fn tried(&mut self, first: Duration) {
        self.until = Some(Instant::now() + first * 2u32.pow(self.tries.min(Self::MOST_DOUBLINGS)));
        self.tries += 1;
    }
}

/// Watches, once the commands of an earlier watch have ended, until there is nothing more to do.
///
/// # Errors
/// [`Error::Watched`] where another process watches, and [`Error::Unknown`] of a job that wasn't begun here.
pub fn watch(vm: &Vm, record: &Record, options: &WatchOptions, say: &dyn Fn(&str)) -> Result<Watched> {
    let Some(_lock) = record.lock_watch()? else {
        return Err(Error::Watched { name: vm.name.clone() });
    };
    let mut told = false;
    let lock = loop {
        match record.lock_commands()? {
            Some(lock) => break lock,
            None if !told => say("waiting for a command of an earlier watch to end"),
            None => {}
        }
        told = true;
        thread::sleep(Duration::from_millis(500));
    };
    let mut watch = Watch {
        vm,
        record,
        options,
        say,
        gcloud: Gcloud { dry_run: None, is_quiet: true, lock: Some(lock) },
        job: record.read()?,
        said: String::new(),
        waits: None,
        creations: Pause::default(),
        starts: Pause::default(),
        brings: 0,
        refusals: 0,
    };
    watch.run()
}

impl Watch<'_> {
    fn run(&mut self) -> Result<Watched> {
        let (machine, set_up, start) = self.known()?;
        if let Some(end) = self.job.progress.ended {
            return self.conclude(&machine, end);
        }
        if !is_bucket(start.output().as_ref()) {
            self.tell(
                "the run's --output is on the VM: a preemption loses it; gs://BUCKET/... would keep it",
            );
        }
        let start_id = start.id();
        loop {
            let sight = self.look(&machine)?;
            self.count_hours(&sight)?;
            if self.is_out_of_hours() {
                return self.wind_down(&machine, &start, &sight);
            }
            let goal = Goal {
                set_up: &set_up.id,
                start: &start_id,
                restarts_left: self.options.max_restarts.saturating_sub(self.job.progress.restarts),
            };
            match decide(&sight, goal) {
                Decision::Wait { why, is_bounded } => {
                    if self.waits_too_long(&why, is_bounded) {
                        self.tell(&format!("still {why}: giving up; the VM is left as it is"));
                        return Ok(Watched::Failed);
                    }
                    self.tell(&why);
                    // It has lasted.
                    if matches!(sight.workers, Lookup::Found(_)) && self.starts.is_over() {
                        self.starts = Pause::default();
                    }
                }
                Decision::Delete(why) => self.delete(&machine, &sight, &why)?,
                Decision::Create(why) => {
                    if let Some(end) = self.create(&machine, &why)? {
                        return Ok(end);
                    }
                }
                Decision::SetUp => self.set_up(&set_up)?,
                Decision::Start { why, after_failure } => self.start(&start, &why, after_failure)?,
                Decision::Done => {
                    if let Some(end) = self.finish(&machine, &start, Watched::Done)? {
                        return Ok(end);
                    }
                }
                Decision::GiveUp(why) => {
                    self.tell(&format!("{why}, after {} restarts: giving up", self.job.progress.restarts));
                    if let Some(end) = self.finish(&machine, &start, Watched::Failed)? {
                        return Ok(end);
                    }
                }
            }
            if self.refusals >= MOST_REFUSALS {
                self.tell("workers refuse it again and again: giving up");
                return match self.options.delete_when_done {
                    true => self.conclude(&machine, Watched::Failed),
                    false => Ok(Watched::Failed),
                };
            }
            thread::sleep(self.options.poll);
        }
    }

    fn known(&self) -> Result<(Machine, SetUp, Start)> {
        let unknown = |what| Error::Unknown { name: self.vm.name.clone(), zone: self.vm.zone.clone(), what };
        let Job { machine, set_up, start, .. } = self.job.clone();
        Ok((
            machine.ok_or_else(|| unknown("created"))?,
            set_up.ok_or_else(|| unknown("set up"))?,
            start.ok_or_else(|| unknown("started"))?,
        ))
    }

    fn verbs(&self) -> Verbs<'_> {
        Verbs { vm: self.vm, gcloud: &self.gcloud, note: self.say, patience: self.options.patience }
    }

    fn look(&self, machine: &Machine) -> Result<Sight> {
        let verbs = self.verbs();
        let queued = machine.is_queued.then(|| verbs.queued()).transpose()?;
        let node = verbs.node()?;
        let workers = match &node {
            Lookup::Found(node) if node.is_ready() && !node.is_in_maintenance() => verbs.observe(node)?,
            _ => Lookup::Absent,
        };
        Ok(Sight { queued, node, workers })
    }

    /// From one look at which the VM is ready to the next, it is taken to have been, also while nobody watched.
    fn count_hours(&mut self, sight: &Sight) -> Result<()> {
        match &sight.node {
            Lookup::Found(node) if node.is_ready() => {
                let now = Utc::now().timestamp_millis() as f64 / 1000.0;
                if let Some(before) = self.job.progress.ready_at.replace(now) {
                    self.job.progress.ready_seconds += (now - before).max(0.0);
                }
            }
            // It may be ready still.
            Lookup::Unknown(_) => return Ok(()),
            _ if self.job.progress.ready_at.is_none() => return Ok(()),
            _ => self.job.progress.ready_at = None,
        }
        self.record.write(&self.job)
    }

    fn is_out_of_hours(&self) -> bool {
        self.options.max_hours.is_some_and(|hours| self.job.progress.ready_seconds >= hours * 3600.0)
    }

    fn waits_too_long(&mut self, why: &str, is_bounded: bool) -> bool {
        let since = match self.waits.take() {
            Some((before, since)) if before == why => since,
            _ => Instant::now(),
        };
        self.waits = is_bounded.then(|| (why.to_owned(), since));
        is_bounded && since.elapsed() >= self.options.longest_wait
    }

    fn delete(&mut self, machine: &Machine, sight: &Sight, why: &str) -> Result<()> {
        self.tell(&format!("{why}: deleting it"));
        // What it came from goes first where there is one, with it.
        let is_queued = machine.is_queued && !matches!(sight.queued, Some(Lookup::Absent));
        let deleted = self.verbs().delete(is_queued);
        self.said.clear();
        self.unless_refused(deleted).map(drop)
    }

    fn create(&mut self, machine: &Machine, why: &str) -> Result<Option<Watched>> {
        if !self.creations.is_over() {
            return Ok(None);
        }
        self.tell(&format!("{why}: {}", if machine.is_queued { "asking for it" } else { "creating it" }));
        let created = self.verbs().create(machine);
        match created {
            Ok(()) => {
                self.creations = Pause::default();
                self.refusals = 0;
            }
            Err(Error::Refused(failure)) if failure.kind == Kind::Invalid => {
                self.tell(&format!("it can't be created: {}", failure.message));
                return Ok(Some(Watched::Failed));
            }
            other => {
                self.creations.tried(self.options.poll);
                self.unless_refused(other)?;
            }
        }
        self.said.clear();
        Ok(None)
    }

    fn set_up(&mut self, set_up: &SetUp) -> Result<()> {
        if !self.starts.is_over() {
            return Ok(());
        }
        self.tell("setting it up");
        let done = self.verbs().set_up(set_up);
        if self.unless_refused(done)? {
            self.refusals = 0;
        } else {
            self.refusals += 1;
            self.starts.tried(self.options.poll);
        }
        self.said.clear();
        Ok(())
    }

    fn start(&mut self, start: &Start, why: &str, after_failure: bool) -> Result<()> {
        if !self.starts.is_over() {
            return Ok(());
        }
        if after_failure {
            // Before it is done, so that a watch that is killed in between starts it no more often.
            self.job.progress.restarts += 1;
            self.record.write(&self.job)?;
        }
        let count = if after_failure {
            format!(" (restart {} of {})", self.job.progress.restarts, self.options.max_restarts)
        } else {
            String::new()
        };
        self.tell(&format!("{why}: starting the run{count}"));
        let started = self.verbs().start(start);
        self.starts.tried(self.options.poll);
        self.refusals = if self.unless_refused(started)? { 0 } else { self.refusals + 1 };
        self.said.clear();
        Ok(())
    }

    /// The run has ended: brings what came of it, and deletes the VM if it is to. `None` where that has to be tried again.
    fn finish(&mut self, machine: &Machine, start: &Start, end: Watched) -> Result<Option<Watched>> {
        if end == Watched::Done {
            self.tell("the run is done");
        }
        if !self.bring(start, &end)? {
            self.brings += 1;
            if self.brings < MOST_BRINGS {
                return Ok(None);
            }
            self.tell("giving up; the VM is left as it is");
            return Ok(Some(Watched::Failed));
        }
        if end == Watched::Failed {
            // Whoever watches next has mended something.
            self.job.progress.restarts = 0;
            self.record.write(&self.job)?;
        }
        match self.options.delete_when_done {
            true => self.conclude(machine, end).map(Some),
            false => Ok(Some(end)),
        }
    }

    /// Copies the run here, or its log where the run is in a bucket, or is none.
    fn bring(&mut self, start: &Start, end: &Watched) -> Result<bool> {
        let output = start.output();
        let folder = &self.options.folder;
        let only_log = is_bucket(output.as_ref()) || *end == Watched::Failed;
        let verbs = self.verbs();
        let brought = match only_log {
            true => verbs.fetch_log(folder),
            false => {
                let run = Some(output).filter(|output| !output.is_empty());
                verbs.fetch(&Fetch { folder, run, checkpoints: *end == Watched::OutOfHours })
            }
        };
        let is_brought = self.unless_refused(brought)?;
        if is_brought {
            let what = if only_log { "its log is" } else { "it is, with its log," };
            let place = folder.display();
            let at =
                if is_bucket(output.as_ref()) { format!("; the run is {output}") } else { String::new() };
            self.tell(&format!("{what} in {place}{at}"));
        }
        Ok(is_brought)
    }

    /// Deletes the VM, and sees to it that it is gone. That it is to go is kept first: one that is gone by then isn't missed.
    fn conclude(&mut self, machine: &Machine, end: Watched) -> Result<Watched> {
        self.job.progress.ended = Some(end);
        self.record.write(&self.job)?;
        loop {
            let verbs = self.verbs();
            let queued = if machine.is_queued { verbs.queued()? } else { Lookup::Absent };
            match (queued, verbs.node()?) {
                (Lookup::Absent, Lookup::Absent) => break,
                (Lookup::Found(queued), _) if !queued.is_going() => self.delete_at_last(true)?,
                (Lookup::Absent, Lookup::Found(node)) if !node.is_going() => self.delete_at_last(false)?,
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

    fn delete_at_last(&mut self, is_queued: bool) -> Result<()> {
        self.tell("deleting the VM");
        let deleted = self.verbs().delete(is_queued);
        self.unless_refused(deleted).map(drop)
    }

    /// Its hours are over: whatever comes of the rest, the VM goes.
    fn wind_down(&mut self, machine: &Machine, start: &Start, sight: &Sight) -> Result<Watched> {
        let hours = self.job.progress.ready_seconds / 3600.0;
        self.tell(&format!("{hours:.2} hours are over: asking the run to save and end"));
        if let Lookup::Found(_) = sight.workers {
            let stopped = self.verbs().stop(self.options.stop_wait);
            self.unless_refused(stopped)?;
            for _ in 0..MOST_BRINGS {
                if self.bring(start, &Watched::OutOfHours)? {
                    break;
                }
                thread::sleep(self.options.poll);
            }
        }
        self.conclude(machine, Watched::OutOfHours)
    }

    /// Says what the API or a worker refused, which is looked at anew; true where nothing was.
    fn unless_refused(&mut self, done: Result<()>) -> Result<bool> {
        match done {
            Ok(()) => Ok(true),
            Err(Error::Refused(failure)) => {
                self.tell(&format!("that failed: {}", failure.message));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// A line with the time, unless it was said last.
    fn tell(&mut self, line: &str) {
        if self.said != line {
            let now = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
            (self.say)(&format!("{now} {}: {line}", self.vm.name));
            line.clone_into(&mut self.said);
        }
    }
}
