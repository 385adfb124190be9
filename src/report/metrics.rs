//! Classification metrics, with the definitions of scikit-learn.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use super::{ReportError, Result, one_line};

/// How predictions compare with labels, over a whole data set.
///
/// Classes with neither support nor predictions are left out, as in scikit-learn's `classification_report`.
/// `Display` gives the aligned table, `Serialize` the JSON object.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Classification {
    /// Number of rows.
    pub rows: u64,
    /// Mean over the rows, in nats, as the model's own loss has it.
    pub loss: f64,
    /// Share of rows whose predicted class is the label, 0 to 1.
    pub accuracy: f64,
    /// One entry per class that occurs, in the order of the classes.
    pub per_class: Vec<ClassScore>,
    pub macro_average: Average,
    /// Weighted by support.
    pub weighted_average: Average,
    /// `[true][predicted]` counts, both axes in the order of `per_class`; absent where more than 1,000 classes occur.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confusion: Option<Vec<Vec<u64>>>,
}

/// Scores of one class; a ratio whose denominator is zero is 0 (scikit-learn's `zero_division=0`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScore {
    /// The label in the data set, such as `-1`; `class 0` for a class that no label maps to.
    pub label: String,
    pub class: u32,
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
    /// Number of rows with this label.
    pub support: u64,
}

/// A mean of the scores of the classes in `per_class`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Average {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
}

/// The most classes for which there is a confusion matrix, and for which it is shown to people.
const MATRIX: usize = 1000;
const SHOWN_MATRIX: usize = 40;

impl Classification {
    /// Compares `predicted` classes with `labels`, one of each per row. `loss` is the model's over the same rows, and
    /// `name` gives what a class is called.
    ///
    /// # Errors
    /// No rows, or other numbers of labels and predictions.
    pub fn new(labels: &[u32], predicted: &[u32], loss: f64, name: impl Fn(u32) -> String) -> Result<Self> {
        if labels.len() != predicted.len() {
            return Err(ReportError::Length { expected: labels.len(), found: predicted.len() });
        }
        if labels.is_empty() {
            return Err(ReportError::Empty);
        }
        // Of the pairs that occur: a matrix of all classes could be far larger than the rows.
        let mut counts = BTreeMap::<(u32, u32), u64>::new();
        let (mut support, mut predictions) = (BTreeMap::<u32, u64>::new(), BTreeMap::<u32, u64>::new());
        for (&label, &class) in labels.iter().zip(predicted) {
            *counts.entry((label, class)).or_default() += 1;
            *support.entry(label).or_default() += 1;
            *predictions.entry(class).or_default() += 1;
        }
        let count = |label, class| counts.get(&(label, class)).copied().unwrap_or_default();
        let present = support.keys().chain(predictions.keys()).copied().collect::<BTreeSet<_>>();
        let score = |&class: &u32| {
            let of = |counts: &BTreeMap<u32, u64>| counts.get(&class).copied().unwrap_or_default();
            let (hits, support, predictions) = (count(class, class), of(&support), of(&predictions));
            ClassScore {
                label: name(class),
                class,
                precision: ratio(hits, predictions),
                recall: ratio(hits, support),
                // 2TP / (2TP + FP + FN): the harmonic mean of precision and recall.
                f1: ratio(2 * hits, support + predictions),
                support,
            }
        };
        let per_class = present.iter().map(score).collect::<Vec<_>>();
        let correct = present.iter().map(|&class| count(class, class)).sum::<u64>();
        let row = |label| present.iter().map(|&class| count(label, class)).collect();
        Ok(Self {
            rows: labels.len() as u64,
            loss,
            accuracy: ratio(correct, labels.len() as u64),
            macro_average: average(&per_class, |_| 1.0),
            weighted_average: average(&per_class, |score| score.support as f64),
            confusion: (present.len() <= MATRIX).then(|| present.iter().map(|&label| row(label)).collect()),
            per_class,
        })
    }
}

fn ratio(numerator: u64, denominator: u64) -> f64 {
    if denominator == 0 { 0.0 } else { numerator as f64 / denominator as f64 }
}

