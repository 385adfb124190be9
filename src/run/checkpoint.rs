//! Checkpoints as training finds them again.

use std::cmp::Reverse;
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::ensemble::ensemble_arguments;
use super::layout::{CHECKPOINTS, HISTORY, MOMENTS, PROGRESS, RUN, WEIGHTS, step};
use super::names::started;
use super::reader::Pointer;
use super::{Error, Progress, Result};
use crate::report::{EpochRecord, History};
use crate::storage::{Fetched, Folder, MANIFEST, Manifest, ManifestEntry};
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
    /// The run that the folder holds, whether or not it has a checkpoint.
    pub run: Option<String>,
    /// The newest checkpoint of it that is whole.
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
        // In a bucket, another process may go on with the run, and remove what is being looked at.
        const TRIES: usize = 3;
        let version = || Ok::<_, Error>(root.read_versioned(RUN)?.map(|(_, version)| version));
        for _ in 1..TRIES {
            let before = version()?;
            let found = Self::look(root);
            if found.as_ref().is_ok_and(|found| found.damaged.is_empty()) || version()? == before {
                return found;
            }
        }
        Self::look(root)
    }

    fn look(root: &Folder) -> Result<Self> {
        let (pointer, damaged) = pointer(root)?;
        let mut newest =
            Self { run: pointer.run.clone(), checkpoint: None, damaged: damaged.into_iter().collect() };
        for committed in newest_first(root, &pointer)? {
            match committed.and_then(Checkpoint::open) {
                Ok(checkpoint) => {
                    newest.run = Some(checkpoint.progress.run.clone());
                    newest.checkpoint = Some(checkpoint);
                    break;
                }
                Err(damaged @ Error::Input { .. }) => newest.damaged.push(damaged),
                Err(failure) => return Err(failure),
            }
        }
        Ok(newest)
    }
}

/// A checkpoint whose own account of itself is as it was committed; its other files were not looked at.
struct Committed {
    folder: Folder,
    manifest: Manifest,
    progress: Progress,
}

impl Committed {
    /// `None` for one that was never finished, or holds a model alone, as those of older versions.
    fn read(folder: Folder) -> Result<Option<Self>> {
        let Some(manifest) = Manifest::read(&folder).map_err(Error::committed)? else { return Ok(None) };
        if listed(&manifest, PROGRESS).is_none() && folder.read(PROGRESS)?.is_none() {
            return Ok(None);
        }
        let bytes = read(&folder, &manifest, PROGRESS)?;
        let progress = serde_json::from_slice(&bytes).map_err(|cause| Error::Input {
            path: folder.path().join(PROGRESS),
            message: cause.to_string(),
        })?;
        Ok(Some(Self { folder, manifest, progress }))
    }
}

impl Checkpoint {
    fn open(Committed { folder, manifest, progress }: Committed) -> Result<Self> {
        let error = |message: String| Error::Input { path: folder.path().join(HISTORY), message };
        manifest.check(&folder).map_err(Error::committed)?;
        let fetched = fetch(&folder, &manifest)?;
        let bytes = read(&folder, &manifest, HISTORY)?;
        let history = History::parse(&String::from_utf8_lossy(&bytes));
        let history = history.map_err(|cause| error(cause.to_string()))?;
        let (told, done) = (history.epochs().len(), progress.epoch);
        if told != done as usize {
            return Err(error(format!("it tells of {told} epochs where {done} are done")));
        }
        let hash = Sha256::digest(json!(manifest).to_string()).into();
        Ok(Self { folder, hash, fetched, progress, history })
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

fn listed<'m>(manifest: &'m Manifest, name: &str) -> Option<&'m ManifestEntry> {
    manifest.files.iter().find(|file| file.name == name)
}

/// A file that is as it was committed.
fn read(folder: &Folder, manifest: &Manifest, name: &str) -> Result<Vec<u8>> {
    match listed(manifest, name) {
        Some(file) => file.read(folder).map_err(Error::committed),
        None => {
            let message = format!("it doesn't list {name}");
            Err(Error::Input { path: folder.path().join(MANIFEST), message })
        }
    }
}

/// Brings weights and moments from a bucket, and checks them on the way.
fn fetch(folder: &Folder, manifest: &Manifest) -> Result<Option<Fetched>> {
    if folder.is_local() {
        return Ok(None);
    }
    let fetched = Fetched::new(folder)?;
    for file in manifest.files.iter().filter(|file| TENSORS.contains(&&*file.name)) {
        fetched.bring(folder, &file.name, Some(file)).map_err(Error::committed)?;
    }
    Ok(Some(fetched))
}

/// What `run.json` says, and what is wrong with it; where something is, nothing is known.
fn pointer(root: &Folder) -> Result<(Pointer, Option<Error>)> {
    match Pointer::read(root) {
        Err(damaged @ Error::Input { .. }) => Ok((Pointer::default(), Some(damaged))),
        read => Ok((read?.unwrap_or_default(), None)),
    }
}

