//! A TPU VM on this machine for a person who wants to try `bert-xla tpu-vm` without one.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use bert_xla::tpu_vm::quote;

use crate::common::cli::asset;
use crate::common::cpu_plugin;
use crate::common::gcs::Gcs;
use crate::common::tpu_vm::TpuVm;

/// Serves the API, a worker with the real program, and a bucket, until it is ended.
#[test]
#[ignore = "serves until it is ended: see docs/tpu-vm.md"]
fn a_tpu_vm_to_try() {
    let Some(vm) = TpuVm::none_yet("try", 1) else { return };
    vm.api.state().create_time = chrono::Utc::now().to_rfc3339();
    let gcs = Gcs::start();
    let export = |(name, value): (String, String)| format!("export {name}={}\n", quote(&value));
    let bucket = gcs.variables().into_iter().map(|(name, value)| export((name.to_string(), value)));
    let bucket = bucket.collect::<String>();
    let plugin = export(("BERT_XLA_CPU_PLUGIN".to_owned(), cpu_plugin().display().to_string()));
    fs::write(vm.path("environment"), format!("{bucket}{plugin}")).unwrap();
    let here = vm.environment().into_iter().map(|(name, value)| export((name.to_string(), value)));
    fs::write(vm.path("activate"), here.collect::<String>() + &bucket).unwrap();
    let folder = vm.folder.display();
    let assets = asset("").display().to_string();
    eprintln!("In another shell:      . {folder}/activate");
    eprintln!(
        "Such as:               scripts/tpu-vm run my-tpu --zone z --type v5litepod-8 --bucket gs://runs --poll 5 \\\n  \
         --data {assets}sample.csv --data {assets}tiny -- --backend cpu --train sample.csv --model tiny --random-weights \\\n  --max-length 24"
    );
    eprintln!("To take the VM away:   touch {folder}/preempt");
    eprintln!(
        "The zone is z, and has room for one VM; a worker's home is {folder}/0, and it has no TPU: --backend cpu.\n\
         gcloud storage doesn't reach the bucket, gs://runs: --data brings tables. End this with Ctrl-C."
    );
    let preempt = vm.path("preempt");
    loop {
        sleep(Duration::from_millis(200));
        if fs::remove_file(&preempt).is_ok() {
            let names = vm.api.state().nodes.keys().cloned().collect::<Vec<_>>();
            names.iter().for_each(|name| vm.api.preempt(name, Some("PREEMPTED")));
        }
    }
}
