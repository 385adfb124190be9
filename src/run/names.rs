//! Names of runs, and of what must have one that nothing else has.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

/// A name for a run, which nothing else has, and tells when it was [`started`]: later than the `last`, whatever clocks say; and
/// of a member of an ensemble, in which [`attempt`].
pub(super) fn new_name(last: u64, attempt: Option<u64>) -> String {
    // A clock that is before 1970 tells nothing.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let attempt = attempt.map_or_else(String::new, |attempt| format!("-{attempt:016x}"));
    format!("{}-{}{attempt}", now.as_secs().max(last.saturating_add(1)), random())
}

/// The attempt to train an ensemble that a run of this name is of, if it is of one that replaces others.
pub fn attempt(run: &str) -> Option<u64> {
    u64::from_str_radix(run.splitn(3, '-').nth(2)?, 16).ok()
}

/// When a run of this name was started, in seconds since 1970; 0 if its name doesn't tell. Of two runs in one place, the
/// later one has replaced the other.
pub fn started(run: &str) -> u64 {
    run.split_once('-').and_then(|(seconds, _)| seconds.parse().ok()).unwrap_or_default()
}

/// A name that nothing else has.
pub(super) fn random() -> String {
    format!("{:016x}", random_number())
}

/// By the system's random numbers, which seed the hash.
pub(super) fn random_number() -> u64 {
    RandomState::new().build_hasher().finish()
}
