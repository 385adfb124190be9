//! What runs programs, as the floors above see it: arrays, compiled programs, launches and readbacks. They don't know
//! which runtime it is.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use bytemuck::Pod;

#[cfg(feature = "xla-extension")]
use super::extension;
use super::lowering::Lowered;
use super::{Error, Result};
use crate::pjrt::{self, Backend, CompileOptions, ExecutableCache, MemoryStats};
use crate::shape::Shape;

/// Which runtime it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeKind {
    /// PJRT plugins, loaded when they are needed.
    Pjrt,
    /// XLA's C++ library, which the `xla` crate links to this program.
    #[cfg(feature = "xla-extension")]
    Xla,
}

impl RuntimeKind {
    /// The one that is taken where none is named: plugins on Linux, and elsewhere, where there are none, what is linked.
    pub const fn auto() -> Self {
        #[cfg(all(feature = "xla-extension", not(target_os = "linux")))]
        return Self::Xla;
        #[cfg(not(all(feature = "xla-extension", not(target_os = "linux"))))]
        Self::Pjrt
    }

    /// The xla runtime.
    ///
    /// # Errors
    /// A program that was built without it.
    pub const fn xla() -> Result<Self> {
        #[cfg(feature = "xla-extension")]
        return Ok(Self::Xla);
        #[cfg(not(feature = "xla-extension"))]
        Err(Error::NotLinked)
    }
}

impl std::fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pjrt => "pjrt",
            #[cfg(feature = "xla-extension")]
            Self::Xla => "xla",
        })
    }
}

/// The library that is linked to this program, and what it drives here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkedRuntime {
    /// The library's name for it.
    pub platform: String,
    pub version: String,
    /// Id and kind of each.
    pub devices: Vec<(i32, String)>,
}

impl LinkedRuntime {
    /// What it can't do, and PJRT plugins can.
    pub const LACKS: [&str; 7] = [
        "slices of several hosts",
        "waiting for a TPU that another process still holds",
        "advice on a TPU's or GPU's set-up",
        "compiled programs that are kept",
        "programs that give the same bits each time on a GPU",
        "a choice among GPUs",
        "memory statistics, and compiling ahead of time",
    ];

    /// `None` if nothing is linked.
    pub fn find() -> Option<Result<Self>> {
        #[cfg(feature = "xla-extension")]
        return Some(extension::linked());
        #[cfg(not(feature = "xla-extension"))]
        None
    }
}

/// An array's element, as every runtime copies it.
pub trait Element: pjrt::Element + Pod {}

impl<T: pjrt::Element + Pod> Element for T {}

/// A connection to devices.
pub(super) enum Runtime {
    Pjrt {
        client: pjrt::Client,
        cache: Option<Arc<ExecutableCache>>,
    },
    #[cfg(feature = "xla-extension")]
    Xla(extension::Client),
}

/// An array on one device.
pub enum Array {
    Pjrt(pjrt::Buffer),
    #[cfg(feature = "xla-extension")]
    Xla(extension::Buffer),
}

/// A program compiled for the replicas' devices.
pub enum Compiled {
    Pjrt(pjrt::LoadedExecutable),
    #[cfg(feature = "xla-extension")]
    Xla(extension::Executable),
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
    /// It was waited for, until then.
    #[cfg(feature = "xla-extension")]
    Over(Instant),
}

/// A copy to the host that is under way. Dropping it waits for it.
pub(super) enum Readback {
    Pjrt(pjrt::PendingRead<f32>),
    #[cfg(feature = "xla-extension")]
    Done(Vec<f32>),
}

impl Runtime {
    pub fn backend(&self) -> Backend {
        match self {
            Self::Pjrt { client, .. } => client.plugin().backend(),
            #[cfg(feature = "xla-extension")]
            Self::Xla(client) => client.backend(),
        }
    }

    pub fn kind(&self) -> RuntimeKind {
        match self {
            Self::Pjrt { .. } => RuntimeKind::Pjrt,
            #[cfg(feature = "xla-extension")]
            Self::Xla(_) => RuntimeKind::Xla,
        }
    }

    /// Whether its devices have units for products of bfloat16, as far as it can tell.
    pub fn has_bf16_units(&self) -> bool {
        match self {
            Self::Pjrt { client, .. } => client.has_bf16_units(),
            #[cfg(feature = "xla-extension")]
            Self::Xla(client) => client.backend() == Backend::Tpu,
        }
    }

