//! What tests of several files share.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod buckets;
pub mod cli;
pub mod ensembles;
pub mod gcloud;
pub mod gcs;
pub mod graph;
pub mod hub;
pub mod machine;
pub mod metadata;
pub mod minilm;
pub mod runs;
pub mod server;
pub mod slice;
pub mod tpu_api;
pub mod tpu_vm;
pub mod training;

use std::path::PathBuf;

use bert_xla::pjrt::install::ensure_installed;
use bert_xla::pjrt::{Backend, Client, Plugin, cpu_device_count};

/// The CPU plugin's file, installed into the user's cache when it is not there.
pub fn cpu_plugin() -> PathBuf {
    ensure_installed(Backend::Cpu).expect("the CPU plugin")
}

/// A CPU client that shows `devices` devices.
pub fn cpu_client(devices: usize) -> Client {
    let plugin = Plugin::load(Backend::Cpu, &cpu_plugin()).expect("load the CPU plugin");
    plugin.client(&[cpu_device_count(devices)]).expect("a CPU client")
}

/// An empty folder under the build's own temporary folder, named after the test.
pub fn empty_folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Builds the library that kills the process that it is preloaded into, as `tests/fixtures/kill_at.c` tells; without a C
/// compiler, says so and gives `None`: the test is skipped.
pub fn killer(name: &str) -> Option<PathBuf> {
    machine::shared_library(
        &cli::asset("../tests/fixtures/kill_at.c"),
        &empty_folder(name).join("kill_at.so"),
    )
}

/// The same for `tests/fixtures/slow_disk.c`.
pub fn slow_disk(name: &str) -> Option<PathBuf> {
    machine::shared_library(
        &cli::asset("../tests/fixtures/slow_disk.c"),
        &empty_folder(name).join("slow_disk.so"),
    )
}
