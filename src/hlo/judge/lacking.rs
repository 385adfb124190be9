//! Operations that XLA's builder lacks, as far as the crate shows it: against the verifier of XLA, which infers their shapes
//! when it compiles, and against what they give by definition.

use std::process::Command;

use prost::Message;
use xla::{HloModuleProto, XlaComputation};

use super::bench::Bench;
use super::builder::{Builder, Refusal};
use super::values::{Array, INTEGERS, TYPES};
use super::{CLIENT, for_cpu, ours, parsed, run, same_module, same_results};
use crate::hlo::program::Program;
use crate::hlo::{Binary, Graph, Op};
use crate::proto;
use crate::shape::{ElementType, Shape};

/// That XLA reads our text as our module, and gives what is expected.
fn judge(bench: &Bench<'_>, expected: &[Array]) {
    let program = bench.program();
    let module = ours(&program);
    same_module(&module, &parsed(&program), &program);
    same_results(&run(&module, &program, &bench.values), expected, &program);
}

/// That XLA refuses the single operation of a program, if it states another shape.
fn is_verified(op: &Op, inputs: &[Shape]) {
    let graph = Graph::new();
    let inputs = inputs.iter().enumerate().map(|(i, shape)| graph.parameter(format!("p{i}"), shape.clone()));
    let inputs = inputs.collect::<Vec<_>>();
    let output = graph.insert(op.clone(), &inputs);
    let program = Program::new("stated", inputs, vec![output]);
    let bytes = program.to_hlo_proto();
    let compiled = |module: &proto::HloModuleProto| {
        let module = HloModuleProto::parse_proto(&module.encode_to_vec(), true);
        module.and_then(|module| CLIENT.compile(&XlaComputation::from_proto(&module))).map(drop)
    };
    let module = proto::HloModuleProto::decode(&bytes[..]).unwrap();
    compiled(&module).unwrap_or_else(|error| panic!("{error}\n{}", program.to_text()));
    let other_type: fn(&mut proto::ShapeProto) = |shape| shape.element_type = proto::primitive_type::S16;
    // Bits of one type are those of any other.
    let is_of_any_type = matches!(op, Op::BitcastConvert(_));
    for change in [wider, other_type].into_iter().take(if is_of_any_type { 1 } else { 2 }) {
        let mut module = module.clone();
        let stated = module.computations.iter_mut().flat_map(|computation| &mut computation.instructions);
        let stated = stated.filter(|one| one.opcode == op.name() || one.opcode == "tuple");
        stated.for_each(|one| change_shape(one.shape.as_mut().unwrap(), change));
        let interfaces = module.computations.iter_mut().filter(|one| one.name == "main");
        let interfaces = interfaces.map(|one| &mut one.program_shape).chain([&mut module.host_program_shape]);
        interfaces.flatten().for_each(|one| change_shape(one.result.as_mut().unwrap(), change));
        let error = compiled(&module).expect_err(&format!("another shape of {op:?} is taken")).to_string();
        assert!(error.contains(op.name()) || error.contains("shape"), "{error}");
    }
}

fn wider(shape: &mut proto::ShapeProto) {
    shape.dimensions.insert(0, 7);
    shape.is_dynamic_dimension.push(false);
    let order = (0..shape.dimensions.len() as i64).rev().collect();
    shape.layout.as_mut().unwrap().minor_to_major = order;
}

/// Of an array, or of the single one in a tuple.
fn change_shape(shape: &mut proto::ShapeProto, change: fn(&mut proto::ShapeProto)) {
    match shape.tuple_shapes.first_mut() {
        Some(part) => change(part),
        None => change(shape),
    }
}

