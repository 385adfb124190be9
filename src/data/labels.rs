//! Which class each label of the file stands for.

use std::fmt;
use std::str::FromStr;

use super::DataError;

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
pub struct LabelMap(Vec<(String, u32)>);

impl LabelMap {
    /// The class of a label; white space around the label doesn't count.
    pub fn class_of(&self, label: &str) -> Option<u32> {
        let label = label.trim();
        self.0.iter().find(|(known, _)| known == label).map(|&(_, class)| class)
    }

    /// The label of a class; `None` for a class that no label maps to.
    pub fn label_of(&self, class: u32) -> Option<&str> {
        self.0.iter().find(|&&(_, known)| known == class).map(|(label, _)| label.as_str())
    }

    /// The labels, in the order given.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(label, _)| label.as_str())
    }

    /// One more than the highest class: the width of the model's output.
    pub fn num_classes(&self) -> usize {
        self.0.iter().map(|&(_, class)| class as usize + 1).max().unwrap_or(0)
    }
}

impl Default for LabelMap {
    fn default() -> Self {
        Self([("-1", 1), ("0", 2), ("1", 3)].map(|(label, class)| (label.to_owned(), class)).to_vec())
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
        let mut map = Self(Vec::new());
        for pair in text.split(',') {
            let (label, class) =
                pair.rsplit_once('=').ok_or_else(|| wrong(format!("`{pair}` has no `=`")))?;
            let label = label.trim();
            // Far above any real label set, and low enough that a typing error can't ask for a huge output.
            let class = match class.trim().parse::<u32>() {
                Ok(class) if class < 10_000 => class,
                _ => return Err(wrong(format!("class `{class}` is not a number from 0 to 9999"))),
            };
            if map.class_of(label).is_some() {
                return Err(wrong(format!("label `{label}` is given twice")));
            }
            if map.label_of(class).is_some() {
                return Err(wrong(format!("class {class} is given twice")));
            }
            map.0.push((label.to_owned(), class));
        }
        Ok(map)
    }
}

/// As parsed.
impl fmt::Display for LabelMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (label, class)) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "," };
            write!(f, "{separator}{label}={class}")?;
        }
        Ok(())
    }
}
