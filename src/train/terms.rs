//! What decides a job's outcome, as a checkpoint keeps it: whether a run may go on is seen from that.

use serde_json::json;
use sha2::{Digest, Sha256};

use super::job::{Job, SaveOptions};
use crate::data::{Dataset, Order, Tokens};
use crate::exec::{Replicas, RuntimeKind, hash_files};
use crate::run::{Terms, flatten};
use crate::step::{Execution, Precision};
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
        let files = job.source.pretrained.iter().flat_map(TensorFiles::files);
        // A part that there isn't says nothing: runs knew of two once.
        let parts = job.datasets(tokens).into_iter().filter(|part| !part.is_empty());
        Self { data: hash_data(&parts.collect::<Vec<_>>()), weights: hash_files(files) }
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
    let Job { source, recipe, .. } = job;
    let mut fixed = recipe.terms();
    let mut add = |name: &str, value| flatten(&mut fixed, name, value);
    add("data", json!(short(fed.data)));
    let weights = source.pretrained.as_ref().map_or_else(|| "random".to_owned(), |_| short(fed.weights));
    add("starting_weights", json!(weights));
    // A configuration has nothing that JSON can't hold.
    add("model", serde_json::to_value(&source.model).unwrap_or_default());
    let Execution { precision, gradient_precision, .. } = job.execution(replicas);
    // What runs that know no other don't say.
    let precisions = [("precision", precision), ("gradient_precision", gradient_precision)];
    let precisions = precisions.into_iter().filter(|(_, precision)| *precision != Precision::F32);
    let runtime = replicas.runtime();
    let runtime = (runtime != RuntimeKind::Pjrt).then(|| ("runtime", json!(runtime.to_string())));
    let free = [
        ("epochs", json!(recipe.epochs)),
        ("checkpoint_every", json!(save.cadence.to_string())),
        ("keep_last", json!(save.keep_last)),
        ("early_stopping", json!(save.patience)),
        ("backend", json!(replicas.backend().to_string())),
        ("replicas", json!(replicas.count())),
        ("deterministic", json!(replicas.is_deterministic())),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
    ];
    let free = free.into_iter().chain(precisions.map(|(name, value)| (name, json!(value.to_string()))));
    let free = free.chain(runtime);
    Terms { fixed, free: free.map(|(name, value)| (name.to_owned(), value)).collect() }
}

/// Enough of a hash to tell two apart, and little enough to read.
fn short(hash: Sha256) -> String {
    format!("sha256:{}", &hex(hash)[..16])
}
