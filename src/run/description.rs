//! `config.json` of a run: BERT's own fields, the labels as transformers has them, and our settings.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data::{LabelMap, MAX_CLASSES};
use crate::model::{BertConfig, ClassifierConfig, HeadConfig};

/// The key of our own settings, beside BERT's.
const SETTINGS: &str = "bert_xla";

/// What `config.json` says beyond BERT's own fields.
#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    max_length: usize,
    mask: bool,
    /// Older masked runs have none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    zero_padding: bool,
    freeze_padding: bool,
    #[serde(deserialize_with = "HeadConfig::deserialize_field")]
    head: HeadConfig,
    /// Classes of `id2label` that no label of the table stands for.
    #[serde(default)]
    unlabelled: Vec<u32>,
    /// The labels of older runs, as the table's options have them: `-1=1,0=2,1=3`.
    #[serde(default, skip_serializing)]
    labels: Option<String>,
}

/// The `config.json` of a run that was started from a model with the configuration `original`.
pub(super) fn describe(mut original: Value, model: &ClassifierConfig, labels: &LabelMap) -> Value {
    let classes = 0..model.head.num_classes() as u32;
    let name = |class: &u32| match labels.label_of(*class) {
        Some(label) => label.to_owned(),
        None => unlabelled_name(*class, labels),
    };
    let names = classes.clone().map(|class| (class, name(&class))).collect::<Vec<_>>();
    let settings = Settings {
        max_length: model.max_length,
        mask: model.mask,
        zero_padding: model.zero_padding,
        freeze_padding: model.freeze_padding,
        head: model.head.clone(),
        unlabelled: classes.filter(|class| labels.label_of(*class).is_none()).collect(),
        labels: None,
    };
    if let Some(original) = original.as_object_mut() {
        // What would contradict the labels, or have transformers return other things than its model does; and a folder of
        // the machine that it comes from.
        const OTHERS: [&str; 6] = [
            "num_labels",
            "problem_type",
            "return_dict",
            "output_hidden_states",
            "output_attentions",
            "torchscript",
        ];
        original.retain(|name, _| !OTHERS.contains(&&**name));
        let is_path = |name: &Value| name.as_str().is_some_and(|name| Path::new(name).is_absolute());
        original.retain(|name, value| name != "_name_or_path" || !is_path(value));
        // Whatever the pretrained model's weights were.
        let of_dtype = original.iter_mut().filter(|(name, _)| ["dtype", "torch_dtype"].contains(&&***name));
        of_dtype.for_each(|(_, dtype)| *dtype = "float32".into());
    }
    original["model_type"] = "bert".into();
    original[SETTINGS] = json!(settings);
    original["architectures"] = json!([model.head.architecture()]);
    original["id2label"] = names.iter().map(|(class, name)| (class.to_string(), json!(name))).collect();
    original["label2id"] = names.iter().map(|(class, name)| (name.clone(), json!(class))).collect();
    // What it was trained with, which may be others.
    original["pad_token_id"] = json!(model.bert.pad_token_id);
    original["hidden_dropout_prob"] = json!(model.bert.hidden_dropout_prob);
    original["attention_probs_dropout_prob"] = json!(model.bert.attention_probs_dropout_prob);
    if let HeadConfig::Cls(head) = &model.head {
        original["classifier_dropout"] = json!(head.dropout);
    }
    original
}

/// What [`describe`] writes, for others: without our settings, and with those of transformers that it goes by.
pub(super) fn describe_for_hub(original: Value, model: &ClassifierConfig, labels: &LabelMap) -> Value {
    let mut json = describe(original, model, labels);
    if let Some(json) = json.as_object_mut() {
        json.remove(SETTINGS);
    }
    if model.head.architecture() == "BertForSequenceClassification" {
        json["problem_type"] = "single_label_classification".into();
    }
    json
}

/// The name that transformers gives a class without one, made longer if a label has it.
fn unlabelled_name(class: u32, labels: &LabelMap) -> String {
    let mut name = format!("LABEL_{class}");
    while labels.class_of(&name).is_some() {
        name.push('_');
    }
    name
}

/// Whether it is the configuration of a run.
pub(super) fn is_runs(json: &Value) -> bool {
    json.get(SETTINGS).is_some()
}

/// Reads what [`describe`] wrote.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(json: &Value, bert: BertConfig) -> Result<(ClassifierConfig, LabelMap), String> {
    let settings = json
        .get(SETTINGS)
        .ok_or_else(|| format!("it has no \"{SETTINGS}\": it is no training run's, but a bare model's"))?;
    let Settings { max_length, mask, zero_padding, freeze_padding, head, unlabelled, labels } =
        Settings::deserialize(settings).map_err(|error| format!("{SETTINGS}: {error}"))?;
    let most = bert.max_position_embeddings;
    if !(1..=most).contains(&max_length) {
        return Err(format!("{SETTINGS}: max_length is {max_length}; expected 1 to {most}"));
    }
    let labels = match labels {
        Some(labels) => labels.parse::<LabelMap>().map_err(|error| error.to_string())?,
        None => named(json, &unlabelled)?,
    };
    let (found, needed) = (head.num_classes(), labels.num_classes());
    if found < needed {
        return Err(format!("num_classes is {found}, but the labels {labels} need {needed}"));
    }
    Ok((ClassifierConfig { bert, head, max_length, mask, zero_padding, freeze_padding }, labels))
}

/// What the classes stand for of a `BertForSequenceClassification`; `None` for another architecture, or where its `id2label`
/// doesn't say.
pub fn classifier_labels(json: &Value) -> Option<LabelMap> {
    let architectures = json.get("architectures")?.as_array()?;
    let is_it = architectures.iter().any(|name| name == "BertForSequenceClassification");
    is_it.then(|| named(json, &[]).ok()).flatten()
}

/// The labels by `id2label`.
fn named(json: &Value, unlabelled: &[u32]) -> Result<LabelMap, String> {
    let names = json.get("id2label").ok_or("it has no id2label")?;
    let names = BTreeMap::<u32, String>::deserialize(names).map_err(|error| format!("id2label: {error}"))?;
    if names.len() > MAX_CLASSES {
        return Err(format!("id2label has {} classes; expected at most {MAX_CLASSES}", names.len()));
    }
    let labelled = names.into_iter().filter(|(class, _)| !unlabelled.contains(class));
    LabelMap::new(labelled.map(|(class, label)| (label, class))).map_err(|error| format!("id2label: {error}"))
}
