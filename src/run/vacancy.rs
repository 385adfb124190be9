//! What keeps a run or an ensemble from going to a folder: what is held there, and whose it is.

use std::io;

use serde_json::Value;

use super::ensemble::holds_ensemble;
use super::layout::{
    CARD, CHECKPOINTS, ENSEMBLE, FILES, OUT_OF_FOLD, OUTCOMES, RUN, STEPS, SUMMARY, WRITTEN, step,
};
use super::reader::Pointer;
use super::{Error, Result};
use crate::storage::{FileError, Folder, MANIFEST};

/// A file that a run or an ensemble has, in a folder that may be somebody's. A README isn't told: the one of another isn't
/// replaced.
fn file_of_run(root: &Folder, passes: impl Fn(&str) -> bool) -> Result<Option<&'static str>> {
    for name in WRITTEN {
        if name != CARD && !passes(name) && root.exists(name)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The file by which a folder holds a run, or what one would replace. A run that was started and has left nothing is none.
pub(super) fn held(root: &Folder) -> Result<Option<&'static str>> {
    let is_run = |pointer: &Pointer| pointer.checkpoint.is_some() || pointer.newest.is_some();
    match Pointer::read(root) {
        Ok(Some(pointer)) => return Ok(is_run(&pointer).then_some(RUN)),
        // Damaged.
        Err(Error::Input { .. }) => return Ok(Some(RUN)),
        Err(error) => return Err(error),
        Ok(None) => {}
    }
    // Whether there is an ensemble is another question.
    file_of_run(root, |name| name == ENSEMBLE)
}

/// Whether a folder holds no run, or one that was started and has left nothing.
pub(super) fn is_bare(root: &Folder) -> Result<bool> {
    if held(root)?.is_some() {
        return Ok(false);
    }
    // One that was committed counts, even if `run.json` hasn't come to name it.
    let checkpoints = root.folder(CHECKPOINTS);
    let names = checkpoints.list()?.into_iter().filter(|name| step(name).is_some());
    for name in names {
        if checkpoints.folder(&name).exists(MANIFEST)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// # Errors
/// A folder for an ensemble that holds a run, or what an ensemble would replace, unless it may.
pub(super) fn check_holds_no_run(root: &Folder, replace: bool) -> Result<()> {
    let (path, is_bare) = (root.path().to_owned(), is_bare(root)?);
    let is_outcome = |name: &str| OUTCOMES.contains(&name);
    match file_of_run(root, |name| is_bare && [RUN, STEPS].contains(&name) || is_outcome(name) && replace)? {
        Some(name) if is_outcome(name) => Err(Error::Holds { path, name }),
        Some(name) => Err(Error::HoldsRun { path, name }),
        None => Ok(()),
    }
}

/// Finds out, long before a run is started in `root`, whether something is in its way.
///
/// # Errors
/// What is, unless it may be replaced.
pub(super) fn check_is_vacant(root: &Folder, replace: bool) -> Result<()> {
    let path = || root.path().to_owned();
    if root.is_local() && root.path().is_file() {
        let message = "it is a file, where a folder for the run is expected".to_owned();
        return Err(Error::Input { path: path(), message });
    }
    check_has_no_folders(root)?;
    if holds_ensemble(root)? {
        return Err(Error::HoldsEnsemble { path: path() });
    }
    // Whether a run may go on is another question.
    let is_run = root.exists(RUN)? || !root.folder(CHECKPOINTS).list()?.is_empty();
    match held(root)?.filter(|_| !is_run && !replace) {
        Some(name) => Err(Error::Holds { path: path(), name }),
        None => Ok(()),
    }
}

/// # Errors
/// A folder in the place of a file.
pub(super) fn check_has_no_folders(root: &Folder) -> Result<()> {
    let root = root.path();
    if let Some(name) = FILES.into_iter().chain([RUN]).find(|name| root.join(name).is_dir()) {
        let is_folder = io::ErrorKind::IsADirectory.into();
        return Err(FileError::new("can't write", root.join(name))(is_folder).into());
    }
    Ok(())
}

/// Whether one of [`OUTCOMES`] is what training writes, and not somebody's of the same name.
fn is_outcome(name: &str, bytes: &[u8]) -> bool {
    if name == OUT_OF_FOLD {
        return bytes.starts_with(b"row,id,label,predicted,p_");
    }
    let keys: &[&str] = match name {
        SUMMARY => &["members", "mean", "standard_deviation"],
        _ => &["rows", "loss", "accuracy", "per_class", "macro_average", "weighted_average"],
    };
    let json = serde_json::from_slice::<Value>(bytes).unwrap_or_default();
    keys.iter().all(|key| json.get(key).is_some())
}

/// Whether `root` has this one of [`OUTCOMES`].
pub fn has_outcome(root: &Folder, name: &str) -> Result<bool> {
    Ok(root.read(name)?.is_some_and(|bytes| is_outcome(name, &bytes)))
}

/// # Errors
/// Files in the place of [`OUTCOMES`] that somebody has put there.
pub fn check_outcomes(root: &Folder, names: impl IntoIterator<Item = &'static str>) -> Result<()> {
    for name in names {
        if root.exists(name)? && !has_outcome(root, name)? {
            return Err(Error::Holds { path: root.path().to_owned(), name });
        }
    }
    Ok(())
}
