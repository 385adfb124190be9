//! Names as XLA takes them: it turns other characters into `_`, and refuses a module where two values then have one name.

use std::collections::HashSet;

use super::op::Op;
use super::program::Program;

/// The names that the values of one module have already.
#[derive(Default)]
pub(super) struct Names(HashSet<String>);

impl Names {
    /// `name`, or the nearest to it that is valid and free.
    pub fn claim(&mut self, name: &str) -> String {
        let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let mut name = name.replace(|c| !is_valid(c), "_");
        if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            name.insert(0, '_');
        }
        while !self.0.insert(name.clone()) {
            name.push('_');
        }
        name
    }
}

impl Program<'_> {
    /// The names of the parameters, in order, claimed before those of other values.
    pub(super) fn parameter_names(&self, names: &mut Names) -> Vec<String> {
        let nodes = self.parameters.iter().map(|tensor| self.graph.node(tensor.id));
        let named = nodes.map(|node| match node.op {
            Op::Parameter { name, .. } => names.claim(&name),
            other => unreachable!("`new` takes no {other:?} for a parameter"),
        });
        named.collect()
    }
}
