//! Files that can be made anew, and are kept so that they need not be.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::write_atomic;

/// Of a file's mode: the group's and everybody's right to write.
const OTHERS_WRITE: u32 = 0o022;

/// A folder of files under names that tell their contents.
///
/// What it holds is taken for what this program has written there. So folder and files must be the user's own, or root's, and
/// nobody else may write to them; others are not used.
///
/// Trouble with it is told on stderr, once, and never fails a run.
#[derive(Debug)]
pub struct CacheFolder {
    path: PathBuf,
    /// What it has, and what is done where it has nothing, for messages.
    what: [&'static str; 2],
    limit: u64,
    warned: AtomicBool,
}

impl CacheFolder {
    /// 8 GiB.
    pub const DEFAULT_LIMIT: u64 = 8 << 30;

    /// A folder that is made when it is first written to. When its files come to more than `limit` bytes, those that were used
    /// longest ago are removed. `what` it has, such as `executable`, and what is done where it has nothing, such as `compiling`,
    /// is said where it can't be used.
    pub fn new(path: impl Into<PathBuf>, limit: u64, what: [&'static str; 2]) -> Self {
        Self { path: path.into(), limit, what, warned: AtomicBool::new(false) }
    }

    /// Where a file of this name is, or is to be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether it is this user's alone, or isn't there yet; if not, says so.
    pub fn is_usable(&self) -> bool {
        fs::metadata(&self.path).map_or(true, |folder| self.is_trusted(&self.path, &folder))
    }

    /// Opens a file, if it is there and can be trusted.
    pub fn open(&self, name: &str) -> Option<File> {
        let path = self.path(name);
        // Of the open file: what the name stands for may change.
        let opened = File::open(&path).and_then(|file| {
            let metadata = file.metadata()?;
            Ok(self.is_trusted(&path, &metadata).then_some(file))
        });
        match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.warn(&format!("can't read {}: {error}; {}", path.display(), self.what[1]));
                None
            }
        }
    }

    /// Notes that a file is of use, so that it stays. A folder that can't be written to still serves.
    pub fn used(&self, name: &str) {
        let file = File::options().append(true).open(self.path(name));
        let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
    }

    /// Writes a file, whole or not at all, and opens it.
    ///
    /// # Errors
    /// Those of `write`, and of the disk.
    pub fn write<E: From<io::Error>>(
        &self,
        name: &str,
        write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
    ) -> Result<File, E> {
        let path = self.path(name);
        // Whatever the umask says; what is there already stays as it is.
        DirBuilder::new().recursive(true).mode(0o777 & !OTHERS_WRITE).create(&self.path)?;
        write_atomic(&path, |file| {
            let mut permissions = file.get_ref().metadata()?.permissions();
            permissions.set_mode(permissions.mode() & !OTHERS_WRITE);
            file.get_ref().set_permissions(permissions)?;
            write(file)
        })?;
        // It may be larger than all that there may be.
        let file = File::open(&path)?;
        self.shrink()?;
        Ok(file)
    }

    /// Whether only this user and root could have written what is there; if not, says so.
    fn is_trusted(&self, path: &Path, found: &Metadata) -> bool {
        let (path, instead) = (path.display(), self.what[1]);
        if ![0, rustix::process::geteuid().as_raw()].contains(&found.uid()) {
            self.warn(&format!("{path} is another user's; {instead}"));
            return false;
        }
        if found.mode() & OTHERS_WRITE != 0 {
            // Not to take the right away: what others wrote before would be trusted then.
            self.warn(&format!("others can write to {path}; {instead}; remove it"));
            return false;
        }
        true
    }

    /// Removes the files that were used longest ago, until the rest is within the limit.
    fn shrink(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            // Another process may have removed it since.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                files.push((metadata.modified()?, metadata.len(), entry.path()));
            }
        }
        let mut total = files.iter().map(|(_, size, _)| size).sum::<u64>();
        files.sort();
        for (_, size, path) in files {
            if total <= self.limit {
                break;
            }
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => total -= size,
            }
        }
        Ok(())
    }

    /// Says that an entry is no use.
    pub fn warn_damaged(&self, name: &str) {
        self.warn(&format!("{} is damaged; {}", self.path(name).display(), self.what[1]));
    }

    /// Says that nothing is kept.
    pub fn warn_unwritable(&self, error: &dyn std::fmt::Display) {
        let [what, _] = self.what;
        self.warn(&format!("{what}s are not kept in {}: {error}", self.path.display()));
    }

    /// One line is enough: what went wrong once is likely to again.
    pub fn warn(&self, message: &str) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            let _ = writeln!(io::stderr(), "{} cache: {message}", self.what[0]);
        }
    }
}
