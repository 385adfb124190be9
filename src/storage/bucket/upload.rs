//! A file on its way into a bucket.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;

use object_store::path::Path as Name;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload, PutResult};

use super::connection::{self, Started};
use super::{Bucket, PART_SIZE, PARTS_AT_ONCE};

/// Up to here a file is sent by one request.
const WHOLE: usize = 16 << 20;

/// Takes a file's bytes, and sends them as they come. Nobody sees it before [`finish`](Self::finish); without that,
/// nothing is left of it.
pub struct Upload {
    bucket: Bucket,
    name: Name,
    buffer: Vec<u8>,
    /// Once it is larger than one request.
    parts: Option<Parts>,
}

struct Parts {
    upload: Box<dyn MultipartUpload>,
    sent: VecDeque<Started<object_store::Result<()>>>,
}

impl Upload {
    pub(super) fn new(bucket: Bucket, name: Name) -> Self {
        Self { bucket, name, buffer: vec![], parts: None }
    }

    /// Waits until all of it is there, in place of any file of that name.
    pub fn finish(mut self) -> io::Result<()> {
        let finished = match &self.parts {
            None => {
                let payload = PutPayload::from(mem::take(&mut self.buffer));
                connection::wait(self.bucket.store.put(&self.name, payload))
            }
            Some(_) => {
                let rest = mem::take(&mut self.buffer);
                if !rest.is_empty() {
                    self.send(rest)?;
                }
                self.complete()?
            }
        };
        finished.map_err(|error| self.bucket.told(&error))?;
        self.parts = None;
        Ok(())
    }

    /// Sends a part, after waiting for the earliest if too many are on their way.
    fn send(&mut self, part: Vec<u8>) -> io::Result<()> {
        let Parts { upload, sent } = match &mut self.parts {
            Some(parts) => parts,
            none => {
                let upload = connection::wait(self.bucket.store.put_multipart(&self.name));
                let upload = upload.map_err(|error| self.bucket.told(&error))?;
                none.insert(Parts { upload, sent: VecDeque::new() })
            }
        };
        if sent.len() == PARTS_AT_ONCE
            && let Some(earliest) = sent.pop_front()
        {
            earliest.wait()?.map_err(|error| self.bucket.told(&error))?;
        }
        sent.push_back(connection::start(upload.put_part(PutPayload::from(part))));
        Ok(())
    }

    fn complete(&mut self) -> io::Result<object_store::Result<PutResult>> {
        let Some(Parts { upload, sent }) = &mut self.parts else { return Err(super::changed()) };
        while let Some(part) = sent.pop_front() {
            part.wait()?.map_err(|error| self.bucket.told(&error))?;
        }
        Ok(connection::wait(upload.complete()))
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let most = if self.parts.is_some() { PART_SIZE as usize } else { WHOLE };
        let taken = bytes.len().min(most - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if taken < bytes.len() {
            let full = mem::take(&mut self.buffer);
            // What was held back for one request is several parts.
            for part in full.chunks(PART_SIZE as usize) {
                self.send(part.to_vec())?;
            }
        }
        match taken {
            0 if !bytes.is_empty() => self.write(bytes),
            taken => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes back what was sent, as far as that goes.
impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(Parts { mut upload, sent }) = self.parts.take() {
            sent.into_iter().for_each(Started::cancel);
            let _ = connection::wait(upload.abort());
        }
    }
}
