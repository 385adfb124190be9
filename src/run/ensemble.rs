//! `ensemble.json`: the members of an ensemble, of which each is a run, and what becomes of its folder.

use std::collections::BTreeSet;
use std::path::{Component, Path};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::layout::ENSEMBLE;
use super::reader::Pointer;
use super::strays::file_of_run;
use super::{Error, Result};
use crate::storage::Folder;

/// What the file holds. Folders are relative to the ensemble's, and inside it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct EnsembleFile {
    /// The runs that answer.
    pub members: Vec<String>,
    /// Those that are being trained, to answer in place of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub training: Vec<String>,
    /// In seconds since 1970: members that were started before are none of this training's.
    #[serde(default)]
    began: u64,
    /// The command line that trained them.
    #[serde(default)]
    pub arguments: Vec<String>,
}

impl EnsembleFile {
    /// Of the ensemble in `root`; `None` where there is none.
    pub fn read(root: &Path) -> Result<Option<Self>> {
        let Some(bytes) = Folder::new(root).read(ENSEMBLE)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&bytes).map_err(|cause| Error::Input {
            path: root.join(ENSEMBLE),
            message: format!("it should list the members of an ensemble: {cause}"),
        });
        parsed.map(Some)
    }

    fn write(&self, root: &Path) -> Result<()> {
        Ok(Folder::new(root).write(ENSEMBLE, format!("{:#}\n", json!(self)).as_bytes())?)
    }

    /// Those that it is about, whether or not they are trained.
    fn wanted(&self) -> &[String] {
        if self.training.is_empty() { &self.members } else { &self.training }
    }

    /// Whether the same was asked for before, but for what says that it may be there.
    fn is_of(&self, arguments: &[String]) -> bool {
        let words = |all: &[String]| {
            all.iter()
                .filter(|word| !["--overwrite", "--resume"].contains(&&***word))
                .cloned()
                .collect::<Vec<_>>()
        };
        words(&self.arguments) == words(arguments)
    }
}

/// Makes `root` the folder of an ensemble of these `members`, which a command line trains. Members of another one that is
/// there answer until these are [trained](conclude_ensemble). Gives what runs must not have been started before, in seconds
/// since 1970, lest they be of an earlier training, that is to be replaced.
///
/// # Errors
/// A folder that holds a run, or an ensemble of others, unless that may be replaced, or has fewer seeds.
pub fn claim_ensemble(root: &Path, members: &[String], arguments: &[String], replace: bool) -> Result<u64> {
    let (before, is_damaged) = match EnsembleFile::read(root) {
        Err(Error::Input { .. }) if replace => (None, true),
        read => (read?, false),
    };
    let arguments = arguments.to_vec();
    let Some(before) = before else {
        let folder = Folder::new(root);
        if !is_damaged && let Some(name) = file_of_run(&folder)? {
            return Err(Error::HoldsRun { path: root.to_owned(), name });
        }
        folder.make()?;
        let began = if is_damaged { now() } else { 0 };
        EnsembleFile { members: vec![], training: members.to_vec(), began, arguments }.write(root)?;
        return Ok(began);
    };
    let are_same = before.wanted() == members;
    let are_more = have_more_seeds(before.wanted(), members);
    if !(replace || are_same || are_more || before.members == members) {
        let count = before.wanted().len();
        return Err(Error::OtherMembers { path: root.to_owned(), count });
    }
    // One that was cut short goes on, also where it was to replace another.
    let goes_on = are_same && !before.training.is_empty() && before.is_of(&arguments);
    let began = if replace && !goes_on { now() } else { before.began };
    let training = match are_same {
        true if !replace => before.training,
        false if !replace && !are_more => vec![],
        _ => members.to_vec(),
    };
    EnsembleFile { members: before.members, training, began, arguments }.write(root)?;
    Ok(began)
}

/// Whether `members` are those `before`, and others that differ from them in the seed alone.
fn have_more_seeds(before: &[String], members: &[String]) -> bool {
    /// What its name says besides.
    fn beside_seed(name: &str) -> Option<&str> {
        Some(name.split_once("seed-")?.1.trim_start_matches(|c: char| c.is_ascii_digit()))
    }
    let kinds = |names: &[String]| {
        names.iter().map(|name| beside_seed(name).map(str::to_owned)).collect::<Option<BTreeSet<_>>>()
    };
    let are_kept = before.iter().all(|name| members.contains(name));
    are_kept && kinds(before).is_some_and(|kinds_before| Some(kinds_before) == kinds(members))
}

/// Says of the ensemble in `root` that its members are being trained.
pub fn reopen_ensemble(root: &Path) -> Result<()> {
    match EnsembleFile::read(root)? {
        Some(file) if file.training.is_empty() => {
            EnsembleFile { training: file.members.clone(), ..file }.write(root)
        }
        _ => Ok(()),
    }
}

/// Whether all members of the ensemble in `root` are trained, and known to be.
pub fn is_concluded(root: &Path) -> Result<bool> {
    Ok(EnsembleFile::read(root)?.is_some_and(|file| file.training.is_empty()))
}

/// Has the members answer that were trained, and removes the runs of those that they replace.
pub fn conclude_ensemble(root: &Path) -> Result<()> {
    let Some(file) = EnsembleFile::read(root)?.filter(|file| !file.training.is_empty()) else {
        return Ok(());
    };
    let EnsembleFile { members: before, training: members, .. } = file.clone();
    EnsembleFile { members: members.clone(), training: vec![], ..file }.write(root)?;
    let folder = Folder::new(root);
    for name in before.iter().filter(|name| !members.contains(name) && is_inside(name)) {
        // Whatever else is there is somebody's.
        if let Ok(Some(_)) = Pointer::read(&folder.folder(name)) {
            folder.remove(name)?;
        }
    }
    Ok(())
}

/// The command line that trained the ensemble in `root`; `None` where there is none.
pub(super) fn ensemble_arguments(root: &Path) -> Result<Option<Vec<String>>> {
    Ok(EnsembleFile::read(root)?.map(|ensemble| ensemble.arguments))
}

/// A model that is to be a single one must not be an ensemble.
pub(super) fn check_is_single(root: &Path) -> Result<()> {
    let Some(file) = EnsembleFile::read(root)? else { return Ok(()) };
    let member = file
        .members
        .first()
        .map_or_else(String::new, |first| format!("; name a member, such as {}", root.join(first).display()));
    let message = format!("it is an ensemble, where a single run is expected{member}");
    Err(Error::Input { path: root.to_owned(), message })
}

/// Whether a folder's name leads to a folder below.
pub(super) fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
