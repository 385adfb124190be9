//! Files of a bucket that are needed as files of this machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{env, io};

use tempfile::TempDir;

use super::{FileError, Folder, ManifestEntry, Result};

/// The temporary folders that there were, and what was brought into them.
static KNOWN: Mutex<Vec<(String, String)>> = Mutex::new(vec![]);

/// A name that nobody else gives.
const PREFIX: &str = ".bert-xla-fetched-";
/// A folder that is younger may be about to be locked.
const YOUNG: Duration = Duration::from_secs(60);

/// A temporary folder for files that are brought from elsewhere, which goes with the last of its clones, or, if the process
/// is killed, when another one makes one.
#[derive(Clone, Debug)]
pub struct Fetched {
    folder: Arc<TempDir>,
    /// While it is locked, the folder is in use; `None` where there are no locks.
    _lock: Option<Arc<File>>,
}

impl Fetched {
    /// An empty folder for files of `from`.
    pub fn new(from: &Folder) -> Result<Self> {
        sweep(&env::temp_dir());
        let made = tempfile::Builder::new().prefix(PREFIX).tempdir().map_err(in_temporary_folder);
        let folder = made.map_err(FileError::new("can't copy", from.path()))?;
        let lock = File::open(folder.path()).ok().filter(|folder| folder.try_lock().is_ok());
        let known = (folder.path().display().to_string(), from.path().display().to_string());
        KNOWN.lock().unwrap_or_else(PoisonError::into_inner).push(known);
        Ok(Self { folder: Arc::new(folder), _lock: lock.map(Arc::new) })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Brings the file `name` of `folder`, and gives where it is now. One that a manifest has an entry for is checked on the
    /// way.
    ///
    /// # Errors
    /// What is wrong with it, see [`is_damage`](super::is_damage), or with the temporary folder.
    pub fn bring(&self, folder: &Folder, name: &str, entry: Option<&ManifestEntry>) -> Result<PathBuf> {
        let path = self.path(name);
        let given = folder.path().join(name);
        let created = File::create_new(&path).map_err(in_temporary_folder);
        let mut file = created.map_err(FileError::new("can't copy", given))?;
        let copied = match entry {
            Some(entry) => entry.copy_to(folder, &mut file),
            None => folder.copy_to(name, &mut file).map(drop),
        };
        copied.map_err(|error| FileError { source: told_where(error.source), ..error })?;
        Ok(path)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Of what is brought into the temporary folder: an error of this machine's is met there.
pub(super) fn told_where(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(_) => in_temporary_folder(error),
        None => error,
    }
}

pub(super) fn in_temporary_folder(error: io::Error) -> io::Error {
    // Without the name that nobody has given.
    let text = error.to_string();
    let why = text.split(" at path ").next().unwrap_or(&text);
    io::Error::new(error.kind(), format!("in the temporary folder {}: {why}", env::temp_dir().display()))
}

/// Removes what processes that were killed have left in `folder`, as far as that goes.
fn sweep(folder: &Path) {
    let is_left = |path: &Path| {
        let age = path.symlink_metadata().and_then(|found| found.modified()).map(|at| at.elapsed());
        matches!(age, Ok(Ok(age)) if age > YOUNG)
            && !path.is_symlink()
            && File::open(path).is_ok_and(|folder| folder.try_lock().is_ok())
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && path.is_dir() && is_left(&path) {
            let _ = fs::remove_dir_all(path);
        }
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_killed_processes_have_left_is_removed() {
        let temporary = tempfile::tempdir().unwrap();
        let make = |name: &str, age: Duration| {
            let path = temporary.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("model.safetensors"), "weights").unwrap();
            let folder = File::open(&path).unwrap();
            folder.set_modified(SystemTime::now() - age).unwrap();
            (path, folder)
        };
        let old = 2 * YOUNG;
        let (left, _) = make(".bert-xla-fetched-a", old);
        let (in_use, lock) = make(".bert-xla-fetched-b", old);
        lock.lock().unwrap();
        let (young, _) = make(".bert-xla-fetched-c", Duration::ZERO);
        let (others, _) = make("bert-xla-demo", old);
        std::os::unix::fs::symlink(&others, temporary.path().join(".bert-xla-fetched-d")).unwrap();
        sweep(temporary.path());
        assert!(!left.exists());
        assert!(in_use.exists() && young.exists() && others.join("model.safetensors").exists());
    }
}
