//! What training leaves behind, committed as a whole.

use std::path::Path;

use serde_json::json;

use super::card::is_ours;
use super::checkpoint::{Known, known, last_start, may_be_of};
use super::ensemble::{holds_ensemble, remove_bare_ensemble};
use super::hold::Hold;
use super::layout::{CARD, CHECKPOINTS, FILES, HISTORY, RUN, TOLD, WEIGHTS, checkpoint, step};
use super::names::{attempt, new_name, random_number};
use super::progress::Progress;
use super::reader::{Pointer, name};
use super::snapshot::{Description, Snapshot};
use super::strays::{is_checkpoint, is_part, remove_checkpoint};
use super::vacancy::{check_has_no_folders, held};
use super::{Error, Result};
use crate::storage::{Commit, Folder, Logged, MANIFEST, Manifest, Replaced, Version, is_damage};

/// The one that writes to a run folder.
pub struct Writer {
    root: Folder,
    pointer: Pointer,
    /// Of `run.json`, as it was read or written last.
    version: Option<Version>,
    /// The checkpoints of this run, in order.
    checkpoints: Vec<Known>,
    keep_last: usize,
    hold: Hold,
}

impl Writer {
    /// Makes the folder, and finds out whether a run can be written there. Nothing that it holds is touched. What is then
    /// decided by what it holds counts if nobody else has written `run.json` until the run is begun; where a lock keeps others
    /// away, nobody has.
    ///
    /// # Errors
    /// A folder that another process is writing a run to, or that can't be written to.
    pub fn open(root: &Path) -> Result<Self> {
        let folder = Folder::new(root);
        if root.is_file() {
            let message = "it is a file, where a folder for the run is expected".to_owned();
            return Err(Error::Input { path: root.to_owned(), message });
        }
        folder.make()?;
        // Before what it holds is looked at: another process may be about to put it there.
        let hold = Hold::take(&folder)?;
        let pointer = Pointer::default();
        let mut writer =
            Self { root: folder, pointer, version: None, checkpoints: vec![], keep_last: 1, hold };
        writer.look()?;
        Ok(writer)
    }

    fn look(&mut self) -> Result<()> {
        self.version = self.root.read_versioned(RUN)?.map(|(_, version)| version);
        self.pointer = match Pointer::read(&self.root) {
            // It counts for nothing.
            Err(Error::Input { .. }) => Pointer::default(),
            read => read?.unwrap_or_default(),
        };
        Ok(())
    }

    /// As if it were opened again, but after having said in `run.json` that this is the process that writes: another one stops
    /// at its next commit, and no newer checkpoint comes to count.
    pub fn claim(&mut self) -> Result<()> {
        // Others may be about to do the same: the last one has it.
        const TRIES: usize = 10;
        for _ in 0..TRIES {
            self.look()?;
            let before = self.pointer.clone();
            if self.take_over(&before)? {
                return Ok(());
            }
        }
        Err(Error::TakenOver { path: self.root.path().to_owned() })
    }

    /// Finds out whether a run may be started: with `attempt`, one of an ensemble's members, which replaces those that are of
    /// none, or of another.
    ///
    /// # Errors
    /// A folder that holds a run, or a file that one would replace, unless it may be replaced.
    pub fn check_start(&self, replace: bool, of: Option<u64>) -> Result<()> {
        if holds_ensemble(&self.root)? {
            return Err(Error::HoldsEnsemble { path: self.root.path().to_owned() });
        }
        let is_of_it = || self.pointer.run.as_deref().is_some_and(|run| attempt(run) == of);
        let replaces = replace || of.is_some() && !is_of_it();
        match held(&self.root)?.filter(|_| !replaces) {
            Some(name) => Err(Error::Holds { path: self.root.path().to_owned(), name }),
            None => Ok(()),
        }
    }

    /// Starts a run, which has no checkpoint yet, and gives its name; `None` if another process has written there since it was
    /// opened. A run that the folder holds stays the one to go on with until this one's first checkpoint, and the one for
    /// readers until its first whole epoch; nothing else of what it holds is touched.
    ///
    /// # Errors
    /// Those of [`check_start`](Self::check_start).
    pub fn start(&mut self, keep_last: usize, replace: bool, attempt: Option<u64>) -> Result<Option<String>> {
        self.check_start(replace, attempt)?;
        remove_bare_ensemble(&self.root)?;
        self.keep_last = keep_last;
        let before = self.pointer.clone();
        let run = new_name(last_start(&self.root, before.run.as_deref())?, attempt);
        if before.newest.is_none() && before.checkpoint.is_none() {
            self.pointer.run = Some(run.clone());
        }
        Ok(self.take_over(&before)?.then_some(run))
    }

