//! A file that is gone through more than once.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Reads a file that others read, too.
pub(super) struct Pass {
    file: Arc<File>,
    position: u64,
}

impl Pass {
    /// From the byte at `position` on.
    pub fn new(file: Arc<File>, position: u64) -> Self {
        Self { file, position }
    }
}

impl Read for Pass {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.position)?;
        self.position += length as u64;
        Ok(length)
    }
}
