//! The files of a pretrained model: from a local folder, a bucket, or from the Hugging Face Hub and its cache.

use std::fmt;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};

use super::download::Remote;
use super::http::{Client, Timeouts};
use crate::data::TokenizerFiles;
use crate::storage::{Fetched, FileError, Folder, Manifest, is_bucket, is_damage};

/// Names of files as the Hub has them.
pub const CONFIG: &str = "config.json";
pub const TOKENIZER: &str = "tokenizer.json";
pub const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Why a model's files were not found. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(
        "`{0}` is neither a folder here, nor gs://bucket/folder, nor a model id such as google-bert/bert-base-multilingual-cased"
    )]
    NotAModel(String),
    #[error("{}: is a file; give the folder that holds config.json and model.safetensors", .0.display())]
    NotAFolder(PathBuf),
    #[error("{place}: there is no {wanted}")]
    MissingFile { place: String, wanted: String },
    #[error(
        "{place}: the weights are in PyTorch's pickle format alone; convert them to model.safetensors, or choose \
         a revision that has it"
    )]
    OnlyPickle { place: String },
    #[error("{path}: {message}")]
    Index { path: String, message: String },
    /// A file that is not what its folder's manifest says.
    #[error("{path}: {message}")]
    Damaged { path: String, message: String },
    #[error("{model}: HF_HUB_OFFLINE is set and {} does not hold all of its files", cache.display())]
    Offline { model: String, cache: PathBuf },
    #[error(
        "{model}: the Hub at {endpoint} answered {status}: check the name and the revision, and set HF_TOKEN if the \
         model is private or gated"
    )]
    Refused { model: String, endpoint: String, status: u16 },
    #[error("{model}: downloading {what} from {endpoint} failed: {message}")]
    Download { model: String, what: String, endpoint: String, message: String },
    #[error(transparent)]
    Cache(#[from] FileError),
    #[error("{variable}: expected {expected}")]
    Setting { variable: &'static str, expected: &'static str },
    #[error("there is no home folder for the Hub's cache: set HF_HOME")]
    NoHome,
}

impl HubError {
    /// True where the model's name or files are at fault, false where the network or the cache failed.
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Download { .. } => false,
            Self::Cache(error) => error.is_input_error(),
            _ => true,
        }
    }
}

/// Where models that are not local folders come from.
#[derive(Clone, Debug)]
pub struct Hub {
    cache: PathBuf,
    /// With a user and a password, maybe.
    endpoint: Secret,
    token: Option<Secret>,
    offline: bool,
    timeouts: Timeouts,
    progress: bool,
}

/// Text that no message shows.
#[derive(Clone)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("...")
    }
}

impl Hub {
    /// As the environment says; see [`Hub::from_variables`].
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As the variables say, which are those of Python's `huggingface_hub`:
    ///
    /// - the cache: `HF_HUB_CACHE` (or `HUGGINGFACE_HUB_CACHE`), else `hub` in `HF_HOME`; that is
    ///   `XDG_CACHE_HOME/huggingface` or `~/.cache/huggingface` if it isn't set;
    /// - the token: `HF_TOKEN` (or `HUGGING_FACE_HUB_TOKEN`), else the file `HF_TOKEN_PATH`, else `token` in `HF_HOME`;
    /// - `HF_ENDPOINT`, and `HF_HUB_OFFLINE`, which is true as `1`, `true`, `yes` or `on`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(expand_home);
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")));
        let in_home = |name: &str| home.as_ref().map(|home| home.join(name));
        let token_path = path("HF_TOKEN_PATH").or_else(|| in_home("token"));
        let token = set("HF_TOKEN")
            .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| std::fs::read_to_string(token_path?).ok())
            .map(|token| token.trim().to_owned());
        let truth = ["1", "true", "yes", "on"];
        Ok(Self {
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .or_else(|| in_home("hub"))
                .ok_or(HubError::NoHome)?,
            endpoint: Secret(set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned())),
            token: token.filter(|token| !token.is_empty()).map(Secret),
            offline: set("HF_HUB_OFFLINE")
                .is_some_and(|value| truth.contains(&value.to_lowercase().as_str())),
            timeouts: Timeouts::default(),
            progress: false,
        })
    }

    /// The same, with other limits to its patience.
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// The same, but it says on stderr what is downloaded, what is waited for and what is tried again: by a bar on a
    /// terminal, by a line per file anywhere else.
    pub fn with_progress(self) -> Self {
        Self { progress: true, ..self }
    }
}

