//! Where the processes of a slice meet: one small program that gathers a few words of each.

use super::Result;
use super::lowering::Lowered;
use super::placement::Placement;
use super::runtime::{Argument, Compiled, Launch, Runtime};
use crate::hlo::{Graph, Program};
use crate::shape::{ElementType, Shape};

/// Words that a process can pass on: four SHA-256.
pub(super) const WORDS: usize = 32;

/// The compiled program. It takes all devices, since processes that were told of different numbers of replicas are to
/// meet here too.
pub(super) struct Barrier {
    compiled: Compiled,
    placement: Placement,
}

impl Barrier {
    pub fn new(runtime: &Runtime) -> Result<Self> {
        let placement = Placement::new(&runtime.devices(), runtime.process_index(), None)?;
        let graph = Graph::new();
        let words = graph.parameter("words", Shape::new(ElementType::U32, [1, 1 + WORDS]));
        let program = Program::new("gather", vec![words], vec![words.all_gather(placement.replicas())]);
        let compiled = runtime.compile(&Lowered::new(&program, placement.device_ids(), runtime.backend()))?;
        Ok(Self { compiled, placement })
    }

    /// What each process passes, with its index, in their order: up to [`WORDS`] words, the others 0. All must call this
    /// together, and wait for each other here.
    pub fn gather(&self, runtime: &Runtime, words: &[u32]) -> Result<Vec<(i32, Vec<u32>)>> {
        let launch = self.launch(runtime, words)?;
        launch.completion.wait()?;
        // A process has one device or more, and the program one output.
        let gathered = launch.outputs[0][0].to_host::<u32>()?;
        let mut processes =
            gathered.chunks(1 + WORDS).map(|row| (row[0] as i32, row[1..].to_vec())).collect::<Vec<_>>();
        // One of a process's devices speaks for all.
        processes.dedup_by_key(|(process, _)| *process);
        Ok(processes)
    }

    /// Passes words on without waiting for the others.
    pub fn launch(&self, runtime: &Runtime, words: &[u32]) -> Result<Launch> {
        let mut own = vec![0; 1 + WORDS];
        own[0] = runtime.process_index() as u32;
        own[1..=words.len()].copy_from_slice(words);
        let upload = |replica| {
            let device = self.placement.device_ids()[replica];
            Ok(vec![Argument::Donate(runtime.upload(&own, &[1, own.len()], device)?)])
        };
        let arguments = self.placement.local().map(upload).collect::<Result<_>>()?;
        self.compiled.launch(arguments)
    }
}
