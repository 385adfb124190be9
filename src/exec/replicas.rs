//! The replicas of a job: one connection, on whose devices programs are compiled, arrays are put and steps are run.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use super::agreement::Fingerprint;
use super::backend::{DeviceOptions, connect};
use super::barrier::Barrier;
use super::broadcast::Broadcast;
use super::lowering::Lowered;
use super::placement::Placement;
use super::read::Gathers;
use super::runtime::{Array, Compiled, Element, Runtime, RuntimeKind};
use super::watch::Watch;
use super::{Error, Result};
use crate::hlo::Program;
use crate::pjrt::Backend;
use crate::step::{Layout, Precision};

/// Data-parallel replicas, as TensorFlow's `TPUStrategy` has them: each takes an equal share of each batch.
///
/// On a slice of several hosts, one process runs on each of them. All take the same steps, and each puts data on its
/// own devices alone: its replicas are the local ones, a range of all.
pub struct Replicas {
    placement: Placement,
    /// `None` for a process that drives all replicas.
    barrier: Option<Barrier>,
    /// Compiled when it is first asked for.
    broadcast: OnceLock<Broadcast>,
    /// What gathers the parts of arrays of these shapes.
    pub(super) gathers: Gathers,
    watch: Watch,
    /// See [`DeviceOptions::deterministic`].
    deterministic: bool,
    /// Why each backend that was tried first was passed over.
    pub passed_over: Vec<(Backend, String)>,
    runtime: Runtime,
}

/// One array on every local replica.
pub struct Placed {
    pub(super) arrays: Vec<Array>,
    pub layout: Layout,
}

impl Replicas {
    /// Loads the plugin and finds the devices.
    ///
    /// # Errors
    /// A backend that was named and isn't usable, no usable backend at all, or a number of replicas that the devices
    /// don't allow (see [`Placement::new`]); the last in all processes of a slice, if one of them was told of it.
    pub fn connect(options: &DeviceOptions) -> Result<Self> {
        let watch = Watch::new(options);
        let (runtime, passed_over) = connect(options, &watch)?;
        let (devices, process) = (runtime.devices(), runtime.process_index());
        let placement = Placement::new(&devices, process, options.replicas).map_err(Error::from);
        let is_shared = devices.iter().any(|(_, of)| *of != process);
        let barrier = is_shared.then(|| Barrier::new(&runtime)).transpose()?;
        let placement = match &barrier {
            // What one is told of replicas may fail for it alone.
            Some(barrier) => meet(barrier, &runtime, &watch, "placing the replicas", placement),
            None => placement,
        }?;
        let (broadcast, deterministic) = (OnceLock::new(), options.deterministic);
        let gathers = Gathers::default();
        Ok(Self { placement, barrier, broadcast, gathers, watch, deterministic, passed_over, runtime })
    }

    pub fn backend(&self) -> Backend {
        self.runtime.backend()
    }

    pub fn runtime(&self) -> RuntimeKind {
        self.runtime.kind()
    }

    /// Number of replicas, over all processes.
    pub fn count(&self) -> usize {
        self.placement.replicas()
    }

    /// Number of replicas that this process drives.
    pub fn local_count(&self) -> usize {
        self.placement.local().len()
    }

    /// Those of all that this process drives.
    pub fn local(&self) -> std::ops::Range<usize> {
        self.placement.local()
    }

    /// Whether other processes drive a part of the replicas.
    pub fn is_shared(&self) -> bool {
        self.barrier.is_some()
    }

    /// This process among those that drive the slice, from 0.
    pub fn process_index(&self) -> i32 {
        self.runtime.process_index()
    }

    /// Whether this is the process that reports and writes files.
    pub fn is_chief(&self) -> bool {
        self.process_index() == 0
    }

    /// See [`DeviceOptions::deterministic`].
    pub fn is_deterministic(&self) -> bool {
        self.deterministic
    }

    /// What its devices compute fastest in.
    pub fn precision(&self) -> Precision {
        if self.runtime.has_bf16_units() { Precision::Bf16 } else { Precision::F32 }
    }

    /// What to change of this machine's set-up for its devices, in one line.
    pub fn advice(&self) -> Option<String> {
        self.runtime.advice()
    }

