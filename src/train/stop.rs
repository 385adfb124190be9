//! Asking a run to stop, from another thread.

use std::sync::{Arc, OnceLock};

/// Whether a run is to stop, and why. Clones are handles to the same.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<OnceLock<String>>);

impl Stop {
    /// Asks the run to stop when it can. The first reason counts.
    pub fn ask(&self, reason: impl Into<String>) {
        // There is one already otherwise.
        let _ = self.0.set(reason.into());
    }

    /// Why it is to stop; `None` as long as nobody has asked.
    pub fn reason(&self) -> Option<String> {
        self.0.get().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts_for_all_handles() {
        let stop = Stop::default();
        let other = stop.clone();
        assert_eq!((stop.reason(), other.reason()), (None, None));
        std::thread::spawn(move || other.ask("the first")).join().unwrap();
        stop.ask("the second".to_owned());
        assert_eq!(stop.reason().as_deref(), Some("the first"));
    }
}
