//! Code of others that panics where its input is damaged.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is told by an error, and not by a report on stderr.
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// What `act` gives; `None` if it panics, after which nothing that it has changed is to be used any more.
pub(super) fn contained<T>(act: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_CONTAINED.get() {
                report(panic);
            }
        }));
    });
    IS_CONTAINED.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(act));
    IS_CONTAINED.set(false);
    result.ok()
}
