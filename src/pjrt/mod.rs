//! Runs compiled XLA programs on TPU, GPU or CPU through a PJRT plugin: a shared library with one C interface for
//! all three. Nothing here knows about models: programs come in as bytes, data as [`Buffer`]s.
//!
//! [`Plugin::find`] and [`Plugin::load`] give a [`Plugin`], its [`Client`] holds the devices, compiles a [`Module`]
//! and uploads [`Buffer`]s, and a [`LoadedExecutable`] runs. Each handle keeps alive what it depends upon and frees
//! its C object once.

mod advice;
mod allocator;
mod api;
mod buffer;
mod cache;
mod client;
mod error;
mod event;
mod executable;
mod execute;
mod gpu_options;
pub mod install;
mod leave;
mod options;
mod platform;
mod plugin;
mod quiet;
mod sys;
mod topology;
mod value;

pub use allocator::JEMALLOC_OPTIONS;
pub use buffer::{Buffer, Element, PendingRead};
pub use cache::ExecutableCache;
pub use client::{Client, Device, DeviceMemory, Module, ModuleFormat, cpu_device_count};
pub use error::{Error, Result};
pub use executable::{Executable, MemoryStats};
pub use execute::{Argument, Completion, Execution, LoadedExecutable};
pub use gpu_options::{GpuOptions, parse_fraction};
pub use leave::leave;
pub use options::{CompileOptions, FlagValue};
pub use platform::{Absence, Backend};
pub use plugin::Plugin;
pub use topology::{Topology, TopologyDevice};
pub use value::Value;
