//! Reading what requests send, within limits.

use std::fs::File;
use std::io::{Seek, Write};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::block_in_place;
use tokio::time::{Duration, Instant, timeout, timeout_at};

use super::refusal::Refusal;
use super::{Options, Shared};

/// What all requests together may hold.
pub(super) struct Limits {
    /// Bytes of bodies in memory.
    bytes: Arc<Semaphore>,
    /// Tables that come.
    spools: Arc<Semaphore>,
    /// Tables that are being labelled.
    tables: Arc<Semaphore>,
    /// Long texts of which tokens are made: that may take far more memory than they do.
    pub long_texts: Arc<Semaphore>,
}

/// Of long texts at a time.
const LONG_TEXTS: usize = 2;

/// Tables may come for each that is being labelled.
const SPOOLS: usize = 8;

/// Bytes of a table per second, at least.
const SLOWEST: u64 = 50_000;

/// Of all bodies in memory, unless a single one may be larger.
const BODIES: usize = 256 << 20;

impl Limits {
    pub fn new(options: &Options) -> Self {
        let bytes = BODIES.max(options.max_body).min(Semaphore::MAX_PERMITS);
        Self {
            bytes: Arc::new(Semaphore::new(bytes)),
            spools: Arc::new(Semaphore::new(SPOOLS * options.max_tables)),
            tables: Arc::new(Semaphore::new(options.max_tables)),
            long_texts: Arc::new(Semaphore::new(LONG_TEXTS)),
        }
    }
}

/// A body, and its share of the memory that all may have.
pub(super) struct Read {
    pub bytes: Vec<u8>,
    /// To be kept for as long as what was made of the bytes.
    pub share: Option<OwnedSemaphorePermit>,
}

impl Shared {
    /// The whole of a body.
    pub async fn read(&self, body: Body) -> Result<Read, Refusal> {
        let (limit, allowed) = (self.options.max_body, self.options.read_time_out);
        let mut read = Read { bytes: vec![], share: None };
        let all = self.each(body, limit as u64, "--max-body", |chunk| {
            let share = self.limits.bytes.clone().try_acquire_many_owned(chunk.len() as u32);
            let share = share.map_err(|_| Refusal::busy("too many requests at a time"))?;
            match &mut read.share {
                Some(whole) => whole.merge(share),
                none => *none = Some(share),
            }
            read.bytes.extend_from_slice(chunk);
            Ok(())
        });
        timeout(allowed, all).await.map_err(|_| late())??;
        Ok(read)
    }

    /// A body as a temporary file that is gone with it, and the right to have a table.
    pub async fn spool(&self, body: Body) -> Result<(File, OwnedSemaphorePermit), Refusal> {
        let comes = self.limits.spools.clone().try_acquire_owned();
        let _comes = comes.map_err(|_| Refusal::busy("too many tables are on their way already"))?;
        let failed = |error: std::io::Error| {
            tracing::error!(error = error.to_string(), "a table can't be kept");
            Refusal::failed()
        };
        let mut file = tempfile::tempfile().map_err(failed)?;
        self.each(body, self.options.max_table, "--max-table", |chunk| {
            block_in_place(|| file.write_all(chunk)).map_err(failed)
        })
        .await?;
        file.rewind().map_err(failed)?;
        let right = self.limits.tables.clone().try_acquire_owned();
        let right = right.map_err(|_| {
            Refusal::busy("as many tables as may be are labelled already; --max-tables allows more")
        })?;
        Ok((file, right))
    }

    /// Gives `each` the parts of a body, which has `limit` bytes at most, and of which enough come in time.
    async fn each(
        &self,
        mut body: Body,
        limit: u64,
        flag: &str,
        mut each: impl FnMut(&Bytes) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let allowed = self.options.read_time_out;
        let started = Instant::now();
        let mut size = 0;
        loop {
            // Who sends a byte now and then doesn't keep others from their turn, nor who has sent many.
            let slowest = started + allowed + Duration::from_secs(size / SLOWEST);
            let until = slowest.min(Instant::now() + allowed);
            let next = timeout_at(until, body.frame()).await.map_err(|_| late())?;
            let Some(frame) = next else { return Ok(()) };
            // Whoever has closed the connection isn't answered.
            let frame = frame.map_err(|_| Refusal::bad_request("the body ended too soon"))?;
            let Ok(chunk) = frame.into_data() else { continue };
            size += chunk.len() as u64;
            if size > limit {
                let message = format!("the body has more than {limit} bytes; {flag} allows more");
                return Err(Refusal::too_large(message));
            }
            each(&chunk)?;
        }
    }
}

fn late() -> Refusal {
    Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to come")
}
