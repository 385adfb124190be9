//! A page and an API for trained models, over HTTP.
//!
//! A request's way: `http` takes connections; `guard` looks at where a request comes from and whether it has a key;
//! `routes` reads it, within limits, and makes tokens of its texts; they wait in the `queue`, from which the one thread
//! that asks the devices takes those that are padded to the same length, as many as there are. A model that is loaded anew
//! (in `model`, on a thread of its own) takes the place of the one before for texts that come from then on: each text
//! brings the model that has made its tokens.

mod ask;
mod body;
mod control;
mod guard;
mod http;
mod keys;
mod metrics;
mod model;
mod page;
mod queue;
mod refusal;
mod rest;
mod routes;
mod table;

use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use std::{io, thread};

pub use control::Control;
pub use keys::{KeyFile, Keys};
pub use model::States;

use body::Limits;
use metrics::Metrics;
use model::Current;
use queue::Queue;

use crate::exec::Replicas;
use crate::infer;
use crate::run::Runs;

/// How much is taken, and from whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// Texts that are computed at a time.
    pub sizes: Vec<usize>,
    /// Bytes of a request's body, but for tables.
    pub max_body: usize,
    /// Bytes of a table.
    pub max_table: u64,
    /// Tables at the same time.
    pub max_tables: usize,
    /// Texts of a request.
    pub max_inputs: usize,
    /// Texts that wait for the devices.
    pub max_queue: usize,
    /// Connections at the same time.
    pub max_connections: usize,
    /// From a request's first byte to its answer; a table's next rows.
    pub time_out: Duration,
    /// For the head of a request, from the connection or the answer before on; for its body.
    pub read_time_out: Duration,
    /// For what was taken before the end.
    pub drain_time_out: Duration,
    /// Origins of pages elsewhere that may ask; `*` is any.
    pub allowed_origins: Vec<String>,
    /// Names that the server is called by, with a port or without, besides addresses, `localhost` and the machine's own.
    pub allowed_hosts: Vec<String>,
    /// How often is looked for newer checkpoints.
    pub watch: Option<Duration>,
}

/// What is served, and where it runs.
pub struct Served {
    /// Opens the runs, whenever they are loaded anew; what it fails with is a line.
    pub open: Box<dyn Fn() -> Result<Runs, String> + Send + Sync>,
    /// Their folders, in which newer checkpoints are looked for.
    pub roots: Vec<PathBuf>,
    /// What [`States::of`] those was before they were opened.
    pub states: Option<States>,
    pub replicas: Arc<Replicas>,
}

/// What happens while it is served, for people. Requests are told of by `tracing`.
pub trait Observer: Send + Sync {
    /// So many of all programs are compiled.
    fn compiled(&self, done: usize, all: usize);
    /// The first model answers from now on.
    fn ready(&self, after: Duration);
    /// No request is taken any more.
    fn stopping(&self, why: &str);
}

/// Why nothing is served. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't serve: {0}")]
    System(#[from] io::Error),
    /// The first model can't be loaded.
    #[error(transparent)]
    Load(infer::Error),
    /// A defect, which a panic has told of.
    #[error("{0} has panicked")]
    Panicked(&'static str),
}

/// To a thousandth, for people.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// What all parts share.
struct Shared {
    options: Options,
    served: Served,
    current: Current,
    queue: Queue,
    keys: Option<Keys>,
    metrics: Metrics,
    control: Control,
    limits: Limits,
    /// Programs are run by one thread at a time.
    devices: Mutex<()>,
    started: Instant,
}

/// Serves `runs`, and what takes their place, until `control` says to stop and what was taken until then is answered. A thread that
/// loads others may still be at it then, which may take long: the process should be [left](crate::pjrt::leave).
///
/// # Errors
/// Models that can't be loaded, a system without room for it.
pub fn serve(
    listener: TcpListener,
    runs: Runs,
    served: Served,
    options: Options,
    keys: Option<Keys>,
    control: &Control,
    observer: Arc<dyn Observer>,
) -> Result<(), Error> {
    listener.set_nonblocking(true)?;
    let shared = Arc::new(Shared {
        queue: Queue::new(options.max_queue),
        limits: Limits::new(&options),
        current: Current::default(),
        devices: Mutex::new(()),
        metrics: Metrics::default(),
        control: control.clone(),
        started: Instant::now(),
        keys,
        served,
        options,
    });
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let named = |name: &str| thread::Builder::new().name(name.to_owned());
    let devices = {
        let shared = shared.clone();
        named("devices").spawn(move || shared.answer_all())?
    };
    let (failed, failure) = mpsc::channel();
    {
        let (shared, observer) = (shared.clone(), observer.clone());
        named("loader").spawn(move || {
            let loaded = catch_unwind(AssertUnwindSafe(|| model::load_all(&shared, runs, &*observer)));
            let loaded = loaded.map_err(|_| Error::Panicked("the thread that loads models"));
            // Told before the end is asked for: without a model, nobody is answered.
            let _ = failed.send(loaded.and_then(|loaded| loaded.map_err(Error::Load)));
            shared.control.stop("no model");
        })?;
    }
    let ended = runtime.block_on(http::run(listener, shared.clone(), &*observer));
    shared.control.stop("no listener");
    shared.queue.close();
    devices.join().map_err(|_| Error::Panicked("the thread that asks the devices"))?;
    // What still goes on has nobody who waits for it.
    runtime.shutdown_background();
    failure.try_recv().unwrap_or(Ok(()))?;
    Ok(ended?)
}
