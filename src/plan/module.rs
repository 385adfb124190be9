//! What a compiled program does: cycles, collectives and library calls of the optimized HLO module that a plugin
//! returns.

use std::collections::{BTreeMap, HashMap, HashSet};

use prost::Message;
use serde::Serialize;

use super::running::{Running, running, times};
use super::traffic::{Computations, byte_size, hbm_bytes};
use crate::proto::{
    HloComputationProto, HloInstructionProto, HloModuleProto, HloModuleProtoWithConfig, OpMetadata,
};

/// Why an optimized module could not be analysed.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    #[error(
        "the plugin's optimized program is no HloModuleProtoWithConfig: {0}; use a plugin of another version"
    )]
    Decode(#[from] prost::DecodeError),
    #[error("the plugin's optimized program has no entry computation; use a plugin of another version")]
    NoEntry,
}

/// What is in an optimized module.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Analysis {
    pub replicas: u64,
    /// Outputs that live in a parameter's memory.
    pub aliases: usize,
    /// The compiler's estimate for one run on one device, in cycles of its clock: the sum over the instructions that run,
    /// one after the other, those of a loop once for each of its trips. `None` where no instruction has an estimate (only
    /// TPU's compiler makes them). Collectives have none.
    pub cycles: Option<u64>,
    /// Conditionals, and loops of which it isn't known how often they run: what runs inside them is not in `cycles`.
    pub uncounted: usize,
    /// Bytes that one run on one device moves between the chip and its memory: every operand and every output of an
    /// instruction each time that it runs, and neither what stays inside a fusion nor what the compiler keeps on the chip.
    pub hbm_bytes: u64,
    /// `cycles` by part of the model, in the order of a step; parts without any are left out.
    pub groups: Vec<Group>,
    /// The instructions with the most cycles, those with most first.
    pub costliest: Vec<Instruction>,
    pub collectives: Vec<Collective>,
    pub library_calls: Vec<LibraryCall>,
    /// The fusions that run, by kind: a kernel each.
    pub fusions: Vec<Fusions>,
}

/// A part of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    pub name: &'static str,
    pub cycles: u64,
}

/// An instruction that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instruction {
    pub name: String,
    pub opcode: String,
    /// For a fusion: `kLoop`, `kInput`, `kOutput` or `kCustom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fusion_kind: Option<String>,
    /// Of all times that it runs.
    pub cycles: u64,
    /// The operation that it stems from, such as `dot`.
    pub op_type: String,
    /// The layer that it belongs to, such as `gradient/bert/encoder/layer.3/attention`; empty if it belongs to none.
    pub layer: String,
}

/// All instructions of one kind that exchange data between devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Collective {
    pub opcode: String,
    pub count: usize,
    /// What each device puts in, in bytes, over all of them.
    pub bytes: u64,
    /// What each device gets out of them.
    pub result_bytes: u64,
    /// How much of that other work can go on beside: of those that the compiler starts and ends apart.
    pub beside_bytes: u64,
}

impl Collective {
    /// The share of their time in which other work can go on.
    pub fn beside(&self) -> f64 {
        self.beside_bytes as f64 / self.result_bytes.max(1) as f64
    }

    /// How long they take on a ring of `chips` that each send `bandwidth` bytes a second, and on each of which `devices` put
    /// their part in: those of a chip are as near to each other as nothing. What isn't known here counts as an all-reduce.
    pub fn ring_seconds(&self, chips: usize, devices: usize, bandwidth: f64) -> f64 {
        let others = (chips - 1) as f64 / chips as f64;
        let (operands, results) = (self.bytes as f64, self.result_bytes as f64);
        let sent = match &*self.opcode {
            // All parts but the own go past each chip.
            "all-gather" => results * others,
            "reduce-scatter" => operands * others,
            // Each part goes half of the way around, in either direction, from each device of a chip.
            "all-to-all" | "ragged-all-to-all" => {
                operands * devices as f64 * (chips as f64 / 4.0).max(others)
            }
            "collective-permute" | "collective-broadcast" => operands * devices as f64,
            _ => 2.0 * operands * others,
        };
        if chips == 1 { 0.0 } else { sent / bandwidth }
    }
}

