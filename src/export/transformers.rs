//! A trained model as a folder that Python's transformers loads, and the Hub takes.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::readme::readme;
use super::{Result, save_weights, write_json};
use crate::model::{HeadConfig, Layer};
use crate::nn::{Part, Weight};
use crate::run::Run;
use crate::run::layout::{CONFIG, TOKENIZER, WEIGHTS};
use crate::storage::write_file;
use crate::weights::key;

/// What the head is, for a model of which transformers has the encoder alone.
pub const HEAD: &str = "head.json";
pub const HEAD_WEIGHTS: &str = "head.safetensors";

/// Writes the model into `folder`: configuration, weights, tokenizer, and a README. Where the architecture is
/// `BertModel`, which has no head, that is written beside it.
///
/// # Errors
/// Weights that can't be read, or a folder that can't be written to.
pub fn export_transformers(run: &Run, folder: &Path) -> Result<()> {
    let config = run.hub_config();
    let weights = run.model.weights();
    // Whether transformers has the head, too.
    let is_whole = run.model.head.architecture() != "BertModel";
    write_json(&folder.join(CONFIG), &config)?;
    write_file(&folder.join(TOKENIZER), run.tokenizer.to_json()?.as_bytes())?;
    write_json(&folder.join("tokenizer_config.json"), &tokenizer_config(run))?;
    write_file(&folder.join("README.md"), readme(run, is_whole)?.as_bytes())?;
    if is_whole {
        let named = weights.iter().map(|weight| (&*weight.name, weight)).collect::<Vec<_>>();
        return save_weights(&folder.join(WEIGHTS), run, &named);
    }
    let (head, encoder): (Vec<_>, Vec<_>) = weights.iter().partition(|weight| weight.part == Part::Head);
    let named = encoder.iter().map(|weight| (key(&weight.name), *weight)).collect::<Vec<_>>();
    save_weights(&folder.join(WEIGHTS), run, &named)?;
    let named = head.iter().map(|weight| (&*weight.name, *weight)).collect::<Vec<_>>();
    save_weights(&folder.join(HEAD_WEIGHTS), run, &named)?;
    write_json(&folder.join(HEAD), &describe_head(run, &head))
}

/// The tokenizer of `tokenizer.json` as it is, where `AutoTokenizer` would make one of its own by the model's family; with
/// `padding="max_length", truncation=True` it gives the ids that the model was trained with.
fn tokenizer_config(run: &Run) -> Value {
    let mut inputs = vec!["input_ids", "token_type_ids"];
    // Without one, `BertModel` attends to all tokens.
    inputs.extend(run.model.mask.then_some("attention_mask"));
    let special = run.tokenizer.special_tokens().into_iter();
    let special = special.map(|(name, token)| (name.to_owned(), token.into())).collect::<Map<_, _>>();
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": run.model.max_length,
        "model_input_names": inputs,
    });
    special.into_iter().for_each(|(name, token)| config[name] = token);
    config
}

/// Layer by layer, with the names of its tensors.
fn describe_head(run: &Run, weights: &[&Weight]) -> Value {
    let states = [run.model.max_length, run.model.bert.hidden_size];
    let layer = |Layer { name, output, weights: prefix }: Layer| {
        let prefix = prefix.map(|prefix| format!("{prefix}."));
        let is_own = |weight: &&&Weight| prefix.as_ref().is_some_and(|own| weight.name.starts_with(own));
        let tensors = weights.iter().filter(is_own).map(|weight| &weight.name).collect::<Vec<_>>();
        json!({ "layer": name, "output": output, "tensors": tensors })
    };
    let probabilities = match run.model.head.gives_logits() {
        true => "the softmax of the last layer's output",
        false => "the last layer's output, each row divided by its sum",
    };
    let length = run.model.max_length;
    let hides = match (run.model.mask, &run.model.head) {
        (true, HeadConfig::Mean(_)) => ", of which the mean takes those that the attention mask keeps",
        (true, HeadConfig::Lstm(_) | HeadConfig::Bilstm(_)) => {
            ", of which an LSTM skips those that the attention mask hides"
        }
        (true, HeadConfig::Dense(_)) if run.model.zero_padding => {
            ", of which those that the attention mask hides are zeros"
        }
        _ => ", padding included",
    };
    json!({
        "input": format!("last_hidden_state of {length} tokens{hides}"),
        "layers": run.model.head.describe(states).into_iter().map(layer).collect::<Vec<_>>(),
        "probabilities": probabilities,
        "weights": HEAD_WEIGHTS,
        "config": run.model.head,
    })
}
