//! How the programs compute, and how their weights lie over the replicas.

use std::fmt;
use std::str::FromStr;

use crate::hlo::Residuals;
use crate::nn::DropoutBits;
use crate::shape::ElementType;

/// How the programs compute, and how the weights lie over the replicas: what all of this gives is the same, but for rounding
/// and dropout's masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execution {
    pub precision: Precision,
    /// Whether each replica keeps weights and moments of its own share, and updates that alone.
    pub sharded: bool,
    /// In which the replicas' gradients of matrices travel.
    pub gradient_precision: Precision,
    pub dropout_bits: DropoutBits,
    /// What training keeps of its forward pass for the backward pass.
    pub residuals: Residuals,
}

/// Everything in `f32`, on every replica: the recipe's.
impl Default for Execution {
    fn default() -> Self {
        Self {
            precision: Precision::F32,
            sharded: false,
            gradient_precision: Precision::F32,
            dropout_bits: DropoutBits::default(),
            residuals: Residuals::All,
        }
    }
}

/// A type of floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    /// bfloat16. Of the programs: activations and the factors of products; their sums, layer normalization, softmax, the loss
    /// and the optimizer are in `f32`, and so are the weights that are updated.
    Bf16,
}

impl Precision {
    pub fn element_type(self) -> ElementType {
        match self {
            Self::F32 => ElementType::F32,
            Self::Bf16 => ElementType::Bf16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.element_type().fmt(f)
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err("expected f32 or bf16".to_owned()),
        }
    }
}

/// What is asked of an [`Execution`]; the rest depends on the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecutionOptions {
    pub precision: Option<Precision>,
    /// Every replica keeps all weights, and updates them.
    pub mirrored: bool,
    pub gradient_precision: Option<Precision>,
    pub dropout_bits: DropoutBits,
    pub residuals: Residuals,
}

impl ExecutionOptions {
    /// On so many replicas, whose devices compute faster in `precision` than in others.
    pub fn resolve(self, precision: Precision, replicas: usize) -> Execution {
        let precision = self.precision.unwrap_or(precision);
        Execution {
            precision,
            // TPU's compiler has no sum of shares over an odd number of replicas.
            sharded: !self.mirrored && replicas.is_multiple_of(2),
            gradient_precision: self.gradient_precision.unwrap_or(precision),
            dropout_bits: self.dropout_bits,
            residuals: self.residuals,
        }
    }
}
