//! All integration tests, in one program: linked once. A file per topic.

mod common;
mod data;
mod golden;
mod graphs;
mod hub;
mod pjrt;
mod plugins;
mod split;
mod tokens;
