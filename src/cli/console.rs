//! What a command says, and whether it is this process that says it.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::OnceLock;

use super::error::{Error, Result};
use super::padding_note;
use crate::data::Tokenizer;
use crate::exec::Replicas;
use crate::model::BertConfig;
use crate::report::one_line;
use crate::storage::{FileError, as_given, is_stdout};

/// One command's voice. On a slice of several hosts, all processes take the same steps and have the same to say: the
/// chief says it. Errors are for each to tell.
#[derive(Default)]
pub struct Console {
    /// Known once there is a connection to the devices.
    process: OnceLock<Process>,
    /// Takes notes in stderr's place.
    log: OnceLock<fn(&str)>,
}

struct Process {
    /// 0 is the chief's.
    index: i32,
    alone: bool,
}

impl Console {
    /// From here on, this is one process among those that drive the devices.
    pub fn connected(&self, replicas: &Replicas) {
        let process = Process { index: replicas.process_index(), alone: !replicas.is_shared() };
        // A command connects once; if it were to connect again, it would be what it was.
        let _ = self.process.set(process);
    }

    /// From here on, notes go to `log`.
    pub fn note_in(&self, log: fn(&str)) {
        // Nor is a log exchanged for another.
        let _ = self.log.set(log);
    }

    fn is_chief(&self) -> bool {
        self.process.get().is_none_or(|process| process.index == 0)
    }

    /// Says what the command failed with, and on a slice, in which process. Not by `eprintln`, which panics where stderr
    /// is closed.
    pub fn error(&self, error: &dyn std::fmt::Display) {
        // One line, whatever the names are that it holds.
        let line = one_line(&format!("{}{}", self.prefix(), as_given(error.to_string())));
        let _ = writeln!(std::io::stderr(), "error: {line}");
    }

    /// Prints what has become of the file `output`; elsewhere, if that is stdout itself.
    pub fn print_of(&self, output: &Path, text: &str) -> std::result::Result<(), FileError> {
        match is_stdout(output) {
            true => self.note(text),
            false => self.print(&format!("{text}\n"))?,
        }
        Ok(())
    }

    /// Says on stderr what goes on in this process, and on a slice, in which.
    pub fn note_of_each(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{}{text}", self.prefix());
    }

    fn prefix(&self) -> String {
        match self.process.get() {
            Some(Process { index, alone: false }) => format!("process {index}: "),
            _ => String::new(),
        }
    }

    /// Says on stderr what goes on; it is no failure if nobody reads that.
    pub fn note(&self, text: &str) {
        match self.log.get() {
            _ if !self.is_chief() => {}
            Some(log) => log(text),
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }

    /// Says where a tokenizer pads with another token than the configuration beside it says.
    pub fn note_padding(&self, bert: &BertConfig, tokenizer: &Tokenizer) {
        if let Some(note) = padding_note(bert.pad_token_id.into(), tokenizer) {
            self.note(&note);
        }
    }

    /// Prints to stdout. A reader that closes it early, as `head` does, is no failure.
    pub fn print(&self, text: &str) -> std::result::Result<(), FileError> {
        if !self.is_chief() {
            return Ok(());
        }
        match std::io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(stdout_error(error)),
            _ => Ok(()),
        }
    }

    /// Prints what was serialized.
    pub fn print_json(&self, json: serde_json::Result<String>) -> Result<()> {
        let json = json.map_err(|error| Error::File(stdout_error(error.into())))?;
        Ok(self.print(&format!("{json}\n"))?)
    }
}

fn stdout_error(error: std::io::Error) -> FileError {
    FileError::new("can't write to", Path::new("stdout"))(error)
}