    /// Goes on with a run from a checkpoint of it, and gives its name; `None` if another process has written there since
    /// it was opened. What a commit that was cut short has left to do is done: the checkpoint may have been whole,
    /// and not named by `run.json` yet.
    pub fn go_on(&mut self, from: &Progress, keep_last: usize) -> Result<Option<String>> {
        self.keep_last = keep_last;
        let before = self.name_all(from)?;
        if !self.take_over(&before)? {
            return Ok(None);
        }
        self.tidy().map_err(|error| self.reason(error))?;
        Ok(Some(from.run.clone()))
    }

    fn tidy(&mut self) -> Result<()> {
        if !self.is_fresh()? {
            self.refresh()?;
        }
        self.remove_strays(None)
    }

    /// Leaves a run as it is that has nothing to go on to, but for what a commit that was cut short has left to do. In a bucket,
    /// another process may go on with the run, and is left alone.
    pub fn finish(&mut self, from: &Progress) -> Result<()> {
        self.look()?;
        let newest = self.pointer.newest.as_deref().and_then(name).and_then(step);
        let is_named = self.pointer.run.as_ref() == Some(&from.run) && newest >= Some(from.step);
        let is_alone = matches!(self.hold, Hold::Lock(_));
        let is_ours = match is_named {
            true => is_alone,
            false => {
                let before = self.name_all(from)?;
                self.take_over(&before)?
            }
        };
        if is_ours && !self.is_fresh()? {
            self.refresh()?;
        }
        self.remove_unfinished()
    }

    /// Has the pointer name what counts of the run up to `from`, and gives what it was.
    fn name_all(&mut self, from: &Progress) -> Result<Pointer> {
        let before = self.pointer.clone();
        self.checkpoints = known(&self.root, from)?;
        self.name_newest(from);
        let of = |is_it: &dyn Fn(u32) -> bool| {
            self.checkpoints.iter().rev().find(|known| known.epoch.is_some_and(is_it)).map(Known::path)
        };
        let (kept, last) = (of(&|epoch| epoch == from.kept_epoch()), of(&|_| true));
        let is_last = kept == last;
        let Pointer { checkpoint, latest, .. } = &self.pointer;
        let is_named = *checkpoint == kept && !(is_last && latest.is_some());
        if let Some(path) = kept.filter(|_| !is_named)
            && let Some(manifest) = Manifest::read(&self.root.folder(&path))?
        {
            self.name_epoch(path, manifest, true);
        }
        if let Some(path) = last.filter(|path| !is_last && self.pointer.latest.as_ref() != Some(path))
            && let Some(manifest) = Manifest::read(&self.root.folder(&path))?
        {
            self.name_epoch(path, manifest, false);
        }
        Ok(before)
    }

    /// From here on, this is the process that writes, and what the pointer names counts, which was `before`. False if another
    /// process has written it meanwhile.
    fn take_over(&mut self, before: &Pointer) -> Result<bool> {
        check_has_no_folders(&self.root)?;
        self.root.folder(CHECKPOINTS).make()?;
        if let Hold::Name { name, found } = &mut self.hold {
            self.pointer.writer = Some(name.clone());
            *found = self.root.folder(CHECKPOINTS).list()?;
        }
        // In a bucket, another process may have come since it was looked at: its turn shows when it is written.
        if self.pointer == *before && matches!(self.hold, Hold::Lock(_)) {
            return Ok(true);
        }
        match self.point() {
            Err(Error::TakenOver { .. }) => Ok(false),
            pointed => pointed.map(|()| true),
        }
    }

    /// # Errors
    /// Another process has taken over.
    fn check_hold(&self) -> Result<()> {
        let Hold::Name { name, .. } = &self.hold else { return Ok(()) };
        match Pointer::read(&self.root)? {
            Some(pointer) if pointer.writer.as_ref() == Some(name) => Ok(()),
            _ => Err(Error::TakenOver { path: self.root.path().to_owned() }),
        }
    }