/// The checkpoints of the run that `pointer` names, or of one that was started later in its place, or of whatever run if it
/// names none; the newest first. Or what is wrong with one.
fn newest_first(root: &Folder, pointer: &Pointer) -> Result<Vec<Result<Committed>>> {
    let checkpoints = root.folder(CHECKPOINTS);
    let mut names = checkpoints.list()?;
    names.retain(|name| step(name).is_some());
    let start = pointer.run.as_deref().map(started);
    let read = |name: String| Some((Committed::read(checkpoints.folder(&name)).transpose()?, name));
    let mut found = names.into_iter().filter_map(read).collect::<Vec<_>>();
    found.retain(|(committed, _)| match committed {
        Ok(Committed { progress: Progress { run, .. }, .. }) => {
            pointer.run.as_ref().is_none_or(|named| run == named) || Some(started(run)) > start
        }
        Err(_) => true,
    });
    found.sort_by_cached_key(|(committed, name)| {
        // Of one step, that of the whole epoch is newer than one in it. One that can't be told is taken for the newest.
        let (start, epoch) = committed.as_ref().map_or((start, u32::MAX), |committed| {
            (Some(started(&committed.progress.run)), committed.progress.epoch)
        });
        let is_newest = pointer.newest.as_deref() == Some(&path(name));
        Reverse((start, step(name), epoch, is_newest, name.len(), name.clone()))
    });
    Ok(found.into_iter().map(|(committed, _)| committed).collect())
}

/// The command line that the run in `root` was started with, or went on with last; `None` for one that has no checkpoint.
/// A damaged one is passed over, as it is to go on from.
///
/// # Errors
/// Those that there are are damaged.
pub fn last_arguments(root: &Path) -> Result<Option<Vec<String>>> {
    if let Some(arguments) = ensemble_arguments(root)? {
        return Ok(Some(arguments).filter(|arguments| !arguments.is_empty()));
    }
    let root = Folder::new(root);
    let (pointer, mut damaged) = pointer(&root)?;
    for committed in newest_first(&root, &pointer)? {
        match committed {
            Ok(committed) => return Ok(Some(committed.progress.arguments)),
            Err(error) => damaged = damaged.or(Some(error)),
        }
    }
    damaged.map_or(Ok(None), Err)
}

/// The record of the epoch whose model the run in `root` gives its readers.
///
/// # Errors
/// A run that has none, or whose checkpoints are damaged.
pub fn kept_record(root: &Path) -> Result<EpochRecord> {
    let root = Folder::new(root);
    let (pointer, mut damaged) = pointer(&root)?;
    for committed in newest_first(&root, &pointer)? {
        let found = committed.and_then(|Committed { folder, manifest, progress }| {
            let history = History::parse(&String::from_utf8_lossy(&read(&folder, &manifest, HISTORY)?))?;
            Ok(history.epoch(progress.kept_epoch()).cloned())
        });
        match found {
            Ok(Some(record)) => return Ok(record),
            Ok(None) => {}
            Err(error) => damaged = damaged.or(Some(error)),
        }
    }
    Err(damaged.unwrap_or(Error::NoEpoch { path: root.path().to_owned(), newest: None }))
}

/// When the last of the runs was started that `root` holds checkpoints of, or that is `named` there.
pub(super) fn last_start(root: &Folder, named: Option<&str>) -> Result<u64> {
    let checkpoints = root.folder(CHECKPOINTS);
    let mut last = named.map_or(0, started);
    for name in checkpoints.list()?.into_iter().filter(|name| step(name).is_some()) {
        match Committed::read(checkpoints.folder(&name)) {
            Ok(Some(Committed { progress, .. })) => last = last.max(started(&progress.run)),
            Ok(None) | Err(Error::Input { .. }) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(last)
}

/// Whether `folder` is a whole checkpoint that may be of this run, for all that its own account of itself tells.
pub(super) fn may_be_of(folder: &Folder, run: Option<&str>) -> Result<bool> {
    match Committed::read(folder.clone()) {
        Ok(committed) => Ok(committed.is_some_and(|committed| Some(&*committed.progress.run) == run)),
        Err(Error::Input { .. }) => Ok(true),
        Err(failure) => Err(failure),
    }
}

/// A checkpoint of this run whose manifest is there, whether or not its large files are as they were.
pub(super) struct Known {
    pub name: String,
    /// The epoch that it was committed at the end of.
    pub epoch: Option<u32>,
}

impl Known {
    /// Relative to the run's folder.
    pub fn path(&self) -> String {
        path(&self.name)
    }
}

/// Of the checkpoint `name`, relative to the run's folder.
fn path(name: &str) -> String {
    format!("{CHECKPOINTS}/{name}")
}

/// The checkpoints of a run up to the one that it goes on from, in order.
pub(super) fn known(root: &Folder, from: &Progress) -> Result<Vec<Known>> {
    let checkpoints = root.folder(CHECKPOINTS);
    let mut known = vec![];
    for name in checkpoints.list()? {
        if step(&name).is_none_or(|step| step > from.step) {
            continue;
        }
        match Committed::read(checkpoints.folder(&name)) {
            Ok(Some(Committed { progress, .. })) if progress.run == from.run => {
                known.push(Known { name, epoch: progress.within.is_none().then_some(progress.epoch) });
            }
            Ok(_) | Err(Error::Input { .. }) => {}
            Err(failure) => return Err(failure),
        }
    }
    // Of one step, that of the whole epoch is the last.
    known.sort_by_cached_key(|known| {
        (step(&known.name), known.epoch.is_some(), known.name.len(), known.name.clone())
    });
    Ok(known)
}
