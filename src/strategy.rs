//! Where a program runs: one backend, and the replicas on its devices.

use std::path::PathBuf;
use std::sync::Arc;

use crate::data::Batch;
use crate::error::{Error, Result};
use crate::hlo::Program;
use crate::pjrt::{
    self, Backend, Buffer, Client, CompileOptions, ExecutableCache, LoadedExecutable, Plugin, ProgramFormat,
    cpu_device_count,
};

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub struct StrategyOptions {
    /// `None` takes the first of TPU, GPU and CPU that is there.
    pub backend: Option<Backend>,
    /// `None` takes every device of a TPU or GPU, and one on the CPU.
    pub replicas: Option<usize>,
    /// The plugin's file; it needs `backend`.
    pub plugin: Option<PathBuf>,
    /// Where compiled programs are kept.
    pub cache: Option<Arc<ExecutableCache>>,
}

/// Data-parallel replicas, as TensorFlow's `TPUStrategy` has them: each holds all weights and takes an equal share
/// of each batch.
pub struct Strategy {
    client: Client,
    replicas: usize,
    cache: Option<Arc<ExecutableCache>>,
    /// Why each backend that was tried first was passed over.
    pub passed_over: Vec<(Backend, String)>,
}

impl Strategy {
    /// Loads the plugin and finds the devices.
    ///
    /// # Errors
    /// A backend that was named and isn't usable, no usable backend at all, or more replicas than devices.
    pub fn new(options: &StrategyOptions) -> Result<Self> {
        let mut passed_over = Vec::new();
        let client = match options.backend {
            Some(backend) => connect(backend, options)?,
            None if options.plugin.is_some() => {
                return Err(Error::Usage("--plugin needs --backend cpu, gpu or tpu".into()));
            }
            None => first_usable(options, &mut passed_over)?,
        };
        let devices = client.addressable_devices().len();
        let replicas = options.replicas.unwrap_or(devices);
        if replicas == 0 || replicas > devices {
            let backend = client.plugin().backend();
            let message =
                format!("--replicas {replicas}: expected 1 to {devices}, the {backend} devices here");
            return Err(Error::Usage(message));
        }
        Ok(Self { client, replicas, cache: options.cache.clone(), passed_over })
    }

    pub fn backend(&self) -> Backend {
        self.client.plugin().backend()
    }

    pub fn replicas(&self) -> usize {
        self.replicas
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
        if batch_size == 0 || !batch_size.is_multiple_of(self.replicas) {
            let message =
                format!("--batch-size {batch_size} can't be split evenly over {} replicas", self.replicas);
            return Err(Error::Usage(message));
        }
        Ok(batch_size / self.replicas)
    }

    /// Compiles `program` for the replicas, or takes it from the cache.
    pub fn compile(&self, program: &Program<'_>) -> Result<LoadedExecutable> {
        let devices = self.client.addressable_devices();
        let ids = devices.iter().take(self.replicas).map(|device| device.id()).collect::<Vec<_>>();
        let program = pjrt::Program {
            format: ProgramFormat::Hlo,
            code: &program.to_hlo_proto(),
            parameters: &program.parameter_shapes(),
        };
        let options = CompileOptions::on_devices(ids);
        match &self.cache {
            Some(cache) => Ok(cache.compile(&self.client, &program, &options)?.0),
            None => Ok(self.client.compile(&program, &options)?),
        }
    }

    /// Puts the same values on every replica.
    pub fn mirror<T: pjrt::Element>(&self, values: &[T], dims: &[usize]) -> Result<Vec<Buffer>> {
        let upload = |replica| {
            let device = self.client.addressable_device(replica)?;
            Ok(self.client.buffer_from_host(values, dims, device)?)
        };
        (0..self.replicas).map(upload).collect()
    }

    /// Puts each replica's share of `batch` on it: `input_ids`, the mask if the batch has one, and, if `labelled`,
    /// labels and weights. `[replica][input]`, in the order of the steps' inputs.
    pub fn upload_batch(&self, batch: &Batch, labelled: bool) -> Result<Vec<Vec<Buffer>>> {
        let upload = |replica| {
            let share = batch.share(replica, self.replicas);
            let device = self.client.addressable_device(replica)?;
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
        (0..self.replicas).map(upload).collect()
    }
}

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
        // Probe before loading: libtpu waits for a metadata server that only a TPU VM has.
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
