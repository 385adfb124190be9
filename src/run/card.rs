//! The model card: the README of a run, as the Hub shows it.

use std::fmt::Write;

use serde_json::Value;

use super::layout::{ACCURACY_CHART, LOSS_CHART, TOKENIZER};
use super::progress::{Progress, shown};
use crate::data::{LabelMap, Tokenizer};
use crate::model::ClassifierConfig;
use crate::report::{
    EpochRecord, History, code_block, markdown_table as table, markdown_text as text, yaml_string as yaml,
};

/// By this line, a card is known to be ours, and is written anew.
const OURS: &str =
    "<!-- Written by bert-xla, and anew after each epoch. Without this line, it is yours and stays. -->";

/// Whether a README may be replaced.
pub(super) fn is_ours(card: &[u8]) -> bool {
    String::from_utf8_lossy(card).contains(OURS)
}

/// Where a model comes from, in words for people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Provenance {
    /// What it started from.
    pub model: String,
    /// That model's id on the Hub, if it has one.
    pub base_model: Option<String>,
    /// The table that it is trained on.
    pub table: String,
    /// The one that it is evaluated on, if that is another.
    pub dev_table: Option<String>,
    /// The command that trains it.
    pub command: String,
}

/// What a card says whatever the epoch.
pub(super) struct Card {
    provenance: Provenance,
    model: ClassifierConfig,
    labels: LabelMap,
    pad_token: String,
    parameters: usize,
}

impl Card {
    pub fn new(
        model: &ClassifierConfig,
        labels: &LabelMap,
        tokenizer: &Tokenizer,
        provenance: Provenance,
    ) -> Self {
        let special = tokenizer.special_tokens().into_iter();
        let pad_token = special.filter(|(name, _)| *name == "pad_token").map(|(_, token)| token).next();
        Self {
            provenance,
            model: model.clone(),
            labels: labels.clone(),
            pad_token: pad_token.unwrap_or_else(|| "[PAD]".to_owned()),
            parameters: model.num_parameters(),
        }
    }

    /// The card of a run that has come so far; as many `rows` are held out.
    pub fn text(&self, progress: &Progress, history: &History, rows: usize) -> String {
        let kept = progress.kept_epoch();
        [
            self.front_matter(history.epoch(kept), rows),
            format!("{OURS}\n\n# {}\n", text(&self.title())),
            format!("A BERT text classifier, trained with bert-xla {}.\n", text(&progress.version)),
            self.sizes(),
            about(&self.model, &self.labels),
            results(history, kept, rows),
            self.training(progress),
            self.usage(),
        ]
        .join("\n")
    }

    fn title(&self) -> String {
        let Provenance { model, table, .. } = &self.provenance;
        format!("{model}, trained on {table}")
    }

    /// What the Hub reads: see huggingface.co/docs/hub/model-cards.
    fn front_matter(&self, kept: Option<&EpochRecord>, rows: usize) -> String {
        let Provenance { base_model, table, dev_table, .. } = &self.provenance;
        let base = base_model.as_ref().map_or_else(String::new, |id| format!("base_model: {}\n", yaml(id)));
        let library = if self.is_whole() { "transformers" } else { "bert-xla" };
        let data = dev_table.clone().unwrap_or_else(|| format!("{table}, {rows} rows held out"));
        let metrics = kept.into_iter().flat_map(|record| {
            let EpochRecord { val_loss, val_accuracy, val_f1, .. } = *record;
            [("accuracy", "Accuracy", val_accuracy), ("f1", "F1 (macro)", val_f1), ("loss", "Loss", val_loss)]
        });
        let metrics = metrics.filter_map(|(kind, name, value)| {
            Some(format!("    - type: {kind}\n      name: {name}\n      value: {}\n", value?))
        });
        let metrics = metrics.collect::<String>();
        // Without a metric, it would be no list.
        let index = match metrics.is_empty() {
            true => String::new(),
            false => format!(
                "model-index:\n\
                 - name: {}\n  results:\n  \
                   - task:\n      type: text-classification\n      name: Text Classification\n    \
                     dataset:\n      type: csv\n      name: {}\n      split: validation\n    \
                     metrics:\n{metrics}",
                yaml(&self.title()),
                yaml(&data),
            ),
        };
        format!(
            "---\n{base}library_name: {library}\npipeline_tag: text-classification\n\
             tags:\n- bert\n- text-classification\n- bert-xla\n{index}---\n"
        )
    }

    /// Whether transformers has a class for the head, too.
    fn is_whole(&self) -> bool {
        self.model.head.architecture() != "BertModel"
    }

    fn sizes(&self) -> String {
        let ClassifierConfig { bert, head, .. } = &self.model;
        let states = [self.model.max_length, bert.hidden_size];
        let layers = head.describe(states).into_iter().map(|layer| text(&layer.name)).collect::<Vec<_>>();
        format!(
            "{} layers of {} hidden units and {} attention heads, a vocabulary of {}; the head `{}`: {}. {} parameters in all.\n",
            bert.num_hidden_layers,
            bert.hidden_size,
            bert.num_attention_heads,
            bert.vocab_size,
            head.name(),
            layers.join(", "),
            self.parameters
        )
    }

