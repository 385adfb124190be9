//! What the program makes of a machine's hardware, shown to it in a namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bert_xla::pjrt::Backend;
use bert_xla::pjrt::install::is_installed;
use serde_json::Value as Json;

use crate::common::cli::{asset, command, text};
use crate::common::empty_folder;
use crate::common::machine::{Machine, shared_library, stand_in};

/// Machines with what looks like a TPU and is none: Intel's accelerator, which has the node that those of all vendors
/// have; a device of AMD's that is passed through; a virtual machine of Google's, with its network card, that passes one
/// through.
const WITHOUT_TPU: [(&str, Machine<'static>); 3] = [
    ("accel", Machine { nodes: &["accel/accel0"], pci: &[("0x8086", "0x7d1d")] }),
    ("vfio", Machine { nodes: &["vfio/vfio", "vfio/0", "vfio/12"], pci: &[("0x1022", "0x1485")] }),
    ("gvnic", Machine { nodes: &["vfio/vfio", "vfio/0"], pci: &[("0x1ae0", "0x0042")] }),
];

const TPU: Machine<'static> = Machine { nodes: &["accel0"], pci: &[("0x1ae0", "0x0027")] };
const GPU: Machine<'static> = Machine { nodes: &["nvidia0", "nvidiactl"], pci: &[] };

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
    // The stand-ins' devices are the CPU's.
    command.arg("--output").arg(empty_folder(name).join("run")).args(["--precision", "f32"]).args(arguments);
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

/// On a slice, the other hosts would wait for one that goes on without its TPU.
#[test]
fn a_tpu_that_cant_be_opened_is_an_error() {
    const VARIABLE: &str = "BERT_XLA_TPU_PLUGIN";
    let check = |name: &str, command: &Command, expected: (i32, &[&str])| {
        let (code, _, said) = run(&format!("hardware_tpu_{name}"), &TPU, command)?;
        assert_eq!(code, Some(expected.0), "{name}: {said}");
        for part in expected.1 {
            assert!(said.contains(part), "{name}: {part:?} in {said}");
        }
        Some(())
    };
    let checked = (|| {
        let mut missing = train("hardware_tpu_missing_run", &[]);
        missing.env_remove(VARIABLE).env_remove("TPU_LIBRARY_PATH");
        let hint = "; --backend cpu goes on without it\n";
        let install = "error: there is a tpu, but it can't be used: no tpu plugin found, looked at ";
        check("missing", &missing, (2, &[install, "; run `bert-xla plugins install tpu`", hint]))?;

        let mut text = train("hardware_tpu_text_run", &[]);
        text.env(VARIABLE, asset("sample.csv"));
        let cannot = "error: there is a tpu, but it can't be used: cannot load the tpu plugin ";
        check("text", &text, (2, &[cannot, hint]))?;

        let mut busy = train("hardware_tpu_busy_run", &[]);
        stand_in(&mut busy, VARIABLE)?;
        busy.env("DEVICE_PLUGIN_FAULT", "busy");
        let in_use = "can't be used: PJRT_Client_Create: INTERNAL: the devices are in use; --backend cpu";
        check("busy", &busy, (1, &[in_use]))?;
        check("cpu", busy.args(["--backend", "cpu"]), (0, &["Running on cpu (cpu)\n"]))?;

        // A chip alone, as a container without privileges has it.
        let closed = Machine { nodes: &["accel/accel0"], pci: &[("0x1ae0", "0x0063")] };
        let (code, _, said) = run("hardware_tpu_closed", &closed, &train("hardware_tpu_closed_run", &[]))?;
        let needs = "error: there is a tpu, but it can't be used: tpu: no TPU to open on this machine (a TPU v5e is there";
        assert!(code == Some(2) && said.contains(needs) && said.contains(hint.trim_end()), "{said}");

        let mut works = train("hardware_tpu_works_run", &[]);
        stand_in(&mut works, VARIABLE)?;
        check("works", &works, (0, &["Running on tpu (cpu)\n"]))
    })();
    if checked.is_none() {
        eprintln!("skipped");
    }
}

/// Libraries of these names that do nothing, as the plugin would find CUDA's.
fn libraries(folder: &Path, names: &[&str]) -> Option<String> {
    let source = folder.join("nothing.c");
    fs::write(&source, "int nothing;").unwrap();
    let paths = names.iter().map(|name| shared_library(&source, &folder.join(name)));
    let paths = paths.collect::<Option<Vec<PathBuf>>>()?;
    Some(paths.iter().map(|path| path.to_str().unwrap()).collect::<Vec<_>>().join(":"))
}

#[test]
fn a_gpu_is_passed_over_for_what_it_lacks_and_not_for_what_fails() {
    const VARIABLE: &str = "BERT_XLA_GPU_PLUGIN";
    let checked = (|| {
        let folder = empty_folder("hardware_gpu_libraries");
        let runtime = libraries(&folder, &["libcudart.so.13"])?;
        let driver = libraries(&folder, &["libcudart.so.13", "libcuda.so.1"])?;
        let none = |libraries: &str| {
            let mut command = train("hardware_gpu_run", &[]);
            stand_in(&mut command, VARIABLE)?;
            command.env("DEVICE_PLUGIN_FAULT", "none").env("DEVICE_PLUGIN_LIBRARIES", libraries);
            Some(command)
        };
        let mut missing = train("hardware_gpu_run", &[]);
        missing.env_remove(VARIABLE);
        let mut text = train("hardware_gpu_run", &[]);
        text.env(VARIABLE, asset("sample.csv"));
        for (command, reason) in [
            (missing, "run `bert-xla plugins install gpu`\n"),
            (text, "; expected a PJRT plugin, a shared library\n"),
            (none("")?, "(no libcudart.so.13); run `bert-xla plugins install gpu --cuda`, or name "),
            (none(&runtime)?, "NVIDIA's driver was not found (no libcuda.so.1); "),
            (none(&driver)?, "the gpu plugin sees no device: No visible GPU devices.\n"),
        ] {
            fs::remove_dir_all(empty_folder("hardware_gpu_run")).unwrap();
            let (code, _, said) = run("hardware_gpu", &GPU, &command)?;
            assert_eq!(code, Some(0), "{said}");
            let line = said.split_inclusive('\n').find(|line| line.starts_with("gpu: passed over: "));
            assert!(line.is_some_and(|line| line.contains(reason)), "{reason}: {said}");
            assert!(said.contains("\nRunning on cpu (cpu)\n"), "{said}");
        }

        let mut busy = train("hardware_gpu_busy_run", &[]);
        stand_in(&mut busy, VARIABLE)?;
        let (code, _, said) = run("hardware_gpu", &GPU, busy.env("DEVICE_PLUGIN_FAULT", "busy"))?;
        let expected = "error: there is a gpu, but it can't be used: PJRT_Client_Create: INTERNAL: the devices are in \
                        use; --backend cpu goes on without it\n";
        assert!(code == Some(1) && said.ends_with(expected), "{code:?}: {said}");
        Some(())
    })();
    if checked.is_none() {
        eprintln!("skipped");
    }
}

/// XLA takes a value that doesn't start with a dash for a file's name: nothing can be added to it.
#[test]
fn a_file_of_flags_stays_one_where_there_is_a_gpu() {
    let folder = empty_folder("hardware_flags");
    fs::create_dir_all(folder.join("cuda/nvvm")).unwrap();
    let flags = folder.join("flags");
    fs::write(&flags, "--xla_cpu_enable_fast_math=false\n").unwrap();
    let mut command = train("hardware_flags_run", &[]);
    let Some(()) = stand_in(&mut command, "BERT_XLA_GPU_PLUGIN") else { return eprintln!("skipped") };
    command.env("DEVICE_PLUGIN_FAULT", "none").env("CUDA_HOME", folder.join("cuda"));
    for value in [flags.to_str().unwrap(), " --xla_cpu_enable_fast_math=false", " "] {
        fs::remove_dir_all(empty_folder("hardware_flags_run")).unwrap();
        let Some((code, _, said)) = run("hardware_flags_gpu", &GPU, command.env("XLA_FLAGS", value)) else {
            return;
        };
        assert_eq!(code, Some(0), "{value:?}: {said}");
        assert!(said.contains("\nRunning on cpu (cpu)\n"), "{value:?}: {said}");
    }
}

/// What reaches the plugin, by name and type; a wrong type would be refused by the stand-in, as by the real one.
#[test]
fn gpu_options_reach_the_plugin_from_flags_and_variables() {
    let options = empty_folder("hardware_options").join("options");
    let told = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = train("hardware_options_run", &[&["--backend", "gpu"], arguments].concat());
        stand_in(&mut command, "BERT_XLA_GPU_PLUGIN")?;
        command.env("DEVICE_PLUGIN_OPTIONS", &options).envs(variables.iter().copied());
        let (code, _, said) = run("hardware_options_machine", &GPU, &command)?;
        Some((code.unwrap(), said))
    };
    let jax = [
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", ".25"),
        ("XLA_PYTHON_CLIENT_PREALLOCATE", "false"),
        ("XLA_PYTHON_CLIENT_ALLOCATOR", "platform"),
        ("JAX_CUDA_VISIBLE_DEVICES", "1"),
    ];
    let flags = ["--gpu-memory-fraction", "0.5", "--no-gpu-preallocate", "--gpu-devices", "0,2"];
    let of_jax =
        "allocator string platform\nmemory_fraction float 0.25\npreallocate bool 0\nvisible_devices list 1\n";
    let of_flags = "memory_fraction float 0.5\npreallocate bool 0\nvisible_devices list 0,2\n";
    let of_both = format!("allocator string platform\n{of_flags}");
    for (arguments, variables, expected) in [
        (&[][..], &[][..], ""),
        (&flags[..], &[], of_flags),
        (&[], &jax, of_jax),
        (&flags, &jax, of_both.as_str()),
    ] {
        let Some((code, said)) = told(arguments, variables) else { return eprintln!("skipped") };
        assert!(code == 0 && said.contains("Running on gpu (cpu)\n"), "{said}");
        assert_eq!(fs::read_to_string(&options).unwrap(), expected, "{arguments:?} {variables:?}");
    }
    let (code, said) = told(&[], &[("XLA_PYTHON_CLIENT_MEM_FRACTION", "half")]).unwrap();
    let expected = "error: XLA_PYTHON_CLIENT_MEM_FRACTION=half: expected a share of the memory, above 0\n";
    assert_eq!((code, said.as_str()), (2, expected));
}

