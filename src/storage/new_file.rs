//! A file that is being written, here or in a bucket.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::num::NonZeroU64;
use std::path::PathBuf;

use super::bucket::{Bucket, Upload};
use super::{FileError, Folder, Result};

pub struct NewFile {
    path: PathBuf,
    sink: Sink,
}

enum Sink {
    Local(BufWriter<Streamed>),
    Bucket(Box<Upload>),
}

/// A file that goes to the disk as it is written, and doesn't stay in the system's cache: to find memory there for gigabytes
/// that nobody is about to read takes processor time that others need.
struct Streamed {
    file: File,
    /// How much of it is written, and how much of that is on the disk.
    written: u64,
    synced: u64,
}

impl Streamed {
    const PART: u64 = 64 << 20;
}

impl Write for Streamed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.file.write(bytes)?;
        self.written += taken as u64;
        if let Some(part) =
            NonZeroU64::new(self.written - self.synced).filter(|part| part.get() >= Self::PART)
        {
            self.file.sync_data()?;
            leave_cache(&self.file, self.synced, part);
            self.synced = self.written;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Advice: where it isn't taken, or can't be given, nothing is lost.
fn leave_cache(file: &File, start: u64, length: NonZeroU64) {
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, start, Some(length), rustix::fs::Advice::DontNeed);
    #[cfg(not(target_os = "linux"))]
    let _ = (file, start, length);
}

impl NewFile {
    /// Starts to write `name` in `folder`, in place of any file of that name; in a bucket, nobody sees it before its end.
    pub fn create(folder: &Folder, name: &str) -> Result<Self> {
        let path = folder.path().join(name);
        let sink = match folder.is_local() {
            true => File::create(&path).map(|file| {
                let streamed = Streamed { file, written: 0, synced: 0 };
                Sink::Local(BufWriter::with_capacity(1 << 20, streamed))
            }),
            false => Bucket::open(folder.path())
                .and_then(|bucket| bucket.upload(name))
                .map(|upload| Sink::Bucket(Box::new(upload))),
        };
        match sink {
            Ok(sink) => Ok(Self { path, sink }),
            Err(error) => Err(FileError::new("can't write", path)(error)),
        }
    }

    /// Waits until the file is where it will stay: on the disk, or in the bucket.
    pub fn finish(self) -> Result<()> {
        let finished = match self.sink {
            Sink::Local(file) => {
                let streamed = file.into_inner().map_err(io::IntoInnerError::into_error);
                streamed.and_then(|streamed| streamed.file.sync_all())
            }
            Sink::Bucket(upload) => upload.finish(),
        };
        finished.map_err(FileError::new("can't write", self.path))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.sink {
            Sink::Local(file) => file.write(bytes),
            Sink::Bucket(upload) => upload.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Local(file) => file.flush(),
            Sink::Bucket(upload) => upload.flush(),
        }
    }
}
