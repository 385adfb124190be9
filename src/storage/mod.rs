//! Where files lie, on this machine or in a bucket of Cloud Storage, behind what both can do: whole files by name, a list of names, and a commit of many
//! files by one that is written last. Nothing is renamed, appended to or locked through this interface.

mod atomic;
#[cfg(feature = "cloud")]
mod bucket;
#[cfg(not(feature = "cloud"))]
#[path = "no_bucket.rs"]
mod bucket;
mod cache_folder;
mod commit;
mod fetched;
mod local;
mod log_file;
mod new_file;
mod new_folder;

use std::fs;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

pub use atomic::{PART, is_stdout, link_target, write_atomic};
use bucket::Bucket;
pub use cache_folder::CacheFolder;
pub use commit::{Commit, MANIFEST, Manifest, ManifestEntry, hex, is_damage, sha256};
pub use fetched::{Fetched, as_given};
pub use log_file::{LogFile, Logged};
use new_file::NewFile;
pub use new_folder::write_folder;

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

    /// True for an address that names no place in a bucket, or one that may not be used: no retry would help.
    pub fn is_input_error(&self) -> bool {
        use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
        is_bucket(&self.path) && matches!(self.source.kind(), InvalidInput | PermissionDenied | Unsupported)
    }
}

/// The last part of a path.
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Whether a network, a server or a disk has failed, so that nothing that was given is at fault.
pub fn is_outage(error: &io::Error) -> bool {
    use io::ErrorKind::{NotConnected, Other, StorageFull, TimedOut};
    matches!(error.kind(), NotConnected | Other | StorageFull | TimedOut)
}

/// A failure of whatever gives a file its bytes.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub type Result<T> = std::result::Result<T, FileError>;

/// Which content of a file was read or written. A local file's is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(Option<String>);

/// What became of a file that was to be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// It is, by this version.
    Done(Version),
    /// It isn't: meanwhile, somebody else had replaced it.
    Outdated,
}

