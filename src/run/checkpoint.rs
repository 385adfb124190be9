//! Checkpoints as training finds them again.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::layout::{CHECKPOINTS, HISTORY, MOMENTS, PROGRESS, WEIGHTS, step};
use super::reader::Pointer;
use super::{Error, Progress, Result};
use crate::report::History;
use crate::storage::{Fetched, Folder, MANIFEST, Manifest};
use crate::weights::TensorFiles;

/// The files of weights and moments.
const TENSORS: [&str; 3] = [WEIGHTS, MOMENTS[0], MOMENTS[1]];

/// A whole checkpoint.
pub struct Checkpoint {
    folder: Folder,
    /// Of its manifest, and so of all that it holds.
    hash: [u8; 32],
    /// Weights and moments, brought from a bucket.
    fetched: Option<Fetched>,
    pub progress: Progress,
    pub history: History,
}

/// What a run folder has to go on from.
#[derive(Default)]
pub struct Newest {
    /// The newest checkpoint that is whole.
    pub checkpoint: Option<Checkpoint>,
    /// What is wrong with those that are newer.
    pub damaged: Vec<Error>,
}

impl Newest {
    /// Looks for the newest checkpoint of the run in `root`. Those of a run that it has replaced don't count, nor do those
    /// whose manifest was never written.
    ///
    /// # Errors
    /// A folder that can't be read.
    pub fn find(root: &Folder) -> Result<Self> {
        let mut newest = Self::default();
        let run = match Pointer::read(root) {
            // Without it, the newest of whatever run.
            Err(damaged @ Error::Input { .. }) => {
                newest.damaged.push(damaged);
                None
            }
            read => read?.and_then(|pointer| pointer.run),
        };
        for folder in newest_first(root)? {
            match Checkpoint::open(folder, run.as_deref()) {
                Ok(None) => {}
                Ok(Some(checkpoint)) => {
                    newest.checkpoint = Some(checkpoint);
                    break;
                }
                Err(error) => newest.damaged.push(error),
            }
        }
        Ok(newest)
    }
}

impl Checkpoint {
    /// `None` for one that is another run's, or was never finished.
    fn open(folder: Folder, run: Option<&str>) -> Result<Option<Self>> {
        let error = |file: &str, message: String| Error::Input { path: folder.path().join(file), message };
        // Whose it is, before all its files are gone through.
        let Some((manifest, progress)) = committed(&folder)? else { return Ok(None) };
        if run.is_some_and(|run| run != progress.run) {
            return Ok(None);
        }
        manifest.check(&folder).map_err(|(name, message)| error(&name, message))?;
        let fetched = fetch(&folder, &manifest)?;
        let bytes = folder.read(HISTORY)?.unwrap_or_default();
        let history = History::parse(&String::from_utf8_lossy(&bytes));
        let history = history.map_err(|cause| error(HISTORY, cause.to_string()))?;
        let (told, done) = (history.epochs().len(), progress.epoch);
        if told != done as usize {
            return Err(error(HISTORY, format!("it tells of {told} epochs where {done} are done")));
        }
        let hash = Sha256::digest(folder.read(MANIFEST)?.unwrap_or_default()).into();
        Ok(Some(Self { folder, hash, fetched, progress, history }))
    }

    /// A SHA-256: that of another checkpoint differs.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// Progress and history, for a host that hasn't this checkpoint.
    pub fn to_text(&self) -> String {
        format!("{}\n{}", json!(self.progress), self.history.to_lines())
    }

    /// Reads what [`to_text`](Self::to_text) gave.
    ///
    /// # Errors
    /// Something else, as from another version of this program.
    pub fn parse_text(text: &[u8]) -> Result<(Progress, History)> {
        let text = String::from_utf8_lossy(text);
        let (progress, history) = text.split_once('\n').unwrap_or((&text, ""));
        let unlike = |cause: serde_json::Error| Error::Input {
            path: PROGRESS.into(),
            message: format!("another host's checkpoint can't be used: {cause}"),
        };
        Ok((serde_json::from_str(progress).map_err(unlike)?, History::parse(history)?))
    }

    /// Weights and moments: a moment's name is that of its weight after `m.` or `v.`.
    pub fn tensors(&self) -> Result<TensorFiles> {
        let folder = self.fetched.as_ref().map_or(self.folder.path(), Fetched::folder);
        Ok(TensorFiles::open_files(&TENSORS.map(|name| folder.join(name)))?)
    }
}

