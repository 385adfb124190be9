//! `bert-xla export`: a trained model for other programs.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::options::count;
use super::{Console, Error, Result};
use crate::export::{export_hlo, export_transformers};
use crate::run::Runs;
use crate::storage::{FileError, is_bucket, write_folder};

/// Write a trained model for other programs. No device is needed.
///
/// transformers: a folder that Python's transformers loads, and the Hub takes: config.json, model.safetensors,
/// tokenizer.json, tokenizer_config.json and a README.md. A head that transformers has no class for is in head.safetensors,
/// and head.json says what it is.
///
/// hlo: predict.hlo.pb, the predict step as a serialized HloModuleProto, for any PJRT plugin; model.safetensors,
/// tokenizer.json, and signature.json, which lists the module's parameters and outputs in order.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    bert-xla export --run run --format transformers --output model\n  \
    bert-xla export --run run --format hlo --batch-size 32 --output model")]
pub struct ExportArgs {
    /// The --output of a training run; also gs://bucket/path
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// What to write
    #[arg(long, value_name = "FORMAT")]
    format: Format,
    /// The folder to write, which must be new or empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Texts that the HLO module takes [default: 16]
    #[arg(long, value_parser = count(), value_name = "N")]
    batch_size: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Transformers,
    Hlo,
}

pub fn run(args: &ExportArgs, console: &Console) -> Result<()> {
    if args.format != Format::Hlo && args.batch_size.is_some() {
        return Err(Error::Usage("--batch-size is for --format hlo alone".to_owned()));
    }
    check_is_free(&args.output)?;
    let runs = Runs::open(&[(args.run.clone(), 1.0)])?;
    let Some(run) = runs.single() else {
        let message = "an ensemble; export its members one by one";
        return Err(Error::Usage(format!("--run {}: it is {message}", args.run.display())));
    };
    write_folder(&args.output, |folder| match args.format {
        Format::Transformers => export_transformers(run, folder),
        Format::Hlo => export_hlo(run, args.batch_size.unwrap_or(16), folder),
    })?;
    let files = fs::read_dir(&args.output).map_err(FileError::new("can't read", &args.output))?;
    let mut names = files.flatten().map(|file| file.file_name().display().to_string()).collect::<Vec<_>>();
    names.sort();
    Ok(console.print(&format!("{}: {}\n", args.output.display(), names.join(", ")))?)
}

/// Refuses to write into a folder that holds something, or to where a file is.
fn check_is_free(output: &Path) -> Result<()> {
    let refuse = |what: &str| Err(Error::Usage(format!("--output {}: {what}", output.display())));
    if is_bucket(output) {
        return refuse("an export goes to a folder of this machine, to be copied from there");
    }
    let is_here =
        || output.canonicalize().ok().zip(std::env::current_dir().ok()).is_some_and(|(a, b)| a == b);
    match fs::read_dir(output).map(|mut files| files.next().is_some()) {
        Ok(true) => refuse("the folder is not empty; name a new one"),
        Err(error) if error.kind() == ErrorKind::NotADirectory && output.is_file() => {
            refuse("it is a file, where a folder is expected")
        }
        // Another folder gets its name: whoever works there would be nowhere.
        _ if is_here() => refuse("it is the working folder; name a new one"),
        _ => Ok(()),
    }
}
