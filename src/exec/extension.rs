//! The second runtime: XLA's C++ library, linked to this program by the `xla` crate. It has neither futures nor options
//! of a compilation: every call blocks until it is done, and what can't be asked for is refused by name.

use std::time::Instant;

use prost::Message;
use xla::{
    ArrayShape, HloModuleProto, Literal, PjRtBuffer, PjRtClient, PjRtDevice, PjRtLoadedExecutable,
    PluginOption, XlaComputation,
};

use super::backend::DeviceOptions;
use super::lowering::Lowered;
use super::runtime::{Element, LinkedRuntime};
use super::{Error, Result};
use crate::pjrt::{self, Absence, Backend, Plugin, Value, cpu_device_count};
use crate::proto;
use crate::shape::{ElementType, Shape};

/// A connection to the devices of one backend, all of this process.
pub struct Client {
    client: PjRtClient,
    backend: Backend,
    /// In the crate's own order, in which it takes them for replicas.
    device_ids: Vec<i32>,
}

/// An array on one device.
pub struct Buffer {
    buffer: PjRtBuffer,
    shape: Shape,
}

/// A program for the first devices of a client.
pub struct Executable {
    executable: PjRtLoadedExecutable,
    /// Those whose memory an output takes over.
    aliased_parameters: Vec<usize>,
}

/// As [`Argument`](super::runtime::Argument).
pub enum Argument<'a> {
    Borrow(&'a Buffer),
    Donate(Buffer),
}

// What goes on, for messages.
const CONNECTING: &str = "connecting to the devices";
const COMPILING: &str = "compiling";
const RUNNING: &str = "running a program";
const UPLOADING: &str = "copying to a device";
const READING: &str = "copying from a device";

/// As XLA's own clients allow a TPU: a launch waits for its end anyway.
const STEPS_IN_FLIGHT: usize = 32;

/// Takes the backend that was asked for, or the first of TPU, GPU and CPU that is there; with the reasons why others were
/// passed over.
pub fn connect(options: &DeviceOptions) -> Result<(Client, Vec<(Backend, String)>)> {
    if let Some(backend) = options.backend {
        return Ok((Client::open(backend, options)?, vec![]));
    }
    if options.plugin.is_some() {
        return Err(Error::PluginWithoutBackend);
    }
    let mut passed_over = vec![];
    for backend in [Backend::Tpu, Backend::Gpu] {
        // A GPU that isn't there looks as one that the library was not built for.
        let may_be_absent = || backend == Backend::Gpu || matches!(backend.probe(), Err(Absence::Missing(_)));
        match Client::open(backend, options) {
            Err(Error::Backend { reason, .. }) if may_be_absent() => passed_over.push((backend, reason)),
            Err(error) if backend == Backend::Tpu => {
                return Err(Error::Unusable { backend, error: Box::new(error) });
            }
            opened => return Ok((opened?, passed_over)),
        }
    }
    Ok((Client::open(Backend::Cpu, options)?, passed_over))
}

/// The options of a GPU. Wrong ones are an error where there is a GPU, and else one more reason why there is none.
fn gpu_values(options: &DeviceOptions) -> Result<Vec<(&'static str, Value)>> {
    let wrong = match options.gpu.values() {
        Ok(values) => return Ok(values),
        Err(wrong) => wrong,
    };
    let is_asked_for = options.backend.is_some();
    let least = pjrt::GpuOptions { preallocate: Some(false), ..Default::default() };
    let is_there = || least.values().is_ok_and(|values| gpu_client(&values).is_ok());
    if is_asked_for || is_there() {
        return Err(wrong.into());
    }
    Err(Error::Backend { backend: Backend::Gpu, reason: wrong.to_string() })
}

/// A backend that the library can't open.
fn not_opened(backend: Backend, error: &xla::Error) -> Error {
    let error = one_line(error);
    let reason = match backend {
        Backend::Gpu => format!("the linked XLA library was built without GPUs, or sees none here ({error})"),
        Backend::Cpu | Backend::Tpu => error,
    };
    Error::Backend { backend, reason }
}

