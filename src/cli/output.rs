//! A file that the chief of a slice writes while all processes take the steps that fill it.

use std::cell::Cell;
use std::path::{Component, Path, PathBuf, absolute};
use std::sync::Arc;

use super::{Error, Result};
use crate::exec::Replicas;
use crate::storage::{is_bucket, link_target};

/// Tells the processes of one another's failures where none waits for another in a step: before the steps, and after
/// them.
pub struct Output {
    replicas: Arc<Replicas>,
    stage: Cell<Stage>,
}

#[derive(Clone, Copy)]
enum Stage {
    Before,
    During,
    After,
}

/// Refuses to write over what is read, or to where a folder is.
pub fn check_is_other(flag: &str, inputs: &[impl AsRef<Path>], output: &Path) -> Result<()> {
    let refuse =
        |what| Err(Error::Usage(format!("{flag} {}: it is {what}; name another file", output.display())));
    // One in a bucket is its address.
    if is_bucket(output) {
        return if inputs.iter().any(|input| input.as_ref() == output) {
            refuse("the input")
        } else {
            Ok(())
        };
    }
    let Ok(written) = output.canonicalize() else { return Ok(()) };
    let is_it = |input: &Path| input.canonicalize().is_ok_and(|read| read == written && read.is_file());
    match inputs.iter().map(AsRef::as_ref).any(is_it) {
        true => refuse("the input"),
        false if written.is_dir() => refuse("a folder"),
        false => Ok(()),
    }
}

/// Refuses to write where the checkpoints of runs are.
pub fn check_is_outside(flag: &str, mut folders: impl Iterator<Item = PathBuf>, output: &Path) -> Result<()> {
    let written = place(output);
    match folders.any(|folder| written.starts_with(place(&folder))) {
        true => {
            let path = output.display();
            Err(Error::Usage(format!("{flag} {path}: it is among a run's checkpoints; name another file")))
        }
        false => Ok(()),
    }
}

/// Where a file is, or would be, however its path is written.
pub fn place(path: &Path) -> PathBuf {
    if is_bucket(path) {
        return path.to_owned();
    }
    let path = absolute(link_target(path)).unwrap_or_else(|_| path.to_owned());
    let mut place = PathBuf::new();
    for part in path.components() {
        match part {
            // Of a folder that isn't there, the one that it would be in.
            Component::ParentDir => _ = place.pop(),
            part => place.push(part),
        }
        if let Ok(found) = place.canonicalize() {
            place = found;
        }
    }
    place
}

const PICTURES: [&str; 7] = ["png", "svg", "pdf", "jpg", "jpeg", "gif", "webp"];
const TABLES: [&str; 7] = ["csv", "tsv", "txt", "json", "jsonl", "ndjson", "parquet"];

/// Refuses a name that promises another format than what is written, which `is` it.
fn check_name(
    flag: &str,
    output: &Path,
    is: &str,
    others: impl IntoIterator<Item = &'static str>,
) -> Result<()> {
    let extension = output.extension().unwrap_or_default().to_ascii_lowercase();
    match others.into_iter().any(|other| extension == other) {
        true => Err(Error::Usage(format!("{flag} {}: {is} is written; name the file so", output.display()))),
        false => Ok(()),
    }
}

/// Refuses a name of another format than of a table in CSV.
pub fn check_is_csv(flag: &str, output: &Path) -> Result<()> {
    let is_csv = |name: &&str| ["csv", "tsv", "txt"].contains(name);
    check_name(flag, output, "CSV", TABLES.into_iter().filter(|name| !is_csv(name)).chain(PICTURES))
}

/// Refuses a name of another format than of a picture in PNG.
pub fn check_is_png(flag: &str, output: &Path) -> Result<()> {
    check_name(
        flag,
        output,
        "PNG",
        TABLES.into_iter().chain(PICTURES.into_iter().filter(|name| *name != "png")),
    )
}

impl Output {
    pub fn new(replicas: Arc<Replicas>) -> Self {
        Self { replicas, stage: Cell::new(Stage::Before) }
    }

    /// Takes all steps, once every process is ready for them.
    pub fn steps<T>(&self, steps: impl FnOnce() -> Result<T>) -> Result<T> {
        self.stage.set(Stage::During);
        self.replicas.meet(PREPARING, Ok::<_, super::Error>(()))?;
        let done = steps()?;
        self.stage.set(Stage::After);
        Ok(done)
    }

    /// Gives what has become of the file, `result`, once it has become of it in every process.
    pub fn end<T>(self, result: Result<T>) -> Result<T> {
        match self.stage.get() {
            Stage::Before => self.replicas.meet(PREPARING, result),
            // The others are in a step.
            Stage::During => result,
            Stage::After => self.replicas.meet("saving", result),
        }
    }
}

const PREPARING: &str = "preparing the output";
