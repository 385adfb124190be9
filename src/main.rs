use std::process::ExitCode;

use bert_xla::cli::{self, Cli};
use clap::Parser;

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::print_error(&error);
            ExitCode::from(if error.is_input_error() { 2 } else { 1 })
        }
    }
}
