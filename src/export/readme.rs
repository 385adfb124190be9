//! The README of an exported model, which the Hub shows as its card.

use crate::run::Run;
use crate::run::card::{about, python};

/// How the model is loaded and used. `is_whole` tells a model whose head transformers has, too.
pub(super) fn readme(run: &Run, is_whole: bool) -> String {
    let (class, result, rest) = match is_whole {
        true => ("AutoModelForSequenceClassification", "logits.softmax(-1)", String::new()),
        false => ("AutoModel", "last_hidden_state", head(run.model.max_length)),
    };
    let tokenizer = "AutoTokenizer.from_pretrained(\".\")";
    format!(
        "---\n\
         library_name: transformers\n\
         pipeline_tag: text-classification\n\
         ---\n\
         # A BERT text classifier\n\n\
         Trained with bert-xla {version}.\n\n\
         {}\n\
         {}{rest}",
        about(&run.model, &run.labels),
        python(&format!("AutoTokenizer, {class}"), tokenizer, class, result),
        version = env!("CARGO_PKG_VERSION"),
    )
}

fn head(max_length: usize) -> String {
    format!(
        "\n`model.safetensors` holds the encoder; transformers has no class for this head. It takes the {max_length} last \
         hidden states\nof a text, `head.json` lists its layers, and `head.safetensors` has their weights. Matrices are \
         `[out, in]`, as of\n`torch.nn.Linear`.\n"
    )
}
