//! The three platforms: where each one's plugin lies, whether its hardware is here, what it wants in the environment.

mod cuda;
mod gpu;
mod tpu;

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::{Error, Result};
use gpu::GPU;
pub(super) use gpu::{is_loaded, missing_cuda};
use tpu::TPU;
pub(super) use tpu::huge_pages_advice;

/// A platform that a PJRT plugin drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    Cpu,
    Gpu,
    Tpu,
}

/// Why there is no hardware to use; each is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// There is none.
    Missing(String),
    /// It is there, but this process can't open it.
    Closed(String),
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Missing(reason) | Self::Closed(reason)) = self;
        f.write_str(reason)
    }
}

/// All that differs between platforms before their plugin is loaded.
pub(super) struct Platform {
    name: &'static str,
    /// Environment variables that name the plugin's file, strongest first.
    pub variables: &'static [&'static str],
    pub plugin: Member,
    /// What the plugin's compiler runs or reads.
    pub tools: &'static [Member],
    /// What the plugin opens when it runs something: each wheel's folder `nvidia`, for the folder that is above the
    /// plugin's own. The machine may have them itself.
    pub libraries: &'static [Wheel],
    /// Looks for the hardware below a root folder, which is `/` but in tests; `Err` tells what is missing.
    probe: fn(&Path) -> std::result::Result<(), Absence>,
    /// Variables that the plugin in this file should find set when it is opened.
    pub environment: fn(&Path) -> Vec<(&'static str, String)>,
}

/// A package of the Python package index, pinned.
pub(super) struct Wheel {
    pub package: &'static str,
    pub version: &'static str,
    /// The wheel's Python version, where its builds differ in it although what is wanted does not use Python.
    pub python: Option<&'static str>,
    pub builds: &'static [Build],
}

/// One file of a wheel.
pub(super) struct Member {
    pub wheel: Wheel,
    /// The file's path in the wheel.
    pub path: &'static str,
    /// Its path in the folder of the plugin's version.
    pub file: &'static str,
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
    plugin: Member {
        wheel: Wheel {
            package: "xla-cpu-pjrt",
            version: "0.0.1",
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
        path: "xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so",
        file: "xla_cpu_pjrt.so",
    },
    tools: &[],
    libraries: &[],
    probe: |_| Ok(()),
    environment: |_| Vec::new(),
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
    pub fn probe(self) -> std::result::Result<(), Absence> {
        (self.platform().probe)(Path::new("/"))
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

/// The file that `XLA_FLAGS` names: XLA takes a value that doesn't start with a dash for one.
pub(super) fn flags_file() -> Option<PathBuf> {
    let flags = env::var_os("XLA_FLAGS")?;
    let first = flags.as_encoded_bytes().trim_ascii_start().first();
    first.is_some_and(|&first| first != b'-').then(|| flags.into())
}

/// Whether something in the folder is called `prefix` and a number.
fn has_numbered(folder: &Path, prefix: &str) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).any(|name| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root folder with these files, by path and content.
    pub fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn numbered_names_are_told_from_others() {
        let root = machine(&[("accel", ""), ("accelx", ""), ("accel1x", "")]);
        assert!(!has_numbered(root.path(), "accel") && !has_numbered(&root.path().join("none"), ""));
        let root = machine(&[("accel12", "")]);
        assert!(has_numbered(root.path(), "accel") && !has_numbered(root.path(), ""));
    }
}
