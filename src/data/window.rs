//! A part of a file that moves over it.

use std::io::{self, Read};

/// Where a file's bytes come from.
pub(super) type Source = Box<dyn Read + Send>;

/// The bytes of a file from some position on, of which no more are held than were asked for, and a chunk.
pub(super) struct Window {
    source: Source,
    /// What is read at a time, in bytes.
    chunk: usize,
    /// How many bytes can be seen at most.
    most: usize,
    bytes: Vec<u8>,
    /// Where the window starts in `bytes`.
    start: usize,
    /// Whether `bytes` go on to the end of the file.
    ended: bool,
}

impl Window {
    pub fn new(source: Source, chunk: usize, most: usize) -> Self {
        Self { source, chunk, most, bytes: Vec::new(), start: 0, ended: false }
    }

    /// Reads if few bytes are left to be seen; false at the end of the file.
    pub fn fill(&mut self) -> io::Result<bool> {
        // A part of a chunk, so that few bytes are moved; and the marks that a file may start with.
        self.reach((self.chunk / 4).max(4).min(self.most))?;
        Ok(!self.bytes().is_empty())
    }

    /// Reads on, so that twice as much can be seen.
    pub fn grow(&mut self) -> io::Result<()> {
        self.reach((2 * self.bytes().len()).clamp(1, self.most))
    }

    /// Reads until `length` bytes can be seen, if the file has as many left.
    fn reach(&mut self, length: usize) -> io::Result<()> {
        if !self.ended && self.bytes().len() < length {
            self.bytes.drain(..self.start);
            self.start = 0;
            while !self.ended && self.bytes.len() < length {
                // Doubling what is there would take more than a chunk.
                self.bytes.reserve_exact(self.chunk);
                let read = self.source.by_ref().take(self.chunk as u64).read_to_end(&mut self.bytes)?;
                self.ended = read < self.chunk;
            }
        }
        Ok(())
    }

    /// All that is there.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// What can be seen, however much more is there.
    pub fn ahead(&self) -> &[u8] {
        let bytes = self.bytes();
        &bytes[..bytes.len().min(self.most)]
    }

    /// What lies beyond [`Self::ahead`].
    pub fn beyond(&self) -> Beyond {
        match self.bytes().len() {
            length if self.ended && length <= self.most => Beyond::End,
            length if length >= self.most => Beyond::Limit,
            _ => Beyond::More,
        }
    }

    /// Moves on by `length`, which must be there.
    pub fn advance(&mut self, length: usize) {
        self.start += length;
    }
}

/// Why a window shows no more than it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beyond {
    /// The file ends.
    End,
    /// More would be too much.
    Limit,
    /// It has yet to [grow](Window::grow).
    More,
}
