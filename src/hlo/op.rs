//! The primitive operations: each variant has its own fields, and one rule that gives its output's shape.

use std::rc::Rc;

use super::derived::Derived;
use super::loops::Loop;
use super::unary::Unary;
use crate::shape::{ElementType, Shape};

/// A primitive HLO operation, without its inputs.
///
/// Everything else (softmax, gelu, layer normalization...) is built from these in `derived.rs`,
/// so only these have a shape rule, a gradient rule and an emission rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// An input of the program. Two parameters are the same one only if name and shape are.
    Parameter {
        name: String,
        shape: Shape,
    },
    /// A scalar; arrays of it are broadcasts.
    Constant(Scalar),
    /// `0, 1, 2...` along `dim`.
    Iota {
        shape: Shape,
        dim: usize,
    },
    /// The index of the replica that runs the program, `u32[]`.
    ReplicaId,
    Unary(Unary),
    Binary(Binary),
    /// `pred` of two arrays of the same shape.
    Compare(Comparison),
    /// `select(pred, on_true, on_false)`, all of the same dimensions.
    Select,
    Convert(ElementType),
    /// Reinterprets the bits. A wider type takes up a trailing dimension: `u32[2,2]` is `u64[2]`.
    BitcastConvert(ElementType),
    /// Output dimension `mapping[i]` carries input dimension `i`; the others repeat it.
    Broadcast {
        dims: Vec<usize>,
        mapping: Vec<usize>,
    },
    Reshape {
        dims: Vec<usize>,
    },
    /// Output dimension `i` is input dimension `permutation[i]`.
    Transpose {
        permutation: Vec<usize>,
    },
    Slice {
        start: Vec<usize>,
        limit: Vec<usize>,
        stride: Vec<usize>,
    },
    /// `dynamic-slice(input, start...)`: `sizes` elements of each dimension, from a scalar `s32` start that is moved so
    /// that they lie within the input.
    DynamicSlice {
        sizes: Vec<usize>,
    },
    /// `dynamic-update-slice(input, update, start...)`: the input with `update` in the place of what
    /// [`DynamicSlice`](Op::DynamicSlice) takes there.
    DynamicUpdateSlice,
    Concatenate {
        dim: usize,
    },
    /// `pad(input, scalar)`: `low` and `high` elements around, `interior` ones between neighbours.
    Pad {
        low: Vec<usize>,
        high: Vec<usize>,
        interior: Vec<usize>,
    },
    /// Output dimensions: batch, then the free ones of the left side, then of the right. Products of narrow floats may be
    /// summed in `f32`, as a matrix unit does, and then `sums` says so; else it is the inputs' own type.
    DotGeneral {
        dimensions: DotDimensions,
        sums: ElementType,
    },
    /// `reduce(input, start)`: folds `dims` away, from the scalar `start`, a constant: no gradient
    /// flows to it.
    Reduce {
        kind: Reduction,
        dims: Vec<usize>,
    },
    /// Rows of a table: `gather(table [rows, width], indices s32[...])` is `[..., width]`.
    Gather,
    /// `scatter(table [rows, width], indices s32[...], updates [..., width])`: each update is added to its row.
    ScatterAdd,
    /// Random bits of `shape` from a `u64[2]` state, by the platform's own generator: on CPU and GPU, Philox
    /// (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
    RngBitGenerator {
        shape: Shape,
    },
    /// The sum over all replicas.
    AllReduce,
    /// The values of all `replicas`, in replica order along the first dimension.
    AllGather {
        replicas: usize,
    },
    /// The sum over all `replicas`, cut into equal parts along the first dimension: replica `i` has the `i`-th.
    ReduceScatter {
        replicas: usize,
    },
    /// `replicas` equal parts along the first dimension: replica `i`'s `j`-th part is replica `j`'s `i`-th.
    AllToAll {
        replicas: usize,
    },
    /// One of the outputs of a loop, which runs once for all of them.
    While {
        body: Rc<Loop>,
        output: usize,
    },
    /// Its input, through which no gradient flows. Not emitted.
    StopGradient,
    /// Its input, which is not computed again where it is used. Emitted for the CPU's compiler alone.
    Barrier,
    /// The first of two inputs, once the second is there, and another value to the compiler.
    After,
    /// `derived(value, arguments...)`: its first input, which is that function of the others; the gradient flows to those by
    /// the function's own rule. Not emitted.
    Derived(Derived),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    Maximum,
    Minimum,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRightLogical,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    Sum,
    Max,
}

impl Reduction {
    /// What reducing nothing gives.
    pub fn identity(self, element_type: ElementType) -> Scalar {
        match self {
            Self::Sum => Scalar::new(element_type, 0.0),
            Self::Max if element_type.is_float() => Scalar::new(element_type, f64::NEG_INFINITY),
            // Saturates at the smallest integer of the type.
            Self::Max => Scalar::new(element_type, f64::MIN),
        }
    }

    /// The opcode that combines two elements.
    pub fn combiner(self) -> &'static str {
        match self {
            Self::Sum => Binary::Add.name(),
            Self::Max => Binary::Maximum.name(),
        }
    }
}

