//! Files that appear whole or not at all.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
#[cfg(target_os = "linux")]
use std::sync::atomic::{AtomicU64, Ordering};

use super::bucket::Bucket;
use super::{Folder, is_bucket};

/// How the name of a file ends that is still being written, which starts with a `.` and the name that it is to have:
/// what is left of one is of no use.
pub const PART: &str = ".part";

/// Writes a file by a temporary one in the same folder, which is synced to disk and renamed at the end: a reader, or
/// a run that is cut short, never meets half a file. The folder is made if it isn't there, and stays if the file is
/// written. What is no file, such as a pipe or `/dev/stdout`, is written to as it is; a link stays one, and its target is
/// written. A file of a bucket is a temporary one here until it is whole.
pub fn write_atomic<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
) -> Result<(), E> {
    if is_bucket(path) {
        return write_to_bucket(path, write);
    }
    if is_special(path) {
        let file = match descriptor(path) {
            // What is open has a place in its file, and may append.
            Some(1) => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            Some(2) => File::from(io::stderr().as_fd().try_clone_to_owned()?),
            _ => File::options().write(true).open(path)?,
        };
        let mut writer = BufWriter::new(&file);
        write(&mut writer)?;
        return Ok(writer.flush()?);
    }
    let path = &link_target(path);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    in_folder(folder, || write_named(folder, path, write))
}

/// The path that a link leads to, whether or not something is there; of what is no link, its own.
pub fn link_target(path: &Path) -> PathBuf {
    // As many as systems follow.
    const LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let Ok(target) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    path
}

/// Makes `folder` if it isn't there, and those on the way to it; they stay if what is then written is.
pub(super) fn in_folder<E: From<io::Error>>(
    folder: &Path,
    write: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing = folder.ancestors().take_while(is_missing).collect::<Vec<_>>();
    make_folder(folder)?;
    let written = write();
    if written.is_err() {
        // Unless somebody has put something there meanwhile.
        missing.into_iter().for_each(|folder| _ = fs::remove_dir(folder));
    }
    written
}

/// [`write_atomic`], in a folder that is there.
fn write_named<E: From<io::Error>>(
    folder: &Path,
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
) -> Result<(), E> {
    let temporary = Temporary::new(folder, path.file_name().unwrap_or_default())?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary.file());
    write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    temporary.file().sync_all()?;
    temporary.persist(path)?;
    Ok(sync_folder(folder)?)
}

fn write_to_bucket<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
) -> Result<(), E> {
    let (folder, name) = Folder::of(path);
    let bucket = Bucket::open(folder.path())?;
    // Before the long work that `write` may be.
    bucket.probe()?;
    let mut file = tempfile::tempfile()?;
    let mut writer = BufWriter::with_capacity(1 << 20, &file);
    write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    file.rewind()?;
    let mut upload = bucket.upload(&name)?;
    io::copy(&mut file, &mut upload)?;
    Ok(upload.finish()?)
}

/// Makes a folder, and those on the way to it.
fn make_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder).map_err(|error| match error.kind() {
        // As a file.
        ErrorKind::AlreadyExists => ErrorKind::NotADirectory.into(),
        _ => error,
    })
}

/// The number of the process's open file that a path stands for by its name.
fn descriptor(path: &Path) -> Option<u32> {
    match path.to_str()? {
        "/dev/stdout" => Some(1),
        "/dev/stderr" => Some(2),
        path => path.strip_prefix("/dev/fd/").or_else(|| path.strip_prefix("/proc/self/fd/"))?.parse().ok(),
    }
}

/// Whether a path stands for the process's standard output.
pub fn is_stdout(path: &Path) -> bool {
    descriptor(path) == Some(1)
}

/// Whether a path is a device, a pipe or the like, or stands for one of this process's open files.
fn is_special(path: &Path) -> bool {
    let leads_to_proc = fs::read_link(path).is_ok_and(|target| target.starts_with("/proc"));
    descriptor(path).is_some()
        || leads_to_proc
        || fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// A file that has no name yet.
pub(super) enum Temporary {
    /// Not in any folder: nothing is left of it if the process ends.
    #[cfg(target_os = "linux")]
    Unnamed {
        file: File,
        part: PathBuf,
    },
    Named(tempfile::NamedTempFile),
}

impl Temporary {
    pub fn new(folder: &Path, name: &OsStr) -> io::Result<Self> {
        let prefix = format!(".{}.", name.to_string_lossy());
        // Otherwise temporary files are for their owner alone; the umask still applies.
        const MODE: u32 = 0o666;
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{Mode, OFlags, open};
            static MADE: AtomicU64 = AtomicU64::new(0);
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            // Not every file system can.
            if let Ok(file) = open(folder, flags, Mode::from_raw_mode(MODE)) {
                let number = MADE.fetch_add(1, Ordering::Relaxed);
                let part = folder.join(format!("{prefix}{}-{number}{PART}", std::process::id()));
                return Ok(Self::Unnamed { file: file.into(), part });
            }
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(PART);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(MODE));
        Ok(Self::Named(builder.tempfile_in(folder).map_err(without_path)?))
    }

    pub fn file(&self) -> &File {
        match self {
            #[cfg(target_os = "linux")]
            Self::Unnamed { file, .. } => file,
            Self::Named(file) => file.as_file(),
        }
    }

    /// Gives it its name, in place of any file of that name.
    pub fn persist(self, path: &Path) -> io::Result<()> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Unnamed { file, part } => {
                use std::os::fd::AsRawFd;

                use rustix::fs::{AtFlags, CWD, linkat};
                let open = format!("/proc/self/fd/{}", file.as_raw_fd());
                // A link can't take another's place, a rename can.
                linkat(CWD, open, CWD, &part, AtFlags::SYMLINK_FOLLOW)?;
                fs::rename(&part, path).inspect_err(|_| _ = fs::remove_file(&part))
            }
            Self::Named(file) => file.persist(path).map(drop).map_err(|error| error.error),
        }
    }
}

/// An error of `tempfile`'s, which names a file that nobody knows.
pub(super) fn without_path(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::Other => error,
        kind => kind.into(),
    }
}

/// Whether files can be made in `folder`, to be told before long work.
pub(super) fn probe(folder: &Path) -> io::Result<()> {
    Temporary::new(folder, OsStr::new("probe")).map(drop)
}

/// Makes the names in a folder, too, outlive a power cut, where the file system can.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    match File::open(folder)?.sync_all() {
        Err(error) if !matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
            return Err(error);
        }
        _ => {}
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_stays_one_whether_or_not_it_leads_to_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second, target] =
            ["first", "second", "below/target"].map(|name| folder.path().join(name));
        symlink("second", &first).unwrap();
        symlink("below/target", &second).unwrap();
        for text in ["a", "b"] {
            write_atomic(&first, |file| file.write_all(text.as_bytes())).unwrap();
            assert!(first.is_symlink() && second.is_symlink());
            assert_eq!(fs::read(&target).unwrap(), text.as_bytes());
        }
    }
}
