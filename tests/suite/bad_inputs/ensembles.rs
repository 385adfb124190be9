//! Several runs at a time, and folders of ensembles.

use std::fs;
use std::path::Path;

use super::Case;
use super::models::json;
use crate::common::cli::demo;

const EVALUATE: &str = "evaluate --backend cpu --data {}/data.csv";

fn flags(flags: &str, message: &str) -> Case {
    let command = format!("{EVALUATE} --run {{demo}} {flags}");
    Case::new(format!("ensemble: {flags}"), command, message)
}

/// A folder `e` with this `ensemble.json`, and in it a run `a`.
fn ensemble(name: &str, json: &'static str, message: &str) -> Case {
    let command = format!("{EVALUATE} --run {{}}/e");
    Case::new(format!("ensemble: {name}"), command, message).make(move |folder| {
        fs::create_dir(folder.join("e")).unwrap();
        fs::write(folder.join("e/ensemble.json"), json).unwrap();
        copy(&folder.join("e/a"));
    })
}

/// Copies the demo's run, without its checkpoints.
pub(super) fn copy(run: &Path) {
    fs::create_dir(run).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(demo().join("run").join(name), run.join(name)).unwrap();
    }
}

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "ensemble: no run",
            EVALUATE,
            "the following required arguments were not provided: --run <DIR>",
        ),
        flags("--weights 2,1", "--weights: 2 weights for 1 run; give one per --run"),
        flags("--run {demo} --weights 1", "--weights: 1 weight for 2 runs; give one per --run"),
        flags(
            "--run {demo} --weights 1,0",
            "invalid value '0' for '--weights <W,...>': expected a number above 0",
        ),
        flags(
            "--run {demo} --weights=-1,1",
            "invalid value '-1' for '--weights <W,...>': expected a number above 0",
        ),
        flags(
            "--run {demo} --weights inf,1",
            "invalid value 'inf' for '--weights <W,...>': expected a number above 0",
        ),
        flags(
            "--run {demo} --weights 1,,1",
            "invalid value '' for '--weights <W,...>': expected a number above 0",
        ),
        flags(
            "--run {}/none",
            "{}/none: there is no such folder; give the --output of a training run",
        ),
        flags(
            "--run {}/other",
            "the labels of {demo} and {}/other differ: {}/other has no `0`, `1`, {demo} has no `bad`; only runs with the \
                same labels can be averaged",
        )
        .make(|folder| {
            copy(&folder.join("other"));
            json("config.json", |json| {
                json["id2label"]["2"] = "bad".into();
                json["bert_xla"]["unlabelled"] = vec![0, 3].into();
            })(&folder.join("other"));
        }),
        Case::new(
            "ensemble: where a single run is expected",
            "encode --backend cpu --model {}/e --input {}/data.csv --output {}/vectors.safetensors",
            "{}/e: it is an ensemble, where a single run is expected; name a member, such as {}/e/a",
        )
        .make(|folder| {
            fs::create_dir(folder.join("e")).unwrap();
            fs::write(folder.join("e/ensemble.json"), r#"{"members": ["a"]}"#).unwrap();
        }),
        ensemble(
            "no JSON",
            "{",
            "{}/e/ensemble.json: it should list the members of an ensemble: EOF while parsing an object at line 1 \
                column 1",
        ),
        ensemble(
            "no members",
            "{}",
            "{}/e/ensemble.json: it should list the members of an ensemble: missing field `members` at line 1 column 2",
        ),
        ensemble("an empty list", r#"{"members": []}"#, "{}/e/ensemble.json: it lists no member"),
        ensemble(
            "an empty name",
            r#"{"members": ["a", ""]}"#,
            "{}/e/ensemble.json: `` is no folder inside the ensemble's",
        ),
        ensemble(
            "itself",
            r#"{"members": ["."]}"#,
            "{}/e/ensemble.json: `.` is no folder inside the ensemble's",
        ),
        ensemble(
            "above",
            r#"{"members": ["a", "a/../../model"]}"#,
            "{}/e/ensemble.json: `a/../../model` is no folder inside the ensemble's",
        ),
        ensemble(
            "elsewhere",
            r#"{"members": ["/etc"]}"#,
            "{}/e/ensemble.json: `/etc` is no folder inside the ensemble's",
        ),
        ensemble(
            "a member that is not there",
            r#"{"members": ["a", "b"]}"#,
            "{}/e/b: there is no such folder; give the --output of a training run",
        ),
        ensemble(
            "in an ensemble",
            r#"{"members": ["b"]}"#,
            "{}/e/ensemble.json: `b` is an ensemble itself; expected a run",
        )
        .make(|folder| {
            fs::create_dir_all(folder.join("e/b")).unwrap();
            for name in ["e", "e/b"] {
                fs::write(folder.join(name).join("ensemble.json"), r#"{"members": ["b"]}"#).unwrap();
            }
        }),
        ensemble(
            "its list is to be written over",
            r#"{"members": ["a"]}"#,
            "--errors {}/e/ensemble.json: it is the input; name another file",
        )
        .flags("--errors {}/e/ensemble.json"),
        flags("--errors {}", "--errors {}: it is a folder; name another file"),
        flags("--errors {}/data.csv", "--errors {}/data.csv: it is the input; name another file"),
        flags(
            "--confusion {demo}/config.json",
            "--confusion {demo}/config.json: it is the input; name another file",
        ),
        flags(
            "--confusion {}/new/file --errors {}/new/file",
            "--confusion and --errors name the same file, {}/new/file",
        ),
    ]
}
