//! The structs against what a C compiler makes of the header.

use super::*;

/// Sizes that a C compiler gives for `pjrt_c_api.h` 0.81 on a 64-bit machine.
#[test]
fn layout_matches_the_header() {
    assert_eq!(size_of::<PJRT_Api>(), 984);
    assert_eq!(offset_of!(PJRT_Api, PJRT_LoadedExecutable_Execute), 480);
    assert_eq!(offset_of!(PJRT_Api, PJRT_LoadedExecutable_GetDeviceAssignment), 976);
    assert_eq!(MemoryLayout::STRUCT_SIZE, 76);
    assert_eq!(TiledLayout::STRUCT_SIZE, 56);
    assert_eq!(PJRT_NamedValue::STRUCT_SIZE, 56);
    assert_eq!(PJRT_Program::STRUCT_SIZE, 48);
    assert_eq!(PJRT_ExecuteOptions::STRUCT_SIZE, 112);
    assert_eq!(PJRT_Api_Version::STRUCT_SIZE, 24);
    assert_eq!(PluginInitialize::STRUCT_SIZE, 16);
    assert_eq!(EventDestroy::STRUCT_SIZE, 24);
    assert_eq!(EventIsReady::STRUCT_SIZE, 25);
    assert_eq!(EventAwait::STRUCT_SIZE, 24);
    assert_eq!(EventOnReady::STRUCT_SIZE, 40);
    assert_eq!(ClientCreate::STRUCT_SIZE, 88);
    assert_eq!(ClientDestroy::STRUCT_SIZE, 24);
    assert_eq!(ClientPlatformName::STRUCT_SIZE, 40);
    assert_eq!(ClientPlatformVersion::STRUCT_SIZE, 40);
    assert_eq!(ClientProcessIndex::STRUCT_SIZE, 28);
    assert_eq!(ClientDevices::STRUCT_SIZE, 40);
    assert_eq!(ClientCompile::STRUCT_SIZE, 56);
    assert_eq!(ClientBufferFromHostBuffer::STRUCT_SIZE, 120);
    assert_eq!(DeviceGetDescription::STRUCT_SIZE, 32);
    assert_eq!(DeviceIsAddressable::STRUCT_SIZE, 25);
    assert_eq!(DeviceMemoryStats::STRUCT_SIZE, 185);
    assert_eq!(DeviceDescriptionId::STRUCT_SIZE, 28);
    assert_eq!(DeviceDescriptionProcessIndex::STRUCT_SIZE, 28);
    assert_eq!(DeviceDescriptionKind::STRUCT_SIZE, 40);
    assert_eq!(ExecutableDestroy::STRUCT_SIZE, 24);
    assert_eq!(ExecutableNumOutputs::STRUCT_SIZE, 32);
    assert_eq!(ExecutableOutputElementTypes::STRUCT_SIZE, 40);
    assert_eq!(ExecutableOutputDimensions::STRUCT_SIZE, 48);
    assert_eq!(ExecutableGetCostAnalysis::STRUCT_SIZE, 40);
    assert_eq!(ExecutableGetCompiledMemoryStats::STRUCT_SIZE, 112);
    assert_eq!(ExecutableNumReplicas::STRUCT_SIZE, 32);
    assert_eq!(ExecutableOptimizedProgram::STRUCT_SIZE, 32);
    assert_eq!(ExecutableSerialize::STRUCT_SIZE, 56);
    assert_eq!(ExecutableDeserializeAndLoad::STRUCT_SIZE, 64);
    assert_eq!(TopologyDescriptionCreate::STRUCT_SIZE, 56);
    assert_eq!(TopologyDescriptionDestroy::STRUCT_SIZE, 24);
    assert_eq!(TopologyDescriptionPlatformVersion::STRUCT_SIZE, 40);
    assert_eq!(TopologyDescriptionGetDeviceDescriptions::STRUCT_SIZE, 40);
    assert_eq!(Compile::STRUCT_SIZE, 64);
    assert_eq!(LoadedExecutableDestroy::STRUCT_SIZE, 24);
    assert_eq!(LoadedExecutableGetExecutable::STRUCT_SIZE, 32);
    assert_eq!(LoadedExecutableAddressableDevices::STRUCT_SIZE, 40);
    assert_eq!(LoadedExecutableExecute::STRUCT_SIZE, 80);
    assert_eq!(BufferDestroy::STRUCT_SIZE, 24);
    assert_eq!(BufferOnDeviceSizeInBytes::STRUCT_SIZE, 32);
    assert_eq!(BufferDevice::STRUCT_SIZE, 32);
    assert_eq!(BufferReadyEvent::STRUCT_SIZE, 32);
    assert_eq!(BufferToHostBuffer::STRUCT_SIZE, 56);
    assert_eq!(ErrorDestroy::STRUCT_SIZE, 24);
    assert_eq!(ErrorMessage::STRUCT_SIZE, 40);
    assert_eq!(ErrorGetCode::STRUCT_SIZE, 28);
}
