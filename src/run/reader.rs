//! A trained model's folder, as evaluation and prediction read it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::layout::{CHECKPOINTS, RUN};
use super::{Error, Result, description};
use crate::data::{LabelMap, Tokenizer};
use crate::model::{BertConfig, ClassifierConfig};
use crate::storage::{FileError, Folder, MANIFEST, Manifest};
use crate::weights::{Hub, InitialValues, ModelFiles, TensorFiles, open_tokenizer, open_weights};

/// `run.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Pointer {
    /// The folder of the checkpoint that counts, relative to the run's.
    pub checkpoint: String,
    /// What the checkpoint holds, so that the run's own folder can stand in for it.
    #[serde(flatten)]
    pub manifest: Manifest,
}

impl Pointer {
    /// The pointer of the run in `root`; `None` for a folder that has none.
    pub fn read(root: &Folder) -> Result<Option<Self>> {
        let Some(bytes) = root.read(RUN)? else { return Ok(None) };
        let error = |message: String| Error::Input { path: root.path().join(RUN), message };
        let broken = |cause| error(format!("it should name the run's checkpoint, but is no JSON: {cause}"));
        let json: Value = serde_json::from_slice(&bytes).map_err(broken)?;
        // Somebody else's file of that name.
        if json.get("checkpoint").is_none() {
            return Ok(None);
        }
        let unlike = |cause: serde_json::Error| {
            error(format!("not a run's, whose checkpoint it should name: {cause}"))
        };
        let pointer = Self::deserialize(json).map_err(unlike)?;
        let name = pointer.name();
        match name.is_some_and(|name| !name.is_empty() && !name.contains(['/', '\\']) && name != "..") {
            true => Ok(Some(pointer)),
            false => Err(error(format!("`{}` is no checkpoint of this run", pointer.checkpoint))),
        }
    }

    /// The checkpoint's name among all.
    pub fn name(&self) -> Option<&str> {
        self.checkpoint.strip_prefix(CHECKPOINTS)?.strip_prefix('/')
    }

    /// The folder whose files are those of the checkpoint: its own, or, for a run that was copied without its
    /// checkpoints, the run's.
    fn folder(&self, root: &Folder) -> Result<Folder> {
        let own = root.folder(&self.checkpoint);
        let damaged = |error: FileError| Error::Input { path: error.path, message: error.source.to_string() };
        let (folder, manifest) = match own.path().exists() {
            true => (own.clone(), Manifest::read(&own).map_err(damaged)?),
            false => (root.clone(), Some(self.manifest.clone())),
        };
        let error = |name: &str, message: String| Error::Input { path: folder.path().join(name), message };
        let not_whole = || error(MANIFEST, "there is none: the checkpoint is not whole".to_owned());
        let manifest = manifest.ok_or_else(not_whole)?;
        manifest.check(&folder).map_err(|(name, message)| error(&name, message))?;
        Ok(folder)
    }
}

/// The folder that holds the files of the model in `root`: the checkpoint that `run.json` names, or, for a folder
/// without one, itself.
///
/// # Errors
/// A checkpoint that is not whole, or a file of it that is not as it was committed.
pub fn model_folder(root: &Path) -> Result<PathBuf> {
    let root = Folder::new(root);
    let Some(mut pointer) = Pointer::read(&root)? else { return Ok(root.path().to_owned()) };
    loop {
        match (pointer.folder(&root), Pointer::read(&root)?) {
            (Ok(folder), _) => return Ok(folder.path().to_owned()),
            // A run that goes on may have put newer ones in its place.
            (Err(_), Some(newer)) if newer.checkpoint != pointer.checkpoint => pointer = newer,
            (Err(error), _) => return Err(error),
        }
    }
}

/// The files of a pretrained model, as [`ModelFiles::resolve`] finds them, or of a run.
pub fn model_files(model: &str, revision: Option<&str>, weights: bool, hub: &Hub) -> Result<ModelFiles> {
    let path = Path::new(model);
    if !path.is_dir() {
        return Ok(ModelFiles::resolve(model, revision, weights, hub)?);
    }
    Ok(ModelFiles::resolve(&model_folder(path)?.to_string_lossy(), revision, weights, hub)?)
}

/// A trained model.
pub struct Run {
    pub model: ClassifierConfig,
    pub labels: LabelMap,
    /// The one that the model was trained with.
    pub tokenizer: Tokenizer,
    weights: TensorFiles,
}

impl Run {
    /// Opens what was committed last.
    ///
    /// # Errors
    /// A folder that is not a run's, or whose files don't fit together.
    pub fn open(root: &Path) -> Result<Self> {
        if !root.is_dir() {
            return Err(Error::NoRun { path: root.to_owned() });
        }
        let files = model_files(&root.to_string_lossy(), None, true, &Hub::from_env()?)?;
        let error = |message: String| Error::Input { path: files.config.clone(), message };
        let bert = BertConfig::read(&files.config)?;
        let (model, labels) = description::read(&read_json(&files.config)?, bert).map_err(error)?;
        let weights = open_weights(&files, &model)?;
        InitialValues::Trained(&weights).check(&model.weights())?;
        let tokenizer = open_tokenizer::<Error>(&files, &model.bert, model.max_length)?;
        Ok(Self { model, labels, tokenizer, weights })
    }

    /// The values of its weights.
    pub fn values(&self) -> InitialValues<'_> {
        InitialValues::Trained(&self.weights)
    }

    /// The files of its weights.
    pub fn weights(&self) -> &TensorFiles {
        &self.weights
    }
}

/// Reads a JSON file.
pub fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(FileError::new("can't read", path))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::Input { path: path.to_owned(), message: error.to_string() })
}
