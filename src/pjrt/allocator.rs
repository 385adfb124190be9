//! What jemalloc is to do where a program is linked with it.
//!
//! XLA's CPU runtime takes a step's temporaries, gigabytes of them, from the allocator at its start and gives them back at its
//! end. The C library returns such pages to the system, which clears each of them again for the next step.

/// Keeps pages that were given back for the next step, for half a minute, so that memory doesn't grow with all that was ever
/// taken; but for blocks of a gigabyte or more, of which two may be there for a moment. And takes large pages, of which there
/// are fewer to clear.
///
/// jemalloc reads the string that this symbol points to when it starts ("Tuning" in its manual).
// SAFETY: a pointer to a C string that is never changed, as jemalloc declares the symbol; nothing else has the name.
#[unsafe(export_name = "malloc_conf")]
pub static JEMALLOC_OPTIONS: &[u8; 79] =
    b"dirty_decay_ms:30000,muzzy_decay_ms:0,oversize_threshold:1073741824,thp:always\0";
