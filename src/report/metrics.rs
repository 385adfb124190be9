//! Classification metrics, with the definitions of scikit-learn and the loss of Keras.

use std::fmt;

use serde::Serialize;

use super::{ReportError, Result};

/// Keras's `epsilon()`: probabilities are clipped to `[EPSILON, 1 - EPSILON]` before the logarithm.
const EPSILON: f64 = 1e-7;

/// How predictions compare with labels, over a whole data set.
///
/// Classes with neither support nor predictions are left out, as in scikit-learn's `classification_report`.
/// `Display` gives the aligned table, `Serialize` the JSON object.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Classification {
    /// Number of rows.
    pub rows: u64,
    /// Mean of `-ln p[label]`, in nats; absent when only the predicted classes are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Share of rows whose predicted class is the label, 0 to 1.
    pub accuracy: f64,
    /// One entry per class that occurs, in the order of the classes.
    pub per_class: Vec<ClassScore>,
    pub macro_average: Average,
    /// Weighted by support.
    pub weighted_average: Average,
    /// `[true][predicted]` counts, both axes in the order of `per_class`.
    pub confusion: Vec<Vec<u64>>,
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

impl Classification {
    /// Compares `predicted` classes, one per row, and the `probabilities` (`[labels.len(), num_classes]`, row-major, each
    /// row summing to 1) that they were decided by with `labels`.
    ///
    /// `names` maps classes to the data set's labels. The loss is Keras's `categorical_crossentropy`:
    /// p clipped to `[1e-7, 1 - 1e-7]`, then the mean of `-ln p[label]`.
    ///
    /// # Errors
    /// No rows, a length that does not fit, or a label outside `0..num_classes`.
    pub fn from_probabilities<L: fmt::Display>(
        labels: &[u32],
        predicted: &[u32],
        probabilities: &[f32],
        num_classes: usize,
        names: &[(u32, L)],
    ) -> Result<Self> {
        check_length("probabilities", probabilities.len(), labels.len() * num_classes, labels, num_classes)?;
        check_classes("the label", labels, num_classes)?;
        let rows = || probabilities.chunks_exact(num_classes.max(1));
        let mut report = Self::from_predictions(labels, predicted, num_classes, names)?;
        let total: f64 = rows()
            .zip(labels)
            .map(|(p, &c)| -f64::from(p[c as usize]).clamp(EPSILON, 1.0 - EPSILON).ln())
            .sum();
        report.loss = Some(total / labels.len() as f64);
        Ok(report)
    }

    /// Compares `predicted` classes with `labels`; the loss stays absent.
    ///
    /// # Errors
    /// As [`Classification::from_probabilities`]; also a predicted class outside `0..num_classes`.
    pub fn from_predictions<L: fmt::Display>(
        labels: &[u32],
        predicted: &[u32],
        num_classes: usize,
        names: &[(u32, L)],
    ) -> Result<Self> {
        check_length("predictions", predicted.len(), labels.len(), labels, num_classes)?;
        check_classes("the label", labels, num_classes)?;
        check_classes("the prediction", predicted, num_classes)?;
        if labels.is_empty() {
            return Err(ReportError::Empty);
        }
        let mut counts = vec![vec![0u64; num_classes]; num_classes];
        for (&label, &class) in labels.iter().zip(predicted) {
            counts[label as usize][class as usize] += 1;
        }
        let support = |c: usize| counts[c].iter().sum::<u64>();
        let predictions = |c: usize| counts.iter().map(|row| row[c]).sum::<u64>();
        let present: Vec<usize> = (0..num_classes).filter(|&c| support(c) + predictions(c) > 0).collect();

        let per_class: Vec<ClassScore> = present
            .iter()
            .map(|&c| ClassScore {
                label: label_of(c as u32, names),
                class: c as u32,
                precision: ratio(counts[c][c], predictions(c)),
                recall: ratio(counts[c][c], support(c)),
                // 2TP / (2TP + FP + FN): the harmonic mean of precision and recall.
                f1: ratio(2 * counts[c][c], support(c) + predictions(c)),
                support: support(c),
            })
            .collect();
        let correct: u64 = present.iter().map(|&c| counts[c][c]).sum();
        Ok(Self {
            rows: labels.len() as u64,
            loss: None,
            accuracy: ratio(correct, labels.len() as u64),
            macro_average: average(&per_class, |_| 1.0),
            weighted_average: average(&per_class, |score| score.support as f64),
            confusion: present.iter().map(|&t| present.iter().map(|&p| counts[t][p]).collect()).collect(),
            per_class,
        })
    }
}

fn check_length(
    what: &'static str,
    found: usize,
    expected: usize,
    labels: &[u32],
    num_classes: usize,
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(ReportError::Length { what, expected, found, rows: labels.len(), num_classes })
}

fn check_classes(what: &'static str, classes: &[u32], num_classes: usize) -> Result<()> {
    match classes.iter().position(|&class| class as usize >= num_classes) {
        None => Ok(()),
        Some(row) => Err(ReportError::Class { what, row, class: classes[row], num_classes }),
    }
}

