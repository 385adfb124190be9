//! A TPU that another process holds when the program comes, as one that was stopped does for a while: it is waited for.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use bert_xla::exec::{DeviceOptions, Replicas};
use bert_xla::pjrt::Backend;

use crate::common::cli::{asset, command, text};
use crate::common::empty_folder;
use crate::common::machine::{Machine, stand_in};
use crate::common::slice::{Slice, wait};

const TPU: Machine<'static> = Machine { nodes: &["vfio/vfio", "vfio/0"], pci: &[("0x1ae0", "0x0063")] };
const GPU: Machine<'static> = Machine { nodes: &["nvidia0", "nvidiactl"], pci: &[] };

const HELD: &str = "PJRT_Client_Create: UNKNOWN: TPU initialization failed: open(/dev/vfio/0): Device or resource busy: \
                    Device or resource busy; Couldn't open iommu group /dev/vfio/0";
const LOCKED: &str = "PJRT_Plugin_Initialize: ABORTED: The TPU is already in use by process with pid 4242. Not \
                      attempting to load libtpu.so in this process.";

fn train(output: &Path, arguments: &[&str]) -> Command {
    let mut command = command(&["train", "--random-weights", "--max-length", "24", "--epochs", "1"]);
    command.arg("--train").arg(asset("sample.csv")).arg("--model").arg(asset("tiny"));
    // The stand-in's devices are the CPU's.
    command.arg("--output").arg(output).args(["--precision", "f32"]).args(arguments);
    command
}

/// How often the stand-in was asked for this.
fn calls(path: &Path, name: &str) -> usize {
    fs::read_to_string(path).unwrap().lines().filter(|line| *line == name).count()
}

#[test]
fn a_tpu_that_is_still_held_is_waited_for() {
    for (name, flags, fault, call, said) in [
        ("held", &["--backend", "tpu"][..], ("DEVICE_PLUGIN_HELD", "2"), "create", HELD),
        ("locked", &[], ("DEVICE_PLUGIN_LOCKED", "1"), "initialize", LOCKED),
    ] {
        let folder = empty_folder(&format!("busy_{name}"));
        let path = folder.join("calls");
        let mut command = train(&folder.join("run"), flags);
        if stand_in(&mut command, "BERT_XLA_TPU_PLUGIN").is_none() {
            return;
        }
        command.env(fault.0, fault.1).env("DEVICE_PLUGIN_CALLS", &path);
        let Some(mut shown) = TPU.show(&format!("busy_{name}_machine"), &command) else { return };
        let Output { status, stderr, .. } = shown.output().unwrap();
        let stderr = text(stderr);
        assert_eq!(status.code(), Some(0), "{name}: {stderr}");
        let told =
            format!("the TPU is still in use by another process, trying again for up to 60 s: {said}\n");
        assert!(stderr.starts_with(&told), "{name}: {stderr}");
        assert_eq!(stderr.matches("still in use").count(), 1, "{name}: {stderr}");
        assert!(stderr.contains("\nRunning on tpu (cpu)\n"), "{name}: {stderr}");
        assert_eq!(calls(&path, call), fault.1.parse::<usize>().unwrap() + 1, "{name}");
    }
}

#[test]
fn a_gpu_that_says_the_same_is_not_waited_for() {
    let folder = empty_folder("busy_gpu");
    let path = folder.join("calls");
    let mut command = train(&folder.join("run"), &["--backend", "gpu"]);
    if stand_in(&mut command, "BERT_XLA_GPU_PLUGIN").is_none() {
        return;
    }
    command.env("DEVICE_PLUGIN_HELD", "1").env("DEVICE_PLUGIN_CALLS", &path);
    let Some(mut shown) = GPU.show("busy_gpu_machine", &command) else { return };
    let Output { status, stderr, .. } = shown.output().unwrap();
    assert_eq!((status.code(), text(stderr)), (Some(1), format!("error: {HELD}\n")));
    assert_eq!(calls(&path, "create"), 1);
}

#[test]
fn a_tpu_that_stays_held_is_an_error_that_says_what_to_do() {
    let folder = empty_folder("busy_stays");
    for limits in [("60000", "300"), ("300", "60000")] {
        let path = folder.join("calls");
        let _ = fs::remove_file(&path);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "busy_tpu::process_that_connects", "--ignored", "--nocapture"]);
        if stand_in(&mut command, "BERT_XLA_TPU_PLUGIN").is_none() {
            return;
        }
        command.env("DEVICE_PLUGIN_HELD", "1000000").env("DEVICE_PLUGIN_CALLS", &path);
        command.env("SLICE_MS", limits.0).env("BUSY_MS", limits.1);
        let Some(mut shown) = TPU.show("busy_stays_machine", &command) else { return };
        let Output { status, stdout, stderr } = shown.output().unwrap();
        assert!(status.success(), "{}", text(stderr));
        let said = text(stdout);
        let advice = "another process of this machine holds the TPU; `sudo lsof -w /dev/accel* /dev/vfio/*` shows which \
                      one, to be ended; if there is none, remove /tmp/libtpu_lockfile";
        let expected = format!("300ms: {HELD}\n{HELD}; so it was for 0 s: {advice}\n");
        assert!(said.contains(&expected), "{said}");
        assert_eq!(calls(&path, "create"), 2);
    }
}

#[test]
#[ignore = "the process of a_tpu_that_stays_held_is_an_error_that_says_what_to_do"]
fn process_that_connects() {
    let of = |name| Duration::from_millis(std::env::var(name).unwrap().parse().unwrap());
    let options = DeviceOptions {
        backend: Some(Backend::Tpu),
        slice_timeout: of("SLICE_MS"),
        busy_timeout: of("BUSY_MS"),
        on_busy: Arc::new(|error, limit| println!("\n{limit:?}: {error}")),
        ..DeviceOptions::default()
    };
    let Err(error) = Replicas::connect(&options) else { panic!("it is held") };
    println!("{error}");
}

/// The others have no connection yet: they wait for the host that is refused.
#[test]
fn a_host_whose_tpu_is_still_held_comes_to_the_slice_later() {
    let folder = empty_folder("busy_slice");
    for held in [0, 2] {
        let Some(slice) = Slice::start(4) else { return };
        let spawn = |process: usize| {
            let output = folder.join(format!("{held}/{process}/run"));
            let mut command = train(&output, &["--backend", "tpu", "--slice-timeout", "60"]);
            if process == held {
                command.env("SLICE_FAULT", "busy:Client_Create:1");
            }
            let shown = TPU.show(&format!("busy_slice_machine_{process}"), &command)?;
            Some(slice.spawn(process, shown, 4))
        };
        let [Some(first), Some(second), Some(third), Some(fourth)] = [0, 1, 2, 3].map(spawn) else { return };
        let ends = wait([first, second, third, fourth]);
        slice.wait();
        for (process, end) in ends.iter().enumerate() {
            assert_eq!(end.code, Some(0), "{end:?}");
            assert_eq!(end.stderr.matches("the TPU is still in use").count(), usize::from(process == held));
        }
        assert!(ends[0].stderr.contains("Number of replicas: 4"), "{ends:?}");
    }
}
