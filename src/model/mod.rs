//! The model: a BERT encoder, the head on it, and both together as a classifier.

mod bert;
mod classifier;
mod config;
pub mod head;
mod size;
mod summary;

pub use bert::Bert;
pub use classifier::{Classifier, ClassifierConfig, ENCODER};
pub use config::{Activation, BertConfig, ConfigError, PositionEmbedding};
pub use head::HeadConfig;
pub use size::Size;
pub use summary::Layer;
