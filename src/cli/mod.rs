//! The command line: one file per command.

mod demo;
mod encode;
mod evaluate;
mod graph;
mod model;
mod options;
mod plan;
mod plugins;
mod predict;
mod train;

use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

use clap::{Parser, Subcommand};

use crate::error::{Error, Result};

/// Fine-tunes BERT text classifiers on Cloud TPU, GPU or CPU. The whole training step is one XLA program, run through
/// a PJRT plugin.
#[derive(Parser, Debug)]
#[command(
    name = "bert-xla",
    version,
    max_term_width = 110,
    after_help = "Start with `bert-xla demo`; `bert-xla COMMAND --help` explains a command by example.\n\n\
                  Exit status: 0 done, 1 a failure, 2 an input or a usage that can't be worked with."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Train(train::TrainArgs),
    Evaluate(evaluate::EvaluateArgs),
    Predict(predict::PredictArgs),
    Encode(encode::EncodeArgs),
    Demo(demo::DemoArgs),
    Graph(graph::GraphArgs),
    Plan(plan::PlanArgs),
    Plugins(plugins::PluginsArgs),
}

/// Runs the command that `cli` names.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Train(args) => train::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Encode(args) => encode::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Graph(args) => graph::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Plugins(args) => plugins::run(&args),
    }
}

/// Prints what a command failed with, and on a slice of several hosts, on which of them.
pub fn print_error(error: &Error) {
    let process = match PROCESS.get() {
        Some(Process { index, alone: false }) => format!("process {index}: "),
        _ => String::new(),
    };
    // Not `eprintln`, which panics where stderr is closed.
    let _ = writeln!(std::io::stderr(), "error: {process}{error}");
}

/// This process among those that drive a slice, from when its devices are known.
static PROCESS: OnceLock<Process> = OnceLock::new();

struct Process {
    /// 0 is the chief's.
    index: i32,
    alone: bool,
}

/// Whether this process speaks for all: each of a slice takes the same steps and has the same to say.
fn is_chief() -> bool {
    PROCESS.get().is_none_or(|process| process.index == 0)
}

/// Says on stderr what goes on, if this is the chief; it is no failure if nobody reads that.
fn note(text: &str) {
    if is_chief() {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// Prints to stdout, if this is the chief. A reader that closes it early, as `head` does, is no failure.
fn print(text: &str) -> Result<()> {
    if !is_chief() {
        return Ok(());
    }
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(stdout_error(error)),
        _ => Ok(()),
    }
}

/// Prints what was serialized.
fn print_json(json: serde_json::Result<String>) -> Result<()> {
    print(&format!("{}\n", json.map_err(|error| stdout_error(error.into()))?))
}

fn stdout_error(error: std::io::Error) -> Error {
    Error::file("can't write to", Path::new("stdout"))(error)
}

/// Bytes in the unit that suits them.
fn size(bytes: u64) -> String {
    let kib = bytes as f64 / 1024.0;
    match kib {
        ..1024.0 => format!("{kib:.1} KiB"),
        ..1e7 => format!("{:.1} MiB", kib / 1024.0),
        _ => format!("{:.1} GiB", kib / (1024.0 * 1024.0)),
    }
}

fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
