//! All integration tests, in one program: linked once. A file per topic.

mod cache;
mod cli;
mod cli_errors;
mod common;
mod data;
mod dropout;
mod golden;
mod gradients;
mod graphs;
mod hlo_derived;
mod hlo_flops;
mod hlo_graph;
mod hlo_ops;
mod hlo_properties;
mod hlo_random;
mod hub;
mod pjrt;
mod plan;
mod plugins;
mod replicas;
mod slices;
mod split;
mod tokens;
mod tpu_vm;
mod training;
