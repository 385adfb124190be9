//! The numbers of each epoch, kept as one JSON line per epoch.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::{ReportError, Result};
use crate::files::write_atomic;

/// What one epoch measured. Metrics have Keras's names; one that is not finite is `null` in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Epochs done, from 1.
    pub epoch: u32,
    /// Optimizer steps done since training began.
    pub step: u64,
    /// Mean loss on the train set, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Accuracy on the train set, 0 to 1.
    #[serde(deserialize_with = "null_is_nan")]
    pub accuracy: f64,
    /// Mean loss on the dev set, in nats; `None` without a dev set.
    pub val_loss: Option<f64>,
    /// Accuracy on the dev set, 0 to 1; `None` without a dev set.
    pub val_accuracy: Option<f64>,
    /// Wall-clock time of the epoch with its evaluation, in seconds.
    pub seconds: f64,
    /// Median time of a train step, in milliseconds.
    #[serde(deserialize_with = "null_is_nan")]
    pub step_ms: f64,
    /// Examples trained on per second, over all replicas.
    #[serde(deserialize_with = "null_is_nan")]
    pub examples_per_second: f64,
    /// Learning rate of the epoch's last step.
    pub learning_rate: f64,
}

/// JSON has no NaN: serde_json writes `null`.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// The epochs of a run, mirrored in a JSON-lines file that is complete after each epoch.
#[derive(Clone, Debug)]
pub struct History {
    path: PathBuf,
    epochs: Vec<EpochRecord>,
}

impl History {
    /// A history with no epochs; the file is written, in place of any that is there, at the first [`push`](Self::push).
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), epochs: Vec::new() }
    }

    /// The history in the file at `path`, to go on with; empty if there is no such file.
    ///
    /// # Errors
    /// The file cannot be read, or a line of it is not an epoch record.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::new(path)),
            Err(source) => return Err(ReportError::File { path, action: "read the history", source }),
        };
        let mut epochs = Vec::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(epoch) => epochs.push(epoch),
                Err(source) => return Err(ReportError::Record { path, line: index + 1, source }),
            }
        }
        Ok(Self { path, epochs })
    }

    /// Adds an epoch and writes the file.
    ///
    /// Records of the same epoch and of later ones go: a run that resumes from an older checkpoint repeats them.
    ///
    /// # Errors
    /// The file cannot be written; it then has its former lines.
    pub fn push(&mut self, record: EpochRecord) -> Result<()> {
        self.epochs.retain(|earlier| earlier.epoch < record.epoch);
        self.epochs.push(record);
        let write = write_atomic(&self.path, |file| {
            for epoch in &self.epochs {
                serde_json::to_writer(&mut *file, epoch)?;
                file.write_all(b"\n")?;
            }
            Ok(())
        });
        write.map_err(|source| ReportError::File {
            path: self.path.clone(),
            action: "write the history",
            source,
        })
    }

    /// The epochs so far, in order.
    pub fn epochs(&self) -> &[EpochRecord] {
        &self.epochs
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The middle value, or the mean of the middle two; `None` for no values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(epoch: u32, loss: f64, val_loss: Option<f64>) -> EpochRecord {
        EpochRecord {
            epoch,
            step: u64::from(epoch) * 169,
            loss,
            accuracy: 0.75,
            val_loss,
            val_accuracy: val_loss.map(|_| 0.5),
            seconds: 10.5,
            step_ms: 60.25,
            examples_per_second: 265.5,
            learning_rate: 1e-5,
        }
    }

    #[test]
    fn a_line_per_epoch_with_keras_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.jsonl");
        let mut history = History::new(&path);
        history.push(record(1, 1.25, Some(1.5))).unwrap();
        history.push(record(2, 1.0, None)).unwrap();
        let expected = "\
{\"epoch\":1,\"step\":169,\"loss\":1.25,\"accuracy\":0.75,\"val_loss\":1.5,\"val_accuracy\":0.5,\
\"seconds\":10.5,\"step_ms\":60.25,\"examples_per_second\":265.5,\"learning_rate\":0.00001}
{\"epoch\":2,\"step\":338,\"loss\":1.0,\"accuracy\":0.75,\"val_loss\":null,\"val_accuracy\":null,\
\"seconds\":10.5,\"step_ms\":60.25,\"examples_per_second\":265.5,\"learning_rate\":0.00001}
";
        let lines = |text: &str| -> Vec<serde_json::Value> {
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        assert_eq!(lines(&fs::read_to_string(&path).unwrap()), lines(expected));
        assert_eq!(History::open(&path).unwrap().epochs(), history.epochs());
    }

    #[test]
    fn resuming_replaces_the_epochs_that_are_run_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.jsonl");
        let mut history = History::open(&path).unwrap();
        for epoch in 1..=3 {
            history.push(record(epoch, 1.0, Some(f64::from(epoch)))).unwrap();
        }
        let mut resumed = History::open(&path).unwrap();
        resumed.push(record(2, 0.5, Some(0.25))).unwrap();
        let epochs = History::open(&path).unwrap();
        assert_eq!(epochs.epochs(), [record(1, 1.0, Some(1.0)), record(2, 0.5, Some(0.25))]);
    }

    #[test]
    fn a_loss_that_diverged_is_read_back_as_nan() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.jsonl");
        History::new(&path).push(record(1, f64::NAN, Some(f64::INFINITY))).unwrap();
        let read = History::open(&path).unwrap();
        assert!(read.epochs()[0].loss.is_nan());
        assert_eq!(read.epochs()[0].val_loss, None);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.jsonl");
        History::new(&path).push(record(1, 1.0, None)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{\"epoch\":2")).unwrap();
        let error = History::open(&path).unwrap_err();
        assert!(error.is_input_error());
        assert!(error.to_string().contains("history.jsonl, line 2: not an epoch record"), "{error}");
    }

    #[test]
    fn median_of_odd_even_and_no_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
