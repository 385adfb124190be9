//! Completion of asynchronous work on a device.

use std::ffi::c_void;

use super::api::{Api, Owned, user_arg};
use super::error::Result;
use super::sys;

/// Becomes ready when some work has ended, well or not. Dropping it waits too, and loses the work's error.
pub(super) struct Event(Owned<sys::PJRT_Event>);

impl Event {
    /// # Safety
    /// `raw` must be null or a live event of `api`'s plugin that nothing else frees.
    pub unsafe fn new(api: Api, raw: *mut sys::PJRT_Event, call: &'static str) -> Result<Self> {
        // SAFETY: passed on to the caller.
        unsafe { Owned::new(api, raw, call) }.map(Self)
    }

    /// Blocks until the work has ended; the error, if any, is the work's.
    pub fn wait(self) -> Result<()> {
        self.wait_in_place()
    }

    pub fn is_ready(&self) -> Result<bool> {
        let args = sys::EventIsReady { event: self.0.raw(), ..Default::default() };
        // SAFETY: the event is live.
        unsafe { self.0.api.call(args) }.map(|args| args.is_ready)
    }

    /// Keeps `data` alive until the work has ended, without blocking.
    pub fn keep<T: Send + 'static>(self, data: T) -> Result<()> {
        self.drop_at_end(data)?;
        // The plugin holds its own reference for the callback: only this handle goes, without waiting.
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped, so that the handle is read out, and freed, once.
        drop(unsafe { std::ptr::read(&raw const this.0) });
        Ok(())
    }

    /// Drops `data` once the work has ended, on some thread, without blocking.
    pub fn drop_at_end<T: Send + 'static>(&self, data: T) -> Result<()> {
        let kept = user_arg(Box::new(Kept { api: self.0.api, data }));
        let callback: sys::OnReady = Some(release::<T>);
        let args = sys::EventOnReady { event: self.0.raw(), callback, user_arg: kept, ..Default::default() };
        // SAFETY: the event is live; `release` takes the box over and runs once, on any thread.
        if let Err(error) = unsafe { self.0.api.call(args) } {
            self.wait_in_place()?;
            // SAFETY: the callback was not registered, so that the box is still owned here.
            drop(unsafe { Box::from_raw(kept.cast::<Kept<T>>()) });
            return Err(error);
        }
        Ok(())
    }

    fn wait_in_place(&self) -> Result<()> {
        // SAFETY: the event is live.
        unsafe { self.0.api.call(sys::EventAwait { event: self.0.raw(), ..Default::default() }) }.map(|_| ())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.wait_in_place();
    }
}

/// What [`Event::drop_at_end`] holds, and the table that frees the error handed to its callback.
struct Kept<T> {
    api: Api,
    #[expect(dead_code, reason = "held for its destructor")]
    data: T,
}

/// # Safety
/// `kept` must come from [`Event::drop_at_end`] with the same `T`, and `error` be null or owned.
unsafe extern "C" fn release<T>(error: *mut sys::PJRT_Error, kept: *mut c_void) {
    // SAFETY: by the contract above this is the one owner of the box.
    let kept = unsafe { Box::from_raw(kept.cast::<Kept<T>>()) };
    // A failed transfer also makes its buffer fail, where the error has somebody to report to.
    // SAFETY: the callback owns the error.
    let _ = unsafe { kept.api.check("PJRT_Event_OnReady", error) };
}
