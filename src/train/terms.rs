//! What decides a job's outcome, as a checkpoint keeps it: whether a run may go on is seen from that.

use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use super::job::{Job, SaveOptions};
use crate::data::{Dataset, Order, Tokens};
use crate::exec::{Replicas, hash_files};
use crate::run::{Terms, flatten};
use crate::storage::hex;
use crate::weights::TensorFiles;

/// Hashes of what a job is fed with: gone through once.
pub(super) struct Fed {
    pub data: Sha256,
    /// Of the files that weights come from, if any do.
    pub weights: Sha256,
}

impl Fed {
    pub fn new(job: &Job, tokens: &Tokens) -> Self {
        let files = job.pretrained.iter().flat_map(TensorFiles::files);
        Self { data: hash_data(&job.datasets(tokens)), weights: hash_files(files) }
    }
}

/// All that is fed to the devices, and how many rows it is.
fn hash_data(datasets: &[Dataset<'_>]) -> Sha256 {
    const ROWS: usize = 256;
    let mut hash = Sha256::new();
    for data in datasets {
        hash.update((data.len() as u64).to_le_bytes());
        for batch in data.batches(ROWS, Order::Sequential) {
            hash.update(bytemuck::cast_slice(&batch.input_ids));
            hash.update(bytemuck::cast_slice(&batch.lengths));
            hash.update(bytemuck::cast_slice(&batch.labels));
        }
    }
    hash
}

/// The terms of `job`: all are resolved, so that a default that changes doesn't change them.
pub(super) fn terms(job: &Job, fed: Fed, replicas: &Replicas, save: &SaveOptions) -> Terms {
    let Job { model, recipe, .. } = job;
    let mut fixed = Map::new();
    let mut add = |name: &str, value| flatten(&mut fixed, name, value);
    add("data", json!(short(fed.data)));
    let weights = job.pretrained.as_ref().map_or_else(|| "random".to_owned(), |_| short(fed.weights));
    add("starting_weights", json!(weights));
    add("batch_size", json!(recipe.batch_size));
    add("learning_rate", json!(recipe.learning_rate));
    add("dev_size", json!(recipe.dev_size));
    add("split_seed", json!(recipe.split_seed));
    // Runs of before there was a choice are silent on it.
    if recipe.stratify {
        add("stratify", json!(true));
    }
    add("seed", json!(recipe.seed));
    add("labels", json!(recipe.labels.to_unique_string()));
    // A configuration has nothing that JSON can't hold.
    add("model", serde_json::to_value(model).unwrap_or_default());
    let free = [
        ("epochs", json!(recipe.epochs)),
        ("checkpoint_every", json!(save.cadence.to_string())),
        ("keep_last", json!(save.keep_last)),
        ("backend", json!(replicas.backend().to_string())),
        ("replicas", json!(replicas.count())),
        ("deterministic", json!(replicas.is_deterministic())),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
    ];
    Terms { fixed, free: free.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

/// Enough of a hash to tell two apart, and little enough to read.
fn short(hash: Sha256) -> String {
    format!("sha256:{}", &hex(hash)[..16])
}
