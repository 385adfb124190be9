//! The predict step as an HLO module, for any PJRT plugin, and all that has to be known of it.

use std::path::Path;

use serde_json::{Value, json};

use super::{Result, save_weights, write_json};
use crate::hlo::Graph;
use crate::run::Run;
use crate::run::layout::{TOKENIZER, WEIGHTS};
use crate::shape::Shape;
use crate::step::{InputId, LeafId, Signature, Step, StepConfig, predict_step};
use crate::storage::write_file;

/// A serialized `HloModuleProto`.
pub const MODULE: &str = "predict.hlo.pb";
/// What the module takes and returns.
pub const SIGNATURE: &str = "signature.json";

/// Writes into `folder` the program that gives the class probabilities of `batch_size` texts on one device, its weights,
/// its tokenizer, and a description of all of it.
///
/// # Errors
/// Weights that can't be read, or a folder that can't be written to.
pub fn export_hlo(run: &Run, batch_size: usize, folder: &Path) -> Result<()> {
    let graph = Graph::new();
    let config = StepConfig::new(run.model.clone(), batch_size, 1);
    let Step { program, signature } = predict_step(&graph, &config);
    write_file(&folder.join(MODULE), &program.to_hlo_proto())?;
    let weights = run.model.weights();
    let used = signature.used(&weights);
    let named = used.iter().map(|weight| (&*weight.name, *weight)).collect::<Vec<_>>();
    save_weights(&folder.join(WEIGHTS), run, &named)?;
    write_file(&folder.join(TOKENIZER), run.tokenizer.to_json()?.as_bytes())?;
    write_json(&folder.join(SIGNATURE), &describe(run, &signature))
}

fn describe(run: &Run, signature: &Signature) -> Value {
    let port = |name: String, shape: &Shape| json!({ "name": name, "dtype": shape.element_type.name(), "shape": shape.dims });
    let parameters = signature.inputs.iter().map(|input| {
        let mut json = port(input.id.to_string(), &input.shape);
        if let InputId::Leaf(LeafId::Weight(name)) = &input.id {
            json["tensor"] = name.as_str().into();
        }
        json
    });
    let outputs = signature.outputs.iter().map(|output| port(output.id.to_string(), &output.shape));
    let classes = 0..run.model.head.num_classes() as u32;
    json!({
        "format": "HloModuleProto",
        "module": MODULE,
        "replicas": 1,
        "layout": "row-major",
        "weights": WEIGHTS,
        // In the order in which the module takes them; a weight has the name of its tensor.
        "parameters": parameters.collect::<Vec<_>>(),
        // The elements of the tuple that the module returns.
        "outputs": outputs.collect::<Vec<_>>(),
        "tokenizer": TOKENIZER,
        "max_length": run.model.max_length,
        "pad_token_id": run.tokenizer.pad_id(),
        // The label of each class; null for one that none stands for.
        "labels": classes.map(|class| run.labels.label_of(class)).collect::<Vec<_>>(),
    })
}
