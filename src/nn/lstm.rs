use super::{Init, ParamPath};
use crate::hlo::{Comparison, Scan, Tensor};
use crate::shape::Shape;

/// Keras' `LSTM` with its defaults (Hochreiter and Schmidhuber, 1997; forget gates of Gers et al., 2000), of which the last
/// state is given. Gates are in Keras' order: input, forget, cell, output.
pub struct Lstm<'g> {
    /// `[4 units, hidden]`.
    kernel: Tensor<'g>,
    /// `[4 units, units]`.
    recurrent_kernel: Tensor<'g>,
    /// `[4 units]`.
    bias: Tensor<'g>,
    units: usize,
    reversed: bool,
}

impl<'g> Lstm<'g> {
    /// From the first vector to the last, or `reversed`.
    pub fn new(hidden: usize, units: usize, reversed: bool, params: ParamPath<'_, 'g>) -> Self {
        Self {
            kernel: params.get("kernel", &[4 * units, hidden], Init::GlorotUniform),
            recurrent_kernel: params.get("recurrent_kernel", &[4 * units, units], Init::Orthogonal),
            bias: params.get("bias", &[4 * units], Init::ForgetGate),
            units,
            reversed,
        }
    }

    /// `x` `[batch, seq, hidden]` to the state after the last vector, `[batch, units]`, computed in `f32`. One where `mask` `s32[batch, seq]` is 0
    /// leaves the state as it is.
    pub fn forward(&self, x: Tensor<'g>, mask: Option<Tensor<'g>>) -> Tensor<'g> {
        let (graph, [batch, seq]) = (x.graph(), [x.dim(0), x.dim(1)]);
        let element_type = x.shape().element_type;
        let wide = self.bias.shape().element_type;
        // Of all vectors at once, and then [seq, batch, 4 units].
        let gates = (x.linear(self.kernel.convert(element_type)) + self.bias).transpose(&[1, 0, 2]);
        let zeros = graph.full(Shape::new(wide, [batch, self.units]), 0.0);
        let is_kept = mask.map(|mask| {
            let kept = mask.compare(Comparison::Ne, mask.like(0.0));
            kept.transpose(&[1, 0]).reshape(&[seq, batch, 1])
        });
        let scanned = [gates].into_iter().chain(is_kept).collect::<Vec<_>>();
        let over = Scan {
            trips: seq,
            reversed: self.reversed,
            carried: &[zeros, zeros],
            scanned: &scanned,
            invariant: &[self.recurrent_kernel],
        };
        let (left, _) = graph.scan(over, |_, trip| {
            let before = [trip.carried[0], trip.carried[1]];
            let after = cell(before, trip.scanned[0] + before[0].linear(trip.invariant[0]));
            let left = match trip.scanned.get(1) {
                Some(is_kept) => [0, 1].map(|i| is_kept.select(after[i], before[i])),
                None => after,
            };
            (left.to_vec(), vec![])
        });
        left[0].convert(element_type)
    }
}

/// State and cell `[batch, units]` after a vector, with its gates `[batch, 4 units]` before they are squashed.
fn cell<'g>([_, cell]: [Tensor<'g>; 2], gates: Tensor<'g>) -> [Tensor<'g>; 2] {
    let units = cell.dim(1);
    let gate = |i: usize| gates.narrow(1, i * units, (i + 1) * units);
    let cell = gate(1).sigmoid() * cell + gate(0).sigmoid() * gate(2).tanh();
    [gate(3).sigmoid() * cell.tanh(), cell]
}
