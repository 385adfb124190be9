//! The primitives as methods and operators of [`Tensor`].
//!
//! Binary operators broadcast as NumPy's do. Shapes that don't fit are mistakes of the calling code: they panic at
//! the caller's line with the operation and both shapes; [`Graph::apply`] returns the same as an error.

use super::graph::{Graph, Tensor};
use super::op::{Binary, Comparison, DotDimensions, Op, Reduction, Scalar};
use crate::shape::{ElementType, Shape};

impl Graph {
    /// A scalar constant: `value` rounded to `element_type`.
    pub fn constant(&self, element_type: ElementType, value: f64) -> Tensor<'_> {
        self.insert(Op::Constant(Scalar::new(element_type, value)), &[])
    }

    /// An array that holds `value` everywhere.
    pub fn full(&self, shape: Shape, value: f64) -> Tensor<'_> {
        self.constant(shape.element_type, value).broadcast_to(&shape.dims)
    }

    /// `0, 1, 2...` along `dim`.
    pub fn iota(&self, shape: Shape, dim: usize) -> Tensor<'_> {
        self.insert(Op::Iota { shape, dim }, &[])
    }

    /// The index of the replica that runs the program, `u32[]`.
    pub fn replica_id(&self) -> Tensor<'_> {
        self.insert(Op::ReplicaId, &[])
    }

    /// The inputs one after another along `dim`.
    #[track_caller]
    pub fn concatenate<'g>(&'g self, tensors: &[Tensor<'g>], dim: usize) -> Tensor<'g> {
        self.insert(Op::Concatenate { dim }, tensors)
    }
}

