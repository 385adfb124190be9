//! Files of a bucket that are needed as files of this machine.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::TempDir;

use super::Folder;

/// The temporary folders that there were, and what was brought into them.
static KNOWN: Mutex<Vec<(String, String)>> = Mutex::new(vec![]);

/// A temporary folder for files that are brought from elsewhere, which goes with the last of its clones.
#[derive(Clone, Debug)]
pub struct Fetched {
    folder: Arc<TempDir>,
}

impl Fetched {
    /// An empty folder for files of `from`.
    pub fn new(from: &Folder) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("bert-xla-").tempdir()?;
        let known = (folder.path().display().to_string(), from.path().display().to_string());
        KNOWN.lock().unwrap_or_else(PoisonError::into_inner).push(known);
        Ok(Self { folder: Arc::new(folder) })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn create(&self, name: &str) -> io::Result<File> {
        File::create_new(self.path(name))
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl PartialEq for Fetched {
    fn eq(&self, other: &Self) -> bool {
        self.folder() == other.folder()
    }
}

impl Eq for Fetched {}

/// A message in which fetched files have the addresses that they came from.
pub fn as_given(mut message: String) -> String {
    for (here, from) in KNOWN.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        message = message.replace(here, from);
    }
    message
}
