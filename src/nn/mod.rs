//! Layers: structs of tensors with `new(params)` and `forward(x)`, their fields named as in the Hub's checkpoints.

mod attention;
mod dense;
mod dropout;
mod embedding;
mod layer_norm;
mod lstm;
mod params;

pub use attention::SelfAttention;
pub use dense::{Dense, FlattenDense};
pub use dropout::{DropoutBits, Mode, Randomness, dropout};
pub use embedding::Embedding;
pub use layer_norm::LayerNorm;
pub use lstm::Lstm;
pub use params::{Access, Init, ParamPath, Params, Part, Spread, Weight};
