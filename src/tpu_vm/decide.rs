//! What a watch does next: a function of what it sees, and of what it is to do.

use super::answers::{Node, Queued};
use super::worker::{Observed, RunState};

/// What the API, or a worker, said when it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<T> {
    Found(T),
    /// It said that there is no such thing.
    Absent,
    /// It said nothing of it: a network, a server, credentials. Nothing follows from that.
    Unknown(String),
}

/// Everything at one moment.
#[derive(Clone, Debug)]
pub struct Sight {
    /// Of a job that is queued.
    pub queued: Option<Lookup<Queued>>,
    pub node: Lookup<Node>,
    /// Of a node that is ready.
    pub workers: Lookup<Vec<Observed>>,
}

/// What is to be there.
#[derive(Clone, Copy, Debug)]
pub struct Goal<'a> {
    /// The names of the set-up and of the start.
    pub set_up: &'a str,
    pub start: &'a str,
    /// How often the program may still be started again after it has failed.
    pub restarts_left: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Look again later.
    Wait {
        why: String,
        patience: Patience,
    },
    Delete(String),
    Create(String),
    SetUp,
    /// Start the program. `after_failure` where its restarts are counted.
    Start {
        why: String,
        after_failure: bool,
    },
    /// The run is done.
    Done,
    /// Starting it again would not help.
    GiveUp(String),
}

/// How long something is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// As long as it takes.
    Endless,
    /// A VM that can't be used costs money, and is waited for so long, from when it could be used last.
    Limited,
    /// Nothing is known of it: if it was limited before, it still is.
    Unknown,
}

use Decision::{Create, Delete, Done, GiveUp, SetUp, Start};

fn wait(why: impl Into<String>) -> Decision {
    Decision::Wait { why: why.into(), patience: Patience::Endless }
}

fn wait_limited(why: impl Into<String>) -> Decision {
    Decision::Wait { why: why.into(), patience: Patience::Limited }
}

fn wait_for_the_api(error: &str) -> Decision {
    Decision::Wait { why: format!("the API says nothing: {error}"), patience: Patience::Unknown }
}

/// The next step towards `goal`. Only what the API has called gone is ever deleted.
pub fn decide(sight: &Sight, goal: Goal<'_>) -> Decision {
    match &sight.queued {
        None | Some(Lookup::Absent) => of_node(sight, goal),
        Some(Lookup::Unknown(error)) => wait_for_the_api(error),
        Some(Lookup::Found(queued)) if queued.is_over() => Delete(queued.describe()),
        Some(Lookup::Found(queued)) if !queued.is_active() => wait(queued.describe()),
        Some(Lookup::Found(queued)) => match &sight.node {
            Lookup::Absent => wait_limited(format!("{}, without a node", queued.describe())),
            _ => of_node(sight, goal),
        },
    }
}

fn of_node(sight: &Sight, goal: Goal<'_>) -> Decision {
    match &sight.node {
        Lookup::Unknown(error) => wait_for_the_api(error),
        Lookup::Absent => Create("not there".to_owned()),
        Lookup::Found(node) if node.is_gone() => Delete(node.describe()),
        Lookup::Found(node) if !node.is_ready() || node.is_in_maintenance() => wait_limited(node.describe()),
        Lookup::Found(node) => match &sight.workers {
            Lookup::Found(workers) => of_workers(workers, goal),
            Lookup::Absent => wait_limited(node.describe()),
            Lookup::Unknown(error) => {
                wait_limited(format!("{}, but its workers don't answer: {error}", node.describe()))
            }
        },
    }
}

/// Statuses of the run as the trainer has them, and of shells: 75 after it was asked to stop, 128 and more by a signal.
fn of_workers(workers: &[Observed], goal: Goal<'_>) -> Decision {
    const STOPPED: u8 = 75;
    /// Input or arguments that it can't work with, which starting it again doesn't mend.
    const USAGE: u8 = 2;
    /// HUP, INT and TERM before the program listened to them: the machine was shut down, or somebody ended it.
    const ASKED: [u8; 3] = [129, 130, 143];
    let runs = workers.iter().filter(|worker| worker.state == RunState::Running).count();
    if runs > 0 {
        return wait(format!("running on {runs} of {} workers", workers.len()));
    }
    if workers.iter().any(|worker| worker.setup != goal.set_up) {
        return SetUp;
    }
    let start = |why: &str| Start { why: why.to_owned(), after_failure: false };
    if workers.iter().any(|worker| worker.job != goal.start || worker.state == RunState::None) {
        return start("not started there");
    }
    let is_done = |worker: &Observed| worker.state == RunState::Ended(0);
    if workers.iter().all(is_done) || workers.iter().any(|worker| worker.is_chief && is_done(worker)) {
        return Done;
    }
    let failed = |worker: &Observed| match worker.state {
        RunState::Ended(status) if status != 0 && status != STOPPED && !ASKED.contains(&status) => {
            let why = if worker.error.is_empty() { String::new() } else { format!(": {}", worker.error) };
            Some((status, format!("failed with status {status}{why}")))
        }
        _ => None,
    };
    // The others of a slice fail because one has.
    let mut failed = workers.iter().filter_map(failed).collect::<Vec<_>>();
    failed.sort_by_key(|(status, _)| *status != USAGE);
    match failed.into_iter().next() {
        Some((USAGE, why)) => GiveUp(why),
        Some((_, why)) if goal.restarts_left == 0 => GiveUp(why),
        Some((_, why)) => Start { why, after_failure: true },
        None if workers.iter().any(|worker| worker.state == RunState::Killed) => start("killed"),
        None => start("stopped and saved"),
    }
}

#[cfg(test)]
mod tests;
