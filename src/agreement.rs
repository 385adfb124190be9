//! Whether all processes of a slice are about to do the same.
//!
//! Each feeds its devices from what it has read itself, and they meet in the sums over replicas alone. Another number
//! of steps in one of them would hang them all; another seed, table or checkpoint would go unnoticed, and leave
//! weights that are not mirrored.

use std::fmt::Debug;

use sha2::{Digest, Sha256};

use crate::checkpoint::Checkpoint;
use crate::data::{Dataset, Order};
use crate::error::{Error, Result};
use crate::hlo::{Graph, Program};
use crate::strategy::Strategy;

/// What every process of a slice must start a job from alike.
pub struct SharedInputs<'a> {
    /// The job's step, for one row on one replica: those for other batches follow from it.
    pub program: &'a dyn for<'g> Fn(&'g Graph) -> Program<'g>,
    /// Whatever else the arguments decide, such as seed and learning rate; no paths, which may differ.
    pub options: &'a dyn Debug,
    /// In the order of their rows.
    pub data: &'a [&'a Dataset<'a>],
    /// `None` where the seed alone decides the weights.
    pub weights: Option<&'a Checkpoint>,
}

/// The parts that are compared, as messages name them.
const PARTS: [&str; 4] =
    ["the program (its version, or the model's configuration)", "the options", "the data", "the weights"];

/// Words of a SHA-256.
const WORDS: usize = 8;

impl SharedInputs<'_> {
    /// Compares what all processes of the slice hold, each of which must call this; to be done before the first
    /// compilation. A process that is alone has nothing to compare, and hashes nothing.
    ///
    /// # Errors
    /// In every process, if one of them holds something else than process 0 does.
    pub fn agree(&self, strategy: &Strategy) -> Result<()> {
        if !strategy.is_shared() {
            return Ok(());
        }
        let gathered = strategy.gather(&self.words(strategy.replicas()))?;
        let [(_, expected), others @ ..] = gathered.as_slice() else { return Ok(()) };
        let differences = others.iter().filter_map(|(process, found)| {
            let parts = PARTS.iter().zip(found.chunks(WORDS)).zip(expected.chunks(WORDS));
            let differing = parts.filter(|((_, found), expected)| found != expected);
            let names = differing.map(|((name, _), _)| *name).collect::<Vec<_>>();
            (!names.is_empty()).then(|| format!("process {process} in {}", names.join(", ")))
        });
        match differences.collect::<Vec<_>>().as_slice() {
            [] => Ok(()),
            differences => Err(Error::Usage(format!(
                "the hosts of the slice differ from process 0: {}; give each the same program, files and arguments",
                differences.join("; ")
            ))),
        }
    }

    /// The hash of each of the [`PARTS`].
    fn words(&self, replicas: usize) -> Vec<u32> {
        let hashes =
            [self.hash_program(), self.hash_options(replicas), self.hash_data(), self.hash_weights()];
        let bytes = hashes.into_iter().flat_map(|hash| hash.finalize()).collect::<Vec<u8>>();
        let (words, _) = bytes.as_chunks();
        words.iter().map(|word| u32::from_le_bytes(*word)).collect()
    }

    fn hash_program(&self) -> Sha256 {
        let graph = Graph::new();
        let mut hash = Sha256::new_with_prefix(env!("CARGO_PKG_VERSION"));
        hash.update((self.program)(&graph).to_hlo_proto());
        hash
    }

    fn hash_options(&self, replicas: usize) -> Sha256 {
        Sha256::new_with_prefix(format!("{replicas} {:?}", self.options))
    }

    /// All that is fed to the devices, and how many rows it is.
    fn hash_data(&self) -> Sha256 {
        const ROWS: usize = 256;
        let mut hash = Sha256::new();
        for data in self.data {
            hash.update((data.len() as u64).to_le_bytes());
            for batch in data.batches(ROWS, Order::Sequential) {
                hash.update(bytemuck::cast_slice(&batch.input_ids));
                hash.update(bytemuck::cast_slice(batch.attention_mask.as_deref().unwrap_or_default()));
                hash.update(bytemuck::cast_slice(&batch.labels));
            }
        }
        hash
    }

    fn hash_weights(&self) -> Sha256 {
        let mut hash = Sha256::new();
        for bytes in self.weights.into_iter().flat_map(Checkpoint::files) {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        hash
    }
}