/// A folder of this machine, or, as `gs://bucket/prefix`, of a bucket of Cloud Storage. Files are named relative to it, with
/// `/` between folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder that the file `path` is in, and its name there.
    pub fn of(path: &Path) -> (Self, String) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (Self::new(path.parent().unwrap_or(Path::new("."))), name)
    }

    /// As it was given: of a bucket, for messages alone.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_local(&self) -> bool {
        !is_bucket(&self.path)
    }

    /// The path of a folder of this machine.
    pub fn local(&self) -> Option<&Path> {
        self.is_local().then_some(&self.path)
    }

    /// The folder `name` in this one.
    pub fn folder(&self, name: &str) -> Self {
        Self::new(self.path.join(name))
    }

    /// The file's bytes; `None` if there is no such file.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.read_versioned(name)?.map(|(bytes, _)| bytes))
    }

    /// The file's bytes, and which version of it they are; `None` if there is no such file.
    pub fn read_versioned(&self, name: &str) -> Result<Option<(Vec<u8>, Version)>> {
        match self.is_local() {
            true => Ok(local::read(&self.path.join(name))?.map(|bytes| (bytes, Version(None)))),
            false => self.in_bucket("can't read", name, |bucket| bucket.read(name)),
        }
    }

    /// Writes the file's bytes to `sink` as they come, and gives their number.
    ///
    /// # Errors
    /// No such file, and the sink's.
    pub fn copy_to(&self, name: &str, sink: &mut dyn Write) -> Result<u64> {
        match self.is_local() {
            true => {
                let path = self.path.join(name);
                let copied = fs::File::open(&path).and_then(|mut file| io::copy(&mut file, sink));
                copied.map_err(FileError::new("can't read", path))
            }
            false => self.in_bucket("can't read", name, |bucket| bucket.download(name, sink)),
        }
    }

    /// The file's size in bytes; `None` if there is no such file.
    pub fn size(&self, name: &str) -> Result<Option<u64>> {
        match self.is_local() {
            true => Ok(fs::metadata(self.path.join(name))
                .ok()
                .filter(fs::Metadata::is_file)
                .map(|file| file.len())),
            false => self.in_bucket("can't read", name, |bucket| bucket.size(name)),
        }
    }

    /// Whether there is a file or a folder of this name.
    pub fn exists(&self, name: &str) -> Result<bool> {
        match self.is_local() {
            true => Ok(self.path.join(name).symlink_metadata().is_ok()),
            false => self.in_bucket("can't read", name, |bucket| bucket.exists(name)),
        }
    }

    /// Writes a file whole, in place of any of that name; folders on the way are made.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        match self.is_local() {
            true => write_file(&self.path.join(name), bytes),
            false => self.in_bucket("can't write", name, |bucket| bucket.write(name, bytes)),
        }
    }

    /// Writes a file whole, if the one that is there is still of `version`; with `None`, if there is none. Bytes that are
    /// already there as they are count as written, since an answer may have been lost: have them say whose they are. In a
    /// local folder, it is written whatever is there: a lock must keep others away.
    pub fn replace(&self, name: &str, bytes: &[u8], version: Option<&Version>) -> Result<Replaced> {
        match self.is_local() {
            true => self.write(name, bytes).map(|()| Replaced::Done(Version(None))),
            false => self.in_bucket("can't write", name, |bucket| bucket.replace(name, bytes, version)),
        }
    }

    /// The names of the files and folders here, sorted; empty if there is no such folder.
    pub fn list(&self) -> Result<Vec<String>> {
        match self.is_local() {
            true => local::list(&self.path),
            false => self.in_bucket("can't list", "", |bucket| bucket.list()),
        }
    }

    /// Removes a file, or a folder with all that is in it; it is no failure if it isn't there.
    pub fn remove(&self, name: &str) -> Result<()> {
        match self.is_local() {
            true => local::remove(&self.path.join(name)),
            false => self.in_bucket("can't remove", name, |bucket| bucket.remove(name)),
        }
    }

    /// Removes a folder that holds nothing; one in a bucket is gone by itself.
    pub fn remove_if_empty(&self, name: &str) -> Result<()> {
        match self.is_local() {
            true => local::remove_if_empty(&self.path.join(name)),
            false => Ok(()),
        }
    }

    /// Copies `name` from `from`, in place of any file of that name; within a bucket, without bringing it here.
    pub fn copy(&self, from: &Self, name: &str) -> Result<()> {
        if let (Some(source), Some(target)) = (from.local(), self.local()) {
            return local::copy(&source.join(name), &target.join(name));
        }
        let within = |bucket: Bucket| bucket.copy(&Bucket::open(&from.path)?, name);
        if !from.is_local() && !self.is_local() && self.in_bucket("can't write", name, within)? {
            return Ok(());
        }
        if let Some(target) = self.local() {
            let target = target.join(name);
            let copied =
                write_atomic(&target, |file| from.copy_to(name, file).map(drop).map_err(io::Error::other));
            return copied.map_err(FileError::new("can't write", target));
        }
        let mut file = NewFile::create(self, name)?;
        from.copy_to(name, &mut file)?;
        file.finish()
    }

    /// Makes the folder, and finds out whether files can be made in it, to be told before long work.
    pub fn make(&self) -> Result<()> {
        match self.is_local() {
            true => local::make(&self.path),
            false => self.in_bucket("can't write to", "", |bucket| bucket.probe()),
        }
    }

    /// Does something in the bucket, for the file `name`.
    fn in_bucket<T>(
        &self,
        action: &'static str,
        name: &str,
        act: impl FnOnce(Bucket) -> io::Result<T>,
    ) -> Result<T> {
        let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        Bucket::open(&self.path).and_then(act).map_err(FileError::new(action, path))
    }
}

/// Whether a path is an address in Cloud Storage.
pub fn is_bucket(path: &Path) -> bool {
    // With one slash, it is one that was mistyped.
    path.as_os_str().as_encoded_bytes().starts_with(b"gs:/")
}

/// Whether there is a file to read, which may be a pipe: told before long work.
pub fn check_is_there(path: &Path) -> io::Result<()> {
    if !is_bucket(path) {
        return path.metadata().map(drop);
    }
    let (folder, name) = Folder::of(path);
    match Bucket::open(folder.path())?.size(&name)? {
        Some(_) => Ok(()),
        None => Err(io::Error::new(io::ErrorKind::NotFound, "there is no such file")),
    }
}

/// Opens a file for one pass: one in a bucket is copied into a temporary file.
pub fn open_once(path: &Path) -> io::Result<fs::File> {
    if !is_bucket(path) {
        return fs::File::open(path);
    }
    let (folder, name) = Folder::of(path);
    let mut copy = tempfile::tempfile().map_err(fetched::in_temporary_folder)?;
    Bucket::open(folder.path())?.download(&name, &mut copy).map_err(fetched::told_where)?;
    copy.rewind()?;
    Ok(copy)
}

/// Opens a file that is to be gone through more than once. One that can be read just once, such as a pipe, is copied into a
/// temporary file, to its end.
pub fn open_for_passes(path: &Path) -> io::Result<fs::File> {
    let mut file = open_once(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    let mut copy = tempfile::tempfile()?;
    io::copy(&mut file, &mut copy)?;
    Ok(copy)
}

/// Writes a file, whole or not at all.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |file| file.write_all(bytes)).map_err(FileError::new("can't write", path))
}
