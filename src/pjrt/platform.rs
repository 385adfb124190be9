//! The three platforms: where each one's plugin lies, whether its hardware is here, what it wants in the environment.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::{Error, Result};
use super::install;

/// A platform that a PJRT plugin drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    Cpu,
    Gpu,
    Tpu,
}

/// All that differs between platforms before their plugin is loaded.
pub(super) struct Platform {
    name: &'static str,
    /// Environment variables that name the plugin's file, strongest first.
    pub variables: &'static [&'static str],
    pub wheel: Wheel,
    /// What the plugin's compiler runs or reads.
    pub tools: &'static [Wheel],
    /// `Err` tells what of the hardware is missing.
    probe: fn() -> std::result::Result<(), String>,
    /// Variables that the plugin in this file should find set when it is opened.
    pub environment: fn(&Path) -> Vec<(&'static str, String)>,
}

/// A package of the Python package index that holds one file that is wanted, pinned.
pub(super) struct Wheel {
    pub package: &'static str,
    pub version: &'static str,
    /// The file's path in the wheel.
    pub member: &'static str,
    /// Its path in the folder of the plugin's version.
    pub file: &'static str,
    /// The wheel's Python version, where its builds differ in it although the file does not use Python.
    pub python: Option<&'static str>,
    pub builds: &'static [Build],
}

/// One wheel file: for which machine, pip's name for the platform, the file's hash.
pub(super) struct Build {
    pub machine: &'static str,
    pub platform: &'static str,
    pub sha256: &'static str,
}

static CPU: Platform = Platform {
    name: "cpu",
    variables: &["BERT_XLA_CPU_PLUGIN"],
    wheel: Wheel {
        package: "xla-cpu-pjrt",
        version: "0.0.1",
        member: "xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so",
        file: "xla_cpu_pjrt.so",
        python: None,
        builds: &[
            Build {
                machine: "x86_64",
                platform: "manylinux_2_27_x86_64",
                sha256: "55837b6b7b47daa717f2d9a5a03563ea0ceaa338d06a81a1e2d3f060d960decc",
            },
            Build {
                machine: "aarch64",
                platform: "manylinux_2_27_aarch64",
                sha256: "8f613be6e891858f40d64f9799319502fff42689661944fc18a6ffd8210b30c9",
            },
        ],
    },
    tools: &[],
    probe: || Ok(()),
    environment: |_| Vec::new(),
};

static GPU: Platform = Platform {
    name: "gpu",
    variables: &["BERT_XLA_GPU_PLUGIN"],
    wheel: Wheel {
        package: "jax-cuda13-pjrt",
        version: "0.12.0.1",
        member: "jax_plugins/xla_cuda13/xla_cuda_plugin.so",
        file: "xla_cuda_plugin.so",
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
    tools: &[PTXAS, LIBDEVICE],
    probe: probe_gpu,
    environment: gpu_environment,
};

/// The assembler that XLA's GPU compiler runs.
const PTXAS: Wheel = Wheel {
    package: "nvidia-cuda-nvcc",
    version: "13.5.37",
    member: "nvidia/cu13/bin/ptxas",
    file: "cuda/bin/ptxas",
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
};

/// NVIDIA's mathematical functions as LLVM bitcode, which it links into kernels.
const LIBDEVICE: Wheel = Wheel {
    package: "nvidia-nvvm",
    version: "13.5.37",
    member: "nvidia/cu13/nvvm/libdevice/libdevice.10.bc",
    file: "cuda/nvvm/libdevice/libdevice.10.bc",
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
};

static TPU: Platform = Platform {
    name: "tpu",
    // The second is libtpu's own convention.
    variables: &["BERT_XLA_TPU_PLUGIN", "TPU_LIBRARY_PATH"],
    wheel: Wheel {
        package: "libtpu",
        version: "0.0.52",
        member: "libtpu/libtpu.so",
        file: "libtpu.so",
        python: Some("3.11"),
        builds: &[Build {
            machine: "x86_64",
            platform: "manylinux_2_31_x86_64",
            sha256: "f5e2e596eaea9357fbb5a6755a7a9007c6ab75bfde4a55191b03eff402971140",
        }],
    },
    tools: &[],
    probe: probe_tpu,
    environment: tpu_environment,
};

impl Backend {
    /// In order of preference.
    pub const ALL: [Self; 3] = [Self::Tpu, Self::Gpu, Self::Cpu];

    pub(super) fn platform(self) -> &'static Platform {
        match self {
            Self::Cpu => &CPU,
            Self::Gpu => &GPU,
            Self::Tpu => &TPU,
        }
    }

    /// Looks for the hardware without loading the plugin: `Err` says what is missing. A plugin must not be asked
    /// for its devices before this: libtpu waits for a metadata server that only a TPU VM has.
    pub fn probe(self) -> std::result::Result<(), String> {
        (self.platform().probe)()
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.platform().name)
    }
}

