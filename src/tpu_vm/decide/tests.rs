use super::*;

const GOAL: Goal<'_> = Goal { set_up: "s", start: "j", restarts_left: 1 };

fn node(state: &str, health: &str) -> Lookup<Node> {
    Lookup::Found(Node { state: state.to_owned(), health: health.to_owned(), ..Node::default() })
}

fn ready(workers: &[Observed]) -> Sight {
    Sight { queued: None, node: node("READY", "HEALTHY"), workers: Lookup::Found(workers.to_vec()) }
}

fn worker(state: RunState) -> Observed {
    Observed { setup: "s".to_owned(), job: "j".to_owned(), state, ..Observed::default() }
}

fn sight(queued: Option<Lookup<Queued>>, node: Lookup<Node>) -> Sight {
    Sight { queued, node, workers: Lookup::Absent }
}

fn unknown<T>() -> Lookup<T> {
    Lookup::Unknown("503".to_owned())
}

fn request(state: &str) -> Option<Lookup<Queued>> {
    Some(Lookup::Found(Queued { state: state.to_owned(), error: None }))
}

/// All states of a node and of a queued resource that Google's REST reference of the API v2 has, in every combination:
/// only what is gone is deleted, and only what isn't there is made.
#[test]
fn only_what_is_gone_is_deleted() {
    const NODES: [&str; 16] = [
        "STATE_UNSPECIFIED",
        "CREATING",
        "READY",
        "RESTARTING",
        "REIMAGING",
        "DELETING",
        "REPAIRING",
        "STOPPED",
        "STOPPING",
        "STARTING",
        "PREEMPTED",
        "TERMINATED",
        "HIDING",
        "HIDDEN",
        "UNHIDING",
        "NEW_IN_2030",
    ];
    const REQUESTS: [&str; 11] = [
        "STATE_UNSPECIFIED",
        "CREATING",
        "DRAFT",
        "FAILED",
        "PROVISIONING",
        "ACCEPTED",
        "DELETING",
        "SUSPENDING",
        "SUSPENDED",
        "ACTIVE",
        "WAITING_FOR_RESOURCES",
    ];
    let requests = REQUESTS.iter().map(|state| request(state));
    let requests = requests.chain([None, Some(Lookup::Absent), Some(unknown())]).collect::<Vec<_>>();
    let nodes =
        NODES.iter().map(|state| node(state, "")).chain([Lookup::Absent, unknown()]).collect::<Vec<_>>();
    let gone = |node: &Lookup<Node>| {
        ["STOPPED", "PREEMPTED", "TERMINATED"].iter().any(|state| *node == self::node(state, ""))
    };
    let (mut deletions, mut creations) = (0, 0);
    for queued in &requests {
        let is_over = [request("SUSPENDED"), request("FAILED")].contains(queued);
        let says_nothing = *queued == Some(unknown());
        let is_active = *queued == request("ACTIVE");
        let decides_node = matches!(queued, None | Some(Lookup::Absent)) || is_active;
        for node in &nodes {
            let decision = decide(&sight(queued.clone(), node.clone()), GOAL);
            let deletes = matches!(decision, Decision::Delete(_));
            let creates = matches!(decision, Decision::Create(_));
            assert_eq!(deletes, is_over || decides_node && gone(node), "{queued:?} {node:?}: {decision:?}");
            let is_absent = *node == Lookup::Absent && matches!(queued, None | Some(Lookup::Absent));
            assert_eq!(creates, is_absent, "{queued:?} {node:?}: {decision:?}");
            assert!(!says_nothing || matches!(decision, Decision::Wait { .. }), "{node:?}: {decision:?}");
            deletions += usize::from(deletes);
            creations += usize::from(creates);
        }
    }
    assert_eq!((deletions, creations), (2 * 18 + 3 * 3, 2));
}

