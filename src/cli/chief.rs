//! Which host of a slice the chief is on, for whoever has started them.

use std::path::PathBuf;

use super::Console;
use crate::exec::Replicas;
use crate::report::one_line;
use crate::storage::write_file;

/// Names the file. Whoever starts a program on all hosts can't know which one reports and writes: the runtime numbers its
/// processes as it likes, and process 0 need not be a TPU VM's worker 0.
const VARIABLE: &str = "BERT_XLA_CHIEF_FILE";

/// Writes the name of this host to the file that the environment names, as a line, if this process is the chief; one that
/// is alone is. Others write nothing. It is no failure if it can't be written, but worth a warning.
pub fn mark(replicas: &Replicas, console: &Console) {
    let named = std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
    let Some(path) = named.map(PathBuf::from).filter(|_| replicas.is_chief()) else { return };
    let system = rustix::system::uname();
    let name = one_line(&system.nodename().to_string_lossy());
    if let Err(error) = write_file(&path, format!("{name}\n").as_bytes()) {
        console.note(&one_line(&format!("warning: {VARIABLE}: {error}")));
    }
}
