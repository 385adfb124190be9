//! The progress of an epoch: a bar on a terminal, one line per epoch anywhere else.

use std::fmt::Write;
use std::io::{IsTerminal, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressState, ProgressStyle};

/// Loss and accuracy, as running means over the epoch.
type Metrics = (f64, f64);

/// Shows one epoch on stderr.
///
/// On a terminal, a bar; it is redrawn at most ten times a second, and text is made only then, so that a step pays for
/// a counter and an uncontended lock. At the end, there and in a log file, one line in the manner of Keras.
pub struct EpochProgress {
    epoch: u32,
    epochs: u32,
    quiet: bool,
    bar: ProgressBar,
    metrics: Arc<Mutex<Metrics>>,
    started: Instant,
    steps_done: u64,
    /// From the start to the last step's end.
    step_time: Duration,
}

impl EpochProgress {
    /// Starts the clock of `epoch` (from 1) of `epochs`, which has `steps` steps, of which `done` were done before. `quiet`
    /// prints nothing at all.
    pub fn new(epoch: u32, epochs: u32, steps: u64, done: u64, quiet: bool) -> Self {
        let target = if quiet || !std::io::stderr().is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(10)
        };
        let progress = Self::with_target(epoch, epochs, steps, quiet, target);
        progress.skip(done)
    }

    /// Starts after steps that neither the time per step nor what is left is to count.
    fn skip(self, done: u64) -> Self {
        self.bar.set_position(done);
        self.bar.reset_eta();
        self.bar.set_style(style(Arc::clone(&self.metrics), done));
        self
    }

    fn with_target(epoch: u32, epochs: u32, steps: u64, quiet: bool, target: ProgressDrawTarget) -> Self {
        let metrics = Arc::new(Mutex::new((0.0, 0.0)));
        let bar = ProgressBar::with_draw_target(Some(steps), target)
            .with_style(style(Arc::clone(&metrics), 0))
            .with_prefix(format!("Epoch {epoch}/{epochs}"))
            // An epoch that fails midway leaves its bar where it stopped.
            .with_finish(ProgressFinish::Abandon);
        let started = Instant::now();
        Self { epoch, epochs, quiet, bar, metrics, started, steps_done: 0, step_time: Duration::ZERO }
    }

    /// One more step is done; the arguments are the epoch's running means.
    pub fn step(&mut self, loss: f64, accuracy: f64) {
        // A poisoned lock only means that a drawing thread panicked: the numbers are still good.
        *self.metrics.lock().unwrap_or_else(PoisonError::into_inner) = (loss, accuracy);
        self.steps_done += 1;
        self.step_time = self.started.elapsed();
        self.bar.inc(1);
    }

    /// Replaces the bar by the epoch's line; `validation` is loss and accuracy on the dev set.
    pub fn finish(self, validation: Option<(f64, f64)>) {
        self.bar.finish_and_clear();
        if !self.quiet {
            // Training goes on where nobody reads stderr any more; `eprintln` would panic.
            let _ = writeln!(std::io::stderr(), "{}", self.line(self.started.elapsed(), validation));
        }
    }

    /// `Epoch 2/5 - 88s - 521ms/step - loss: 0.8123 - accuracy: 0.6431 - val_loss: 0.7012 - val_accuracy: 0.7033`.
    ///
    /// The seconds are the whole epoch's, evaluation included; the time per step is that of training alone.
    fn line(&self, elapsed: Duration, validation: Option<(f64, f64)>) -> String {
        let (loss, accuracy) = *self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let step = per_step(self.step_time, self.steps_done);
        let mut line = format!(
            "Epoch {}/{} - {:.0}s - {step} - loss: {loss:.4} - accuracy: {accuracy:.4}",
            self.epoch,
            self.epochs,
            elapsed.as_secs_f64(),
        );
        if let Some((loss, accuracy)) = validation {
            line += &format!(" - val_loss: {loss:.4} - val_accuracy: {accuracy:.4}");
        }
        line
    }
}

fn style(metrics: Arc<Mutex<Metrics>>, skipped: u64) -> ProgressStyle {
    let show_metrics = move |_: &ProgressState, out: &mut dyn Write| {
        let (loss, accuracy) = *metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = write!(out, "loss {loss:.4} acc {accuracy:.4}");
    };
    let show_step = move |state: &ProgressState, out: &mut dyn Write| {
        let _ = out.write_str(&per_step(state.elapsed(), state.pos().saturating_sub(skipped)));
    };
    let show_eta = |state: &ProgressState, out: &mut dyn Write| {
        let seconds = state.eta().as_secs();
        let _ = write!(out, "ETA {:02}:{:02}", seconds / 60, seconds % 60);
    };
    ProgressStyle::with_template("{prefix} [{bar:25}] {pos}/{len} {step} {metrics} {eta_clock}")
        // The template is a constant of this file, and a test draws it.
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .with_key("metrics", show_metrics)
        .with_key("step", show_step)
        .with_key("eta_clock", show_eta)
}

/// Mean time of a step: `0.43ms/step`, `52ms/step`, `1.20s/step`.
fn per_step(elapsed: Duration, steps: u64) -> String {
    let seconds = elapsed.as_secs_f64() / steps.max(1) as f64;
    match seconds * 1e3 {
        ms if ms >= 1000.0 => format!("{seconds:.2}s/step"),
        ms if ms >= 1.0 => format!("{ms:.0}ms/step"),
        ms => format!("{ms:.2}ms/step"),
    }
}

#[cfg(test)]
mod tests {
    use indicatif::{InMemoryTerm, TermLike};

    use super::*;

    #[test]
    fn the_bar_shows_steps_metrics_and_time() {
        let terminal = InMemoryTerm::new(5, 120);
        let shown: Box<dyn TermLike> = Box::new(terminal.clone());
        let target = ProgressDrawTarget::term_like_with_hz(shown, 255);
        let mut progress = EpochProgress::with_target(2, 5, 4, false, target);
        progress.step(1.25, 0.5);
        std::thread::sleep(Duration::from_millis(20));
        progress.step(0.8123, 0.6431);
        progress.bar.tick();
        let screen = terminal.contents();
        assert!(screen.starts_with("Epoch 2/5 [============>"), "{screen}");
        assert!(screen.contains("] 2/4 "), "{screen}");
        assert!(screen.contains("/step loss 0.8123 acc 0.6431 ETA 00:0"), "{screen}");
        progress.bar.finish_and_clear();
        assert_eq!(terminal.contents(), "");
    }

    #[test]
    fn the_line_reads_as_in_keras() {
        let mut progress = EpochProgress::new(2, 5, 169, 0, true);
        progress.step(0.81234, 0.64312);
        progress.steps_done = 169;
        progress.step_time = Duration::from_millis(88_049);
        let line = |validation| progress.line(Duration::from_secs(91), validation);
        assert_eq!(line(None), "Epoch 2/5 - 91s - 521ms/step - loss: 0.8123 - accuracy: 0.6431");
        assert_eq!(
            line(Some((0.7, 0.75))),
            "Epoch 2/5 - 91s - 521ms/step - loss: 0.8123 - accuracy: 0.6431 - val_loss: 0.7000 - val_accuracy: 0.7500"
        );
    }

    #[test]
    fn the_unit_follows_the_size() {
        assert_eq!(per_step(Duration::from_micros(430), 1), "0.43ms/step");
        assert_eq!(per_step(Duration::from_millis(520), 10), "52ms/step");
        assert_eq!(per_step(Duration::from_millis(2400), 2), "1.20s/step");
        assert_eq!(per_step(Duration::ZERO, 0), "0.00ms/step");
    }
}
