//! Running a compiled step: its arguments bound by name, its results found by name.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::replicas::{Placed, Replicas};
use super::runtime::{Argument, Array, Compiled, Completion, Launch, Readback};
use super::state::State;
use super::watch::Watch;
use super::{Error, Result};
use crate::pjrt::MemoryStats;
use crate::step::{InputId, LeafId, OutputId, Port, Signature, Step};

/// A step compiled for the replicas.
pub struct Executable {
    compiled: Compiled,
    signature: Signature,
    /// The leaves that it replaces.
    updated: HashSet<LeafId>,
}

/// The inputs of a step beside its state.
pub type Inputs = Vec<(InputId, Placed)>;

impl Executable {
    /// # Errors
    /// A failure of the compiler.
    pub fn compile(replicas: &Replicas, step: Step<'_>) -> Result<Self> {
        Ok(Self::new(replicas.compile(&step.program)?, step.signature))
    }

    /// As [`compile`](Self::compile), for the replicas of this process alone: see [`Replicas::compile_local`].
    pub fn compile_local(replicas: &Replicas, step: Step<'_>) -> Result<Self> {
        Ok(Self::new(replicas.compile_local(&step.program)?, step.signature))
    }

    fn new(compiled: Compiled, signature: Signature) -> Self {
        let updated = signature.outputs.iter().filter_map(|port| match &port.id {
            OutputId::Leaf(leaf) => Some(leaf.clone()),
            _ => None,
        });
        Self { compiled, updated: updated.collect(), signature }
    }

    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Memory that it takes, per replica.
    pub fn memory_stats(&self) -> Result<MemoryStats> {
        self.compiled.memory_stats()
    }

    /// Runs a step that takes nothing and returns leaves of a state.
    ///
    /// # Errors
    /// A runtime that refuses it, or a failure of the step.
    ///
    /// # Panics
    /// If the step takes something.
    pub fn make(&self, replicas: &Replicas) -> Result<HashMap<LeafId, Placed>> {
        let arguments = self.arguments(replicas, &[], |leaf, _| panic!("the step is not given {leaf}"))?;
        let Launch { outputs, completion } = self.launch(replicas, arguments)?;
        replicas.waiting(A_STEP, || completion.wait())?;
        let mut outputs = outputs.into_iter().map(Vec::into_iter).collect::<Vec<_>>();
        let leaf = |port: &Port<OutputId>| {
            let arrays = outputs.iter_mut().filter_map(Iterator::next).collect();
            let OutputId::Leaf(leaf) = &port.id else { return None };
            Some((leaf.clone(), Placed { arrays, layout: port.layout }))
        };
        Ok(self.signature.outputs.iter().filter_map(leaf).collect())
    }

    /// Queues a step that replaces `state`, but for leaves that it only reads, and takes the rest of its inputs from `inputs`.
    ///
    /// # Errors
    /// A runtime that refuses it: the state is lost then.
    ///
    /// # Panics
    /// If `inputs` lack one that the step takes, or the state is another step's.
    pub fn update(&self, replicas: &Replicas, state: &mut State, inputs: &[&Inputs]) -> Result<Pending> {
        let leaves = self.signature.leaves().map(|(leaf, _)| leaf);
        let mut taken = state.take(leaves, &|leaf| self.updated.contains(leaf), replicas.local_count())?;
        let arguments = self.arguments(replicas, inputs, |leaf, replica| {
            Ok(match self.updated.contains(leaf) {
                true => Argument::Donate(taken[replica].next().ok_or(Error::StateLost)?),
                false => Argument::Borrow(&state.kept(leaf).arrays[replica]),
            })
        })?;
        let Launch { outputs, completion } = self.launch(replicas, arguments)?;
        let is_leaf = |port: &Port<OutputId>| matches!(port.id, OutputId::Leaf(_));
        let leaves = self.signature.outputs.iter().take_while(|port| is_leaf(port)).count();
        let (mut lists, mut others) = (vec![], vec![]);
        for mut outputs in outputs {
            others.push(outputs.split_off(leaves));
            lists.push(outputs);
        }
        let ids = self.signature.outputs[..leaves].iter().filter_map(|port| match &port.id {
            OutputId::Leaf(leaf) => Some(leaf),
            _ => None,
        });
        state.put(ids, lists);
        self.pending(replicas, leaves, others, completion)
    }

    /// Queues a step that only reads `state`.
    ///
    /// # Errors
    /// A runtime that refuses it.
    ///
    /// # Panics
    /// If `inputs` lack one that the step takes, or the state lacks a leaf.
    pub fn query(&self, replicas: &Replicas, state: &State, inputs: &[&Inputs]) -> Result<Pending> {
        let arguments = self.arguments(replicas, inputs, |leaf, replica| {
            Ok(Argument::Borrow(&state.get(leaf)?.arrays[replica]))
        })?;
        let Launch { outputs, completion } = self.launch(replicas, arguments)?;
        self.pending(replicas, 0, outputs, completion)
    }

