//! The README of an exported model, which the Hub shows as its card.

use crate::run::Run;

/// How the model is loaded and used. `is_whole` tells a model whose head transformers has, too.
pub(super) fn readme(run: &Run, is_whole: bool) -> String {
    let max_length = run.model.max_length;
    let labels = run.labels.classes().map(|class| format!("{class}: `{}`", run.labels.name_of(class)));
    let labels = labels.collect::<Vec<_>>().join(", ");
    let unlabelled = match run.model.head.num_classes() - run.labels.classes().len() {
        0 => "",
        _ => " The other classes were not trained: leave them out when you choose.",
    };
    let mask = match run.model.mask {
        true => "An attention mask hides the padding from the encoder.",
        false => {
            "It attends to the padding, as it was trained to: the tokenizer gives no attention mask, and none should be \
             passed."
        }
    };
    let (class, result, rest) = match is_whole {
        true => ("AutoModelForSequenceClassification", "logits.softmax(-1)", String::new()),
        false => ("AutoModel", "last_hidden_state", head(max_length)),
    };
    format!(
        "---\n\
         library_name: transformers\n\
         pipeline_tag: text-classification\n\
         ---\n\
         # A BERT text classifier\n\n\
         Trained with bert-xla {version}. Its classes: {labels}.{unlabelled}\n\n\
         Texts are cut or padded to {max_length} tokens. {mask}\n\n\
         ```python\n\
         from transformers import AutoTokenizer, {class}\n\n\
         tokenizer = AutoTokenizer.from_pretrained(\".\")\n\
         model = {class}.from_pretrained(\".\")\n\
         tokens = tokenizer([\"a text\"], padding=\"max_length\", truncation=True, return_tensors=\"pt\")\n\
         output = model(**tokens).{result}\n\
         ```\n{rest}",
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
