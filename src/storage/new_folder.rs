//! Folders that appear whole or not at all.

use std::fs;
use std::io;
use std::path::Path;

use super::FileError;
use super::atomic::{PART, in_folder, sync_folder, without_path};

/// Makes a folder of this machine that isn't there yet, or is empty: `fill` puts its files into a temporary one beside it,
/// which gets its name at the end. A link to a folder stays one.
pub fn write_folder<E: From<FileError>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let target = fs::canonicalize(path);
    let target = target.as_deref().unwrap_or(path);
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    /// What the disk has refused, or the caller.
    enum Failure<E> {
        Disk(io::Error),
        Caller(E),
    }
    impl<E> From<io::Error> for Failure<E> {
        fn from(error: io::Error) -> Self {
            Self::Disk(error)
        }
    }
    let written = in_folder(folder, || {
        let mut builder = tempfile::Builder::new();
        let prefix = format!(".{name}.");
        builder.prefix(&prefix).suffix(PART);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let temporary = builder.tempdir_in(folder).map_err(without_path)?;
        fill(temporary.path()).map_err(Failure::Caller)?;
        sync_folder(temporary.path())?;
        fs::rename(temporary.path(), target)?;
        // It has another name now.
        let _ = temporary.keep();
        Ok(sync_folder(folder)?)
    });
    written.map_err(|failure| match failure {
        Failure::Disk(error) => FileError::new("can't write", path)(error).into(),
        Failure::Caller(error) => error,
    })
}