    /// Kind of the devices, such as `TPU v3`.
    pub fn device_kind(&self) -> String {
        self.runtime.device_kind()
    }

    /// The rows of a batch that each replica takes.
    ///
    /// # Errors
    /// A batch that can't be split evenly.
    pub fn rows(&self, batch_size: usize) -> Result<usize> {
        Ok(self.placement.rows_per_replica(batch_size)?)
    }

    /// Compiles `program` for the replicas, or takes it from the cache.
    pub fn compile(&self, program: &Program<'_>) -> Result<Compiled> {
        self.compile_for(program, self.placement.device_ids())
    }

    /// As [`compile`](Self::compile), for the replicas of this process alone, which then waits for no other: replicas must
    /// have nothing to do with each other in `program`.
    pub fn compile_local(&self, program: &Program<'_>) -> Result<Compiled> {
        self.compile_for(program, &self.placement.device_ids()[self.placement.local()])
    }

    fn compile_for(&self, program: &Program<'_>, device_ids: &[i32]) -> Result<Compiled> {
        let lowered = Lowered::new(program, device_ids, self.backend());
        self.runtime.compile(&lowered.deterministic(self.deterministic, self.backend()))
    }

    /// Puts an array on the local replicas: whole on each, or to each its part. `values` and `dims` are the whole array's,
    /// row-major; but of one that is dealt out, `dims` are those of a part. It doesn't wait: the values are held until all have been read.
    ///
    /// # Errors
    /// A failure of the runtime.
    ///
    /// # Panics
    /// If a sharded array can't be split evenly over the replicas.
    pub fn upload<'v, T: Element>(
        &self,
        values: impl Into<Cow<'v, [T]>>,
        dims: &[usize],
        layout: Layout,
    ) -> Result<Placed> {
        let values = values.into();
        let start = |values, dims: &[usize], replica: usize| {
            self.runtime.upload_shared(values, dims, self.placement.device_ids()[replica])
        };
        let replicas = self.placement.local();
        let arrays = match layout {
            Layout::Mirrored => {
                let values = Arc::new(values.into_owned());
                replicas.map(|replica| start(values.clone(), dims, replica)).collect::<Result<_>>()
            }
            Layout::Sharded => {
                let dims = [&[dims[0] / self.count()], &dims[1..]].concat();
                let part = |replica| Arc::new(self.placement.part(&values, replica).to_vec());
                replicas.map(|replica| start(part(replica), &dims, replica)).collect()
            }
            Layout::Dealt(dealt) => {
                let part = |replica| Arc::new(dealt.deal(&values, replica));
                replicas.map(|replica| start(part(replica), dims, replica)).collect()
            }
        };
        Ok(Placed { arrays: arrays?, layout })
    }

    /// Runs `wait`, for what other processes take part in, under the time limit.
    pub(super) fn waiting<T>(&self, phase: &'static str, wait: impl FnOnce() -> T) -> T {
        if self.is_shared() { self.watch.during(phase, wait) } else { wait() }
    }

    /// The watch over waits for other processes, if there are any.
    pub(super) fn watch(&self) -> Option<Watch> {
        self.is_shared().then(|| self.watch.clone())
    }

    /// Gives `result` back once every process of the slice has come here with its own: where one has failed, none goes
    /// on to wait for it in a step. Every phase that can fail in one process alone ends here, in the same order in all;
    /// `phase` is what it was, for messages.
    ///
    /// # Errors
    /// This process's own, or that another one has failed.
    pub fn meet<T, E: From<Error>>(
        &self,
        phase: &'static str,
        result: std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        match &self.barrier {
            Some(barrier) => meet(barrier, &self.runtime, &self.watch, phase, result),
            None => result,
        }
    }

    /// Compares what all processes of the slice are about to do, to be done before the first compilation. `parts` are
    /// what must be alike; a process that is alone makes none of them.
    ///
    /// # Errors
    /// In every process, if one of them holds something else than process 0 does, or has none.
    pub fn agree<E: From<Error>>(
        &self,
        parts: impl FnOnce() -> std::result::Result<Vec<Fingerprint>, E>,
    ) -> std::result::Result<(), E> {
        let Some(barrier) = &self.barrier else { return Ok(()) };
        const PHASE: &str = "comparing the hosts";
        let parts = self.meet(PHASE, parts())?;
        let words = super::agreement::words(&parts);
        let gathered = self.waiting(PHASE, || barrier.gather(&self.runtime, &words))?;
        Ok(super::agreement::compare(&gathered, &parts)?)
    }

    /// What each process of the slice passes, in their order; all pass as many words, up to 32. A process that is alone
    /// gets its own.
    ///
    /// # Errors
    /// A failure of the runtime.
    ///
    /// # Panics
    /// If there are more words.
    pub fn gather(&self, phase: &'static str, words: &[u32]) -> Result<Vec<Vec<u32>>> {
        let Some(barrier) = &self.barrier else { return Ok(vec![words.to_vec()]) };
        let gathered = self.waiting(phase, || barrier.gather(&self.runtime, words))?;
        let own_length = |(_, mut passed): (i32, Vec<u32>)| {
            passed.truncate(words.len());
            passed
        };
        Ok(gathered.into_iter().map(own_length).collect())
    }

    /// Sends bytes to all other processes of the slice, which [`receive`](Self::receive) them meanwhile, over the devices;
    /// no more than [`CHUNK_BYTES`](super::CHUNK_BYTES) are held at a time. `source` puts them into what it is given and
    /// gives their number, 0 at the end, as [`Read::read`](std::io::Read::read) does. A process that is alone sends
    /// nothing.
    ///
    /// # Errors
    /// The source's, a failure of the runtime, or that another process has failed: all of them meet at the end.
    pub fn send<E: From<Error>>(
        &self,
        phase: &'static str,
        source: impl FnMut(&mut [u8]) -> std::result::Result<usize, E>,
    ) -> std::result::Result<(), E> {
        if !self.is_shared() {
            return Ok(());
        }
        let broadcast = self.broadcast(phase)?;
        let sent = broadcast.send(source, |words| self.run_broadcast(phase, broadcast, words));
        self.meet(phase, sent)
    }

    /// Receives the bytes that one other process of the slice [`send`](Self::send)s, a part after another. A process that is
    /// alone receives nothing.
    ///
    /// # Errors
    /// The sink's, once all is received; a failure of the runtime; or that another process has failed.
    ///
    /// # Panics
    /// If not one process sends.
    pub fn receive<E: From<Error>>(
        &self,
        phase: &'static str,
        sink: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        if !self.is_shared() {
            return Ok(());
        }
        let broadcast = self.broadcast(phase)?;
        let received = broadcast.receive(sink, |words| self.run_broadcast(phase, broadcast, words));
        self.meet(phase, received)
    }

    fn broadcast(&self, phase: &'static str) -> Result<&Broadcast> {
        match self.broadcast.get() {
            Some(broadcast) => Ok(broadcast),
            None => {
                let broadcast = self.meet(phase, Broadcast::new(&self.runtime, &self.placement))?;
                Ok(self.broadcast.get_or_init(|| broadcast))
            }
        }
    }

    fn run_broadcast<E: From<Error>>(
        &self,
        phase: &'static str,
        broadcast: &Broadcast,
        words: Option<&[u32]>,
    ) -> std::result::Result<Vec<u32>, E> {
        Ok(self.waiting(phase, || broadcast.run(&self.runtime, words))?)
    }
}

/// See [`Replicas::meet`].
fn meet<T, E: From<Error>>(
    barrier: &Barrier,
    runtime: &Runtime,
    watch: &Watch,
    phase: &'static str,
    result: std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let value = match result {
        Ok(value) => value,
        Err(own) => {
            // The others are to be told. If they don't come, why this one has failed is still to be said.
            let told = watch.during(phase, || barrier.launch(runtime, &[1]));
            if let Ok(told) = told
                && !watch.settles(|| told.completion.is_over())
            {
                std::mem::forget(told);
            }
            return Err(own);
        }
    };
    let words = watch.during(phase, || barrier.gather(runtime, &[0]))?;
    match words.into_iter().find(|(_, words)| words[0] != 0) {
        Some((process, _)) => Err(Error::OtherProcess { process, phase }.into()),
        None => Ok(value),
    }
}
