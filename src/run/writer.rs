//! What training leaves behind, committed as a whole.

use std::fs::{File, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::checkpoint::{Known, known};
use super::description::describe;
use super::layout::{
    ACCURACY_CHART, CHECKPOINTS, CONFIG, DEV_PREDICTIONS, FILES, HISTORY, LOSS_CHART, MOMENTS, PROGRESS, RUN,
    TOKENIZER, TRAINING_FILES, WEIGHTS, checkpoint, step,
};
use super::predictions::DevPredictions;
use super::progress::Progress;
use super::reader::{Pointer, name};
use super::{Error, Result};
use crate::data::{LabelMap, Tokenizer};
use crate::model::ClassifierConfig;
use crate::report::{History, accuracy_chart, loss_chart};
use crate::shape::{ElementType, Shape};
use crate::storage::{Commit, FileError, Folder, MANIFEST, Manifest, PART};
use crate::weights::write_safetensors;

/// What a run says of its model: the same at each commit.
pub struct Description {
    config: String,
    tokenizer: String,
}

impl Description {
    /// Of a model that is trained from one whose `config.json` holds `original`.
    pub fn new(
        original: &Value,
        tokenizer: &Tokenizer,
        model: &ClassifierConfig,
        labels: &LabelMap,
    ) -> Result<Self> {
        let config = describe(original.clone(), model, labels);
        Ok(Self { config: format!("{config:#}\n"), tokenizer: tokenizer.to_json()? })
    }
}

/// A named array of f32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<usize>,
    pub values: Vec<f32>,
}

/// All that is committed at once.
pub struct Snapshot<'a> {
    pub progress: Progress,
    pub history: History,
    /// Of a whole epoch's end: from then on, readers are given its model.
    pub predictions: Option<DevPredictions<'a>>,
    pub weights: Vec<Tensor>,
    /// Of the trained weights: the gradients' running means, and those of their squares.
    pub moments: [Vec<Tensor>; 2],
}

/// The one that writes to a run folder.
pub struct Writer {
    root: Folder,
    pointer: Pointer,
    /// The checkpoints of this run, in order.
    checkpoints: Vec<Known>,
    keep_last: usize,
    /// Held as long as it lives; `None` where the file system has no locks.
    lock: Option<File>,
}

/// A process that is being started elsewhere in this one may still have the file open, and the lock with it.
impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.lock.as_ref().map(File::unlock);
    }
}

