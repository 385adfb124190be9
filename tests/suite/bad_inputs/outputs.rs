//! Where nothing can be written, or should be.

use std::fs;
use std::path::Path;

use super::ensembles::copy;
use super::{Case, TRAIN};
use crate::common::cli::demo;

const ENCODE: &str = "encode --backend cpu --max-length 8 --model {demo} --input {}/sentences.txt --output";
const PREDICT: &str = "predict --backend cpu --run {demo} --data {}/data.csv --output";

fn to(command: &str, output: &str, message: &str) -> Case {
    let command = command.replace(" --output {}/new/run", " --output");
    Case::new(format!("output: {command} {output}"), format!("{command} {output}"), message)
}

fn holds(name: &'static str, flags: &str, message: &str) -> Case {
    let make = move |folder: &Path| {
        fs::create_dir(folder.join("run")).unwrap();
        match name.strip_suffix('/') {
            Some(name) => fs::create_dir(folder.join("run").join(name)).unwrap(),
            None => fs::write(folder.join("run").join(name), "").unwrap(),
        }
    };
    to(TRAIN, &format!("{{}}/run {flags}"), message).make(make)
}

pub fn cases() -> Vec<Case> {
    let graph = "graph --step predict --size tiny --output";
    vec![
        to(TRAIN, "{}/data.csv", "{}/data.csv: it is a file, where a folder for the run is expected"),
        to(TRAIN, "{}/data.csv/run", "can't make {}/data.csv/run: Not a directory (os error 20)").failure(),
        to(TRAIN, "/proc/run", "can't make /proc/run: No such file or directory (os error 2)").failure(),
        holds("run.json", "", "{}/run already holds a run; choose another --output, or pass --overwrite"),
        holds(
            "model.safetensors",
            "",
            "{}/run already holds a run; choose another --output, or pass --overwrite",
        ),
        holds(
            "config.json",
            "",
            "{}/run already holds config.json, which a run would replace; choose another \
            --output, or pass --overwrite",
        ),
        holds(
            "history.jsonl",
            "",
            "{}/run already holds history.jsonl, which a run would replace; choose another \
            --output, or pass --overwrite",
        ),
        holds(
            "steps.jsonl",
            "",
            "{}/run already holds steps.jsonl, which a run would replace; choose another --output, or pass --overwrite",
        ),
        holds(
            "test.json",
            "",
            "{}/run already holds test.json, which a run would replace; choose another --output, or pass --overwrite",
        ),
        holds(
            "summary.json",
            "--seeds 2",
            "{}/run already holds summary.json, which a run would replace; choose another --output, or pass --overwrite",
        ),
        holds(
            "test.json",
            "--overwrite --test {}/run/test.json",
            "--test {}/run/test.json: training writes this file; name another --output",
        ),
        to(
            TRAIN,
            "{}/model/ --overwrite",
            "--model {}/model: it is in --output, which training writes to; name another --output",
        ),
        to(
            TRAIN,
            "{}/new/run --tensorboard {}/data.csv",
            "--tensorboard {}/data.csv: it is a file, where a folder is expected",
        ),
        to(
            TRAIN,
            "{}/new/run --tensorboard=",
            "a value is required for '--tensorboard [<DIR>]' but none was supplied",
        ),
        holds("checkpoints", "--overwrite", "can't make {}/run/checkpoints: File exists (os error 17)")
            .failure(),
        holds("history.jsonl/", "--overwrite", "can't write {}/run/history.jsonl: is a directory").failure(),
        to(PREDICT, "{}", "--output {}: it is a folder; name another file"),
        to(PREDICT, "{}/data.csv", "--output {}/data.csv: it is the input; name another file"),
        to(PREDICT, "{demo}/config.json", "--output {demo}/config.json: it is the input; name another file"),
        to(PREDICT, "{}/labels.PARQUET", "--output {}/labels.PARQUET: CSV is written; name the file so"),
        to(
            "evaluate --backend cpu --run {demo} --data {}/data.csv --errors",
            "{}/errors.jsonl",
            "--errors {}/errors.jsonl: CSV is written; name the file so",
        ),
        to(
            "evaluate --backend cpu --run {demo} --data {}/data.csv --errors",
            "{demo}/checkpoints/errors.csv",
            "--errors {demo}/checkpoints/errors.csv: it is among a run's checkpoints; name another file",
        ),
        to(
            "evaluate --backend cpu --run {demo} --data {}/data.csv --errors",
            "{demo}/steps.jsonl",
            "--errors {demo}/steps.jsonl: it is the input; name another file",
        ),
        to(
            "evaluate --backend cpu --run {demo} --data {}/data.csv --errors {}/a --confusion",
            "{}/model/../a",
            "--confusion and --errors name the same file, {}/model/../a",
        ),
        to(
            "evaluate --backend cpu --run {demo} --data {}/data.csv --errors {}/e.csv --confusion",
            "{}/a.png",
            "--confusion and --errors name the same file, {}/a.png",
        )
        .make(|folder| std::os::unix::fs::symlink("a.png", folder.join("e.csv")).unwrap()),
        to(
            "evaluate --backend cpu --run {demo} --data {}/data.csv --errors",
            "{}/errors.PNG",
            "--errors {}/errors.PNG: CSV is written; name the file so",
        ),
        to(
            "evaluate --backend cpu --run {demo} --data {}/data.csv --confusion",
            "{}/confusion.csv",
            "--confusion {}/confusion.csv: PNG is written; name the file so",
        ),
        // In folders that aren't there yet.
        to(
            PREDICT,
            "{demo}/nope/../checkpoints/labels.csv",
            "--output {demo}/nope/../checkpoints/labels.csv: it is among a run's checkpoints; name another file",
        ),
        to(
            "predict --backend cpu --run {}/run --data {}/data.csv --output",
            "run/checkpoints/step-9/labels.csv",
            "--output run/checkpoints/step-9/labels.csv: it is among a run's checkpoints; name another file",
        )
        .make(|folder| copy(&folder.join("run"))),
        to(
            "evaluate --backend cpu --run {demo} --data {}/data.csv --confusion",
            "{}/confusion.svg",
            "--confusion {}/confusion.svg: PNG is written; name the file so",
        ),
        to(PREDICT, "{}/data.csv/labels.csv", "can't write {}/data.csv/labels.csv: not a directory")
            .failure(),
        to(PREDICT, "/proc/labels.csv", "can't write /proc/labels.csv: entity not found").failure(),
        to(PREDICT, "/dev/full", "can't write /dev/full: No space left on device (os error 28)").failure(),
        to(ENCODE, "{}", "--output {}: it is a folder; name another file"),
        to(ENCODE, "{}/sentences.txt", "--output {}/sentences.txt: it is the input; name another file"),
        to(
            ENCODE,
            "{demo}/tokenizer.json",
            "--output {demo}/tokenizer.json: it is the input; name another file",
        ),
        to(ENCODE, "{}/data.csv/states", "can't write {}/data.csv/states: not a directory").failure(),
        to(ENCODE, "/dev/full", "can't write /dev/full: No space left on device (os error 28)").failure(),
        to(graph, "{}", "can't write {}: Is a directory (os error 21)").failure(),
        to(graph, "{}/data.csv/graph.txt", "can't write {}/data.csv/graph.txt: not a directory").failure(),
        to("demo --output", "{}/data.csv", "can't write {}/data.csv/sample.csv: not a directory").failure(),
        Case::new(
            "output: a model of no numbers",
            "predict --backend cpu --run {}/run --data {}/data.csv --output {}/new/labels.csv",
            "the model's answers are not numbers: its weights are of no use",
        )
        .make(|folder| {
            let run = folder.join("run");
            fs::create_dir(&run).unwrap();
            for name in ["config.json", "tokenizer.json", "model.safetensors"] {
                fs::copy(demo().join("run").join(name), run.join(name)).unwrap();
            }
            // All of its values, which come after the header and its length.
            let path = run.join("model.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
            bytes[8 + header..].fill(0xff);
            fs::write(path, bytes).unwrap();
        }),
    ]
}
