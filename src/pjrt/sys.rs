//! The part of the PJRT C API that this crate uses, as `pjrt_c_api.h` 0.114 of the OpenXLA project declares it.
//!
//! Field order and sizes are the ABI. Newer versions of the header only append, so that the table below is a
//! prefix of theirs. Every argument struct starts with its size and an extension pointer; [`Default`] zeroes the
//! struct and fills the size in. A plugin takes a struct that is longer than the one it knows, and leaves the rest zero;
//! one that is shorter it takes for as long as it knows what the missing fields would say, and refuses after that.
#![allow(non_camel_case_types, non_snake_case)]

use std::ffi::{c_char, c_int, c_void};
use std::mem::{offset_of, size_of, zeroed};

mod table;

pub use table::PJRT_Api;

/// The minor version of the C API that the structs below are of.
pub const MINOR: i32 = 114;

/// A function of the table, its argument type erased: the table is only entered through an [`Args`] type.
/// The plugins are C++; the ABI makes an exception that escapes one end the process in a defined way.
pub type Function = Option<unsafe extern "C-unwind" fn(*mut c_void) -> *mut PJRT_Error>;

/// One of the functions that tell of an error, and that have none themselves.
pub type ErrorFunction<A, R = ()> = Option<unsafe extern "C-unwind" fn(*mut A) -> R>;

/// An argument struct and the function that takes it.
///
/// # Safety
/// `SLOT` must be the offset in [`PJRT_Api`] of the function that takes a pointer to `Self`.
pub unsafe trait Args: Default {
    const NAME: &'static str;
    const SLOT: usize;
}

/// An object of the plugin, with the argument struct of its `Destroy` function.
pub trait Object {
    type Destroy: Args;
    fn destroy(object: *mut Self) -> Self::Destroy;
}

/// Declares C structs that start with `struct_size` and `extension_start`.
macro_rules! structs {
    ($($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub struct $name {
            pub struct_size: usize,
            pub extension_start: *mut c_void,
            $(pub $field: $type,)*
        }

        impl $name {
            /// Up to the end of the last field: what the header calls `STRUCT_SIZE`, without trailing padding.
            pub const STRUCT_SIZE: usize = {
                let end = offset_of!($name, extension_start) + size_of::<*mut c_void>();
                $(let end = { let _ = end; offset_of!($name, $field) + size_of::<$type>() };)*
                end
            };
        }

        impl Default for $name {
            fn default() -> Self {
                // SAFETY: integers, bools, raw pointers, optional functions and structs of these may all be zero.
                let zero: Self = unsafe { zeroed() };
                Self { struct_size: Self::STRUCT_SIZE, ..zero }
            }
        }
    )*};
}

/// Declares argument structs together with the table's function of the same name.
macro_rules! calls {
    ($($function:ident($args:ident) { $($field:ident: $type:ty),* $(,)? })*) => {
        structs! { $($args { $($field: $type),* })* }
        $(
            // SAFETY: the header declares `$function` to take `$args`.
            unsafe impl Args for $args {
                const NAME: &'static str = stringify!($function);
                const SLOT: usize = offset_of!(PJRT_Api, $function);
            }
        )*
    };
}

/// Declares opaque types that the plugin allocates and the function that frees each.
macro_rules! objects {
    ($($object:ident freed by $args:ident { $field:ident })*) => {$(
        #[repr(C)]
        pub struct $object {
            opaque: [u8; 0],
        }

        impl Object for $object {
            type Destroy = $args;
            fn destroy(object: *mut Self) -> $args {
                $args { $field: object, ..Default::default() }
            }
        }
    )*};
}

/// Declares opaque types that live as long as the object they belong to.
macro_rules! borrowed_objects {
    ($($object:ident)*) => {$(
        #[repr(C)]
        pub struct $object {
            opaque: [u8; 0],
        }
    )*};
}

borrowed_objects! {
    PJRT_Error PJRT_Device PJRT_DeviceDescription PJRT_Memory PJRT_ExecuteContext PJRT_SerializedExecutable
}

objects! {
    PJRT_Event freed by EventDestroy { event }
    PJRT_Client freed by ClientDestroy { client }
    PJRT_Buffer freed by BufferDestroy { buffer }
    PJRT_Executable freed by ExecutableDestroy { executable }
    PJRT_LoadedExecutable freed by LoadedExecutableDestroy { executable }
    PJRT_TopologyDescription freed by TopologyDescriptionDestroy { topology }
}

/// `PJRT_Error_Code`, which follows Abseil's status codes.
pub type ErrorCode = c_int;
/// `PJRT_Buffer_Type`.
pub type BufferType = c_int;

