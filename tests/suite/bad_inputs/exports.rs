//! What can't be exported, and to where.

use std::fs;

use super::Case;

fn case(flags: &str, message: &str) -> Case {
    let command = format!("export --run {{demo}} {flags}");
    Case::new(format!("export: {flags}"), command, message)
}

pub fn cases() -> Vec<Case> {
    vec![
        case(
            "--format onnx --output {}/new/model",
            "invalid value 'onnx' for '--format <FORMAT>' [possible values: transformers, hlo]",
        ),
        case(
            "--output {}/new/model",
            "the following required arguments were not provided: --format <FORMAT>",
        ),
        case(
            "--format transformers --output {}/new/model --batch-size 8",
            "--batch-size is for --format hlo alone",
        ),
        case(
            "--format hlo --output {}/new/model --batch-size 0",
            "invalid value '0' for '--batch-size <N>': 0 is not in 1..=65536",
        ),
        case("--format hlo --output {}", "--output {}: the folder is not empty; name a new one"),
        case(
            "--format hlo --output {}/data.csv",
            "--output {}/data.csv: it is a file, where a folder is expected",
        ),
        case("--format hlo --output {}/data.csv/model", "can't write {}/data.csv/model: not a directory")
            .failure(),
        case("--format hlo --output /proc/model", "can't write /proc/model: entity not found").failure(),
        case(
            "--format hlo --output gs://bucket/model",
            "--output gs://bucket/model: an export goes to a folder of this machine, to be copied from there",
        ),
        Case::new(
            "export: no run",
            "export --run {}/run --format hlo --output {}/new/model",
            "{}/run: there is no such folder; give the --output of a training run",
        ),
        Case::new(
            "export: an ensemble",
            "export --run {} --format hlo --output {}/new/model",
            "--run {}: it is an ensemble; export its members one by one",
        )
        .make(|folder| {
            for run in ["a", "b"] {
                super::ensembles::copy(&folder.join(run));
            }
            fs::write(folder.join("ensemble.json"), r#"{"members": ["a", "b"]}"#).unwrap();
        }),
    ]
}