#[test]
fn they_are_lacking() {
    let builder = Builder::new("lacking");
    let shape = xla::Shape::array::<u32>(vec![2]);
    let a = builder.parameter("a", &shape).unwrap();
    for op in [
        Op::ReplicaId,
        Op::BitcastConvert(ElementType::F32),
        Op::AllGather { replicas: 1 },
        Op::ReduceScatter { replicas: 1 },
        Op::AllToAll { replicas: 1 },
        Op::Binary(Binary::ShiftLeft),
        Op::Binary(Binary::ShiftRightLogical),
    ] {
        assert!(
            matches!(builder.apply(&op, &[a.clone(), a.clone()]), Err(Refusal::Lacks(name)) if name == op.name())
        );
    }
}

#[test]
fn shifts() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    let mut expected = vec![];
    for element_type in INTEGERS {
        for dims in [&[][..], &[60], &[3, 0, 2], &[2, 3, 1, 2]] {
            let (a, by) = (bench.input(*element_type, dims), bench.input(*element_type, dims));
            let shape = Shape::new(*element_type, dims);
            let width = 8 * element_type.size() as u64;
            let [value, places] =
                [bench.values.len() - 2, bench.values.len() - 1].map(|i| bench.values[i].clone());
            let all = u64::MAX >> (64 - width);
            let shifted = |shift: fn(u64, u64) -> u64| {
                let one = |i| match places.bits(i) {
                    by if by < width => shift(value.bits(i), by) & all,
                    _ => 0,
                };
                Array::of_bits(&shape, one)
            };
            expected.extend([shifted(|a, by| a << by), shifted(|a, by| a >> by)]);
            for op in [Binary::ShiftLeft, Binary::ShiftRightLogical] {
                bench.case(Op::Binary(op), &[a, by]);
                is_verified(&Op::Binary(op), &[shape.clone(), shape.clone()]);
            }
        }
    }
    judge(&bench, &expected);
}

#[test]
fn bitcasts() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    let mut expected = vec![];
    let numbers = TYPES.into_iter().filter(|of| *of != ElementType::Pred);
    for (from, to) in numbers.clone().flat_map(|from| numbers.clone().map(move |to| (from, to))) {
        for dims in [&[][..], &[4], &[0, 2], &[3, 1, 2]] {
            let mut dims = dims.to_vec();
            if to.size() > from.size() {
                dims.push(to.size() / from.size());
            }
            let a = bench.input(from, &dims);
            bench.case(Op::BitcastConvert(to), &[a]);
            let bytes = bench.values.last().unwrap().bytes.clone();
            expected.push(Array { shape: bench.outputs.last().unwrap().shape(), bytes });
        }
        let dims = if to.size() > from.size() { vec![3, to.size() / from.size()] } else { vec![3] };
        is_verified(&Op::BitcastConvert(to), &[Shape::new(from, dims)]);
    }
    judge(&bench, &expected);
}

#[test]
fn of_one_replica() {
    let graph = Graph::new();
    let mut bench = Bench::new(&graph);
    bench.case(Op::ReplicaId, &[]);
    let mut expected = vec![Array::of(&Shape::scalar(ElementType::U32), &[0.0])];
    for element_type in TYPES {
        for dims in [&[3][..], &[2, 3], &[2, 1, 3], &[2, 3, 1, 2]] {
            let shape = Shape::new(element_type, dims);
            // A sum with the zero that it starts from has no negative zero.
            let value = Array::mild(&mut bench.random, &shape);
            let a = bench.given(value);
            let ops = [
                Op::AllGather { replicas: 1 },
                Op::ReduceScatter { replicas: 1 },
                Op::AllToAll { replicas: 1 },
            ];
            for op in ops.into_iter().filter(|op| op.shape(&[&shape]).is_ok()) {
                bench.case(op, &[a]);
                expected.push(bench.values.last().unwrap().clone());
            }
        }
    }
    // XLA ends the process where a replica-id has another shape.
    judge(&bench, &expected);
}

/// Replicas of this test, whose devices XLA has only where it was told so at its start.
const REPLICAS: usize = 4;