fn average(scores: &[ClassScore], weight: impl Fn(&ClassScore) -> f64) -> Average {
    let total: f64 = scores.iter().map(&weight).sum();
    let mean =
        |value: fn(&ClassScore) -> f64| scores.iter().map(|s| weight(s) * value(s)).sum::<f64>() / total;
    Average { precision: mean(|s| s.precision), recall: mean(|s| s.recall), f1: mean(|s| s.f1) }
}

/// The layout of scikit-learn's `classification_report`, then the confusion matrix.
impl fmt::Display for Classification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.per_class.iter().map(|score| one_line(&score.label)).collect::<Vec<_>>();
        let lengths = labels.iter().map(|label| label.width());
        let width = lengths.chain(["weighted avg".len()]).max().unwrap_or(0);

        writeln!(f, "{:width$}  precision  recall  f1-score  support\n", "label")?;
        for (label, ClassScore { precision, recall, f1, support, .. }) in labels.iter().zip(&self.per_class) {
            let label = right(label, width);
            writeln!(f, "{label}  {precision:9.4}  {recall:6.4}  {f1:8.4}  {support:7}")?;
        }
        writeln!(f, "\n{:>width$}  {:27.4}  {:7}", "accuracy", self.accuracy, self.rows)?;
        let averages = [("macro avg", self.macro_average), ("weighted avg", self.weighted_average)];
        for (name, Average { precision, recall, f1 }) in averages {
            writeln!(f, "{name:>width$}  {precision:9.4}  {recall:6.4}  {f1:8.4}  {:7}", self.rows)?;
        }
        writeln!(f, "{:>width$}  {:27.4}  {:7}", "loss", self.loss, self.rows)?;
        match &self.confusion {
            Some(confusion) if confusion.len() <= SHOWN_MATRIX => {
                write_confusion(f, &labels, width, confusion)
            }
            _ => writeln!(f, "\nconfusion: {} classes, too many to show", self.per_class.len()),
        }
    }
}

/// `text` at the right of so many columns of a terminal, of which some characters take two.
fn right(text: &str, columns: usize) -> String {
    format!("{}{text}", " ".repeat(columns.saturating_sub(text.width())))
}

