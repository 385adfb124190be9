//! Where a program runs: one backend, and the replicas on its devices.

use std::path::PathBuf;
use std::sync::Arc;

use crate::data::Batch;
use crate::error::{Error, Result};
use crate::hlo::{Graph, Program};
use crate::pjrt::{
    self, Argument, Backend, Buffer, Client, CompileOptions, Device, ExecutableCache, LoadedExecutable,
    Plugin, ProgramFormat, cpu_device_count,
};
use crate::placement::Placement;
use crate::shape::{ElementType, Shape};

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub struct StrategyOptions {
    /// `None` takes the first of TPU, GPU and CPU that is there.
    pub backend: Option<Backend>,
    /// Over all processes of a slice. `None` takes every device of a TPU or GPU, and one on the CPU.
    pub replicas: Option<usize>,
    /// The plugin's file; it needs `backend`.
    pub plugin: Option<PathBuf>,
    /// Where compiled programs are kept.
    pub cache: Option<Arc<ExecutableCache>>,
}

/// Data-parallel replicas, as TensorFlow's `TPUStrategy` has them: each holds all weights and takes an equal share
/// of each batch.
///
/// On a slice of several hosts, one process runs on each of them. All take the same steps, and each puts data on its
/// own devices alone: its replicas are the local ones, a range of all.
pub struct Strategy {
    client: Client,
    placement: Placement,
    cache: Option<Arc<ExecutableCache>>,
    /// Why each backend that was tried first was passed over.
    pub passed_over: Vec<(Backend, String)>,
}

impl Strategy {
    /// Loads the plugin and finds the devices.
    ///
    /// # Errors
    /// A backend that was named and isn't usable, no usable backend at all, or a number of replicas that the devices
    /// don't allow (see [`Placement::new`]).
    pub fn new(options: &StrategyOptions) -> Result<Self> {
        let mut passed_over = Vec::new();
        let client = match options.backend {
            Some(backend) => {
                let missing = |reason| {
                    Error::Usage(format!("--backend {backend}: {reason}; --backend auto takes what is here"))
                };
                backend.probe().map_err(missing)?;
                connect(backend, options)?
            }
            None if options.plugin.is_some() => {
                return Err(Error::Usage("--plugin needs --backend cpu, gpu or tpu".into()));
            }
            None => first_usable(options, &mut passed_over)?,
        };
        let placement = place(&client, options.replicas)?;
        Ok(Self { client, placement, cache: options.cache.clone(), passed_over })
    }

    pub fn backend(&self) -> Backend {
        self.client.plugin().backend()
    }

    /// Number of replicas, over all processes.
    pub fn replicas(&self) -> usize {
        self.placement.replicas()
    }

    /// Number of replicas that this process drives.
    pub fn local_replicas(&self) -> usize {
        self.placement.local().len()
    }

    /// Whether other processes drive a part of the replicas.
    pub fn is_shared(&self) -> bool {
        self.local_replicas() < self.replicas()
    }

    /// This process among those that drive the slice, from 0.
    pub fn process_index(&self) -> i32 {
        self.client.process_index()
    }

    /// Whether this is the process that reports and writes files.
    pub fn is_chief(&self) -> bool {
        self.process_index() == 0
    }

    /// Each local replica, and its device.
    fn local_devices(&self) -> impl Iterator<Item = (usize, Device<'_>)> {
        let device = |replica| {
            let id = self.placement.device_ids()[replica];
            let device = self.client.devices().find(|device| device.id() == id);
            (replica, device.expect("replicas are placed on the client's devices"))
        };
        self.placement.local().map(device)
    }

    /// Kind of the devices, such as `TPU v3`.
    pub fn device_kind(&self) -> String {
        self.client.addressable_devices().first().map_or(String::new(), |device| device.kind().to_owned())
    }

    /// The rows of a batch that each replica takes.
    ///
    /// # Errors
    /// A batch that can't be split evenly.
    pub fn rows_per_replica(&self, batch_size: usize) -> Result<usize> {
        self.placement.rows_per_replica(batch_size)
    }

    /// Compiles `program` for the replicas, or takes it from the cache.
    pub fn compile(&self, program: &Program<'_>) -> Result<LoadedExecutable> {
        let program = pjrt::Program {
            format: ProgramFormat::Hlo,
            code: &program.to_hlo_proto(),
            parameters: &program.parameter_shapes(),
        };
        let options = CompileOptions::on_devices(self.placement.device_ids());
        match &self.cache {
            Some(cache) => Ok(cache.compile(&self.client, &program, &options)?.0),
            None => Ok(self.client.compile(&program, &options)?),
        }
    }

