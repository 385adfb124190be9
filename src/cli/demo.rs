//! `bert-xla demo`: the whole line on an embedded sample.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser};

use super::Cli;
use crate::error::{Error, Result};
use crate::pjrt::Backend;
use crate::pjrt::install::ensure_installed;
use crate::run_folder::write_text;

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
/// installed if it is missing. The commands that it runs are printed, to be tried with your own table.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Where the sample and the results go; what an earlier demo left there is replaced
    #[arg(long, default_value = "bert-xla-demo", value_name = "DIR")]
    output: PathBuf,
}

pub fn run(args: &DemoArgs) -> Result<()> {
    let folder = &args.output;
    ensure_installed(Backend::Cpu)?;
    for (name, text) in FILES {
        write_text(&folder.join(name), text)?;
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
    command(train.into_iter().chain(recipe.map(OsString::from)).chain(on_cpu.clone()))?;
    let evaluate = ["evaluate".into(), "--run".into(), path("run"), "--data".into(), path("sample.csv")];
    command(evaluate.into_iter().chain(on_cpu.clone()))?;
    let predict: [OsString; 7] = [
        "predict".into(),
        "--run".into(),
        path("run"),
        "--data".into(),
        path("sample_test.csv"),
        "--output".into(),
        path("submission.csv"),
    ];
    command(predict.into_iter().chain(on_cpu))?;
    super::print(&format!(
        "\nIn {}:\n  \
         run/loss.png, run/accuracy.png   the curves\n  \
         run/history.jsonl                the same as numbers\n  \
         run/model.safetensors            the weights, with config.json and tokenizer.json\n  \
         run/dev_predictions.csv          the held-out rows, with probabilities\n  \
         submission.csv                   the labels of sample_test.csv\n",
        folder.display()
    ))
}

/// Shows a command line of this program, and runs it.
fn command(arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let line = ["bert-xla".into()].into_iter().chain(arguments).collect::<Vec<OsString>>();
    let words = line.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>();
    super::print(&format!("\n$ {}\n", words.join(" ")))?;
    let cli = Cli::try_parse_from(line).map_err(|error| Error::Usage(error.to_string()))?;
    super::run(cli)
}
