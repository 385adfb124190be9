//! The operations by XLA's own builder. It infers every shape by itself, and nothing here tells it ours.

use std::cell::Cell;
use std::collections::HashMap;

use xla::{RandomAlgorithm, XlaBuilder, XlaComputation, XlaOp};

use super::loops::while_loop;
use super::values::{constant, dims, element_type, xla_shape};
use crate::hlo::graph::NodeId;
use crate::hlo::program::{Program, loop_outputs};
use crate::hlo::{Binary, Comparison, DotDimensions, Op, Reduction, Unary};

/// Why an operation is not built.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// As far as the crate shows the builder.
    #[error("XLA's builder lacks {0}")]
    Lacks(&'static str),
    #[error(transparent)]
    Xla(#[from] xla::Error),
}

pub type Result<T> = std::result::Result<T, Refusal>;

/// One computation while XLA builds it.
pub struct Builder {
    pub xla: XlaBuilder,
    parameters: Cell<i64>,
}

impl Builder {
    pub fn new(name: &str) -> Self {
        Self { xla: XlaBuilder::new(name), parameters: Cell::new(0) }
    }

    /// `op` on `inputs`, as many as it takes. Parameters are numbered as they come.
    pub fn apply(&self, op: &Op, inputs: &[XlaOp]) -> Result<XlaOp> {
        let built = match op {
            Op::Parameter { name, shape } => self.parameter(name, &xla_shape(shape)),
            Op::Constant(scalar) => self.xla.constant_literal(&constant(*scalar)),
            Op::Iota { shape, dim } => {
                self.xla.iota(element_type(shape.element_type), &dims(&shape.dims), *dim as i64)
            }
            Op::ReplicaId
            | Op::BitcastConvert(_)
            | Op::AllGather { .. }
            | Op::ReduceScatter { .. }
            | Op::AllToAll { .. } => return Err(Refusal::Lacks(op.name())),
            Op::Unary(op) => return unary(*op, &inputs[0]),
            Op::Binary(op) => return binary(*op, &inputs[0], &inputs[1]),
            Op::Compare(op) => return compare(*op, &inputs[0], &inputs[1]),
            Op::Select => inputs[0].select(&inputs[1], &inputs[2]),
            Op::Convert(to) => inputs[0].convert(element_type(*to).primitive_type()),
            Op::Broadcast { dims: to, mapping } => inputs[0].broadcast_in_dim(&dims(to), &dims(mapping)),
            Op::Reshape { dims: to } => inputs[0].reshape(&dims(to)),
            Op::Transpose { permutation } => inputs[0].transpose(&dims(permutation)),
            Op::Slice { start, limit, stride } => slice(&inputs[0], start, limit, stride),
            Op::DynamicSlice { sizes } => inputs[0].dynamic_slice(&inputs[1..], &dims(sizes)),
            Op::DynamicUpdateSlice => inputs[0].dynamic_update_slice(&inputs[1], &inputs[2..]),
            Op::Concatenate { dim } => inputs[0].concat_in_dim(&inputs[1..], *dim as i64),
            Op::Pad { low, high, interior } => {
                let dims = low.iter().zip(high).zip(interior);
                let dims = dims.map(|((low, high), interior)| (*low as i64, *high as i64, *interior as i64));
                inputs[0].pad(&inputs[1], &dims.collect::<Vec<_>>())
            }
            Op::DotGeneral { dimensions, sums } => {
                // It can't be told of wider sums than factors.
                let sums = element_type(*sums).primitive_type();
                let wide = |factor: &XlaOp| match factor.ty()? == sums {
                    true => Ok(factor.clone()),
                    false => factor.convert(sums),
                };
                dot(dimensions, &wide(&inputs[0])?, &wide(&inputs[1])?)
            }
            Op::Reduce { kind, dims: folded } => {
                let reducer = reducer(*kind, &inputs[0])?;
                inputs[0].reduce(inputs[1].clone(), reducer, &dims(folded), false)
            }
            Op::Gather => gather(&inputs[0], &inputs[1]),
            Op::ScatterAdd => {
                let (sum, last) = (reducer(Reduction::Sum, &inputs[0])?, inputs[1].rank()? as i64);
                inputs[0].scatter(&inputs[1], &inputs[2], &sum, &[last], &[0], &[0], last)
            }
            Op::RngBitGenerator { shape } => {
                let of = element_type(shape.element_type);
                let both = inputs[0].rng_bit_generator(RandomAlgorithm::Default, of, &dims(&shape.dims));
                both.and_then(|both| both.get_tuple_element(1))
            }
            Op::AllReduce => inputs[0].all_reduce(&reducer(Reduction::Sum, &inputs[0])?),
            Op::While { body, output } => return Ok(while_loop(self, body, &[*output], inputs)?.remove(0)),
            Op::StopGradient | Op::Barrier | Op::After | Op::Derived(_) => Ok(inputs[0].clone()),
        };
        Ok(built?)
    }

    pub fn parameter(&self, name: &str, shape: &xla::Shape) -> xla::Result<XlaOp> {
        let number = self.parameters.replace(self.parameters.get() + 1);
        self.xla.parameter_s(number, shape, name)
    }

    /// The outputs of a program, for its parameters.
    pub fn outputs(&self, program: &Program<'_>, parameters: &[XlaOp]) -> Result<Vec<XlaOp>> {
        let values = self.nodes(program, parameters)?;
        Ok(program.outputs.iter().map(|tensor| values[&tensor.id].clone()).collect())
    }

    /// The values of a program's nodes, for its parameters.
    pub fn nodes(&self, program: &Program<'_>, parameters: &[XlaOp]) -> Result<HashMap<NodeId, XlaOp>> {
        let given = program.parameters.iter().map(|tensor| tensor.id).zip(parameters.iter().cloned());
        let mut values = given.collect::<HashMap<_, _>>();
        let nodes = program.live_nodes();
        for (id, node) in &nodes {
            if values.contains_key(id) {
                continue;
            }
            let inputs = node.inputs.iter().map(|input| values[input].clone()).collect::<Vec<_>>();
            if let Op::While { body, .. } = &node.op {
                let outputs = loop_outputs(&nodes, node);
                let asked = outputs.iter().map(|(output, _)| *output).collect::<Vec<_>>();
                let found = while_loop(self, body, &asked, &inputs)?;
                values.extend(outputs.iter().map(|(_, id)| *id).zip(found));
            } else {
                values.insert(*id, self.apply(&node.op, &inputs)?);
            }
        }
        Ok(values)
    }

    pub fn tuple(&self, parts: &[XlaOp]) -> xla::Result<XlaOp> {
        self.xla.tuple(parts)
    }

    pub fn integer(&self, value: usize) -> xla::Result<XlaOp> {
        self.xla.c0(value as i32)
    }
}

macro_rules! table {
    ($(#[$doc:meta])* $all:ident, $name:ident($($x:ident),*): $of:ident { $($variant:ident => $built:expr,)* }) => {
        $(#[$doc])*
        pub const $all: &[$of] = &[$($of::$variant),*];

        fn $name(op: $of, $($x: &XlaOp),*) -> Result<XlaOp> {
            match op {
                $($of::$variant => Ok($built?),)*
            }
        }
    };
}

table! {
    UNARY, unary(a): Unary {
        Abs => a.abs(),
        Sign => a.sign(),
        Negate => a.neg(),
        Exp => a.exp(),
        Expm1 => a.expm1(),
        Log => a.log(),
        Log1p => a.log1p(),
        Tanh => a.tanh(),
        Logistic => a.logistic(),
        Sin => a.sin(),
        Cos => a.cos(),
        Erf => a.erf(),
        Sqrt => a.sqrt(),
        Rsqrt => a.rsqrt(),
        Not => a.not(),
    }
}

table! {
    BINARY, binary(a, b): Binary {
        Add => a.add_(b),
        Subtract => a.sub_(b),
        Multiply => a.mul_(b),
        Divide => a.div_(b),
        Maximum => a.max(b),
        Minimum => a.min(b),
        And => a.and(b),
        Or => a.or(b),
        Xor => a.xor(b),
        ShiftLeft => Err(Refusal::Lacks("shift-left")),
        ShiftRightLogical => Err(Refusal::Lacks("shift-right-logical")),
    }
}

table! {
    COMPARISONS, compare(a, b): Comparison {
        Eq => a.eq(b),
        Ne => a.ne(b),
        Lt => a.lt(b),
        Le => a.le(b),
        Gt => a.gt(b),
        Ge => a.ge(b),
    }
}

table! {
    REDUCTIONS, combine(a, b): Reduction {
        Sum => a.add_(b),
        Max => a.max(b),
    }
}

/// The computation of two scalars of the type of `like` that folds.
fn reducer(kind: Reduction, like: &XlaOp) -> Result<XlaComputation> {
    let builder = XlaBuilder::new("reducer");
    let of = like.ty()?.element_type()?;
    let (a, b) = (builder.parameter(0, of, &[], "a")?, builder.parameter(1, of, &[], "b")?);
    Ok(combine(kind, &a, &b)?.build()?)
}

/// The crate slices one dimension at a time.
fn slice(a: &XlaOp, start: &[usize], limit: &[usize], stride: &[usize]) -> xla::Result<XlaOp> {
    let whole = |(d, size): (usize, &usize)| (start[d], limit[d], stride[d]) == (0, *size, 1);
    let sizes = a.dims()?;
    let cut = sizes.iter().enumerate().filter(|dim| !whole(*dim)).map(|(d, _)| d).collect::<Vec<_>>();
    let cut = if cut.is_empty() { (0..sizes.len().min(1)).collect() } else { cut };
    cut.into_iter().try_fold(a.clone(), |a, d| {
        a.slice_in_dim(start[d] as i64, limit[d] as i64, stride[d] as i64, d as i64)
    })
}

fn dot(dimensions: &DotDimensions, a: &XlaOp, b: &XlaOp) -> xla::Result<XlaOp> {
    let DotDimensions { lhs_batch, rhs_batch, lhs_contracting, rhs_contracting } = dimensions;
    a.dot_general(b, &dims(lhs_contracting), &dims(rhs_contracting), &dims(lhs_batch), &dims(rhs_batch))
}

/// Rows of `table`, one for each index.
fn gather(table: &XlaOp, indices: &XlaOp) -> xla::Result<XlaOp> {
    let last = indices.rank()? as i64;
    let mut row = dims(&table.dims()?);
    row.iter_mut().take(1).for_each(|rows| *rows = 1);
    table.gather(indices, &[last], &[0], &[0], Some(last), &row)
}
