//! What training leaves behind, committed as a whole.

use std::path::Path;

use serde_json::json;

use super::description::describe;
use super::layout::{
    ACCURACY_CHART, CHECKPOINTS, CONFIG, DEV_PREDICTIONS, FILES, HISTORY, LOSS_CHART, RUN, TOKENIZER,
    WEIGHTS, checkpoint,
};
use super::predictions::DevPredictions;
use super::reader::{Pointer, read_json};
use super::{Error, Result};
use crate::data::{LabelMap, Tokenizer};
use crate::model::ClassifierConfig;
use crate::report::{History, accuracy_chart, loss_chart};
use crate::shape::Shape;
use crate::storage::{BoxError, Commit, FileError, Folder, PART};
use crate::weights::{ModelFiles, write_safetensors};

/// What a run says of its model: the same at each commit.
pub struct Description {
    config: String,
    tokenizer: String,
}

impl Description {
    /// Of a model that is trained from `original`.
    pub fn new(
        original: &ModelFiles,
        tokenizer: &Tokenizer,
        model: &ClassifierConfig,
        labels: &LabelMap,
    ) -> Result<Self> {
        let config = describe(read_json(&original.config)?, model, labels);
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
}

impl Writer {
    /// Makes the folder, and removes what a run that was cut short left there. A run that it holds stays until the first
    /// commit.
    ///
    /// # Errors
    /// A folder that holds a run, unless it may be replaced.
    pub fn create(root: &Path, replace: bool) -> Result<Self> {
        let writer = Self { root: Folder::new(root) };
        let pointer = Pointer::read(&writer.root);
        let holds_run = !matches!(pointer, Ok(None)) || root.join(WEIGHTS).exists();
        if holds_run && !replace {
            return Err(Error::HoldsRun { path: root.to_owned() });
        }
        std::fs::create_dir_all(root).map_err(FileError::new("can't make", root))?;
        // A pointer that can't be read may still be somebody's to mend.
        if let Ok(pointer) = pointer {
            writer.remove_strays(pointer.as_ref().and_then(Pointer::name))?;
        }
        Ok(writer)
    }

    /// Commits a snapshot: until the last moment, readers see the one before, and from then on, this one.
    pub fn commit(&mut self, snapshot: Snapshot<'_>) -> Result<()> {
        let current = Pointer::read(&self.root).ok().flatten();
        let name = free_name(snapshot.step, current.as_ref().and_then(Pointer::name));
        let folder = self.root.folder(CHECKPOINTS).folder(&name);
        write(Commit::begin(folder.clone())?, snapshot)?;
        let pointer = json!(Pointer { checkpoint: format!("{CHECKPOINTS}/{name}") });
        self.root.write(RUN, format!("{pointer:#}\n").as_bytes())?;
        // From here on it counts. What follows is for other readers, and room on the disk.
        for file in FILES {
            self.root.link(&folder, file)?;
        }
        self.remove_strays(Some(&name))
    }

    /// Removes checkpoints other than `current`, and files that were not finished.
    fn remove_strays(&self, current: Option<&str>) -> Result<()> {
        for name in self.root.list()? {
            if name.starts_with('.') && name.ends_with(PART) {
                self.root.remove(&name)?;
            }
        }
        let checkpoints = self.root.folder(CHECKPOINTS);
        for name in checkpoints.list()? {
            if Some(name.as_str()) != current {
                checkpoints.remove(&name)?;
            }
        }
        Ok(())
    }
}

/// A name for the checkpoint of `step` that isn't the current one's: a run that replaces another may come to the same
/// step.
fn free_name(step: u64, current: Option<&str>) -> String {
    let name = checkpoint(step);
    if Some(name.as_str()) == current { name + "-again" } else { name }
}

fn write(mut commit: Commit, snapshot: Snapshot<'_>) -> Result<()> {
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
    commit.finish()?;
    Ok(())
}
