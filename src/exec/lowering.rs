//! From a graph's program to what a compiler takes: the same for a program that is to run and for one that is compiled
//! ahead of time.

use crate::hlo::Program;
use crate::pjrt::{CompileOptions, Module, ModuleFormat};
use crate::shape::Shape;

/// A program for replicas on certain devices, ready to compile.
pub struct Lowered {
    /// A serialized `HloModuleProto`.
    pub code: Vec<u8>,
    /// Of each replica.
    pub parameters: Vec<Shape>,
    pub options: CompileOptions,
}

impl Lowered {
    /// `program` for a replica on each of the devices with these ids.
    pub fn new(program: &Program<'_>, device_ids: &[i32]) -> Self {
        Self {
            code: program.to_hlo_proto(),
            parameters: program.parameter_shapes(),
            options: CompileOptions::on_devices(device_ids),
        }
    }

    pub fn module(&self) -> Module<'_> {
        Module { format: ModuleFormat::Hlo, code: &self.code, parameters: &self.parameters }
    }
}
