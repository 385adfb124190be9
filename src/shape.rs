//! Element types and array shapes, shared by the graph builder and the runtime.

use std::fmt;

/// The element type of an array, named as XLA names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ElementType {
    Pred,
    U8,
    S32,
    S64,
    U32,
    U64,
    F16,
    Bf16,
    F32,
    F64,
}

impl ElementType {
    /// Size of one element in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::Pred | Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::S32 | Self::U32 | Self::F32 => 4,
            Self::S64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// The name in HLO text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pred => "pred",
            Self::U8 => "u8",
            Self::S32 => "s32",
            Self::S64 => "s64",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }

    /// True for `f16`, `bf16`, `f32` and `f64`.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    /// True for types that hold numbers below zero.
    pub const fn is_signed(self) -> bool {
        self.is_float() || matches!(self, Self::S32 | Self::S64)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The element type and dimensions of a dense, row-major array.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    pub element_type: ElementType,
    pub dims: Vec<usize>,
}

impl Shape {
    pub fn new(element_type: ElementType, dims: impl Into<Vec<usize>>) -> Self {
        Self { element_type, dims: dims.into() }
    }

    /// Shape of a single value.
    pub fn scalar(element_type: ElementType) -> Self {
        Self::new(element_type, [])
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Number of elements; 1 for a scalar.
    pub fn num_elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Size of the array in bytes.
    pub fn size_in_bytes(&self) -> usize {
        self.num_elements() * self.element_type.size()
    }
}

/// As in HLO text: `f32[16,140,768]`.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.element_type)?;
        for (i, dim) in self.dims.iter().enumerate() {
            let separator = if i == 0 { "" } else { "," };
            write!(f, "{separator}{dim}")?;
        }
        f.write_str("]")
    }
}
