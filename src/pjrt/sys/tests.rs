//! The structs against what a C compiler makes of the header, and against what the plugins say of their own.

use super::super::api::Api;
use super::super::error::{Error, Result};
use super::super::install::{ensure_installed, installed_path, is_installed};
use super::super::platform::Backend;
use super::super::plugin::Plugin;
use super::*;

/// Sizes that a C compiler gives for the structs of `pjrt_c_api.h` 0.114 on a 64-bit machine.
#[test]
fn layout_matches_the_header() {
    assert_eq!(size_of::<PJRT_Api>(), 1144);
    assert_eq!(offset_of!(PJRT_Api, PJRT_LoadedExecutable_Execute), 480);
    assert_eq!(offset_of!(PJRT_Api, PJRT_LoadedExecutable_GetDeviceAssignment), 976);
    assert_eq!(offset_of!(PJRT_Api, PJRT_TopologyDescription_GetMemorySpaceKindIds), 1136);
    assert_eq!(offset_of!(PJRT_ExecuteOptions, launch_id), 48);
    assert_eq!(offset_of!(PJRT_ExecuteOptions, use_major_to_minor_data_layout_for_callbacks), 120);
    assert_eq!(MemoryLayout::STRUCT_SIZE, 76);
    assert_eq!(TiledLayout::STRUCT_SIZE, 56);
    assert_eq!(PJRT_NamedValue::STRUCT_SIZE, 56);
    assert_eq!(PJRT_Program::STRUCT_SIZE, 48);
    assert_eq!(PJRT_ExecuteOptions::STRUCT_SIZE, 144);
    assert_eq!(PJRT_Api_Version::STRUCT_SIZE, 24);
    assert_eq!(ErrorDestroy::STRUCT_SIZE, 24);
    assert_eq!(ErrorMessage::STRUCT_SIZE, 40);
    assert_eq!(ErrorGetCode::STRUCT_SIZE, 28);
}

/// The plugin's complaint about a struct of no size: which it expects at least. `None` if it looks at other things first.
///
/// # Safety
/// The plugin must look at the size of `A` before it looks at the rest, except at what is set.
unsafe fn expected_size<A: Args>(api: Api, args: A) -> Option<usize> {
    // SAFETY: passed on to the caller.
    match unsafe { api.call(args) } {
        Err(Error::StructSize { message, .. }) => {
            let (_, sizes) = message.split_once("size: expected ").expect("two sizes");
            sizes.split_once(',').expect("two sizes").0.parse().ok()
        }
        Err(_) => None,
        Ok(_) => panic!("{} takes a struct of no size", A::NAME),
    }
}

fn without_size<A: Args>() -> A {
    let mut args = A::default();
    // SAFETY: every argument struct starts with its size.
    unsafe { (&raw mut args).cast::<usize>().write(0) };
    args
}

macro_rules! argument_sizes {
    ($($args:ident: $size:literal,)*) => {
        #[test]
        fn argument_structs_match_the_header() {
            $(assert_eq!($args::STRUCT_SIZE, $size, stringify!($args));)*
        }

        fn assert_taken_by(api: Api) {
            let mut told = 0;
            $(
                // SAFETY: the pinned plugins look at the size first.
                if let Some(expected) = unsafe { expected_size(api, without_size::<$args>()) } {
                    assert!(expected <= $size, "{}: {expected} bytes", $args::NAME);
                    told += 1;
                }
            )*
            // The CPU plugin refuses a topology whatever the struct.
            assert!(told >= [$($size),*].len() - 1, "{told} sizes were told");
        }
    };
}

argument_sizes! {
    PluginInitialize: 16,
    EventDestroy: 24,
    EventIsReady: 25,
    EventAwait: 24,
    EventOnReady: 40,
    ClientCreate: 88,
    ClientDestroy: 24,
    ClientPlatformName: 40,
    ClientPlatformVersion: 40,
    ClientProcessIndex: 28,
    ClientDevices: 40,
    ClientCompile: 56,
    ClientBufferFromHostBuffer: 120,
    DeviceGetDescription: 32,
    DeviceIsAddressable: 25,
    DeviceMemoryStats: 201,
    DeviceDescriptionId: 28,
    DeviceDescriptionProcessIndex: 28,
    DeviceDescriptionAttributes: 40,
    DeviceDescriptionKind: 40,
    ExecutableDestroy: 24,
    ExecutableNumOutputs: 32,
    ExecutableOutputElementTypes: 40,
    ExecutableOutputDimensions: 48,
    ExecutableGetCostAnalysis: 40,
    ExecutableGetCompiledMemoryStats: 144,
    ExecutableNumReplicas: 32,
    ExecutableOptimizedProgram: 32,
    ExecutableSerialize: 56,
    ExecutableDeserializeAndLoad: 72,
    LoadedExecutableDestroy: 24,
    LoadedExecutableGetExecutable: 32,
    LoadedExecutableAddressableDevices: 40,
    LoadedExecutableExecute: 80,
    TopologyDescriptionCreate: 56,
    TopologyDescriptionDestroy: 24,
    TopologyDescriptionPlatformVersion: 40,
    TopologyDescriptionGetDeviceDescriptions: 40,
    Compile: 64,
    BufferDestroy: 24,
    BufferOnDeviceSizeInBytes: 32,
    BufferDevice: 32,
    BufferReadyEvent: 32,
    BufferToHostBuffer: 56,
}

/// No device is needed for that: the plugins compare sizes before all else. Those of TPU and GPU are asked where they are
/// installed.
#[test]
fn plugins_take_structs_of_these_sizes() -> Result<()> {
    for backend in [Backend::Cpu, Backend::Gpu, Backend::Tpu] {
        let path = match backend {
            Backend::Cpu => ensure_installed(backend)?,
            _ if is_installed(backend)? => installed_path(backend)?,
            _ => {
                eprintln!("skipped: no {backend} plugin; `bert-xla plugins install {backend}` brings it");
                continue;
            }
        };
        let api = Plugin::load(backend, &path)?.api;
        assert_taken_by(api);
        // The structs within these are looked at next.
        let mut options = PJRT_ExecuteOptions { struct_size: 0, ..Default::default() };
        let args = LoadedExecutableExecute { options: &raw mut options, ..Default::default() };
        // SAFETY: as above; the options live until the call returns.
        let expected = unsafe { expected_size(api, args) };
        assert!(expected.is_some_and(|size| size <= PJRT_ExecuteOptions::STRUCT_SIZE), "{expected:?}");
        let program = PJRT_Program { struct_size: 0, ..Default::default() };
        let args = ClientCompile { program: &raw const program, ..Default::default() };
        // SAFETY: as above; the program lives until the call returns.
        let expected = unsafe { expected_size(api, args) };
        assert!(expected.is_some_and(|size| size <= PJRT_Program::STRUCT_SIZE), "{expected:?}");
    }
    Ok(())
}