/// A path of the user's, where `~` is the home folder, as Python's tools have it.
fn expand_home(path: String) -> PathBuf {
    match (path.strip_prefix('~'), std::env::home_dir()) {
        (Some(""), Some(home)) => home,
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => path.into(),
    }
}

/// The files of a pretrained model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFiles {
    /// `config.json`
    pub config: PathBuf,
    pub tokenizer: TokenizerFiles,
    /// `model.safetensors`, or its shards; none where they were not wanted.
    pub weights: Vec<PathBuf>,
    /// Where they are, if they were brought from a bucket: until this is dropped, or opened files are closed.
    pub fetched: Option<Fetched>,
}

impl ModelFiles {
    /// Finds a model's files. A path that is a folder is read as it is; otherwise `model` is a Hub id, whose files
    /// come from the cache if it has them all, and are downloaded if not. `revision` is a branch, tag or commit.
    /// Without `weights`, only the configuration and the tokenizer are wanted.
    pub fn resolve(model: &str, revision: Option<&str>, weights: bool, hub: &Hub) -> Result<Self, HubError> {
        let path = Path::new(model);
        if is_bucket(path) {
            return Self::fetch(&Folder::new(path), None, weights);
        }
        if path.is_dir() {
            return select(model, weights, |name| path.join(name).is_file(), |name| Ok(path.join(name)));
        }
        if path.is_file() {
            return Err(HubError::NotAFolder(path.to_owned()));
        }
        if !is_model_id(model) {
            return Err(HubError::NotAModel(model.to_owned()));
        }
        let repo =
            Repo::with_revision(model.to_owned(), RepoType::Model, revision.unwrap_or("main").to_owned());
        if let Some(folder) = cached_snapshot(hub, &repo) {
            let has = |name: &str| folder.join(name).is_file();
            let files = select(model, weights, has, |name| Ok(folder.join(name)));
            match files {
                Ok(files) if hub.offline || files.is_certain() => return Ok(files),
                _ => {}
            }
        }
        if hub.offline {
            return Err(HubError::Offline { model: model.to_owned(), cache: hub.cache.clone() });
        }
        download(model, &repo, weights, hub)
    }

    /// Brings the files of `folder`, which is in a bucket, into a temporary folder, and checks those that `manifest` lists.
    pub fn fetch(folder: &Folder, manifest: Option<&Manifest>, weights: bool) -> Result<Self, HubError> {
        let names = folder.list()?;
        let fetched = Fetched::new(folder)?;
        let get = |name: &str| {
            let listed = manifest.and_then(|manifest| manifest.files.iter().find(|file| file.name == name));
            fetched.bring(folder, name, listed).map_err(|error| match listed.is_some() && is_damage(&error) {
                true => HubError::Damaged {
                    path: error.path.display().to_string(),
                    message: error.source.to_string(),
                },
                false => error.into(),
            })
        };
        let has = |name: &str| names.iter().any(|found| found == name);
        let files = select(&folder.path().to_string_lossy(), weights, has, get)?;
        Ok(Self { fetched: Some(fetched), ..files })
    }

    /// All of them.
    pub fn paths(&self) -> Vec<&Path> {
        let tokenizer = match &self.tokenizer {
            TokenizerFiles::Json(path) => vec![path],
            TokenizerFiles::Vocab { vocab, config } => [vocab].into_iter().chain(config).collect(),
        };
        [&self.config].into_iter().chain(tokenizer).chain(&self.weights).map(PathBuf::as_path).collect()
    }

    /// False if a file that changes the meaning of another may be missing from a cache.
    fn is_certain(&self) -> bool {
        matches!(self.tokenizer, TokenizerFiles::Json(_))
    }
}

/// One or two names of letters, digits, `-`, `_` and `.`, with a slash between.
fn is_model_id(model: &str) -> bool {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    model.split('/').count() <= 2 && model.split('/').all(is_name)
}

/// The folder of a repository's files in the cache: a recorded branch or tag, or a commit.
fn cached_snapshot(hub: &Hub, repo: &Repo) -> Option<PathBuf> {
    let cache = Cache::new(hub.cache.clone()).repo(repo.clone());
    let commit = recorded_commit(hub, repo).unwrap_or_else(|| repo.revision().to_owned());
    Some(cache.pointer_path(&commit)).filter(|folder| folder.is_dir())
}

