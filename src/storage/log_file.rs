//! Files that grow while training goes on, here or in a bucket.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::atomic::Temporary;
use super::{FileError, Folder, NewFile, Result, fetched};

/// So long, at most, what is written may wait to be seen.
const FLUSH_EVERY: Duration = Duration::from_secs(10);

/// A file that is written from its start to its end, and may be read before that. A bucket can't append: there, it is a
/// temporary file here, of which as much as there is is [published](Logged::publish) in place of what was.
pub struct LogFile {
    writer: BufWriter<File>,
    /// In bytes.
    len: u64,
    flushed_at: Instant,
    shared: Arc<Shared>,
}

/// As much of a [`LogFile`] as was written at one time.
#[derive(Clone)]
pub struct Logged {
    shared: Arc<Shared>,
    len: u64,
}

struct Shared {
    folder: Folder,
    name: String,
    file: File,
    /// Until it has its name.
    unnamed: Mutex<Option<Temporary>>,
    /// What another thread has failed with to publish it.
    failed: Mutex<Option<FileError>>,
}

impl LogFile {
    /// Starts the file `name` in `folder`, which is made. Until it is [named](Self::take_name) or published, a file of that name
    /// stays as it is.
    pub fn create(folder: &Folder, name: &str) -> Result<Self> {
        folder.make()?;
        let begin = || match folder.local() {
            Some(path) => {
                let temporary = Temporary::new(path, OsStr::new(name))?;
                Ok((temporary.file().try_clone()?, Some(temporary)))
            }
            None => Ok((tempfile::tempfile().map_err(fetched::in_temporary_folder)?, None)),
        };
        let begun =
            begin().and_then(|(file, temporary)| Ok((BufWriter::new(file.try_clone()?), file, temporary)));
        let (writer, file, temporary) =
            begun.map_err(FileError::new("can't write", folder.path().join(name)))?;
        let shared = Shared {
            folder: folder.clone(),
            name: name.to_owned(),
            file,
            unnamed: Mutex::new(temporary),
            failed: Mutex::default(),
        };
        Ok(Self { writer, len: 0, flushed_at: Instant::now(), shared: Arc::new(shared) })
    }

    /// Writes more.
    ///
    /// # Errors
    /// And those of what was published meanwhile.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(failed) = self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(failed);
        }
        self.writer.write_all(bytes).map_err(|error| self.shared.error(error))?;
        self.len += bytes.len() as u64;
        if self.flushed_at.elapsed() >= FLUSH_EVERY { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.flushed_at = Instant::now();
        self.writer.flush().map_err(|error| self.shared.error(error))
    }

    /// Has it take its name here, in place of any file that has it. In a bucket, that waits until it is published.
    pub fn take_name(&mut self) -> Result<()> {
        self.flush()?;
        self.shared.take_name().map_err(|error| self.shared.error(error))
    }

    /// What is written so far.
    pub fn logged(&mut self) -> Result<Logged> {
        self.flush()?;
        Ok(Logged { shared: self.shared.clone(), len: self.len })
    }
}

impl Logged {
    /// Brings it to where it stays: to the disk, or the bucket. What that fails with is told where the file is
    /// [written](LogFile::append) next.
    pub fn publish(&self) {
        let Self { shared, len } = self;
        let published = match shared.folder.is_local() {
            true => {
                let named = shared.take_name().and_then(|()| shared.file.sync_data());
                named.map_err(|error| shared.error(error))
            }
            false => NewFile::create(&shared.folder, &shared.name).and_then(|mut upload| {
                let mut written = Beginning { file: &shared.file, at: 0, end: *len };
                io::copy(&mut written, &mut upload).map_err(|error| shared.error(error))?;
                upload.finish()
            }),
        };
        *shared.failed.lock().unwrap_or_else(PoisonError::into_inner) = published.err();
    }
}

impl Shared {
    fn take_name(&self) -> io::Result<()> {
        let Some(path) = self.folder.local() else { return Ok(()) };
        let unnamed = self.unnamed.lock().unwrap_or_else(PoisonError::into_inner).take();
        unnamed.map_or(Ok(()), |unnamed| unnamed.persist(&path.join(&self.name)))
    }

    fn error(&self, source: io::Error) -> FileError {
        FileError::new("can't write", self.folder.path().join(&self.name))(source)
    }
}

/// The first bytes of a file that somebody goes on writing.
struct Beginning<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Beginning<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(bytes.len());
        let read = self.file.read_at(&mut bytes[..left], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn another_file_of_the_name_stays_until_it_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "before").unwrap();
        let mut log = LogFile::create(&Folder::new(folder.path()), "log").unwrap();
        log.append(b"a").unwrap();
        let logged = log.logged().unwrap();
        log.append(b"b").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"before");
        logged.publish();
        assert_eq!(fs::read(&path).unwrap(), b"a");
        log.append(b"c").unwrap();
        log.logged().unwrap().publish();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_could_not_be_published_is_told_at_the_next_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = LogFile::create(&Folder::new(folder.path()), "log").unwrap();
        fs::create_dir(folder.path().join("log")).unwrap();
        log.append(b"a").unwrap();
        log.logged().unwrap().publish();
        let error = log.append(b"b").unwrap_err().to_string();
        assert!(error.starts_with(&format!("can't write {}/log: ", folder.path().display())), "{error}");
        // Once.
        log.append(b"b").unwrap();
    }
}
