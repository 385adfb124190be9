use std::io::Write;
use std::process::ExitCode;

use bert_xla::cli::{self, Cli};
use clap::Parser;

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not `eprintln`, which panics where stderr is closed.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(if error.is_input_error() { 2 } else { 1 })
        }
    }
}
