//! A time limit on waiting for the other hosts of a slice.
//!
//! They meet in the runtime alone, where a call that waits for a host that is gone never returns, and can't be
//! interrupted. So a thread of its own watches how long such a wait takes, and has the last word.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Error;

/// What is done when the others don't come: it must end the process, since the wait goes on.
pub type OnTimeout = Arc<dyn Fn(Error) + Send + Sync>;

/// Watches the waits of one connection.
#[derive(Clone)]
pub(super) struct Watch(Arc<Shared>);

struct Shared {
    limit: Duration,
    on_timeout: OnTimeout,
    waits: Mutex<Waits>,
}

/// The waits that are under way: their number, what for, since when. More than one thread may wait.
#[derive(Default)]
struct Waits {
    started: u64,
    open: Vec<(u64, &'static str, Instant)>,
    watched: bool,
}

impl Watch {
    pub fn new(limit: Duration, on_timeout: OnTimeout) -> Self {
        Self(Arc::new(Shared { limit, on_timeout, waits: Mutex::default() }))
    }

    /// Runs `wait`, and acts if it takes longer than the limit; `phase` is what goes on, for the message.
    pub fn during<T>(&self, phase: &'static str, wait: impl FnOnce() -> T) -> T {
        let id = {
            let mut waits = self.0.waits();
            waits.started += 1;
            let id = waits.started;
            waits.open.push((id, phase, Instant::now()));
            if !waits.watched {
                waits.watched = true;
                let shared = Arc::downgrade(&self.0);
                std::thread::spawn(move || {
                    // It ends with the last handle of what it watches for.
                    while let Some(shared) = shared.upgrade() {
                        shared.watch_once();
                    }
                });
            }
            id
        };
        let result = wait();
        self.0.waits().open.retain(|(open, ..)| *open != id);
        result
    }
}

impl Shared {
    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until the oldest wait may have run out, or for a moment, and acts if it has.
    fn watch_once(&self) {
        const MOMENT: Duration = Duration::from_millis(200);
        let oldest = self.waits().open.first().copied();
        match oldest {
            Some((_, phase, since)) if since.elapsed() >= self.limit => {
                (self.on_timeout)(Error::Timeout { phase, waited: since.elapsed() });
                std::thread::sleep(MOMENT);
            }
            Some((.., since)) => std::thread::sleep((self.limit.saturating_sub(since.elapsed())).min(MOMENT)),
            None => std::thread::sleep(MOMENT),
        }
    }
}