#[test]
fn workers_that_do_not_answer_are_left_alone() {
    for workers in [Lookup::Absent, unknown()] {
        let sight = Sight { queued: None, node: node("READY", "HEALTHY"), workers };
        assert!(matches!(decide(&sight, GOAL), Decision::Wait { patience: Patience::Limited, .. }));
    }
    let sight = Sight {
        queued: None,
        node: node("READY", "UNHEALTHY_MAINTENANCE"),
        workers: Lookup::Found(vec![worker(RunState::Killed)]),
    };
    assert!(matches!(decide(&sight, GOAL), Decision::Wait { patience: Patience::Limited, .. }));
}

#[test]
fn a_run_is_set_up_started_and_started_again() {
    use RunState::{Ended, Killed, None, Running};
    let all = |state| ready(&[worker(state), worker(state)]);
    let with = |change: fn(&mut Observed), state| {
        let mut other = worker(state);
        change(&mut other);
        ready(&[worker(state), other])
    };
    let starts = |sight: &Sight| matches!(decide(sight, GOAL), Start { after_failure: false, .. });
    assert_eq!(decide(&with(|worker| worker.setup.clear(), None), GOAL), SetUp);
    // What runs is not disturbed, whatever it is.
    for sight in [
        all(Running),
        with(|worker| worker.setup.clear(), Running),
        with(|worker| worker.job.clear(), Running),
    ] {
        assert!(matches!(decide(&sight, GOAL), Decision::Wait { patience: Patience::Endless, .. }));
    }
    assert!(starts(&all(None)));
    assert!(starts(&with(|worker| worker.job = "earlier".to_owned(), Ended(0))));
    for state in [Ended(75), Ended(143), Killed] {
        assert!(starts(&all(state)), "{state:?}");
    }
    assert_eq!(decide(&all(Ended(0)), GOAL), Done);
    // The others may have been killed after the one that writes the run had ended.
    assert_eq!(
        decide(&ready(&[worker(Killed), Observed { is_chief: true, ..worker(Ended(0)) }]), GOAL),
        Done
    );
    assert!(starts(&ready(&[worker(Killed), worker(Ended(0))])));
    let usage = [worker(Ended(1)), Observed { error: "why".to_owned(), ..worker(Ended(2)) }];
    assert_eq!(decide(&ready(&usage), GOAL), GiveUp("failed with status 2: why".to_owned()));
    for status in [1, 101, 137, 139] {
        let failed = ready(&[worker(Ended(75)), worker(Ended(status))]);
        assert!(matches!(decide(&failed, GOAL), Start { after_failure: true, .. }), "{status}");
        assert!(matches!(decide(&failed, Goal { restarts_left: 0, ..GOAL }), GiveUp(_)), "{status}");
    }
    // A slice of which one still runs: it ends when it has waited long enough for the others.
    let mixed = ready(&[worker(Running), worker(Ended(1))]);
    assert!(matches!(decide(&mixed, GOAL), Decision::Wait { .. }));
}

#[test]
fn what_workers_say_is_found_among_what_ssh_says() {
    let text = "Warning: Permanently added\nbert-xla state=ended status=75 setup=a1 job=b2 chief=yes address=10.0.0.2 error=error: b error=c\n\
                bert-xla state=none address=10.0.0.1\nbye\n";
    let address = "10.0.0.2".to_owned();
    let (setup, job, state) = ("a1".to_owned(), "b2".to_owned(), RunState::Ended(75));
    let chief = Observed { address, setup, job, is_chief: true, state, error: "b error=c".to_owned() };
    let other = Observed { address: "10.0.0.1".to_owned(), ..Observed::default() };
    assert_eq!(Observed::parse_all(text), Some(vec![chief, other]));
    let fresh = Observed { setup: "a1".to_owned(), ..Observed::default() };
    let text = "bert-xla state=none status= setup=a1 job= chief= address=\n";
    assert_eq!(Observed::parse_all(text), Some(vec![fresh]));
    assert_eq!(Observed::parse_all("nothing"), Some(vec![]));
    for text in ["bert-xla state=ended status= setup= job= chief=", "bert-xla state=odd"] {
        assert_eq!(Observed::parse_all(text), Option::None, "{text}");
    }
}