fn label_of<L: fmt::Display>(class: u32, names: &[(u32, L)]) -> String {
    match names.iter().find(|(named, _)| *named == class) {
        Some((_, label)) => label.to_string(),
        None => format!("class {class}"),
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
        let labels = self.per_class.iter().map(|score| score.label.chars().count());
        let width = labels.chain(["weighted avg".len()]).max().unwrap_or(0);

        writeln!(f, "{:width$}  precision  recall  f1-score  support\n", "label")?;
        for ClassScore { label, precision, recall, f1, support, .. } in &self.per_class {
            writeln!(f, "{label:>width$}  {precision:9.4}  {recall:6.4}  {f1:8.4}  {support:7}")?;
        }
        writeln!(f, "\n{:>width$}  {:27.4}  {:7}", "accuracy", self.accuracy, self.rows)?;
        let averages = [("macro avg", self.macro_average), ("weighted avg", self.weighted_average)];
        for (name, Average { precision, recall, f1 }) in averages {
            writeln!(f, "{name:>width$}  {precision:9.4}  {recall:6.4}  {f1:8.4}  {:7}", self.rows)?;
        }
        if let Some(loss) = self.loss {
            writeln!(f, "{:>width$}  {loss:27.4}  {:7}", "loss", self.rows)?;
        }
        self.write_confusion(f, width)
    }
}

impl Classification {
    fn write_confusion(&self, f: &mut fmt::Formatter<'_>, width: usize) -> fmt::Result {
        let counts = self.confusion.iter().flatten().map(|count| count.to_string().len());
        let cell =
            self.per_class.iter().map(|s| s.label.chars().count()).chain(counts).max().unwrap_or(0) + 2;

        writeln!(f, "\n{:width$}  predicted", "confusion")?;
        write!(f, "{:>width$}", "true")?;
        for score in &self.per_class {
            write!(f, "{:>cell$}", score.label)?;
        }
        for (score, row) in self.per_class.iter().zip(&self.confusion) {
            write!(f, "\n{:>width$}", score.label)?;
            for count in row {
                write!(f, "{count:>cell$}")?;
            }
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: [(u32, i64); 3] = [(1, -1), (2, 0), (3, 1)];

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
    }

    // y = np.array([1, 1, 1, 2, 2, 3, 3, 3, 3, 2]); p = np.array([...], np.float32)  # as below
    // print(classification_report(y, p.argmax(1), digits=10, zero_division=0))
    // print(confusion_matrix(y, p.argmax(1)))
    // print(-np.log(np.clip(p[np.arange(10), y].astype(np.float64), 1e-7, 1 - 1e-7)).mean())
    fn ten_rows() -> Classification {
        let labels = [1, 1, 1, 2, 2, 3, 3, 3, 3, 2];
        let probabilities: [[f32; 4]; 10] = [
            [0.05, 0.80, 0.10, 0.05],
            [0.10, 0.20, 0.60, 0.10],
            [0.00, 1.00, 0.00, 0.00],
            [0.10, 0.30, 0.40, 0.20],
            [0.05, 0.15, 0.20, 0.60],
            [0.02, 0.03, 0.05, 0.90],
            [0.25, 0.25, 0.20, 0.30],
            [0.10, 0.90, 0.00, 0.00],
            [0.10, 0.20, 0.10, 0.60],
            [0.10, 0.20, 0.65, 0.05],
        ];
        let predicted = [1, 2, 1, 2, 3, 3, 3, 1, 3, 2];
        Classification::from_probabilities(&labels, &predicted, probabilities.as_flattened(), 4, &LABELS)
            .unwrap()
    }

    #[test]
    fn probabilities_score_as_in_scikit_learn_and_keras() {
        let report = ten_rows();
        assert_close(report.loss.unwrap(), 2.2727347642950333);
        assert_close(report.accuracy, 0.7);
        assert_eq!(report.confusion, [[2, 1, 0], [0, 2, 1], [1, 0, 3]]);
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
        let report =
            Classification::from_predictions(&[1, 1, 2, 2, 2, 5], &[1, 2, 2, 3, 0, 5], 6, &LABELS).unwrap();
        let classes: Vec<u32> = report.per_class.iter().map(|s| s.class).collect();
        assert_eq!(classes, [0, 1, 2, 3, 5]);
        assert_eq!(report.per_class[0].label, "class 0");
        assert_eq!(report.loss, None);
        assert_close(report.accuracy, 0.5);
        let Average { precision, recall, f1 } = report.macro_average;
        assert_close(precision, 0.5);
        assert_close(recall, 0.36666666666666664);
        assert_close(f1, 0.41333333333333333);
        let Average { precision, recall, f1 } = report.weighted_average;
        assert_close(precision, 0.75);
        assert_close(recall, 0.5);
        assert_close(f1, 0.5888888888888889);
        assert_eq!(report.confusion[2], [1, 0, 1, 1, 0]);
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
        loss                       2.2727       10

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
    }

    #[test]
    fn bad_input_is_named() {
        let error = |labels: &[u32], predicted: &[u32]| {
            Classification::from_predictions(labels, predicted, 4, &LABELS).unwrap_err()
        };
        assert_eq!(error(&[1, 4], &[1, 1]).to_string(), "row 1: the label is class 4; classes are 0 to 3");
        assert!(error(&[], &[]).is_input_error());
        let short = Classification::from_probabilities(&[1, 2], &[1, 2], &[0.5; 4], 4, &LABELS).unwrap_err();
        assert_eq!(
            short.to_string(),
            "probabilities has 4 values where 8 were expected (2 labels, 4 classes)"
        );
    }
}
