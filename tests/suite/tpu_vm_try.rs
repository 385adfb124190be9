//! A TPU VM on this machine for a person who wants to try `bert-xla tpu-vm` without one.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use bert_xla::tpu_vm::quote;

use crate::common::gcs::Gcs;
use crate::common::tpu_vm::TpuVm;

/// Serves the API, a worker with the real program, and a bucket, until it is ended.
#[test]
#[ignore = "serves until it is ended: see docs/tpu-vm.md"]
fn a_tpu_vm_to_try() {
    let Some(vm) = TpuVm::none_yet("try", 1) else { return };
    let gcs = Gcs::start();
    let export = |(name, value): (String, String)| format!("export {name}={}\n", quote(&value));
    let bucket = gcs.variables().into_iter().map(|(name, value)| export((name.to_string(), value)));
    let bucket = bucket.collect::<String>();
    fs::write(vm.path("environment"), &bucket).unwrap();
    let here = vm.environment().into_iter().map(|(name, value)| export((name.to_string(), value)));
    fs::write(vm.path("activate"), here.collect::<String>() + &bucket).unwrap();
    let folder = vm.folder.display();
    eprintln!("In another shell:      . {folder}/activate");
    eprintln!("To take the VM away:   touch {folder}/preempt");
    eprintln!("The zone is z, the bucket gs://runs, and a worker's home {folder}/0. End this with Ctrl-C.");
    let preempt = vm.path("preempt");
    loop {
        sleep(Duration::from_millis(200));
        if fs::remove_file(&preempt).is_ok() {
            vm.api.preempt("my-tpu", Some("PREEMPTED"));
        }
    }
}
