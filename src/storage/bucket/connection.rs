//! The connection to each bucket, and the threads that drive them.

use std::collections::BTreeMap;
use std::env;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use object_store::gcp::{GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, ClientConfigKey, RetryConfig, StaticCredentialProvider};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::failure;

/// How long to look for credentials: where there is no metadata server, nothing may answer at all.
const CREDENTIALS_LIMIT: Duration = Duration::from_secs(10);
/// How much later than a pod its metadata server may come.
const LATEST_METADATA: Duration = Duration::from_secs(60);
/// For one request, which is tried again after that.
const REQUEST_LIMIT: &str = "60s";
/// How long an outage is waited for.
const PATIENCE: Duration = Duration::from_secs(180);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);

/// One thread, which lives as long as the process.
static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).thread_name("cloud-storage").enable_all().build()
});

/// The store of a bucket.
#[derive(Debug)]
pub struct Connection {
    pub store: GoogleCloudStorage,
    /// One that tries each request for as long as [`PATIENCE`], for those that can't be repeated from outside.
    pub patient: GoogleCloudStorage,
    /// Whether the bucket has answered: from then on, what fails is an outage, which is waited for.
    is_reached: AtomicBool,
}

/// The connection to a bucket, of which there is one.
///
/// # Errors
/// No credentials, or such that can't be used.
pub fn to(bucket: &str) -> io::Result<Arc<Connection>> {
    static CONNECTIONS: Mutex<BTreeMap<String, Arc<Connection>>> = Mutex::new(BTreeMap::new());
    RUNTIME.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
    let mut connections = CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(connection) = connections.get(bucket) {
        return Ok(connection.clone());
    }
    // Its own pauses hardly grow: these are up to four times as long as the one before.
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(500), base: 4.0, ..BackoffConfig::default() };
    let patient = RetryConfig { backoff, max_retries: usize::MAX, retry_timeout: PATIENCE };
    let connection = Connection {
        store: connect(bucket, RetryConfig::default())?,
        patient: connect(bucket, patient)?,
        is_reached: AtomicBool::new(false),
    };
    let connection = Arc::new(connection);
    connections.insert(bucket.to_owned(), connection.clone());
    Ok(connection)
}

impl Connection {
    /// What the bucket answers to a request. In an outage, it is asked again and again, for as long as [`PATIENCE`]; while
    /// nobody has answered at all, only as often as the store itself does, since somebody may wait to hear of a mistake.
    pub async fn ask<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        request: impl Fn() -> F,
    ) -> object_store::Result<T> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(500);
        loop {
            let answer = request().await;
            let is_outage = answer.as_ref().is_err_and(failure::is_outage);
            if answer.as_ref().err().is_none_or(failure::is_answer) {
                self.is_reached.store(true, Ordering::Relaxed);
            }
            if !is_outage || !self.is_reached.load(Ordering::Relaxed) || started.elapsed() + pause > PATIENCE
            {
                return answer;
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }
}

/// By the usual variables and files, of object_store; or, with Google's `STORAGE_EMULATOR_HOST`, to what stands in for
/// Cloud Storage there, without credentials.
fn connect(bucket: &str, retry: RetryConfig) -> io::Result<GoogleCloudStorage> {
    // Others may have chosen another; it does as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let timeout = GoogleConfigKey::Client(ClientConfigKey::Timeout);
    let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry);
    if env::var_os("GOOGLE_TIMEOUT").is_none() {
        builder = builder.with_config(timeout, REQUEST_LIMIT);
    }
    let emulator = env::var("STORAGE_EMULATOR_HOST").ok().filter(|host| !host.is_empty());
    if let Some(host) = &emulator {
        let url = if host.contains("://") { host.clone() } else { format!("http://{host}") };
        let nobody = GcpCredential { bearer: String::new() };
        builder = builder
            .with_base_url(url.trim_end_matches('/'))
            .with_skip_signature(true)
            .with_credentials(Arc::new(StaticCredentialProvider::new(nobody)));
    }
    let store = builder.build().map_err(|_| failure::bad_credentials())?;
    if emulator.is_none() {
        first_token(&store)?;
    }
    Ok(store)
}

/// Gets a token, or says why there is none. A pod of Kubernetes may be there before its metadata server is: that is waited
/// for, and is no mistake of the user's.
fn first_token(store: &GoogleCloudStorage) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_secs(1);
    let started = Instant::now();
    let is_pod = env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    loop {
        let found = wait(async {
            tokio::time::timeout(CREDENTIALS_LIMIT, store.credentials().get_credential()).await
        });
        let error = match found {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let error = error.as_ref();
        if !is_pod || !error.is_none_or(failure::is_outage) {
            return Err(failure::no_credentials(error, ErrorKind::PermissionDenied));
        }
        if started.elapsed() >= LATEST_METADATA {
            return Err(failure::no_credentials(error, ErrorKind::NotConnected));
        }
        thread::sleep(PAUSE);
    }
}

/// Waits for what a [`store`](to) does.
pub fn wait<F: Future>(work: F) -> F::Output {
    match &*RUNTIME {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => unreachable!("a store without a runtime: {error}"),
    }
}

/// What goes on meanwhile.
pub struct Started<T>(JoinHandle<T>);

/// Starts what a [`store`](to) does, and doesn't wait.
pub fn start<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Started<T> {
    match &*RUNTIME {
        Ok(runtime) => Started(runtime.spawn(work)),
        Err(error) => unreachable!("a store without a runtime: {error}"),
    }
}

impl<T> Started<T> {
    pub fn wait(self) -> io::Result<T> {
        wait(self.0).map_err(io::Error::other)
    }

    pub fn cancel(self) {
        self.0.abort();
    }
}