/// A plugin drives what it was made for, whatever it is asked for.
fn check_platform(backend: Backend, platform: &str) -> Result<()> {
    let drives = match platform.to_ascii_lowercase().as_str() {
        "cpu" | "host" => Some(Backend::Cpu),
        "cuda" | "rocm" | "gpu" => Some(Backend::Gpu),
        "tpu" => Some(Backend::Tpu),
        _ => None,
    };
    match drives {
        Some(drives) if drives != backend => Err(Error::Backend {
            backend,
            reason: format!("the plugin drives {platform} devices, not {backend}s"),
        }),
        _ => Ok(()),
    }
}

/// What the library sees here.
pub fn linked() -> Result<LinkedRuntime> {
    let gpu = pjrt::GpuOptions { preallocate: Some(false), ..Default::default() };
    let (Client { client, .. }, _) = connect(&DeviceOptions { gpu, ..Default::default() })?;
    let devices = client.addressable_devices();
    Ok(LinkedRuntime {
        platform: client.platform_name(),
        version: client.platform_version(),
        devices: devices.iter().map(|device| (device.id() as i32, device.kind())).collect(),
    })
}

impl Client {
    fn open(backend: Backend, options: &DeviceOptions) -> Result<Self> {
        let replicas = options.replicas.unwrap_or(1);
        let values = match backend {
            Backend::Cpu => vec![cpu_device_count(replicas)],
            Backend::Gpu => gpu_values(options)?,
            Backend::Tpu => vec![],
        };
        if backend == Backend::Tpu {
            // Away from a TPU VM, libtpu waits for a metadata server.
            backend.probe().map_err(|absence| Error::Backend { backend, reason: absence.to_string() })?;
        }
        let client = match &options.plugin {
            Some(path) => {
                // The crate opens whatever it is given, and as it is: what it is, and its environment, are seen to here.
                let plugin = Plugin::load(backend, &Plugin::find(backend, Some(path))?)?;
                let path = plugin.path().to_str().ok_or_else(|| {
                    Error::Lacks(format!(
                        "takes no path that isn't UTF-8: rename {}",
                        plugin.path().display()
                    ))
                })?;
                let values = values.iter().map(|(name, value)| (*name, plugin_option(value)));
                let values = values.collect::<Vec<_>>();
                PjRtClient::plugin_with_options(&backend.to_string(), path, &values)
                    .map_err(failed(CONNECTING))?
            }
            None => match backend {
                Backend::Cpu => PjRtClient::cpu(),
                Backend::Gpu => gpu_client(&values),
                Backend::Tpu => PjRtClient::tpu(STEPS_IN_FLIGHT),
            }
            .map_err(|error| not_opened(backend, &error))?,
        };
        check_platform(backend, &client.platform_name())?;
        if client.device_count() > client.addressable_device_count() {
            return Err(Error::Lacks(
                "drives the devices of one host, and others have some of these".to_owned(),
            ));
        }
        let mut device_ids = client.addressable_devices().iter().map(id).collect::<Vec<_>>();
        match backend {
            Backend::Gpu => check_gpu(options, &values)?,
            Backend::Tpu => {}
            Backend::Cpu if device_ids.len() < replicas => {
                return Err(Error::Lacks(format!(
                    "has CPU devices for {} of {replicas} replicas: add \
                     --xla_force_host_platform_device_count={replicas} to XLA_FLAGS",
                    device_ids.len()
                )));
            }
            Backend::Cpu => device_ids.truncate(replicas),
        }
        Ok(Self { client, backend, device_ids })
    }

    pub fn backend(&self) -> Backend {
        self.backend
    }

    pub fn device_ids(&self) -> &[i32] {
        &self.device_ids
    }

    /// Kind of the devices.
    pub fn device_kind(&self) -> String {
        self.client.addressable_devices().first().map_or(String::new(), PjRtDevice::kind)
    }

    pub fn compile(&self, lowered: &Lowered) -> Result<Executable> {
        let (asked, listed) = (&lowered.device_ids, &self.device_ids);
        if !listed.starts_with(asked) {
            let (asked, listed) = (asked.clone(), listed.clone());
            return Err(pjrt::Error::DeviceAssignment { asked, listed }.into());
        }
        let module = HloModuleProto::parse_proto(&lowered.code, true);
        let computation = XlaComputation::from_proto(&module.map_err(failed(COMPILING))?);
        let executable = self.client.compile_replicated(&computation, asked.len());
        Executable::new(executable.map_err(failed(COMPILING))?, &lowered.code)
    }

