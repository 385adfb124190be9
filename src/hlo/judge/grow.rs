//! Random graphs: each step adds an operation to what is there already, of what fits it.

use fastrand::Rng;

use super::builder::{BINARY, COMPARISONS, UNARY};
use super::values::{NUMBERS, TYPES};
use crate::hlo::{Comparison, DotDimensions, Graph, Op, Scan, Tensor};
use crate::shape::{ElementType, Shape};

/// Elements of an array: graphs are wide, not large.
const MOST: usize = 64;

pub struct Growth<'g> {
    pub graph: &'g Graph,
    pub random: Rng,
    /// All values so far.
    pub pool: Vec<Tensor<'g>>,
    /// Loops within loops, at most.
    pub depth: usize,
}

impl<'g> Growth<'g> {
    /// Adds what the seed says, if it fits.
    pub fn step(&mut self, seed: u64) {
        self.random = Rng::with_seed(seed);
        let grown = self.grow();
        self.pool.extend(grown.into_iter().filter(|tensor| tensor.shape().num_elements() <= MOST));
    }

    fn grow(&mut self) -> Vec<Tensor<'g>> {
        let Some(a) = self.pick(|_| true) else { return vec![] };
        let grown = match self.random.u8(0..25) {
            0..4 => self.unary(a),
            4..8 => self.binary(a),
            8 => self.like(a).map(|b| a.compare(self.of(COMPARISONS), b)),
            9 => self.select(a),
            10 => Some(a.convert(self.of(&TYPES))),
            11 => Some(self.broadcast(a)),
            12 => Some(self.reshape(a)),
            13 => {
                let mut order = (0..a.rank()).collect::<Vec<_>>();
                self.random.shuffle(&mut order);
                Some(a.transpose(&order))
            }
            14 => self.slice(a),
            15 => self.dynamic(a),
            16 => self.concatenate(a),
            17 => self.pad(a),
            18 | 19 => self.dot(),
            20 => self.reduce(a),
            21 => self.rows(),
            22 => self
                .pick(|t| t.shape() == Shape::new(ElementType::U64, [2]))
                .map(|state| state.random_bits(&a.dims())),
            23 if is_number(a) => Some(a.all_reduce_sum()),
            24 if self.depth > 0 => return self.scan(),
            _ => Some(a.stop_gradient()),
        };
        grown.into_iter().collect()
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.random.usize(0..list.len())]
    }

    fn pick(&mut self, fits: impl Fn(Tensor<'g>) -> bool) -> Option<Tensor<'g>> {
        let fitting = self.pool.iter().copied().filter(|tensor| fits(*tensor)).collect::<Vec<_>>();
        (!fitting.is_empty()).then(|| self.of(&fitting))
    }

    /// Of the same shape; perhaps itself.
    fn like(&mut self, a: Tensor<'g>) -> Option<Tensor<'g>> {
        self.pick(|b| b.shape() == a.shape())
    }

    fn applied(&self, op: Op, inputs: &[Tensor<'g>]) -> Option<Tensor<'g>> {
        self.graph.apply(op, inputs).ok()
    }

    fn unary(&mut self, a: Tensor<'g>) -> Option<Tensor<'g>> {
        let op = Op::Unary(self.of(UNARY));
        self.applied(op, &[a])
    }

    fn binary(&mut self, a: Tensor<'g>) -> Option<Tensor<'g>> {
        // The builder lacks the shifts.
        let op = Op::Binary(self.of(&BINARY[..9]));
        let b = self.like(a)?;
        self.applied(op, &[a, b])
    }

    fn select(&mut self, a: Tensor<'g>) -> Option<Tensor<'g>> {
        let (b, shape) = (self.like(a)?, Shape::new(ElementType::Pred, a.dims()));
        let condition = self.pick(|t| t.shape() == shape).unwrap_or_else(|| a.compare(Comparison::Gt, b));
        Some(condition.select(a, b))
    }

    fn broadcast(&mut self, a: Tensor<'g>) -> Tensor<'g> {
        let mut mapping = (0..=a.rank()).collect::<Vec<_>>();
        let at = self.random.usize(0..=a.rank());
        mapping.remove(at);
        let mut dims = a.dims();
        dims.insert(at, self.random.usize(1..4));
        self.graph.insert(Op::Broadcast { dims, mapping }, &[a])
    }

    fn reshape(&mut self, a: Tensor<'g>) -> Tensor<'g> {
        let mut dims = a.dims();
        match self.random.bool() {
            true if dims.len() > 1 => {
                let last = dims.pop().unwrap_or(1);
                dims.iter_mut().last().into_iter().for_each(|size| *size *= last);
            }
            _ => dims.insert(self.random.usize(0..=dims.len()), 1),
        }
        a.reshape(&dims)
    }

    /// A dimension, if there is one.
    fn dim(&mut self, a: Tensor<'g>) -> Option<usize> {
        (a.rank() > 0).then(|| self.random.usize(0..a.rank()))
    }

    fn slice(&mut self, a: Tensor<'g>) -> Option<Tensor<'g>> {
        let d = self.dim(a)?;
        let (mut start, mut limit, mut stride) = (vec![0; a.rank()], a.dims(), vec![1; a.rank()]);
        start[d] = self.random.usize(0..=a.dim(d));
        limit[d] = self.random.usize(start[d]..=a.dim(d));
        stride[d] = self.random.usize(1..3);
        Some(a.slice(&start, &limit, &stride))
    }

    /// A slice somewhere, or something in its place.
    fn dynamic(&mut self, a: Tensor<'g>) -> Option<Tensor<'g>> {
        let place = |growth: &mut Self| match growth.pick(|t| t.shape() == Shape::scalar(ElementType::S32)) {
            Some(place) if growth.random.bool() => place,
            _ => growth.graph.constant(ElementType::S32, f64::from(growth.random.i32(-1..4))),
        };
        let start = (0..a.rank()).map(|_| place(self)).collect::<Vec<_>>();
        let of = a.shape().element_type;
        let update = self.pick(|t| t.shape().element_type == of && t.rank() == a.rank())?;
        let sizes =
            update.dims().iter().zip(a.dims()).map(|(size, most)| *size.min(&most)).collect::<Vec<_>>();
        match sizes == update.dims() && self.random.bool() {
            true => Some(a.dynamic_update_slice(update, &start)),
            false => Some(a.dynamic_slice(&start, &sizes)),
        }
    }

    fn concatenate(&mut self, a: Tensor<'g>) -> Option<Tensor<'g>> {
        let dim = self.dim(a)?;
        let b = self.pick(|b| Op::Concatenate { dim }.shape(&[&a.shape(), &b.shape()]).is_ok())?;
        Some(self.graph.concatenate(&[a, b, a][..self.random.usize(1..4)], dim))
    }

    fn pad(&mut self, a: Tensor<'g>) -> Option<Tensor<'g>> {
        let d = self.dim(a)?;
        let scalar = Shape::scalar(a.shape().element_type);
        let value = self.pick(|t| t.shape() == scalar).unwrap_or_else(|| a.like(0.5));
        let mut around = || {
            let mut sizes = vec![0; a.rank()];
            sizes[d] = self.random.usize(0..3);
            sizes
        };
        Some(a.pad(value, &around(), &around(), &around()))
    }

    fn dot(&mut self) -> Option<Tensor<'g>> {
        let a = self.pick(|a| a.shape().element_type.is_float() && a.rank() > 0)?;
        let of = a.shape().element_type;
        let contracted = self.random.usize(0..a.rank());
        let b = self.pick(|b| b.shape().element_type == of && b.dims().contains(&a.dim(contracted)))?;
        let paired = b.dims().iter().position(|size| *size == a.dim(contracted))?;
        let mut roles = DotDimensions {
            lhs_contracting: vec![contracted],
            rhs_contracting: vec![paired],
            ..Default::default()
        };
        let batch = (0..a.rank()).flat_map(|l| (0..b.rank()).map(move |r| (l, r)));
        let batch = batch
            .filter(|(l, r)| *l != contracted && *r != paired && a.dim(*l) == b.dim(*r))
            .collect::<Vec<_>>();
        if !batch.is_empty() && self.random.bool() {
            let (l, r) = self.of(&batch);
            (roles.lhs_batch, roles.rhs_batch) = (vec![l], vec![r]);
        }
        let sums = a.shape().element_type;
        self.applied(Op::DotGeneral { dimensions: roles, sums }, &[a, b])
    }

    fn reduce(&mut self, a: Tensor<'g>) -> Option<Tensor<'g>> {
        let mut dims = (0..a.rank()).collect::<Vec<_>>();
        self.random.shuffle(&mut dims);
        dims.truncate(self.random.usize(0..=a.rank()));
        is_number(a).then(|| if self.random.bool() { a.sum(&dims) } else { a.max(&dims) })
    }

    /// Rows of a table, or sums into them.
    fn rows(&mut self) -> Option<Tensor<'g>> {
        let table = self.pick(|t| t.rank() == 2 && t.dim(0) > 0)?;
        let indices = self.pick(|t| t.shape().element_type == ElementType::S32 && t.rank() < 3)?;
        let rows = table.gather(indices);
        if !is_number(table) || self.random.bool() {
            return Some(rows);
        }
        let updates = self.like(rows).unwrap_or(rows);
        Some(table.scatter_add(indices, updates))
    }

    /// A loop that carries one array, goes over another's entries, and sees a third; or lacks some of them.
    fn scan(&mut self) -> Vec<Tensor<'g>> {
        let Some(scanned) = self.pick(|t| t.rank() > 0 && t.dim(0) > 0) else { return vec![] };
        let (carried, invariant) = (self.pick(|_| true), self.pick(|_| true));
        let carried = carried.into_iter().filter(|_| self.random.u8(0..4) > 0).collect::<Vec<_>>();
        let invariant = invariant.into_iter().filter(|_| self.random.bool()).collect::<Vec<_>>();
        let over = Scan {
            trips: scanned.dim(0),
            reversed: self.random.bool(),
            carried: &carried,
            scanned: &[scanned],
            invariant: &invariant,
        };
        let seeds = (0..self.random.usize(2..9)).map(|_| self.random.u64(..)).collect::<Vec<_>>();
        let (depth, outputs) = (self.depth - 1, self.random.usize(usize::from(carried.is_empty())..3));
        let (left, stacks) = self.graph.scan(over, |graph, trip| {
            let pool = [&[trip.index][..], &trip.carried, &trip.scanned, &trip.invariant].concat();
            let mut inner = Growth { graph, random: Rng::with_seed(0), pool, depth };
            seeds.iter().for_each(|seed| inner.step(*seed));
            let last = |shape: &Shape| inner.pool.iter().rev().find(|t| t.shape() == *shape).copied();
            let left = trip.carried.iter().map(|t| last(&t.shape()).unwrap_or(*t)).collect();
            (left, inner.pool.iter().rev().take(outputs).copied().collect())
        });
        [left, stacks].concat()
    }
}

fn is_number(tensor: Tensor<'_>) -> bool {
    NUMBERS.contains(&tensor.shape().element_type)
}
