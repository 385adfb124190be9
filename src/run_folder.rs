//! The folder of a training run, laid out as a model folder of the Hub: what training leaves there, and what
//! evaluation and prediction read back.

use std::borrow::Cow;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::agreement::SharedInputs;
use crate::checkpoint::{Checkpoint, save_safetensors};
use crate::data::{Dataset, LabelMap, Tokenizer, Tokens};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::hub::{Hub, ModelFiles};
use crate::model::{BertConfig, ClassifierConfig, HeadConfig};
use crate::nn::Weight;
use crate::pjrt::Buffer;
use crate::strategy::Strategy;
use crate::train::{InitialValues, StepConfig, StepKind, Trainer, checkpoint_key, upload_weights};

/// The weights' file: a folder that has it holds a run.
pub const WEIGHTS: &str = "model.safetensors";

/// The key of our own settings in `config.json`, beside BERT's.
const SETTINGS: &str = "bert_xla";

/// What `config.json` says beyond BERT's own fields.
#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    max_length: usize,
    mask: bool,
    freeze_padding: bool,
    head: HeadConfig,
    /// As the flag `--labels`.
    labels: String,
}

/// A trained model's folder.
pub struct RunFolder {
    pub path: PathBuf,
    pub model: ClassifierConfig,
    pub labels: LabelMap,
    pub files: ModelFiles,
    weights: Checkpoint,
}

impl RunFolder {
    /// Reads what [`write_description`] and [`write_weights`] wrote.
    ///
    /// # Errors
    /// A folder that is not a run's, or whose files don't fit together.
    pub fn open(path: &Path) -> Result<Self> {
        let error = |message: String| Error::Input { path: path.to_owned(), message };
        if !path.is_dir() {
            return Err(error("there is no such folder; give the --output of a training run".into()));
        }
        let files = ModelFiles::resolve(&path.to_string_lossy(), None, true, &Hub::from_env()?)?;
        let json = read_json(&files.config)?;
        let settings = json.get(SETTINGS).ok_or_else(|| {
            error(format!("config.json has no \"{SETTINGS}\": it is no training run's, but a bare model's"))
        })?;
        let settings =
            Settings::deserialize(settings).map_err(|cause| error(format!("config.json: {cause}")))?;
        let bert = BertConfig::read(&files.config)?;
        let Settings { max_length, mask, freeze_padding, head, labels } = settings;
        let model = ClassifierConfig { bert, head, max_length, mask, freeze_padding };
        let labels = labels.parse::<LabelMap>().map_err(|cause| error(format!("config.json: {cause}")))?;
        let (found, needed) = (model.head.num_classes, labels.num_classes());
        if found < needed {
            return Err(error(format!(
                "config.json: num_classes is {found}, but labels {labels} need {needed}"
            )));
        }
        let weights = open_weights(&files, &model)?;
        InitialValues::Trained(&weights).check(&model.weights())?;
        Ok(Self { path: path.to_owned(), model, labels, files, weights })
    }

    /// Token ids of `texts`, as the model was trained on them.
    pub fn tokenize(&self, texts: &[String]) -> Result<Tokens> {
        Ok(open_tokenizer(&self.files, &self.model.bert, self.model.max_length)?.encode(texts)?)
    }

    /// Makes sure that all processes of a slice have this run, `data` and `batch_size`: see [`SharedInputs::agree`].
    pub fn agree(
        &self,
        strategy: &Strategy,
        step: StepKind,
        batch_size: usize,
        data: &Dataset<'_>,
    ) -> Result<()> {
        let config = StepConfig { model: self.model.clone(), batch_size: 1, replicas: 1 };
        let inputs = SharedInputs {
            program: &|graph| step.program(graph, &config),
            options: &batch_size,
            data: &[data],
            weights: Some(&self.weights),
        };
        inputs.agree(strategy)
    }

    /// What fixes a step's program for batches of `batch_size` over all replicas.
    pub fn step_config(&self, strategy: &Strategy, batch_size: usize) -> Result<StepConfig> {
        let batch_size = strategy.rows_per_replica(batch_size)?;
        Ok(StepConfig { model: self.model.clone(), batch_size, replicas: strategy.replicas() })
    }

