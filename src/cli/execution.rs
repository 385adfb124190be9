use clap::Args;

use crate::hlo::Residuals;
use crate::nn::DropoutBits;
use crate::step::{ExecutionOptions, Precision};

/// How a job computes, wherever it runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Computation")]
pub struct ExecutionArgs {
    /// f32, or bf16 for products and activations, with weights, sums, normalization, softmax, loss and Adam in f32
    /// [default: bf16 on TPU and on GPUs that have it (Ampere and later), else f32]
    #[arg(long, value_name = "f32|bf16")]
    precision: Option<Precision>,
    /// Keep all weights and moments on every replica, as the recipe does [default: with an even number of replicas, each keeps
    /// and updates its own share]
    #[arg(long)]
    mirrored: bool,
    /// In which gradients of matrices go from replica to replica [default: as --precision]
    #[arg(long, value_name = "f32|bf16")]
    gradient_precision: Option<Precision>,
    /// Random bits that decide on an element's dropout: 16 (rates to 1/65536), 8 (to 1/256: a rate of 0.1 is 26/256) or 32
    #[arg(long, default_value = "16", value_name = "BITS")]
    dropout_bits: DropoutBits,
    /// Compute values of the forward pass again rather than keep them for the backward pass. layers: all but what each layer's
    /// attention and feed-forward block give, for a third to a half more time. cheap: all but products, which is worth it for a
    /// large model on a CPU
    #[arg(long, value_name = "cheap|layers")]
    remat: Option<Residuals>,
}

impl ExecutionArgs {
    pub fn options(&self) -> ExecutionOptions {
        let Self { precision, mirrored, gradient_precision, dropout_bits, remat } = *self;
        let residuals = remat.unwrap_or_default();
        ExecutionOptions { precision, mirrored, gradient_precision, dropout_bits, residuals }
    }
}
