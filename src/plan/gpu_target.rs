//! What XLA's GPU compiler must know of a GPU that isn't there: a `GpuTargetConfigProto`
//! (`xla/stream_executor/device_description.proto`) in protocol buffers' text format.

use super::Chip;
use super::Result;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The version of the CUDA runtime and of cuDNN that the compiler is to assume, major, minor and patch: it picks its
/// library calls by them. Both are of the CUDA 13 plugin's generation.
const CUDA_VERSION: [u32; 3] = [13, 0, 0];
const CUDNN_VERSION: [u32; 3] = [9, 10, 0];

/// One GPU: the figures of its data sheet and white paper that [`Chip`] lacks. Limits that all GPUs of compute
/// capability 8.0 and 9.0 share stand in [`to_text_proto`](Self::to_text_proto); they are from the CUDA programming
/// guide, "Compute Capabilities".
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuTarget {
    pub chip: &'static Chip,
    /// The name by which the driver reports it.
    pub device_name: &'static str,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub core_count: u32,
    /// FP32 units per multiprocessor.
    pub fpus_per_core: u32,
    /// The highest clock of the multiprocessors.
    pub clock_rate_ghz: f64,
    pub l2_cache_bytes: u64,
    /// Most shared memory per multiprocessor, in bytes.
    pub shared_memory_per_core: u64,
}

impl GpuTarget {
    /// The GPU of that name: `a100`, `h100` or `h200`.
    ///
    /// # Errors
    /// None has it.
    pub fn new(name: &str) -> Result<Self> {
        let chip = Chip::gpu(name)?;
        let hopper = Self {
            chip,
            device_name: "NVIDIA H100 80GB HBM3",
            compute_capability: (9, 0),
            core_count: 132,
            fpus_per_core: 128,
            clock_rate_ghz: 1.98,
            l2_cache_bytes: 50 * MIB,
            shared_memory_per_core: 228 * KIB,
        };
        Ok(match chip.name {
            "a100" => Self {
                device_name: "NVIDIA A100-SXM4-80GB",
                compute_capability: (8, 0),
                core_count: 108,
                fpus_per_core: 64,
                clock_rate_ghz: 1.41,
                l2_cache_bytes: 40 * MIB,
                shared_memory_per_core: 164 * KIB,
                ..hopper
            },
            "h200" => Self { device_name: "NVIDIA H200", ..hopper },
            _ => hopper,
        })
    }

    /// The text that the CUDA plugin takes as the create option `target_config` of a topology. There are no autotuning
    /// results in it: the compiler takes its default for each kernel.
    pub fn to_text_proto(&self) -> String {
        let (major, minor) = self.compute_capability;
        // From Hopper on, the instructions that feed the tensor cores are in the architecture-specific set (`sm_90a`).
        let features = if major >= 9 { "ACCELERATED_FEATURES" } else { "NONE" };
        // CUDA keeps 1 KiB of shared memory per block for itself.
        let shared_memory_per_block_optin = self.shared_memory_per_core - KIB;
        let [cuda, cudnn] =
            [CUDA_VERSION, CUDNN_VERSION].map(|[major, minor, patch]| format!("{major}.{minor}.{patch}"));
        let [dnn_major, dnn_minor, dnn_patch] = CUDNN_VERSION;
        format!(
            r#"gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  max_blocks_per_multiprocessor: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_memory_per_block_optin}
  shared_memory_per_core: {shared_memory_per_core}
  reserved_shared_memory_per_block: 1024
  core_count: {core_count}
  fpus_per_core: {fpus_per_core}
  clock_rate_ghz: {clock_rate_ghz}
  l2_cache_size: {l2_cache_bytes}
  memory_bandwidth: {memory_bandwidth}
  device_memory_size: {device_memory_size}
  device_address_bits: 64
  ecc_enabled: true
  name: "{device_name}"
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {major}.{minor}"
  cuda_compute_capability {{
    major: {major}
    minor: {minor}
    feature_extension: {features}
  }}
  driver_version: "{cuda}"
  runtime_version: "{cuda}"
  compile_time_toolkit_version: "{cuda}"
  dnn_version: "{cudnn}"
}}
platform_name: "CUDA"
dnn_version_info {{
  major: {dnn_major}
  minor: {dnn_minor}
  patch: {dnn_patch}
}}
device_description_str: "{device_name}"
"#,
            shared_memory_per_core = self.shared_memory_per_core,
            core_count = self.core_count,
            fpus_per_core = self.fpus_per_core,
            clock_rate_ghz = self.clock_rate_ghz,
            l2_cache_bytes = self.l2_cache_bytes,
            memory_bandwidth = self.chip.hbm_bandwidth,
            device_memory_size = self.chip.hbm_bytes,
            device_name = self.device_name,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::chip::GPUS;
    use super::*;