pub const BUFFER_TYPE_PRED: BufferType = 1;
pub const BUFFER_TYPE_S32: BufferType = 4;
pub const BUFFER_TYPE_S64: BufferType = 5;
pub const BUFFER_TYPE_U8: BufferType = 6;
pub const BUFFER_TYPE_U32: BufferType = 8;
pub const BUFFER_TYPE_U64: BufferType = 9;
pub const BUFFER_TYPE_F16: BufferType = 10;
pub const BUFFER_TYPE_F32: BufferType = 11;
pub const BUFFER_TYPE_F64: BufferType = 12;
pub const BUFFER_TYPE_BF16: BufferType = 13;

/// `PJRT_NamedValue_Type`.
pub const NAMED_VALUE_STRING: c_int = 0;
pub const NAMED_VALUE_INT64: c_int = 1;
pub const NAMED_VALUE_INT64_LIST: c_int = 2;
pub const NAMED_VALUE_FLOAT: c_int = 3;
pub const NAMED_VALUE_BOOL: c_int = 4;

/// `PJRT_HostBufferSemantics_kImmutableUntilTransferCompletes`.
pub const IMMUTABLE_UNTIL_TRANSFER_COMPLETES: c_int = 1;

/// `PJRT_Event_OnReadyCallback`; it owns the error.
pub type OnReady = Option<unsafe extern "C" fn(*mut PJRT_Error, *mut c_void)>;

/// The value of a [`PJRT_NamedValue`], told apart by its `value_type`.
#[repr(C)]
#[derive(Clone, Copy)]
pub union NamedValueUnion {
    pub string: *const c_char,
    pub int64: i64,
    pub int64_list: *const i64,
    pub float: f32,
    pub bool: bool,
}

structs! {
    PJRT_Api_Version { major_version: c_int, minor_version: c_int }
    ErrorDestroy { error: *mut PJRT_Error }
    ErrorMessage { error: *const PJRT_Error, message: *const c_char, message_size: usize }
    ErrorGetCode { error: *const PJRT_Error, code: ErrorCode }
    PJRT_NamedValue {
        name: *const c_char,
        name_size: usize,
        value_type: c_int,
        value: NamedValueUnion,
        value_size: usize,
    }
    PJRT_Program { code: *mut c_char, code_size: usize, format: *const c_char, format_size: usize }
    /// `PJRT_Buffer_MemoryLayout_Tiled`.
    TiledLayout {
        minor_to_major: *const i64,
        minor_to_major_size: usize,
        tile_dims: *const i64,
        tile_dim_sizes: *const usize,
        num_tiles: usize,
    }
    /// `PJRT_Buffer_MemoryLayout` in its tiled form, the larger member of the C union. `layout_type` 0 means tiled.
    MemoryLayout { tiled: TiledLayout, layout_type: c_int }
    PJRT_ExecuteOptions {
        send_callbacks: *mut c_void,
        recv_callbacks: *mut c_void,
        num_send_ops: usize,
        num_recv_ops: usize,
        launch_id: c_int,
        non_donatable_input_indices: *const i64,
        num_non_donatable_input_indices: usize,
        context: *mut PJRT_ExecuteContext,
        call_location: *const c_char,
        num_tasks: usize,
        task_ids: *mut c_int,
        incarnation_ids: *mut i64,
        multi_slice_config: *mut c_void,
        use_major_to_minor_data_layout_for_callbacks: bool,
        hlo_output_callbacks: *mut c_void,
        num_hlo_output_callbacks: usize,
    }
}