impl Writer {
    /// Makes the folder, and finds out whether a run can be written there. Nothing that it holds is touched.
    ///
    /// # Errors
    /// A folder that another process is writing a run to, or that can't be written to.
    pub fn open(root: &Path) -> Result<Self> {
        if root.is_file() {
            let message = "it is a file, where a folder for the run is expected".to_owned();
            return Err(Error::Input { path: root.to_owned(), message });
        }
        let folder = Folder::new(root);
        folder.make()?;
        // Before what it holds is looked at: another process may be about to put it there.
        let lock = File::open(root).map_err(FileError::new("can't open", root))?;
        let lock = match lock.try_lock() {
            Ok(()) => Some(lock),
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: root.to_owned() }),
            Err(TryLockError::Error(_)) => None,
        };
        folder.folder(CHECKPOINTS).make()?;
        if let Some(name) = FILES.into_iter().chain([RUN]).find(|name| root.join(name).is_dir()) {
            let is_folder = io::ErrorKind::IsADirectory.into();
            return Err(FileError::new("can't write", root.join(name))(is_folder).into());
        }
        Ok(Self { root: folder, pointer: Pointer::default(), checkpoints: vec![], keep_last: 1, lock })
    }

    /// The folder.
    pub fn root(&self) -> &Folder {
        &self.root
    }

    /// Starts a run, which has no checkpoint yet, and gives its name. A run that the folder holds stays until the first
    /// whole epoch; nothing else of what it holds is touched.
    ///
    /// # Errors
    /// A folder that holds a run, or a file that one would replace, unless it may be replaced.
    pub fn start(&mut self, keep_last: usize, replace: bool) -> Result<String> {
        let pointer = match Pointer::read(&self.root) {
            Err(_) if replace => None,
            read => read?,
        };
        // A run that was started and has left nothing is none.
        let is_run = |pointer: &Pointer| pointer.checkpoint.is_some() || pointer.newest.is_some();
        let mut ours = FILES.into_iter();
        let holds = match &pointer {
            Some(pointer) if is_run(pointer) => Some(RUN),
            Some(_) => None,
            None if self.root.path().join(RUN).exists() => Some(RUN),
            None => ours.find(|name| self.root.path().join(name).exists()),
        };
        if let Some(name) = holds.filter(|_| !replace) {
            return Err(Error::Holds { path: self.root.path().to_owned(), name });
        }
        let run = format!("{:016x}", RandomState::new().build_hasher().finish());
        let pointer = pointer.unwrap_or_default();
        self.pointer = Pointer { run: Some(run.clone()), newest: None, best: None, ..pointer };
        self.keep_last = keep_last;
        self.point()?;
        Ok(run)
    }

    /// Goes on with a run from a checkpoint of it. What a commit that was cut short has left to do is done.
    pub fn go_on(&mut self, from: &Progress, keep_last: usize) -> Result<()> {
        self.pointer = Pointer::read(&self.root)?.unwrap_or_default();
        self.checkpoints = known(&self.root, from)?;
        self.keep_last = keep_last;
        if self.pointer.run.as_ref() != Some(&from.run) {
            self.pointer.run = Some(from.run.clone());
            self.point()?;
        }
        self.refresh()?;
        self.remove_strays(None)
    }

    /// Commits a snapshot: until the last moment, readers see the epoch before, and from then on, this one if it is whole.
    /// The one before stays for those who are reading it, until the next commit.
    ///
    /// # Errors
    /// Values that are no numbers: a checkpoint is there to go on from.
    pub fn commit(&mut self, description: &Description, snapshot: &Snapshot<'_>) -> Result<()> {
        let Snapshot { progress, predictions, .. } = snapshot;
        check_finite(snapshot)?;
        let before = self.pointer.checkpoint.clone();
        let checkpoints = self.root.folder(CHECKPOINTS);
        let name = free_name(&checkpoints, progress.step);
        let path = format!("{CHECKPOINTS}/{name}");
        let mut manifest = write(Commit::begin(checkpoints.folder(&name))?, description, snapshot)?;
        let epoch = predictions.as_ref().map(|_| progress.epoch);
        self.checkpoints.push(Known { name, epoch });
        self.pointer.newest = Some(path.clone());
        if epoch.is_some() {
            manifest.files.retain(|file| FILES.contains(&&*file.name));
            self.pointer.checkpoint = Some(path);
            self.pointer.files = manifest.files;
        }
        let best = progress.best.as_ref().and_then(|best| self.checkpoint_of(best.epoch));
        self.pointer.best = best.map(|name| format!("{CHECKPOINTS}/{name}"));
        self.point()?;
        if epoch.is_some() {
            self.refresh()?;
        }
        self.remove_strays(before.as_deref())
    }

    /// The last checkpoint of an epoch's end.
    fn checkpoint_of(&self, epoch: u32) -> Option<&str> {
        let of_epoch = self.checkpoints.iter().rev().find(|known| known.epoch == Some(epoch));
        of_epoch.map(|known| &*known.name)
    }

    /// Writes `run.json`: what it names counts.
    fn point(&mut self) -> Result<()> {
        Ok(self.root.write(RUN, format!("{:#}\n", json!(self.pointer)).as_bytes())?)
    }

    /// Gives other readers the model that counts: its files beside `run.json`.
    fn refresh(&self) -> Result<()> {
        let Some(checkpoint) = &self.pointer.checkpoint else { return Ok(()) };
        let folder = self.root.folder(checkpoint);
        for file in &self.pointer.files {
            // A file that is changed in place would change here and there: only the large one is worth it.
            match &*file.name {
                WEIGHTS => self.root.link(&folder, WEIGHTS)?,
                name if self.root.read(name)? != folder.read(name)? => self.root.copy(&folder, name)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes our checkpoints but the last, the best, the one that counts and the one `before` it; and what is left of
    /// files of ours that were not finished. Whatever else lies there is somebody's.
    fn remove_strays(&mut self, before: Option<&str>) -> Result<()> {
        let first = self.checkpoints.len().saturating_sub(self.keep_last);
        let kept = self.checkpoints[first..].iter().map(|known| known.name.clone());
        let named = [&self.pointer.best, &self.pointer.checkpoint].into_iter().flatten().map(String::as_str);
        let named = named.chain(before).filter_map(name).map(str::to_owned);
        let keep = kept.chain(named).collect::<Vec<_>>();
        for name in self.root.list()?.into_iter().filter(|name| is_part(name)) {
            self.root.remove(&name)?;
        }
        let checkpoints = self.root.folder(CHECKPOINTS);
        // A link leads to where other runs may have theirs.
        let is_own_folder = !checkpoints.path().is_symlink();
        for name in checkpoints.list()?.into_iter().filter(|name| !keep.contains(name)) {
            let is_known = self.checkpoints.iter().any(|known| known.name == name);
            if is_known || (is_own_folder && is_checkpoint(&checkpoints, &name)?) {
                checkpoints.remove(&name)?;
            }
        }
        self.checkpoints.retain(|known| keep.contains(&known.name));
        Ok(())
    }
}

fn check_finite(snapshot: &Snapshot<'_>) -> Result<()> {
    let [first, second] = &snapshot.moments;
    let mut tensors = snapshot.weights.iter().chain(first).chain(second);
    match tensors.find(|tensor| !tensor.values.iter().all(|value| value.is_finite())) {
        Some(tensor) => Err(Error::NotFinite { tensor: tensor.name.clone(), step: snapshot.progress.step }),
        None => Ok(()),
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

/// Whether a folder is a checkpoint, finished or not: by its name, and by holding nothing else.
fn is_checkpoint(checkpoints: &Folder, name: &str) -> Result<bool> {
    let path = checkpoints.path().join(name);
    if step(name).is_none() || path.is_symlink() || !path.is_dir() {
        return Ok(false);
    }
    let ours = FILES.into_iter().chain(TRAINING_FILES).chain([MANIFEST]);
    let is_ours = |file: &String| ours.clone().any(|ours| ours == file) || is_part(file);
    Ok(checkpoints.folder(name).list()?.iter().all(is_ours))
}

/// Whether a name is that of a file of a run that was not finished.
fn is_part(name: &str) -> bool {
    let of = FILES.into_iter().chain([RUN, MANIFEST]);
    name.ends_with(PART) && of.into_iter().any(|file| name.starts_with(&format!(".{file}.")))
}

fn write(mut commit: Commit, description: &Description, snapshot: &Snapshot<'_>) -> Result<Manifest> {
    let Snapshot { progress, history, predictions, weights, moments: [first, second] } = snapshot;
    let mut add = |name: &str, bytes: &[u8]| commit.write(name, |writer| Ok(writer.write_all(bytes)?));
    add(CONFIG, description.config.as_bytes())?;
    add(TOKENIZER, description.tokenizer.as_bytes())?;
    add(HISTORY, history.to_lines().as_bytes())?;
    add(PROGRESS, format!("{:#}\n", json!(progress)).as_bytes())?;
    if let Some(predictions) = predictions {
        add(LOSS_CHART, &loss_chart(history.epochs())?)?;
        add(ACCURACY_CHART, &accuracy_chart(history.epochs())?)?;
        commit.write(DEV_PREDICTIONS, |writer| Ok(predictions.write(writer)?))?;
    }
    for (name, tensors) in [(WEIGHTS, weights), (MOMENTS[0], first), (MOMENTS[1], second)] {
        let shape = |tensor: &Tensor| Shape::new(ElementType::F32, tensor.dims.clone());
        let names = tensors.iter().map(|tensor| (tensor.name.clone(), shape(tensor))).collect::<Vec<_>>();
        // transformers looks for this to know which library's layout it is.
        let metadata = [("format", "pt")];
        commit.write(name, |writer| {
            write_safetensors(writer, &names, &metadata, |i, writer| {
                Ok(writer.write_all(bytemuck::cast_slice(&tensors[i].values))?)
            })
        })?;
    }
    Ok(commit.finish()?)
}