    /// Some runtimes run a program while it is launched, and meet the other processes there.
    fn launch(&self, replicas: &Replicas, arguments: Vec<Vec<Argument<'_>>>) -> Result<Launch> {
        replicas.waiting(A_STEP, || self.compiled.launch(arguments))
    }

    /// `[local replica][argument]` in the program's order: leaves from `leaf`, all else from `inputs`.
    fn arguments<'a>(
        &self,
        replicas: &Replicas,
        inputs: &[&'a Inputs],
        mut leaf: impl FnMut(&LeafId, usize) -> Result<Argument<'a>>,
    ) -> Result<Vec<Vec<Argument<'a>>>> {
        let mut argument = |port: &Port<InputId>, replica: usize| match &port.id {
            InputId::Leaf(id) => leaf(id, replica),
            _ => {
                let given = inputs.iter().flat_map(|inputs| inputs.iter()).find(|(id, _)| *id == port.id);
                let (_, placed) = given.unwrap_or_else(|| panic!("the step is not given {}", port.id));
                Ok(Argument::Borrow(&placed.arrays[replica]))
            }
        };
        let mut arguments =
            |replica| self.signature.inputs.iter().map(|port| argument(port, replica)).collect::<Result<_>>();
        (0..replicas.local_count()).map(&mut arguments).collect()
    }

    /// Starts reading the outputs after the first `skipped`: those of one local replica, since each of them returns the
    /// same.
    fn pending(
        &self,
        replicas: &Replicas,
        skipped: usize,
        mut outputs: Vec<Vec<Array>>,
        completion: Completion,
    ) -> Result<Pending> {
        let ports = &self.signature.outputs[skipped..];
        let first = outputs.swap_remove(0);
        // From the first read on, what has been started is to end before its memory goes.
        let ended = completion.ended();
        let work = Work { completion, ended, known: None, reads: vec![] };
        let mut pending = Pending { work: Some(work), watch: replicas.watch() };
        for (port, array) in ports.iter().zip(first) {
            let read = replicas.waiting(A_STEP, || array.read(vec![]))?;
            if let Some(work) = &mut pending.work {
                work.reads.push((port.id.clone(), read));
            }
        }
        Ok(pending)
    }
}

/// What goes on while a step runs, for messages.
const A_STEP: &str = "a step";

/// A step that the devices work on. Dropping it waits for its end, unless that depends on other processes that don't come.
pub struct Pending {
    work: Option<Work>,
    /// `None` for a process that drives all replicas.
    watch: Option<Watch>,
}

/// A run, and copies of what it returns.
struct Work {
    completion: Completion,
    ended: Receiver<Instant>,
    /// That, once it was asked for.
    known: Option<Instant>,
    reads: Vec<(OutputId, Readback)>,
}

impl Work {
    fn is_over(&self) -> bool {
        self.completion.is_over() && self.reads.iter().all(|(_, read)| read.is_over())
    }
}

/// What a step has returned beside its state.
pub struct Outputs {
    values: Vec<(OutputId, Vec<f32>)>,
    /// When it had ended on every local device, whenever it was waited for.
    pub ended: Instant,
}

impl Pending {
    /// When the step had ended on every local device; `None` as long as that isn't told.
    pub fn ended(&mut self) -> Option<Instant> {
        let work = self.work.as_mut()?;
        work.known = work.known.or_else(|| work.ended.try_recv().ok());
        work.known
    }

    /// Blocks until the step has ended on every local device.
    pub fn wait(mut self) -> Result<Outputs> {
        // So long, at most, the time of a step's end comes after it.
        const LATE: Duration = Duration::from_secs(1);
        let Some(Work { completion, ended, known, reads }) = self.work.take() else {
            return Ok(Outputs { values: vec![], ended: Instant::now() });
        };
        let wait = || {
            completion.wait()?;
            let told = || ended.recv_timeout(LATE).unwrap_or_else(|_| Instant::now());
            let ended = known.unwrap_or_else(told);
            let read = |(id, read): (OutputId, Readback)| Ok((id, read.wait()?));
            Ok(Outputs { values: reads.into_iter().map(read).collect::<Result<_>>()?, ended })
        };
        match &self.watch {
            Some(watch) => watch.during(A_STEP, wait),
            None => wait(),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Whoever drops a step without asking what it returned has failed. The others may never take part in it, and a
        // wait for them would hide the failure: then, what the devices may still write to is leaked.
        if let (Some(work), Some(watch)) = (self.work.take(), &self.watch)
            && !watch.settles(|| work.is_over())
        {
            std::mem::forget(work);
        }
    }
}

impl Outputs {
    /// Takes an output's values, row-major.
    ///
    /// # Panics
    /// If the step has no such output, or it was taken before.
    pub fn take(&mut self, id: &OutputId) -> Vec<f32> {
        let index = self.values.iter().position(|(output, _)| output == id);
        let index = index.unwrap_or_else(|| panic!("the step does not return {id:?}"));
        self.values.swap_remove(index).1
    }
}