macro_rules! binary_methods {
    ($($(#[$doc:meta])* $method:ident => $variant:ident;)*) => {
        impl<'g> Tensor<'g> {
            $($(#[$doc])* #[track_caller]
            pub fn $method(self, other: Tensor<'g>) -> Tensor<'g> {
                self.binary(Binary::$variant, other)
            })*
        }
    };
}

binary_methods! {
    maximum => Maximum;
    minimum => Minimum;
}

macro_rules! operators {
    ($($trait:ident $method:ident => $variant:ident;)*) => {$(
        impl<'g> std::ops::$trait<Tensor<'g>> for Tensor<'g> {
            type Output = Tensor<'g>;
            #[track_caller]
            fn $method(self, other: Tensor<'g>) -> Tensor<'g> {
                self.binary(Binary::$variant, other)
            }
        }
        impl<'g> std::ops::$trait<f64> for Tensor<'g> {
            type Output = Tensor<'g>;
            #[track_caller]
            fn $method(self, other: f64) -> Tensor<'g> {
                self.binary(Binary::$variant, self.like(other))
            }
        }
    )*};
}

operators! {
    Add add => Add;
    Sub sub => Subtract;
    Mul mul => Multiply;
    Div div => Divide;
    BitAnd bitand => And;
    BitOr bitor => Or;
    BitXor bitxor => Xor;
    Shl shl => ShiftLeft;
    Shr shr => ShiftRightLogical;
}

impl<'g> Tensor<'g> {
    #[track_caller]
    fn binary(self, op: Binary, other: Tensor<'g>) -> Tensor<'g> {
        self.graph.insert(Op::Binary(op), &broadcast_together([self, other]))
    }

    /// `pred`: whether `self` stands to `other` as `comparison` says.
    #[track_caller]
    pub fn compare(self, comparison: Comparison, other: Tensor<'g>) -> Tensor<'g> {
        self.graph.insert(Op::Compare(comparison), &broadcast_together([self, other]))
    }

    /// `on_true` where `self` (`pred`) holds, else `on_false`.
    #[track_caller]
    pub fn select(self, on_true: Tensor<'g>, on_false: Tensor<'g>) -> Tensor<'g> {
        self.graph.insert(Op::Select, &broadcast_together([self, on_true, on_false]))
    }

    /// A scalar constant of this tensor's element type.
    pub fn like(self, value: f64) -> Tensor<'g> {
        self.graph.constant(self.shape().element_type, value)
    }

    pub fn convert(self, element_type: ElementType) -> Tensor<'g> {
        if self.shape().element_type == element_type {
            return self;
        }
        self.graph.insert(Op::Convert(element_type), &[self])
    }

    /// Reinterprets the bits; a wider type takes up a trailing dimension.
    #[track_caller]
    pub fn bitcast_convert(self, element_type: ElementType) -> Tensor<'g> {
        self.graph.insert(Op::BitcastConvert(element_type), &[self])
    }

    /// Repeats leading dimensions and dimensions of size 1 as NumPy's `broadcast_to` does.
    #[track_caller]
    pub fn broadcast_to(self, dims: &[usize]) -> Tensor<'g> {
        let own = self.dims();
        if own == dims {
            return self;
        }
        let leading = dims.len().saturating_sub(own.len());
        let mut kept = (0..own.len()).collect::<Vec<_>>();
        kept.retain(|d| own[*d] != 1 || dims.get(d + leading) == Some(&1));
        let squeezed = self.reshape(&kept.iter().map(|d| own[*d]).collect::<Vec<_>>());
        let mapping = kept.iter().map(|d| d + leading).collect();
        self.graph.insert(Op::Broadcast { dims: dims.to_vec(), mapping }, &[squeezed])
    }

    #[track_caller]
    pub fn reshape(self, dims: &[usize]) -> Tensor<'g> {
        if self.dims() == dims {
            return self;
        }
        let node = self.graph.node(self.id);
        if matches!(node.op, Op::Reshape { .. }) {
            let before = Tensor { graph: self.graph, id: node.inputs[0] };
            return before.reshape(dims);
        }
        self.graph.insert(Op::Reshape { dims: dims.to_vec() }, &[self])
    }

    /// Dimension `i` of the output is dimension `permutation[i]` of `self`.
    #[track_caller]
    pub fn transpose(self, permutation: &[usize]) -> Tensor<'g> {
        if permutation.iter().copied().eq(0..self.rank()) {
            return self;
        }
        self.graph.insert(Op::Transpose { permutation: permutation.to_vec() }, &[self])
    }

    /// Elements `start..limit` by `stride` of each dimension.
    #[track_caller]
    pub fn slice(self, start: &[usize], limit: &[usize], stride: &[usize]) -> Tensor<'g> {
        let is_whole = start.iter().all(|start| *start == 0) && *limit == self.dims()[..];
        if is_whole && stride.iter().all(|stride| *stride == 1) {
            return self;
        }
        let op = Op::Slice { start: start.to_vec(), limit: limit.to_vec(), stride: stride.to_vec() };
        self.graph.insert(op, &[self])
    }

    /// Elements `start..limit` of dimension `dim`.
    #[track_caller]
    pub fn narrow(self, dim: usize, start: usize, limit: usize) -> Tensor<'g> {
        let mut from = vec![0; self.rank()];
        let mut to = self.dims();
        (from[dim], to[dim]) = (start, limit);
        self.slice(&from, &to, &vec![1; self.rank()])
    }

    /// `sizes` elements of each dimension from `start` on, a scalar `s32` each: it is moved so that they lie within.
    #[track_caller]
    pub fn dynamic_slice(self, start: &[Tensor<'g>], sizes: &[usize]) -> Tensor<'g> {
        let inputs = [&[self], start].concat();
        self.graph.insert(Op::DynamicSlice { sizes: sizes.to_vec() }, &inputs)
    }

    /// `self` with `update` in the place of what [`dynamic_slice`](Self::dynamic_slice) takes there.
    #[track_caller]
    pub fn dynamic_update_slice(self, update: Tensor<'g>, start: &[Tensor<'g>]) -> Tensor<'g> {
        let inputs = [&[self, update], start].concat();
        self.graph.insert(Op::DynamicUpdateSlice, &inputs)
    }

    /// Entry `index` (`s32[]`) of the first dimension, which disappears.
    #[track_caller]
    pub fn entry(self, index: Tensor<'g>) -> Tensor<'g> {
        let dims = self.dims();
        let sizes = [&[1], &dims[1..]].concat();
        self.dynamic_slice(&first(index, dims.len()), &sizes).reshape(&dims[1..])
    }

    /// `self` with `value`, of one dimension less, as entry `index` (`s32[]`) of the first dimension.
    #[track_caller]
    pub fn with_entry(self, index: Tensor<'g>, value: Tensor<'g>) -> Tensor<'g> {
        let dims = self.dims();
        let update = value.reshape(&[&[1], &dims[1..]].concat());
        self.dynamic_update_slice(update, &first(index, dims.len()))
    }

    /// `low` and `high` copies of `value` (a scalar) around, and `interior` ones between neighbours.
    #[track_caller]
    pub fn pad(self, value: Tensor<'g>, low: &[usize], high: &[usize], interior: &[usize]) -> Tensor<'g> {
        // HLO's text has no padding of a scalar.
        if self.rank() == 0 {
            return self;
        }
        let op = Op::Pad { low: low.to_vec(), high: high.to_vec(), interior: interior.to_vec() };
        self.graph.insert(op, &[self, value])
    }

    /// The general dot product; output dimensions are batch, free ones of `self`, free ones of `other`. That of 16-bit floats
    /// is `f32`: it isn't rounded more than its factors were.
    #[track_caller]
    pub fn dot_general(self, other: Tensor<'g>, dimensions: DotDimensions) -> Tensor<'g> {
        let sums = match self.shape().element_type {
            ElementType::F16 | ElementType::Bf16 => ElementType::F32,
            other => other,
        };
        self.graph.insert(Op::DotGeneral { dimensions, sums }, &[self, other])
    }

    /// The sum over `dims`, which disappear.
    #[track_caller]
    pub fn sum(self, dims: &[usize]) -> Tensor<'g> {
        self.reduce(Reduction::Sum, dims)
    }

    /// The largest element over `dims`, which disappear.
    #[track_caller]
    pub fn max(self, dims: &[usize]) -> Tensor<'g> {
        self.reduce(Reduction::Max, dims)
    }

    #[track_caller]
    fn reduce(self, kind: Reduction, dims: &[usize]) -> Tensor<'g> {
        if dims.is_empty() {
            return self;
        }
        let start = kind.identity(self.shape().element_type);
        let start = self.graph.insert(Op::Constant(start), &[]);
        self.graph.insert(Op::Reduce { kind, dims: dims.to_vec() }, &[self, start])
    }

    /// Rows of `self` `[rows, width]` at `indices` `s32[...]`: `[..., width]`. Indices are clamped to the table.
    #[track_caller]
    pub fn gather(self, indices: Tensor<'g>) -> Tensor<'g> {
        self.graph.insert(Op::Gather, &[self, indices])
    }

    /// `self` `[rows, width]` with each of `updates` `[..., width]` added to its row of `indices` `s32[...]`.
    /// Updates of rows outside the table are dropped.
    #[track_caller]
    pub fn scatter_add(self, indices: Tensor<'g>, updates: Tensor<'g>) -> Tensor<'g> {
        self.graph.insert(Op::ScatterAdd, &[self, indices, updates])
    }

    /// Random `u32` bits of `dims`, a function of `self`, a `u64[2]` state; another one on each platform.
    #[track_caller]
    pub fn random_bits(self, dims: &[usize]) -> Tensor<'g> {
        let shape = Shape::new(ElementType::U32, dims);
        self.graph.insert(Op::RngBitGenerator { shape }, &[self])
    }

    /// The sum of every replica's value.
    #[track_caller]
    pub fn all_reduce_sum(self) -> Tensor<'g> {
        self.graph.insert(Op::AllReduce, &[self])
    }

    /// The values of all `replicas`, as many as run the program, in replica order along the first dimension: `[n, ...]`
    /// on each of them is `[replicas * n, ...]` on all, bit for bit.
    #[track_caller]
    pub fn all_gather(self, replicas: usize) -> Tensor<'g> {
        if replicas == 1 {
            return self;
        }
        self.graph.insert(Op::AllGather { replicas }, &[self])
    }

    /// Each replica's own part of the sum over all `replicas`, as many as run the program: of `[replicas * n, ...]`,
    /// replica `i` has rows `i * n..(i + 1) * n`, `[n, ...]`. An `all_gather` of it is `all_reduce_sum`.
    #[track_caller]
    pub fn reduce_scatter_sum(self, replicas: usize) -> Tensor<'g> {
        if replicas == 1 {
            return self;
        }
        self.graph.insert(Op::ReduceScatter { replicas }, &[self])
    }

    /// Hands the parts of the first dimension, as many as there are `replicas`, out to them: `[replicas * n, ...]` is the
    /// same on all, and part `i` there is what replica `i` had for this one. It is its own inverse.
    #[track_caller]
    pub fn all_to_all(self, replicas: usize) -> Tensor<'g> {
        if replicas == 1 {
            return self;
        }
        self.graph.insert(Op::AllToAll { replicas }, &[self])
    }

    /// The same value, through which no gradient flows.
    pub fn stop_gradient(self) -> Tensor<'g> {
        self.graph.insert(Op::StopGradient, &[self])
    }

    /// The same value, and so is its gradient, which the compiler keeps in memory for all its uses. XLA's CPU compiler would
    /// otherwise compute it again in each of them, and what it is computed from, as far back as there is no product.
    pub fn barrier(self) -> Tensor<'g> {
        self.graph.insert(Op::Barrier, &[self])
    }

    /// The same value, not before `other` is there: to the compiler it is another one, so that what is computed from it is
    /// computed again.
    pub fn after(self, other: Tensor<'g>) -> Tensor<'g> {
        self.graph.insert(Op::After, &[self, other])
    }
}

/// The start of what lies at `index` of the first of `rank` dimensions.
fn first(index: Tensor<'_>, rank: usize) -> Vec<Tensor<'_>> {
    let mut start = vec![index.like(0.0); rank];
    start[0] = index;
    start
}

/// Arrays broadcast against each other as NumPy's are. Those that don't fit stay as they are, so that the operation
/// itself reports their shapes.
fn broadcast_together<'g, const N: usize>(tensors: [Tensor<'g>; N]) -> [Tensor<'g>; N] {
    match common_dims(&tensors.map(Tensor::dims)) {
        Some(dims) => tensors.map(|tensor| tensor.broadcast_to(&dims)),
        None => tensors,
    }
}

/// The dimensions that arrays broadcast to, aligned at the last one: sizes at one place are equal or 1.
fn common_dims(arrays: &[Vec<usize>]) -> Option<Vec<usize>> {
    let rank = arrays.iter().map(Vec::len).max()?;
    let mut common = vec![1; rank];
    for dims in arrays {
        for (size, own) in common[rank - dims.len()..].iter_mut().zip(dims) {
            match (*size, *own) {
                (1, own) => *size = own,
                (size, own) if own == 1 || own == size => {}
                _ => return None,
            }
        }
    }
    Some(common)
}
