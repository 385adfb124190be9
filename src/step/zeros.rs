//! The part of a train step's state that is zero at the start.

use super::signature::{Interface, LeafId, OutputId, Signature, Step};
use crate::hlo::Graph;
use crate::shape::Shape;

/// Takes nothing, and returns what a step with this signature starts with beside the weights: moments and step count. Made
/// on the devices, they need not be sent there, which would be two thirds of all.
pub fn zeros_step<'g>(graph: &'g Graph, signature: &Signature) -> Step<'g> {
    let mut interface = Interface::new(graph);
    for (leaf, port) in signature.leaves() {
        if !matches!(leaf, LeafId::Weight(_) | LeafId::Rounded(_)) {
            let zeros = graph.full(Shape::clone(&port.shape), 0.0);
            interface.output(OutputId::Leaf(leaf.clone()), zeros, port.layout);
        }
    }
    interface.finish("zeros")
}
