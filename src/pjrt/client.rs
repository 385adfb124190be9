//! A plugin's devices, and what is made on them.

use std::sync::Arc;

use super::api::{self, Api, Owned};
use super::buffer::{Buffer, Element};
use super::error::{Error, Result};
use super::execute::LoadedExecutable;
use super::options::CompileOptions;
use super::plugin::Plugin;
use super::sys;
use super::topology::TopologyDevice;
use super::value::Value;
use crate::shape::Shape;

/// A connection to the plugin's devices. Clones share it; it closes when its last buffer and program are gone.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    raw: Owned<sys::PJRT_Client>,
    plugin: Plugin,
    devices: Vec<DeviceRecord>,
    process_index: i32,
}

/// What the plugin tells of a device; none of it changes.
struct DeviceRecord {
    raw: *mut sys::PJRT_Device,
    description: TopologyDevice,
    addressable: bool,
}

// SAFETY: `raw` points to a device that lives as long as its client and may be used from any thread.
unsafe impl Send for DeviceRecord {}
// SAFETY: as above.
unsafe impl Sync for DeviceRecord {}

/// One device of a client: a TPU core, a GPU, or a host thread pool that stands for a device on CPU.
#[derive(Clone, Copy)]
pub struct Device<'a> {
    client: &'a Client,
    record: &'a DeviceRecord,
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    pub in_use: u64,
    pub peak: Option<u64>,
    pub limit: Option<u64>,
}

/// The language that a [`Module`] is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleFormat {
    /// A serialized `HloModuleProto`.
    Hlo,
    /// StableHLO, as text or bytecode.
    Mlir,
}

/// A program to compile. The C API does not tell what a compiled program's parameters are, hence `parameters`: each
/// call's arguments are checked against them.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    pub format: ModuleFormat,
    pub code: &'a [u8],
    pub parameters: &'a [Shape],
}

impl Module<'_> {
    /// As the C struct; it borrows the code. Plugins do not write to the code of a program that they compile.
    pub(super) fn to_raw(self) -> sys::PJRT_Program {
        let format = match self.format {
            ModuleFormat::Hlo => "hlo",
            ModuleFormat::Mlir => "mlir",
        };
        sys::PJRT_Program {
            code: api::bytes(self.code).cast_mut(),
            code_size: self.code.len(),
            format: api::bytes(format.as_bytes()),
            format_size: format.len(),
            ..Default::default()
        }
    }
}

/// The option that makes a CPU client show `count` devices, so that a replicated program runs on one machine.
pub fn cpu_device_count(count: usize) -> (&'static str, Value) {
    ("cpu_device_count", Value::Int64(count as i64))
}

impl Client {
    pub(super) fn new(plugin: Plugin, options: &[(&str, Value)]) -> Result<Self> {
        let api = plugin.api;
        let options: Vec<_> = options.iter().map(|(name, value)| value.to_raw(name)).collect();
        let args = sys::ClientCreate {
            create_options: options.as_ptr(),
            num_options: options.len(),
            ..Default::default()
        };
        // SAFETY: the options live until the call returns; the plugin copies what it keeps.
        let created = unsafe { api.call(args) }?;
        // SAFETY: the client was just made, for this owner.
        let raw = unsafe { Owned::new(api, created.client, "PJRT_Client_Create") }?;
        let client = raw.raw();
        // SAFETY: the client is live; the list of devices lives as long as it.
        let (devices, process_index) = unsafe {
            let list = api.call(sys::ClientDevices { client, ..Default::default() })?;
            let devices = api::slice(list.devices, list.num_devices);
            let devices = devices.iter().map(|&device| describe(api, device)).collect::<Result<_>>()?;
            let process = api.call(sys::ClientProcessIndex { client, ..Default::default() })?;
            (devices, process.process_index)
        };
        Ok(Self(Arc::new(Inner { raw, plugin, devices, process_index })))
    }

    pub fn plugin(&self) -> &Plugin {
        &self.0.plugin
    }

    /// This process among those that drive the slice; 0 when there is one.
    pub fn process_index(&self) -> i32 {
        self.0.process_index
    }

    /// The plugin's own name for its platform, such as `cpu`.
    pub fn platform_name(&self) -> Result<String> {
        // SAFETY: the client is live, and so is its name.
        unsafe {
            let args = sys::ClientPlatformName { client: self.raw(), ..Default::default() };
            let args = self.api().call(args)?;
            Ok(api::string(args.platform_name, args.platform_name_size))
        }
    }

    /// The version of what lies below the plugin, such as CUDA's or libtpu's.
    pub fn platform_version(&self) -> Result<String> {
        // SAFETY: the client is live, and so is its version string.
        unsafe {
            let args = sys::ClientPlatformVersion { client: self.raw(), ..Default::default() };
            let args = self.api().call(args)?;
            Ok(api::string(args.platform_version, args.platform_version_size))
        }
    }

