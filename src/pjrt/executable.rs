//! What a compiled program tells about itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::api::{self, Owned};
use super::buffer::element_type;
use super::error::{Error, Result};
use super::sys;
use super::value::Value;
use crate::shape::Shape;

/// A compiled program, apart from any device to run it on.
pub struct Executable {
    raw: Owned<sys::PJRT_Executable>,
    outputs: Vec<Arc<Shape>>,
}

/// Memory that one device needs to run a program, in bytes, as the compiler planned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryStats {
    pub generated_code: i64,
    pub arguments: i64,
    pub outputs: i64,
    /// The part of `outputs` that takes over the memory of donated arguments.
    pub aliased: i64,
    pub temporaries: i64,
    /// The most that is in use at a time; plugins older than C API 0.72 do not tell.
    pub peak: Option<i64>,
}

impl Executable {
    pub(super) fn new(raw: Owned<sys::PJRT_Executable>) -> Result<Self> {
        let outputs = output_shapes(&raw)?;
        Ok(Self { raw, outputs })
    }

    /// The shapes of the results, the root tuple's elements apart.
    pub fn outputs(&self) -> &[Arc<Shape>] {
        &self.outputs
    }

    /// The replicas that run it together.
    pub fn num_replicas(&self) -> Result<usize> {
        let args = sys::ExecutableNumReplicas { executable: self.raw.raw(), ..Default::default() };
        // SAFETY: the executable is live.
        Ok(unsafe { self.raw.api.call(args) }?.num_replicas)
    }

    /// The program as the compiler left it, in the format that XLA calls `hlo_with_config`: a serialized
    /// `HloModuleProtoWithConfig`.
    ///
    /// # Errors
    /// When the plugin can't tell, or uses another format.
    pub fn optimized_program(&self) -> Result<Vec<u8>> {
        const FORMAT: &str = "hlo_with_config";
        let mut program = sys::PJRT_Program::default();
        let ask = |program: &mut sys::PJRT_Program| {
            let executable = self.raw.raw();
            let program = &raw mut *program;
            // SAFETY: the executable is live; the struct outlives the call, and so does the buffer in it, of the
            // size that the plugin stated.
            unsafe {
                self.raw.api.call(sys::ExecutableOptimizedProgram {
                    executable,
                    program,
                    ..Default::default()
                })
            }
        };
        // The first call tells the size.
        ask(&mut program)?;
        let mut bytes = vec![0u8; program.code_size];
        program.code = bytes.as_mut_ptr().cast();
        let call = ask(&mut program).map(|_| "PJRT_Executable_OptimizedProgram")?;
        // SAFETY: the name of the format belongs to the executable.
        let format = unsafe { api::string(program.format, program.format_size) };
        if format != FORMAT {
            let message = format!("the optimized program is {format}, expected {FORMAT}");
            return Err(Error::Plugin { call, code: "UNIMPLEMENTED", message });
        }
        Ok(bytes)
    }

    /// The program as bytes that [`Client::deserialize`](super::Client::deserialize) loads again, with the same
    /// version of the plugin and the same kind of devices.
    pub(super) fn serialize(&self) -> Result<Vec<u8>> {
        let args = sys::ExecutableSerialize { executable: self.raw.raw(), ..Default::default() };
        // SAFETY: the executable is live. The bytes are copied before what backs them is freed, once.
        unsafe {
            let serialized = self.raw.api.call(args)?;
            let bytes =
                api::slice(serialized.serialized_bytes.cast::<u8>(), serialized.serialized_bytes_size);
            let bytes = bytes.to_vec();
            if let Some(free) = serialized.serialized_executable_deleter {
                free(serialized.serialized_executable);
            }
            Ok(bytes)
        }
    }

    pub fn memory_stats(&self) -> Result<MemoryStats> {
        let executable = self.raw.raw();
        let args = sys::ExecutableGetCompiledMemoryStats { executable, ..Default::default() };
        // SAFETY: the executable is live.
        let stats = unsafe { self.raw.api.call(args) }?;
        Ok(MemoryStats {
            generated_code: stats.generated_code_size_in_bytes,
            arguments: stats.argument_size_in_bytes,
            outputs: stats.output_size_in_bytes,
            aliased: stats.alias_size_in_bytes,
            temporaries: stats.temp_size_in_bytes,
            peak: Some(stats.peak_memory_in_bytes).filter(|&peak| peak > 0),
        })
    }

    /// The compiler's own count of the work, such as `flops` and `bytes accessed`. Not every plugin has one.
    pub fn cost_analysis(&self) -> Result<BTreeMap<String, Value>> {
        let executable = self.raw.raw();
        let args = sys::ExecutableGetCostAnalysis { executable, ..Default::default() };
        // SAFETY: the executable is live, and the properties live as long as it.
        unsafe {
            let args = self.raw.api.call(args)?;
            let properties = api::slice(args.properties, args.num_properties);
            Ok(properties.iter().filter_map(|property| Value::from_raw(property)).collect())
        }
    }
}

fn output_shapes(raw: &Owned<sys::PJRT_Executable>) -> Result<Vec<Arc<Shape>>> {
    let (api, executable) = (raw.api, raw.raw());
    // SAFETY: the executable is live, and the lists live as long as it.
    let (count, types, ranks, dims) = unsafe {
        let count = api.call(sys::ExecutableNumOutputs { executable, ..Default::default() })?.num_outputs;
        let types = api.call(sys::ExecutableOutputElementTypes { executable, ..Default::default() })?;
        let args = sys::ExecutableOutputDimensions { executable, num_outputs: count, ..Default::default() };
        let args = api.call(args)?;
        let ranks = api::slice(args.dim_sizes, args.num_outputs);
        let dims = api::slice(args.dims, ranks.iter().sum());
        (count, api::slice(types.output_types, types.num_output_types), ranks, dims)
    };
    if types.len() != count || ranks.len() != count {
        let message = format!("{count} outputs, {} element types, {} ranks", types.len(), ranks.len());
        return Err(Error::Plugin { call: "PJRT_Executable_OutputDimensions", code: "INTERNAL", message });
    }
    let mut rest = dims;
    let outputs = types.iter().zip(ranks).enumerate().map(|(output, (&code, &rank))| {
        let (dims, after) = rest.split_at(rank);
        rest = after;
        let element = element_type(code).ok_or(Error::UnsupportedElementType { output, code })?;
        Ok(Arc::new(Shape::new(element, dims.iter().map(|&dim| dim as usize).collect::<Vec<_>>())))
    });
    outputs.collect()
}
