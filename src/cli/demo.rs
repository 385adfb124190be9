//! `bert-xla demo`: the whole line on an embedded sample.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::{Cli, Console, Error, Exit, Result};
use crate::exec::RuntimeKind;
use crate::pjrt::Backend;
use crate::pjrt::install::ensure_installed;
use crate::run::layout::{
    ACCURACY_CHART, CARD, CONFIG, DEV_PREDICTIONS, HISTORY, LOSS_CHART, TOKENIZER, WEIGHTS,
};
use crate::storage::write_file;

/// A table of sample comments of ours, a test table without labels, and a tiny model's configuration and tokenizer.
const FILES: [(&str, &str); 4] = [
    ("sample.csv", include_str!("../../assets/sample.csv")),
    ("sample_test.csv", include_str!("../../assets/sample_test.csv")),
    ("model/config.json", include_str!("../../assets/tiny/config.json")),
    ("model/tokenizer.json", include_str!("../../assets/tiny/tokenizer.json")),
];

/// Train, evaluate and predict on a small embedded sample, in under two minutes.
///
/// A 2-layer BERT with random weights learns the sentiment of 400 made-up comments on the CPU, whose plugin is
/// installed if one is needed and missing. The commands that it runs are printed, to be tried with your own table.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Where the sample and the results go; what an earlier demo left there is replaced
    #[arg(long, default_value = "bert-xla-demo", value_name = "DIR")]
    output: PathBuf,
}

pub fn run(args: &DemoArgs, console: &Arc<Console>) -> Result<Exit> {
    let folder = &args.output;
    if RuntimeKind::auto() == RuntimeKind::Pjrt {
        ensure_installed(Backend::Cpu)?;
    }
    for (name, text) in FILES {
        write_file(&folder.join(name), text.as_bytes())?;
    }
    let path = |name: &str| folder.join(name).into_os_string();
    let on_cpu = ["--backend".into(), "cpu".into()];
    let train: [OsString; 9] = [
        "train".into(),
        "--train".into(),
        path("sample.csv"),
        "--model".into(),
        path("model"),
        "--output".into(),
        path("run"),
        "--overwrite".into(),
        "--random-weights".into(),
    ];
    let recipe = ["--max-length", "24", "--batch-size", "8", "--learning-rate", "5e-4", "--epochs", "6"];
    let train = train.into_iter().chain(recipe.map(OsString::from)).chain(on_cpu.clone());
    if let stopped @ Exit::Stopped = command(train, console)? {
        return Ok(stopped);
    }
    let evaluate = ["evaluate".into(), "--run".into(), path("run"), "--data".into(), path("sample.csv")];
    command(evaluate.into_iter().chain(on_cpu.clone()), console)?;
    let predict: [OsString; 7] = [
        "predict".into(),
        "--run".into(),
        path("run"),
        "--data".into(),
        path("sample_test.csv"),
        "--output".into(),
        path("submission.csv"),
    ];
    command(predict.into_iter().chain(on_cpu), console)?;
    let files = [
        (format!("{LOSS_CHART}, run/{ACCURACY_CHART}"), "the curves"),
        (HISTORY.to_owned(), "the same as numbers"),
        (WEIGHTS.to_owned(), &*format!("the weights, with {CONFIG} and {TOKENIZER}")),
        (DEV_PREDICTIONS.to_owned(), "the held-out rows, with probabilities"),
        (CARD.to_owned(), "the model card: all of this in words"),
    ];
    let files = files.map(|(name, what)| format!("  {:<32} {what}\n", format!("run/{name}"))).concat();
    let submission = format!("  {:<32} the labels of sample_test.csv\n", "submission.csv");
    console.print(&format!("\nIn {}:\n{files}{submission}", folder.display()))?;
    Ok(Exit::Done)
}

/// Shows a command line of this program, and runs it.
fn command(arguments: impl Iterator<Item = OsString>, console: &Arc<Console>) -> Result<Exit> {
    let line = ["bert-xla".into()].into_iter().chain(arguments).collect::<Vec<OsString>>();
    let words = line.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>();
    console.print(&format!("\n$ {}\n", words.join(" ")))?;
    let cli = Cli::parse_line(&line).map_err(|error| Error::Usage(error.to_string()))?;
    super::run(cli, console)
}