/// A column of `labels` and a row of them; the column is so wide.
fn write_confusion(
    f: &mut fmt::Formatter<'_>,
    labels: &[String],
    width: usize,
    confusion: &[Vec<u64>],
) -> fmt::Result {
    let counts = confusion.iter().flatten().map(|count| count.to_string().len());
    let cell = labels.iter().map(|label| label.width()).chain(counts).max().unwrap_or(0) + 2;

    writeln!(f, "\n{:width$}  predicted", "confusion")?;
    write!(f, "{:>width$}", "true")?;
    for label in labels {
        f.write_str(&right(label, cell))?;
    }
    for (label, row) in labels.iter().zip(confusion) {
        write!(f, "\n{}", right(label, width))?;
        for count in row {
            write!(f, "{count:>cell$}")?;
        }
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(labels: &[u32], predicted: &[u32]) -> Result<Classification> {
        let name = |class| match class {
            1..=3 => (i64::from(class) - 2).to_string(),
            _ => format!("class {class}"),
        };
        Classification::new(labels, predicted, 2.25, name)
    }

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
    }

    // y, h = [1, 1, 1, 2, 2, 3, 3, 3, 3, 2], [1, 2, 1, 2, 3, 3, 3, 1, 3, 2]
    // print(classification_report(y, h, digits=10, zero_division=0)); print(confusion_matrix(y, h))
    fn ten_rows() -> Classification {
        report(&[1, 1, 1, 2, 2, 3, 3, 3, 3, 2], &[1, 2, 1, 2, 3, 3, 3, 1, 3, 2]).unwrap()
    }

    #[test]
    fn classes_score_as_in_scikit_learn() {
        let report = ten_rows();
        assert_close(report.accuracy, 0.7);
        assert_eq!(report.confusion.as_ref().unwrap(), &[[2, 1, 0], [0, 2, 1], [1, 0, 3]]);
        let scores: Vec<_> =
            report.per_class.iter().map(|s| (s.label.as_str(), s.class, s.support)).collect();
        assert_eq!(scores, [("-1", 1, 3), ("0", 2, 3), ("1", 3, 4)]);
        assert_close(report.per_class[0].f1, 2.0 / 3.0);
        assert_close(report.per_class[2].precision, 0.75);
        assert_close(report.macro_average.f1, 0.6944444444444444);
        assert_close(report.weighted_average.recall, 0.7);
    }

    // y, h = [1, 1, 2, 2, 2, 5], [1, 2, 2, 3, 0, 5]
    // print(classification_report(y, h, digits=10, zero_division=0)); print(confusion_matrix(y, h))
    #[test]
    fn predicted_classes_without_support_count_and_absent_ones_do_not() {
        let report = report(&[1, 1, 2, 2, 2, 5], &[1, 2, 2, 3, 0, 5]).unwrap();
        let classes: Vec<u32> = report.per_class.iter().map(|s| s.class).collect();
        assert_eq!(classes, [0, 1, 2, 3, 5]);
        assert_eq!(report.per_class[0].label, "class 0");
        assert_close(report.accuracy, 0.5);
        let Average { precision, recall, f1 } = report.macro_average;
        assert_close(precision, 0.5);
        assert_close(recall, 0.36666666666666664);
        assert_close(f1, 0.41333333333333333);
        let Average { precision, recall, f1 } = report.weighted_average;
        assert_close(precision, 0.75);
        assert_close(recall, 0.5);
        assert_close(f1, 0.5888888888888889);
        assert_eq!(report.confusion.unwrap()[2], [1, 0, 1, 1, 0]);
    }

    #[test]
    fn a_label_stays_on_its_line() {
        let name = |class: u32| format!("two\nlines {class}");
        let report = Classification::new(&[1, 2], &[1, 2], 0.0, name).unwrap();
        let printed = report.to_string();
        assert_eq!(printed.lines().filter(|line| line.contains(r"two\nlines 1  ")).count(), 3, "{printed}");
        assert!(!printed.contains("two\n"), "{printed}");
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let name = |class: u32| ["負面的", "negative"][class as usize].to_owned();
        let printed = Classification::new(&[0, 1], &[0, 1], 0.0, name).unwrap().to_string();
        let lines =
            ["      負面的     1.0000", "    negative     1.0000", "        true    負面的  negative"];
        assert!(lines.iter().all(|line| printed.contains(&format!("\n{line}"))), "{printed}");
    }

    #[test]
    fn many_classes_take_memory_by_the_rows_alone() {
        // A matrix of these would be 32 GiB.
        let labels = (0..2000).map(|i| i * 32 + 7).collect::<Vec<u32>>();
        let report = report(&labels, &labels).unwrap();
        assert_eq!((report.per_class.len(), report.accuracy, report.confusion.is_none()), (2000, 1.0, true));
        assert!(report.to_string().ends_with("\nconfusion: 2000 classes, too many to show\n"));
        assert!(serde_json::to_value(&report).unwrap().get("confusion").is_none());
    }

    #[test]
    fn the_table_is_aligned() {
        let expected = "\
label         precision  recall  f1-score  support

          -1     0.6667  0.6667    0.6667        3
           0     0.6667  0.6667    0.6667        3
           1     0.7500  0.7500    0.7500        4

    accuracy                       0.7000       10
   macro avg     0.6944  0.6944    0.6944       10
weighted avg     0.7000  0.7000    0.7000       10
        loss                       2.2500       10

confusion     predicted
        true  -1   0   1
          -1   2   1   0
           0   0   2   1
           1   1   0   3
";
        assert_eq!(ten_rows().to_string(), expected);
    }

    #[test]
    fn json_has_the_names_of_the_fields() {
        let json = serde_json::to_value(ten_rows()).unwrap();
        assert_eq!(json["per_class"][0]["label"], "-1");
        assert_eq!(json["per_class"][2]["support"], 4);
        assert_eq!(json["confusion"][2][0], 1);
        assert_eq!(json["accuracy"], 0.7);
        assert_eq!(json["loss"], 2.25);
    }

    #[test]
    fn bad_input_is_named() {
        assert!(report(&[], &[]).unwrap_err().is_input_error());
        let error = report(&[1, 2], &[1]).unwrap_err();
        assert_eq!(error.to_string(), "1 predictions for 2 labels");
    }
}
