//! What runs programs, as the floors above see it: arrays, compiled programs, launches and readbacks. They don't know
//! which runtime it is.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use super::Result;
use super::lowering::Lowered;
use crate::pjrt::{self, Backend, ExecutableCache, MemoryStats};
use crate::shape::Shape;

pub use crate::pjrt::Element;

/// A connection to devices.
pub(super) enum Runtime {
    Pjrt { client: pjrt::Client, cache: Option<Arc<ExecutableCache>> },
}

/// An array on one device.
pub enum Array {
    Pjrt(pjrt::Buffer),
}

/// A program compiled for the replicas' devices.
pub enum Compiled {
    Pjrt(pjrt::LoadedExecutable),
}

/// An argument of one replica.
pub enum Argument<'a> {
    /// Stays usable.
    Borrow(&'a Array),
    /// Gives its memory to the output that takes it over.
    Donate(Array),
}

/// A run that has been queued on all local replicas.
pub(super) struct Launch {
    /// `[local replica][output]`
    pub outputs: Vec<Vec<Array>>,
    pub completion: Completion,
}

/// The end of a run. Dropping it waits as well, and loses the run's error.
pub(super) enum Completion {
    Pjrt(pjrt::Completion),
}

/// A copy to the host that is under way. Dropping it waits for it.
pub(super) enum Readback {
    Pjrt(pjrt::PendingRead<f32>),
}

impl Runtime {
    pub fn backend(&self) -> Backend {
        let Self::Pjrt { client, .. } = self;
        client.plugin().backend()
    }

    /// What to change of the machine's set-up, in one line.
    pub fn advice(&self) -> Option<String> {
        let Self::Pjrt { client, .. } = self;
        client.advice()
    }

    /// This process among those that drive the devices, from 0.
    pub fn process_index(&self) -> i32 {
        let Self::Pjrt { client, .. } = self;
        client.process_index()
    }

    /// `(id, process index)` of all devices, those of other processes too.
    pub fn devices(&self) -> Vec<(i32, i32)> {
        let Self::Pjrt { client, .. } = self;
        client.devices().map(|device| (device.id(), device.process_index())).collect()
    }

    /// Kind of the devices, such as `TPU v3`.
    pub fn device_kind(&self) -> String {
        let Self::Pjrt { client, .. } = self;
        client.addressable_devices().first().map_or(String::new(), |device| device.kind().to_owned())
    }

    /// Compiles a program, or takes it from the cache.
    pub fn compile(&self, lowered: &Lowered) -> Result<Compiled> {
        let Self::Pjrt { client, cache } = self;
        let (module, options) = (lowered.module(), &lowered.options);
        Ok(Compiled::Pjrt(match cache {
            Some(cache) => cache.compile(client, &module, options)?.0,
            None => client.compile(&module, options)?,
        }))
    }

    /// Copies values to a device of this process; returns once they have been read.
    pub fn upload<T: Element>(&self, values: &[T], dims: &[usize], device_id: i32) -> Result<Array> {
        Ok(Array::Pjrt(self.client().buffer_from_host(values, dims, self.device(device_id))?))
    }

    /// As [`upload`](Self::upload), without waiting.
    pub fn upload_shared<T: Element>(
        &self,
        values: Arc<Vec<T>>,
        dims: &[usize],
        device_id: i32,
    ) -> Result<Array> {
        Ok(Array::Pjrt(self.client().buffer_from_shared(values, dims, self.device(device_id))?))
    }

    fn client(&self) -> &pjrt::Client {
        let Self::Pjrt { client, .. } = self;
        client
    }

    fn device(&self, id: i32) -> pjrt::Device<'_> {
        let device = self.client().devices().find(|device| device.id() == id);
        device.expect("replicas are placed on the runtime's own devices")
    }
}

impl Array {
    pub fn shape(&self) -> &Shape {
        let Self::Pjrt(buffer) = self;
        buffer.shape()
    }

    /// The values, row-major, once they are computed and copied.
    pub(super) fn to_host<T: Element>(&self) -> Result<Vec<T>> {
        let Self::Pjrt(buffer) = self;
        Ok(buffer.to_host()?)
    }

    /// Blocks until the values are there.
    pub(super) fn wait(&self) -> Result<()> {
        let Self::Pjrt(buffer) = self;
        Ok(buffer.wait()?)
    }

    /// Starts a copy to the host, into the memory of `spare` if it is large enough.
    pub(super) fn read(&self, spare: Vec<f32>) -> Result<Readback> {
        let Self::Pjrt(buffer) = self;
        Ok(Readback::Pjrt(buffer.read_into(spare)?))
    }
}

impl Compiled {
    /// Queues a run: `[local replica][argument]`.
    pub(super) fn launch(&self, arguments: Vec<Vec<Argument<'_>>>) -> Result<Launch> {
        let Self::Pjrt(executable) = self;
        let argument = |argument| match argument {
            Argument::Borrow(Array::Pjrt(buffer)) => pjrt::Argument::Borrow(buffer),
            Argument::Donate(Array::Pjrt(buffer)) => pjrt::Argument::Donate(buffer),
        };
        let arguments = arguments.into_iter().map(|list| list.into_iter().map(argument).collect());
        let pjrt::Execution { outputs, completion } = executable.execute_async(arguments.collect())?;
        let outputs = outputs.into_iter().map(|list| list.into_iter().map(Array::Pjrt).collect());
        Ok(Launch { outputs: outputs.collect(), completion: Completion::Pjrt(completion) })
    }

    /// Memory that it takes, per replica.
    pub fn memory_stats(&self) -> Result<MemoryStats> {
        let Self::Pjrt(executable) = self;
        Ok(executable.executable().memory_stats()?)
    }
}

impl Completion {
    /// When it has ended on every local device: see [`pjrt::Completion::ended`].
    pub fn ended(&self) -> Receiver<Instant> {
        let Self::Pjrt(completion) = self;
        completion.ended()
    }

    /// Blocks until the run has ended on every local device.
    pub fn wait(self) -> Result<()> {
        let Self::Pjrt(completion) = self;
        Ok(completion.wait()?)
    }

    /// Whether neither [`wait`](Self::wait) nor dropping it would block.
    pub fn is_over(&self) -> bool {
        let Self::Pjrt(completion) = self;
        // One that can't be asked can't be waited for either.
        completion.is_ready().unwrap_or(true)
    }
}

impl Readback {
    /// Blocks until the values are there; row-major.
    pub fn wait(self) -> Result<Vec<f32>> {
        let Self::Pjrt(read) = self;
        Ok(read.wait()?)
    }

    /// As [`Completion::is_over`].
    pub fn is_over(&self) -> bool {
        let Self::Pjrt(read) = self;
        read.is_ready().unwrap_or(true)
    }
}