    /// What to change of the machine's set-up, in one line.
    pub fn advice(&self) -> Option<String> {
        match self {
            Self::Pjrt { client, .. } => client.advice(),
            #[cfg(feature = "xla-extension")]
            Self::Xla(_) => None,
        }
    }

    /// This process among those that drive the devices, from 0.
    pub fn process_index(&self) -> i32 {
        match self {
            Self::Pjrt { client, .. } => client.process_index(),
            #[cfg(feature = "xla-extension")]
            Self::Xla(_) => 0,
        }
    }

    /// `(id, process index)` of all devices, those of other processes too.
    pub fn devices(&self) -> Vec<(i32, i32)> {
        match self {
            Self::Pjrt { client, .. } => {
                client.devices().map(|device| (device.id(), device.process_index())).collect()
            }
            #[cfg(feature = "xla-extension")]
            Self::Xla(client) => client.device_ids().iter().map(|id| (*id, 0)).collect(),
        }
    }

    /// Kind of the devices, such as `TPU v3`.
    pub fn device_kind(&self) -> String {
        match self {
            Self::Pjrt { client, .. } => {
                client.addressable_devices().first().map_or(String::new(), |device| device.kind().to_owned())
            }
            #[cfg(feature = "xla-extension")]
            Self::Xla(client) => client.device_kind(),
        }
    }

    /// Compiles a program, or takes it from the cache.
    pub fn compile(&self, lowered: &Lowered) -> Result<Compiled> {
        match self {
            Self::Pjrt { client, cache } => {
                let compile = |options: &CompileOptions| match cache {
                    Some(cache) => Ok(cache.compile(client, &lowered.module(), options)?.0),
                    None => client.compile(&lowered.module(), options),
                };
                // A plugin of another version may know fewer flags.
                let compiled = compile(&lowered.options).or_else(|error| {
                    let options = lowered.without_unknown(&error.to_string()).ok_or(error)?;
                    compile(&options)
                });
                Ok(Compiled::Pjrt(compiled?))
            }
            #[cfg(feature = "xla-extension")]
            Self::Xla(client) => Ok(Compiled::Xla(client.compile(lowered)?)),
        }
    }

    /// Copies values to a device of this process; returns once they have been read.
    pub fn upload<T: Element>(&self, values: &[T], dims: &[usize], device_id: i32) -> Result<Array> {
        match self {
            Self::Pjrt { client, .. } => {
                Ok(Array::Pjrt(client.buffer_from_host(values, dims, device(client, device_id))?))
            }
            #[cfg(feature = "xla-extension")]
            Self::Xla(client) => Ok(Array::Xla(client.upload(values, dims, device_id)?)),
        }
    }

    /// As [`upload`](Self::upload), without waiting.
    pub fn upload_shared<T: Element>(
        &self,
        values: Arc<Vec<T>>,
        dims: &[usize],
        device_id: i32,
    ) -> Result<Array> {
        match self {
            Self::Pjrt { client, .. } => {
                Ok(Array::Pjrt(client.buffer_from_shared(values, dims, device(client, device_id))?))
            }
            #[cfg(feature = "xla-extension")]
            Self::Xla(client) => Ok(Array::Xla(client.upload(&values, dims, device_id)?)),
        }
    }
}

fn device(client: &pjrt::Client, id: i32) -> pjrt::Device<'_> {
    let device = client.devices().find(|device| device.id() == id);
    device.expect("replicas are placed on the runtime's own devices")
}

impl Array {
    pub fn shape(&self) -> &Shape {
        match self {
            Self::Pjrt(buffer) => buffer.shape(),
            #[cfg(feature = "xla-extension")]
            Self::Xla(buffer) => buffer.shape(),
        }
    }

    /// The values, row-major, once they are computed and copied.
    pub(super) fn to_host<T: Element>(&self) -> Result<Vec<T>> {
        match self {
            Self::Pjrt(buffer) => Ok(buffer.to_host()?),
            #[cfg(feature = "xla-extension")]
            Self::Xla(buffer) => buffer.read_into(vec![]),
        }
    }

    /// Blocks until the values are there.
    pub(super) fn wait(&self) -> Result<()> {
        match self {
            Self::Pjrt(buffer) => Ok(buffer.wait()?),
            // Whatever they come from was waited for.
            #[cfg(feature = "xla-extension")]
            Self::Xla(_) => Ok(()),
        }
    }