    /// Copies values to a device; they have been read when it returns.
    pub fn upload<T: Element>(&self, values: &[T], dims: &[usize], device_id: i32) -> Result<Buffer> {
        let devices = self.client.addressable_devices();
        let device = devices.iter().find(|device| id(device) == device_id);
        let device = device.expect("replicas are placed on the runtime's own devices");
        Buffer::upload(&self.client, bytemuck::cast_slice(values), Shape::new(T::TYPE, dims), device)
    }
}

fn id(device: &PjRtDevice<'_>) -> i32 {
    device.id() as i32
}

/// With JAX's share of the memory, taken at the start as JAX does, unless `values` say otherwise.
fn gpu_client(values: &[(&str, Value)]) -> xla::Result<PjRtClient> {
    let (mut memory_fraction, mut preallocate) = (0.75, true);
    for (name, value) in values {
        match (*name, value) {
            ("memory_fraction", Value::Float(share)) => memory_fraction = f64::from(*share),
            ("preallocate", Value::Bool(wanted)) => preallocate = *wanted,
            _ => {}
        }
    }
    PjRtClient::gpu(memory_fraction, preallocate)
}

/// Refuses what a GPU can't be asked for.
fn check_gpu(options: &DeviceOptions, values: &[(&str, Value)]) -> Result<()> {
    if options.deterministic {
        return Err(Error::Lacks(
            "can't ask for programs that give the same bits each time: set \
             XLA_FLAGS='--xla_gpu_deterministic_ops=true --xla_gpu_enable_triton_gemm=false'"
                .to_owned(),
        ));
    }
    let is_taken =
        |name: &str| options.plugin.is_some() || ["memory_fraction", "preallocate"].contains(&name);
    match values.iter().find(|(name, _)| !is_taken(name)) {
        Some(("visible_devices", _)) => Err(Error::Lacks(
            "can't choose among GPUs: name them in CUDA_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES".to_owned(),
        )),
        Some((name, _)) => Err(Error::Lacks(format!("has no option {name} for a GPU"))),
        None => Ok(()),
    }
}

fn plugin_option(value: &Value) -> PluginOption {
    match value.clone() {
        Value::String(text) => PluginOption::Str(text),
        Value::Int64(value) => PluginOption::Int(value),
        Value::Int64List(list) => PluginOption::IntList(list),
        Value::Float(value) => PluginOption::Float(value),
        Value::Bool(value) => PluginOption::Bool(value),
    }
}

impl Executable {
    fn new(executable: PjRtLoadedExecutable, code: &[u8]) -> Result<Self> {
        let module = proto::HloModuleProto::decode(code);
        let module = module.map_err(|error| Error::Xla { doing: COMPILING, reason: error.to_string() })?;
        let entries = module.input_output_alias.map_or(vec![], |alias| alias.entries);
        let aliased_parameters = entries.iter().map(|entry| entry.parameter_number as usize).collect();
        Ok(Self { executable, aliased_parameters })
    }

    /// Runs with `[replica][argument]`. Gives `[replica][output]` once they are there, and when that was.
    pub fn run(&self, arguments: Vec<Vec<Argument<'_>>>) -> Result<(Vec<Vec<Buffer>>, Instant)> {
        let arguments = self.spare(arguments)?;
        let lists = arguments.iter().map(|list| list.iter().map(Argument::raw).collect()).collect::<Vec<_>>();
        let outputs = self.executable.execute_replicated_b(&lists).map_err(failed(RUNNING))?;
        let received = |list: Vec<_>| list.into_iter().map(Buffer::received).collect::<Result<Vec<_>>>();
        let outputs = outputs.into_iter().map(received).collect::<Result<Vec<_>>>()?;
        // All outputs of a replica are there when one is, and so is the run's error.
        for list in &outputs {
            let smallest = list.iter().min_by_key(|buffer| buffer.shape.size_in_bytes());
            smallest.map(|buffer| buffer.literal(RUNNING)).transpose()?;
        }
        Ok((outputs, Instant::now()))
    }

    /// Puts a copy in place of what is lent and the program would take over: a run can't be told to leave it.
    fn spare<'a>(&self, mut arguments: Vec<Vec<Argument<'a>>>) -> Result<Vec<Vec<Argument<'a>>>> {
        let client = self.executable.client();
        for (list, device) in arguments.iter_mut().zip(client.addressable_devices()) {
            for &parameter in &self.aliased_parameters {
                if let Some(argument @ Argument::Borrow(_)) = list.get_mut(parameter) {
                    *argument = Argument::Donate(argument.buffer().copy(client, &device)?);
                }
            }
        }
        Ok(arguments)
    }
}