    /// Commits a snapshot: until the last moment, readers see the epoch before, and from then on, this one if it is whole.
    /// The one before stays for those who are reading it, until the next commit.
    ///
    /// # Errors
    /// Values that are no numbers: a checkpoint is there to go on from. Another process has taken over.
    pub fn commit(&mut self, description: &Description, snapshot: &Snapshot<'_>) -> Result<()> {
        snapshot.check_finite()?;
        self.write(description, snapshot).map_err(|error| self.reason(error))
    }

    /// Why something has failed: what is missing, another process may have removed that has taken over.
    fn reason(&self, error: Error) -> Error {
        let is_missing = matches!(&error, Error::File(failure) if is_damage(failure));
        match if is_missing { self.check_hold() } else { Ok(()) } {
            Err(taken @ Error::TakenOver { .. }) => taken,
            _ => error,
        }
    }

    fn write(&mut self, description: &Description, snapshot: &Snapshot<'_>) -> Result<()> {
        let Snapshot { progress, predictions, .. } = snapshot;
        self.check_hold()?;
        let before = self.pointer.checkpoint.clone();
        let checkpoints = self.root.folder(CHECKPOINTS);
        let name = match self.hold {
            Hold::Lock(_) => free_name(&checkpoints, progress.step),
            // Another process may be about to write one of this step.
            Hold::Name { .. } => format!("{}-{}", checkpoint(progress.step), random_number()),
        };
        // From when the checkpoint is whole, training goes on from it, and what led to it is told.
        snapshot.logs.iter().for_each(Logged::publish);
        let manifest = snapshot.write(Commit::begin(checkpoints.folder(&name))?, description)?;
        let epoch = predictions.as_ref().map(|_| progress.epoch);
        let known = Known { name, epoch };
        if epoch.is_some() {
            self.name_epoch(known.path(), manifest, progress.kept_epoch() == progress.epoch);
        }
        self.checkpoints.push(known);
        self.name_newest(progress);
        // In a bucket, another process may have taken over since it was looked at.
        self.check_hold()?;
        self.point()?;
        if epoch.is_some() {
            self.refresh()?;
        }
        self.remove_strays(before.as_deref())
    }

    /// Has the pointer name the newest of our checkpoints, and the best epoch's.
    fn name_newest(&mut self, progress: &Progress) {
        let last = |of: &dyn Fn(&Known) -> bool| {
            self.checkpoints.iter().rev().find(|known| of(known)).map(Known::path)
        };
        let newest = last(&|_| true);
        let best = progress.best.as_ref().and_then(|best| last(&|known| known.epoch == Some(best.epoch)));
        self.pointer =
            Pointer { run: Some(progress.run.clone()), newest, best, ..std::mem::take(&mut self.pointer) };
    }

    /// Has it name the last epoch's checkpoint: as the one for readers, or, where an earlier one is better, as the one that
    /// tells of all epochs.
    fn name_epoch(&mut self, path: String, mut manifest: Manifest, is_kept: bool) {
        manifest.files.retain(|file| FILES.contains(&&*file.name));
        let before = std::mem::take(&mut self.pointer);
        self.pointer = match is_kept {
            true => Pointer { checkpoint: Some(path), latest: None, files: manifest.files, ..before },
            false => {
                let mut files = before.files;
                files.retain(|file| !TOLD.contains(&&*file.name));
                files.extend(manifest.files.into_iter().filter(|file| TOLD.contains(&&*file.name)));
                Pointer { latest: Some(path), files, ..before }
            }
        };
    }

    /// The folder that a file of the pointer's is in.
    fn folder_of(&self, name: &str) -> Option<Folder> {
        let Pointer { checkpoint, latest, .. } = &self.pointer;
        let path = latest.as_ref().filter(|_| TOLD.contains(&name)).or(checkpoint.as_ref())?;
        Some(self.root.folder(path))
    }

    /// Writes `run.json`: what it names counts.
    ///
    /// # Errors
    /// Another process has taken over.
    fn point(&mut self) -> Result<()> {
        let text = format!("{:#}\n", json!(self.pointer));
        match self.root.replace(RUN, text.as_bytes(), self.version.as_ref())? {
            Replaced::Done(version) => self.version = Some(version),
            Replaced::Outdated => return Err(Error::TakenOver { path: self.root.path().to_owned() }),
        }
        Ok(())
    }

