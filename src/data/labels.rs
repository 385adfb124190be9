//! Which class each label of the file stands for, and which label is the answer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::DataError;

/// Far above any real label set, and low enough that a typing error can't ask for a huge output.
pub const MAX_CLASSES: usize = 10_000;

/// A one-to-one map from labels, as written in the file, to class numbers.
///
/// The default is the recipe's: `-1=1,0=2,1=3`, which leaves class 0 unused.
///
/// ```
/// # use bert_xla::data::LabelMap;
/// let labels: LabelMap = "neg=0,pos=1".parse().unwrap();
/// assert_eq!(labels.class_of("pos"), Some(1));
/// assert_eq!(labels.label_of(0), Some("neg"));
/// assert_eq!(labels.num_classes(), 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMap {
    /// In the order given.
    pairs: Vec<(String, u32)>,
    /// Where each label is among them, and each class: in an order of their own, as equal maps are to look equal to the hosts
    /// of a slice.
    by_label: BTreeMap<String, usize>,
    by_class: BTreeMap<u32, usize>,
}

impl LabelMap {
    /// The map of these labels and classes, in the order given.
    ///
    /// # Errors
    /// What is wrong, if a label or a class is given twice, or if there is none.
    pub fn new(pairs: impl IntoIterator<Item = (String, u32)>) -> Result<Self, String> {
        let mut map = Self { pairs: vec![], by_label: BTreeMap::new(), by_class: BTreeMap::new() };
        for (label, class) in pairs {
            let label = label.trim().to_owned();
            if map.class_of(&label).is_some() {
                return Err(format!("label `{label}` is given twice"));
            }
            if map.label_of(class).is_some() {
                return Err(format!("class {class} is given twice"));
            }
            map.by_label.insert(label.clone(), map.pairs.len());
            map.by_class.insert(class, map.pairs.len());
            map.pairs.push((label, class));
        }
        if map.pairs.is_empty() { Err("there is no label".to_owned()) } else { Ok(map) }
    }

    /// The answers that `probabilities` `[rows, num_classes]`, row-major, stand for: the most probable class of each row
    /// that has a label. A class without one was never trained, and can't be written down.
    pub fn answers(&self, probabilities: &[f32], num_classes: usize) -> Vec<u32> {
        self.most_probable(&self.labelled(probabilities, num_classes))
    }

    /// The class of each row's highest probability in `[rows, labels]`, whose columns are [`classes`](Self::classes): the
    /// first of equals.
    pub fn most_probable(&self, probabilities: &[f32]) -> Vec<u32> {
        let classes = self.classes().collect::<Vec<_>>();
        let best = |row: &[f32]| {
            let better = |best: usize, at: usize| if row[at] > row[best] { at } else { best };
            classes[(0..row.len()).reduce(better).unwrap_or_default()]
        };
        probabilities.chunks(classes.len()).map(best).collect()
    }

    /// Of `probabilities` `[rows, num_classes]`, row-major, those of the classes that have a label: `[rows, labels]`, in the
    /// order of [`classes`](Self::classes).
    fn labelled(&self, probabilities: &[f32], num_classes: usize) -> Vec<f32> {
        let rows = probabilities.chunks(num_classes.max(1));
        rows.flat_map(|row| self.classes().map(|class| row[class as usize])).collect()
    }

    /// The classes that have a label, in order.
    pub fn classes(&self) -> impl ExactSizeIterator<Item = u32> {
        self.by_class.keys().copied()
    }

    /// What people call a class: its label, or `class N` if it has none.
    pub fn name_of(&self, class: u32) -> Cow<'_, str> {
        self.label_of(class).map_or_else(|| format!("class {class}").into(), Cow::Borrowed)
    }

    /// The class of a label; white space around the label doesn't count.
    pub fn class_of(&self, label: &str) -> Option<u32> {
        self.by_label.get(label.trim()).map(|at| self.pairs[*at].1)
    }

    /// The label of a class; `None` for a class that no label maps to.
    pub fn label_of(&self, class: u32) -> Option<&str> {
        self.by_class.get(&class).map(|at| self.pairs[*at].0.as_str())
    }

    /// Each label with its class, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.pairs.iter().map(|(label, class)| (label.as_str(), *class))
    }

    /// The labels, in the order given.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(label, _)| label.as_str())
    }

    /// One more than the highest class: the width of the model's output.
    pub fn num_classes(&self) -> usize {
        self.pairs.iter().map(|&(_, class)| class as usize + 1).max().unwrap_or(0)
    }
}

impl Default for LabelMap {
    fn default() -> Self {
        let pairs = [("-1", 1), ("0", 2), ("1", 3)].map(|(label, class)| (label.to_owned(), class));
        Self::new(pairs).expect("labels and classes that are given once")
    }
}

/// Parses `label=class,...`; labels and classes must each be given once.
impl FromStr for LabelMap {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let wrong = |why: String| {
            DataError::Option(format!(
                "labels `{text}`: {why}; expected LABEL=CLASS,... such as -1=1,0=2,1=3"
            ))
        };
        let pair = |pair: &str| {
            let (label, class) =
                pair.rsplit_once('=').ok_or_else(|| wrong(format!("`{pair}` has no `=`")))?;
            match class.trim().parse::<u32>() {
                Ok(class) if (class as usize) < MAX_CLASSES => Ok((label.to_owned(), class)),
                _ => Err(wrong(format!("class `{class}` is not a number from 0 to 9999"))),
            }
        };
        let pairs = text.split(',').map(pair).collect::<Result<Vec<_>, _>>()?;
        Self::new(pairs).map_err(wrong)
    }
}

/// As parsed.
impl fmt::Display for LabelMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (label, class)) in self.pairs.iter().enumerate() {
            let separator = if i == 0 { "" } else { "," };
            write!(f, "{separator}{label}={class}")?;
        }
        Ok(())
    }
}
