//! The model: a BERT encoder, the head on it, and both together as a classifier.

mod bert;
mod classifier;
mod config;
mod head;
mod size;
mod summary;

pub use bert::Bert;
pub use classifier::{Classifier, ClassifierConfig, ENCODER};
pub use config::{Activation, BertConfig, ConfigError, PositionEmbedding};
pub use head::{DenseHeadConfig, Head, HeadConfig, Layer};
pub use size::Size;