impl FromStr for Backend {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|backend| backend.platform().name == name)
            .ok_or_else(|| Error::UnknownBackend(name.to_owned()))
    }
}

fn probe_gpu() -> std::result::Result<(), String> {
    if Path::new("/dev/nvidiactl").exists() {
        return Ok(());
    }
    Err("no NVIDIA GPU on this machine (no /dev/nvidiactl)".to_owned())
}

/// TPUs up to v4 appear as `/dev/accel*`, later ones as VFIO groups, which other passed-through devices use as well.
fn probe_tpu() -> std::result::Result<(), String> {
    let product = std::fs::read_to_string("/sys/class/dmi/id/product_name").unwrap_or_default();
    let product = product.trim();
    let numbered = |folder: &str, prefix: &str| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).any(|name| {
            name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    };
    let accel = numbered("/dev", "accel") || numbered("/dev/accel", "accel");
    if accel || (product.starts_with("Google") && numbered("/dev/vfio", "")) {
        return Ok(());
    }
    Err(format!(
        "no TPU on this machine (no /dev/accel*, no TPU in /dev/vfio, product name is \"{product}\")"
    ))
}

/// Without a TPU, libtpu compiles ahead of time: these keep it from asking a metadata server where it is, and from
/// locking out other processes, which it does to share no chip with them.
fn tpu_environment(_: &Path) -> Vec<(&'static str, String)> {
    if probe_tpu().is_ok() {
        return Vec::new();
    }
    // Any accelerator type will do: the topology that a program is compiled for says which chips it has.
    let variables = [
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v3-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ];
    let unset = variables.into_iter().filter(|(name, _)| std::env::var_os(name).is_none());
    unset.map(|(name, value)| (name, value.to_owned())).collect()
}

/// Points XLA at the CUDA toolkit's data folder, whose `libdevice` it compiles kernels with.
fn gpu_environment(plugin: &Path) -> Vec<(&'static str, String)> {
    const FLAG: &str = "--xla_gpu_cuda_data_dir";
    let flags = std::env::var("XLA_FLAGS").unwrap_or_default();
    let home = std::env::var_os("CUDA_HOME").map(PathBuf::from);
    // Where the plugin's own search path finds NVIDIA's wheels, when unpacked beside it.
    let wheels = install::backend_folder(Backend::Gpu).ok().map(|folder| folder.join("nvidia/cu13"));
    // What `install` puts beside the plugin.
    let installed = plugin.parent().map(|folder| folder.join("cuda"));
    let system = Some(PathBuf::from("/usr/local/cuda"));
    let data =
        [home, wheels, installed, system].into_iter().flatten().find(|folder| folder.join("nvvm").is_dir());
    match data {
        Some(folder) if !flags.contains(FLAG) => {
            vec![("XLA_FLAGS", format!("{flags} {FLAG}={}", folder.display()).trim().to_owned())]
        }
        _ => Vec::new(),
    }
}
