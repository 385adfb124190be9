//! Fine-tunes BERT text classifiers on Cloud TPU, GPU or CPU: the whole training step is one XLA program, run through
//! a PJRT plugin.
//!
//! The modules, in the order that data flows:
//!
//! | module | from | to |
//! |---|---|---|
//! | [`data`] | a table of texts and labels | token ids, split and batched |
//! | [`hub`], [`checkpoint`] | a model id or folder | configuration, tokenizer, weights |
//! | [`hlo`] | operations on typed tensors | gradients, and a serialized HLO module |
//! | [`nn`], [`model`] | layers built from `hlo` | the BERT classifier |
//! | [`train`] | the model | one program per step, and the loop that runs it |
//! | [`pjrt`] | a program and buffers | results, on TPU, GPU or CPU |
//! | [`strategy`], [`placement`] | what the user asked for | a backend, and replicas on its devices |
//! | [`agreement`] | what each process of a slice has read | whether they all do the same |
//! | [`plan`] | a chip's figures, a compiled program | memory, time and cost of a step, with no device |
//! | [`report`], [`tables`], [`run_folder`] | measurements and weights | curves, CSV files, a folder to load again |
//! | [`cli`] | arguments | one command |
//!
//! `hlo` knows nothing of `nn`, `nn` nothing of `train`, and `pjrt` nothing of any of them.
//!
//! A program and its gradient, compiled and run on the CPU:
//!
//! ```
//! use bert_xla::hlo::{Graph, Program};
//! use bert_xla::pjrt::{self, install::ensure_installed};
//! use bert_xla::shape::{ElementType, Shape};
//!
//! # fn main() -> Result<(), bert_xla::pjrt::Error> {
//! let graph = Graph::new();
//! let x = graph.parameter("x", Shape::new(ElementType::F32, [3]));
//! let loss = (x * x).sum(&[0]);
//! let gradient = graph.gradients(loss, &[x])[0].expect("the loss depends on x");
//! let program = Program::new("squares", vec![x], vec![loss, gradient]);
//!
//! let path = ensure_installed(pjrt::Backend::Cpu)?;
//! let client = pjrt::Plugin::load(pjrt::Backend::Cpu, &path)?.client(&[pjrt::cpu_device_count(1)])?;
//! let executable = client.compile(
//!     &pjrt::Program {
//!         format: pjrt::ProgramFormat::Hlo,
//!         code: &program.to_hlo_proto(),
//!         parameters: &program.parameter_shapes(),
//!     },
//!     &pjrt::CompileOptions::replicas(1),
//! )?;
//! let x = client.buffer_from_host(&[1f32, 2.0, 3.0], &[3], client.addressable_device(0)?)?;
//! let outputs = executable.execute(vec![vec![pjrt::Argument::Borrow(&x)]])?;
//! assert_eq!(outputs[0][0].to_host::<f32>()?, [14.0]);
//! assert_eq!(outputs[0][1].to_host::<f32>()?, [2.0, 4.0, 6.0]);
//! # Ok(())
//! # }
//! ```

pub mod agreement;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod error;
pub mod files;
pub mod hlo;
pub mod hub;
pub mod model;
pub mod nn;
pub mod pjrt;
pub mod placement;
pub mod plan;
mod proto;
pub mod report;
pub mod run_folder;
pub mod shape;
pub mod strategy;
pub mod tables;
pub mod train;