/// Calls of one routine that is not made from HLO, such as a library's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LibraryCall {
    pub target: String,
    pub count: usize,
}

/// All fusions of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fusions {
    /// `kLoop` (element-wise), `kInput` (on a GPU: reductions and scatters), `kOutput` (on a TPU: matrix products and
    /// what follows them) or, for `kCustom`, what makes the kernel: on a GPU `__triton_gemm` and the like.
    pub kind: String,
    pub count: usize,
}

/// The parts of a step, as [`Group::name`] has them.
const GROUPS: [&str; 13] = [
    "embeddings",
    "embeddings, backward",
    "attention",
    "attention, backward",
    "feed-forward",
    "feed-forward, backward",
    "layer norm",
    "dropout",
    "head",
    "head, backward",
    "loss",
    "Adam",
    "other",
];

/// Collectives as HLO names them; a part of one that runs beside other work ends in `-start` and `-done`.
const COLLECTIVES: [&str; 7] = [
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
];

impl Analysis {
    /// Reads `module`, a serialized `HloModuleProtoWithConfig` (format `hlo_with_config`), and keeps the `most`
    /// costliest instructions.
    ///
    /// # Errors
    /// `module` is something else.
    pub fn new(module: &[u8], most: usize) -> Result<Self, ModuleError> {
        let (hlo, replicas) = decode(module)?;
        let computations = hlo.computations.iter().map(|one| (one.id, one)).collect::<Computations>();
        let entry = computations.get(&hlo.entry_computation_id).ok_or(ModuleError::NoEntry)?;

        let running = running(entry, &computations);
        let costs = running.instructions.iter();
        let costs = costs.filter(|(_, times)| *times > 0);
        let costs = costs.filter_map(|(one, times)| Instruction::new(one, *times, &computations));
        let mut costliest = costs.collect::<Vec<_>>();
        // In the program's order where they cost the same.
        costliest.sort_by_key(|one| std::cmp::Reverse(one.cycles));
        let cycles = costliest.iter().map(|one| one.cycles).sum();
        let estimated = !costliest.is_empty();
        let groups = groups(&costliest);
        costliest.truncate(most);
        Ok(Self {
            replicas,
            aliases: hlo.input_output_alias.map_or(0, |aliases| aliases.entries.len()),
            cycles: estimated.then_some(cycles),
            uncounted: running.uncounted,
            hbm_bytes: hbm_bytes(entry, &computations),
            groups,
            costliest,
            collectives: collectives(entry, &computations),
            library_calls: library_calls(&hlo.computations),
            fusions: fusions(&running),
        })
    }
}

/// The module in a serialized `HloModuleProtoWithConfig`, and the number of its replicas.
pub(super) fn decode(module: &[u8]) -> Result<(HloModuleProto, u64), ModuleError> {
    let HloModuleProtoWithConfig { hlo_module, config } = Message::decode(module)?;
    let replicas = config.map_or(1, |config| config.replica_count.max(1).unsigned_abs());
    Ok((hlo_module.ok_or(ModuleError::NoEntry)?, replicas))
}

impl Instruction {
    /// One that runs so many `times`; `None` for an instruction without an estimate.
    fn new(proto: &HloInstructionProto, times: u64, computations: &Computations<'_>) -> Option<Self> {
        let cycles = BackendConfig::of(proto).cycles()?.saturating_mul(times);
        let metadata = origin(proto, computations).cloned().unwrap_or_default();
        Some(Self {
            name: proto.name.clone(),
            opcode: proto.opcode.clone(),
            fusion_kind: (!proto.fusion_kind.is_empty()).then(|| proto.fusion_kind.clone()),
            cycles,
            op_type: metadata.op_type,
            layer: metadata.op_name,
        })
    }
}

/// The part that is read of the JSON in `backend_config`: of TPU's compiler, and of the GPU's.
#[derive(Default, serde::Deserialize)]
pub(super) struct BackendConfig {
    window_config: Option<WindowConfig>,
    fusion_backend_config: Option<FusionBackendConfig>,
    known_trip_count: Option<TripCount>,
}

impl BackendConfig {
    pub(super) fn of(instruction: &HloInstructionProto) -> Self {
        serde_json::from_slice(&instruction.backend_config).unwrap_or_default()
    }

