//! Connections: how many, for how long, and how they end.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_tcp_user_timeout;
use socket2::{SockFilter, SockRef};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use super::{Observer, Shared, routes};

/// Takes connections until the server is to stop, and answers what was taken.
///
/// # Errors
/// A listener that can't be used.
pub(super) async fn run(
    listener: TcpListener,
    shared: Arc<Shared>,
    observer: &dyn Observer,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let server = Server {
        router: routes::router(shared.clone()),
        room: Arc::new(Semaphore::new(shared.options.max_connections)),
        graceful: GracefulShutdown::new(),
        shared,
    };
    let control = server.shared.control.clone();
    let stopped = control.stopped();
    tokio::pin!(stopped);
    let why = loop {
        tokio::select! {
            why = &mut stopped => break why,
            (stream, permit) = server.accept(&listener) => server.take(stream, permit),
        }
    };
    observer.stopping(&why);
    server.drain(listener.into_std()?).await;
    Ok(())
}

struct Server {
    router: Router,
    room: Arc<Semaphore>,
    graceful: GracefulShutdown,
    shared: Arc<Shared>,
}

impl Server {
    /// The next connection, once there is room for it.
    async fn accept(&self, listener: &tokio::net::TcpListener) -> (TcpStream, Option<OwnedSemaphorePermit>) {
        // The system may be out of file descriptors: some will be given back.
        const PAUSE: Duration = Duration::from_millis(20);
        // It is never closed.
        let permit = self.room.clone().acquire_owned().await.ok();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return (stream, permit),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    fn take(&self, stream: TcpStream, permit: Option<OwnedSemaphorePermit>) {
        /// Bytes of a request's head, at most.
        const HEAD: usize = 16 << 10;
        let options = &self.shared.options;
        // Where they can't be had, it is slower, or ends later.
        let _ = stream.set_nodelay(true);
        // Nor does it wait for ever for somebody who doesn't read.
        let _ = set_tcp_user_timeout(&stream, options.time_out.as_millis().try_into().unwrap_or(u32::MAX));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(options.read_time_out)
            .max_buf_size(HEAD)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(self.router.clone()));
        let watched = self.graceful.watch(connection);
        let connections = self.shared.metrics.connections.clone();
        connections.inc();
        tokio::spawn(async move {
            // How it ended is its client's business.
            let _ = watched.await;
            connections.dec();
            drop(permit);
        });
    }

    /// Answers all who are connected already, and ends.
    async fn drain(self, listener: TcpListener) {
        /// Until then, clients that ask again on the same connection are answered, and told to come no more: a connection that
        /// is closed while a request is on its way would lose it.
        const LAST: Duration = Duration::from_secs(1);
        const STEP: Duration = Duration::from_millis(10);
        /// A program for the system's packet filter: `BPF_RET | BPF_K`, of no byte of a packet.
        const DROP: SockFilter = SockFilter::new(0x06, 0, 0, 0);
        let end = Instant::now() + LAST;
        // Who asks to connect from now on is left to ask again, and is refused once there is no listener: a connection that were
        // made between the last look and the listener's end would be lost with what was sent on it.
        let _ = SockRef::from(&listener).attach_filter(&[DROP]);
        // Those that the system has taken for us: nobody else will answer them.
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_ok()
                        && let Ok(stream) = TcpStream::from_std(stream)
                    {
                        self.take(stream, None);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock || Instant::now() > end => break,
                // One that has gone again, or there are no file descriptors just now.
                Err(_) => sleep(STEP).await,
            }
        }
        drop(listener);
        while self.graceful.count() > 0 && Instant::now() < end {
            sleep(STEP).await;
        }
        if timeout(self.shared.options.drain_time_out, self.graceful.shutdown()).await.is_err() {
            tracing::error!("not all that was taken was answered in time");
        }
    }
}
