//! Against modules made by hand in the form that the plugins return, and against a step as it is built.

use super::*;
use crate::hlo::{Graph, Program, Scan};
use crate::model::{ClassifierConfig, HeadConfig, Size};
use crate::proto::{
    AliasEntryProto, HloInputOutputAliasProto, HloModuleConfigProto, ShapeProto, primitive_type,
};
use crate::shape::{ElementType, Shape};
use crate::step::{StepConfig, train_step};

fn instruction(id: i64, opcode: &str, operands: &[i64]) -> HloInstructionProto {
    HloInstructionProto {
        id,
        name: format!("{opcode}.{id}"),
        opcode: opcode.into(),
        operand_ids: operands.into(),
        ..Default::default()
    }
}

/// As TPU's compiler writes it, cut to what is read and a little more.
fn with_cycles(mut one: HloInstructionProto, cycles: u64) -> HloInstructionProto {
    let config = format!(
        r#"{{"flag_configs":[],"window_config":{{"kernel_window_bounds":[],"estimated_cycles":"{cycles}"}}}}"#
    );
    one.backend_config = config.into_bytes();
    one
}

fn in_layer(mut one: HloInstructionProto, op_type: &str, layer: &str) -> HloInstructionProto {
    one.metadata = Some(OpMetadata { op_type: op_type.into(), op_name: layer.into() });
    one
}

fn calling(mut one: HloInstructionProto, computation: i64) -> HloInstructionProto {
    one.called_computation_ids = vec![computation];
    one.fusion_kind = "kLoop".into();
    one
}

fn shaped(mut one: HloInstructionProto, shapes: &[(i32, &[i64])]) -> HloInstructionProto {
    let mut arrays = shapes.iter().map(|(element_type, dims)| ShapeProto {
        element_type: *element_type,
        dimensions: dims.to_vec(),
        ..Default::default()
    });
    one.shape = match shapes {
        [_] => arrays.next(),
        _ => Some(ShapeProto {
            element_type: primitive_type::TUPLE,
            tuple_shapes: arrays.collect(),
            ..Default::default()
        }),
    };
    one
}

fn computation(id: i64, instructions: Vec<HloInstructionProto>) -> HloComputationProto {
    HloComputationProto { id, instructions, ..Default::default() }
}

fn analyse(hlo: HloModuleProto, replica_count: i64, most: usize) -> Analysis {
    let config = Some(HloModuleConfigProto { replica_count });
    Analysis::new(&HloModuleProtoWithConfig { hlo_module: Some(hlo), config }.encode_to_vec(), most).unwrap()
}

fn module(computations: Vec<HloComputationProto>) -> HloModuleProto {
    HloModuleProto { computations, entry_computation_id: 1, ..Default::default() }
}

/// A weight's gradient that is fused with its update; a fusion without metadata; one with; a plain copy; a loop.
fn entry() -> Vec<HloComputationProto> {
    let attention = "bert/encoder/layer.3/attention";
    let product = computation(
        2,
        vec![
            in_layer(instruction(1, "convolution", &[]), "dot", "gradient/bert/encoder/layer.0/feed_forward"),
            in_layer(instruction(2, "subtract", &[1]), "subtract", "adam/weight"),
        ],
    );
    let inner = computation(
        3,
        vec![
            in_layer(instruction(1, "add", &[]), "add", "loss"),
            in_layer(instruction(2, "exponential", &[]), "exponential", attention),
        ],
    );
    let nameless = computation(
        4,
        vec![
            calling(instruction(1, "fusion", &[]), 3),
            in_layer(instruction(2, "divide", &[1]), "divide", attention),
        ],
    );
    let body = computation(5, vec![with_cycles(instruction(1, "add", &[]), 1_000_000)]);
    let update = in_layer(calling(instruction(2, "fusion", &[]), 2), "subtract", "adam/weight");
    let entry = computation(
        1,
        vec![
            instruction(1, "parameter", &[]),
            with_cycles(update, 500),
            with_cycles(calling(instruction(3, "fusion", &[]), 4), 70),
            with_cycles(in_layer(instruction(4, "broadcast", &[]), "broadcast", "adam/bias"), 600),
            with_cycles(instruction(5, "copy", &[]), 8),
            calling(instruction(6, "while", &[]), 5),
        ],
    );
    vec![product, inner, nameless, body, entry]
}

