//! Hardware that a step is compiled for although it isn't here.

use std::time::{Duration, Instant};

use super::chip::{GPUS, known_topologies};
use super::{Chip, Error, GpuTarget, Result, Slice};
use crate::exec::{Lowered, Placement};
use crate::hlo::Program;
use crate::pjrt::install::ensure_installed;
use crate::pjrt::{self, Backend, Executable, Plugin, Value};
use crate::step::Precision;

/// A slice of TPUs, or one GPU.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    Tpu(Slice),
    Gpu(GpuTarget),
}

impl Target {
    /// Reads the name of a GPU, or else of a slice.
    ///
    /// # Errors
    /// A name of neither.
    pub fn parse(name: &str) -> Result<Self> {
        match GPUS.iter().any(|chip| chip.name == name) {
            true => Ok(Self::Gpu(GpuTarget::new(name)?)),
            false if name.contains(['-', ':']) => Ok(Self::Tpu(Slice::parse(name)?)),
            false => Err(Error::UnknownTarget {
                name: name.to_owned(),
                gpus: GPUS.map(|chip| chip.name).join(", "),
            }),
        }
    }

    /// As the user names it: `v3:2x2x1`, `h100`.
    pub fn name(&self) -> &str {
        match self {
            Self::Tpu(slice) => &slice.name,
            Self::Gpu(gpu) => gpu.chip.name,
        }
    }

    pub fn chip(&self) -> &'static Chip {
        match self {
            Self::Tpu(slice) => slice.chip,
            Self::Gpu(gpu) => gpu.chip,
        }
    }

    /// What a job computes in there unless it is told otherwise: all of these have units for it.
    pub fn precision(&self) -> Precision {
        Precision::Bf16
    }

    pub fn backend(&self) -> Backend {
        match self {
            Self::Tpu(_) => Backend::Tpu,
            Self::Gpu(_) => Backend::Gpu,
        }
    }
}

/// A plugin's compiler, set up for a [`Target`].
pub struct Compiler {
    target: Target,
    plugin: Plugin,
    topology: pjrt::Topology,
    deterministic: bool,
}

impl Compiler {
    /// Loads the target's plugin, which is installed first if it is missing.
    ///
    /// # Errors
    /// A plugin that can't be had, or one that doesn't know the topology.
    pub fn new(target: Target) -> Result<Self> {
        let backend = target.backend();
        let plugin = Plugin::load(backend, &ensure_installed(backend)?)?;
        let topology = match &target {
            Target::Tpu(slice) => {
                let config = Value::String(slice.chip.chip_config_name.to_owned());
                plugin.topology(&slice.name, &[("chip_config_name", config)]).map_err(refused)?
            }
            Target::Gpu(gpu) => {
                let config = Value::String(gpu.to_text_proto());
                let one = Value::String("1x1x1".to_owned());
                plugin.topology("", &[("target_config", config), ("topology", one)])?
            }
        };
        Ok(Self { target, plugin, topology, deterministic: false })
    }

    /// Compiles as a job does that is to give the same bits each time.
    pub fn deterministic(self, deterministic: bool) -> Self {
        Self { deterministic, ..self }
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    /// All devices of the target, over all hosts.
    pub fn devices(&self) -> usize {
        self.topology.devices().len()
    }

    /// Places replicas as a job on this target would: one on each device unless `replicas` says otherwise.
    ///
    /// # Errors
    /// No replica, or more of them than devices. (A job on several hosts also wants one on each host.)
    pub fn placement(&self, replicas: Option<usize>) -> Result<Placement> {
        // How many chips a host has, the compiler only supposes: here, all devices are of one.
        let devices = self.topology.devices().iter().map(|device| (device.id, 0)).collect::<Vec<_>>();
        Ok(Placement::new(&devices, 0, replicas)?)
    }

    /// The compiler and its version, in its own words where it has some.
    pub fn version(&self) -> Result<String> {
        if self.target.backend() == Backend::Gpu {
            // The words of the CUDA plugin are the GPU's name.
            let (major, minor) = self.plugin.api_version();
            return Ok(format!("XLA's CUDA plugin, PJRT C API {major}.{minor}"));
        }
        let version = self.topology.platform_version()?;
        Ok(version.lines().collect::<Vec<_>>().join(", "))
    }

    /// Compiles `program` for as many replicas, and says how long it took.
    ///
    /// # Errors
    /// Those of [`placement`](Self::placement) and of the compiler. [`pjrt::Error::is_out_of_memory`] tells a program
    /// that doesn't fit from a failure.
    pub fn compile(&self, program: &Program<'_>, replicas: usize) -> Result<(Executable, Duration)> {
        let placement = self.placement(Some(replicas))?;
        let backend = self.target.backend();
        let lowered =
            Lowered::new(program, placement.device_ids(), backend).deterministic(self.deterministic, backend);
        let started = Instant::now();
        Ok((self.topology.compile(&lowered.module(), &lowered.options)?, started.elapsed()))
    }
}

/// The plugin's refusal of a topology, with some that it takes.
fn refused(error: pjrt::Error) -> Error {
    match error {
        pjrt::Error::UnknownTopology { name, message, .. } => {
            Error::Topology { name, message, known: known_topologies() }
        }
        other => other.into(),
    }
}
