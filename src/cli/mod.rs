//! The command line: one file per command.

mod console;
mod demo;
mod encode;
mod error;
mod evaluate;
mod graph;
mod model;
mod options;
mod output;
mod plan;
mod plugins;
mod predict;
mod train;

use std::sync::Arc;

use clap::{Parser, Subcommand};

use crate::data::Tokenizer;

pub use console::Console;
pub use error::{Error, Result};

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
    Train(Box<train::TrainArgs>),
    Evaluate(evaluate::EvaluateArgs),
    Predict(predict::PredictArgs),
    Encode(encode::EncodeArgs),
    Demo(demo::DemoArgs),
    Graph(graph::GraphArgs),
    Plan(plan::PlanArgs),
    Plugins(plugins::PluginsArgs),
}

/// Runs the command that `cli` names; what it has to say goes through `console`.
pub fn run(cli: Cli, console: &Arc<Console>) -> Result<()> {
    match cli.command {
        Command::Train(args) => train::run(&args, console),
        Command::Evaluate(args) => evaluate::run(&args, console),
        Command::Predict(args) => predict::run(&args, console),
        Command::Encode(args) => encode::run(&args, console),
        Command::Demo(args) => demo::run(&args, console),
        Command::Graph(args) => graph::run(&args, console),
        Command::Plan(args) => plan::run(&args, console),
        Command::Plugins(args) => plugins::run(&args, console),
    }
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

/// What is said where a tokenizer pads texts with another token than `config.json` has as `pad_token_id`.
fn padding_note(pad_token_id: u64, tokenizer: &Tokenizer) -> Option<String> {
    let id = tokenizer.pad_id();
    (pad_token_id != u64::from(id)).then(|| {
        format!("Texts are padded with token {id}, as the tokenizer says; config.json says {pad_token_id}")
    })
}

/// What is said of columns that were taken by their position.
fn guess_note(guess: Option<&String>) -> Option<String> {
    guess.map(|guess| format!("Columns by position, from 0: {guess}; --text-column and its like say others"))
}

fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
