//! Whether all processes of a slice are about to do the same.
//!
//! Each feeds its devices from what it has read itself, and they meet in the sums over replicas alone. Another number
//! of steps in one of them would hang them all; another seed, table or checkpoint would go unnoticed, and leave
//! weights that are not mirrored.

use std::fmt::Debug;

use sha2::{Digest, Sha256};

use super::barrier::WORDS;
use super::{Error, Result};
use crate::hlo::Program;

/// Words of a SHA-256.
const HASH: usize = 8;

/// Something that every process must have alike.
pub struct Fingerprint {
    /// As messages name it, such as "the data".
    pub name: &'static str,
    /// Of all that it consists of.
    pub hash: Sha256,
}

impl Fingerprint {
    /// A step's program for one row on one replica (those for other batches follow from it), and the version that runs it.
    pub fn program(program: &Program<'_>) -> Self {
        let hash = Sha256::new_with_prefix(env!("CARGO_PKG_VERSION"));
        let name = "the program (its version, or the model's configuration)";
        Self { name, hash: hash.chain_update(program.to_hlo_proto()) }
    }

    /// Whatever else the arguments decide, such as seed and learning rate; no paths, which may differ.
    pub fn options(replicas: usize, options: &impl Debug) -> Self {
        Self { name: "the options", hash: Sha256::new_with_prefix(format!("{replicas} {options:?}")) }
    }

    /// What is fed to the devices.
    pub fn data(hash: Sha256) -> Self {
        Self { name: "the data", hash }
    }

    /// The files that weights come from, by [`hash_files`]; none where the seed alone decides them.
    pub fn weights(hash: Sha256) -> Self {
        Self { name: "the weights", hash }
    }
}

/// What files hold, one after another, and where each ends.
pub fn hash_files<'a>(files: impl IntoIterator<Item = &'a [u8]>) -> Sha256 {
    let mut hash = Sha256::new();
    for bytes in files {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    hash
}

/// The most parts that can be compared.
const MOST: usize = WORDS / HASH;

/// The hashes of `parts`.
///
/// # Panics
/// If there are more than four.
pub(super) fn words(parts: &[Fingerprint]) -> Vec<u32> {
    assert!(parts.len() <= MOST, "{} parts, at most {MOST} can be compared", parts.len());
    let bytes = parts.iter().flat_map(|part| part.hash.clone().finalize()).collect::<Vec<u8>>();
    let (words, _) = bytes.as_chunks();
    words.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// Compares what the processes have gathered with what process 0 has.
pub(super) fn compare(gathered: &[(i32, Vec<u32>)], parts: &[Fingerprint]) -> Result<()> {
    let [(_, expected), others @ ..] = gathered else { return Ok(()) };
    let differences = others.iter().filter_map(|(process, found)| {
        let pairs = parts.iter().zip(found.chunks(HASH)).zip(expected.chunks(HASH));
        let names = pairs.filter(|((_, found), expected)| found != expected).map(|((part, _), _)| part.name);
        let names = names.collect::<Vec<_>>();
        (!names.is_empty()).then_some((*process, names))
    });
    match differences.collect::<Vec<_>>() {
        differences if differences.is_empty() => Ok(()),
        differences => Err(Error::Differ(differences)),
    }
}
