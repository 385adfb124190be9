//! The model card: the README of a run, as the Hub shows it.

use std::fmt::Write;

use serde_json::Value;

use super::Result;
use super::layout::{ACCURACY_CHART, CARD, LOSS_CHART, TOKENIZER};
use super::progress::{Progress, Terms, shown};
use crate::data::{LabelMap, Tokenizer};
use crate::model::ClassifierConfig;
use crate::report::{
    Classification, EpochRecord, History, code_block, markdown_table as table, markdown_text as text,
    yaml_string as yaml,
};
use crate::storage::Folder;

/// By this line, a card is known to be ours, and is written anew.
const OURS: &str =
    "<!-- Written by bert-xla, and anew after each epoch. Without this line, it is yours and stays. -->";

const RESULTS: &str = "## Results";
const TEST: &str = "## Test";
/// The heading of what comes after all results.
const TRAINING: &str = "## How it was trained";
const USAGE: &str = "## How to use it";
/// How a folder is asked.
const USE: &str = "bert-xla predict --run . --data texts.csv --output labels.csv";

/// Whether a README may be replaced.
pub(super) fn is_ours(card: &[u8]) -> bool {
    String::from_utf8_lossy(card).contains(OURS)
}

/// What a card of ours in `root` says beside how the model is used: its front matter, and its parts from the results on, but
/// for pictures.
pub fn told(root: &Folder) -> Result<Option<(String, String)>> {
    let Some(card) = root.read(CARD)?.filter(|card| is_ours(card)) else { return Ok(None) };
    let card = String::from_utf8_lossy(&card);
    let parts = || {
        let (front, body) = card.strip_prefix("---\n")?.split_once("\n---\n")?;
        // Somebody may have put its parts in another order.
        let results = body.get(heading(body, RESULTS)?..heading(body, USAGE)?)?;
        let paragraphs = results.split("\n\n").filter(|paragraph| !paragraph.starts_with("!["));
        Some((front.to_owned(), paragraphs.collect::<Vec<_>>().join("\n\n")))
    };
    Ok(parts())
}

/// Where a line of Markdown begins that is this heading, and no part of a text or of a command.
fn heading(markdown: &str, heading: &str) -> Option<usize> {
    headings(markdown).find(|(_, line)| *line == heading).map(|(at, _)| at)
}

/// The headings of sections, and where their lines begin.
fn headings(markdown: &str) -> impl Iterator<Item = (usize, &str)> {
    let (mut at, mut fence) = (0, None);
    markdown.split_inclusive('\n').filter_map(move |line| {
        let begin = at;
        at += line.len();
        let line = line.trim_end();
        let ticks = line.len() - line.trim_start_matches('`').len();
        match fence {
            Some(count) => {
                fence = if ticks >= count && ticks == line.len() { None } else { fence };
                None
            }
            None if ticks >= 3 => {
                fence = Some(ticks);
                None
            }
            None => line.starts_with("## ").then_some((begin, line)),
        }
    })
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
    /// The one that it is tested on at its end, if there is one.
    pub test_table: Option<String>,
    /// The format of the table whose rows it is evaluated on, as the Hub's datasets library names it: csv, json or parquet.
    pub format: String,
    /// That of the one that it is tested on.
    pub test_format: String,
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
            format!("{OURS}\n\n# {}\n", text(&self.provenance.title())),
            format!("A BERT text classifier, trained with bert-xla {}.\n", text(&progress.version)),
            self.sizes(),
            about(&self.model, &self.labels),
            results(history, kept, &self.dev_rows(rows)),
            self.training(progress),
            self.usage(),
        ]
        .join("\n")
    }

    /// What the rows are that it is evaluated on.
    fn dev_rows(&self, rows: usize) -> String {
        match &self.provenance.dev_table {
            Some(table) => format!("of the {rows} rows of {}", text(table)),
            None => format!("of {rows} rows that it was not trained on"),
        }
    }

    fn front_matter(&self, kept: Option<&EpochRecord>, rows: usize) -> String {
        let Provenance { table, dev_table, .. } = &self.provenance;
        let library = if self.is_whole() { "transformers" } else { "bert-xla" };
        let data = dev_table.clone().unwrap_or_else(|| format!("{table}, {rows} rows held out"));
        let metrics = kept.map_or([None; 3], |record| [record.val_accuracy, record.val_f1, record.val_loss]);
        let measured = Measured { split: "validation", data, format: &self.provenance.format };
        front_matter(&self.provenance, library, &measured, metrics)
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
        let is_option = |name: &str| !["data", "labels", "version"].contains(&name) && !is_told_of(name);
        let is_hash = |value: &Value| value.as_str().is_some_and(|text| text.starts_with("sha256:"));
        let is_set = |value: &Value| !value.is_null() && *value != Value::Bool(false) && !is_hash(value);
        let Terms { fixed, free } = &progress.terms;
        // Some are fixed in some runs, and free in others.
        let terms = fixed.iter().chain(free.iter().filter(|(name, _)| !fixed.contains_key(*name)));
        let options = terms.filter(|(name, value)| is_option(name) && is_set(value));
        let rows = options.map(|(name, value)| vec![text(name), text(&shown(value))]);
        format!(
            "{TRAINING}\n\n{}\nWhat isn't listed is as in the published recipe that bert-xla has as its \
             default.\n\n{}",
            code_block("sh", &self.provenance.command),
            table(&["option", "value"], rows)
        )
    }

    fn usage(&self) -> String {
        let command = code_block("sh", USE);
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
        format!("{USAGE}\n\n{command}\n{lead}{}", python(&imports, &tokenizer, class, result))
    }
}

