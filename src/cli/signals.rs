//! What signals do to a command that can stop in good order.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag::register_conditional_shutdown;
use signal_hook::iterator::Signals;

use super::{Error, Result};
use crate::train::Stop;

/// What shells say of a process that an interrupt has ended.
const INTERRUPTED: i32 = 128 + SIGINT;

/// From now on, SIGTERM, SIGINT and SIGHUP ask to stop in good order; a second SIGINT ends the process at once, with status
/// 130. One that the process was started to ignore, as shells start what goes on in the background, is ignored as before.
///
/// # Errors
/// A system that has no room for what this takes.
pub fn install(stop: &Stop) -> Result<()> {
    let stop = stop.clone();
    let each = move |signal| {
        stop.ask(match signal {
            SIGINT => "SIGINT",
            SIGHUP => "SIGHUP",
            _ => "SIGTERM",
        });
    };
    listen(each, &[]).map_err(Error::Signals)
}

/// Gives `each` the signals that are heard: those that aren't ignored, and `all` of these.
fn listen(each: impl Fn(i32) + Send + 'static, all: &[i32]) -> io::Result<()> {
    let heard = [SIGTERM, SIGINT, SIGHUP]
        .into_iter()
        .filter(|signal| all.contains(signal) || !is_ignored(*signal))
        .collect::<Vec<_>>();
    if heard.contains(&SIGINT) {
        let interrupted = Arc::new(AtomicBool::new(false));
        // In the handler itself, whatever the threads do; in this order, so that the first one only arms it.
        register_conditional_shutdown(SIGINT, INTERRUPTED, interrupted.clone())?;
        signal_hook::flag::register(SIGINT, interrupted)?;
    }
    let mut signals = Signals::new(heard)?;
    thread::Builder::new().spawn(move || {
        signals.forever().for_each(each);
    })?;
    Ok(())
}

/// From now on, SIGTERM and SIGINT call `stop` with their names, and SIGHUP calls `reload`; a second SIGINT ends the process as
/// above.
///
/// # Errors
/// As [`install`].
#[cfg(feature = "serve")]
pub fn serve(stop: impl Fn(&'static str) + Send + 'static, reload: impl Fn() + Send + 'static) -> Result<()> {
    let each = move |signal| match signal {
        SIGHUP => reload(),
        SIGINT => stop("SIGINT"),
        _ => stop("SIGTERM"),
    };
    // Under nohup, too, it is asked by SIGHUP, which never ends it.
    listen(each, &[SIGHUP]).map_err(Error::Signals)
}

/// From now on, what ends the process with a signal has it say this first.
///
/// # Errors
/// As [`install`].
pub fn say_when_ended(line: String) -> Result<()> {
    let listen = || {
        let heard = [SIGTERM, SIGINT, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal));
        let mut signals = Signals::new(heard)?;
        thread::Builder::new().spawn(move || {
            if let Some(signal) = signals.forever().next() {
                // Where nobody reads it any more, it is not said.
                let _ = writeln!(io::stderr(), "{line}");
                std::process::exit(128 + signal);
            }
        })
    };
    listen().map(drop).map_err(Error::Signals)
}

/// From now on, a file that grows beyond the limit on its size (`ulimit -f`) is an error of writing it, and doesn't end the
/// process without a word.
pub fn outlive_limits() {
    // Where it can't be had, it ends it.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
}

/// Whether nothing happens on a signal, as Linux tells it of this process.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Lines};
    use std::process::{Child, ChildStdout, Command, Stdio};

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    /// A process that listens, and says on stdout what it then has as the reason to stop.
    struct Process(Child, Lines<BufReader<ChildStdout>>);

    impl Process {
        fn start() -> Self {
            // Whoever runs the tests may have been started to ignore it.
            let mut command = Command::new("env");
            command.arg("--default-signal=INT").arg(std::env::current_exe().unwrap()).args([
                "--exact",
                "cli::signals::tests::process_that_listens",
                "--ignored",
                "--nocapture",
            ]);
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap() == "ready"));
            Self(child, lines)
        }

        fn send(&self, signal: Signal) {
            kill_process(Pid::from_child(&self.0), signal).unwrap();
        }

        /// What it says of a signal that it survives.
        #[track_caller]
        fn answer(&mut self, signal: Signal) -> String {
            self.send(signal);
            self.1.next().expect("it goes on").unwrap()
        }

        /// The status that a signal ends it with.
        fn end(mut self, signal: Signal) -> Option<i32> {
            self.send(signal);
            assert!(self.1.next().is_none());
            self.0.wait().unwrap().code()
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn the_first_signal_asks_and_a_second_interrupt_ends_the_process() {
        let mut process = Process::start();
        assert_eq!(process.answer(Signal::INT), "2: SIGINT");
        assert_eq!(process.answer(Signal::TERM), "15: SIGINT");
        assert_eq!(process.end(Signal::INT), Some(130));

        let mut process = Process::start();
        for _ in 0..3 {
            assert_eq!(process.answer(Signal::TERM), "15: SIGTERM");
        }
        // The first one after them is the first.
        assert_eq!(process.answer(Signal::INT), "2: SIGTERM");
        assert_eq!(process.end(Signal::INT), Some(130));
    }

    #[test]
    #[ignore = "the process of the_first_signal_asks_and_a_second_interrupt_ends_the_process"]
    fn process_that_listens() {
        let stop = Stop::default();
        install(&stop).unwrap();
        // Its handlers come after the others: what it hears of, they have seen.
        let mut signals = Signals::new([SIGTERM, SIGINT]).unwrap();
        println!("\nready");
        for signal in signals.forever() {
            let reason = loop {
                match stop.reason() {
                    Some(reason) => break reason,
                    None => thread::yield_now(),
                }
            };
            println!("{signal}: {reason}");
        }
    }
}
