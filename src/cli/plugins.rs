//! `bert-xla plugins`: which plugins are here, whether a runtime is linked, and which devices they drive; `plugins
//! install`: fetches one.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};

use super::Console;
use crate::exec::{self, LinkedRuntime};
use crate::pjrt::install::{Installed, install_from, install_libraries};
use crate::pjrt::{
    Backend, Client, Device, DeviceMemory, Error, GpuOptions, Plugin, Result, Value, cpu_device_count,
};

/// List the PJRT plugins, the runtime that is linked, and their devices, or install a plugin
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct PluginsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Download a plugin into the cache folder
    Install {
        /// cpu, gpu or tpu
        backend: Backend,
        /// With gpu: also CUDA's libraries, which the plugin opens when it runs something (2.8 GB)
        #[arg(long)]
        cuda: bool,
        /// The plugin's wheel, as `pip download --no-deps` brings it, instead of a download
        #[arg(long, value_name = "FILE")]
        wheel: Option<PathBuf>,
    },
}

/// What is known of one backend.
struct Report {
    backend: Backend,
    state: State,
}

enum State {
    /// Every place that was looked at.
    Missing(Vec<String>),
    /// Found, but its hardware is not here; the reason.
    NotLoaded(PathBuf, String),
    /// Found, but it does not work; the error.
    Failed(PathBuf, String),
    Ready(Client),
}

/// Lists the plugins or installs one.
pub fn run(args: &PluginsArgs, console: &Console) -> super::Result<()> {
    if let Some(Action::Install { backend, cuda, wheel }) = &args.action {
        return fetch(*backend, *cuda, wheel.as_deref(), console);
    }
    let reports = Backend::ALL.map(|backend| inspect(backend).map(|state| Report { backend, state }));
    let reports = reports.into_iter().collect::<Result<Vec<_>>>()?;
    // The linked library may want the same devices: plugins let go of them first.
    Ok(if args.json {
        let reports = reports.into_iter().map(|report| report.json()).collect::<Vec<_>>();
        let all = reports.into_iter().chain([linked_json(LinkedRuntime::find())]);
        console.print(&format!("{:#}\n", Json::Array(all.collect())))
    } else {
        let reports = reports.into_iter().map(|report| report.text()).collect::<String>();
        console.print(&(reports + &linked_text(LinkedRuntime::find())))
    }?)
}

fn fetch(backend: Backend, cuda: bool, wheel: Option<&Path>, console: &Console) -> super::Result<()> {
    if cuda && backend != Backend::Gpu {
        return Err(super::Error::Usage(format!("--cuda is for gpu, and this is {backend}")));
    }
    let tell = |what: &str, installed: Installed| {
        let verb = if installed.already { "already installed" } else { "installed" };
        console.print(&format!("{what}: {verb}: {}\n", installed.path.display()))
    };
    tell(&backend.to_string(), install_from(backend, wheel)?)?;
    if cuda {
        let progress = |wheel: &str| console.note(&format!("Installing {wheel}"));
        tell("CUDA's libraries", install_libraries(backend, progress)?)?;
    }
    Ok(())
}

fn inspect(backend: Backend) -> Result<State> {
    let path = match Plugin::find(backend, None) {
        Ok(path) => path,
        Err(Error::NotFound { looked, .. }) => return Ok(State::Missing(looked)),
        Err(error) => return Err(error),
    };
    if let Err(absence) = backend.probe() {
        return Ok(State::NotLoaded(path, absence.to_string()));
    }
    let client = Plugin::load(backend, &path).and_then(|plugin| plugin.client(&look_only(backend)?));
    Ok(match client {
        Ok(client) => State::Ready(client),
        Err(error) => State::Failed(path, error.to_string()),
    })
}

/// Options with which a client takes no more than it must.
fn look_only(backend: Backend) -> Result<Vec<(&'static str, Value)>> {
    match backend {
        Backend::Cpu => Ok(vec![cpu_device_count(1)]),
        Backend::Gpu => GpuOptions { preallocate: Some(false), ..Default::default() }.values(),
        Backend::Tpu => Ok(Vec::new()),
    }
}