#[test]
fn cycles_are_those_of_the_entry_computation() {
    let analysis = analyse(module(entry()), 8, 2);
    assert_eq!((analysis.cycles, analysis.uncounted, analysis.replicas), (Some(500 + 70 + 600 + 8), 1, 8));
    let groups = analysis.groups.iter().map(|group| (group.name, group.cycles)).collect::<Vec<_>>();
    let expected = [("attention", 70), ("feed-forward, backward", 500), ("Adam", 600), ("other", 8)];
    assert_eq!(groups, expected);
    let [first, second] = &analysis.costliest[..] else { panic!("two were asked for") };
    assert_eq!((&*first.name, first.cycles, &first.fusion_kind), ("broadcast.4", 600, &None));
    assert_eq!((&*second.name, &*second.op_type), ("fusion.2", "dot"));
    assert_eq!(second.fusion_kind.as_deref(), Some("kLoop"));

    let none = analyse(module(vec![computation(1, vec![instruction(1, "add", &[])])]), 1, 2);
    assert_eq!((none.cycles, none.groups, none.costliest), (None, vec![], vec![]));
}

/// A loop of 3 trips around one of 7, as the graph builder writes them, with an estimate for what the inner one does.
#[test]
fn what_a_loop_runs_counts_once_a_trip() {
    let graph = Graph::new();
    let x = graph.parameter("x", Shape::new(ElementType::F32, [4]));
    let over = Scan { trips: 3, carried: &[x], ..Scan::default() };
    let (left, _) = graph.scan(over, |graph, trip| {
        let over = Scan { trips: 7, carried: &trip.carried, ..Scan::default() };
        graph.scan(over, |_, trip| (vec![trip.carried[0].tanh()], vec![]))
    });
    let program = Program::new("loops", vec![x], left);
    let mut hlo = HloModuleProto::decode(&*program.to_hlo_proto()).unwrap();
    for one in hlo.computations.iter_mut().flat_map(|computation| &mut computation.instructions) {
        if one.opcode == "tanh" {
            *one = with_cycles(one.clone(), 10);
        }
    }
    let analysis = analyse(hlo.clone(), 1, 1);
    assert_eq!((analysis.cycles, analysis.uncounted), (Some(3 * 7 * 10), 0));
    assert_eq!((&*analysis.costliest[0].opcode, analysis.costliest[0].cycles), ("tanh", 210));
    // What the outer body reads and writes but for the loop in it (counts of 4 bytes: a number and the next), and what each
    // condition reads and writes, 2 counts and a truth; the inner body reads and writes 4 numbers, too.
    let (body, condition) = (3 * 4, 4 + 4 + 1);
    assert_eq!(analysis.hbm_bytes, 3 * (body + condition + 7 * (body + condition + 32)));

    // Where the compiler says so itself, that counts.
    for one in hlo.computations.iter_mut().flat_map(|computation| &mut computation.instructions) {
        if one.opcode == "while" {
            one.backend_config = br#"{"known_trip_count":{"n":"5"}}"#.to_vec();
        }
    }
    assert_eq!(analyse(hlo, 1, 1).cycles, Some(5 * 5 * 10));
}

#[test]
fn a_pair_of_start_and_done_is_one_collective() {
    let (f32, bf16) = (primitive_type::F32, primitive_type::BF16);
    let wrapped = computation(
        2,
        vec![
            shaped(instruction(1, "parameter", &[]), &[(bf16, &[16, 4])]),
            instruction(2, "reduce-scatter", &[1]),
        ],
    );
    let entry = computation(
        1,
        vec![
            shaped(instruction(1, "parameter", &[]), &[(f32, &[3, 5])]),
            shaped(instruction(2, "parameter", &[]), &[(f32, &[]), (bf16, &[7])]),
            instruction(3, "all-reduce-start", &[1, 2]),
            instruction(4, "all-reduce-done", &[3]),
            instruction(5, "all-reduce", &[1]),
            calling(instruction(6, "async-start", &[1]), 2),
            calling(instruction(7, "async-done", &[6]), 2),
        ],
    );
    let found = analyse(module(vec![wrapped, entry]), 8, 0).collectives;
    assert!(found.iter().all(|one| one.beside() < 1.0 || one.opcode == "reduce-scatter"));
    let found = found.iter().map(|one| (&*one.opcode, one.count, one.bytes)).collect::<Vec<_>>();
    assert_eq!(found, [("all-reduce", 2, 60 + 4 + 14 + 60), ("reduce-scatter", 1, 128)]);
}