#[test]
fn of_several_replicas() {
    if CLIENT.device_count() < REPLICAS {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["hlo::judge::lacking::of_several_replicas", "--exact"]);
        assert!(std::env::var_os("XLA_FLAGS").is_none(), "XLA shows other devices than it was told");
        again.env("XLA_FLAGS", format!("--xla_force_host_platform_device_count={REPLICAS}"));
        let output = again.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let graph = Graph::new();
    let a = graph.parameter("a", Shape::new(ElementType::S32, [REPLICAS, 3]));
    let outputs = [
        graph.replica_id(),
        a.all_gather(REPLICAS),
        a.reduce_scatter_sum(REPLICAS),
        a.all_reduce_sum(),
        a.all_to_all(REPLICAS),
    ];
    let program = Program::new("replicas", vec![a], outputs.to_vec());
    let module = ours(&program);
    same_module(&module, &parsed(&program), &program);
    let executable = CLIENT.compile_replicated(&XlaComputation::from_proto(&module), REPLICAS).unwrap();
    let element = |replica: usize, i: usize| (replica * 100 + i * i) as f64;
    let size = REPLICAS * 3;
    let own = |replica: usize| (0..size).map(|i| element(replica, i)).collect::<Vec<_>>();
    let total =
        (0..size).map(|i| (0..REPLICAS).map(|replica| element(replica, i)).sum()).collect::<Vec<f64>>();
    let devices = CLIENT.addressable_devices();
    // A literal is still read after the call that copies it.
    let literals = (0..REPLICAS).map(|replica| Array::of(&a.shape(), &own(replica)).literal());
    let literals = literals.collect::<Vec<_>>();
    let given = literals.iter().zip(&devices);
    let given =
        given.map(|(literal, device)| CLIENT.buffer_from_host_literal(Some(device), literal).unwrap());
    let given = given.collect::<Vec<_>>();
    let found =
        executable.execute_replicated_b(&given.iter().map(|one| vec![one]).collect::<Vec<_>>()).unwrap();
    for (replica, found) in found.iter().enumerate() {
        let values = [
            vec![replica as f64],
            (0..REPLICAS).flat_map(own).collect(),
            total[replica * 3..][..3].to_vec(),
            total.clone(),
            (0..REPLICAS).flat_map(|other| own(other)[replica * 3..][..3].to_vec()).collect(),
        ];
        let expected =
            values.iter().zip(program.output_shapes()).map(|(values, shape)| Array::of(&shape, values));
        let found = found.iter().map(|buffer| buffer.to_literal_sync().unwrap()).zip(program.output_shapes());
        let found = found.map(|(literal, shape)| Array::read(&literal, &shape)).collect::<Vec<_>>();
        same_results(&found, &expected.collect::<Vec<_>>(), &program);
    }
    let shape = a.shape();
    is_verified(&Op::AllGather { replicas: 1 }, std::slice::from_ref(&shape));
    is_verified(&Op::ReduceScatter { replicas: 1 }, std::slice::from_ref(&shape));
    is_verified(&Op::AllToAll { replicas: 1 }, &[shape]);
}

/// What keeps a compiler from computing values again, or at once: values pass through, on the CPU in a way of its own.
#[test]
fn fences() {
    for element_type in [ElementType::F32, ElementType::Bf16, ElementType::F16] {
        let graph = Graph::new();
        let mut bench = Bench::new(&graph);
        let mut expected = vec![];
        for dims in [&[][..], &[5], &[0, 2], &[3, 1, 2]] {
            let a = bench.input(element_type, dims);
            let value = bench.values[bench.values.len() - 1].clone();
            let other = bench.any(&[2, 3]);
            bench.case(Op::Barrier, &[a]);
            bench.case(Op::After, &[a, other]);
            expected.extend([value.clone(), value]);
        }
        judge(&bench, &expected);
        let program = bench.program();
        same_results(&run(&for_cpu(&program), &program, &bench.values), &expected, &program);
    }
}