/// Blackwell's GPUs with a cuBLAS beside the plugin that corrupts results on them, as JAX warns.
#[test]
fn a_faulty_cublas_is_warned_of_where_it_does_harm() {
    let checked = (|| {
        let folder = empty_folder("hardware_cublas");
        let runtime = libraries(&folder, &["libcudart.so.13"])?;
        fs::create_dir_all(folder.join("nvidia/cu13/lib")).unwrap();
        fs::create_dir(folder.join("version")).unwrap();
        for (minor, capability, warned) in [(1, "10.0", true), (2, "10.0", false), (1, "9.0", false)] {
            let source = folder.join("cublas.c");
            let code =
                "int cublasGetProperty(int part, int *value) { *value = part ? MINOR : 13; return 0; }";
            fs::write(&source, code.replace("MINOR", &minor.to_string())).unwrap();
            shared_library(&source, &folder.join("nvidia/cu13/lib/libcublas.so.13"))?;
            let mut command = train("hardware_cublas_run", &["--backend", "gpu"]);
            stand_in(&mut command, "BERT_XLA_GPU_PLUGIN")?;
            let built = command.get_envs().find(|(name, _)| *name == "BERT_XLA_GPU_PLUGIN");
            let plugin = folder.join("version/plugin.so");
            fs::copy(built.unwrap().1.unwrap(), &plugin).unwrap();
            command.env("BERT_XLA_GPU_PLUGIN", &plugin).env("DEVICE_PLUGIN_LIBRARIES", &runtime);
            command.env("DEVICE_PLUGIN_CAPABILITY", capability);
            let (code, _, said) = run("hardware_cublas_machine", &GPU, &command)?;
            assert_eq!(code, Some(0), "{said}");
            let warning = "warning: cuBLAS 13.1 can corrupt results on this GPU";
            assert_eq!(said.contains(warning), warned, "13.{minor}, {capability}: {said}");
            assert_eq!(said.matches("warning").count(), usize::from(warned), "{said}");
        }
        Some(())
    })();
    if checked.is_none() {
        eprintln!("skipped");
    }
}

