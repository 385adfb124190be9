//! What users get wrong, in one table: for each mistake the one line that is said, and the exit code. Nothing is written
//! or replaced.
//!
//! A group of cases is a file of this folder, and a line in [`groups`].

#[cfg(feature = "cloud")]
mod buckets;
mod checkpoints;
mod ensembles;
mod exports;
mod flags;
mod hub;
mod models;
mod outputs;
mod plugins;
mod runs;
mod tables;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Mutex;
use std::time::SystemTime;

use crate::common::cli::{asset, command, demo, text};
use crate::common::empty_folder;

/// One mistake. In its texts, `{}` is the case's own folder, `{hub}` the Hub's cache and `{demo}` a run in order.
pub struct Case {
    name: String,
    /// Makes what the command reads, beside what [`standard`] makes.
    make: Box<dyn FnOnce(&Path) + Send>,
    /// Split at spaces; `''` is an empty word.
    command: String,
    variables: Vec<(&'static str, String)>,
    code: i32,
    message: String,
    /// Said before it, beside others.
    note: String,
}

impl Case {
    /// Exit code 2; the case's folder holds what is [`standard`].
    fn new(name: impl Into<String>, command: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            make: Box::new(|_| ()),
            command: command.into(),
            variables: vec![],
            code: 2,
            message: message.into(),
            note: String::new(),
        }
    }

    /// What is to be said before it.
    fn after(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    fn make(self, make: impl FnOnce(&Path) + Send + 'static) -> Self {
        Self { make: Box::new(make), ..self }
    }

    fn variable(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    fn flags(self, flags: &str) -> Self {
        Self { command: format!("{} {flags}", self.command), ..self }
    }

    /// Not the input's fault: exit code 1.
    fn failure(self) -> Self {
        Self { code: 1, ..self }
    }
}

/// Trains a tiny model from random weights on the sample.
const TRAIN: &str = "train --backend cpu --random-weights --max-length 24 --model {}/model --train {}/data.csv \
                     --output {}/new/run";

fn groups() -> Vec<Vec<Case>> {
    vec![
        tables::cases(),
        #[cfg(feature = "parquet")]
        tables::parquet(),
        flags::cases(),
        models::cases(),
        runs::cases(),
        ensembles::cases(),
        exports::cases(),
        hub::cases(),
        plugins::cases(),
        outputs::cases(),
        checkpoints::cases(),
        #[cfg(feature = "cloud")]
        buckets::cases(),
    ]
}

/// What most commands need: a table, sentences, and a model without weights.
fn standard(folder: &Path) {
    fs::copy(asset("sample.csv"), folder.join("data.csv")).unwrap();
    fs::write(folder.join("sentences.txt"), "behi\nbarcha\n").unwrap();
    fs::create_dir(folder.join("model")).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(asset("tiny").join(name), folder.join("model").join(name)).unwrap();
    }
}

/// What is known of a file or folder; of a file, its bytes too.
type Known = (u64, SystemTime, Vec<u8>);

/// All that is below a folder, and itself.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Known> {
    use std::os::unix::fs::MetadataExt;
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let bytes = if metadata.is_file() { fs::read(&path).unwrap() } else { vec![] };
        // A folder changes with what comes and goes in it, such as a file that has no name yet.
        let modified = if metadata.is_dir() { SystemTime::UNIX_EPOCH } else { metadata.modified().unwrap() };
        found.insert(path, (metadata.ino(), modified, bytes));
    }
    found
}

/// Runs a case; what is wrong with it, if anything is.
fn check(case: Case, number: usize) -> Option<String> {
    let folder = empty_folder(&format!("bad_inputs/{number}"));
    // The cache is not what a command writes to.
    let hub = empty_folder(&format!("bad_inputs_hub/{number}"));
    standard(&folder);
    (case.make)(&folder);
    let places = [("{}", &folder), ("{hub}", &hub), ("{demo}", &demo().join("run"))];
    let fill = |text: &str| {
        places.iter().fold(text.to_owned(), |text, (name, path)| text.replace(name, path.to_str().unwrap()))
    };
    let word = |word: &str| if word == "''" { String::new() } else { fill(word) };
    let words = case.command.split_whitespace().map(word).collect::<Vec<_>>();
    let mut command = command(&words);
    command.env_remove("HF_TOKEN").env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE");
    command.env("HF_HOME", &hub).env("HF_ENDPOINT", "http://127.0.0.1:1");
    command.envs(case.variables.iter().map(|(name, value)| (name, fill(value))));
    let before = snapshot(&folder);
    let Output { status, stdout, stderr } = command.current_dir(&folder).output().unwrap();
    let after = snapshot(&folder);
    fs::remove_dir_all(&folder).unwrap();
    fs::remove_dir_all(&hub).unwrap();
    let said = text(stderr);
    let mut lines = said.lines().skip_while(|line| !line.starts_with("error: "));
    // The parser of the command line has a paragraph, and then its usage.
    let paragraph = lines.by_ref().take_while(|line| !line.is_empty());
    let message = paragraph.map(str::trim).collect::<Vec<_>>().join(" ");
    let rest = lines.collect::<Vec<_>>();
    let expected = format!("error: {}", fill(&case.message));
    let wrong = if message != expected {
        format!("expected `{expected}`")
    } else if !said.lines().any(|line| line.starts_with(&fill(&case.note))) {
        format!("expected before it `{}`", fill(&case.note))
    } else if status.code() != Some(case.code) {
        format!("expected exit code {}", case.code)
    } else if said.contains("panicked")
        || said.lines().filter(|line| line.starts_with("error: ")).count() != 1
    {
        "expected one error".to_owned()
    } else if !rest.is_empty() && !rest.iter().any(|line| line.contains("--help")) {
        "expected nothing after the error".to_owned()
    } else if before != after {
        let changed = |path: &&PathBuf| before.get(*path) != after.get(*path);
        let changed = before.keys().chain(after.keys()).filter(changed).collect::<Vec<_>>();
        format!("expected these to stay as they are: {changed:?}")
    } else if !stdout.is_empty() {
        format!("expected no answer: {}", text(stdout))
    } else {
        return None;
    };
    Some(format!("{}: {wrong}\n  {:?}: {said}", case.name, status.code()))
}

#[test]
fn every_bad_input_gets_one_line_and_leaves_everything_as_it_was() {
    let cases = groups().into_iter().flatten().collect::<Vec<_>>();
    eprintln!("{} cases", cases.len());
    let only = std::env::var("BAD_INPUT").ok();
    let cases = cases.into_iter().filter(|case| only.as_ref().is_none_or(|part| case.name.contains(part)));
    let queue = Mutex::new(cases.enumerate());
    let wrong = Mutex::new(vec![]);
    demo();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((number, case)) = queue.lock().unwrap().next() else { break };
                    let found = check(case, number);
                    wrong.lock().unwrap().extend(found);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}
