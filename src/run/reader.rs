//! A trained model's folder, as evaluation and prediction read it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ensemble::check_is_single;
use super::layout::{CARD, CHECKPOINTS, DEV_PREDICTIONS, FILES, RUN, TRAINING_FILES};
use super::{Error, Result, description, predictions};
use crate::data::{LabelMap, Tokenizer};
use crate::model::{BertConfig, ClassifierConfig};
use crate::storage::{Folder, MANIFEST, Manifest, ManifestEntry, is_bucket};
use crate::weights::{Hub, InitialValues, ModelFiles, TensorFiles, open_tokenizer, open_weights};

/// `run.json`. Folders are relative to the run's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Pointer {
    /// The checkpoint that readers are given: that of the last whole epoch, or of the best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// That of the last whole epoch, where the best is another: it tells of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest: Option<String>,
    /// The checkpoint that was committed last, from which training goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest: Option<String>,
    /// That of the best epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<String>,
    /// Which run it is: see [`Progress::run`](super::Progress::run). Until its first epoch is whole, `checkpoint` is that of
    /// the run that it replaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The process that writes it, where nothing else keeps others from doing so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writer: Option<String>,
    /// The files of `checkpoint`, so that the run's own folder can stand in for it.
    pub files: Vec<ManifestEntry>,
}

impl Pointer {
    /// The pointer of the run in `root`; `None` for a folder that has none.
    pub fn read(root: &Folder) -> Result<Option<Self>> {
        let Some(bytes) = root.read(RUN)? else { return Ok(None) };
        let error = |message: String| Error::Input { path: root.path().join(RUN), message };
        let broken = |cause| error(format!("it should name the run's checkpoint, but is no JSON: {cause}"));
        let json: Value = serde_json::from_slice(&bytes).map_err(broken)?;
        // Somebody else's file of that name.
        if json.get("checkpoint").is_none() && json.get("run").is_none() {
            return Ok(None);
        }
        let unlike = |cause: serde_json::Error| {
            error(format!("not a run's, whose checkpoint it should name: {cause}"))
        };
        let pointer = Self::deserialize(json).map_err(unlike)?;
        let is_name = |name: &str| !name.is_empty() && !name.contains(['/', '\\']) && name != "..";
        match &pointer.checkpoint {
            Some(path) if !name(path).is_some_and(is_name) => {
                Err(error(format!("`{path}` is no checkpoint of this run")))
            }
            Some(path) if pointer.files.is_empty() => {
                Err(error(format!("not a run's: it lists no file of `{path}`")))
            }
            _ if let Some(file) = pointer.files.iter().find(|file| !FILES.contains(&&*file.name)) => {
                Err(error(format!("not a run's: `{}` is no file of one", file.name)))
            }
            _ => Ok(Some(pointer)),
        }
    }

    /// The folder whose files are those of the checkpoint that counts, and what they should be: its own, or, for a run that
    /// was copied without its checkpoints, the run's.
    fn checkpoint(&self, root: &Folder) -> Result<(Folder, Manifest)> {
        let Some(checkpoint) = &self.checkpoint else {
            return Err(Error::NoEpoch { path: root.path().to_owned(), newest: self.newest.clone() });
        };
        let own = root.folder(checkpoint);
        let (folder, manifest) = match root.exists(checkpoint)? {
            true => (own.clone(), Manifest::read(&own).map_err(Error::committed)?),
            false => (root.clone(), Some(Manifest { files: self.files.clone() })),
        };
        let error = |name: &str, message: String| Error::Input { path: folder.path().join(name), message };
        let not_whole = || error(MANIFEST, "there is none: the checkpoint is not whole".to_owned());
        let mut manifest = manifest.ok_or_else(not_whole)?;
        // What only training needs is much, and of no use here.
        manifest.files.retain(|file| !TRAINING_FILES.contains(&&*file.name));
        // A card is for people, who may have put theirs in its place.
        manifest.files.retain(|file| file.name != CARD);
        manifest.check(&folder).map_err(Error::committed)?;
        Ok((folder, manifest))
    }
}

/// Gives `take` the checkpoint that `run.json` names in `root` and its manifest, or, where there is no `run.json`, `root`
/// itself.
fn with_checkpoint<T>(root: &Folder, take: impl Fn(&Folder, Option<&Manifest>) -> Result<T>) -> Result<T> {
    let Some(mut pointer) = Pointer::read(root)? else { return take(root, None) };
    loop {
        let taken = pointer.checkpoint(root).and_then(|(folder, manifest)| take(&folder, Some(&manifest)));
        match (taken, Pointer::read(root)?) {
            (Ok(taken), _) => return Ok(taken),
            // A run that goes on may have put newer ones in its place.
            (Err(_), Some(newer)) if newer.checkpoint != pointer.checkpoint => pointer = newer,
            (Err(error), _) => return Err(error),
        }
    }
}

/// The name, among all checkpoints, of the one at this path.
pub(super) fn name(checkpoint: &str) -> Option<&str> {
    checkpoint.strip_prefix(CHECKPOINTS)?.strip_prefix('/')
}

/// The folder that holds the files of the model in `root`: the checkpoint that `run.json` names, or, for a folder
/// without one, itself.
///
/// # Errors
/// A checkpoint that is not whole, or a file of it that is not as it was committed.
pub fn model_folder(root: &Path) -> Result<PathBuf> {
    with_checkpoint(&Folder::new(root), |folder, _| Ok(folder.path().to_owned()))
}

