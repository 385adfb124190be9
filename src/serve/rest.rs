//! What is still sent of a request that is refused.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use hyper::body::{Frame, SizeHint};
use hyper::header::EXPECT;
use tokio::time::timeout;

/// What nobody has read of a request's body.
pub(super) struct Rest(Lent);

/// A body of which [`Rest`] has a hold, too.
#[derive(Clone)]
struct Lent {
    body: Arc<Mutex<Body>>,
    /// Its client sends it now: some wait until they are asked to.
    is_sent: Arc<AtomicBool>,
}

impl Rest {
    /// Of a request, which goes on with its body.
    pub fn of(request: Request) -> (Request, Self) {
        let (head, body) = request.into_parts();
        let is_sent = !head.headers.contains_key(EXPECT);
        let lent = Lent { body: Arc::new(Mutex::new(body)), is_sent: Arc::new(is_sent.into()) };
        (Request::from_parts(head, Body::new(lent.clone())), Self(lent))
    }

    /// Reads on for a while: who is still sending doesn't read the answer, and a connection that is closed over it may take the
    /// answer with it.
    pub async fn read(self) {
        const TIME: Duration = Duration::from_secs(2);
        const BYTES: usize = 256 << 20;
        if !self.0.is_sent.load(Ordering::Relaxed) {
            return;
        }
        let rest = async {
            let mut size = 0;
            while let Some(Ok(frame)) = poll_fn(|context| self.0.poll(context)).await
                && size <= BYTES
            {
                size += frame.data_ref().map_or(0, Bytes::len);
            }
        };
        // Whoever is slower is cut off.
        let _ = timeout(TIME, rest).await;
    }
}

impl Lent {
    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        hyper::body::Body::poll_frame(Pin::new(&mut *self.lock()), context)
    }

    fn lock(&self) -> MutexGuard<'_, Body> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.is_sent.store(true, Ordering::Relaxed);
        self.poll(context).map(|frame| frame.map(|frame| frame.map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        self.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().size_hint()
    }
}
