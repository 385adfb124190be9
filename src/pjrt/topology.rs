//! Compiling ahead of time: for devices that this machine need not have.

use super::api::{self, Owned};
use super::client::Module;
use super::error::{Error, Result};
use super::executable::Executable;
use super::options::CompileOptions;
use super::plugin::Plugin;
use super::sys;
use super::value::Value;

/// Devices that a plugin can compile for, described by name: a slice of TPUs, or a kind of GPU.
pub struct Topology {
    raw: Owned<sys::PJRT_TopologyDescription>,
    devices: Vec<TopologyDevice>,
}

/// One device of a [`Topology`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyDevice {
    /// Unique in the topology; what a program's device assignment names.
    pub id: i32,
    /// The vendor's name for this kind of device, such as `TPU v3`.
    pub kind: String,
    /// The host process that drives it.
    pub process_index: i32,
}

impl Topology {
    pub(super) fn new(plugin: &Plugin, name: &str, options: &[(&str, Value)]) -> Result<Self> {
        let api = plugin.api;
        let options: Vec<_> = options.iter().map(|(name, value)| value.to_raw(name)).collect();
        let args = sys::TopologyDescriptionCreate {
            topology_name: api::bytes(name.as_bytes()),
            topology_name_size: name.len(),
            create_options: options.as_ptr(),
            num_options: options.len(),
            ..Default::default()
        };
        // SAFETY: name and options live until the call returns; the plugin copies what it keeps.
        let created = unsafe { api.call(args) }.map_err(|error| match error {
            Error::Plugin { message, code: "INVALID_ARGUMENT" | "NOT_FOUND" | "UNIMPLEMENTED", .. } => {
                Error::UnknownTopology { backend: plugin.backend(), name: name.to_owned(), message }
            }
            other => other,
        })?;
        // SAFETY: the topology was just made, for this owner.
        let raw = unsafe { Owned::new(api, created.topology, "PJRT_TopologyDescription_Create") }?;
        let topology = raw.raw();
        let args = sys::TopologyDescriptionGetDeviceDescriptions { topology, ..Default::default() };
        // SAFETY: the topology is live; the descriptions live as long as it.
        let devices = unsafe {
            let list = api.call(args)?;
            let descriptions = api::slice(list.descriptions, list.num_descriptions);
            descriptions
                .iter()
                .map(|&description| TopologyDevice::new(api, description))
                .collect::<Result<_>>()?
        };
        Ok(Self { raw, devices })
    }

    /// All devices, of all hosts.
    pub fn devices(&self) -> &[TopologyDevice] {
        &self.devices
    }

    /// The version of the plugin's compiler, in its own words.
    pub fn platform_version(&self) -> Result<String> {
        let args = sys::TopologyDescriptionPlatformVersion { topology: self.raw.raw(), ..Default::default() };
        // SAFETY: the topology is live, and so is its version string.
        unsafe {
            let args = self.raw.api.call(args)?;
            Ok(api::string(args.platform_version, args.platform_version_size))
        }
    }

    /// Compiles a program for these devices.
    pub fn compile(&self, program: &Module<'_>, options: &CompileOptions) -> Result<Executable> {
        let options = options.to_bytes();
        let raw_program = program.to_raw();
        let args = sys::Compile {
            topology: self.raw.raw(),
            program: &raw const raw_program,
            compile_options: api::bytes(&options),
            compile_options_size: options.len(),
            ..Default::default()
        };
        // SAFETY: the topology is live; program and options live until the call returns. No client is needed.
        let compiled = unsafe { self.raw.api.call(args) }?;
        // SAFETY: the executable was just made, for this owner.
        Executable::new(unsafe { Owned::new(self.raw.api, compiled.executable, "PJRT_Compile") }?)
    }
}

impl TopologyDevice {
    /// # Safety
    /// `description` must be live, and of `api`'s plugin.
    pub(super) unsafe fn new(api: api::Api, description: *mut sys::PJRT_DeviceDescription) -> Result<Self> {
        // SAFETY: passed on to the caller; the name is copied.
        unsafe {
            let id = api.call(sys::DeviceDescriptionId { description, ..Default::default() })?.id;
            let kind = api.call(sys::DeviceDescriptionKind { description, ..Default::default() })?;
            let process =
                api.call(sys::DeviceDescriptionProcessIndex { description, ..Default::default() })?;
            let kind = api::string(kind.device_kind, kind.device_kind_size);
            Ok(Self { id, kind, process_index: process.process_index })
        }
    }
}
