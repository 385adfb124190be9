//! Where files lie, behind what a bucket can do as well: whole files by name, a list of names, and a commit of many
//! files by one that is written last. Nothing is renamed, appended to or locked through this interface.

mod atomic;
mod commit;

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use atomic::probe;
pub use atomic::{PART, write_atomic};
pub use commit::{Commit, MANIFEST, Manifest, ManifestEntry, hex, sha256};

/// A file that could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried, such as "can't write".
    pub action: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`.
    pub fn new(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { action, path, source }
    }
}

/// A failure of whatever gives a file its bytes.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub type Result<T> = std::result::Result<T, FileError>;

/// A folder of this machine. Files are named relative to it, with `/` between folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder `name` in this one.
    pub fn folder(&self, name: &str) -> Self {
        Self::new(self.path.join(name))
    }

    /// The file's bytes; `None` if there is no such file.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(FileError::new("can't read", path)(error)),
        }
    }

    /// Writes a file whole, in place of any of that name; folders on the way are made.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_file(&self.path.join(name), bytes)
    }

    /// The names of the files and folders here, sorted; empty if there is no such folder.
    pub fn list(&self) -> Result<Vec<String>> {
        let failed = |error| FileError::new("can't list", &self.path)(error);
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(vec![]),
            Err(error) => return Err(failed(error)),
        };
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        let mut names = entries.map(name).collect::<io::Result<Vec<_>>>().map_err(failed)?;
        names.sort();
        Ok(names)
    }

    /// Removes a file, or a folder with all that is in it; it is no failure if it isn't there.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        let removed = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if !is_absent(&error) => Err(FileError::new("can't remove", path)(error)),
            _ => Ok(()),
        }
    }

    /// Makes `name` here the same file as `name` in `from`, in place of any that is there: by a hard link, or by a copy
    /// where there are none.
    pub fn link(&self, from: &Self, name: &str) -> Result<()> {
        let (source, target) = (from.path.join(name), self.path.join(name));
        let part = format!(".{name}.link{PART}");
        self.remove(&part)?;
        // A link can't take another's place, a rename can.
        match fs::hard_link(&source, self.path.join(&part)) {
            Ok(()) => {
                fs::rename(self.path.join(&part), &target).map_err(FileError::new("can't write", &target))?
            }
            Err(_) => self.copy(from, name)?,
        }
        // Renaming one name of a file to another of the same file does nothing, and leaves both.
        self.remove(&part)
    }

    /// Copies `name` from `from`, in place of any file of that name.
    pub fn copy(&self, from: &Self, name: &str) -> Result<()> {
        let (source, target) = (from.path.join(name), self.path.join(name));
        let copied = write_atomic(&target, |file| io::copy(&mut fs::File::open(&source)?, file).map(drop));
        copied.map_err(FileError::new("can't write", target))
    }

    /// Makes the folder, and finds out whether files can be made in it, to be told before long work.
    pub fn make(&self) -> Result<()> {
        fs::create_dir_all(&self.path).map_err(FileError::new("can't make", &self.path))?;
        probe(&self.path).map_err(FileError::new("can't write to", &self.path))
    }
}

/// Opens a file that is to be gone through more than once. One that can be read just once, such as a pipe, is copied into a
/// temporary file, to its end.
pub fn open_for_passes(path: &Path) -> io::Result<fs::File> {
    let mut file = fs::File::open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    let mut copy = tempfile::tempfile()?;
    io::copy(&mut file, &mut copy)?;
    Ok(copy)
}

/// No such file, or no such folder on the way to it.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Writes a file, whole or not at all.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |file| file.write_all(bytes)).map_err(FileError::new("can't write", path))
}
