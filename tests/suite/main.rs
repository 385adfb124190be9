//! All integration tests, in one program: linked once. A file per topic.

mod bad_inputs;
mod buckets;
mod busy_tpu;
mod cache;
mod cards;
mod chief;
mod claimed_ensembles;
mod cli;
mod cli_errors;
#[cfg(feature = "cloud")]
mod cloud;
#[cfg(feature = "cloud")]
mod cloud_commands;
#[cfg(feature = "cloud")]
mod cloud_runs;
mod commit;
mod common;
mod data;
mod downloads;
mod dropout;
mod ensembles;
mod exports;
mod formats;
mod fuzz;
mod golden;
mod gradients;
mod graphs;
mod hardware;
mod heads;
mod hlo_collectives;
mod hlo_derived;
mod hlo_flops;
mod hlo_graph;
mod hlo_loops;
mod hlo_names;
mod hlo_ops;
mod hlo_properties;
mod hlo_random;
mod hub;
mod keep;
mod labels;
mod manifests;
mod members;
mod optimizer;
mod pjrt;
mod pjrt_table;
mod plan;
mod plugins;
mod rehearsals;
mod remat;
mod replaced_members;
mod replicas;
mod resume;
mod resume_faults;
mod resume_folders;
mod resume_signals;
mod resume_slices;
mod runs;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod serve_ends;
mod session;
mod sharded;
mod slices;
mod slices_faults;
mod slices_streams;
mod split;
mod tensorboard;
mod texts;
mod tokens;
mod tpu_vm;
mod tpu_vm_odd;
mod tpu_vm_runs;
mod tpu_vm_try;
#[cfg(feature = "cloud")]
mod tpu_vm_watch;
mod training;
#[cfg(feature = "xla-extension")]
mod xla_runtime;
