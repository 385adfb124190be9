//! The README of an exported model, which the Hub shows as its card.

use super::Result;
use crate::model::{ClassifierConfig, HeadConfig};
use crate::run::Run;
use crate::run::card::{about, python, told};
use crate::storage::Folder;

/// How the model is loaded and used. `is_whole` tells a model whose head transformers has, too.
///
/// # Errors
/// A card of the run's that can't be read.
pub(super) fn readme(run: &Run, is_whole: bool) -> Result<String> {
    let (class, result, rest) = match is_whole {
        true => ("AutoModelForSequenceClassification", "logits.softmax(-1)", String::new()),
        false => ("AutoModel", "last_hidden_state", head(&run.model)),
    };
    let tokenizer = "AutoTokenizer.from_pretrained(\".\")";
    let (front, results) = told(&Folder::new(&run.path))?.unwrap_or_default();
    // It is the library that a model's page on the Hub shows code of.
    let front = front
        .lines()
        .filter(|line| !["library_name:", "pipeline_tag:"].iter().any(|key| line.starts_with(key)));
    let front = front.map(|line| format!("{line}\n")).collect::<String>();
    Ok(format!(
        "---\n\
         library_name: transformers\n\
         pipeline_tag: text-classification\n\
         {front}---\n\
         # A BERT text classifier\n\n\
         Trained with bert-xla {version}.\n\n\
         {}\n\
         {}{rest}\n{results}",
        about(&run.model, &run.labels),
        python(&format!("AutoTokenizer, {class}"), tokenizer, class, result),
        version = env!("CARGO_PKG_VERSION"),
    ))
}

fn head(model: &ClassifierConfig) -> String {
    let max_length = model.max_length;
    let lstm = match model.head {
        HeadConfig::Lstm(_) | HeadConfig::Bilstm(_) => {
            "An LSTM is Keras',\nwith the gates in its order: input, forget, cell, output.\n"
        }
        HeadConfig::Dense(_) if model.zero_padding => {
            "Hidden states that the attention mask hides are zeros for it.\n"
        }
        _ => "",
    };
    format!(
        "\n`model.safetensors` holds the encoder; transformers has no class for this head. It takes the {max_length} last \
         hidden states\nof a text, `head.json` lists its layers, and `head.safetensors` has their weights. Matrices are \
         `[out, in]`, as of\n`torch.nn.Linear`.\n{lstm}"
    )
}