impl Report {
    fn text(&self) -> String {
        let backend = self.backend;
        match &self.state {
            State::Missing(looked) => format!(
                "{backend}: not found, looked at {}\n  bert-xla plugins install {backend}\n",
                looked.join(", ")
            ),
            State::NotLoaded(path, reason) => {
                format!("{backend}: {}\n  found, not loaded: {reason}\n", path.display())
            }
            State::Failed(path, error) => {
                format!("{backend}: {}\n  found, but fails: {error}\n", path.display())
            }
            State::Ready(client) => {
                let (major, minor) = client.plugin().api_version();
                let (path, devices) =
                    (client.plugin().path().display(), super::plural(client.devices().len(), "device"));
                let listed = client.devices().map(device_text).collect::<String>();
                format!("{backend}: {path}\n  PJRT C API {major}.{minor}, {devices}\n{listed}")
            }
        }
    }

    fn json(&self) -> Json {
        let backend = self.backend.to_string();
        match &self.state {
            State::Missing(looked) => json!({ "backend": backend, "state": "missing", "looked": looked }),
            State::NotLoaded(path, reason) => {
                json!({ "backend": backend, "state": "not loaded", "path": path, "reason": reason })
            }
            State::Failed(path, error) => {
                json!({ "backend": backend, "state": "failed", "path": path, "error": error })
            }
            State::Ready(client) => {
                let (major, minor) = client.plugin().api_version();
                json!({
                    "backend": backend,
                    "state": "ready",
                    "path": client.plugin().path(),
                    "api_version": format!("{major}.{minor}"),
                    "devices": client.devices().map(device_json).collect::<Vec<_>>(),
                })
            }
        }
    }
}

/// What is linked, as [`LinkedRuntime::find`] tells it.
type Linked = Option<exec::Result<LinkedRuntime>>;

fn linked_text(linked: Linked) -> String {
    match linked {
        None => "xla: not linked\n  docs/xla-extension.md says how to build with it\n".to_owned(),
        Some(Err(error)) => format!("xla: linked, but fails: {error}\n"),
        Some(Ok(LinkedRuntime { platform, devices, .. })) => {
            let listed = devices.iter().map(|(id, kind)| format!("  device {id}: {kind}\n"));
            let (count, listed) = (super::plural(devices.len(), "device"), listed.collect::<String>());
            let lacks = LinkedRuntime::LACKS.join("; ");
            format!("xla: linked\n  platform {platform}, {count}\n{listed}  it lacks {lacks}\n")
        }
    }
}

fn linked_json(linked: Linked) -> Json {
    match linked {
        None => json!({ "runtime": "xla", "state": "not linked" }),
        Some(Err(error)) => json!({ "runtime": "xla", "state": "failed", "error": error.to_string() }),
        Some(Ok(LinkedRuntime { platform, version, devices })) => {
            let devices = devices.iter().map(|(id, kind)| json!({ "id": id, "kind": kind }));
            json!({
                "runtime": "xla",
                "state": "ready",
                "platform": platform,
                "version": version,
                "devices": devices.collect::<Vec<_>>(),
                "lacks": LinkedRuntime::LACKS,
            })
        }
    }
}

fn device_text(device: Device<'_>) -> String {
    let memory = match device.memory() {
        Some(DeviceMemory { in_use, limit: Some(limit), .. }) => {
            format!(", {} of {} in use", super::size(in_use), super::size(limit))
        }
        _ => String::new(),
    };
    format!("  device {}: {}{memory}\n", device.id(), device.kind())
}

fn device_json(device: Device<'_>) -> Json {
    let memory = device.memory();
    json!({
        "id": device.id(),
        "kind": device.kind(),
        "memory_in_use_bytes": memory.map(|memory| memory.in_use),
        "memory_limit_bytes": memory.and_then(|memory| memory.limit),
    })
}
