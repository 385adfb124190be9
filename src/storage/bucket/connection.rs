//! The connection to each bucket, and the threads that drive them.

use std::collections::BTreeMap;
use std::env;
use std::future::Future;
use std::io;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use object_store::gcp::{GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{ClientConfigKey, StaticCredentialProvider};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::failure;

/// How long to look for credentials: where there is no metadata server, nothing may answer at all.
const CREDENTIALS_LIMIT: Duration = Duration::from_secs(10);
/// For one request, which is tried again after that.
const REQUEST_LIMIT: &str = "60s";

/// One thread, which lives as long as the process.
static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).thread_name("cloud-storage").enable_all().build()
});

/// The store of a bucket, of which there is one.
///
/// # Errors
/// No credentials, or such that can't be used.
pub fn to(bucket: &str) -> io::Result<Arc<GoogleCloudStorage>> {
    static STORES: Mutex<BTreeMap<String, Arc<GoogleCloudStorage>>> = Mutex::new(BTreeMap::new());
    RUNTIME.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(store) = stores.get(bucket) {
        return Ok(store.clone());
    }
    let store = Arc::new(connect(bucket)?);
    stores.insert(bucket.to_owned(), store.clone());
    Ok(store)
}

/// By the usual variables and files, of object_store; or, with Google's `STORAGE_EMULATOR_HOST`, to what stands in for
/// Cloud Storage there, without credentials.
fn connect(bucket: &str) -> io::Result<GoogleCloudStorage> {
    // Others may have chosen another; it does as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let timeout = GoogleConfigKey::Client(ClientConfigKey::Timeout);
    let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
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
        let credentials = async {
            let found = store.credentials().get_credential();
            tokio::time::timeout(CREDENTIALS_LIMIT, found).await
        };
        match wait(credentials) {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(failure::no_credentials(Some(&error))),
            Err(_) => return Err(failure::no_credentials(None)),
        }
    }
    Ok(store)
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
