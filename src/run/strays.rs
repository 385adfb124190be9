//! What may be removed of a run's folder, since this program has written it.

use std::path::Path;

use super::Result;
use super::layout::{CARD, FILES, PROGRESS, RUN, STEPS, TRAINING_FILES, WRITTEN, step};
use crate::storage::{Folder, MANIFEST, Manifest, PART};

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

/// A file that a run or an ensemble has, in a folder that may be somebody's. A README isn't told: the one of another isn't
/// replaced.
pub(super) fn file_of_run(root: &Folder) -> Result<Option<&'static str>> {
    for name in WRITTEN {
        if name != CARD && root.exists(name)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
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