/// The commit that the revision stood for when it was last asked about.
fn recorded_commit(hub: &Hub, repo: &Repo) -> Option<String> {
    let commit = std::fs::read_to_string(reference_path(hub, repo)).ok()?;
    Some(commit.trim().to_owned())
}

fn reference_path(hub: &Hub, repo: &Repo) -> PathBuf {
    hub.cache.join(repo.folder_name()).join("refs").join(repo.revision())
}

/// Downloads what the cache lacks, all of it from the commit that the revision stands for now.
fn download(model: &str, repo: &Repo, weights: bool, hub: &Hub) -> Result<ModelFiles, HubError> {
    let token = hub.token.as_ref().map(|token| token.0.as_str());
    let client = Client::new(&hub.endpoint.0, token, hub.timeouts, hub.progress)?;
    let cache = Cache::new(hub.cache.clone());
    let remote = Remote::open(&client, &cache, model, repo.revision())?;
    let has = |name: &str| remote.files.iter().any(|file| file == name);
    let files = select(model, weights, has, |name| remote.file(name))?;
    if recorded_commit(hub, repo).as_ref() != Some(&remote.commit) && repo.revision() != remote.commit {
        let recorded = cache.repo(repo.clone()).create_ref(&remote.commit);
        recorded.map_err(FileError::new("can't write", reference_path(hub, repo)))?;
    }
    Ok(files)
}

/// Chooses among the files of one place: `has` says whether it has a file, `get` gives its path here.
fn select(
    place: &str,
    weights: bool,
    has: impl Fn(&str) -> bool,
    get: impl Fn(&str) -> Result<PathBuf, HubError>,
) -> Result<ModelFiles, HubError> {
    let wanted = |name: &str, wanted: &str| match has(name) {
        true => get(name),
        false => Err(HubError::MissingFile { place: place.to_owned(), wanted: wanted.to_owned() }),
    };
    let config = wanted(CONFIG, CONFIG)?;
    let tokenizer = if has(TOKENIZER) {
        TokenizerFiles::Json(get(TOKENIZER)?)
    } else {
        let vocab = wanted("vocab.txt", "tokenizer.json or vocab.txt")?;
        let config = has("tokenizer_config.json").then(|| get("tokenizer_config.json")).transpose()?;
        TokenizerFiles::Vocab { vocab, config }
    };
    let weights = if !weights {
        vec![]
    } else if has(INDEX) && !has(WEIGHTS) {
        let names = shard_names(&get(INDEX)?)?;
        let shard = |name: &String| wanted(name, &format!("shard {name}, which {INDEX} names"));
        names.iter().map(shard).collect::<Result<_, _>>()?
    } else if !has(WEIGHTS) && has("pytorch_model.bin") {
        return Err(HubError::OnlyPickle { place: place.to_owned() });
    } else {
        vec![wanted(WEIGHTS, WEIGHTS)?]
    };
    Ok(ModelFiles { config, tokenizer, weights, fetched: None })
}

/// The distinct files that `model.safetensors.index.json` names, sorted.
fn shard_names(index: &Path) -> Result<Vec<String>, HubError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let error = |message: String| HubError::Index { path: index.display().to_string(), message };
    let text = std::fs::read(index).map_err(|cause| error(cause.to_string()))?;
    let Index { weight_map } = serde_json::from_slice(&text).map_err(|cause| error(cause.to_string()))?;
    let mut names: Vec<_> = weight_map.into_values().collect();
    names.sort();
    names.dedup();
    let is_name = |name: &String| !name.contains(|c: char| matches!(c, '/' | '\\') || c.is_control());
    match names.iter().find(|name| !is_name(name)) {
        Some(name) => Err(error(format!("shard `{}` is not in the same folder", name.escape_debug()))),
        None if names.is_empty() => Err(error("no shard is named".to_owned())),
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_is_the_home_folder_where_it_stands_alone() {
        let home = std::env::home_dir().unwrap();
        for (path, expected) in [
            ("~", home.clone()),
            ("~/hf/hub", home.join("hf/hub")),
            ("~someone/hf", "~someone/hf".into()),
            ("/a/~/b", "/a/~/b".into()),
        ] {
            assert_eq!(expand_home(path.to_owned()), expected);
        }
    }
}
