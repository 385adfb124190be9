//! The published figures of TPUs and GPUs, and the roofline that follows from them.

use serde::Serialize;

use super::{Error, Result};
use crate::step::Precision;

const GIB: u64 = 1 << 30;

/// Elements of a row of a TPU's tile.
pub const LANES: usize = 128;

/// A chip's published figures, each for one *device*, which is what a replica runs on. Vendors print capacities in
/// powers of two, whichever unit they write.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Chip {
    /// As in topology names (`v3` of `v3:2x2x1`), or as people call a GPU.
    pub name: &'static str,
    /// The vendor's name.
    pub product: &'static str,
    /// Devices that PJRT sees per chip: 2 where each core has its own memory, 1 where two cores act as one ("megacore")
    /// or there is only one.
    pub devices_per_chip: usize,
    /// Memory per device, in bytes.
    pub hbm_bytes: u64,
    /// What a program gets of it, in bytes: on TPU, what libtpu 0.0.52 says is available when a program is too large; on
    /// GPU, the share that the CUDA plugin takes by default.
    pub usable_bytes: u64,
    /// Memory bandwidth per device, in bytes per second.
    pub hbm_bandwidth: f64,
    /// Dense products of bf16 matrices per device, in FLOP/s, summed in f32.
    pub peak_flops: f64,
    /// The same of f32 matrices, at [`precision`](Self::precision).
    pub f32_peak_flops: f64,
    /// What XLA multiplies f32 matrices in by default: bf16 in one pass on TPU, TF32 on these GPUs; it adds in f32
    /// (JAX documentation, "Matmul precision").
    pub precision: &'static str,
    /// libtpu's name for the way Cloud TPU VMs run the chip. It decides whether two cores are one device.
    #[serde(skip)]
    pub chip_config_name: &'static str,
    /// What a chip sends to others of its slice and receives from them, over all of its links, in bytes per second: of a GPU,
    /// of which there is one alone here, none.
    pub interconnect: Option<f64>,
    /// Clock of a TPU's core, in Hz: it turns the compiler's cycles into seconds.
    pub clock_hz: Option<f64>,
    /// Whether that isn't published, but follows from the published peak and the arrays of multipliers, all of which work at
    /// each clock then.
    pub is_clock_derived: bool,
    /// Where the figures were published.
    pub source: &'static str,
}

/// Where a TPU's clock is from.
#[derive(Clone, Copy)]
enum Clock {
    Mhz(u64),
    /// From the peak, by the multipliers of all arrays of a device, each of which does two operations a clock.
    Derived {
        multipliers: u64,
    },
}

/// The published figures of a whole TPU chip, shared out over its devices.
const fn tpu(
    name: &'static str,
    product: &'static str,
    devices_per_chip: usize,
    [gib, gigabytes_per_second, teraflops, interconnect_gigabits]: [u64; 4],
    usable_gib: f64,
    clock: Clock,
    source: &'static str,
) -> Chip {
    let devices = devices_per_chip as f64;
    Chip {
        name,
        product,
        devices_per_chip,
        hbm_bytes: gib * GIB / devices_per_chip as u64,
        usable_bytes: (usable_gib * GIB as f64) as u64,
        hbm_bandwidth: gigabytes_per_second as f64 * 1e9 / devices,
        peak_flops: teraflops as f64 * 1e12 / devices,
        f32_peak_flops: teraflops as f64 * 1e12 / devices,
        precision: "bf16",
        chip_config_name: "default",
        interconnect: Some(interconnect_gigabits as f64 * 1e9 / 8.0),
        clock_hz: Some(match clock {
            Clock::Mhz(mhz) => mhz as f64 * 1e6,
            Clock::Derived { multipliers } => teraflops as f64 * 1e12 / devices / (2 * multipliers) as f64,
        }),
        is_clock_derived: matches!(clock, Clock::Derived { .. }),
        source,
    }
}

const fn gpu(
    name: &'static str,
    product: &'static str,
    [gib, gigabytes_per_second]: [u64; 2],
    teraflops: f64,
    source: &'static str,
) -> Chip {
    Chip {
        name,
        product,
        devices_per_chip: 1,
        hbm_bytes: gib * GIB,
        usable_bytes: gib * GIB / 4 * 3,
        hbm_bandwidth: gigabytes_per_second as f64 * 1e9,
        // The tensor cores of these GPUs take two bf16 factors in the time of one in TF32.
        peak_flops: 2.0 * teraflops * 1e12,
        f32_peak_flops: teraflops * 1e12,
        precision: "TF32",
        chip_config_name: "",
        interconnect: None,
        clock_hz: None,
        is_clock_derived: false,
        source,
    }
}

const CACM: &str =
    "Jouppi et al., \"A Domain-Specific Supercomputer for Training Deep Neural Networks\", CACM 2020";
