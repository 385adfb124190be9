//! Which class each label of the file stands for, and which label is the answer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::DataError;
use super::bad_rows::excerpt;

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

    /// Labels that differ, in order, as classes from 0 on; of a table that is read without its labels, none.
    fn sorted<'l>(labels: impl Iterator<Item = &'l String>) -> Self {
        let pairs = labels.cloned().zip(0..).collect::<Vec<_>>();
        Self {
            by_label: pairs.iter().cloned().map(|(label, class)| (label, class as usize)).collect(),
            by_class: pairs.iter().map(|(_, class)| (*class, *class as usize)).collect(),
            pairs,
        }
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

    /// The labels, in the order of their [`classes`](Self::classes).
    pub fn labels_by_class(&self) -> impl ExactSizeIterator<Item = &str> {
        self.by_class.values().map(|at| self.pairs[*at].0.as_str())
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

    /// As [`Display`](fmt::Display) writes it where it can be read back, else as JSON: no two maps look alike.
    pub fn to_unique_string(&self) -> String {
        let text = self.to_string();
        match text.parse::<Self>() {
            Ok(map) if map == *self => text,
            _ => serde_json::json!(self.pairs).to_string(),
        }
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

/// Which labels a table is read with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Labels {
    /// Those of its rows, sorted by code points as scikit-learn's `LabelEncoder` sorts strings, as classes from 0 on.
    Auto,
    Given(LabelMap),
}

/// Parses `auto`, or a [`LabelMap`].
impl FromStr for Labels {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Given),
        }
    }
}

/// As parsed.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Given(labels) => labels.fmt(f),
        }
    }
}

/// The labels that a pass over a table knows.
pub(super) enum Known {
    Given(LabelMap),
    /// Those met so far, numbered by their first appearance.
    Met(BTreeMap<String, u32>),
}

impl Known {
    pub fn new(labels: &Labels) -> Self {
        match labels {
            Labels::Auto => Self::Met(BTreeMap::new()),
            Labels::Given(labels) => Self::Given(labels.clone()),
        }
    }

    /// Why no row may have this label, if none may.
    pub fn refusal(&self, label: &str) -> Option<impl FnOnce() -> String> {
        let is_refused = match self {
            Self::Given(labels) => labels.class_of(label).is_none(),
            Self::Met(_) => label.trim().is_empty(),
        };
        is_refused.then_some(move || match self {
            Self::Given(labels) => unknown(label, labels),
            Self::Met(_) => "the label is empty".to_owned(),
        })
    }

    /// The number of a label, unless no row that is used has it.
    pub fn known(&self, label: &str) -> Option<u32> {
        match self {
            Self::Given(labels) => labels.class_of(label.trim()),
            Self::Met(met) => met.get(label.trim()).copied(),
        }
    }

    /// The number of a label that isn't [refused](Self::refusal).
    pub fn class_of(&mut self, label: &str) -> Option<u32> {
        let label = label.trim();
        match self {
            Self::Given(labels) => labels.class_of(label),
            Self::Met(met) => match met.get(label) {
                Some(class) => Some(*class),
                None => {
                    let class = met.len() as u32;
                    met.insert(label.to_owned(), class);
                    Some(class)
                }
            },
        }
    }

    /// What is wrong with so many labels, if anything is, at the end of the table or before.
    pub fn fault(&self, at_end: bool) -> Option<String> {
        let Self::Met(met) = self else { return None };
        let shown = |label: &String| format!("`{}`", excerpt(label.as_bytes()));
        match met.len() {
            1 if at_end => {
                let label = met.keys().map(shown).collect::<String>();
                Some(format!("every row has the label {label}, and a classifier needs two"))
            }
            n if n > MAX_CLASSES => {
                let labels = met.keys().take(3).map(shown).collect::<Vec<_>>().join(", ");
                Some(format!("there are more than {MAX_CLASSES} labels, such as {labels}"))
            }
            _ => None,
        }
    }

    /// The map, and, where the labels are the table's own, the class in it of each number.
    pub fn resolve(&self) -> (LabelMap, Option<Vec<u32>>) {
        match self {
            Self::Given(labels) => (labels.clone(), None),
            Self::Met(met) => {
                let mut classes = vec![0; met.len()];
                met.values().zip(0..).for_each(|(number, class)| classes[*number as usize] = class);
                (LabelMap::sorted(met.keys()), Some(classes))
            }
        }
    }
}

fn unknown(label: &str, labels: &LabelMap) -> String {
    const SHOWN: usize = 20;
    let known = labels.labels().take(SHOWN).collect::<Vec<_>>().join(", ");
    let more = match labels.labels().count().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("label `{}` is not one of {known}{more}", excerpt(label.as_bytes()))
}
