//! NVIDIA GPUs: XLA's CUDA plugin, what its compiler runs, and the devices that it drives.

use std::env;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LAZY};

use super::cuda::LIBRARIES;
use super::{Absence, Backend, Build, Member, Platform, Wheel, flags_file, has_numbered};
use crate::pjrt::install::backend_folder;

pub(super) static GPU: Platform = Platform {
    name: "gpu",
    variables: &["BERT_XLA_GPU_PLUGIN"],
    plugin: Member {
        wheel: Wheel {
            package: "jax-cuda13-pjrt",
            version: "0.12.0.1",
            python: None,
            builds: &[
                Build {
                    machine: "x86_64",
                    platform: "manylinux_2_27_x86_64",
                    sha256: "5899bb6177eda86ea532afb9a26794f2bdd04966f6a01f9028266b16c2b6cf90",
                },
                Build {
                    machine: "aarch64",
                    platform: "manylinux_2_27_aarch64",
                    sha256: "40758d042df8c06991b6a1a8016b56e9cefb1ed4c677c062125c3eb71c3dab97",
                },
            ],
        },
        path: "jax_plugins/xla_cuda13/xla_cuda_plugin.so",
        file: "xla_cuda_plugin.so",
    },
    tools: &[PTXAS, LIBDEVICE],
    libraries: &LIBRARIES,
    probe,
    environment,
};

/// The assembler that XLA's GPU compiler runs.
const PTXAS: Member = Member {
    wheel: Wheel {
        package: "nvidia-cuda-nvcc",
        version: "13.5.37",
        python: None,
        builds: &[
            Build {
                machine: "x86_64",
                platform: "manylinux2014_x86_64",
                sha256: "f5c4f7ead5d964fb4af42bbf1e6d3ec3c1e6e9d83b53749f691d387e7fcaa3a7",
            },
            Build {
                machine: "aarch64",
                platform: "manylinux2014_aarch64",
                sha256: "588eda18eb5076ae859fe272844b526459228af22df0b117f54eec3aa82bc9c8",
            },
        ],
    },
    path: "nvidia/cu13/bin/ptxas",
    file: "cuda/bin/ptxas",
};

/// NVIDIA's mathematical functions as LLVM bitcode, which it links into kernels.
const LIBDEVICE: Member = Member {
    wheel: Wheel {
        package: "nvidia-nvvm",
        version: "13.5.37",
        python: None,
        builds: &[
            Build {
                machine: "x86_64",
                platform: "manylinux2010_x86_64",
                sha256: "c41bfa362e407405163f103c2229f0765f8cc2ed7d148b754dc77f228bf7e070",
            },
            Build {
                machine: "aarch64",
                platform: "manylinux2014_aarch64",
                sha256: "b659bd3115b7ac7ec8931e67d0e2c0dd09cd35b08a6a7372df6f8f22c67da80a",
            },
        ],
    },
    path: "nvidia/cu13/nvvm/libdevice/libdevice.10.bc",
    file: "cuda/nvvm/libdevice/libdevice.10.bc",
};

/// The driver's device nodes; in a container, there may be only the second. WSL 2 has one for all vendors, with NVIDIA's
/// library where it has that driver.
fn probe(root: &Path) -> Result<(), Absence> {
    let exists = |path: &str| root.join(path).exists();
    let driver = has_numbered(&root.join("dev"), "nvidia") || exists("dev/nvidiactl");
    if driver || (exists("dev/dxg") && exists("usr/lib/wsl/lib/libcuda.so.1")) {
        return Ok(());
    }
    Err(Absence::Missing("no NVIDIA GPU on this machine (no /dev/nvidia0, no /dev/nvidiactl)".to_owned()))
}

/// What of CUDA and the driver the plugin has looked for in vain, and what to do.
pub(in crate::pjrt) fn missing_cuda() -> Option<&'static str> {
    if !(is_loaded("libcudart.so.13") || is_loaded("libcudart.so.12")) {
        return Some(
            "CUDA's libraries were not found (no libcudart.so.13); run `bert-xla plugins install gpu --cuda`, or name \
             the folder of your own in LD_LIBRARY_PATH",
        );
    }
    let driver = "NVIDIA's driver was not found (no libcuda.so.1); install version 580 or newer, and in a container, \
                  pass the GPU on";
    (!is_loaded("libcuda.so.1")).then_some(driver)
}

/// Whether this process has opened a library of that name.
pub(in crate::pjrt) fn is_loaded(name: &str) -> bool {
    // SAFETY: with this flag, nothing is loaded and nothing runs; the handle is closed again.
    unsafe { Library::open(Some(name), RTLD_LAZY | libc::RTLD_NOLOAD) }.is_ok()
}

/// Points XLA at the CUDA toolkit's data folder, whose `libdevice` it compiles kernels with.
fn environment(plugin: &Path) -> Vec<(&'static str, String)> {
    const FLAG: &str = "--xla_gpu_cuda_data_dir";
    let flags = env::var("XLA_FLAGS").unwrap_or_default();
    let home = env::var_os("CUDA_HOME").map(PathBuf::from);
    // Where the plugin's own search path finds NVIDIA's wheels, when unpacked beside it.
    let wheels = backend_folder(Backend::Gpu).ok().map(|folder| folder.join("nvidia/cu13"));
    // What `install` puts beside the plugin.
    let installed = plugin.parent().map(|folder| folder.join("cuda"));
    let system = Some(PathBuf::from("/usr/local/cuda"));
    let data =
        [home, wheels, installed, system].into_iter().flatten().find(|folder| folder.join("nvvm").is_dir());
    match data {
        // Nothing can be added to a file's name.
        Some(folder) if flags_file().is_none() && !flags.contains(FLAG) => {
            vec![("XLA_FLAGS", format!("{flags} {FLAG}={}", folder.display()).trim().to_owned())]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::machine;
    use super::*;

    #[test]
    fn the_drivers_nodes_are_a_gpu_and_so_is_wsls_with_nvidias_library() {
        let is_here = |files: &[(&str, &str)]| probe(machine(files).path()).is_ok();
        for node in ["dev/nvidia0", "dev/nvidia7", "dev/nvidiactl"] {
            assert!(is_here(&[(node, "")]), "{node}");
        }
        assert!(is_here(&[("dev/dxg", ""), ("usr/lib/wsl/lib/libcuda.so.1", "")]));
        for node in ["dev/dxg", "usr/lib/wsl/lib/libcuda.so.1", "dev/nvidia-uvm", "dev/dri/card0"] {
            assert!(!is_here(&[(node, "")]), "{node}");
        }
    }
}
