//! What training leaves behind, committed as a whole.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::description::describe;
use super::layout::{
    ACCURACY_CHART, CHECKPOINTS, CONFIG, DEV_PREDICTIONS, FILES, HISTORY, LOSS_CHART, RUN, TOKENIZER,
    WEIGHTS, checkpoint,
};
use super::predictions::DevPredictions;
use super::reader::Pointer;
use super::{Error, Result};
use crate::data::{LabelMap, Tokenizer};
use crate::model::ClassifierConfig;
use crate::report::{History, accuracy_chart, loss_chart};
use crate::shape::Shape;
use crate::storage::{BoxError, Commit, FileError, Folder, MANIFEST, Manifest, PART};
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

/// Named tensors; their bytes are asked for one at a time.
pub struct Tensors<'a> {
    pub names: Vec<(String, Shape)>,
    /// The row-major little-endian bytes of the `i`-th.
    pub bytes: &'a mut dyn FnMut(usize) -> std::result::Result<Vec<u8>, BoxError>,
}

/// All that is committed at once.
pub struct Snapshot<'a> {
    /// Optimizer steps done.
    pub step: u64,
    pub description: &'a Description,
    pub history: &'a History,
    pub predictions: DevPredictions<'a>,
    pub weights: Tensors<'a>,
}

/// The one that writes to a run folder.
pub struct Writer {
    root: Folder,
    /// Checkpoints that it has committed.
    committed: Vec<String>,
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
    /// Makes the folder, and finds out whether a run can be written there. A run that it holds stays until the first
    /// commit; nothing else of what it holds is touched.
    ///
    /// # Errors
    /// A folder that holds a run, or a file that one would replace, unless it may be replaced; one that another process
    /// is writing a run to, or that can't be written to.
    pub fn create(root: &Path, replace: bool) -> Result<Self> {
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
        let mut ours = [RUN, WEIGHTS].into_iter().chain(FILES);
        if let Some(name) = ours.find(|name| !replace && root.join(name).exists()) {
            return Err(Error::Holds { path: root.to_owned(), name });
        }
        folder.folder(CHECKPOINTS).make()?;
        if let Some(name) = FILES.into_iter().chain([RUN]).find(|name| root.join(name).is_dir()) {
            let is_folder = io::ErrorKind::IsADirectory.into();
            return Err(FileError::new("can't write", root.join(name))(is_folder).into());
        }
        Ok(Self { root: folder, committed: vec![], lock })
    }

    /// Commits a snapshot: until the last moment, readers see the one before, and from then on, this one. The one before
    /// stays for those who are reading it, until the next commit.
    pub fn commit(&mut self, snapshot: Snapshot<'_>) -> Result<()> {
        let before = Pointer::read(&self.root).ok().flatten();
        let checkpoints = self.root.folder(CHECKPOINTS);
        let name = free_name(&checkpoints, snapshot.step);
        let folder = checkpoints.folder(&name);
        let manifest = write(Commit::begin(folder.clone())?, snapshot)?;
        self.committed.push(name.clone());
        let pointer = Pointer { checkpoint: format!("{CHECKPOINTS}/{name}"), manifest };
        self.root.write(RUN, format!("{:#}\n", json!(pointer)).as_bytes())?;
        // From here on it counts. What follows is for other readers, and room on the disk.
        for file in FILES {
            // A file that is changed in place would change here and there: only the large one is worth it.
            match file {
                WEIGHTS => self.root.link(&folder, file)?,
                _ => self.root.copy(&folder, file)?,
            }
        }
        let before = before.as_ref().and_then(Pointer::name);
        self.remove_strays(|checkpoint| checkpoint == name || Some(checkpoint) == before)
    }

    /// Removes our checkpoints but those to be kept, and what is left of files of ours that were not finished. Whatever
    /// else lies there is somebody's.
    fn remove_strays(&self, keep: impl Fn(&str) -> bool) -> Result<()> {
        for name in self.root.list()?.into_iter().filter(|name| is_part(name)) {
            self.root.remove(&name)?;
        }
        let checkpoints = self.root.folder(CHECKPOINTS);
        // A link leads to where other runs may have theirs.
        let is_own_folder = !checkpoints.path().is_symlink();
        for name in checkpoints.list()?.into_iter().filter(|name| !keep(name)) {
            if self.committed.contains(&name) || (is_own_folder && is_checkpoint(&checkpoints, &name)?) {
                checkpoints.remove(&name)?;
            }
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

/// Whether a folder is a checkpoint, finished or not: by its name, and by holding nothing else.
fn is_checkpoint(checkpoints: &Folder, name: &str) -> Result<bool> {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_name = name.strip_prefix("step-").is_some_and(|rest| rest.split('-').all(number));
    let path = checkpoints.path().join(name);
    if !is_name || path.is_symlink() || !path.is_dir() {
        return Ok(false);
    }
    let is_ours = |file: &String| file == MANIFEST || FILES.contains(&file.as_str()) || is_part(file);
    Ok(checkpoints.folder(name).list()?.iter().all(is_ours))
}

/// Whether a name is that of a file of a run that was not finished.
fn is_part(name: &str) -> bool {
    let of = FILES.into_iter().chain([RUN, MANIFEST]);
    name.ends_with(PART) && of.into_iter().any(|file| name.starts_with(&format!(".{file}.")))
}

fn write(mut commit: Commit, snapshot: Snapshot<'_>) -> Result<Manifest> {
    let Snapshot { step: _, description, history, predictions, weights } = snapshot;
    let mut add = |name: &str, bytes: &[u8]| commit.write(name, |writer| Ok(writer.write_all(bytes)?));
    add(CONFIG, description.config.as_bytes())?;
    add(TOKENIZER, description.tokenizer.as_bytes())?;
    add(HISTORY, history.to_lines().as_bytes())?;
    add(LOSS_CHART, &loss_chart(history.epochs())?)?;
    add(ACCURACY_CHART, &accuracy_chart(history.epochs())?)?;
    commit.write(DEV_PREDICTIONS, |writer| Ok(predictions.write(writer)?))?;
    // transformers looks for this to know which library's layout it is.
    let metadata = [("format", "pt")];
    commit.write(WEIGHTS, |writer| {
        write_safetensors(writer, &weights.names, &metadata, |i, writer| {
            Ok(writer.write_all(&(weights.bytes)(i)?)?)
        })
    })?;
    Ok(commit.finish()?)
}