    /// Reads the scalar fields of a text proto, each under the path of the messages around it.
    fn fields(text: &str) -> Vec<(String, String)> {
        let (mut path, mut fields) = (Vec::new(), Vec::new());
        for line in text.lines().map(str::trim) {
            if let Some(message) = line.strip_suffix(" {") {
                path.push(message);
            } else if line == "}" {
                path.pop().expect("a brace closes what was opened");
            } else {
                let (name, value) = line.split_once(": ").expect("a field is `name: value`");
                let path = path.iter().copied().chain([name]).collect::<Vec<_>>().join(".");
                fields.push((path, value.to_owned()));
            }
        }
        assert!(path.is_empty(), "every message is closed");
        fields
    }

    fn get<'a>(fields: &'a [(String, String)], path: &str) -> &'a str {
        let found = fields.iter().filter(|(name, _)| name == path).collect::<Vec<_>>();
        assert_eq!(found.len(), 1, "{path} occurs once");
        &found[0].1
    }

    /// From NVIDIA's white papers: FP32 peak without tensor cores, in TFLOP/s; FP32 cores; and the shared memory that
    /// a block can have, in KiB, from the CUDA programming guide.
    #[test]
    fn the_text_has_the_published_figures() {
        let expected = [("a100", 19.5, 6912, 163), ("h100", 66.9, 16896, 227), ("h200", 66.9, 16896, 227)];
        for (name, teraflops, cuda_cores, block_kib) in expected {
            let fields = fields(&GpuTarget::new(name).unwrap().to_text_proto());
            let number =
                |field: &str| get(&fields, &format!("gpu_device_info.{field}")).parse::<f64>().unwrap();
            let cores = number("core_count") * number("fpus_per_core");
            assert_eq!(cores, f64::from(cuda_cores), "{name}");
            let peak = cores * 2.0 * number("clock_rate_ghz") / 1e3;
            assert_eq!(format!("{peak:.1}"), format!("{teraflops:.1}"), "{name}");
            assert_eq!(number("shared_memory_per_block_optin"), f64::from(block_kib) * 1024.0, "{name}");
        }
    }

    #[test]
    fn the_text_is_well_formed_for_every_gpu() {
        for chip in &GPUS {
            let fields = fields(&GpuTarget::new(chip.name).unwrap().to_text_proto());
            let info = |field: &str| get(&fields, &format!("gpu_device_info.{field}"));
            assert_eq!(info("device_memory_size"), chip.hbm_bytes.to_string());
            assert_eq!(info("memory_bandwidth").parse::<u64>().unwrap() as f64, chip.hbm_bandwidth);
            assert_eq!(get(&fields, "platform_name"), "\"CUDA\"");
            assert_eq!(info("name"), get(&fields, "device_description_str"));
        }
        let h200 = fields(&GpuTarget::new("h200").unwrap().to_text_proto());
        assert_eq!(get(&h200, "gpu_device_info.device_memory_size"), "151397597184");
        assert_eq!(
            get(&h200, "gpu_device_info.cuda_compute_capability.feature_extension"),
            "ACCELERATED_FEATURES"
        );
        assert!(GpuTarget::new("mi300x").unwrap_err().is_input_error());
    }
}
