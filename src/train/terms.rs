//! What decides a job's outcome, as a checkpoint keeps it: whether a run may go on is seen from that.

use serde_json::json;
use sha2::{Digest, Sha256};

use super::job::{Job, Parts, SaveOptions};
use crate::data::{Buckets, Tokens};
use crate::exec::{Replicas, RuntimeKind, hash_files};
use crate::run::{Terms, flatten};
use crate::step::{Execution, Precision};
use crate::storage::hex;
use crate::weights::TensorFiles;

/// What a run's terms call the hash of its data.
pub(super) const DATA: &str = "data";

/// Hashes of what a job is fed with: gone through once.
pub(super) struct Fed {
    pub data: Sha256,
    /// Of the files that weights come from, if any do.
    pub weights: Sha256,
}

impl Fed {
    pub fn new(job: &Job, tokens: &Tokens) -> Self {
        let files = job.source.pretrained.iter().flat_map(TensorFiles::files);
        Self { data: hash_data(job, tokens), weights: hash_files(files) }
    }
}

/// All that is fed to the devices: tokens, which rows of them are for what, and their classes.
fn hash_data(job: &Job, tokens: &Tokens) -> Sha256 {
    let mut hash = Sha256::new_with_prefix(tokens.digest());
    hash.update((tokens.max_length() as u64).to_le_bytes());
    hash.update(tokens.pad_id().to_le_bytes());
    let Parts { train, dev, test } = &job.parts;
    for part in [train, dev, test] {
        hash.update((part.len() as u64).to_le_bytes());
        part.iter().for_each(|row| hash.update((*row as u64).to_le_bytes()));
    }
    hash.update(bytemuck::cast_slice(&job.source.table.classes));
    hash
}

/// What runs of before there was [`Tokens::digest`] say of their data: a hash of all rows as they are padded.
pub(super) fn older_data(job: &Job, tokens: &Tokens) -> String {
    let mut hash = Sha256::new();
    let Parts { train, dev, test } = &job.parts;
    for part in [train, dev, test].into_iter().filter(|part| !part.is_empty()) {
        hash.update((part.len() as u64).to_le_bytes());
        for rows in part.chunks(256) {
            // Each batch was one of 256 rows, filled up with its first.
            let rows = (0..256).map(|i| *rows.get(i).unwrap_or(&rows[0])).collect::<Vec<_>>();
            for row in &rows {
                let padding = std::iter::repeat(tokens.pad_id());
                let ids = tokens.row(*row).chain(padding).take(tokens.max_length());
                ids.for_each(|id| hash.update(id.to_ne_bytes()));
            }
            rows.iter().for_each(|row| hash.update(tokens.length(*row).to_ne_bytes()));
            rows.iter().for_each(|row| hash.update(job.source.table.classes[*row].to_ne_bytes()));
        }
    }
    short(hash)
}

/// The terms of `job`: all are resolved, so that a default that changes doesn't change them.
pub(super) fn terms(
    job: &Job,
    fed: Fed,
    buckets: &Buckets,
    replicas: &Replicas,
    save: &SaveOptions,
) -> Terms {
    let Job { source, recipe, .. } = job;
    let mut fixed = recipe.terms();
    let mut add = |name: &str, value| flatten(&mut fixed, name, value);
    add(DATA, json!(short(fed.data)));
    if buckets.iter().len() > 1 {
        add("buckets", json!(buckets.to_string()));
    }
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
    // Rounding is other then.
    let remat = recipe.execution.residuals.name().map(|name| ("remat", json!(name)));
    let mirrored = (recipe.execution.mirrored && replicas.count() > 1).then_some(("mirrored", json!(true)));
    let free = free.chain(runtime).chain(mirrored).chain(remat);
    Terms { fixed, free: free.map(|(name, value)| (name.to_owned(), value)).collect() }
}

/// Enough of a hash to tell two apart, and little enough to read.
fn short(hash: Sha256) -> String {
    format!("sha256:{}", &hex(hash)[..16])
}
