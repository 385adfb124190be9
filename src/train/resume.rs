//! Where a run goes on: the newest checkpoint that any host of the slice has.

use std::io::Read;

use super::{Error, Result};
use crate::exec::Replicas;
use crate::report::History;
use crate::run::{self, Checkpoint, Newest, Progress};
use crate::storage::Folder;
use crate::weights::{TensorFiles, key};

const PHASE: &str = "looking for a checkpoint";

/// A checkpoint that training goes on from.
pub(super) struct Saved {
    pub progress: Progress,
    pub history: History,
    /// Whether the host that has it gives its tensors to the others; otherwise each has its own.
    is_given: bool,
    /// This host's.
    tensors: Option<TensorFiles>,
}

impl Saved {
    /// The newest checkpoint in the folder `root` of any host: the first process may be another machine than the one that
    /// wrote it. Newer ones that are damaged are told to `note`.
    pub fn find(replicas: &Replicas, root: &Folder, note: &mut dyn FnMut(&str)) -> Result<Option<Self>> {
        // What is in a bucket is the same for all, and is brought once.
        let looks = replicas.is_chief() || root.is_local();
        let newest = if looks { Newest::find(root) } else { Ok(Newest::default()) };
        let Newest { checkpoint, damaged } = replicas.meet(PHASE, newest.map_err(Error::from))?;
        damaged.iter().for_each(|error| note(&format!("Passed over: {error}")));
        let all = replicas.gather(PHASE, &words(checkpoint.as_ref()))?;
        let Some(step) = all.iter().map(|words| &words[..3]).max().filter(|step| step[0] == 1) else {
            return Ok(None);
        };
        // The first of those that have it.
        let giver = all.iter().position(|words| words.starts_with(step)).unwrap_or_default();
        let is_everywhere = all.iter().all(|words| *words == all[giver]);
        let is_giver = replicas.process_index() as usize == giver;
        let own = checkpoint.filter(|_| is_everywhere || is_giver);
        let open = |own: &Checkpoint| Ok::<_, run::Error>((own.tensors()?, own.to_text()));
        let opened = own.as_ref().map(open).transpose().map_err(Error::from);
        let (tensors, text) = replicas.meet(PHASE, opened)?.unzip();
        if is_everywhere && let Some(own) = own {
            return Ok(Some(Self { progress: own.progress, history: own.history, is_given: false, tensors }));
        }
        let text = share(replicas, PHASE, text.as_ref().map(|text| text.as_bytes()))?;
        let parsed = Checkpoint::parse_text(&text).map_err(Error::from);
        let (progress, history) = replicas.meet(PHASE, parsed)?;
        Ok(Some(Self { progress, history, is_given: true, tensors }))
    }

    /// Whether as many epochs are done.
    pub fn is_finished(&self, epochs: u32) -> bool {
        self.progress.epoch >= epochs
    }

    /// Whether this host has it.
    pub fn is_own(&self) -> bool {
        self.tensors.is_some()
    }

    /// The values of a weight, or of a moment. All hosts of a slice must ask for it together.
    pub fn tensor(&self, replicas: &Replicas, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        let own = self.tensors.as_ref().map(|tensors| tensors.tensor_f32(key(name), dims)).transpose()?;
        match own {
            Some(own) if !self.is_given => Ok(own.into_owned()),
            own => {
                let own = own.as_ref().map(|own| bytemuck::cast_slice(own));
                Ok(bytemuck::pod_collect_to_vec(&share(replicas, "loading the weights", own)?))
            }
        }
    }
}

/// The bytes that one host has, for all.
fn share(replicas: &Replicas, phase: &'static str, own: Option<&[u8]>) -> Result<Vec<u8>> {
    let Some(own) = own else {
        let mut bytes = vec![];
        replicas.receive(phase, |part| {
            bytes.extend_from_slice(part);
            Ok::<_, Error>(())
        })?;
        return Ok(bytes);
    };
    let mut rest = own;
    // A slice of bytes can't fail to be read.
    replicas.send(phase, |part| Ok::<_, Error>(rest.read(part).unwrap_or(0)))?;
    Ok(own.to_vec())
}

/// Whether there is a checkpoint, its step, and a hash of what it holds.
fn words(checkpoint: Option<&Checkpoint>) -> Vec<u32> {
    let Some(checkpoint) = checkpoint else { return vec![0; 11] };
    let step = checkpoint.progress.step;
    let (hash, _) = checkpoint.hash().as_chunks();
    let hash = hash.iter().map(|word| u32::from_le_bytes(*word));
    [1, (step >> 32) as u32, step as u32].into_iter().chain(hash).collect()
}
