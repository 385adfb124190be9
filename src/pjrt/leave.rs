//! Ending a process whose plugins are in the midst of something.

use std::process::exit;
use std::thread;
use std::time::Duration;

/// Ends the process. Plugins have work of their own to do at its end, which may wait for what never comes: they are
/// given a few seconds.
pub fn leave(code: u8) -> ! {
    const AT_MOST: Duration = Duration::from_secs(5);
    let code = i32::from(code);
    let cut_short = move || {
        thread::sleep(AT_MOST);
        // SAFETY: it takes a number, and doesn't return.
        unsafe { libc::_exit(code) }
    };
    // Where there is no room for a thread, the end may take longer.
    let _ = thread::Builder::new().spawn(cut_short);
    exit(code)
}
