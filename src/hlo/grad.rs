//! Reverse-mode differentiation: the gradient is more graph, so XLA fuses it with the rest.

use std::collections::HashMap;
use std::rc::Rc;

use super::graph::{Graph, Node, NodeId, Tensor};
use super::loops::Loop;
use super::op::{Binary, Comparison, DotDimensions, Op, Reduction};
use super::remat::{Recomputed, Residuals};
use crate::shape::ElementType;

impl Graph {
    /// The gradient of `loss`, a scalar, with respect to each of `wrt`; `None` for one that `loss` doesn't depend on,
    /// or only through what has no gradient. On several replicas: of the sum of their losses.
    ///
    /// # Panics
    /// If `loss` is no scalar of floats, or a tensor is of another graph.
    #[track_caller]
    pub fn gradients<'g>(&'g self, loss: Tensor<'g>, wrt: &[Tensor<'g>]) -> Vec<Option<Tensor<'g>>> {
        self.gradients_from(Residuals::All, loss, wrt)
    }

    /// [`gradients`](Self::gradients), with a say in what is kept of the forward pass. The values are the same.
    ///
    /// # Panics
    /// As [`gradients`](Self::gradients).
    #[track_caller]
    pub fn gradients_from<'g>(
        &'g self,
        residuals: Residuals,
        loss: Tensor<'g>,
        wrt: &[Tensor<'g>],
    ) -> Vec<Option<Tensor<'g>>> {
        let shape = loss.shape();
        assert!(
            shape.rank() == 0 && shape.element_type.is_float(),
            "gradients: the loss must be a scalar of floats, not {shape}"
        );
        self.pull_back(residuals, &[(loss, loss.like(1.0))], wrt)
    }

    /// The gradient of something with respect to each of `wrt`, for its gradients with respect to some outputs; `None` for
    /// one that no output depends on.
    pub(super) fn pull_back<'g>(
        &'g self,
        residuals: Residuals,
        outputs: &[(Tensor<'g>, Tensor<'g>)],
        wrt: &[Tensor<'g>],
    ) -> Vec<Option<Tensor<'g>>> {
        let sources = wrt.iter().map(|tensor| self.own(*tensor)).collect::<Vec<_>>();
        let roots = outputs.iter().map(|(output, _)| self.own(*output)).collect::<Vec<_>>();
        let (reached, reaching) = (self.reached_from(&sources), self.reaching(&roots));
        let mut gradients = Gradients::default();
        let recomputed = Recomputed::new(residuals);
        outputs.iter().for_each(|(output, gradient)| gradients.add(output.id, *gradient));
        let last = roots.iter().copied().max().unwrap_or_default();
        for id in (0..=last).rev().filter(|id| reached[*id] && reaching[*id]) {
            let node = self.node(id);
            let needed = node.inputs.iter().map(|input| reached[*input]).collect::<Vec<_>>();
            if !needed.contains(&true) {
                continue;
            }
            let path = Rc::from(format!("gradient/{}", node.scope));
            self.with_path(path, || {
                let rule = Rule { graph: self, id, node: &node, needed: &needed, recomputed: None };
                let found = match &node.op {
                    Op::While { body, .. } => rule.of_loop(body, &gradients, &|id| reaching[id]),
                    _ => gradients.get(id).map(|gradient| {
                        let recomputed = Some((&recomputed, gradient));
                        Rule { recomputed, ..rule }.input_gradients(gradient)
                    }),
                };
                for (input, contribution) in node.inputs.iter().zip(found.unwrap_or_default()) {
                    if let Some(contribution) = contribution.filter(|_| reached[*input]) {
                        gradients.add(*input, contribution);
                    }
                }
            });
        }
        sources.iter().map(|id| gradients.get(*id)).collect()
    }
}

/// What is known so far of each node's gradient.
#[derive(Default)]
struct Gradients<'g>(HashMap<NodeId, Tensor<'g>>);

impl<'g> Gradients<'g> {
    fn get(&self, id: NodeId) -> Option<Tensor<'g>> {
        self.0.get(&id).copied()
    }

    fn add(&mut self, id: NodeId, contribution: Tensor<'g>) {
        let sum = self.get(id).map_or(contribution, |sum| sum + contribution);
        self.0.insert(id, sum);
    }
}

/// One node, seen by its gradient rule.
struct Rule<'a, 'g> {
    graph: &'g Graph,
    id: NodeId,
    node: &'a Node,
    /// Which inputs lead to what is differentiated by; the others may be left out.
    needed: &'a [bool],
    /// The values that it reads, once this gradient is there; without, all are those of the forward pass.
    recomputed: Option<(&'a Recomputed, Tensor<'g>)>,
}

