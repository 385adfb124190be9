//! From a graph's program to what a compiler takes: the same for a program that is to run and for one that is compiled
//! ahead of time.

use crate::hlo::Program;
use crate::pjrt::{Backend, CompileOptions, FlagValue, Module, ModuleFormat};
use crate::shape::Shape;

/// Of XLA's CPU compiler.
const XNNPACK: &str = "xla_cpu_use_xnnpack";

/// A program for replicas on certain devices, ready to compile.
pub struct Lowered {
    /// A serialized `HloModuleProto`.
    pub code: Vec<u8>,
    /// Of each replica.
    pub parameters: Vec<Shape>,
    /// Of each replica's device.
    pub device_ids: Vec<i32>,
    pub options: CompileOptions,
}

impl Lowered {
    /// `program` for a replica on each of the devices with these ids.
    pub fn new(program: &Program<'_>, device_ids: &[i32], backend: Backend) -> Self {
        let options = CompileOptions::on_devices(device_ids);
        Self {
            code: match backend {
                Backend::Cpu => program.to_cpu_hlo_proto(),
                Backend::Gpu | Backend::Tpu => program.to_hlo_proto(),
            },
            parameters: program.parameter_shapes(),
            device_ids: device_ids.to_vec(),
            options: match backend {
                // XNNPACK packs the second factor of each product anew into memory of its own: the recipe's step takes 8 % more
                // time with it, and 0.8 GB more. Without it, products are oneDNN's.
                Backend::Cpu => options.flag(XNNPACK, FlagValue::BoolField(false)),
                Backend::Gpu | Backend::Tpu => options,
            },
        }
    }

    /// The same for a compiler that says in `message` that it doesn't know a flag that only makes programs faster.
    pub fn without_unknown(&self, message: &str) -> Option<CompileOptions> {
        message.contains(XNNPACK).then(|| self.options.clone().without_flag(XNNPACK))
    }

    /// Asks for a program that gives the same bits each time. Only XLA's GPU compiler has to be asked: it sums into the
    /// rows of a table in any order, and chooses among kernels by how long they take.
    pub fn deterministic(mut self, wanted: bool, backend: Backend) -> Self {
        if wanted && backend == Backend::Gpu {
            // The first leaves Triton out, but not the products that are meant for it.
            let flags = [("xla_gpu_deterministic_ops", true), ("xla_gpu_enable_triton_gemm", false)];
            for (name, value) in flags {
                self.options = self.options.flag(name, FlagValue::BoolField(value));
            }
        }
        self
    }

    pub fn module(&self) -> Module<'_> {
        Module { format: ModuleFormat::Hlo, code: &self.code, parameters: &self.parameters }
    }
}