const ISCA: &str = "Google Cloud documentation, \"TPU v4\"; clock: Jouppi et al., \"TPU v4\", ISCA 2023";
/// Google Cloud's page says 95 GB, which is less than libtpu hands out of it.
const V5P: &str =
    "Google Cloud documentation, \"TPU v5p\"; memory: Austin et al., \"How to Scale Your Model\", 2025";
const HOPPER: &str = "NVIDIA H100 Tensor Core GPU Architecture (white paper); NVIDIA H100 datasheet";

// Google Cloud documentation, "TPU architecture" and the chips' pages: arrays of a core, their size, and two cores in a v5p. Of a
// v6e, that page has said 2 arrays and 4: with 2, its memory would be faster than it is, by what libtpu takes a copy to cost.
const FOUR_OF_128: Clock = Clock::Derived { multipliers: 4 * 128 * 128 };
const EIGHT_OF_128: Clock = Clock::Derived { multipliers: 8 * 128 * 128 };
const FOUR_OF_256: Clock = Clock::Derived { multipliers: 4 * 256 * 256 };

/// The TPUs, oldest first.
pub const TPUS: [Chip; 6] = [
    tpu("v2", "TPU v2", 2, [16, 700, 46, 496], 7.48, Clock::Mhz(700), CACM),
    tpu("v3", "TPU v3", 2, [32, 900, 123, 656], 15.48, Clock::Mhz(940), CACM),
    Chip {
        chip_config_name: "megacore",
        ..tpu("v4", "TPU v4", 1, [32, 1200, 275, 2400], 30.75, Clock::Mhz(1050), ISCA)
    },
    tpu(
        "v5e",
        "TPU v5e",
        1,
        [16, 819, 197, 1600],
        15.75,
        FOUR_OF_128,
        "Google Cloud documentation, \"TPU v5e\"",
    ),
    tpu("v5p", "TPU v5p", 1, [96, 2765, 459, 4800], 95.73, EIGHT_OF_128, V5P),
    tpu(
        "v6e",
        "TPU v6e (Trillium)",
        1,
        [32, 1638, 918, 3200],
        31.24,
        FOUR_OF_256,
        "Google Cloud documentation, \"TPU v6e\"",
    ),
];

/// The GPUs, oldest first. TF32 without sparsity, which datasheets print at half of the figure with it.
pub const GPUS: [Chip; 3] = [
    gpu("a100", "NVIDIA A100 SXM4 80 GB", [80, 2039], 156.0, "NVIDIA A100 Tensor Core GPU datasheet"),
    gpu("h100", "NVIDIA H100 SXM5 80 GB", [80, 3350], 494.7, HOPPER),
    gpu("h200", "NVIDIA H200 SXM 141 GB", [141, 4800], 494.7, "NVIDIA H200 Tensor Core GPU datasheet"),
];

/// What the driver calls the GPUs.
const KINDS: [(&str, &str); 3] =
    [("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200")];

/// Topologies that libtpu compiles for without a TPU, and what Cloud TPU calls a slice of that form. Others of the
/// same form may do, too.
pub const TOPOLOGIES: [(&str, &str); 14] = [
    ("v2:2x2x1", "v2-8"),
    ("v3:2x2x1", "v3-8"),
    ("v3:4x4x1", "v3-32"),
    ("v4:2x2x1", "v4-8"),
    ("v4:2x2x4", "v4-32"),
    ("v5e:1x1", "v5litepod-1"),
    ("v5e:2x2", "v5litepod-4"),
    ("v5e:2x4", "v5litepod-8"),
    ("v5e:4x4", "v5litepod-16"),
    ("v5p:2x2x1", "v5p-8"),
    ("v6e:1x1", "v6e-1"),
    ("v6e:2x2", "v6e-4"),
    ("v6e:2x4", "v6e-8"),
    ("v6e:4x4", "v6e-16"),
];

/// No slice has more chips; of absurd ones, libtpu runs out of memory.
const MOST_CHIPS: usize = 1 << 14;