    /// Gives other readers the model that counts: its files beside `run.json`.
    fn refresh(&self) -> Result<()> {
        let (last, files): (Vec<_>, Vec<_>) =
            self.pointer.files.iter().partition(|file| file.name == HISTORY);
        for file in files.into_iter().chain(last) {
            let name = &*file.name;
            let Some(folder) = self.folder_of(name) else { return Ok(()) };
            if !folder.exists(MANIFEST)? {
                // Somebody has removed it: the copies stand in for it.
                continue;
            }
            if name == CARD && self.root.read(name)?.is_some_and(|card| !is_ours(&card)) {
                continue;
            }
            // The large one isn't held in memory to see whether it is another.
            if name == WEIGHTS || self.root.read(name)? != folder.read(name)? {
                self.root.copy(&folder, name)?;
            }
        }
        Ok(())
    }

    /// Whether that is done, by the file that comes last.
    fn is_fresh(&self) -> Result<bool> {
        let Some(folder) = self.folder_of(HISTORY) else { return Ok(true) };
        Ok(self.root.read(HISTORY)? == folder.read(HISTORY)?)
    }

    /// Removes our checkpoints but the last, the best, the one that counts and the one `before` it; those of runs that this
    /// one has replaced, and what is left of files that were not finished. Whatever else lies there is somebody's; and one of
    /// this run that is ahead of it was passed over, and is made anew before it goes.
    fn remove_strays(&mut self, before: Option<&str>) -> Result<()> {
        let first = self.checkpoints.len().saturating_sub(self.keep_last);
        let kept = self.checkpoints[first..].iter().map(|known| known.name.clone());
        let Pointer { best, checkpoint, latest, .. } = &self.pointer;
        let named = [best, checkpoint, latest].into_iter().flatten().map(String::as_str);
        let named = named.chain(before).filter_map(name).map(str::to_owned);
        let keep = kept.chain(named).collect::<Vec<_>>();
        self.remove_parts()?;
        let checkpoints = self.root.folder(CHECKPOINTS);
        // A link leads to where other runs may have theirs.
        let is_own_folder = !checkpoints.path().is_symlink();
        for name in checkpoints.list()?.into_iter().filter(|name| !keep.contains(name)) {
            let is_known = self.checkpoints.iter().any(|known| known.name == name);
            let may_go = match &self.hold {
                Hold::Lock(_) => is_own_folder,
                Hold::Name { found, .. } => found.contains(&name),
            };
            let is_ahead = || -> Result<bool> {
                let last = self.checkpoints.last().and_then(|known| step(&known.name));
                Ok(step(&name) > last && may_be_of(&checkpoints.folder(&name), self.pointer.run.as_deref())?)
            };
            if is_known || (may_go && is_checkpoint(&checkpoints, &name)? && !is_ahead()?) {
                remove_checkpoint(&checkpoints, &name)?;
            }
        }
        self.checkpoints.retain(|known| keep.contains(&known.name));
        Ok(())
    }

    /// Removes what is left of commits that were cut short. In a bucket, it may be another process that is at one.
    fn remove_unfinished(&self) -> Result<()> {
        let checkpoints = self.root.folder(CHECKPOINTS);
        if matches!(self.hold, Hold::Name { .. }) || checkpoints.path().is_symlink() {
            return Ok(());
        }
        self.remove_parts()?;
        for name in checkpoints.list()? {
            if is_checkpoint(&checkpoints, &name)? && !checkpoints.folder(&name).exists(MANIFEST)? {
                remove_checkpoint(&checkpoints, &name)?;
            }
        }
        Ok(())
    }

    fn remove_parts(&self) -> Result<()> {
        for name in self.root.list()?.into_iter().filter(|name| is_part(name)) {
            self.root.remove(&name)?;
        }
        Ok(())
    }
}

/// A name for the checkpoint of `step` that nothing has: a run that replaces another may come to the same step.
fn free_name(checkpoints: &Folder, step: u64) -> String {
    let name = checkpoint(step);
    let is_free = |name: &String| checkpoints.path().join(name).symlink_metadata().is_err();
    let others = (2..).map(|n| format!("{name}-{n}"));
    // The numbers don't end before a free one.
    [name.clone()].into_iter().chain(others).find(is_free).unwrap_or(name)
}
