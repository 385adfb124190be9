//! How a program is compiled: for how many replicas, on which devices, with which XLA flags.

use std::collections::BTreeMap;

use prost::Message;

use crate::proto::{
    CompileOptionsProto, ComputationDevice, DeviceAssignmentProto, ExecutableBuildOptionsProto,
    OptionOverrideProto, option_override_proto,
};

/// The value of an XLA flag, typed as the flag is.
pub use option_override_proto::Value as FlagValue;

/// Options of one compilation. The program is replicated, never partitioned.
#[derive(Clone, Debug, PartialEq)]
pub struct CompileOptions {
    num_replicas: usize,
    device_ids: Option<Vec<i32>>,
    flags: BTreeMap<String, FlagValue>,
}

impl CompileOptions {
    /// One program, run by `num_replicas` devices that the plugin chooses.
    pub fn replicas(num_replicas: usize) -> Self {
        Self { num_replicas, device_ids: None, flags: BTreeMap::new() }
    }

    /// One replica on each of these devices, given by [`Device::id`](super::Device::id), in replica order.
    pub fn on_devices(device_ids: impl Into<Vec<i32>>) -> Self {
        let device_ids = device_ids.into();
        Self { device_ids: Some(device_ids.clone()), ..Self::replicas(device_ids.len()) }
    }

    /// Those of [`on_devices`](Self::on_devices), in replica order.
    pub(super) fn device_ids(&self) -> Option<&[i32]> {
        self.device_ids.as_deref()
    }

    /// Sets an XLA flag, named without leading dashes, for this program alone.
    pub fn flag(mut self, name: impl Into<String>, value: FlagValue) -> Self {
        self.flags.insert(name.into(), value);
        self
    }

    /// Sets a flag no more.
    pub fn without_flag(mut self, name: &str) -> Self {
        self.flags.remove(name);
        self
    }

    /// The serialized `CompileOptionsProto`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let device_assignment = self.device_ids.as_ref().map(|ids| DeviceAssignmentProto {
            replica_count: ids.len() as i32,
            computation_count: 1,
            computation_devices: vec![ComputationDevice {
                replica_device_ids: ids.iter().map(|&id| i64::from(id)).collect(),
            }],
        });
        let overrides = self
            .flags
            .iter()
            .map(|(name, value)| (name.clone(), OptionOverrideProto { value: Some(value.clone()) }));
        CompileOptionsProto {
            executable_build_options: Some(ExecutableBuildOptionsProto {
                // -1 is the field's word for "unset"; the device assignment decides.
                device_ordinal: -1,
                num_replicas: self.num_replicas as i64,
                num_partitions: 1,
                device_assignment,
            }),
            env_option_overrides: overrides.collect(),
        }
        .encode_to_vec()
    }
}

impl Default for CompileOptions {
    fn default() -> Self {
        Self::replicas(1)
    }
}