    /// What each process of the slice passes, with its index, in their order. All must call this together, with
    /// equally many `words`.
    ///
    /// It takes all devices, since processes that were told of different numbers of replicas are to meet here too.
    pub fn gather(&self, words: &[u32]) -> Result<Vec<(i32, Vec<u32>)>> {
        let (client, cache) = (self.client.clone(), self.cache.clone());
        let all = Self { placement: place(&client, None)?, client, cache, passed_over: vec![] };
        let own = [&[self.process_index() as u32], words].concat();
        let graph = Graph::new();
        let input = graph.parameter("words", Shape::new(ElementType::U32, [1, own.len()]));
        let program = Program::new("gather", vec![input], vec![input.all_gather(all.replicas())]);
        let executable = all.compile(&program)?;
        let buffers = all.mirror(&own, &[1, own.len()])?;
        let arguments = buffers.iter().map(|buffer| vec![Argument::Borrow(buffer)]).collect();
        let gathered = executable.execute(arguments)?[0][0].to_host::<u32>()?;
        let rows = gathered.chunks(own.len()).map(|row| (row[0] as i32, row[1..].to_vec()));
        let mut processes = rows.collect::<Vec<_>>();
        // One of a process's devices speaks for all.
        processes.dedup_by_key(|(process, _)| *process);
        Ok(processes)
    }

    /// Gives `result` back once every process of the slice has come here with its own: where one has failed, none goes
    /// on to wait for it in a step.
    ///
    /// # Errors
    /// This process's own, or that another one has failed.
    pub fn together(&self, result: Result<()>) -> Result<()> {
        if !self.is_shared() {
            return result;
        }
        let failed = self.gather(&[u32::from(result.is_err())]);
        result?;
        match failed?.into_iter().find(|(_, words)| words[0] != 0) {
            Some((process, _)) => Err(Error::OtherProcess { process }),
            None => Ok(()),
        }
    }

    /// Puts the same values on every local replica.
    pub fn mirror<T: pjrt::Element>(&self, values: &[T], dims: &[usize]) -> Result<Vec<Buffer>> {
        let upload = |(_, device)| Ok(self.client.buffer_from_host(values, dims, device)?);
        self.local_devices().map(upload).collect()
    }

    /// Puts each local replica's share of `batch` on it: `input_ids`, the mask if the batch has one, and, if
    /// `labelled`, labels and weights. `[local replica][input]`, in the order of the steps' inputs.
    pub fn upload_batch(&self, batch: &Batch, labelled: bool) -> Result<Vec<Vec<Buffer>>> {
        let upload = |(replica, device)| {
            let share = batch.share(replica, self.replicas());
            let rows = share.labels.len();
            let dims = [rows, share.input_ids.len() / rows];
            let tokens = [Some(share.input_ids), share.attention_mask].into_iter().flatten();
            let mut buffers = tokens
                .map(|tokens| self.client.buffer_from_vec(tokens.to_vec(), &dims, device))
                .collect::<pjrt::Result<Vec<_>>>()?;
            if labelled {
                buffers.push(self.client.buffer_from_vec(share.labels.to_vec(), &[rows], device)?);
                buffers.push(self.client.buffer_from_vec(share.weights.to_vec(), &[rows], device)?);
            }
            Ok(buffers)
        };
        self.local_devices().map(upload).collect()
    }
}

fn place(client: &Client, replicas: Option<usize>) -> Result<Placement> {
    let devices = client.devices().map(|device| (device.id(), device.process_index())).collect::<Vec<_>>();
    Placement::new(&devices, client.process_index(), replicas)
}

/// Loads the plugin of a backend that has been probed: away from a TPU VM, libtpu waits for a metadata server.
fn connect(backend: Backend, options: &StrategyOptions) -> Result<Client> {
    let path = Plugin::find(backend, options.plugin.as_deref())?;
    let plugin = Plugin::load(backend, &path)?;
    let client_options = match backend {
        Backend::Cpu => vec![cpu_device_count(options.replicas.unwrap_or(1).max(1))],
        Backend::Gpu | Backend::Tpu => vec![],
    };
    Ok(plugin.client(&client_options)?)
}

fn first_usable(options: &StrategyOptions, passed_over: &mut Vec<(Backend, String)>) -> Result<Client> {
    for backend in [Backend::Tpu, Backend::Gpu] {
        let connected = match backend.probe() {
            Ok(()) => connect(backend, options).map_err(|error| error.to_string()),
            Err(reason) => Err(reason),
        };
        match connected {
            Ok(client) => return Ok(client),
            Err(reason) => passed_over.push((backend, reason)),
        }
    }
    connect(Backend::Cpu, options).map_err(|error| {
        let mut reasons = std::mem::take(passed_over);
        reasons.push((Backend::Cpu, error.to_string()));
        Error::NoBackend(reasons)
    })
}
