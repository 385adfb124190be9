//! Runs that are asked to stop: they save what is done, and go on from there as if nobody had asked.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use bert_xla::run::Newest;
use bert_xla::storage::Folder;
use bert_xla::train::{
    Cadence, Ending, EpochMetrics, Observer, SaveOptions, Session, Shared, Started, StepMetrics, Stop,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::common::cli::train;
use crate::common::runs::{
    FLAGS, Outcome, Training, check_whole, outcome, run, saved_step, steps, uninterrupted, went_on_after,
};
use crate::common::training::{connect, job};
use crate::common::{empty_folder, slow_disk};

/// `command`, which hears of an interrupt, even if whoever runs the tests was started to ignore it.
fn interruptible(command: &Command) -> Command {
    let mut shown = Command::new("env");
    shown.arg("--default-signal=INT").arg(command.get_program()).args(command.get_args());
    shown.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shown
}

#[test]
fn a_signal_saves_the_step_and_the_same_command_goes_on_from_it() {
    let folder = empty_folder("signals_step");
    // A second SIGTERM is the first one again.
    for (name, signals) in [("term", &["TERM", "TERM"][..]), ("int", &["INT"]), ("hup", &["HUP", "HUP"])] {
        let root = folder.join(name);
        let mut before = None;
        for least in [5, 26] {
            let training = Training::start(interruptible(&train(&root, &FLAGS)), &root, least);
            signals.iter().for_each(|signal| training.signal(signal));
            let (code, stderr) = training.end();
            assert_eq!((code, went_on_after(&stderr)), (Some(75), before), "{stderr}");
            let step = saved_step(&stderr, &format!("SIG{}", signals[0]), &root);
            assert!(step >= least, "{stderr}");
            assert_eq!(check_whole(&root).last(), Some(&step));
            before = Some(step);
        }
        let (code, stderr) = run(&mut train(&root, &FLAGS));
        assert_eq!((code, went_on_after(&stderr)), (Some(0), before), "{stderr}");
        assert_eq!(outcome(&root), *uninterrupted().1);
        check_whole(&root);
    }
}

/// From the line on that it is ready, a signal saves: nothing is lost, if nothing is gained.
#[test]
fn a_signal_that_comes_as_soon_as_it_is_ready_saves() {
    let folder = empty_folder("signals_ready");
    for number in 0..5 {
        let root = folder.join(number.to_string());
        let mut command = train(&root, &FLAGS);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        lines.find(|line| line.starts_with("Ready to train")).unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let said = lines.collect::<Vec<_>>().join("\n");
        assert_eq!(child.wait().unwrap().code(), Some(75), "{said}");
        assert!(said.contains("Stopped (SIGTERM) after step "), "{said}");
    }
}

/// As shells start what is to go on in the background.
#[test]
fn an_interrupt_that_is_ignored_stays_so() {
    let root = empty_folder("signals_ignored").join("run");
    let command = train(&root, &FLAGS);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' INT; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let training = Training::start(shell, &root, 5);
    training.signal("INT");
    training.signal("INT");
    let (code, stderr) = training.end();
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn a_second_interrupt_ends_a_run_at_once() {
    let Some(library) = slow_disk("signals_slow_disk") else { return };
    let root = empty_folder("signals_twice").join("run");
    let mut command = train(&root, &FLAGS);
    // A checkpoint takes seconds: the run is still at it.
    command.env("LD_PRELOAD", library).env("SLOW_MS", "400");
    let training = Training::start(interruptible(&command), &root, 5);
    training.signal("INT");
    // Two that wait to be heard are one.
    std::thread::sleep(std::time::Duration::from_millis(200));
    training.signal("INT");
    let (code, stderr) = training.end();
    assert_eq!(code, Some(130), "{stderr}");
    let newest = steps(&root).last().copied();
    let (code, stderr) = run(&mut train(&root, &FLAGS));
    assert_eq!((code, went_on_after(&stderr)), (Some(0), newest), "{stderr}");
    assert_eq!(outcome(&root), *uninterrupted().1);
    check_whole(&root);
}

/// Asks to stop after so many of the steps that it is told of.
struct Asks<'s> {
    stop: &'s Stop,
    after: u64,
    steps: u64,
}

impl Observer for Asks<'_> {
    fn step(&mut self, _: &StepMetrics, _: &EpochMetrics) {
        self.steps += 1;
        if self.steps == self.after {
            self.stop.ask("it was asked to");
        }
    }
}

/// Trains 2 epochs of 6 steps, and is asked to stop after so many of them; `None` if it is finished already.
fn session(root: &Path, cadence: Cadence, after: u64) -> Option<Ending> {
    let save = SaveOptions { cadence, keep_last: 100, ..SaveOptions::default() };
    let stop = Stop::default();
    if after == 0 {
        stop.ask("it was asked to");
    }
    let mut observer = Asks { stop: &stop, after, steps: 0 };
    match Session::start(job(), &Shared::new(connect(1)), root, save, &mut observer).unwrap() {
        Started::Ready(mut session) => Some(session.run(&stop, &mut observer).unwrap()),
        Started::Finished { .. } => None,
    }
}

fn whole(root: &Path, cadence: Cadence) -> Outcome {
    assert_eq!(session(root, cadence, u64::MAX), Some(Ending::Finished));
    outcome(root)
}

#[test]
fn wherever_a_run_is_asked_to_stop_it_goes_on_from_there() {
    let folder = empty_folder("signals_anywhere");
    let expected = whole(&folder.join("whole"), Cadence::Epochs);
    // Before the first step, in an epoch, before its evaluation, with the next epoch's first step.
    for after in [0, 5, 6, 7] {
        let root = folder.join(after.to_string());
        let mut asked = 0;
        while let Some(ending) = session(&root, Cadence::Epochs, after) {
            asked += 1;
            match ending {
                Ending::Stopped { reason, step } => {
                    assert_eq!(reason, "it was asked to");
                    // The step after it may be on its way already.
                    assert!((asked * after..=asked * (after + 1)).contains(&step), "{after}: {step}");
                    assert_eq!(check_whole(&root).last(), Some(&step));
                    let newest = Newest::find(&Folder::new(&root)).unwrap();
                    let within = newest.checkpoint.unwrap().progress.within.unwrap();
                    assert_eq!(within.steps % 6, step % 6);
                }
                Ending::Finished => break,
            }
            if after == 0 {
                // Asked again, it has nothing new to save.
                let before = steps(&root);
                assert!(matches!(session(&root, Cadence::Epochs, 0), Some(Ending::Stopped { step: 0, .. })));
                assert_eq!((steps(&root), before), (vec![0], vec![0]));
                session(&root, Cadence::Epochs, u64::MAX);
            }
        }
        assert_eq!(outcome(&root), expected, "{after}");
    }
}

#[test]
fn checkpoints_after_every_step_change_nothing() {
    let folder = empty_folder("signals_every_step");
    let [few, all] = [("few", Cadence::Epochs), ("all", Cadence::Steps(1))].map(|(name, cadence)| {
        let root = folder.join(name);
        let outcome = whole(&root, cadence);
        (check_whole(&root), outcome.history, outcome.hashes)
    });
    assert_eq!((few.0, all.0), (vec![6, 12], (1..=12).collect()));
    assert_eq!((few.1, few.2), (all.1, all.2));
}
