//! What stands for a bucket in a build without the feature `cloud`: there is none.

use std::io::{self, Write};
use std::path::Path;

use super::{Replaced, Version};

/// Never made.
#[derive(Clone, Copy, Debug)]
pub enum Bucket {}

pub type Upload = Bucket;

impl Bucket {
    pub fn open(_: &Path) -> io::Result<Self> {
        const MISSING: &str = "this bert-xla was built without Cloud Storage: build it with the feature `cloud`, which is one of the default ones";
        Err(io::Error::new(io::ErrorKind::Unsupported, MISSING))
    }

    pub fn read(&self, _: &str) -> io::Result<Option<(Vec<u8>, Version)>> {
        match *self {}
    }

    pub fn download(&self, _: &str, _: &mut dyn Write) -> io::Result<u64> {
        match *self {}
    }

    pub fn write(&self, _: &str, _: &[u8]) -> io::Result<()> {
        match *self {}
    }

    pub fn replace(&self, _: &str, _: &[u8], _: Option<&Version>) -> io::Result<Replaced> {
        match *self {}
    }

    pub fn upload(&self, _: &str) -> io::Result<Upload> {
        match *self {}
    }

    pub fn list(&self) -> io::Result<Vec<String>> {
        match *self {}
    }

    pub fn size(&self, _: &str) -> io::Result<Option<u64>> {
        match *self {}
    }

    pub fn exists(&self, _: &str) -> io::Result<bool> {
        match *self {}
    }

    pub fn remove(&self, _: &str) -> io::Result<()> {
        match *self {}
    }

    pub fn copy(&self, _: &Self, _: &str) -> io::Result<bool> {
        match *self {}
    }

    pub fn probe(&self) -> io::Result<()> {
        match *self {}
    }
}

impl Write for Bucket {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        match *self {}
    }

    fn flush(&mut self) -> io::Result<()> {
        match *self {}
    }
}

impl Bucket {
    /// An upload's.
    pub fn finish(self) -> io::Result<()> {
        match self {}
    }
}

#[cfg(test)]
mod tests {
    use crate::storage::Folder;

    #[test]
    fn an_address_is_no_path() {
        let error = Folder::new("gs://bucket/run").make().unwrap_err().to_string();
        assert!(
            error.starts_with("can't write to gs://bucket/run: this bert-xla was built without"),
            "{error}"
        );
        assert!(!std::path::Path::new("gs:").exists());
    }
}