/// As libtpu writes a gather that goes on while a product is computed: one that is started, and three that stand for it.
#[test]
fn a_collective_beside_other_work_counts_once() {
    let f32 = primitive_type::F32;
    let part = |id: i64, name: &str, target: &str| {
        let call =
            HloInstructionProto { custom_call_target: target.into(), ..instruction(3, "custom-call", &[2]) };
        let instructions = vec![
            shaped(instruction(1, "parameter", &[]), &[(f32, &[4])]),
            shaped(instruction(2, "all-gather", &[1]), &[(f32, &[32])]),
            call,
        ];
        HloComputationProto { name: name.into(), ..computation(id, instructions) }
    };
    let computations = vec![
        part(2, "fused_computation.1", "AsyncCollectiveStart"),
        part(3, "async_collective_fusion.1", "another"),
        part(4, "async_collective_fusion.2", "another"),
        part(5, "fused_computation.2", "AsyncCollectiveDone"),
        computation(
            1,
            (2..=5).map(|called| calling(instruction(10 + called, "fusion", &[]), called)).collect(),
        ),
    ];
    let found = analyse(module(computations), 8, 0).collectives;
    let expected =
        Collective { opcode: "all-gather".into(), count: 1, bytes: 16, result_bytes: 128, beside_bytes: 128 };
    assert_eq!(found, [expected]);
}

#[test]
fn collectives_in_a_loop_count_as_often_as_it_runs() {
    let f32 = primitive_type::F32;
    let body = vec![
        shaped(instruction(1, "parameter", &[]), &[(f32, &[4])]),
        shaped(instruction(2, "all-reduce", &[1]), &[(f32, &[4])]),
    ];
    let turns = HloInstructionProto {
        called_computation_ids: vec![2, 3],
        backend_config: br#"{"known_trip_count":{"n":"5"}}"#.to_vec(),
        ..instruction(4, "while", &[])
    };
    let computations = vec![computation(2, body), computation(3, vec![]), computation(1, vec![turns])];
    let found = analyse(module(computations), 8, 0).collectives;
    let expected =
        Collective { opcode: "all-reduce".into(), count: 5, bytes: 80, result_bytes: 80, beside_bytes: 0 };
    assert_eq!(found, [expected]);
}

/// The recipe's gradients on a v3-8, 4 chips of 656 Gbit/s: an all-reduce sends each byte twice past all chips but one; each of
/// its halves, which are a reduce-scatter and an all-gather, once. Parts that each device has for each other travel from a
/// chip once for each of its devices, over one link on average.
#[test]
fn collectives_take_their_time_on_a_ring() {
    let bandwidth = 656e9 / 8.0;
    let seconds = |opcode: &str, bytes, result_bytes, chips| {
        let collective = Collective { opcode: opcode.into(), count: 1, bytes, result_bytes, beside_bytes: 0 };
        collective.ring_seconds(chips, 2, bandwidth)
    };
    let (all, part) = (930_000_000, 116_250_000);
    let reduced = seconds("all-reduce", all, all, 4);
    assert!((reduced - 2.0 * 0.75 * 930e6 / 82e9).abs() < 1e-9, "{reduced}");
    assert_eq!(seconds("reduce-scatter", all, part, 4) + seconds("all-gather", part, all, 4), reduced);
    assert!((seconds("all-to-all", part, part, 4) - 2.0 * 116.25e6 / 82e9).abs() < 1e-9);
    assert_eq!(seconds("all-reduce", all, all, 1), 0.0, "the cores of one chip");
}

