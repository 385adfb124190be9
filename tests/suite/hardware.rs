//! What the program makes of a machine's hardware, shown to it in a namespace.

use std::process::{Command, Output};

use bert_xla::pjrt::Backend;
use bert_xla::pjrt::install::is_installed;
use serde_json::Value as Json;

use crate::common::cli::{asset, command, text};
use crate::common::empty_folder;
use crate::common::machine::Machine;

/// Machines with what looks like a TPU and is none: Intel's accelerator, which has the node that those of all vendors
/// have; a device of AMD's that is passed through; a virtual machine of Google's, with its network card, that passes one
/// through.
const WITHOUT_TPU: [(&str, Machine<'static>); 3] = [
    ("accel", Machine { nodes: &["accel/accel0"], pci: &[("0x8086", "0x7d1d")] }),
    ("vfio", Machine { nodes: &["vfio/vfio", "vfio/0", "vfio/12"], pci: &[("0x1022", "0x1485")] }),
    ("gvnic", Machine { nodes: &["vfio/vfio", "vfio/0"], pci: &[("0x1ae0", "0x0042")] }),
];

/// A run of the command on the machine: its exit code, stdout and stderr.
#[track_caller]
fn run(name: &str, machine: &Machine<'_>, command: &Command) -> Option<(Option<i32>, String, String)> {
    let Output { status, stdout, stderr } = machine.show(name, command)?.output().unwrap();
    Some((status.code(), text(stdout), text(stderr)))
}

/// `train` on the sample and the tiny model for one epoch, on whichever device is there.
fn train(name: &str, arguments: &[&str]) -> Command {
    let mut command = command(&["train", "--random-weights", "--max-length", "24", "--epochs", "1"]);
    command.arg("--train").arg(asset("sample.csv")).arg("--model").arg(asset("tiny"));
    command.arg("--output").arg(empty_folder(name).join("run")).args(arguments);
    command
}

/// libtpu, asked for devices there, would look for a metadata server for minutes.
#[test]
fn others_accelerators_are_no_tpu() {
    for (name, machine) in WITHOUT_TPU {
        let folder = format!("hardware_{name}");
        let Some((code, _, said)) = run(&folder, &machine, &train(&format!("{folder}_run"), &[])) else {
            return;
        };
        assert_eq!(code, Some(0), "{name}: {said}");
        assert!(said.starts_with("tpu: passed over: no TPU on this machine ("), "{name}: {said}");
        assert!(said.contains("\nRunning on cpu (cpu)\n"), "{name}: {said}");

        let mut plugins = command(&["plugins", "--json"]);
        // No library at all: it must not even be opened.
        plugins.env("BERT_XLA_TPU_PLUGIN", asset("sample.csv"));
        let (code, listed, said) = run(&folder, &machine, &plugins).unwrap();
        assert_eq!((code, said.as_str()), (Some(0), ""), "{name}");
        let listed: Json = serde_json::from_str(&listed).unwrap();
        assert_eq!(listed[0]["backend"], "tpu");
        assert_eq!(listed[0]["state"], "not loaded", "{name}: {listed}");
    }
}

/// There, libtpu compiles as it does where there is nothing of the kind.
#[test]
fn others_accelerators_dont_keep_a_plan_from_being_made() {
    if !is_installed(Backend::Tpu).unwrap() {
        return eprintln!("skipped: no tpu plugin; `bert-xla plugins install tpu` brings it");
    }
    let plan = command(&["plan", "--topology", "v3:2x2x1", "--size", "tiny", "--step", "predict", "--json"]);
    for (name, machine) in WITHOUT_TPU {
        let Some((code, plan, said)) = run(&format!("hardware_plan_{name}"), &machine, &plan) else { return };
        assert_eq!(code, Some(0), "{name}: {said}");
        let plan: Json = serde_json::from_str(&plan).unwrap();
        assert_eq!((&plan["devices"], &plan["steps"][0]["step"]), (&8.into(), &"predict".into()), "{name}");
    }
}
