//! A folder of this machine.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::atomic::{probe, write_atomic};
use super::{FileError, Result};

/// The file's bytes; `None` if there is no such file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(FileError::new("can't read", path)(error)),
    }
}

/// The names of the files and folders there, sorted; empty if there is no such folder.
pub fn list(folder: &Path) -> Result<Vec<String>> {
    let failed = |error| FileError::new("can't list", folder)(error);
    let entries = match fs::read_dir(folder) {
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
pub fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if !is_absent(&error) => Err(FileError::new("can't remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a folder that holds nothing; whatever else is there stays.
pub fn remove_if_empty(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != ErrorKind::DirectoryNotEmpty && !is_absent(&error) => {
            Err(FileError::new("can't remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Copies a file in place of any that is there.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = write_atomic(to, |file| io::copy(&mut fs::File::open(from)?, file).map(drop));
    copied.map_err(FileError::new("can't write", to))
}

/// Makes the folder, and finds out whether files can be made in it.
pub fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(FileError::new("can't make", folder))?;
    probe(folder).map_err(FileError::new("can't write to", folder))
}

/// No such file, or no such folder on the way to it.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}
