//! Another machine's devices, shown to one command in a namespace of its own: its `/dev` and its list of PCI devices.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::cli::{asset, text};
use super::{cpu_plugin, empty_folder};

/// A machine's device nodes, without `/dev/`, and its PCI devices: vendor and device id.
#[derive(Clone, Copy, Default)]
pub struct Machine<'a> {
    pub nodes: &'a [&'a str],
    pub pci: &'a [(&'a str, &'a str)],
}

/// Mounts `$1/dev` and `$1/pci` in place of the machine's own, and becomes the rest of the arguments. Nodes are plain
/// files, but for those that programs read and write.
const SHOW: &str = r#"
set -e
folder=$1
shift
for node in null zero full random urandom; do mount --bind /dev/$node "$folder/dev/$node"; done
mount --rbind /dev/shm "$folder/dev/shm"
mount --rbind "$folder/dev" /dev
mount --bind "$folder/pci" /sys/bus/pci/devices
exec "$@"
"#;

impl Machine<'_> {
    /// `command` on this machine, in a folder named after the test; `None`, after saying so, where this one gives no
    /// namespaces or lists no PCI devices: the test is skipped.
    pub fn show(&self, name: &str, command: &Command) -> Option<Command> {
        let folder = self.make(name);
        let tried = Self::enter(&folder).arg("true").output();
        match tried {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                eprintln!("skipped: no namespace: {}", String::from_utf8_lossy(&output.stderr).trim());
                return None;
            }
            Err(error) => {
                eprintln!("skipped: unshare: {error}");
                return None;
            }
        }
        let mut shown = Self::enter(&folder);
        shown.arg(command.get_program()).args(command.get_args());
        for (variable, value) in command.get_envs() {
            match value {
                Some(value) => shown.env(variable, value),
                None => shown.env_remove(variable),
            };
        }
        Some(shown)
    }

    fn make(&self, name: &str) -> PathBuf {
        let folder = empty_folder(name);
        let write = |path: &str, content: &str| {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        for node in ["null", "zero", "full", "random", "urandom"].iter().chain(self.nodes) {
            write(&format!("dev/{node}"), "");
        }
        fs::create_dir(folder.join("dev/shm")).unwrap();
        for (link, to) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
        {
            symlink(to, folder.join("dev").join(link)).unwrap();
        }
        fs::create_dir(folder.join("pci")).unwrap();
        for (index, (vendor, id)) in self.pci.iter().enumerate() {
            write(&format!("pci/0000:00:0{index}.0/vendor"), &format!("{vendor}\n"));
            write(&format!("pci/0000:00:0{index}.0/device"), &format!("{id}\n"));
        }
        folder
    }

    fn enter(folder: &PathBuf) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", SHOW, "sh"]).arg(folder);
        command
    }
}

/// Builds `tests/fixtures/device_plugin.c`, which tells how it behaves, and has `command` find it by this variable;
/// without a C compiler, says so and gives `None`: the test is skipped.
pub fn stand_in(command: &mut Command, variable: &str) -> Option<()> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let library = empty_folder("device_plugin").join("device_plugin.so");
        shared_library(&asset("../tests/fixtures/device_plugin.c"), &library)
    };
    let plugin = BUILT.get_or_init(build).as_ref()?;
    command.env(variable, plugin).env("DEVICE_PLUGIN_CPU", cpu_plugin());
    Some(())
}

/// Compiles a shared library whose name for the loader is its file's; without a C compiler, says so.
pub fn shared_library(source: &Path, library: &Path) -> Option<PathBuf> {
    let mut compile = Command::new("cc");
    let name = library.file_name().unwrap().to_str().unwrap();
    compile.args(["-shared", "-fPIC", "-O1"]).arg(format!("-Wl,-soname,{name}")).arg("-o").arg(library);
    match compile.arg(source).arg("-ldl").output() {
        Ok(compiled) => {
            assert!(compiled.status.success(), "{}", text(compiled.stderr));
            Some(library.to_owned())
        }
        Err(error) => {
            eprintln!("skipped: cc: {error}");
            None
        }
    }
}
