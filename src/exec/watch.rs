//! A time limit on waiting for the other hosts of a slice.
//!
//! They meet in the runtime alone, where a call that waits for a host that is gone never returns, and can't be
//! interrupted. So a thread of its own watches how long such a wait takes, and has the last word.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Error;
use super::backend::DeviceOptions;

/// What is done when the others don't come: it must end the process, since the wait goes on.
pub type OnTimeout = Arc<dyn Fn(Error) + Send + Sync>;

/// What is done when a wait takes long: its phase, and how long it has taken.
pub type OnWait = Arc<dyn Fn(&'static str, Duration) + Send + Sync>;

/// Watches the waits of one connection.
#[derive(Clone)]
pub(super) struct Watch(Arc<Shared>);

struct Shared {
    limit: Duration,
    on_timeout: OnTimeout,
    /// After how long a wait is told of.
    notice: Duration,
    on_wait: OnWait,
    waits: Mutex<Waits>,
}

/// The waits that are under way: their number, what for, since when. More than one thread may wait.
#[derive(Default)]
struct Waits {
    started: u64,
    open: Vec<(u64, &'static str, Instant)>,
    watched: bool,
    /// The phases that were told of.
    told: Vec<&'static str>,
}

impl Watch {
    pub fn new(options: &DeviceOptions) -> Self {
        Self(Arc::new(Shared {
            limit: options.slice_timeout,
            on_timeout: options.on_timeout.clone(),
            notice: options.wait_notice,
            on_wait: options.on_wait.clone(),
            waits: Mutex::default(),
        }))
    }

    /// Runs `wait`, and acts if it takes longer than the limit; `phase` is what goes on, for the message.
    pub fn during<T>(&self, phase: &'static str, wait: impl FnOnce() -> T) -> T {
        let _open = self.open(phase);
        wait()
    }

    fn open(&self, phase: &'static str) -> Open<'_> {
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
        Open { shared: &self.0, id }
    }

    /// Waits until `is_over`, for as long as a wait may take, and gives whether it is. For a process that has an error of
    /// its own to tell, which a timeout would hide.
    pub fn settles(&self, is_over: impl Fn() -> bool) -> bool {
        let started = Instant::now();
        while !is_over() {
            let waited = started.elapsed();
            if waited >= self.0.limit {
                return false;
            }
            self.0.tell("ending after a failure, which is said then,", waited);
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

/// A wait that is under way. It ends where this is dropped, by a panic too.
struct Open<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.shared.waits().open.retain(|(open, ..)| *open != self.id);
    }
}

impl Shared {
    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of a wait that takes long, once for each phase.
    fn tell(&self, phase: &'static str, waited: Duration) {
        if waited < self.notice || self.waits().told.contains(&phase) {
            return;
        }
        self.waits().told.push(phase);
        (self.on_wait)(phase, waited);
    }

    /// Sleeps until the oldest wait may have run out, or for a moment, and acts if it has.
    fn watch_once(&self) {
        const MOMENT: Duration = Duration::from_millis(200);
        let oldest = self.waits().open.first().copied();
        if let Some((_, phase, since)) = oldest {
            self.tell(phase, since.elapsed());
        }
        let left = match oldest {
            Some((_, phase, since)) if since.elapsed() >= self.limit => {
                (self.on_timeout)(Error::Timeout { phase, waited: since.elapsed() });
                MOMENT
            }
            Some((.., since)) => self.limit.saturating_sub(since.elapsed()),
            None => MOMENT,
        };
        self.sleep(left.min(MOMENT));
    }

    /// Sleeps. A sleep that took much longer was that of the whole process, or of the machine, as when it is moved to
    /// another: the others had no chance to come, and that time doesn't count.
    fn sleep(&self, time: Duration) {
        const MUCH: Duration = Duration::from_secs(1);
        let started = Instant::now();
        std::thread::sleep(time);
        let now = Instant::now();
        let lost = (now - started).saturating_sub(time);
        if lost > MUCH {
            self.waits().open.iter_mut().for_each(|(.., since)| *since = (*since + lost).min(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// A watch with a limit in milliseconds, and what it says.
    fn watch(limit: u64) -> (Watch, Receiver<Error>) {
        let (sender, timeouts) = channel();
        let options = DeviceOptions {
            slice_timeout: Duration::from_millis(limit),
            on_timeout: Arc::new(move |error| sender.send(error).unwrap()),
            ..Default::default()
        };
        (Watch::new(&options), timeouts)
    }

    fn sleep(milliseconds: u64) {
        std::thread::sleep(Duration::from_millis(milliseconds));
    }

    #[test]
    fn waits_that_end_in_time_are_never_told() {
        let (watch, timeouts) = watch(2000);
        // Longer than the limit in all; on a busy machine, a short one may be long.
        for _ in 0..250 {
            watch.during("one of many", || sleep(10));
        }
        let panics = || watch.during::<()>("one that panics", || panic!("as it is to"));
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        sleep(2500);
        assert!(timeouts.try_recv().is_err());
        assert!(watch.settles(|| true) && timeouts.try_recv().is_err());
    }

    #[test]
    fn a_wait_that_takes_too_long_is_told_while_it_goes_on() {
        let (watch, timeouts) = watch(300);
        std::thread::scope(|scope| {
            // The oldest wait counts, whatever the others do.
            scope.spawn(|| (0..100).for_each(|_| watch.during("another thread's", || sleep(5))));
            let error = watch.during("the longest", || timeouts.recv_timeout(Duration::from_secs(60)));
            match error.unwrap() {
                Error::Timeout { phase: "the longest", waited } => {
                    assert!(waited >= Duration::from_millis(300), "{waited:?}");
                }
                other => panic!("{other}"),
            }
        });
    }

    #[test]
    fn a_long_wait_is_told_of_once_for_its_phase_and_goes_on() {
        let (sender, notices) = channel();
        let options = DeviceOptions {
            wait_notice: Duration::from_millis(300),
            on_wait: Arc::new(move |phase, waited| sender.send((phase, waited)).unwrap()),
            ..Default::default()
        };
        let watch = Watch::new(&options);
        watch.during("a short one", || sleep(1));
        let notice = watch.during("a long one", || notices.recv_timeout(Duration::from_secs(60)));
        let (phase, waited) = notice.unwrap();
        assert!(phase == "a long one" && waited >= Duration::from_millis(300), "{phase}: {waited:?}");
        watch.during("a long one", || sleep(1000));
        assert!(notices.try_recv().is_err(), "its phase was told of");
        let notice = watch.during("another", || notices.recv_timeout(Duration::from_secs(60)));
        assert_eq!(notice.unwrap().0, "another");
    }

    #[test]
    fn what_never_settles_is_given_up_without_a_word() {
        let (watch, timeouts) = watch(300);
        let started = Instant::now();
        assert!(!watch.settles(|| false));
        assert!(started.elapsed() >= Duration::from_millis(300));
        assert!(timeouts.try_recv().is_err());
    }
}