/// Which dimensions of the two sides of a dot pair up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DotDimensions {
    pub lhs_batch: Vec<usize>,
    pub rhs_batch: Vec<usize>,
    pub lhs_contracting: Vec<usize>,
    pub rhs_contracting: Vec<usize>,
}

impl DotDimensions {
    /// Dimensions of the left side (of `rank`) that are neither batch nor contracting.
    pub fn lhs_free(&self, rank: usize) -> Vec<usize> {
        free(rank, &self.lhs_batch, &self.lhs_contracting)
    }

    /// Dimensions of the right side (of `rank`) that are neither batch nor contracting.
    pub fn rhs_free(&self, rank: usize) -> Vec<usize> {
        free(rank, &self.rhs_batch, &self.rhs_contracting)
    }
}

fn free(rank: usize, batch: &[usize], contracting: &[usize]) -> Vec<usize> {
    (0..rank).filter(|d| !batch.contains(d) && !contracting.contains(d)).collect()
}

/// A value of an element type, compared and hashed by its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scalar {
    pub element_type: ElementType,
    bits: u64,
}

impl Scalar {
    /// `value` rounded to `element_type`, or its nearest bound.
    pub fn new(element_type: ElementType, value: f64) -> Self {
        let bits = match element_type {
            ElementType::Pred => u64::from(value != 0.0),
            ElementType::U8 => u64::from(value as u8),
            ElementType::U32 => u64::from(value as u32),
            ElementType::U64 => value as u64,
            ElementType::S32 => u64::from(value as i32 as u32),
            ElementType::S64 => value as i64 as u64,
            ElementType::F16 => u64::from(half::f16::from_f64(value).to_bits()),
            ElementType::Bf16 => u64::from(half::bf16::from_f64(value).to_bits()),
            ElementType::F32 => u64::from((value as f32).to_bits()),
            ElementType::F64 => value.to_bits(),
        };
        Self { element_type, bits }
    }

    pub fn to_f64(self) -> f64 {
        match self.element_type {
            ElementType::Pred | ElementType::U8 | ElementType::U32 | ElementType::U64 => self.bits as f64,
            ElementType::S32 => f64::from(self.bits as u32 as i32),
            ElementType::S64 => self.bits as i64 as f64,
            ElementType::F16 => half::f16::from_bits(self.bits as u16).to_f64(),
            ElementType::Bf16 => half::bf16::from_bits(self.bits as u16).to_f64(),
            ElementType::F32 => f64::from(f32::from_bits(self.bits as u32)),
            ElementType::F64 => f64::from_bits(self.bits),
        }
    }

    /// The value's bits, in the low end of the word.
    pub fn bits(self) -> u64 {
        self.bits
    }
}

/// Inputs that do not fit an operation: names it and every shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {problem}; inputs {inputs}")]
pub struct ShapeError {
    pub op: &'static str,
    pub problem: String,
    pub inputs: String,
}

impl Op {
    /// The HLO opcode.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Parameter { .. } => "parameter",
            Op::Constant(_) => "constant",
            Op::Iota { .. } => "iota",
            Op::ReplicaId => "replica-id",
            Op::Unary(op) => op.name(),
            Op::Binary(op) => op.name(),
            Op::Compare(_) => "compare",
            Op::Select => "select",
            Op::Convert(_) => "convert",
            Op::BitcastConvert(_) => "bitcast-convert",
            Op::Broadcast { .. } => "broadcast",
            Op::Reshape { .. } => "reshape",
            Op::Transpose { .. } => "transpose",
            Op::Slice { .. } => "slice",
            Op::DynamicSlice { .. } => "dynamic-slice",
            Op::DynamicUpdateSlice => "dynamic-update-slice",
            Op::Concatenate { .. } => "concatenate",
            Op::Pad { .. } => "pad",
            Op::DotGeneral { .. } => "dot",
            Op::Reduce { .. } => "reduce",
            Op::Gather => "gather",
            Op::ScatterAdd => "scatter",
            Op::RngBitGenerator { .. } => "rng-bit-generator",
            Op::AllReduce => "all-reduce",
            Op::AllGather { .. } => "all-gather",
            Op::ReduceScatter { .. } => "reduce-scatter",
            Op::AllToAll { .. } => "all-to-all",
            Op::While { .. } => "while",
            Op::StopGradient => "stop-gradient",
            Op::Barrier | Op::After => "opt-barrier",
            Op::Derived(_) => "derived",
        }
    }
}

impl Binary {
    pub fn name(self) -> &'static str {
        match self {
            Binary::Add => "add",
            Binary::Subtract => "subtract",
            Binary::Multiply => "multiply",
            Binary::Divide => "divide",
            Binary::Maximum => "maximum",
            Binary::Minimum => "minimum",
            Binary::And => "and",
            Binary::Or => "or",
            Binary::Xor => "xor",
            Binary::ShiftLeft => "shift-left",
            Binary::ShiftRightLogical => "shift-right-logical",
        }
    }
}

impl Comparison {
    pub fn name(self) -> &'static str {
        match self {
            Comparison::Eq => "EQ",
            Comparison::Ne => "NE",
            Comparison::Lt => "LT",
            Comparison::Le => "LE",
            Comparison::Gt => "GT",
            Comparison::Ge => "GE",
        }
    }
}