    /// Puts trained weights on every local replica: `[local replica][weight]`.
    pub fn upload_weights(&self, strategy: &Strategy, weights: &[Weight]) -> Result<Vec<Vec<Buffer>>> {
        upload_weights(strategy, weights, &InitialValues::Trained(&self.weights))
    }
}

/// The tokenizer of a model, for texts of `max_length` tokens.
///
/// # Errors
/// Texts longer than the model reads, or a vocabulary larger than its embedding.
pub fn open_tokenizer(files: &ModelFiles, bert: &BertConfig, max_length: usize) -> Result<Tokenizer> {
    let error = |message: String| Err(Error::Input { path: files.config.clone(), message });
    let most = bert.max_position_embeddings;
    if max_length > most {
        return error(format!(
            "this model reads at most {most} tokens, not {max_length}; lower --max-length"
        ));
    }
    let tokenizer = Tokenizer::open(&files.tokenizer, max_length)?;
    if tokenizer.vocab_size() > bert.vocab_size {
        return error(format!(
            "vocab_size is {}, but the tokenizer beside it has {} tokens: the files are not of one model",
            bert.vocab_size,
            tokenizer.vocab_size()
        ));
    }
    Ok(tokenizer)
}

/// Opens the weights of `model`, or of its encoder alone.
///
/// # Errors
/// A tensor that has no place in the model.
pub fn open_weights(files: &ModelFiles, model: &ClassifierConfig) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(files)?;
    let weights = model.weights();
    let known = weights.iter().map(|weight| checkpoint_key(&weight.name)).collect::<Vec<_>>();
    if let [first, rest @ ..] = checkpoint.unused(&known).as_slice() {
        let path = files.weights.first().cloned().unwrap_or_default();
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        let shape = checkpoint.shape(first).unwrap_or_default();
        let message = format!(
            "tensor `{first}` {shape:?}{more}: the model that config.json describes has no such weight"
        );
        return Err(Error::Input { path, message });
    }
    Ok(checkpoint)
}

/// Writes `config.json` (the original's fields, and our settings) and `tokenizer.json`, and removes the weights that
/// an earlier run left: they are not what is described.
pub fn write_description(
    folder: &Path,
    original: &ModelFiles,
    tokenizer: &Tokenizer,
    model: &ClassifierConfig,
    labels: &LabelMap,
) -> Result<()> {
    let mut json = read_json(&original.config)?;
    let settings = Settings {
        max_length: model.max_length,
        mask: model.mask,
        freeze_padding: model.freeze_padding,
        head: model.head.clone(),
        labels: labels.to_string(),
    };
    json[SETTINGS] = serde_json::json!(settings);
    json["architectures"] = serde_json::json!(["BertModel"]);
    // The probabilities that it was trained with, which flags may have changed.
    json["hidden_dropout_prob"] = serde_json::json!(model.bert.hidden_dropout_prob);
    json["attention_probs_dropout_prob"] = serde_json::json!(model.bert.attention_probs_dropout_prob);
    let weights = folder.join(WEIGHTS);
    match std::fs::remove_file(&weights) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::file("can't remove", &weights)(error));
        }
        _ => {}
    }
    write_text(&folder.join("config.json"), &format!("{json:#}\n"))?;
    write_text(&folder.join("tokenizer.json"), &tokenizer.to_json()?)
}

/// Writes `model.safetensors`: every weight under its checkpoint name, in f32, one at a time.
pub fn write_weights(folder: &Path, trainer: &Trainer) -> Result<()> {
    let weights = trainer.weights();
    let tensors =
        weights.iter().map(|weight| (weight.name.clone(), weight.shape.clone())).collect::<Vec<_>>();
    // transformers looks for this to know which library's layout it is.
    let metadata = [("format", "pt")];
    save_safetensors(&folder.join(WEIGHTS), &tensors, &metadata, |i| {
        let values = trainer.values(weights[i])?;
        Ok(Cow::Owned(bytemuck::cast_slice(&values).to_vec()))
    })?;
    Ok(())
}

/// Writes a text file, whole or not at all.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomic(path, |file| file.write_all(text.as_bytes())).map_err(Error::file("can't write", path))
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(Error::file("can't read", path))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::Input { path: path.to_owned(), message: error.to_string() })
}