impl<'g> Rule<'_, 'g> {
    fn input(&self, index: usize) -> Tensor<'g> {
        self.value(self.node.inputs[index])
    }

    fn output(&self) -> Tensor<'g> {
        self.value(self.id)
    }

    fn value(&self, id: NodeId) -> Tensor<'g> {
        match self.recomputed {
            Some((recomputed, gradient)) => recomputed.value(id, gradient),
            None => Tensor { graph: self.graph, id },
        }
    }

    /// The gradient of each input, for `g`, the gradient of the output.
    fn input_gradients(&self, g: Tensor<'g>) -> Vec<Option<Tensor<'g>>> {
        match &self.node.op {
            // Leaves, and functions that are constant almost everywhere.
            Op::Parameter { .. } | Op::Constant(_) | Op::Iota { .. } | Op::ReplicaId => vec![],
            Op::Compare(_) => vec![None, None],
            Op::BitcastConvert(_) | Op::RngBitGenerator { .. } | Op::StopGradient => vec![None],
            Op::Barrier => vec![Some(g.barrier())],
            Op::After => vec![Some(g), None],
            Op::Unary(op) => vec![op.gradient(self.input(0), self.output(), g)],
            Op::Binary(op) => self.binary(*op, g).into(),
            // f(c, a, b) = c ? a : b;  df/da = c, df/db = !c
            Op::Select => {
                let zero = g.like(0.0);
                vec![None, Some(self.input(0).select(g, zero)), Some(self.input(0).select(zero, g))]
            }
            Op::Convert(_) => {
                let from = self.input(0).shape().element_type;
                vec![from.is_float().then(|| self.unrounded(g, from))]
            }
            Op::Broadcast { dims, mapping } => {
                let repeated = (0..dims.len()).filter(|d| !mapping.contains(d)).collect::<Vec<_>>();
                vec![Some(g.sum(&repeated))]
            }
            Op::Reshape { .. } => vec![Some(g.reshape(&self.input(0).dims()))],
            Op::Transpose { permutation } => vec![Some(g.transpose(&inverse(permutation)))],
            Op::Slice { start, limit: _, stride } => vec![Some(self.slice(start, stride, g))],
            // f(x, i) = x[i..]: zeros go back where nothing was taken.
            Op::DynamicSlice { .. } => {
                let zeros = g.graph.full(self.input(0).shape(), 0.0);
                self.first([zeros.dynamic_update_slice(g, &self.start(1))])
            }
            // f(x, u, i) = x with u at i: each takes its own part of g.
            Op::DynamicUpdateSlice => {
                let (update, start) = (self.input(1), self.start(2));
                let others = g.dynamic_update_slice(g.graph.full(update.shape(), 0.0), &start);
                self.first([others, g.dynamic_slice(&start, &update.dims())])
            }
            Op::Concatenate { dim } => self.concatenate(*dim, g),
            Op::Pad { low, high: _, interior } => self.pad(low, interior, g).into(),
            Op::DotGeneral { dimensions, .. } => self.dot(dimensions, g).into(),
            Op::Reduce { kind, dims } => vec![Some(self.reduce(*kind, dims, g)), None],
            // f(t, i) = t[i];  df/dt adds each row back
            Op::Gather => {
                let zeros = self.graph.full(self.input(0).shape(), 0.0);
                vec![Some(zeros.scatter_add(self.input(1), g)), None]
            }
            // f(t, i, u) = t with t[i] += u;  df/dt = 1, df/du = [i], and nothing where no row is
            Op::ScatterAdd => vec![Some(g), None, (g.dim(0) > 0).then(|| g.gather(self.input(1)))],
            // f(x) = sum of x over replicas: each replica's x reaches every replica's loss
            Op::AllReduce => vec![Some(g.all_reduce_sum())],
            // f(x_0...x_n) = [x_0...x_n], on every replica: x_i takes its own part of the sum of all replicas' g
            Op::AllGather { replicas } => vec![Some(g.reduce_scatter_sum(*replicas))],
            // f(x)_i = part i of the sum of x over replicas: part i of every x reaches replica i's loss alone
            Op::ReduceScatter { replicas } => vec![Some(g.all_gather(*replicas))],
            // f(x)_i's part j is part i of x_j, and so its gradient goes back by the same way
            Op::AllToAll { replicas } => vec![Some(g.all_to_all(*replicas))],
            Op::Derived(derived) => {
                let known = |id: &NodeId| Tensor { graph: self.graph, id: *id };
                let [y, arguments @ ..] = &self.node.inputs.iter().map(known).collect::<Vec<_>>()[..] else {
                    unreachable!("its shape rule asks for a value")
                };
                let value = |tensor: Tensor<'g>| self.value(tensor.id);
                let gradients = derived.gradients(*y, arguments, &self.needed[1..], g, &value);
                [None].into_iter().chain(gradients).collect()
            }
            // All outputs together: see `of_loop`.
            Op::While { .. } => vec![],
        }
    }

    /// These gradients of the first inputs, and none of the others.
    fn first<const N: usize>(&self, gradients: [Tensor<'g>; N]) -> Vec<Option<Tensor<'g>>> {
        let others = self.node.inputs.len() - N;
        gradients.into_iter().map(Some).chain(vec![None; others]).collect()
    }

    /// The inputs from the one at `index` on.
    fn start(&self, index: usize) -> Vec<Tensor<'g>> {
        (index..self.node.inputs.len()).map(|index| self.input(index)).collect()
    }

    /// The gradients of a loop's inputs, once those of all of its outputs are known: at the first of those that matter, since
    /// nodes are gone through from the last on.
    fn of_loop(
        &self,
        body: &Rc<Loop>,
        gradients: &Gradients<'g>,
        matters: &dyn Fn(NodeId) -> bool,
    ) -> Option<Vec<Option<Tensor<'g>>>> {
        let inputs = self.start(0);
        let op = |output| Op::While { body: body.clone(), output };
        let outputs =
            (0..body.num_outputs()).map(|output| self.graph.find(op(output), self.node.inputs.clone()));
        let outputs = outputs.map(|id| id.filter(|id| matters(*id))).collect::<Vec<_>>();
        if outputs.iter().flatten().min() != Some(&self.id) {
            return None;
        }
        let gradients = outputs.iter().map(|id| gradients.get((*id)?)).collect::<Vec<_>>();
        gradients.iter().flatten().next()?;
        let first = body.num_outputs() - body.carries();
        let taken = (first..body.num_outputs()).map(|output| self.graph.insert(op(output), &inputs));
        Some(body.gradients(&inputs, &taken.collect::<Vec<_>>(), &gradients, self.needed))
    }

    fn binary(&self, op: Binary, g: Tensor<'g>) -> [Option<Tensor<'g>>; 2] {
        let (a, b) = (self.input(0), self.input(1));
        match op {
            Binary::Add => [Some(g), Some(g)],
            Binary::Subtract => [Some(g), Some(-g)],
            // (ab)' = a'b + ab'
            Binary::Multiply => [Some(g * b), Some(g * a)],
            // (a/b)' = a'/b - b' (a/b)/b
            Binary::Divide => [Some(g / b), Some(-(g * self.output() / b))],
            // The larger (smaller) side has the gradient; equals share it.
            Binary::Maximum => [Some(g * wins(a, b, Comparison::Gt)), Some(g * wins(b, a, Comparison::Gt))],
            Binary::Minimum => [Some(g * wins(a, b, Comparison::Lt)), Some(g * wins(b, a, Comparison::Lt))],
            // Bits have no gradient.
            Binary::And | Binary::Or | Binary::Xor | Binary::ShiftLeft | Binary::ShiftRightLogical => {
                [None, None]
            }
        }
    }

    /// f(x) = x[start..limit by stride]: zeros go back where nothing was taken.
    fn slice(&self, start: &[usize], stride: &[usize], g: Tensor<'g>) -> Tensor<'g> {
        let (taken, dims) = (g.dims(), self.input(0).dims());
        let covered = |d: usize| taken[d] + taken[d].saturating_sub(1) * (stride[d] - 1);
        let high = (0..dims.len()).map(|d| dims[d] - start[d] - covered(d)).collect::<Vec<_>>();
        let interior = stride.iter().map(|s| s - 1).collect::<Vec<_>>();
        g.pad(g.like(0.0), start, &high, &interior)
    }

    /// f(a, b...) = [a, b...]: each takes its own part of g.
    fn concatenate(&self, dim: usize, g: Tensor<'g>) -> Vec<Option<Tensor<'g>>> {
        let mut start = 0;
        let part = |index: usize| {
            let size = self.input(index).dim(dim);
            start += size;
            Some(g.narrow(dim, start - size, start))
        };
        (0..self.node.inputs.len()).map(part).collect()
    }

    /// f(x, v) = x with v around and between: x takes its own elements of g, v the sum of the others.
    fn pad(&self, low: &[usize], interior: &[usize], g: Tensor<'g>) -> [Option<Tensor<'g>>; 2] {
        let dims = self.input(0).dims();
        let stride = interior.iter().map(|i| i + 1).collect::<Vec<_>>();
        let last = |d: usize| low[d] + if dims[d] == 0 { 0 } else { (dims[d] - 1) * stride[d] + 1 };
        let limit = (0..dims.len()).map(last).collect::<Vec<_>>();
        let own = g.slice(low, &limit, &stride);
        let all = (0..dims.len()).collect::<Vec<_>>();
        [Some(own), self.needed[1].then(|| g.sum(&all) - own.sum(&all))]
    }

    /// `g` in the wider type `to`: if it was rounded from that just now, as it was before.
    fn unrounded(&self, g: Tensor<'g>, to: ElementType) -> Tensor<'g> {
        let node = self.graph.node(g.id);
        match node.op {
            Op::Convert(narrow) if narrow.is_float() && narrow.size() < to.size() => {
                let before = Tensor { graph: self.graph, id: node.inputs[0] };
                if before.shape().element_type == to { before } else { g.convert(to) }
            }
            _ => g.convert(to),
        }
    }

    /// f(a, b) = a . b: da = g . b over b's free dimensions, db = g . a over a's free dimensions. All factors are of one type.
    fn dot(&self, dimensions: &DotDimensions, g: Tensor<'g>) -> [Option<Tensor<'g>>; 2] {
        let (a, b) = (self.input(0), self.input(1));
        let g = g.convert(a.shape().element_type);
        let batch = dimensions.lhs_batch.len();
        let (lhs_free, rhs_free) = (dimensions.lhs_free(a.rank()), dimensions.rhs_free(b.rank()));
        let free = batch + lhs_free.len();
        let lhs = Side {
            batch: &dimensions.lhs_batch,
            free: &lhs_free,
            contracting: &dimensions.lhs_contracting,
            free_in_output: batch..free,
        };
        let rhs = Side {
            batch: &dimensions.rhs_batch,
            free: &rhs_free,
            contracting: &dimensions.rhs_contracting,
            free_in_output: free..g.rank(),
        };
        [self.needed[0].then(|| lhs.gradient(g, &rhs, b)), self.needed[1].then(|| rhs.gradient(g, &lhs, a))]
    }

    fn reduce(&self, kind: Reduction, dims: &[usize], g: Tensor<'g>) -> Tensor<'g> {
        let x = self.input(0);
        let spread = |tensor: Tensor<'g>| tensor.keep_dims(dims).broadcast_to(&x.dims());
        match kind {
            Reduction::Sum => spread(g),
            // The largest elements share the gradient equally.
            Reduction::Max => {
                let element_type = x.shape().element_type;
                // Of `x` itself, which may have been computed again.
                let is_max = x.compare(Comparison::Eq, spread(x.max(dims))).convert(element_type);
                spread(g / is_max.sum(dims)) * is_max
            }
        }
    }
}

/// One side of a dot: its dimensions by role, and where its free ones are in the output.
struct Side<'a> {
    batch: &'a [usize],
    free: &'a [usize],
    contracting: &'a [usize],
    free_in_output: std::ops::Range<usize>,
}

impl Side<'_> {
    /// This side's gradient: `g` contracted with the other side over the other's free dimensions, then its
    /// dimensions put back in this side's order.
    fn gradient<'g>(&self, g: Tensor<'g>, other: &Side, other_value: Tensor<'g>) -> Tensor<'g> {
        let product = g.dot_general(
            other_value,
            DotDimensions {
                lhs_batch: (0..self.batch.len()).collect(),
                rhs_batch: other.batch.to_vec(),
                lhs_contracting: other.free_in_output.clone().collect(),
                rhs_contracting: other.free.to_vec(),
            },
        );
        // The other side's contracting dimensions come out in its own order.
        let mut pairs = other.contracting.iter().zip(self.contracting).collect::<Vec<_>>();
        pairs.sort_unstable();
        let own = pairs.into_iter().map(|(_, own)| *own);
        let order =
            self.batch.iter().copied().chain(self.free.iter().copied()).chain(own).collect::<Vec<_>>();
        product.transpose(&inverse(&order)).convert(other_value.shape().element_type)
    }
}

/// 1 where `a` wins the comparison against `b`, 1/2 where they are equal, else 0.
fn wins<'g>(a: Tensor<'g>, b: Tensor<'g>, comparison: Comparison) -> Tensor<'g> {
    let tie = a.compare(Comparison::Eq, b).select(a.like(0.5), a.like(0.0));
    a.compare(comparison, b).select(a.like(1.0), tie)
}

fn inverse(permutation: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; permutation.len()];
    for (to, from) in permutation.iter().enumerate() {
        inverse[*from] = to;
    }
    inverse
}