impl Argument<'_> {
    fn buffer(&self) -> &Buffer {
        match self {
            Self::Borrow(buffer) => buffer,
            Self::Donate(buffer) => buffer,
        }
    }

    fn raw(&self) -> &PjRtBuffer {
        &self.buffer().buffer
    }
}

impl Buffer {
    fn upload(client: &PjRtClient, bytes: &[u8], shape: Shape, device: &PjRtDevice<'_>) -> Result<Self> {
        let element_type = crate_type(shape.element_type);
        let buffer = client.buffer_from_host_raw_bytes(element_type, bytes, &shape.dims, Some(device));
        Ok(Self { buffer: buffer.map_err(failed(UPLOADING))?, shape })
    }

    fn received(buffer: PjRtBuffer) -> Result<Self> {
        let shape = buffer.on_device_shape().and_then(|shape| ArrayShape::try_from(&shape));
        let shape = shape.map_err(failed(RUNNING))?;
        let is_it = |element: &ElementType| crate_type(*element) == shape.ty();
        let element_type = ELEMENT_TYPES.into_iter().find(is_it).ok_or_else(|| Error::Xla {
            doing: RUNNING,
            reason: format!("an output of {:?}, which this program does not use", shape.ty()),
        })?;
        let dims = shape.dims().iter().map(|&dim| dim as usize).collect::<Vec<_>>();
        Ok(Self { buffer, shape: Shape::new(element_type, dims) })
    }

    fn copy(&self, client: &PjRtClient, device: &PjRtDevice<'_>) -> Result<Self> {
        let mut bytes = vec![0; self.shape.size_in_bytes()];
        self.literal(READING)?.copy_untyped_to(&mut bytes).map_err(failed(READING))?;
        Self::upload(client, &bytes, self.shape.clone(), device)
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The values, row-major, in the memory of `values` if it is large enough.
    pub fn read_into<T: Element>(&self, mut values: Vec<T>) -> Result<Vec<T>> {
        let (expected, found) = (T::TYPE, self.shape.element_type);
        if expected != found {
            return Err(pjrt::Error::ElementTypeMismatch { expected, found }.into());
        }
        values.resize(self.shape.num_elements(), T::zeroed());
        let bytes = bytemuck::cast_slice_mut(&mut values);
        self.literal(READING)?.copy_untyped_to(bytes).map_err(failed(READING))?;
        Ok(values)
    }

    /// Waits for the run that computes it, and fails as that does.
    fn literal(&self, doing: &'static str) -> Result<Literal> {
        self.buffer.to_literal_sync().map_err(failed(doing))
    }
}

const ELEMENT_TYPES: [ElementType; 10] = [
    ElementType::Pred,
    ElementType::U8,
    ElementType::S32,
    ElementType::S64,
    ElementType::U32,
    ElementType::U64,
    ElementType::F16,
    ElementType::Bf16,
    ElementType::F32,
    ElementType::F64,
];

fn crate_type(element: ElementType) -> xla::ElementType {
    match element {
        ElementType::Pred => xla::ElementType::Pred,
        ElementType::U8 => xla::ElementType::U8,
        ElementType::S32 => xla::ElementType::S32,
        ElementType::S64 => xla::ElementType::S64,
        ElementType::U32 => xla::ElementType::U32,
        ElementType::U64 => xla::ElementType::U64,
        ElementType::F16 => xla::ElementType::F16,
        ElementType::Bf16 => xla::ElementType::Bf16,
        ElementType::F32 => xla::ElementType::F32,
        ElementType::F64 => xla::ElementType::F64,
    }
}

/// For `map_err`: says what went on.
fn failed(doing: &'static str) -> impl Fn(xla::Error) -> Error {
    move |error| Error::Xla { doing, reason: one_line(&error) }
}

/// The crate adds a stack's trace, and XLA may add its own.
fn one_line(error: &xla::Error) -> String {
    let text = match error {
        xla::Error::XlaError { msg, .. } => msg.clone(),
        other => other.to_string(),
    };
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
