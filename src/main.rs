use std::process::ExitCode;
use std::sync::Arc;

use bert_xla::cli::{self, Cli, Console};
use bert_xla::pjrt::leave;
use clap::Parser;

fn main() -> ExitCode {
    let console = Arc::new(Console::default());
    match cli::run(Cli::parse(), &console) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console.error(&error);
            leave(if error.is_input_error() { 2 } else { 1 })
        }
    }
}