    fn training(&self, progress: &Progress) -> String {
        // What the model is has been said, and hashes tell people nothing.
        let is_option =
            |name: &str| !name.starts_with("model.") && !["data", "labels", "version"].contains(&name);
        let is_hash = |value: &Value| value.as_str().is_some_and(|text| text.starts_with("sha256:"));
        let is_set = |value: &Value| !value.is_null() && *value != Value::Bool(false) && !is_hash(value);
        let terms = progress.terms.fixed.iter().chain(&progress.terms.free);
        let options = terms.filter(|(name, value)| is_option(name) && is_set(value));
        let rows = options.map(|(name, value)| vec![text(name), text(&shown(value))]);
        format!(
            "## How it was trained\n\n{}\nWhat isn't listed is as in the published recipe that bert-xla has as its \
             default.\n\n{}",
            code_block("sh", &self.provenance.command),
            table(&["option", "value"], rows)
        )
    }

    fn usage(&self) -> String {
        let command = code_block("sh", "bert-xla predict --run . --data texts.csv --output labels.csv");
        // The family's own tokenizer would be made anew, and not as this one is.
        let inputs = if self.model.mask { "\"input_ids\", \"attention_mask\"" } else { "\"input_ids\"" };
        let tokenizer = format!(
            "PreTrainedTokenizerFast(\n    tokenizer_file=\"{TOKENIZER}\", pad_token={},\n    \
             model_max_length={}, model_input_names=[{inputs}],\n)",
            yaml(&self.pad_token),
            self.model.max_length
        );
        let (lead, class, result) = match self.is_whole() {
            true => ("", "AutoModelForSequenceClassification", "logits.softmax(-1)"),
            false => (
                "transformers has no class for this head: `bert-xla export --format transformers` writes its layers and \
                 weights beside the\nencoder, which is loaded so:\n\n",
                "AutoModel",
                "last_hidden_state",
            ),
        };
        let imports = format!("{class}, PreTrainedTokenizerFast");
        format!("## How to use it\n\n{command}\n{lead}{}", python(&imports, &tokenizer, class, result))
    }
}

/// Which classes a model has, and what becomes of texts.
pub fn about(model: &ClassifierConfig, labels: &LabelMap) -> String {
    let rows = labels.classes().map(|class| vec![class.to_string(), text(&labels.name_of(class))]);
    let unlabelled = match model.head.num_classes() - labels.classes().len() {
        0 => "",
        _ => "\nThe other classes were not trained: leave them out when you choose.\n",
    };
    let mask = match model.mask {
        true => "An attention mask hides the padding from the encoder.",
        false => {
            "It attends to the padding, as it was trained to: the tokenizer gives no attention mask, and none should be \
             passed."
        }
    };
    format!(
        "{}{unlabelled}\nTexts are cut or padded to {} tokens. {mask}\n",
        table(&["class", "label"], rows),
        model.max_length
    )
}

/// How Python's transformers loads and runs a model.
pub fn python(imports: &str, tokenizer: &str, class: &str, result: &str) -> String {
    code_block(
        "python",
        &format!(
            "from transformers import {imports}\n\n\
             tokenizer = {tokenizer}\n\
             model = {class}.from_pretrained(\".\")\n\
             tokens = tokenizer([\"a text\"], padding=\"max_length\", truncation=True, return_tensors=\"pt\")\n\
             output = model(**tokens).{result}"
        ),
    )
}

/// A line per epoch; the kept one's is marked.
fn results(history: &History, kept: u32, rows: usize) -> String {
    let header = ["epoch", "step", "loss", "accuracy", "val_loss", "val_accuracy", "f1", "learning rate"];
    let line = |record: &EpochRecord| {
        let EpochRecord { epoch, step, loss, accuracy, learning_rate, .. } = *record;
        let epoch = if epoch == kept { format!("**{epoch}** (kept)") } else { epoch.to_string() };
        let metric = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
        let metrics =
            [Some(loss), Some(accuracy), record.val_loss, record.val_accuracy, record.val_f1].map(metric);
        let mut cells = vec![epoch, step.to_string()];
        cells.extend(metrics);
        // As it was given to the devices.
        cells.push((learning_rate as f32).to_string());
        cells
    };
    let mut results = format!("## Results\n\n{}", table(&header, history.epochs().iter().map(line)));
    let _ = write!(
        results,
        "\n`val_loss`, `val_accuracy` and `f1`, the mean of the classes', are of {rows} rows that it was not trained \
         on.\n\n![loss]({LOSS_CHART}) ![accuracy]({ACCURACY_CHART})\n"
    );
    results
}
