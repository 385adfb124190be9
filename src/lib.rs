//! Fine-tunes BERT text classifiers on Cloud TPU, GPU or CPU: the whole training step is one XLA program, run through
//! a PJRT plugin.
//!
//! The modules; each uses only those that are listed before it (and `proto`, XLA's messages, which comes first):
//!
//! | module | what |
//! |---|---|
//! | [`shape`] | element types and array shapes |
//! | [`storage`] | files that are written whole or not at all, here or in a bucket, and commits of many |
//! | [`hlo`] | operations on typed tensors, their gradients, a serialized HLO module |
//! | [`pjrt`] | a module and buffers in, results out, on TPU, GPU or CPU |
//! | [`data`] | a table of texts and labels to token ids, split and batched; probabilities to answers |
//! | [`nn`], [`model`] | layers built from `hlo`; the BERT classifier and its heads |
//! | [`weights`] | a model id or folder to configuration, tokenizer and weights |
//! | [`step`] | the model as one program per step, with names for what it takes and returns |
//! | [`exec`] | a backend, replicas on its devices, the hosts of a slice kept in step |
//! | [`report`] | measurements to curves, tables and progress |
//! | [`run`] | the run folder that training leaves: its layout, its commits, its reader |
//! | [`infer`] | trained models that answer texts, each alone or together |
//! | `serve` | trained models over HTTP: a page and an API (the feature `serve`) |
//! | [`export`] | a trained model as files for other programs |
//! | [`train`] | the loop over a compiled step, and the whole job from table to commits |
//! | [`plan`] | a chip's figures and a compiled program: memory, time and cost of a step, with no device |
//! | [`tpu_vm`] | Cloud TPU VMs, launched through `gcloud` and watched through preemptions |
//! | [`cli`] | arguments to one command; it alone knows what flags there are |
//!
//! A batch's way: [`data::Table`] holds the rows of the file, [`data::Tokenizer`] makes [`data::Tokens`] of them (in
//! [`train::Session`]), [`data::Dataset`] batches those; [`infer::upload_batch`] puts a batch on the devices of
//! [`exec::Replicas`], and an [`exec::Executable`], whose [`step::Signature`] binds it by name, queues the step. Metrics
//! come back from an [`exec::Pending`]; the state stays on the devices, in an [`exec::State`].
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
//!     &pjrt::Module {
//!         format: pjrt::ModuleFormat::Hlo,
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

pub mod cli;
pub mod data;
pub mod exec;
pub mod export;
pub mod hlo;
pub mod infer;
pub mod model;
pub mod nn;
pub mod pjrt;
pub mod plan;
mod proto;
pub mod report;
pub mod run;
#[cfg(feature = "serve")]
pub mod serve;
pub mod shape;
pub mod step;
pub mod storage;
pub mod tpu_vm;
pub mod train;
pub mod weights;