calls! {
    PJRT_Plugin_Initialize(PluginInitialize) {}

    PJRT_Event_Destroy(EventDestroy) { event: *mut PJRT_Event }
    PJRT_Event_IsReady(EventIsReady) { event: *mut PJRT_Event, is_ready: bool }
    PJRT_Event_Await(EventAwait) { event: *mut PJRT_Event }
    PJRT_Event_OnReady(EventOnReady) { event: *mut PJRT_Event, callback: OnReady, user_arg: *mut c_void }

    PJRT_Client_Create(ClientCreate) {
        create_options: *const PJRT_NamedValue,
        num_options: usize,
        kv_get_callback: Function,
        kv_get_user_arg: *mut c_void,
        kv_put_callback: Function,
        kv_put_user_arg: *mut c_void,
        client: *mut PJRT_Client,
        kv_try_get_callback: Function,
        kv_try_get_user_arg: *mut c_void,
    }
    PJRT_Client_Destroy(ClientDestroy) { client: *mut PJRT_Client }
    PJRT_Client_PlatformName(ClientPlatformName) {
        client: *mut PJRT_Client,
        platform_name: *const c_char,
        platform_name_size: usize,
    }
    PJRT_Client_PlatformVersion(ClientPlatformVersion) {
        client: *mut PJRT_Client,
        platform_version: *const c_char,
        platform_version_size: usize,
    }
    PJRT_Client_ProcessIndex(ClientProcessIndex) { client: *mut PJRT_Client, process_index: c_int }
    PJRT_Client_Devices(ClientDevices) {
        client: *mut PJRT_Client,
        devices: *const *mut PJRT_Device,
        num_devices: usize,
    }
    PJRT_Client_Compile(ClientCompile) {
        client: *mut PJRT_Client,
        program: *const PJRT_Program,
        compile_options: *const c_char,
        compile_options_size: usize,
        executable: *mut PJRT_LoadedExecutable,
    }
    PJRT_Client_BufferFromHostBuffer(ClientBufferFromHostBuffer) {
        client: *mut PJRT_Client,
        data: *const c_void,
        element_type: BufferType,
        dims: *const i64,
        num_dims: usize,
        byte_strides: *const i64,
        num_byte_strides: usize,
        host_buffer_semantics: c_int,
        device: *mut PJRT_Device,
        memory: *mut PJRT_Memory,
        device_layout: *mut MemoryLayout,
        done_with_host_buffer: *mut PJRT_Event,
        buffer: *mut PJRT_Buffer,
    }

    PJRT_Device_GetDescription(DeviceGetDescription) {
        device: *mut PJRT_Device,
        device_description: *mut PJRT_DeviceDescription,
    }
    PJRT_Device_IsAddressable(DeviceIsAddressable) { device: *mut PJRT_Device, is_addressable: bool }
    PJRT_Device_MemoryStats(DeviceMemoryStats) {
        device: *mut PJRT_Device,
        bytes_in_use: i64,
        peak_bytes_in_use: i64,
        peak_bytes_in_use_is_set: bool,
        num_allocs: i64,
        num_allocs_is_set: bool,
        largest_alloc_size: i64,
        largest_alloc_size_is_set: bool,
        bytes_limit: i64,
        bytes_limit_is_set: bool,
        bytes_reserved: i64,
        bytes_reserved_is_set: bool,
        peak_bytes_reserved: i64,
        peak_bytes_reserved_is_set: bool,
        bytes_reservable_limit: i64,
        bytes_reservable_limit_is_set: bool,
        largest_free_block_bytes: i64,
        largest_free_block_bytes_is_set: bool,
        pool_bytes: i64,
        pool_bytes_is_set: bool,
        peak_pool_bytes: i64,
        peak_pool_bytes_is_set: bool,
        peak_allocated_bytes: i64,
        peak_allocated_bytes_is_set: bool,
    }
    PJRT_DeviceDescription_Id(DeviceDescriptionId) { description: *mut PJRT_DeviceDescription, id: c_int }
    PJRT_DeviceDescription_ProcessIndex(DeviceDescriptionProcessIndex) {
        description: *mut PJRT_DeviceDescription,
        process_index: c_int,
    }
    PJRT_DeviceDescription_Attributes(DeviceDescriptionAttributes) {
        device_description: *mut PJRT_DeviceDescription,
        num_attributes: usize,
        attributes: *const PJRT_NamedValue,
    }
    PJRT_DeviceDescription_Kind(DeviceDescriptionKind) {
        description: *mut PJRT_DeviceDescription,
        device_kind: *const c_char,
        device_kind_size: usize,
    }

    PJRT_Executable_Destroy(ExecutableDestroy) { executable: *mut PJRT_Executable }
    PJRT_Executable_NumOutputs(ExecutableNumOutputs) { executable: *mut PJRT_Executable, num_outputs: usize }
    PJRT_Executable_OutputElementTypes(ExecutableOutputElementTypes) {
        executable: *mut PJRT_Executable,
        output_types: *const BufferType,
        num_output_types: usize,
    }
    PJRT_Executable_OutputDimensions(ExecutableOutputDimensions) {
        executable: *mut PJRT_Executable,
        num_outputs: usize,
        dims: *const i64,
        dim_sizes: *const usize,
    }
    PJRT_Executable_GetCostAnalysis(ExecutableGetCostAnalysis) {
        executable: *mut PJRT_Executable,
        num_properties: usize,
        properties: *const PJRT_NamedValue,
    }
    PJRT_Executable_GetCompiledMemoryStats(ExecutableGetCompiledMemoryStats) {
        executable: *mut PJRT_Executable,
        generated_code_size_in_bytes: i64,
        argument_size_in_bytes: i64,
        output_size_in_bytes: i64,
        alias_size_in_bytes: i64,
        temp_size_in_bytes: i64,
        host_generated_code_size_in_bytes: i64,
        host_argument_size_in_bytes: i64,
        host_output_size_in_bytes: i64,
        host_alias_size_in_bytes: i64,
        host_temp_size_in_bytes: i64,
        peak_memory_in_bytes: i64,
        total_size_in_bytes: i64,
        total_allocation_bytes: i64,
        indefinite_allocations: i64,
        peak_unpadded_heap_bytes: i64,
    }
    PJRT_Executable_NumReplicas(ExecutableNumReplicas) { executable: *mut PJRT_Executable, num_replicas: usize }
    PJRT_Executable_OptimizedProgram(ExecutableOptimizedProgram) {
        executable: *mut PJRT_Executable,
        program: *mut PJRT_Program,
    }
    PJRT_Executable_Serialize(ExecutableSerialize) {
        executable: *const PJRT_Executable,
        serialized_bytes: *const c_char,
        serialized_bytes_size: usize,
        serialized_executable: *mut PJRT_SerializedExecutable,
        serialized_executable_deleter: Option<unsafe extern "C-unwind" fn(*mut PJRT_SerializedExecutable)>,
    }
    PJRT_Executable_DeserializeAndLoad(ExecutableDeserializeAndLoad) {
        client: *mut PJRT_Client,
        serialized_executable: *const c_char,
        serialized_executable_size: usize,
        loaded_executable: *mut PJRT_LoadedExecutable,
        overridden_serialized_compile_options: *const c_char,
        overridden_serialized_compile_options_size: usize,
        load_options: *mut c_void,
    }
    PJRT_LoadedExecutable_Destroy(LoadedExecutableDestroy) { executable: *mut PJRT_LoadedExecutable }
    PJRT_LoadedExecutable_GetExecutable(LoadedExecutableGetExecutable) {
        loaded_executable: *mut PJRT_LoadedExecutable,
        executable: *mut PJRT_Executable,
    }
    PJRT_LoadedExecutable_AddressableDevices(LoadedExecutableAddressableDevices) {
        executable: *mut PJRT_LoadedExecutable,
        addressable_devices: *const *mut PJRT_Device,
        num_addressable_devices: usize,
    }
    PJRT_LoadedExecutable_Execute(LoadedExecutableExecute) {
        executable: *mut PJRT_LoadedExecutable,
        options: *mut PJRT_ExecuteOptions,
        argument_lists: *const *const *mut PJRT_Buffer,
        num_devices: usize,
        num_args: usize,
        output_lists: *const *mut *mut PJRT_Buffer,
        device_complete_events: *mut *mut PJRT_Event,
        execute_device: *mut PJRT_Device,
    }

    PJRT_TopologyDescription_Create(TopologyDescriptionCreate) {
        topology_name: *const c_char,
        topology_name_size: usize,
        create_options: *const PJRT_NamedValue,
        num_options: usize,
        topology: *mut PJRT_TopologyDescription,
    }
    PJRT_TopologyDescription_Destroy(TopologyDescriptionDestroy) { topology: *mut PJRT_TopologyDescription }
    PJRT_TopologyDescription_PlatformVersion(TopologyDescriptionPlatformVersion) {
        topology: *mut PJRT_TopologyDescription,
        platform_version: *const c_char,
        platform_version_size: usize,
    }
    PJRT_TopologyDescription_GetDeviceDescriptions(TopologyDescriptionGetDeviceDescriptions) {
        topology: *mut PJRT_TopologyDescription,
        descriptions: *const *mut PJRT_DeviceDescription,
        num_descriptions: usize,
    }
    PJRT_Compile(Compile) {
        topology: *const PJRT_TopologyDescription,
        program: *const PJRT_Program,
        compile_options: *const c_char,
        compile_options_size: usize,
        client: *mut PJRT_Client,
        executable: *mut PJRT_Executable,
    }

    PJRT_Buffer_Destroy(BufferDestroy) { buffer: *mut PJRT_Buffer }
    PJRT_Buffer_OnDeviceSizeInBytes(BufferOnDeviceSizeInBytes) {
        buffer: *mut PJRT_Buffer,
        on_device_size_in_bytes: usize,
    }
    PJRT_Buffer_Device(BufferDevice) { buffer: *mut PJRT_Buffer, device: *mut PJRT_Device }
    PJRT_Buffer_ReadyEvent(BufferReadyEvent) { buffer: *mut PJRT_Buffer, event: *mut PJRT_Event }
    PJRT_Buffer_ToHostBuffer(BufferToHostBuffer) {
        src: *mut PJRT_Buffer,
        host_layout: *const MemoryLayout,
        dst: *mut c_void,
        dst_size: usize,
        event: *mut PJRT_Event,
    }
}

#[cfg(test)]
mod tests;
