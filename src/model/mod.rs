//! The model: a BERT encoder, the recipe's head, and both together as a classifier.

mod bert;
mod classifier;
mod config;
mod head;
mod size;
mod summary;

pub use bert::Bert;
pub use classifier::{Classifier, ClassifierConfig};
pub use config::{Activation, BertConfig, ConfigError, PositionEmbedding};
pub use head::{Head, HeadConfig};
pub use size::Size;