/// A checkpoint's manifest, and its progress, as it was committed; `None` for one that was never finished, or holds a model
/// alone, as those of older versions.
fn committed(folder: &Folder) -> Result<Option<(Manifest, Progress)>> {
    let error = |file: &str, message: String| Error::Input { path: folder.path().join(file), message };
    let read = Manifest::read(folder).map_err(|cause| error(MANIFEST, cause.source.to_string()))?;
    let Some(manifest) = read else { return Ok(None) };
    match manifest.files.iter().find(|file| file.name == PROGRESS) {
        Some(file) => file.check(folder).map_err(|message| error(PROGRESS, message))?,
        None if folder.read(PROGRESS)?.is_some() => {
            return Err(error(MANIFEST, format!("it doesn't list {PROGRESS}")));
        }
        None => return Ok(None),
    }
    let progress = read_json(folder, PROGRESS)?;
    Ok(Some((manifest, progress)))
}

/// Brings weights and moments from a bucket, and checks them on the way.
fn fetch(folder: &Folder, manifest: &Manifest) -> Result<Option<Fetched>> {
    if folder.is_local() {
        return Ok(None);
    }
    let error = |name: &str, message: String| Error::Input { path: folder.path().join(name), message };
    let fetched = Fetched::new(folder).map_err(|cause| error("", cause.to_string()))?;
    for file in manifest.files.iter().filter(|file| TENSORS.contains(&&*file.name)) {
        let mut copy = fetched.create(&file.name).map_err(|cause| error(&file.name, cause.to_string()))?;
        file.copy_to(folder, &mut copy).map_err(|message| error(&file.name, message))?;
    }
    Ok(Some(fetched))
}

/// The folders of the checkpoints in `root`, finished or not, the newest first.
fn newest_first(root: &Folder) -> Result<Vec<Folder>> {
    let checkpoints = root.folder(CHECKPOINTS);
    let mut names = checkpoints.list()?;
    names.retain(|name| step(name).is_some());
    names.sort_by_key(|name| order(name));
    Ok(names.iter().rev().map(|name| checkpoints.folder(name)).collect())
}

/// Sorts checkpoints by their steps, and those of one step as they were written: the number that tells them apart grows.
fn order(name: &str) -> (Option<u64>, usize, String) {
    (step(name), name.len(), name.to_owned())
}

/// The command line that the run in `root` was started with, or went on with last; `None` for one that has no checkpoint.
/// A damaged one is passed over, as it is to go on from.
///
/// # Errors
/// Those that there are are damaged.
pub fn last_arguments(root: &Path) -> Result<Option<Vec<String>>> {
    let root = Folder::new(root);
    let Some(run) = Pointer::read(&root)?.and_then(|pointer| pointer.run) else { return Ok(None) };
    let mut damaged = None;
    for folder in newest_first(&root)? {
        match committed(&folder) {
            Ok(Some((_, progress))) if progress.run == run => return Ok(Some(progress.arguments)),
            Ok(_) => {}
            Err(error) => damaged = damaged.or(Some(error)),
        }
    }
    damaged.map_or(Ok(None), Err)
}

/// A checkpoint of this run whose manifest is there, whether or not its files are as they were.
pub(super) struct Known {
    pub name: String,
    /// The epoch that it was committed at the end of.
    pub epoch: Option<u32>,
}

impl Known {
    /// Relative to the run's folder.
    pub fn path(&self) -> String {
        format!("{CHECKPOINTS}/{}", self.name)
    }
}

/// The checkpoints of a run up to the one that it goes on from, in order.
pub(super) fn known(root: &Folder, from: &Progress) -> Result<Vec<Known>> {
    let checkpoints = root.folder(CHECKPOINTS);
    let mut known = vec![];
    for name in checkpoints.list()? {
        if step(&name).is_none_or(|step| step > from.step) {
            continue;
        }
        let folder = checkpoints.folder(&name);
        let (true, Ok(progress)) =
            (folder.read(MANIFEST)?.is_some(), read_json::<Progress>(&folder, PROGRESS))
        else {
            continue;
        };
        if progress.run == from.run {
            known.push(Known { name, epoch: progress.within.is_none().then_some(progress.epoch) });
        }
    }
    known.sort_by_key(|known| order(&known.name));
    Ok(known)
}

fn read_json<T: DeserializeOwned>(folder: &Folder, name: &str) -> Result<T> {
    let error = |message: String| Error::Input { path: folder.path().join(name), message };
    let bytes = folder.read(name)?.ok_or_else(|| error("it is missing".to_owned()))?;
    serde_json::from_slice(&bytes).map_err(|cause| error(cause.to_string()))
}
