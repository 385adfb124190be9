//! Files that appear whole or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// How the name of a file ends that is still being written: what is left of one is of no use.
pub const PART: &str = ".part";

/// Writes a file by a temporary one in the same folder, which is synced to disk and renamed at the end: a reader, or
/// a run that is cut short, never meets half a file. The folder is made if it isn't there.
pub fn write_atomic<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
) -> Result<(), E> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(PART);
    // Otherwise temporary files are for their owner alone; the umask still applies.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder)?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file());
    write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// Makes the names in a folder, too, outlive a power cut.
pub(super) fn sync_folder<E: From<io::Error>>(folder: &Path) -> Result<(), E> {
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(())
}