#[test]
fn library_calls_are_counted_by_target() {
    let custom = |id| {
        let target = "__cublas$gemm".into();
        HloInstructionProto { custom_call_target: target, ..instruction(id, "custom-call", &[]) }
    };
    let plain = with_cycles(instruction(4, "fusion", &[]), 5);
    let entry = computation(1, vec![custom(1), custom(2), plain]);
    let calls = analyse(module(vec![entry]), 1, 0).library_calls;
    let calls = calls.iter().map(|call| (&*call.target, call.count)).collect::<Vec<_>>();
    assert_eq!(calls, [("__cublas$gemm", 2)]);
}

/// A GPU's command buffers are calls.
#[test]
fn fusions_are_counted_by_kind_where_they_run() {
    let fusion = |id, kind: &str, generator: &str| HloInstructionProto {
        fusion_kind: kind.into(),
        called_computation_ids: vec![2],
        backend_config: format!(r#"{{"fusion_backend_config":{{"kind":"{generator}"}}}}"#).into_bytes(),
        ..instruction(id, "fusion", &[])
    };
    let nested = computation(2, vec![fusion(1, "kInput", "")]);
    let buffer = computation(3, vec![fusion(1, "kLoop", ""), fusion(2, "kCustom", "__triton_gemm")]);
    let entry = vec![
        fusion(1, "kLoop", ""),
        HloInstructionProto { called_computation_ids: vec![3], ..instruction(2, "call", &[]) },
    ];
    let fusions = analyse(module(vec![nested, buffer, computation(1, entry)]), 1, 0).fusions;
    let fusions = fusions.iter().map(|one| (&*one.kind, one.count)).collect::<Vec<_>>();
    assert_eq!(fusions, [("kLoop", 2), ("__triton_gemm", 1)]);
}

/// Before any compiler: one all-reduce per trained weight, of the number of examples and of the three metrics; every
/// weight, its moments and the step count in place; and each scope of the model in a group.
#[test]
fn a_train_step_has_what_it_was_built_with() {
    let size = Size::Tiny;
    let (bert, head) = (size.config(), HeadConfig::default());
    let pooler = bert.hidden_size * (bert.hidden_size + 1);
    let model = ClassifierConfig {
        bert,
        head,
        max_length: size.max_length(),
        mask: false,
        zero_padding: false,
        freeze_padding: false,
    };
    let (trained, values) = (model.weights().len() - 2, model.num_parameters() - pooler);
    let graph = Graph::new();
    let step = train_step(&graph, &StepConfig::new(model, 2, 8));
    let hlo = HloModuleProto::decode(&*step.program.to_hlo_proto()).unwrap();

    let scopes = hlo.computations.iter().flat_map(|computation| &computation.instructions);
    let scopes =
        scopes.filter_map(|one| Some(&*one.metadata.as_ref()?.op_name)).filter(|name| !name.is_empty());
    let mut seen = scopes.map(group).collect::<Vec<_>>();
    seen.sort_by_key(|name| GROUPS.iter().position(|known| known == name));
    seen.dedup();
    assert_eq!(seen, GROUPS[..GROUPS.len() - 1]);

    let analysis = analyse(hlo, 8, 0);
    assert_eq!(analysis.aliases, 3 * trained + 1);
    let bytes = 4 * (values + 1 + 3) as u64;
    let expected = Collective {
        opcode: "all-reduce".into(),
        count: trained + 2,
        bytes,
        result_bytes: bytes,
        beside_bytes: 0,
    };
    assert_eq!(analysis.collectives, [expected]);
}

#[test]
fn aliases_are_counted_and_other_bytes_refused() {
    let alias = AliasEntryProto { output_shape_index: vec![0], ..Default::default() };
    let input_output_alias = Some(HloInputOutputAliasProto { entries: vec![alias; 3] });
    let hlo = HloModuleProto { input_output_alias, ..module(vec![computation(1, vec![])]) };
    assert_eq!(analyse(hlo, 0, 0).aliases, 3);
    assert!(matches!(Analysis::new(b"HloModule m", 0), Err(ModuleError::Decode(_))));
    assert!(matches!(Analysis::new(b"", 0), Err(ModuleError::NoEntry)));
}
