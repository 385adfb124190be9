//! A plugin's file: found, and opened.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::api::Api;
use super::client::Client;
use super::error::{Error, Result};
use super::install;
use super::platform::{self, Backend};
use super::quiet::without_stderr;
use super::topology::Topology;
use super::value::Value;

/// A loaded plugin. Clones share it; it stays loaded until the process ends.
#[derive(Clone)]
pub struct Plugin {
    backend: Backend,
    path: Arc<Path>,
    pub(super) api: Api,
}

impl Plugin {
    /// The plugin's file: `explicit` if given, else what the backend's environment variable names, else the
    /// installed one in the cache folder.
    ///
    /// # Errors
    /// [`Error::NotFound`] lists each place; a place that the user named is not passed over when it is empty.
    pub fn find(backend: Backend, explicit: Option<&Path>) -> Result<PathBuf> {
        let not_found = |looked, named| Error::NotFound { backend, looked, named };
        let existing = |path: PathBuf, place: String| {
            if path.is_file() { Ok(path) } else { Err(not_found(vec![place], true)) }
        };
        if let Some(path) = explicit {
            return existing(path.to_owned(), path.display().to_string());
        }
        if let Some((variable, path)) = Self::from_environment(backend) {
            let place = format!("{} ({variable})", path.display());
            return existing(path, place);
        }
        let variables = backend.platform().variables.iter().map(|name| format!("${name} (not set)"));
        let path = install::installed_path(backend)?;
        if path.is_file() {
            return Ok(path);
        }
        Err(not_found(variables.chain([path.display().to_string()]).collect(), false))
    }

    /// The path that the user's environment names, and the variable.
    pub(super) fn from_environment(backend: Backend) -> Option<(&'static str, PathBuf)> {
        backend.platform().variables.iter().find_map(|&variable| {
            let path = std::env::var_os(variable).filter(|path| !path.is_empty())?;
            Some((variable, PathBuf::from(path)))
        })
    }

    /// Opens and initializes a plugin. Its log is silenced unless `TF_CPP_MIN_LOG_LEVEL` is set.
    ///
    /// # Errors
    /// When the file is no shared library, no PJRT plugin, or of a version that this program does not know.
    pub fn load(backend: Backend, path: &Path) -> Result<Self> {
        // A bare file name would make the loader search its own folders instead.
        let path = std::path::absolute(path).map_err(Error::io(path))?;
        prepare_environment(backend, &path);
        // What plugins print while they are opened, the log level doesn't hold back.
        let api = match std::env::var(LOG_LEVEL).is_ok_and(|level| level == SILENT) {
            true => without_stderr(|| Api::load(backend, &path)),
            false => Api::load(backend, &path),
        }?;
        Ok(Self { backend, path: path.into(), api })
    }

    pub fn backend(&self) -> Backend {
        self.backend
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Major and minor version of the PJRT C API that the plugin has.
    pub fn api_version(&self) -> (i32, i32) {
        self.api.version()
    }

    /// Takes hold of the plugin's devices. Options are the plugin's own, such as `cpu_device_count` on CPU and
    /// `memory_fraction` and `preallocate` on GPU, and of the type that it expects: a wrong one is not an error to
    /// plugins but an exception, which ends the process.
    ///
    /// # Errors
    /// [`Error::NoDevices`] where the plugin lists none; else the plugin's own.
    pub fn client(&self, options: &[(&str, Value)]) -> Result<Client> {
        Client::new(self.clone(), options).map_err(|error| match error {
            // About the options.
            Error::Plugin { code: "INVALID_ARGUMENT" | "UNIMPLEMENTED", .. } => error,
            // Without options, the CUDA plugin's topology is of the GPUs that it sees.
            Error::Plugin { message, .. }
                if self.backend == Backend::Gpu && self.topology("", &[]).is_err() =>
            {
                let reason = platform::missing_cuda().map_or(message, str::to_owned);
                Error::NoDevices { backend: self.backend, reason }
            }
            other => other,
        })
    }

    /// Describes devices to compile for, which need not be here: for TPU, the name of a slice such as `v3:2x2x1`;
    /// for GPU, `1x1x1` and the option `target_config`.
    pub fn topology(&self, name: &str, options: &[(&str, Value)]) -> Result<Topology> {
        Topology::new(self, name, options)
    }
}

/// The plugins' variable for how much they log, and the value for next to nothing: errors come back through the C API.
const LOG_LEVEL: &str = "TF_CPP_MIN_LOG_LEVEL";
const SILENT: &str = "3";

/// Sets the variables that a plugin reads while it is opened, where the user has not.
fn prepare_environment(backend: Backend, plugin: &Path) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let quiet = std::env::var_os(LOG_LEVEL).is_none().then(|| (LOG_LEVEL, SILENT.to_owned()));
    for (name, value) in quiet.into_iter().chain((backend.platform().environment)(plugin)) {
        // SAFETY: the standard library serializes all access from Rust. C code that reads the environment is that
        // of plugins loaded before; each variable is set at most once, by the first load that needs it, which the
        // program does from its main thread before it has work on any device.
        unsafe { std::env::set_var(name, value) };
    }
}
