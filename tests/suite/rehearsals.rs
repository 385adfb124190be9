//! What Google Cloud does to a VM that it takes back or maintains, in the order in which it does it, against a stand-in for
//! the VM's metadata server: the run is saved in time, and goes on as if nothing had been.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::common::cli::train;
use crate::common::metadata::Metadata;
use crate::common::runs::{
    FLAGS, Outcome, Training, check_whole, outcome, run, saved_step, steps, uninterrupted, went_on_after,
};
use crate::common::slice::{Slice, TIME_LIMIT, wait};
use crate::common::{empty_folder, slow_disk};

/// What happens to a VM: a value of its metadata server's changes, and its processes get SIGTERM.
struct Event {
    name: &'static str,
    value: &'static str,
    /// As the program tells it.
    reason: &'static str,
}

/// As `gcloud alpha compute tpus tpu-vm simulate-maintenance-event` has it.
const MAINTENANCE: Event = Event {
    name: "maintenance-event",
    value: "TERMINATE_ON_HOST_MAINTENANCE",
    reason: "maintenance of the VM's host: TERMINATE_ON_HOST_MAINTENANCE",
};

/// The end of a spot VM, which is switched off [`LEFT`] later.
const PREEMPTION: Event = Event { name: "preempted", value: "TRUE", reason: "the VM is preempted" };
const LEFT: Duration = Duration::from_secs(30);

impl Event {
    /// Tells the VM's programs, and returns when they have heard of it. They have heard before that nothing had happened:
    /// what is so from the start is no news to them.
    #[track_caller]
    fn tell(&self, vm: &Metadata) {
        vm.wait_until_heard(self.name);
        vm.set(self.name, self.value);
        vm.wait_until_heard(self.name);
    }
}

/// `command` on a VM whose disk is slow: it is still at its last checkpoint when the signal comes.
fn on(vm: &Metadata, disk: &Path, mut command: Command) -> Command {
    command.env("GCE_METADATA_HOST", vm.host()).env("LD_PRELOAD", disk).env("SLOW_MS", "50");
    command
}

#[test]
fn a_vm_that_is_maintained_or_taken_back_has_saved_before() {
    let Some(disk) = slow_disk("rehearsal_disk") else { return };
    let folder = empty_folder("rehearsal");
    for event in [MAINTENANCE, PREEMPTION] {
        let root = folder.join(event.name);
        let vm = Metadata::start();
        let mut training = Training::start(on(&vm, &disk, train(&root, &FLAGS)), &root, 5);
        event.tell(&vm);
        training.signal("TERM");
        training.kill_after(LEFT);
        let (code, stderr) = training.end();
        assert_eq!(code, Some(75), "{stderr}");
        let step = saved_step(&stderr, event.reason, &root);
        assert!((5..46).contains(&step), "{stderr}");
        assert_eq!(check_whole(&root).last(), Some(&step));
        // A spot VM is another one then; maintenance may still be to come for the same.
        let next = if event.name == PREEMPTION.name { Metadata::start() } else { vm };
        let (code, stderr) = run(train(&root, &FLAGS).env("GCE_METADATA_HOST", next.host()));
        assert_eq!((code, went_on_after(&stderr)), (Some(0), Some(step)), "{stderr}");
        assert_eq!(outcome(&root), *uninterrupted().1);
        check_whole(&root);
    }
}

const HOSTS: usize = 4;

/// What a slice comes to if nothing happens: as one host does with as many replicas.
fn on_one_host() -> &'static Outcome {
    static OUTCOME: OnceLock<Outcome> = OnceLock::new();
    OUTCOME.get_or_init(|| {
        let root = empty_folder("rehearsal_one_host").join("run");
        let (code, stderr) = run(&mut train(&root, &[&FLAGS[..], &["--replicas", "4"]].concat()));
        assert_eq!(code, Some(0), "{stderr}");
        outcome(&root)
    })
}

/// One host of four is told, and gets the signal first, as do the others if it is for all.
#[track_caller]
fn rehearse_on_a_slice(event: &Event, told: usize, for_all: bool) {
    let Some(disk) = slow_disk("rehearsal_slice_disk") else { return };
    let folder = empty_folder(&format!("rehearsal_slice_{}", event.name));
    let outputs: [PathBuf; HOSTS] = [0, 1, 2, 3].map(|host| folder.join(format!("{host}/run")));
    let Some(slice) = Slice::start(HOSTS) else { return };
    let flags = [&FLAGS[..], &["--slice-timeout", "60"]].concat();
    let vms = [0, 1, 2, 3].map(|_| Metadata::start());
    let mut hosts = [0, 1, 2, 3]
        .map(|host: usize| slice.spawn(host, on(&vms[host], &disk, train(&outputs[host], &flags)), HOSTS));
    let deadline = Instant::now() + TIME_LIMIT;
    while steps(&outputs[0]).last().is_none_or(|last| *last < 5) {
        let is_running = hosts.iter_mut().all(|host| host.is_running());
        assert!(is_running && Instant::now() < deadline, "{}", hosts[0].stderr());
        std::thread::sleep(Duration::from_millis(1));
    }
    event.tell(&vms[told]);
    hosts[told].signal("TERM");
    if for_all {
        hosts.iter().for_each(|host| host.signal("TERM"));
    }
    hosts.iter_mut().for_each(|host| host.kill_after(LEFT));
    let ends = wait(hosts);
    slice.wait();
    for end in &ends {
        assert_eq!(end.code, Some(75), "{ends:?}");
    }
    let reason = if told == 0 { event.reason } else { "another host of the slice was asked to" };
    let step = saved_step(&ends[0].stderr, reason, &outputs[0]);
    assert!((5..46).contains(&step), "{ends:?}");
    assert_eq!(check_whole(&outputs[0]).last(), Some(&step));
    // A spot VM takes its disk with it.
    if event.name == PREEMPTION.name {
        let _ = fs::remove_dir_all(&outputs[told]);
    }
    let slice = Slice::start(HOSTS).unwrap();
    let ends = wait([0, 1, 2, 3].map(|host: usize| slice.spawn(host, train(&outputs[host], &flags), HOSTS)));
    slice.wait();
    for end in &ends {
        assert_eq!(end.code, Some(0), "{ends:?}");
    }
    assert_eq!(went_on_after(&ends[0].stderr), Some(step), "{ends:?}");
    assert_eq!(outcome(&outputs[0]), *on_one_host());
    check_whole(&outputs[0]);
}

#[test]
fn a_slice_whose_hosts_are_maintained_has_saved_before() {
    rehearse_on_a_slice(&MAINTENANCE, 0, true);
}

#[test]
fn a_slice_that_loses_a_spot_vm_has_saved_before() {
    rehearse_on_a_slice(&PREEMPTION, 2, false);
}
