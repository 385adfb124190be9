//! A pretrained encoder, ready to be asked.

use std::sync::Arc;

use sha2::Sha256;

use super::programs::EncodeProgram;
use super::upload::upload_weights;
use super::{Error, Result};
use crate::data::{Dataset, Tokens};
use crate::exec::{self, Fingerprint, Replicas, State, hash_files};
use crate::hlo::Graph;
use crate::step::{EncodeConfig, encode_step};
use crate::weights::{InitialValues, TensorFiles};

/// Texts in, hidden states out.
pub struct Encoder {
    replicas: Arc<Replicas>,
    program: EncodeProgram,
    weights: State,
}

impl EncodeConfig {
    /// Whether `tensors` has all weights that encoding takes, to be told before a device is taken.
    pub fn check(&self, tensors: &TensorFiles) -> Result<()> {
        let graph = Graph::new();
        let signature = encode_step(&graph, self, 1, 1).signature;
        let weights = self.weights();
        Ok(InitialValues::Trained(tensors).check(signature.used(&weights))?)
    }
}

impl Encoder {
    /// Compiles for `batch_size` texts per step, over all replicas, and puts the weights there.
    ///
    /// On a slice, the processes first make sure that all have the same encoder and are about to read the same: `data` is a
    /// hash of it.
    pub fn open(
        config: &EncodeConfig,
        tensors: &TensorFiles,
        replicas: Arc<Replicas>,
        batch_size: usize,
        data: Sha256,
    ) -> Result<Self> {
        replicas.agree(|| {
            Ok::<_, Error>(vec![
                Fingerprint::program(&encode_step(&Graph::new(), config, 1, 1).program),
                Fingerprint::options(replicas.count(), &batch_size),
                Fingerprint::data(data),
                Fingerprint::weights(hash_files(tensors.files())),
            ])
        })?;
        let rows = replicas.rows(batch_size)?;
        let program = replicas.meet("compiling", EncodeProgram::compile(&replicas, config, rows))?;
        let values = InitialValues::Trained(tensors);
        let weights = upload_weights(&replicas, program.signature(), &config.weights(), &values);
        let weights = replicas.meet("loading the weights", weights)?;
        Ok(Self { replicas, program, weights })
    }

    /// The last hidden states of tokenized texts, a batch at a time: `each` is given `[rows, max_length, hidden]`,
    /// row-major.
    pub fn encode<E: From<exec::Error>>(
        &self,
        tokens: &Tokens,
        each: impl FnMut(Vec<f32>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let data = Dataset::new(tokens, &[], (0..tokens.len()).collect());
        self.program.encode(&self.replicas, &self.weights, &data, each)
    }
}
