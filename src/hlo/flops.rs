//! Floating-point operations of a program, before any compiler.

use std::collections::HashSet;
use std::rc::Rc;

use super::op::Op;
use super::program::Program;

impl Program<'_> {
    /// Floating-point operations of the program's matrix products, for one replica: a multiplication and an addition
    /// per output element and contracted element. Element-wise work is left out: where a matrix unit does the products,
    /// other units do it beside them. This is the numerator of a roofline where the compiler doesn't count.
    pub fn dot_flops(&self) -> u64 {
        let nodes = self.live_nodes();
        let mut loops = HashSet::new();
        let flops = nodes.iter().map(|(_, node)| match &node.op {
            Op::DotGeneral { dimensions: dims, .. } => {
                let left = self.graph.node(node.inputs[0]).shape;
                let contracted = dims.lhs_contracting.iter().map(|dim| left.dims[*dim]).product::<usize>();
                let elements = node.shape.dims.iter().product::<usize>();
                2 * (elements * contracted) as u64
            }
            // Once for all of its outputs.
            Op::While { body, .. } if loops.insert((Rc::as_ptr(body), &node.inputs)) => {
                body.trips() as u64 * body.step().dot_flops()
            }
            _ => 0,
        });
        flops.sum()
    }
}
