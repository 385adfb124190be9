//! The graph builder: typed nodes with shape inference, reverse-mode gradients, and emission as an HLO module.
//!
//! [`Graph`] collects nodes; [`Tensor`] is a handle with operators; [`Graph::gradients`] adds the backward pass;
//! [`Program`] names inputs and outputs and becomes a serialized `HloModuleProto` or readable text.

mod derived;
mod emit;
mod flops;
mod grad;
mod graph;
#[cfg(all(test, feature = "xla-extension"))]
mod judge;
mod loops;
mod messages;
mod names;
mod op;
mod ops;
mod program;
mod remat;
mod shape_rule;
mod text;
mod unary;

pub use derived::Derived;
pub use graph::{Graph, Tensor};
pub use loops::{Function, Loop, Scan, Step, Trip};
pub use op::{Binary, Comparison, DotDimensions, Op, Reduction, Scalar, ShapeError};
pub use program::Program;
pub use remat::Residuals;
pub use unary::Unary;
