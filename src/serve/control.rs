//! How a server is told what to do from outside.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Tells a server to stop, or to load its models anew. Clones tell the same one.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

struct Inner {
    /// How often it was asked to load anew.
    reloads: Mutex<u64>,
    /// That has changed, or it is to stop.
    changed: Condvar,
    /// Why no request is taken any more.
    stop: watch::Sender<Option<String>>,
}

impl Default for Control {
    fn default() -> Self {
        Self(Arc::new(Inner {
            reloads: Mutex::default(),
            changed: Condvar::new(),
            stop: watch::Sender::new(None),
        }))
    }
}

impl Control {
    /// Takes no more requests, answers those that were taken, and ends.
    pub fn stop(&self, why: &str) {
        self.0.stop.send_if_modified(|stop| {
            let is_first = stop.is_none();
            stop.get_or_insert_with(|| why.to_owned());
            is_first
        });
        // Not between another thread's look at it and its sleep.
        let _reloads = self.lock();
        self.0.changed.notify_all();
    }

    /// Loads the models and reads the keys anew.
    pub fn reload(&self) {
        *self.lock() += 1;
        self.0.changed.notify_all();
    }

    /// Whether requests are no longer taken.
    pub(super) fn is_stopped(&self) -> bool {
        self.0.stop.borrow().is_some()
    }

    /// Waits until requests are no longer taken, and says why.
    pub(super) async fn stopped(&self) -> String {
        let mut stop = self.0.stop.subscribe();
        // Its sender is here.
        let why = stop.wait_for(Option::is_some).await.map(|why| why.clone());
        why.ok().flatten().unwrap_or_default()
    }

    /// How often it was asked to load anew.
    pub(super) fn reloads(&self) -> u64 {
        *self.lock()
    }

    /// Waits until it was asked to load anew more often than `before`, or to stop, or for `limit`, if there is one.
    pub(super) fn wait(&self, before: u64, limit: Option<Duration>) {
        let reloads = self.lock();
        let goes_on = |reloads: &mut u64| *reloads == before && !self.is_stopped();
        match limit {
            Some(limit) => drop(self.0.changed.wait_timeout_while(reloads, limit, goes_on)),
            None => drop(self.0.changed.wait_while(reloads, goes_on)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.0.reloads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