    /// TPU: the compiler's estimate.
    pub(super) fn cycles(&self) -> Option<u64> {
        self.window_config.as_ref()?.estimated_cycles.parse().ok()
    }

    /// GPU: what makes a fusion's kernel, such as `__triton_gemm`, where that is not XLA's usual generator.
    pub(super) fn fusion_kind(self) -> Option<String> {
        Some(self.fusion_backend_config?.kind).filter(|kind| !kind.is_empty())
    }

    /// How often a loop runs, where the compiler has found out.
    pub(super) fn trips(&self) -> Option<u64> {
        self.known_trip_count.as_ref()?.n.parse().ok()
    }
}

#[derive(serde::Deserialize)]
struct TripCount {
    #[serde(default)]
    n: String,
}

#[derive(serde::Deserialize)]
struct WindowConfig {
    #[serde(default)]
    estimated_cycles: String,
}

#[derive(serde::Deserialize)]
struct FusionBackendConfig {
    #[serde(default)]
    kind: String,
}

/// Where an instruction's time comes from: of a fusion, the matrix product in it, which costs most, or else the fusion
/// itself, or else the layer that most of its operations are of.
fn origin<'a>(proto: &'a HloInstructionProto, computations: &Computations<'a>) -> Option<&'a OpMetadata> {
    fn named(proto: &HloInstructionProto) -> Option<&OpMetadata> {
        proto.metadata.as_ref().filter(|metadata| !metadata.op_name.is_empty())
    }
    if proto.opcode != "fusion" {
        return named(proto);
    }
    let inside = fused(proto, computations);
    let product =
        inside.iter().filter(|one| matches!(&*one.opcode, "dot" | "convolution")).find_map(|one| named(one));
    let most_frequent = || {
        let mut counts = BTreeMap::<&str, (usize, &OpMetadata)>::new();
        for metadata in inside.iter().filter_map(|one| named(one)) {
            counts.entry(&metadata.op_name).or_insert((0, metadata)).0 += 1;
        }
        counts.into_values().max_by_key(|(count, _)| *count).map(|(_, metadata)| metadata)
    };
    product.or_else(|| named(proto)).or_else(most_frequent)
}

/// The instructions that a fusion is made of, those of fusions in it included.
fn fused<'a>(fusion: &HloInstructionProto, computations: &Computations<'a>) -> Vec<&'a HloInstructionProto> {
    let called = fusion.called_computation_ids.iter().filter_map(|id| computations.get(id));
    let instructions = called.flat_map(|computation| &computation.instructions);
    instructions
        .flat_map(|one| if one.opcode == "fusion" { fused(one, computations) } else { vec![one] })
        .collect()
}

/// Cycles by part of the model.
fn groups(instructions: &[Instruction]) -> Vec<Group> {
    let mut groups = GROUPS.map(|name| Group { name, cycles: 0 });
    for instruction in instructions {
        let name = group(&instruction.layer);
        groups
            .iter_mut()
            .filter(|group| group.name == name)
            .for_each(|group| group.cycles += instruction.cycles);
    }
    groups.into_iter().filter(|group| group.cycles > 0).collect()
}

/// The part of the model that `layer`, a path of scopes, is in.
fn group(layer: &str) -> &'static str {
    let (backward, path) = layer.strip_prefix("gradient/").map_or((false, layer), |path| (true, path));
    let scopes = path.split('/').collect::<Vec<_>>();
    let either = |forward, gradient| if backward { gradient } else { forward };
    let is_in = |scope| scopes.contains(&scope);
    match scopes[0] {
        "adam" => "Adam",
        "loss" => "loss",
        _ if is_in("dropout") => "dropout",
        _ if is_in("layer_norm") => "layer norm",
        "head" => either("head", "head, backward"),
        _ if is_in("embeddings") => either("embeddings", "embeddings, backward"),
        _ if is_in("attention") => either("attention", "attention, backward"),
        _ if is_in("feed_forward") => either("feed-forward", "feed-forward, backward"),
        _ => "other",
    }
}

