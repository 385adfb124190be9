use std::process::ExitCode;

use bert_xla::cli::plugins;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the PJRT plugins and their devices, or install one
    Plugins(plugins::PluginsArgs),
}

fn main() -> ExitCode {
    let Command::Plugins(args) = Cli::parse().command;
    match plugins::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if error.is_input_error() { 2 } else { 1 })
        }
    }
}