    /// Starts a copy to the host, into the memory of `spare` if it is large enough.
    pub(super) fn read(&self, spare: Vec<f32>) -> Result<Readback> {
        match self {
            Self::Pjrt(buffer) => Ok(Readback::Pjrt(buffer.read_into(spare)?)),
            #[cfg(feature = "xla-extension")]
            Self::Xla(buffer) => Ok(Readback::Done(buffer.read_into(spare)?)),
        }
    }
}

impl Compiled {
    /// Queues a run: `[local replica][argument]`.
    pub(super) fn launch(&self, arguments: Vec<Vec<Argument<'_>>>) -> Result<Launch> {
        match self {
            Self::Pjrt(executable) => {
                let arguments = bind(arguments, |argument| match argument {
                    Argument::Borrow(Array::Pjrt(buffer)) => Some(pjrt::Argument::Borrow(buffer)),
                    Argument::Donate(Array::Pjrt(buffer)) => Some(pjrt::Argument::Donate(buffer)),
                    #[cfg(feature = "xla-extension")]
                    _ => None,
                })?;
                let pjrt::Execution { outputs, completion } = executable.execute_async(arguments)?;
                Ok(Launch::new(outputs, Array::Pjrt, Completion::Pjrt(completion)))
            }
            #[cfg(feature = "xla-extension")]
            Self::Xla(executable) => {
                let arguments = bind(arguments, |argument| match argument {
                    Argument::Borrow(Array::Xla(buffer)) => Some(extension::Argument::Borrow(buffer)),
                    Argument::Donate(Array::Xla(buffer)) => Some(extension::Argument::Donate(buffer)),
                    _ => None,
                })?;
                let (outputs, ended) = executable.run(arguments)?;
                Ok(Launch::new(outputs, Array::Xla, Completion::Over(ended)))
            }
        }
    }

    /// Memory that it takes, per replica.
    pub fn memory_stats(&self) -> Result<MemoryStats> {
        match self {
            Self::Pjrt(executable) => Ok(executable.executable().memory_stats()?),
            #[cfg(feature = "xla-extension")]
            Self::Xla(_) => Err(Error::Lacks("tells nothing of a program's memory".to_owned())),
        }
    }
}

/// Arguments as a runtime takes them; `to_own` gives `None` for an array of another one.
fn bind<'a, A>(
    arguments: Vec<Vec<Argument<'a>>>,
    to_own: impl Fn(Argument<'a>) -> Option<A>,
) -> Result<Vec<Vec<A>>> {
    let own = |(index, argument)| Ok(to_own(argument).ok_or(pjrt::Error::OtherClient { index })?);
    arguments.into_iter().map(|list| list.into_iter().enumerate().map(own).collect()).collect()
}

impl Launch {
    fn new<B>(outputs: Vec<Vec<B>>, array: fn(B) -> Array, completion: Completion) -> Self {
        let outputs = outputs.into_iter().map(|list| list.into_iter().map(array).collect());
        Self { outputs: outputs.collect(), completion }
    }
}

impl Completion {
    /// When it has ended on every local device: see [`pjrt::Completion::ended`].
    pub fn ended(&self) -> Receiver<Instant> {
        match self {
            Self::Pjrt(completion) => completion.ended(),
            #[cfg(feature = "xla-extension")]
            Self::Over(ended) => {
                let (sender, receiver) = std::sync::mpsc::channel();
                let _ = sender.send(*ended);
                receiver
            }
        }
    }

    /// Blocks until the run has ended on every local device.
    pub fn wait(self) -> Result<()> {
        match self {
            Self::Pjrt(completion) => Ok(completion.wait()?),
            #[cfg(feature = "xla-extension")]
            Self::Over(_) => Ok(()),
        }
    }

    /// Whether neither [`wait`](Self::wait) nor dropping it would block.
    pub fn is_over(&self) -> bool {
        match self {
            // One that can't be asked can't be waited for either.
            Self::Pjrt(completion) => completion.is_ready().unwrap_or(true),
            #[cfg(feature = "xla-extension")]
            Self::Over(_) => true,
        }
    }
}

impl Readback {
    /// Blocks until the values are there; row-major.
    pub fn wait(self) -> Result<Vec<f32>> {
        match self {
            Self::Pjrt(read) => Ok(read.wait()?),
            #[cfg(feature = "xla-extension")]
            Self::Done(values) => Ok(values),
        }
    }

    /// As [`Completion::is_over`].
    pub fn is_over(&self) -> bool {
        match self {
            Self::Pjrt(read) => read.is_ready().unwrap_or(true),
            #[cfg(feature = "xla-extension")]
            Self::Done(_) => true,
        }
    }
}
