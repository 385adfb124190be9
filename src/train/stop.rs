//! The wish that training stop, from wherever it comes.

use std::sync::{Arc, OnceLock};

/// A handle to it; its clones are one.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<OnceLock<String>>);

impl Stop {
    /// Asks training to stop; the first reason counts.
    pub fn ask(&self, reason: impl Into<String>) {
        let _ = self.0.set(reason.into());
    }

    /// Why it was asked to.
    pub fn reason(&self) -> Option<String> {
        self.0.get().cloned()
    }
}