impl Chip {
    /// The GPU of that name.
    ///
    /// # Errors
    /// None has it.
    pub fn gpu(name: &str) -> Result<&'static Self> {
        GPUS.iter().find(|chip| chip.name == name).ok_or_else(|| {
            let known = GPUS.map(|chip| chip.name).join(", ");
            Error::UnknownGpu { name: name.to_owned(), known }
        })
    }

    /// The chip that a device of this kind is, as PJRT names it, such as `TPU v3`, `TPU v5 lite` or `NVIDIA H100 80GB HBM3`: of a
    /// GPU's makes, the one whose figures are here alone.
    pub fn of_kind(kind: &str) -> Option<&'static Self> {
        let tpu = kind.strip_prefix("TPU ").map(|kind| match kind {
            "v5 lite" => "v5e",
            "v5" => "v5p",
            "v6 lite" => "v6e",
            other => other,
        });
        let is_it = |chip: &&Self| match tpu {
            Some(name) => chip.name == name,
            None => KINDS.contains(&(kind, chip.name)),
        };
        TPUS.iter().chain(&GPUS).find(is_it)
    }

    /// The most operations of matrix products per device, in FLOP/s, of factors in `precision`; and what they are multiplied
    /// in.
    pub fn peak(&self, precision: Precision) -> (f64, &'static str) {
        match precision {
            Precision::Bf16 => (self.peak_flops, "bf16"),
            Precision::F32 => (self.f32_peak_flops, self.precision),
        }
    }

    /// The least time that one device can take for `dot_flops` operations of matrix products with factors in `precision` and
    /// `bytes` of memory traffic.
    pub fn roofline(&self, precision: Precision, dot_flops: f64, bytes: f64) -> Roofline {
        let (peak, _) = self.peak(precision);
        Roofline { compute_seconds: dot_flops / peak, memory_seconds: bytes / self.hbm_bandwidth }
    }
}

/// A slice of TPU chips, named as libtpu names it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Slice {
    /// Such as `v3:2x2x1`.
    pub name: String,
    pub chip: &'static Chip,
    /// Number of chips.
    pub chips: usize,
}

impl Slice {
    /// Reads `<chip>:<chips along each axis>`, or Cloud TPU's name of a slice that is known here, such as `v3-8`; `v5e-8` is
    /// short for `v5litepod-8`.
    ///
    /// # Errors
    /// A chip that isn't known, or sizes that aren't two or three positive numbers.
    pub fn parse(name: &str) -> Result<Self> {
        let long = name.strip_prefix("v5e-").map(|count| format!("v5litepod-{count}"));
        let of_cloud = long.as_deref().unwrap_or(name);
        let by_type = TOPOLOGIES.iter().find(|(_, accelerator_type)| *accelerator_type == of_cloud);
        let name = by_type.map_or(name, |(topology, _)| topology);
        let found = name.split_once(':').and_then(|(chip, sizes)| {
            let chip = TPUS.iter().find(|known| known.name == chip)?;
            let sizes = sizes.split('x').map(|size| size.parse().ok()).collect::<Option<Vec<usize>>>()?;
            let chips = sizes.iter().try_fold(1usize, |chips, size| chips.checked_mul(*size))?;
            ((2..=3).contains(&sizes.len()) && (1..=MOST_CHIPS).contains(&chips)).then_some((chip, chips))
        });
        let (chip, chips) = found.ok_or_else(|| {
            let known = known_topologies();
            Error::UnknownTopology { name: name.to_owned(), known }
        })?;
        Ok(Self { name: name.to_owned(), chip, chips })
    }

    /// Devices of all chips: the most replicas that it takes.
    pub fn devices(&self) -> usize {
        self.chips * self.chip.devices_per_chip
    }
}

/// The names of [`TOPOLOGIES`].
pub fn known_topologies() -> String {
    let names = TOPOLOGIES.map(|(topology, accelerator_type)| format!("{topology} ({accelerator_type})"));
    names.join(", ")
}

/// A bound from below on the time of a program: `max(flops / peak, bytes / bandwidth)` (Williams, Waterman and
/// Patterson, "Roofline", CACM 2009). No program is faster; a real one also waits for the other of the two, for
/// collectives and for vector arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Roofline {
    pub compute_seconds: f64,
    pub memory_seconds: f64,
}

/// Which roof a program is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    Compute,
    Memory,
}

impl Roofline {
    pub fn seconds(self) -> f64 {
        self.compute_seconds.max(self.memory_seconds)
    }

    pub fn bound(self) -> Bound {
        if self.compute_seconds >= self.memory_seconds { Bound::Compute } else { Bound::Memory }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tpu(name: &str) -> &'static Chip {
        TPUS.iter().find(|chip| chip.name == name).unwrap()
    }

    /// `peak` within half a unit of the last digit that the vendors print.
    fn is_close(peak: f64, expected: f64) -> bool {
        (peak / expected - 1.0).abs() < 0.005
    }

    /// From the block diagrams: per core of v2, v3 and v4, 1, 2 and 4 arrays of 128 x 128 multiply-adds a clock.
    #[test]
    fn tpu_peaks_follow_from_arrays_and_clocks() {
        for (name, arrays) in [("v2", 1.0), ("v3", 2.0), ("v4", 2.0 * 4.0)] {
            let chip = tpu(name);
            let peak = arrays * 128.0 * 128.0 * 2.0 * chip.clock_hz.unwrap();
            assert!(is_close(chip.peak_flops, peak), "{name}: {} and {peak}", chip.peak_flops);
        }
    }

