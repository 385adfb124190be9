//! Which backend is taken, and a connection to it.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::runtime::{Runtime, RuntimeKind};
use super::watch::{OnTimeout, OnWait, Watch};
use super::{Error, Result};
use crate::pjrt::{self, Absence, Backend, ExecutableCache, GpuOptions, Plugin, cpu_device_count};

/// What goes on while there is no connection yet, for messages.
pub(super) const CONNECTING: &str = "connecting to the devices";

/// What is done when another process still holds the TPU: what the plugin says, and for how long it is asked again.
pub type OnBusy = Arc<dyn Fn(&pjrt::Error, Duration) + Send + Sync>;

/// What the user asked for.
#[derive(Clone)]
pub struct DeviceOptions {
    /// `None` takes [`RuntimeKind::auto`].
    pub runtime: Option<RuntimeKind>,
    /// `None` takes the first of TPU, GPU and CPU that is there.
    pub backend: Option<Backend>,
    /// Over all processes of a slice. `None` takes every device of a TPU or GPU, and one on the CPU.
    pub replicas: Option<usize>,
    /// The plugin's file; it needs `backend`.
    pub plugin: Option<PathBuf>,
    /// Whether programs are to give the same bits each time, at the cost of speed: a GPU's alone may not.
    pub deterministic: bool,
    /// How GPUs are used.
    pub gpu: GpuOptions,
    /// Where compiled programs are kept.
    pub cache: Option<Arc<ExecutableCache>>,
    /// How long a process of a slice waits for the others at one time, the making of the connection included.
    pub slice_timeout: Duration,
    /// What is done when they don't come; it must end the process.
    pub on_timeout: OnTimeout,
    /// How long such a wait is silent; what is done then, once, while it goes on.
    pub wait_notice: Duration,
    pub on_wait: OnWait,
    /// How long a TPU may be held by another process, such as one that is ending; never longer than `slice_timeout`, as
    /// other hosts of a slice meanwhile wait for this one.
    pub busy_timeout: Duration,
    /// What is done then, once.
    pub on_busy: OnBusy,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        let on_timeout = |error: Error| {
            eprintln!("{error}");
            std::process::exit(1)
        };
        Self {
            runtime: None,
            backend: None,
            replicas: None,
            plugin: None,
            deterministic: false,
            gpu: GpuOptions::default(),
            cache: None,
            slice_timeout: Duration::from_secs(600),
            on_timeout: Arc::new(on_timeout),
            wait_notice: Duration::from_secs(60),
            on_wait: Arc::new(|_, _| ()),
            busy_timeout: Duration::from_secs(60),
            on_busy: Arc::new(|_, _| ()),
        }
    }
}

/// Connects to the backend that was asked for, or to the first one that is usable; with the reasons why the ones before
/// that were passed over.
pub(super) fn connect(options: &DeviceOptions, watch: &Watch) -> Result<(Runtime, Vec<(Backend, String)>)> {
    match options.runtime.unwrap_or(RuntimeKind::auto()) {
        RuntimeKind::Pjrt => {}
        #[cfg(feature = "xla-extension")]
        RuntimeKind::Xla => {
            let (client, passed_over) = super::extension::connect(options)?;
            return Ok((Runtime::Xla(client), passed_over));
        }
    }
    let Some(backend) = options.backend else {
        return match &options.plugin {
            Some(_) => Err(Error::PluginWithoutBackend),
            None => first_usable(options, watch),
        };
    };
    backend.probe().map_err(|absence| Error::Backend { backend, reason: absence.to_string() })?;
    Ok((open(backend, options, watch)?, vec![]))
}

/// Loads the plugin of a backend that has been probed: away from a TPU VM, libtpu waits for a metadata server.
fn open(backend: Backend, options: &DeviceOptions, watch: &Watch) -> Result<Runtime> {
    let path = Plugin::find(backend, options.plugin.as_deref())?;
    let client_options = match backend {
        Backend::Cpu => vec![cpu_device_count(options.replicas.unwrap_or(1).max(1))],
        Backend::Gpu => options.gpu.values()?,
        Backend::Tpu => vec![],
    };
    let client = || {
        let plugin = Plugin::load(backend, &path)?;
        // On a slice, it waits for all hosts.
        watch.during(CONNECTING, || plugin.client(&client_options))
    };
    let client =
        if backend == Backend::Tpu { when_free(options, client) } else { client().map_err(Error::from) }?;
    Ok(Runtime::Pjrt { client, cache: options.cache.clone() })
}

/// Tries until no other process holds the TPU: one that has ended may do so for a while, and libtpu doesn't wait for it.
/// On a slice, a host that is refused hasn't met the others yet, who wait for it.
fn when_free<T>(options: &DeviceOptions, attempt: impl Fn() -> pjrt::Result<T>) -> Result<T> {
    const PAUSE: Duration = Duration::from_secs(1);
    let limit = options.busy_timeout.min(options.slice_timeout);
    let mut since = None;
    loop {
        let error = match attempt() {
            Err(error) if error.is_busy() => error,
            done => return Ok(done?),
        };
        let since = *since.get_or_insert_with(|| {
            (options.on_busy)(&error, limit);
            Instant::now()
        });
        let waited = since.elapsed();
        if waited >= limit {
            return Err(Error::Busy { waited, error });
        }
        thread::sleep(PAUSE.min(limit - waited));
    }
}

/// A TPU that is there and can't be opened is an error: on a slice, the other hosts would wait for this one, which would
/// train alone. A GPU may lack its plugin, its libraries or its driver, and is passed over as one that isn't there; one
/// that the plugin lists and can't open is an error as well.
fn first_usable(options: &DeviceOptions, watch: &Watch) -> Result<(Runtime, Vec<(Backend, String)>)> {
    let mut passed_over = vec![];
    for backend in Backend::ALL {
        match backend.probe() {
            Ok(()) => {}
            Err(Absence::Missing(reason)) => {
                passed_over.push((backend, reason));
                continue;
            }
            Err(Absence::Closed(reason)) => {
                return Err(Error::Unusable { backend, error: Box::new(Error::Backend { backend, reason }) });
            }
        }
        match open(backend, options, watch) {
            Ok(runtime) => return Ok((runtime, passed_over)),
            Err(Error::Pjrt(error)) if backend != Backend::Tpu && error.is_absence() => {
                passed_over.push((backend, error.to_string()));
            }
            Err(error) if backend == Backend::Cpu => return Err(error),
            Err(error) => return Err(Error::Unusable { backend, error: Box::new(error) }),
        }
    }
    Err(Error::NoBackend(passed_over))
}
