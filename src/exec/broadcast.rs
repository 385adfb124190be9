//! Bytes of one process for all others of a slice: a stream in chunks, each a run of one small program that sums over the
//! replicas, where all but one put in zeros.

use super::Result;
use super::lowering::Lowered;
use super::placement::Placement;
use super::runtime::{Argument, Array, Compiled, Runtime};
use crate::hlo::{Graph, Program};
use crate::shape::{ElementType, Shape};

/// What a run passes on. So few cost little where there are only a few bytes, and so many keep up with the devices.
const WORDS: usize = 1 << 20;

/// The words before a chunk's bytes: the number of processes that send, and the number of bytes or [`FAILED`].
const HEADER: usize = 2;

/// The sender has no more to send, since it has failed.
const FAILED: u32 = u32::MAX;

/// Bytes that go at a time.
pub const CHUNK_BYTES: usize = 4 * (WORDS - HEADER);

/// The compiled program, and zeros on each local replica.
pub(super) struct Broadcast {
    compiled: Compiled,
    zeros: Vec<Array>,
    /// Of the local replica that sends.
    device_id: i32,
}

impl Broadcast {
    pub fn new(runtime: &Runtime, placement: &Placement) -> Result<Self> {
        let graph = Graph::new();
        let words = graph.parameter("words", Shape::new(ElementType::U32, [WORDS]));
        let program = Program::new("broadcast", vec![words], vec![words.all_reduce_sum()]);
        let compiled = runtime.compile(&Lowered::new(&program, placement.device_ids(), runtime.backend()))?;
        let local = &placement.device_ids()[placement.local()];
        let zeros = vec![0; WORDS];
        let zeros = local.iter().map(|device| runtime.upload::<u32>(&zeros, &[WORDS], *device));
        Ok(Self { compiled, zeros: zeros.collect::<Result<_>>()?, device_id: local[0] })
    }

    /// Sends what `source` puts into the bytes that it is given, until it gives 0 as their number, as
    /// [`Read::read`](std::io::Read::read) does. `run` runs one chunk.
    pub fn send<E>(
        &self,
        mut source: impl FnMut(&mut [u8]) -> std::result::Result<usize, E>,
        run: impl Fn(Option<&[u32]>) -> std::result::Result<Vec<u32>, E>,
    ) -> std::result::Result<(), E> {
        let mut words = vec![0; WORDS];
        loop {
            let filled = fill(bytemuck::cast_slice_mut(&mut words[HEADER..]), &mut source);
            words[0] = 1;
            words[1] = filled.as_ref().map_or(FAILED, |length| *length as u32);
            run(Some(&words))?;
            if filled? < CHUNK_BYTES {
                return Ok(());
            }
        }
    }

    /// Gives `sink` what another process sends. Where that fails, the rest is received all the same: the others wait for
    /// each other in each chunk. If the sender fails, this ends as if it were done.
    ///
    /// # Panics
    /// If not one process sends.
    pub fn receive<E>(
        &self,
        mut sink: impl FnMut(&[u8]) -> std::result::Result<(), E>,
        run: impl Fn(Option<&[u32]>) -> std::result::Result<Vec<u32>, E>,
    ) -> std::result::Result<(), E> {
        let mut received = Ok(());
        loop {
            let words = run(None)?;
            assert_eq!(words[0], 1, "one process sends, the others receive");
            if words[1] == FAILED {
                return received;
            }
            let length = words[1] as usize;
            let bytes = &bytemuck::cast_slice::<u32, u8>(&words[HEADER..])[..length];
            if received.is_ok() && !bytes.is_empty() {
                received = sink(bytes);
            }
            if length < CHUNK_BYTES {
                return received;
            }
        }
    }

    /// Runs one chunk: `words` from the process that sends, `None` from the others. Gives what was sent.
    pub fn run(&self, runtime: &Runtime, words: Option<&[u32]>) -> Result<Vec<u32>> {
        let own = words.map(|words| runtime.upload(words, &[WORDS], self.device_id)).transpose()?;
        let mut arrays = self.zeros.iter().collect::<Vec<_>>();
        if let Some(own) = &own {
            arrays[0] = own;
        }
        let arguments = arrays.into_iter().map(|array| vec![Argument::Borrow(array)]);
        let launch = self.compiled.launch(arguments.collect())?;
        launch.completion.wait()?;
        launch.outputs[0][0].to_host()
    }
}

/// Reads until all bytes are there, or no more come; gives their number.
fn fill<E>(
    bytes: &mut [u8],
    source: &mut impl FnMut(&mut [u8]) -> std::result::Result<usize, E>,
) -> std::result::Result<usize, E> {
    let mut filled = 0;
    while filled < bytes.len() {
        match source(&mut bytes[filled..])? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(filled)
}
