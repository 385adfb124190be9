//! A file on its way into a bucket.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::time::Duration;

use object_store::path::Path as Name;
use object_store::{MultipartUpload, ObjectMeta, ObjectStoreExt, PutPayload};

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
    /// What was there before, and how many bytes are to be there.
    before: Option<ObjectMeta>,
    size: u64,
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
                let put = self.bucket.ask(|| self.bucket.connection.store.put(&self.name, payload.clone()));
                put.map(drop).map_err(|error| self.bucket.told(&error))
            }
            Some(_) => {
                let rest = mem::take(&mut self.buffer);
                if !rest.is_empty() {
                    self.send(rest)?;
                }
                self.complete()
            }
        };
        finished?;
        self.parts = None;
        Ok(())
    }

    /// Sends a part, after waiting for the earliest if too many are on their way.
    fn send(&mut self, part: Vec<u8>) -> io::Result<()> {
        let Parts { upload, size, sent, .. } = match &mut self.parts {
            Some(parts) => parts,
            none => {
                let before = self.bucket.head(&self.name)?;
                let Bucket { connection, .. } = &self.bucket;
                let upload = self.bucket.ask(|| connection.patient.put_multipart(&self.name));
                let upload = upload.map_err(|error| self.bucket.told(&error))?;
                none.insert(Parts { upload, before, size: 0, sent: VecDeque::new() })
            }
        };
        if sent.len() == PARTS_AT_ONCE
            && let Some(earliest) = sent.pop_front()
        {
            earliest.wait()?.map_err(|error| self.bucket.told(&error))?;
        }
        *size += part.len() as u64;
        sent.push_back(connection::start(upload.put_part(PutPayload::from(part))));
        Ok(())
    }

    fn complete(&mut self) -> io::Result<()> {
        let Some(Parts { upload, before, size, sent }) = &mut self.parts else { return Ok(()) };
        while let Some(part) = sent.pop_front() {
            part.wait()?.map_err(|error| self.bucket.told(&error))?;
        }
        let Err(error) = connection::wait(upload.complete()) else { return Ok(()) };
        // The answer may have been lost: asked again, the store no longer knows the upload.
        let generation = |meta: &Option<ObjectMeta>| meta.as_ref().map(|meta| meta.version.clone());
        let now = connection::wait(self.bucket.connection.store.head(&self.name)).ok();
        match now.as_ref().is_some_and(|now| now.size == *size) && generation(&now) != generation(before) {
            true => Ok(()),
            false => Err(self.bucket.told(&error)),
        }
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
        if let Some(Parts { mut upload, sent, .. }) = self.parts.take() {
            sent.into_iter().for_each(Started::cancel);
            // In an outage, there is no point in waiting for long once more.
            const LIMIT: Duration = Duration::from_secs(10);
            let abort = async { tokio::time::timeout(LIMIT, upload.abort()).await };
            let _ = connection::wait(abort);
        }
    }
}