impl Provenance {
    fn title(&self) -> String {
        format!("{}, trained on {}", self.model, self.table)
    }
}

/// What a model was measured on.
pub struct Measured<'a> {
    pub split: &'a str,
    pub data: String,
    pub format: &'a str,
}

/// What the Hub reads: see huggingface.co/docs/hub/model-cards. `metrics` are accuracy, F1 and loss on what is `measured`.
fn front_matter(
    provenance: &Provenance,
    library: &str,
    Measured { split, data, format }: &Measured<'_>,
    metrics: [Option<f64>; 3],
) -> String {
    let base = &provenance.base_model;
    let base = base.as_ref().map_or_else(String::new, |id| format!("base_model: {}\n", yaml(id)));
    let names = [("accuracy", "Accuracy"), ("f1", "F1 (macro)"), ("loss", "Loss")];
    let metrics = names.into_iter().zip(metrics).filter_map(|((kind, name), value)| {
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
                 dataset:\n      type: {}\n      name: {}\n      split: {split}\n    \
                 metrics:\n{metrics}",
            yaml(&provenance.title()),
            yaml(format),
            yaml(data),
        ),
    };
    format!(
        "---\n{base}library_name: {library}\npipeline_tag: text-classification\n\
         tags:\n- bert\n- text-classification\n- bert-xla\n{index}---\n"
    )
}

/// The card of an ensemble, whose members have cards of their own; `results` are in Markdown.
pub fn ensemble_card(
    provenance: &Provenance,
    labels: &LabelMap,
    measured: &Measured<'_>,
    metrics: [Option<f64>; 3],
    results: &str,
) -> String {
    let labels = labels.iter().map(|(label, _)| format!("- {}\n", text(label))).collect::<String>();
    [
        front_matter(provenance, "bert-xla", measured, metrics),
        format!("{OURS}\n\n# {}\n", text(&provenance.title())),
        format!(
            "An ensemble of BERT text classifiers, trained with bert-xla {}. It answers with the mean of the members' \
             probabilities.\n\nLabels:\n\n{labels}",
            env!("CARGO_PKG_VERSION")
        ),
        format!("{RESULTS}\n\n{results}"),
        format!("{TRAINING}\n\n{}", code_block("sh", &provenance.command)),
        format!("{USAGE}\n\n{}", code_block("sh", USE)),
    ]
    .join("\n")
}

/// Writes a card to the folder of an ensemble, unless it holds somebody's.
pub fn write_card(root: &Folder, card: &str) -> Result<()> {
    match root.read(CARD)?.is_none_or(|card| is_ours(&card)) {
        true => Ok(root.write(CARD, card.as_bytes())?),
        false => Ok(()),
    }
}

/// Adds what was measured on a table to test to the card of a run, if it is ours.
pub fn add_test(root: &Folder, table: &str, report: &Classification) -> Result<()> {
    let Some(card) = root.read(CARD)?.filter(|card| is_ours(card)) else { return Ok(()) };
    let mut card = String::from_utf8_lossy(&card).into_owned();
    if let Some(begin) = heading(&card, TEST) {
        let end = headings(&card).map(|(at, _)| at).find(|at| *at > begin);
        card.replace_range(begin..end.unwrap_or(card.len()), "");
    }
    let Some(at) = heading(&card, TRAINING) else { return Ok(()) };
    let (before, after) = card.split_at(at);
    let Classification { rows, accuracy, loss, macro_average, .. } = report;
    let section = format!(
        "{TEST}\n\nOn the {rows} rows of {}: accuracy {accuracy:.4}, f1 {:.4}, loss {loss:.4}. The accuracy is of labels \
         alone.\n",
        text(table),
        macro_average.f1
    );
    Ok(root.write(CARD, format!("{before}{section}\n{after}").as_bytes())?)
}

/// Which classes a model has, and what becomes of texts.
pub fn about(model: &ClassifierConfig, labels: &LabelMap) -> String {
    let rows = labels.classes().map(|class| vec![class.to_string(), text(&labels.name_of(class))]);
    let unlabelled = match model.head.num_classes() - labels.classes().len() {
        0 => "",
        _ => "\nThe other classes were not trained: leave them out when you choose.\n",
    };
    let mask = match model.mask {
        true if model.zero_padding => {
            "An attention mask hides the padding from the encoder, and the head takes zeros in its place."
        }
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

/// Whether a setting of the model is told elsewhere: all are, but for a few of training.
fn is_told_of(name: &str) -> bool {
    const TRAINING: [&str; 3] =
        ["freeze_padding", "bert.hidden_dropout_prob", "bert.attention_probs_dropout_prob"];
    name.strip_prefix("model.").is_some_and(|name| !TRAINING.contains(&name))
}

/// A line per epoch; the kept one's is marked. `dev_rows` tells what they were evaluated on.
fn results(history: &History, kept: u32, dev_rows: &str) -> String {
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
    let mut results = format!("{RESULTS}\n\n{}", table(&header, history.epochs().iter().map(line)));
    let _ = write!(
        results,
        "\n`val_loss`, `val_accuracy` and `f1`, the mean of the classes', are {dev_rows}.\n\n![loss]({LOSS_CHART}) ![accuracy]({ACCURACY_CHART})\n"
    );
    results
}