    /// All devices, those of other processes too.
    pub fn devices(&self) -> impl ExactSizeIterator<Item = Device<'_>> {
        self.0.devices.iter().map(|record| Device { client: self, record })
    }

    /// The devices that this process drives.
    pub fn addressable_devices(&self) -> Vec<Device<'_>> {
        self.devices().filter(|device| device.record.addressable).collect()
    }

    /// The device of that index among the addressable ones.
    pub fn addressable_device(&self, index: usize) -> Result<Device<'_>> {
        let devices = self.addressable_devices();
        devices.get(index).copied().ok_or(Error::NoDevice { index, count: devices.len() })
    }

    /// Compiles a program for this client's devices.
    pub fn compile(&self, program: &Module<'_>, options: &CompileOptions) -> Result<LoadedExecutable> {
        let raw_options = options.to_bytes();
        let raw_program = program.to_raw();
        let args = sys::ClientCompile {
            client: self.raw(),
            program: &raw const raw_program,
            compile_options: api::bytes(&raw_options),
            compile_options_size: raw_options.len(),
            ..Default::default()
        };
        // SAFETY: the client is live; program and options live until the call returns.
        let compiled = unsafe { self.api().call(args) }?;
        // SAFETY: the executable was just made, for this owner.
        let raw = unsafe { Owned::new(self.api(), compiled.executable, "PJRT_Client_Compile") }?;
        LoadedExecutable::new(self.clone(), raw, program, options)
    }

    /// Loads a program that [`Executable::serialize`](super::Executable::serialize) wrote, on the devices that it
    /// was compiled for. `program` and `options` are those that it was compiled with.
    ///
    /// # Errors
    /// When the bytes are not of this plugin's version, or of other devices.
    ///
    /// # Safety
    /// `bytes` must be as `serialize` gave them: they hold machine code, which plugins run as it is, and what else is
    /// in them plugins hardly check.
    pub(super) unsafe fn deserialize(
        &self,
        bytes: &[u8],
        program: &Module<'_>,
        options: &CompileOptions,
    ) -> Result<LoadedExecutable> {
        let args = sys::ExecutableDeserializeAndLoad {
            client: self.raw(),
            serialized_executable: api::bytes(bytes),
            serialized_executable_size: bytes.len(),
            ..Default::default()
        };
        // SAFETY: the client is live; the bytes live until the call returns, and are a program by the contract.
        let loaded = unsafe { self.api().call(args) }?;
        let call = "PJRT_Executable_DeserializeAndLoad";
        // SAFETY: the executable was just made, for this owner.
        let raw = unsafe { Owned::new(self.api(), loaded.loaded_executable, call) }?;
        LoadedExecutable::new(self.clone(), raw, program, options)
    }

    /// Copies `data`, in row-major order, to a device; returns once it has been read.
    pub fn buffer_from_host<T: Element>(
        &self,
        data: &[T],
        dims: &[usize],
        device: Device<'_>,
    ) -> Result<Buffer> {
        Buffer::upload(self, data, Shape::new(T::TYPE, dims), device)
    }

    /// Copies `data` to a device without waiting: it is held until it has been read. The buffer may be used at once.
    pub fn buffer_from_shared<T: Element>(
        &self,
        data: impl Into<Arc<Vec<T>>>,
        dims: &[usize],
        device: Device<'_>,
    ) -> Result<Buffer> {
        Buffer::upload_shared(self, data.into(), Shape::new(T::TYPE, dims), device)
    }

    /// As [`buffer_from_host`](Self::buffer_from_host), from the bytes of an array of any element type, in the
    /// machine's byte order.
    pub fn buffer_from_bytes(&self, data: &[u8], shape: &Shape, device: Device<'_>) -> Result<Buffer> {
        Buffer::upload(self, data, shape.clone(), device)
    }

    pub(super) fn raw(&self) -> *mut sys::PJRT_Client {
        self.0.raw.raw()
    }

    pub(super) fn api(&self) -> Api {
        self.0.raw.api
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The device of this client that the plugin means by `raw`.
    pub(super) fn device(&self, raw: *mut sys::PJRT_Device) -> Option<Device<'_>> {
        self.devices().find(|device| device.record.raw == raw)
    }
}

/// # Safety
/// `device` must be a live device of `api`'s plugin.
unsafe fn describe(api: Api, device: *mut sys::PJRT_Device) -> Result<DeviceRecord> {
    // SAFETY: the device is live, and its description lives as long as it.
    unsafe {
        let described = api.call(sys::DeviceGetDescription { device, ..Default::default() })?;
        let addressable = api.call(sys::DeviceIsAddressable { device, ..Default::default() })?;
        Ok(DeviceRecord {
            raw: device,
            description: TopologyDevice::new(api, described.device_description)?,
            addressable: addressable.is_addressable,
        })
    }
}

impl<'a> Device<'a> {
    /// Unique among the devices of all processes.
    pub fn id(self) -> i32 {
        self.record.description.id
    }

    /// The vendor's name for this kind of device, such as `TPU v3`.
    pub fn kind(self) -> &'a str {
        &self.record.description.kind
    }

    /// The process that drives it.
    pub fn process_index(self) -> i32 {
        self.record.description.process_index
    }

    /// Current memory use, where the plugin counts it.
    pub fn memory(self) -> Option<DeviceMemory> {
        let args = sys::DeviceMemoryStats { device: self.record.raw, ..Default::default() };
        // SAFETY: the device lives as long as the client that `self` borrows.
        let stats = unsafe { self.client.api().call(args) }.ok()?;
        let known = |set: bool, bytes: i64| set.then_some(bytes).and_then(|bytes| bytes.try_into().ok());
        Some(DeviceMemory {
            in_use: stats.bytes_in_use.try_into().ok()?,
            peak: known(stats.peak_bytes_in_use_is_set, stats.peak_bytes_in_use),
            limit: known(stats.bytes_limit_is_set, stats.bytes_limit),
        })
    }

    pub(super) fn raw(self) -> *mut sys::PJRT_Device {
        self.record.raw
    }

    pub(super) fn client(self) -> &'a Client {
        self.client
    }
}
