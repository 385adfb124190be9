//! Keeps a job going on TPU VMs that are taken away: makes the VM anew, sets it up, and starts the run with the arguments that
//! it had, which then goes on from its newest checkpoint.
//!
//! What it is to do, and what it has done, is in the job's [`Record`]; what there is, it asks anew each time. So it can be
//! killed and started again at any moment: its commands may outlive it, and the next one waits until they have ended.

mod ending;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};

use super::decide::{Decision, Goal, Lookup, Patience, Sight, decide};
use super::gcloud::{Gcloud, Kind, Vm};
use super::job::{Job, Machine, Record, SetUp, Start, Watched};
use super::verbs::Verbs;
use super::{Error, Result};
use crate::storage::is_bucket;

#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// Between two looks.
    pub poll: Duration,
    /// For an answer of the API or the workers.
    pub patience: Duration,
    /// For how long the VM may be of no use before that is given up.
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
    /// Says a line, with the time.
    note: &'a dyn Fn(&str),
    gcloud: Gcloud<'a>,
    job: Job,
    /// What was said last, which is not said again.
    said: String,
    /// Whether it has looked before: a gcloud that has worked is being updated when it is missing.
    has_looked: bool,
    /// Whether the VM was ready at the last look.
    was_ready: bool,
    /// Since when the VM has been of no use.
    useless_since: Option<Instant>,
    /// Creations, or starts, that came to nothing, and when the next one may be.
    creations: Pause,
    starts: Pause,
    /// How often the workers of one VM have refused to be set up, or to start the run, in a row.
    refusals: u32,
}

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
    if !record.is_known() {
        return Err(Error::Unknown { name: vm.name.clone(), zone: vm.zone.clone(), what: "created" });
    }
    let Some(_lock) = record.lock_watch()? else {
        return Err(Error::Watched { name: vm.name.clone() });
    };
    let note = |line: &str| {
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
        say(&format!("{now} {}: {line}", vm.name));
    };
    let lock = record.wait_for_commands(&note)?;
    let mut watch = Watch {
        vm,
        record,
        options,
        note: &note,
        gcloud: Gcloud { dry_run: None, is_quiet: true, lock: Some(lock) },
        job: record.read()?,
        said: String::new(),
        has_looked: false,
        was_ready: false,
        useless_since: None,
        creations: Pause::default(),
        starts: Pause::default(),
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
            self.count_hours(&sight);
            let goal = Goal {
                set_up: &set_up.id,
                start: &start_id,
                restarts_left: self.options.max_restarts.saturating_sub(self.job.progress.restarts),
            };
            let decision = decide(&sight, goal);
            let end = match decision != Decision::Done && self.is_out_of_hours() {
                true => Some(self.wind_down(&machine, &start, sight)?),
                false => self.act(decision, &sight, (&machine, &set_up, &start))?,
            };
            if let Some(end) = end {
                return Ok(end);
            }
            thread::sleep(self.options.poll);
        }
    }

    /// Takes a step; says how it all ends, if it does.
    fn act(
        &mut self,
        decision: Decision,
        sight: &Sight,
        (machine, set_up, start): (&Machine, &SetUp, &Start),
    ) -> Result<Option<Watched>> {
        if !matches!(decision, Decision::Wait { .. }) {
            self.useless_since = None;
        }
        match decision {
            Decision::Wait { why, patience } => return self.wait(machine, start, &why, patience),
            Decision::Delete(why) => return self.delete(machine, sight, &why),
            Decision::Create(why) => return self.create(machine, &why),
            Decision::SetUp => self.set_up(set_up),
            Decision::Start { why, after_failure } => self.start(start, &why, after_failure),
            Decision::Done => return self.finish(machine, start, Watched::Done),
            Decision::GiveUp(why) => {
                self.tell(&format!("{why}, after {} restarts: giving up", self.job.progress.restarts));
                return self.finish(machine, start, Watched::Failed);
            }
        }
        if self.refusals < MOST_REFUSALS {
            return Ok(None);
        }
        self.tell("workers refuse it again and again: giving up");
        self.finish(machine, start, Watched::Failed)
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
        Verbs { vm: self.vm, gcloud: &self.gcloud, note: self.note, patience: self.options.patience }
    }

    fn look(&mut self, machine: &Machine) -> Result<Sight> {
        match self.see(machine) {
            Err(error) if self.has_looked => {
                let error = error.to_string();
                let queued = machine.is_queued.then(|| Lookup::Unknown(error.clone()));
                Ok(Sight { queued, node: Lookup::Unknown(error), workers: Lookup::Absent })
            }
            seen => {
                self.has_looked = true;
                seen
            }
        }
    }

    fn see(&self, machine: &Machine) -> Result<Sight> {
        let verbs = self.verbs();
        let queued = machine.is_queued.then(|| verbs.queued()).transpose()?;
        let node = verbs.node()?;
        let workers = match &node {
            Lookup::Found(node) if node.is_ready() && !node.is_in_maintenance() => verbs.observe(node)?,
            _ => Lookup::Absent,
        };
        Ok(Sight { queued, node, workers })
    }

    /// From one look at which the VM is ready to the next, it is taken to have been: when nobody has watched meanwhile, only
    /// if it is ready still.
    fn count_hours(&mut self, sight: &Sight) {
        let is_ready = match &sight.node {
            Lookup::Found(node) => node.is_ready(),
            Lookup::Absent => false,
            // It may be ready still.
            Lookup::Unknown(_) => return,
        };
        let now = Utc::now().timestamp_millis() as f64 / 1000.0;
        let progress = &mut self.job.progress;
        let before = std::mem::replace(&mut progress.ready_at, is_ready.then_some(now));
        if let Some(before) = before.filter(|_| is_ready || self.was_ready) {
            progress.ready_seconds += (now - before).max(0.0);
        }
        self.was_ready = is_ready;
        if is_ready {
            self.creations = Pause::default();
        }
        if before.is_some() || is_ready {
            self.keep();
        }
    }

    fn is_out_of_hours(&self) -> bool {
        self.options.max_hours.is_some_and(|hours| self.job.progress.ready_seconds >= hours * 3600.0)
    }

    fn wait(
        &mut self,
        machine: &Machine,
        start: &Start,
        why: &str,
        patience: Patience,
    ) -> Result<Option<Watched>> {
        match patience {
            Patience::Unknown => {}
            Patience::Endless => {
                self.useless_since = None;
                // What was started has lasted.
                if self.starts.is_over() {
                    self.starts = Pause::default();
                }
            }
            Patience::Limited => {
                let since = *self.useless_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= self.options.longest_wait {
                    return self.give_the_vm_up(machine, start, why).map(Some);
                }
            }
        }
        self.tell(why);
        Ok(None)
    }

    fn delete(&mut self, machine: &Machine, sight: &Sight, why: &str) -> Result<Option<Watched>> {
        if matches!(&sight.queued, Some(Lookup::Found(queued)) if queued.has_failed()) {
            if machine.valid_until.is_some() {
                self.tell(&format!("{why}: giving up"));
                return self.conclude(machine, Watched::Failed).map(Some);
            }
            self.creations.tried(self.options.poll);
        }
        self.tell(&format!("{why}: deleting it"));
        // What it came from goes first where there is one, with it.
        let is_queued = machine.is_queued && !matches!(sight.queued, Some(Lookup::Absent));
        let deleted = self.verbs().delete(is_queued);
        self.said.clear();
        self.has_done(deleted);
        Ok(None)
    }

    fn create(&mut self, machine: &Machine, why: &str) -> Result<Option<Watched>> {
        if !self.creations.is_over() {
            return Ok(None);
        }
        self.tell(&format!("{why}: {}", if machine.is_queued { "asking for it" } else { "creating it" }));
        let created = self.verbs().create(machine);
        self.creations.tried(self.options.poll);
        self.said.clear();
        if let Err(Error::Refused(failure)) = &created
            && failure.kind == Kind::Invalid
        {
            self.tell(&format!("it can't be created: {}", failure.message));
            self.record.remove()?;
            return Ok(Some(Watched::Failed));
        }
        if self.has_done(created) {
            self.refusals = 0;
        }
        Ok(None)
    }

    fn set_up(&mut self, set_up: &SetUp) {
        if !self.starts.is_over() {
            return;
        }
        self.tell("setting it up");
        let done = self.verbs().set_up(set_up);
        self.said.clear();
        if self.has_done(done) {
            self.refusals = 0;
        } else {
            self.refusals += 1;
            self.starts.tried(self.options.poll);
        }
    }

    fn start(&mut self, start: &Start, why: &str, after_failure: bool) {
        if !self.starts.is_over() {
            return;
        }
        let mut count = String::new();
        if after_failure {
            // Before it is done, so that a watch that is killed in between starts it no more often.
            self.job.progress.restarts += 1;
            self.keep();
            count = format!(" (restart {} of {})", self.job.progress.restarts, self.options.max_restarts);
        }
        self.tell(&format!("{why}: starting the run{count}"));
        let started = self.verbs().start(start);
        self.starts.tried(self.options.poll);
        self.said.clear();
        if self.has_done(started) {
            self.refusals = 0;
            return;
        }
        self.refusals += 1;
        if after_failure {
            self.job.progress.restarts -= 1;
            self.keep();
        }
    }

    /// Whether it was done; if not, says why, and everything is looked at anew.
    fn has_done(&mut self, done: Result<()>) -> bool {
        done.map_err(|error| self.tell(&format!("that failed: {error}"))).is_ok()
    }

    /// Writes down how far it has come. Where that fails, it goes on: a VM that nobody watches costs money.
    fn keep(&mut self) {
        if let Err(error) = self.record.write(&self.job) {
            self.tell(&error.to_string());
        }
    }

    /// Says a line, unless it was said last.
    fn tell(&mut self, line: &str) {
        if self.said != line {
            (self.note)(line);
            line.clone_into(&mut self.said);
        }
    }
}
