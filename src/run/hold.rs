//! What keeps others from writing to a run's folder.

use std::fs::{File, TryLockError};
use std::path::Path;

use super::names::random;
use super::{Error, Result};
use crate::storage::{FileError, Folder};

/// The right to write.
pub(super) enum Hold {
    /// Held as long as the writer lives; `None` where the file system has no locks.
    Lock(Option<File>),
    /// A bucket has none: the process that `run.json` names writes, and that is the one that was started last.
    Name {
        name: String,
        /// The checkpoints that were there when it took over: what comes later is its own, or somebody's who takes over.
        found: Vec<String>,
    },
}

impl Hold {
    /// Of a folder that is there.
    ///
    /// # Errors
    /// Another process has it.
    pub fn take(folder: &Folder) -> Result<Self> {
        match folder.local() {
            Some(path) => Ok(Self::Lock(lock(path)?)),
            None => Ok(Self::Name { name: random(), found: vec![] }),
        }
    }
}

/// A process that is being started elsewhere in this one may still have the file open, and the lock with it.
impl Drop for Hold {
    fn drop(&mut self) {
        if let Self::Lock(Some(lock)) = self {
            let _ = lock.unlock();
        }
    }
}

/// Locks a folder; `None` where the file system has no locks.
fn lock(path: &Path) -> Result<Option<File>> {
    let lock = File::open(path).map_err(FileError::new("can't open", path))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}
