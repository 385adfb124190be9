//! The command line: one file per command.

mod arguments;
mod bench;
mod chief;
mod compare;
mod console;
mod demo;
mod described;
mod encode;
mod error;
mod evaluate;
mod execution;
mod export;
mod graph;
mod model;
mod options;
mod output;
mod plan;
mod plan_text;
mod plugins;
mod predict;
mod prepare;
mod progress;
mod provenance;
mod recipe;
#[cfg(feature = "serve")]
mod serve;
mod signals;
mod tpu_vm;
mod train;
mod train_args;

use std::ffi::OsString;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use train_args::TrainArgs;

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
                  Exit status: 0 done, 1 a failure, 2 an input or a usage that can't be worked with, 75 a training that was \
                  stopped and saved, 130 one that a second Ctrl-C has ended."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Train(Box<TrainArgs>),
    Evaluate(evaluate::EvaluateArgs),
    Predict(predict::PredictArgs),
    #[cfg(feature = "serve")]
    Serve(serve::ServeArgs),
    Encode(encode::EncodeArgs),
    Export(export::ExportArgs),
    Demo(demo::DemoArgs),
    Bench(bench::BenchArgs),
    Graph(graph::GraphArgs),
    Plan(plan::PlanArgs),
    Plugins(plugins::PluginsArgs),
    TpuVm(tpu_vm::TpuVmArgs),
}

/// How a command ends that doesn't fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    /// Training was asked to stop, and has saved what it did: the same command goes on from there.
    Stopped,
    /// A command that this one ran has failed, and has told why.
    Status(u8),
}

impl Exit {
    /// The exit status; for a stop, that of `sysexits.h` for what is worth another try.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Stopped => 75,
            Self::Status(status) => status,
        }
    }
}

impl Cli {
    /// Parses a command line.
    ///
    /// # Errors
    /// Clap's, which prints itself; `--help` is one.
    pub fn parse_line(line: &[OsString]) -> std::result::Result<Self, clap::Error> {
        Ok(Self::keep_line(Self::try_parse_from(line)?, line))
    }

    /// As [`parse_line`](Self::parse_line), of a `train` in which later arguments take the place of earlier ones.
    fn train_again(line: &[OsString]) -> Result<TrainArgs> {
        let again = Self::command().mut_subcommand("train", |train| train.args_override_self(true));
        let usage = |error: clap::Error| Error::Usage(first_line(&error));
        let matches = again.try_get_matches_from(line).map_err(usage)?;
        match Self::keep_line(Self::from_arg_matches(&matches).map_err(usage)?, line).command {
            Command::Train(args) => Ok(*args),
            _ => Err(Error::Usage("the run was not started by `train`".to_owned())),
        }
    }

    /// Training keeps the arguments that it was given.
    fn keep_line(mut self, line: &[OsString]) -> Self {
        if let Command::Train(args) = &mut self.command {
            let words = line.iter().skip(2).map(|argument| argument.to_string_lossy().into_owned());
            args.written = arguments::kept(words);
        }
        self
    }
}

/// Runs the command that `cli` names; what it has to say goes through `console`.
pub fn run(cli: Cli, console: &Arc<Console>) -> Result<Exit> {
    signals::outlive_limits();
    match cli.command {
        Command::Train(args) => return train::run(&args, console),
        Command::Evaluate(args) => evaluate::run(&args, console),
        Command::Predict(args) => predict::run(&args, console),
        #[cfg(feature = "serve")]
        Command::Serve(args) => return serve::run(&args, console),
        Command::Encode(args) => encode::run(&args, console),
        Command::Export(args) => export::run(&args, console),
        Command::Demo(args) => return demo::run(&args, console),
        Command::Bench(args) => bench::run(&args, console),
        Command::Graph(args) => graph::run(&args, console),
        Command::Plan(args) => plan::run(&args, console),
        Command::Plugins(args) => plugins::run(&args, console),
        Command::TpuVm(args) => return tpu_vm::run(&args, console),
    }?;
    Ok(Exit::Done)
}

/// What clap says first, without its prefix.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
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

/// The next `rows` of a table's, or fewer if their texts are long: what is taken at a time.
fn part<T, E>(
    rows: &mut impl Iterator<Item = std::result::Result<T, E>>,
    most: usize,
    text: impl Fn(&T) -> &str,
) -> std::result::Result<Vec<T>, E> {
    const BYTES: usize = 64 << 20;
    let mut bytes = 0;
    let mut part = vec![];
    while part.len() < most && bytes < BYTES {
        let Some(row) = rows.next().transpose()? else { break };
        bytes += text(&row).len();
        part.push(row);
    }
    Ok(part)
}

fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