/// The files of a pretrained model, as [`ModelFiles::resolve`] finds them, or of a run.
///
/// # Errors
/// An ensemble's folder, or files that aren't there.
pub fn model_files(model: &str, revision: Option<&str>, weights: bool, hub: &Hub) -> Result<ModelFiles> {
    let path = Path::new(model);
    if !is_bucket(path) && !path.is_dir() {
        return Ok(ModelFiles::resolve(model, revision, weights, hub)?);
    }
    check_is_single(path)?;
    if is_bucket(path) {
        let fetch =
            |folder: &Folder, manifest: Option<&Manifest>| Ok(ModelFiles::fetch(folder, manifest, weights)?);
        return with_checkpoint(&Folder::new(path), fetch);
    }
    Ok(ModelFiles::resolve(&model_folder(path)?.to_string_lossy(), revision, weights, hub)?)
}

/// A trained model.
pub struct Run {
    /// Its folder.
    pub path: PathBuf,
    /// The name of the checkpoint that it was opened at, if it has any.
    pub checkpoint: Option<String>,
    pub model: ClassifierConfig,
    pub labels: LabelMap,
    /// The one that the model was trained with.
    pub tokenizer: Tokenizer,
    /// Its `config.json`.
    config: Value,
    weights: TensorFiles,
}

impl Run {
    /// Opens what was committed last.
    ///
    /// # Errors
    /// A folder that is not a run's, or whose files don't fit together.
    pub fn open(root: &Path) -> Result<Self> {
        check_is_there(root)?;
        let before = checkpoint_name(root)?;
        let files = model_files(&root.to_string_lossy(), None, true, &Hub::from_env()?)?;
        let checkpoint = match checkpoint_name(root)? {
            same if same == before => same,
            // A run that goes on has put a newer one in its place.
            _ => return Self::open(root),
        };
        let error = |message: String| Error::Input { path: files.config.clone(), message };
        let bert = BertConfig::read(&files.config)?;
        let config = read_json(&files.config)?;
        let (model, labels) = description::read(&config, bert).map_err(error)?;
        let weights = open_weights(&files, &model)?;
        InitialValues::Trained(&weights).check(&model.weights())?;
        let tokenizer = open_tokenizer::<Error>(&files, &model.bert, model.max_length)?;
        Ok(Self { path: root.to_owned(), checkpoint, model, labels, tokenizer, config, weights })
    }

    /// A `config.json` that says of the model what transformers understands.
    pub fn hub_config(&self) -> Value {
        description::describe_for_hub(self.config.clone(), &self.model, &self.labels)
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

/// What `config.json` at `path`, which holds `json`, says of the classifier that `bert` was trained as; `None` where it is no
/// run's.
pub fn settings(
    path: &Path,
    json: &Value,
    bert: &BertConfig,
) -> Result<Option<(ClassifierConfig, LabelMap)>> {
    if !description::is_runs(json) {
        return Ok(None);
    }
    let error = |message: String| Error::Input { path: path.to_owned(), message };
    description::read(json, bert.clone()).map(Some).map_err(error)
}

/// Whether there is such a folder.
pub(super) fn check_is_there(root: &Path) -> Result<()> {
    let is_there = match is_bucket(root) {
        true => Folder::new(root).exists("")?,
        false => root.is_dir(),
    };
    if is_there { Ok(()) } else { Err(Error::NoRun { path: root.to_owned() }) }
}

/// The held-out rows of the run in `root`, as numbers of its table's rows, with their probabilities of each class.
///
/// # Errors
/// A run without them, or whose file of them can't be read.
pub fn read_probabilities(root: &Path) -> Result<Vec<(usize, Vec<f64>)>> {
    let error = |message: String| Error::Input { path: root.join(DEV_PREDICTIONS), message };
    let read = |folder: &Folder, _: Option<&Manifest>| {
        folder.read(DEV_PREDICTIONS)?.ok_or_else(|| error("there is no such file".to_owned()))
    };
    predictions::parse(with_checkpoint(&Folder::new(root), read)?).map_err(error)
}

/// Files of the run in `root` that tell of its training, up to the epoch whose model counts; `None` where there is none of a name.
///
/// # Errors
/// A run that can't be read.
pub fn read_told<const N: usize>(root: &Path, names: [&str; N]) -> Result<[Option<Vec<u8>>; N]> {
    with_checkpoint(&Folder::new(root), |folder, _| {
        let mut told = names.map(|_| None);
        for (told, name) in told.iter_mut().zip(names) {
            *told = folder.read(name)?;
        }
        Ok(told)
    })
}

/// The name of the checkpoint that the run in `root` answers with now; `None` for a run without any.
///
/// # Errors
/// A folder that can't be read.
pub fn checkpoint_name(root: &Path) -> Result<Option<String>> {
    let pointer = Pointer::read(&Folder::new(root))?;
    Ok(pointer.and_then(|pointer| Some(name(&pointer.checkpoint?)?.to_owned())))
}

/// The card of the run in `root`, which people may have written anew. `None` where there is none.
///
/// # Errors
/// A folder that can't be read.
pub fn read_card(root: &Path) -> Result<Option<Vec<u8>>> {
    Ok(Folder::new(root).read(CARD)?)
}

/// Reads a JSON file.
pub fn read_json(path: &Path) -> Result<Value> {
    let error = |message: String| Error::Input { path: path.to_owned(), message };
    let bytes = std::fs::read(path).map_err(|cause| error(format!("can't read it: {cause}")))?;
    serde_json::from_slice(&bytes).map_err(|cause| error(cause.to_string()))
}
