//! A part of a file that moves over it.

use std::io::{self, Read};

/// Where a file's bytes come from.
pub(super) type Source = Box<dyn Read + Send>;

/// The bytes of a file from some position on, of which a fixed number can always be seen.
pub(super) struct Window {
    source: Source,
    /// What is read at a time, in bytes.
    chunk: usize,
    /// How many bytes can be seen, if the file has as many left.
    reach: usize,
    bytes: Vec<u8>,
    /// Where the window starts in `bytes`.
    start: usize,
    /// Whether `bytes` go on to the end of the file.
    ended: bool,
}

impl Window {
    pub fn new(source: Source, chunk: usize, reach: usize) -> Self {
        Self { source, chunk, reach, bytes: Vec::new(), start: 0, ended: false }
    }

    /// Reads until the window reaches as far as it should; false at the end of the file.
    pub fn fill(&mut self) -> io::Result<bool> {
        if !self.ended && self.bytes().len() < self.reach {
            self.bytes.drain(..self.start);
            self.start = 0;
            while !self.ended && self.bytes.len() < self.reach {
                // Doubling what is there would take more than a chunk.
                self.bytes.reserve_exact(self.chunk);
                let read = self.source.by_ref().take(self.chunk as u64).read_to_end(&mut self.bytes)?;
                self.ended = read < self.chunk;
            }
        }
        Ok(!self.bytes().is_empty())
    }

    /// All that is there.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// As far as the window reaches, however much more is there.
    pub fn ahead(&self) -> &[u8] {
        let bytes = self.bytes();
        &bytes[..bytes.len().min(self.reach)]
    }

    /// Whether [`Self::ahead`] goes on to the end of the file.
    pub fn ahead_is_all(&self) -> bool {
        self.ended && self.bytes().len() <= self.reach
    }

    /// Moves on by `length`, which must be there.
    pub fn advance(&mut self, length: usize) {
        self.start += length;
    }
}