/// The hint for TPU v5e and later, where this machine's kernel doesn't give huge pages to all.
#[test]
fn huge_pages_are_advised_once() {
    let Ok(enabled) = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled") else {
        return eprintln!("skipped: no transparent huge pages");
    };
    let v5e = Machine { nodes: &["vfio/0"], pci: &[("0x1ae0", "0x0063")] };
    let mut command = train("hardware_pages_run", &[]);
    if stand_in(&mut command, "BERT_XLA_TPU_PLUGIN").is_none() {
        return;
    }
    let Some((code, _, said)) = run("hardware_pages", &v5e, &command) else { return };
    assert_eq!(code, Some(0), "{said}");
    let advised = said.matches("warning: transparent huge pages are off").count();
    assert_eq!(advised, usize::from(!enabled.starts_with("[always]")), "{said}");
}

/// A weight is sent to all replicas at once, and none waits for the one before it; the moments are not sent at all.
#[test]
fn weights_are_sent_without_waiting_and_moments_are_made_there() {
    let mut command = train("hardware_sent", &["--backend", "cpu", "--replicas", "2", "--batch-size", "40"]);
    let calls = empty_folder("hardware_calls").join("calls");
    let Some(()) = stand_in(&mut command, "BERT_XLA_CPU_PLUGIN") else { return };
    let output = command.env("DEVICE_PLUGIN_CALLS", &calls).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    let calls = fs::read_to_string(calls).unwrap();
    let mut launches = calls.split("launch\n");
    // The zeros come first, and then what is there at the first step: 5 weights of the embeddings, 16 of each of the two
    // layers, 6 of the head; learning rate and seed; both answers to whether to meet; ids, labels and weights of the
    // examples.
    let before_step = launches.nth(1).unwrap();
    assert_eq!(before_step.matches("upload\n").count(), 2 * (5 + 2 * 16 + 6 + 2 + 2 + 3));
    assert!(before_step.contains(&"upload\n".repeat(2 * (5 + 2 * 16 + 6))), "{before_step}");
    assert!(before_step.contains("wait\n"));
}
