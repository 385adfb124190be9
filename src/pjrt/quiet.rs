//! Holding back what plugins print before their log can be told to be silent.

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use rustix::stdio::{dup2_stderr, stderr};

/// Runs `work` with the process's stderr led away. Where that can't be had, it runs all the same.
pub(super) fn without_stderr<T>(work: impl FnOnce() -> T) -> T {
    // Of two threads at once, the second would take the first one's silence for stderr, and give that back.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let _silenced = Silenced::new();
    work()
}

/// Gives stderr back when it is dropped.
struct Silenced {
    stderr: rustix::fd::OwnedFd,
}

impl Silenced {
    fn new() -> io::Result<Self> {
        let silenced = Self { stderr: rustix::io::fcntl_dupfd_cloexec(stderr(), 3)? };
        dup2_stderr(File::options().write(true).open("/dev/null")?)?;
        Ok(silenced)
    }
}

impl Drop for Silenced {
    fn drop(&mut self) {
        // There is nowhere to report a failure to.
        let _ = dup2_stderr(&self.stderr);
    }
}
