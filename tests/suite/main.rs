//! All integration tests, in one program: linked once. A file per topic.

mod common;
mod data;
mod golden;
mod hub;
mod pjrt;
mod plugins;
mod split;
mod tokens;