/// Whether a computation only goes on with a collective that another one has started, or ends it. TPU's compiler fuses a
/// collective with several computations that run one after another: the first has the call `AsyncCollectiveStart`, the last
/// `AsyncCollectiveDone`, and those between are called so.
fn goes_on(computation: &HloComputationProto) -> bool {
    let ends = |one: &HloInstructionProto| one.custom_call_target == "AsyncCollectiveDone";
    computation.name.starts_with("async_collective_fusion") || computation.instructions.iter().any(ends)
}

/// The computations that start a collective which goes on beside others, or are started so as a whole.
fn started(computations: &Computations<'_>) -> HashSet<i64> {
    let mut found = HashSet::new();
    for computation in computations.values() {
        for one in &computation.instructions {
            if one.custom_call_target == "AsyncCollectiveStart" {
                found.insert(computation.id);
            }
            if one.opcode == "async-start" {
                found.extend(&one.called_computation_ids);
            }
        }
    }
    found
}

/// The collectives that run when `entry` does, by opcode: each is counted in one computation, also where it is fused with other
/// work or wrapped to run beside it, and in a loop as often as that runs. `-start` stands for a pair.
fn collectives(entry: &HloComputationProto, computations: &Computations<'_>) -> Vec<Collective> {
    let mut found = BTreeMap::<&str, (usize, [u64; 3])>::new();
    let (times, started) = (times(entry, computations), started(computations));
    for (computation, times) in times.iter().filter_map(|(id, times)| Some((computations.get(id)?, *times))) {
        if goes_on(computation) {
            continue;
        }
        let instructions = &computation.instructions;
        let shapes = instructions.iter().map(|one| (one.id, one.shape.as_ref())).collect::<HashMap<_, _>>();
        for instruction in instructions {
            let opcode = instruction.opcode.strip_suffix("-start").unwrap_or(&instruction.opcode);
            if !COLLECTIVES.contains(&opcode) {
                continue;
            }
            let operands = instruction.operand_ids.iter().filter_map(|id| *shapes.get(id)?);
            let bytes = operands.map(byte_size).sum::<u64>();
            let result = instruction.shape.as_ref().map_or(0, byte_size);
            // The shape of `-start` is a pair of operands and results.
            let is_pair = instruction.opcode.ends_with("-start") && opcode != "all-reduce";
            let all = found.entry(opcode).or_default();
            let result = if is_pair { result.saturating_sub(bytes) } else { result };
            let is_beside = instruction.opcode.ends_with("-start") || started.contains(&computation.id);
            all.0 = all.0.saturating_add(times as usize);
            for (sum, bytes) in all.1.iter_mut().zip([bytes, result, if is_beside { result } else { 0 }]) {
                *sum = sum.saturating_add(bytes.saturating_mul(times));
            }
        }
    }
    let collective = |(opcode, (count, sums)): (&str, (usize, [u64; 3]))| Collective {
        opcode: opcode.to_owned(),
        count,
        bytes: sums[0],
        result_bytes: sums[1],
        beside_bytes: sums[2],
    };
    found.into_iter().map(collective).collect()
}

fn library_calls(computations: &[HloComputationProto]) -> Vec<LibraryCall> {
    let mut calls = BTreeMap::<String, usize>::new();
    let instructions = computations.iter().flat_map(|computation| &computation.instructions);
    for call in instructions.filter(|one| one.opcode == "custom-call") {
        *calls.entry(call.custom_call_target.clone()).or_default() += 1;
    }
    calls.into_iter().map(|(target, count)| LibraryCall { target, count }).collect()
}

fn fusions(running: &Running<'_>) -> Vec<Fusions> {
    let mut counts = BTreeMap::<String, usize>::new();
    for (fusion, _) in running.instructions.iter().filter(|(one, _)| one.opcode == "fusion") {
        let kind = BackendConfig::of(fusion).fusion_kind().unwrap_or_else(|| fusion.fusion_kind.clone());
        *counts.entry(kind).or_default() += 1;
    }
    let mut fusions = counts.into_iter().map(|(kind, count)| Fusions { kind, count }).collect::<Vec<_>>();
    fusions.sort_by_key(|fusions| std::cmp::Reverse(fusions.count));
    fusions
}

#[cfg(test)]
mod tests;
