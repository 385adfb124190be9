//! What may be removed of a run's folder, since this program has written it.

use std::path::Path;

use serde_json::json;

use super::card::is_ours;
use super::layout::{CARD, CHECKPOINTS, FILES, PROGRESS, RUN, STEPS, TENSORBOARD, TRAINING_FILES, step};
use super::reader::Pointer;
use super::tensorboard::remove_events;
use super::{Error, Result};
use crate::storage::{Folder, MANIFEST, Manifest, PART, Replaced};

/// Whether a folder is a checkpoint of ours, finished or not: by its name, by holding nothing else, and by what no other
/// program writes; one that was hardly begun holds nothing.
pub(super) fn is_checkpoint(checkpoints: &Folder, name: &str) -> Result<bool> {
    let is_folder = |path: &Path| !path.join(name).is_symlink() && path.join(name).is_dir();
    if step(name).is_none() || !checkpoints.local().is_none_or(is_folder) {
        return Ok(false);
    }
    let ours = FILES.into_iter().chain(TRAINING_FILES).chain([MANIFEST]);
    let is_ours = |file: &String| ours.clone().any(|ours| ours == file) || is_part(file);
    let folder = checkpoints.folder(name);
    let files = folder.list()?;
    // Those of older versions have a model and a manifest alone.
    let is_signed = files.iter().all(|file| is_part(file))
        || files.iter().any(|file| file == PROGRESS)
        || Manifest::read(&folder).is_ok_and(|manifest| manifest.is_some());
    Ok(is_signed && files.iter().all(is_ours))
}

/// Removes a run with all that is known to be of it; whatever else is there is somebody's, and stays. When it is cut short, what
/// is left is known to be a run's.
///
/// # Errors
/// In a bucket, another process has taken it over meanwhile.
pub(super) fn remove_run(root: &Folder) -> Result<()> {
    let version = root.read_versioned(RUN)?.map(|(_, version)| version);
    let pointer = match Pointer::read(root) {
        Ok(Some(pointer)) => pointer,
        Ok(None) | Err(Error::Input { .. }) => return Ok(()),
        Err(failure) => return Err(failure),
    };
    if !root.is_local() && pointer.writer.is_some() {
        // A process that still writes it finds that it may not any more, and not that files are missing.
        let nobodys = Pointer { writer: None, ..pointer.clone() };
        let text = format!("{:#}\n", json!(nobodys));
        if let Replaced::Outdated = root.replace(RUN, text.as_bytes(), version.as_ref())? {
            return Err(Error::TakenOver { path: root.path().to_owned() });
        }
    }
    let checkpoints = root.folder(CHECKPOINTS);
    // A link leads to where other runs may have theirs.
    if !checkpoints.is_local() || !checkpoints.path().is_symlink() {
        for name in checkpoints.list()? {
            if is_checkpoint(&checkpoints, &name)? {
                remove_checkpoint(&checkpoints, &name)?;
            }
        }
        root.remove_if_empty(CHECKPOINTS)?;
    }
    remove_events(&root.folder(TENSORBOARD))?;
    root.remove_if_empty(TENSORBOARD)?;
    let is_card_ours = root.read(CARD)?.is_some_and(|card| is_ours(&card));
    for name in root.list()? {
        let is_written = name == STEPS || pointer.files.iter().any(|file| file.name == name);
        if is_part(&name) || is_written && (name != CARD || is_card_ours) {
            root.remove(&name)?;
        }
    }
    Ok(root.remove(RUN)?)
}

/// Removes a checkpoint so that what is left when it is cut short doesn't count as whole, and is known to be ours.
pub(super) fn remove_checkpoint(checkpoints: &Folder, name: &str) -> Result<()> {
    let folder = checkpoints.folder(name);
    let mut files = folder.list()?;
    files.sort_by_key(|file| match &**file {
        MANIFEST => 0,
        PROGRESS => 2,
        _ => 1,
    });
    for file in files {
        folder.remove(&file)?;
    }
    Ok(checkpoints.remove(name)?)
}

/// Whether a name is that of a file of a run that was not finished.
pub(super) fn is_part(name: &str) -> bool {
    let of = FILES.into_iter().chain(TRAINING_FILES).chain([RUN, STEPS, MANIFEST]);
    name.ends_with(PART) && of.into_iter().any(|file| name.starts_with(&format!(".{file}.")))
}
