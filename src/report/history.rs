//! The numbers of each epoch, kept as one JSON line per epoch.

use serde::{Deserialize, Deserializer, Serialize};

use super::{ReportError, Result};

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
    /// Accuracy on the train set, 0 to 1. As Keras counts it, here and in `val_accuracy`: an example is right if its label
    /// is the most probable of all classes, those without a label included. Answers leave those out.
    #[serde(deserialize_with = "null_is_nan")]
    pub accuracy: f64,
    /// Mean loss on the dev set, in nats; `None` without a dev set.
    pub val_loss: Option<f64>,
    /// Accuracy on the dev set, 0 to 1; `None` without a dev set.
    pub val_accuracy: Option<f64>,
    /// The mean over the classes of F1 on the dev set, of the answers (scikit-learn's `f1_score(average="macro")`); `None` in
    /// runs of before it was measured.
    #[serde(default)]
    pub val_f1: Option<f64>,
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
    /// Whether the run's weights are those of this epoch, where they need not be the last one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<bool>,
}

impl EpochRecord {
    /// One line of JSON.
    pub fn to_line(&self) -> String {
        // Numbers and fixed names: nothing that JSON can't hold, so that there is no error to have.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl EpochRecord {
    /// As [`to_line`](Self::to_line), with the name of the member of an ensemble that it is of, if there is one.
    pub fn to_line_of(&self, member: Option<&str>) -> String {
        #[derive(Serialize)]
        struct OfMember<'a> {
            member: &'a str,
            #[serde(flatten)]
            record: &'a EpochRecord,
        }
        let of = |member| serde_json::to_string(&OfMember { member, record: self }).unwrap_or_default();
        member.map_or_else(|| self.to_line(), of)
    }
}

/// JSON has no NaN: serde_json writes `null`.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// The epochs of a run; as a file, a JSON line each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    epochs: Vec<EpochRecord>,
}

impl History {
    /// Reads the lines that [`to_lines`](Self::to_lines) wrote.
    ///
    /// # Errors
    /// A line that is not an epoch record.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let record = |(index, line)| {
            serde_json::from_str(line).map_err(|source| ReportError::Record { line: index + 1, source })
        };
        Ok(Self { epochs: lines.map(record).collect::<Result<_>>()? })
    }

    /// Adds an epoch.
    ///
    /// Records of the same epoch and of later ones go: a run that resumes from an older checkpoint repeats them.
    pub fn push(&mut self, record: EpochRecord) {
        self.epochs.retain(|earlier| earlier.epoch < record.epoch);
        self.epochs.push(record);
    }

    /// Has the weights of one epoch be the run's.
    pub fn keep(&mut self, epoch: u32) {
        self.epochs.iter_mut().for_each(|record| record.kept = Some(record.epoch == epoch));
    }

    /// The record of an epoch.
    pub fn epoch(&self, epoch: u32) -> Option<&EpochRecord> {
        self.epochs.iter().find(|record| record.epoch == epoch)
    }

    /// The epochs so far, in order.
    pub fn epochs(&self) -> &[EpochRecord] {
        &self.epochs
    }

    /// A line per epoch, each ended by a newline.
    pub fn to_lines(&self) -> String {
        self.epochs.iter().map(|epoch| epoch.to_line() + "\n").collect()
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
            val_f1: val_loss.map(|_| 0.25),
            seconds: 10.5,
            step_ms: 60.25,
            examples_per_second: 265.5,
            learning_rate: 1e-5,
            kept: None,
        }
    }

    #[test]
    fn a_line_per_epoch_with_keras_names() {
        let mut history = History::default();
        history.push(record(1, 1.25, Some(1.5)));
        history.push(record(2, 1.0, None));
        let expected = "\
{\"epoch\":1,\"step\":169,\"loss\":1.25,\"accuracy\":0.75,\"val_loss\":1.5,\"val_accuracy\":0.5,\"val_f1\":0.25,\
\"seconds\":10.5,\"step_ms\":60.25,\"examples_per_second\":265.5,\"learning_rate\":0.00001}
{\"epoch\":2,\"step\":338,\"loss\":1.0,\"accuracy\":0.75,\"val_loss\":null,\"val_accuracy\":null,\"val_f1\":null,\
\"seconds\":10.5,\"step_ms\":60.25,\"examples_per_second\":265.5,\"learning_rate\":0.00001}
";
        let lines = |text: &str| -> Vec<serde_json::Value> {
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        assert_eq!(lines(&history.to_lines()), lines(expected));
        assert_eq!(History::parse(&history.to_lines()).unwrap(), history);
    }

    #[test]
    fn resuming_replaces_the_epochs_that_are_run_again() {
        let mut history = History::default();
        for epoch in 1..=3 {
            history.push(record(epoch, 1.0, Some(f64::from(epoch))));
        }
        history.push(record(2, 0.5, Some(0.25)));
        assert_eq!(history.epochs(), [record(1, 1.0, Some(1.0)), record(2, 0.5, Some(0.25))]);
    }

    #[test]
    fn a_loss_that_diverged_is_read_back_as_nan() {
        let mut history = History::default();
        history.push(record(1, f64::NAN, Some(f64::INFINITY)));
        let read = History::parse(&history.to_lines()).unwrap();
        assert!(read.epochs()[0].loss.is_nan());
        assert_eq!(read.epochs()[0].val_loss, None);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let text = record(1, 1.0, None).to_line() + "\n{\"epoch\":2";
        let error = History::parse(&text).unwrap_err();
        assert!(error.is_input_error());
        assert!(error.to_string().contains("line 2: not an epoch record"), "{error}");
    }

    #[test]
    fn median_of_odd_even_and_no_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