    /// From NVIDIA's white papers: 512 (A100, at 1.41 GHz) and 1024 (H100, at 1.83 GHz) TF32 multiply-adds per
    /// multiprocessor and clock.
    #[test]
    fn gpu_peaks_follow_from_tensor_cores_and_clocks() {
        let expected = [
            ("a100", 108.0 * 512.0 * 2.0 * 1.41e9),
            ("h100", 132.0 * 1024.0 * 2.0 * 1.83e9),
            ("h200", 132.0 * 1024.0 * 2.0 * 1.83e9),
        ];
        for (name, peak) in expected {
            let chip = Chip::gpu(name).unwrap();
            assert!(is_close(chip.f32_peak_flops, peak), "{name}: {peak}");
            // 312 and 989.4 TFLOP/s on the datasheets.
            assert!(is_close(chip.peak_flops, if name == "a100" { 312e12 } else { 989.4e12 }), "{name}");
        }
    }

    /// Google's own comparisons: v6e has 4.7 times the compute of v5e and twice its memory and bandwidth; v5p has 2.3
    /// times the bandwidth of v4.
    #[test]
    fn generations_compare_as_announced() {
        let (v4, v5e, v5p, v6e) = (tpu("v4"), tpu("v5e"), tpu("v5p"), tpu("v6e"));
        assert_eq!(format!("{:.1}", v6e.peak_flops / v5e.peak_flops), "4.7");
        assert_eq!(v6e.hbm_bytes, 2 * v5e.hbm_bytes);
        assert_eq!(v6e.hbm_bandwidth, 2.0 * v5e.hbm_bandwidth);
        assert_eq!(format!("{:.1}", v5p.hbm_bandwidth / v4.hbm_bandwidth), "2.3");
    }

    /// Kinds as libtpu 0.0.52 and NVIDIA's driver tell them.
    #[test]
    fn a_chip_is_known_by_its_kind() {
        let name = |kind| Chip::of_kind(kind).map(|chip| chip.name);
        let kinds = ["TPU v2", "TPU v3", "TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "NVIDIA H200"];
        assert_eq!(kinds.map(|kind| name(kind).unwrap()), ["v2", "v3", "v4", "v5e", "v5p", "v6e", "h200"]);
        assert_eq!(
            ["NVIDIA A100-SXM4-80GB", "cpu", "TPU v7", "NVIDIA H100 PCIe"].map(name),
            [Some("a100"), None, None, None]
        );
    }

    #[test]
    fn no_device_gives_more_memory_than_it_has() {
        for chip in TPUS.iter().chain(&GPUS) {
            assert!(chip.usable_bytes < chip.hbm_bytes, "{}", chip.name);
        }
    }

    /// A core of v3 is half a chip: 61.5 TFLOP/s, 450 GB/s, 16 GiB.
    #[test]
    fn the_roofline_is_the_slower_of_compute_and_memory() {
        let v3 = tpu("v3");
        assert_eq!((v3.hbm_bytes, v3.devices_per_chip), (17_179_869_184, 2));
        let compute = v3.roofline(Precision::Bf16, 123e9, 45e6);
        assert!((compute.seconds() - 2e-3).abs() < 1e-15);
        assert_eq!(compute.bound(), Bound::Compute);
        let memory = v3.roofline(Precision::F32, 61.5e9, 4.5e9);
        assert!((memory.seconds() - 10e-3).abs() < 1e-15);
        assert_eq!(memory.bound(), Bound::Memory);
    }

    #[test]
    fn slices_are_named_in_two_ways() {
        for (name, accelerator_type) in TOPOLOGIES {
            let slice = Slice::parse(name).unwrap();
            assert_eq!(slice, Slice::parse(accelerator_type).unwrap());
            assert_eq!(slice, Slice::parse(&accelerator_type.replace("litepod", "e")).unwrap());
            // Up to v5p, Cloud TPU counts cores, two to a chip; from v5e on, chips.
            let (_, count) = accelerator_type.rsplit_once('-').unwrap();
            let counted = if matches!(slice.chip.name, "v5e" | "v6e") { 1 } else { 2 } * slice.chips;
            assert_eq!(count, counted.to_string(), "{name}");
        }
        let absurd = "v3:1000x1000x1000";
        for name in ["", "v3", "v3:", "v3:2", "v3:2x2x1x1", "v3:0x2", "v3:2xa", "v9:2x2", "h100:1x1", absurd]
        {
            let error = Slice::parse(name).unwrap_err();
            assert!(error.is_input_error() && error.to_string().contains("v3:2x2x1"), "{error}");
        }
        assert!(Chip::gpu("v100").unwrap_err().to_string().ends_with("a100, h100, h200"));
    }
}
