//! A file that is being written, here or in a bucket.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use super::bucket::{Bucket, Upload};
use super::{FileError, Folder, Result};

pub struct NewFile {
    path: PathBuf,
    sink: Sink,
}

enum Sink {
    Local(BufWriter<File>),
    Bucket(Box<Upload>),
}

impl NewFile {
    /// Starts to write `name` in `folder`, in place of any file of that name; in a bucket, nobody sees it before its end.
    pub fn create(folder: &Folder, name: &str) -> Result<Self> {
        let path = folder.path().join(name);
        let sink = match folder.is_local() {
            true => File::create(&path).map(|file| Sink::Local(BufWriter::with_capacity(1 << 20, file))),
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
                file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all())
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
