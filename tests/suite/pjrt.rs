//! The PJRT layer against the real CPU plugin, with programs written in StableHLO: independent of the graph builder.

use crate::common::{cpu_client, cpu_plugin};
use bert_xla::pjrt::{
    Argument, Backend, Buffer, Client, CompileOptions, Element, Error, FlagValue, LoadedExecutable, Module,
    ModuleFormat, Plugin, Value,
};
use bert_xla::plan::Analysis;
use bert_xla::shape::{ElementType, Shape};
use half::{bf16, f16};

const DOUBLE_AND_SUM: &str = r#"
module @double_and_sum {
  func.func public @main(%x: tensor<2x3xf32>, %y: tensor<2x3xf32>) -> (tensor<2x3xf32>, tensor<3x2xf32>) {
    %double = stablehlo.add %x, %x : tensor<2x3xf32>
    %sum = stablehlo.add %x, %y : tensor<2x3xf32>
    %transposed = stablehlo.transpose %sum, dims = [1, 0] : (tensor<2x3xf32>) -> tensor<3x2xf32>
    return %double, %transposed : tensor<2x3xf32>, tensor<3x2xf32>
  }
}"#;

/// Adds 1 to its argument in place: the output takes over the argument's memory.
const INCREMENT: &str = r#"
module @increment {
  func.func public @main(%x: tensor<1048576xf32> {tf.aliasing_output = 0 : i32}) -> tensor<1048576xf32> {
    %one = stablehlo.constant dense<1.0> : tensor<1048576xf32>
    %y = stablehlo.add %x, %one : tensor<1048576xf32>
    return %y : tensor<1048576xf32>
  }
}"#;

fn all_reduce(replicas: usize) -> String {
    let group: Vec<String> = (0..replicas).map(|replica| replica.to_string()).collect();
    let group = group.join(", ");
    format!(
        r#"
module @sum_over_replicas attributes {{mhlo.num_replicas = {replicas} : i32}} {{
  func.func public @main(%x: tensor<2xf32>) -> (tensor<2xf32>, tensor<2xf32>) {{
    %sum = "stablehlo.all_reduce"(%x) ({{
      ^bb0(%a: tensor<f32>, %b: tensor<f32>):
        %c = stablehlo.add %a, %b : tensor<f32>
        stablehlo.return %c : tensor<f32>
    }}) {{replica_groups = dense<[[{group}]]> : tensor<1x{replicas}xi64>}} : (tensor<2xf32>) -> tensor<2xf32>
    %rest = stablehlo.subtract %sum, %x : tensor<2xf32>
    return %sum, %rest : tensor<2xf32>, tensor<2xf32>
  }}
}}"#
    )
}

fn f32s(dims: &[usize]) -> Shape {
    Shape::new(ElementType::F32, dims)
}

fn compile(client: &Client, code: &str, parameters: &[Shape], replicas: usize) -> LoadedExecutable {
    let program = Module { format: ModuleFormat::Mlir, code: code.as_bytes(), parameters };
    client.compile(&program, &CompileOptions::replicas(replicas)).expect("compile")
}

fn upload(client: &Client, data: &[f32], dims: &[usize]) -> Buffer {
    client.buffer_from_host(data, dims, client.addressable_device(0).unwrap()).expect("upload")
}

fn message<T>(result: Result<T, Error>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn runs_a_program_and_reads_it_back_in_row_major_order() {
    let client = cpu_client(1);
    assert_eq!(client.platform_name().unwrap(), "cpu");
    assert_eq!(client.plugin().api_version().0, 0);
    assert_eq!(client.devices().len(), 1);
    let program = compile(&client, DOUBLE_AND_SUM, &[f32s(&[2, 3]), f32s(&[2, 3])], 1);
    assert_eq!(program.device_ids(), [client.addressable_device(0).unwrap().id()]);
    let shapes: Vec<String> = program.executable().outputs().iter().map(|shape| shape.to_string()).collect();
    assert_eq!(shapes, ["f32[2,3]", "f32[3,2]"]);

    let x = upload(&client, &[1., 2., 3., 4., 5., 6.], &[2, 3]);
    let y = upload(&client, &[10., 20., 30., 40., 50., 60.], &[2, 3]);
    let outputs = program.execute(vec![vec![Argument::Borrow(&x), Argument::Borrow(&y)]]).unwrap();
    assert_eq!(outputs[0][0].to_host::<f32>().unwrap(), [2., 4., 6., 8., 10., 12.]);
    assert_eq!(outputs[0][1].to_host::<f32>().unwrap(), [11., 44., 22., 55., 33., 66.]);
    assert_eq!(outputs[0][1].shape(), &f32s(&[3, 2]));
    assert_eq!(outputs[0][1].size_on_device().unwrap(), 24);
    assert_eq!(outputs[0][1].device().unwrap().id(), program.device_ids()[0]);
    // Borrowed arguments stay usable.
    assert_eq!(x.to_host::<f32>().unwrap(), [1., 2., 3., 4., 5., 6.]);

    let memory = program.executable().memory_stats().unwrap();
    assert_eq!((memory.arguments, memory.aliased), (48, 0));
    match program.executable().cost_analysis().unwrap().get("flops") {
        Some(Value::Float(flops)) => assert_eq!(*flops, 12.0, "one addition for each element, twice"),
        other => panic!("flops: {other:?}"),
    }
}

/// Reads back elements of the same type as `_like`.
fn read_as<T: Element>(buffer: &Buffer, _like: &[T]) -> Vec<T> {
    buffer.read().unwrap().wait().unwrap()
}

#[test]
fn every_element_type_survives_the_round_trip() {
    let client = cpu_client(1);
    let device = client.addressable_device(0).unwrap();
    macro_rules! check {
        ($($values:expr),*) => {$(
            let values = $values;
            let buffer = client.buffer_from_host(&values, &[values.len()], device).unwrap();
            assert_eq!(read_as(&buffer, &values), values);
            let buffer = client.buffer_from_shared(values.to_vec(), &[1, values.len()], device).unwrap();
            assert_eq!(read_as(&buffer, &values), values);
        )*};
    }
    check!([1u8, 255], [-1i32, i32::MAX], [i64::MIN, 7], [u32::MAX, 0], [u64::MAX, 1]);
    check!([1.5f32, -0.0], [f64::MIN_POSITIVE, 2.0], [f16::from_f32(0.5), f16::MAX]);
    check!([bf16::from_f32(-3.0), bf16::MIN]);
    let pred = Shape::new(ElementType::Pred, [3]);
    let buffer = client.buffer_from_bytes(&[1, 0, 1], &pred, device).unwrap();
    assert_eq!(buffer.to_bytes().unwrap(), [1, 0, 1]);

    let scalar = client.buffer_from_host(&[42f32], &[], device).unwrap();
    assert_eq!(scalar.shape().to_string(), "f32[]");
    assert_eq!(scalar.to_host::<f32>().unwrap(), [42.0]);
    let empty = client.buffer_from_host::<f32>(&[], &[0, 4], device).unwrap();
    assert_eq!(empty.to_host::<f32>().unwrap(), [0f32; 0]);

    let wrong = message(scalar.to_host::<i32>());
    assert_eq!(wrong, "the buffer holds f32 elements, asked for s32");
    let wrong = message(client.buffer_from_host(&[1f32; 5], &[2, 3], device));
    assert_eq!(wrong, "f32[2,3] takes 24 bytes, found 20");
}

#[test]
fn an_owned_upload_is_complete_when_used() {
    let client = cpu_client(1);
    let device = client.addressable_device(0).unwrap();
    let buffers: Vec<Buffer> = (0..32)
        .map(|i| client.buffer_from_shared(vec![i as f32; 1 << 18], &[1 << 18], device).unwrap())
        .collect();
    for (i, buffer) in buffers.iter().enumerate() {
        assert!(buffer.to_host::<f32>().unwrap().iter().all(|&value| value == i as f32));
    }
}

#[test]
fn replicas_run_on_distinct_devices_with_distinct_data() {
    let client = cpu_client(4);
    let devices = client.addressable_devices();
    assert_eq!(devices.len(), 4);
    let code = all_reduce(4);
    let program = Module { format: ModuleFormat::Mlir, code: code.as_bytes(), parameters: &[f32s(&[2])] };
    // In reverse, to see that the assignment is obeyed.
    let ids: Vec<i32> = devices.iter().rev().map(|device| device.id()).collect();
    let executable = client.compile(&program, &CompileOptions::on_devices(ids.clone())).unwrap();
    assert_eq!(executable.device_ids(), ids);
    let inputs: Vec<Buffer> = devices
        .iter()
        .rev()
        .enumerate()
        .map(|(i, &device)| client.buffer_from_host(&[i as f32, 10.0 * i as f32], &[2], device).unwrap())
        .collect();
    let arguments = inputs.iter().map(|input| vec![Argument::Borrow(input)]).collect();
    let outputs = executable.execute(arguments).unwrap();
    for (i, replica) in outputs.iter().enumerate() {
        assert_eq!(replica[0].to_host::<f32>().unwrap(), [6.0, 60.0]);
        assert_eq!(replica[1].to_host::<f32>().unwrap(), [6.0 - i as f32, 60.0 - 10.0 * i as f32]);
        assert_eq!(replica[1].device().unwrap().id(), ids[i]);
    }
    let one = vec![vec![Argument::Borrow(&inputs[0])]];
    assert_eq!(message(executable.execute(one)), "expected arguments for 4 replicas, found 1");
}

/// The plugin compiles them; the places of its lists of arguments would be filled in part.
#[test]
fn replicas_that_share_a_device_are_refused() {
    let client = cpu_client(4);
    let code = all_reduce(2);
    let program = Module { format: ModuleFormat::Mlir, code: code.as_bytes(), parameters: &[f32s(&[2])] };
    let device = client.addressable_device(0).unwrap();
    let x = client.buffer_from_host(&[1f32, 2.0], &[2], device).unwrap();
    let run = |ids: [i32; 2]| {
        let executable = client.compile(&program, &CompileOptions::on_devices(ids))?;
        executable.execute(vec![vec![Argument::Borrow(&x)], vec![Argument::Borrow(&x)]])
    };
    let expected =
        "replicas are for devices [0, 0], and the plugin runs [0, 0] here: expected each of these once";
    assert_eq!(message(run([0, 0])), expected);
}

#[test]
fn a_compiled_program_tells_its_replicas_and_its_optimized_form() {
    let client = cpu_client(2);
    let program = compile(&client, &all_reduce(2), &[f32s(&[2])], 2);
    assert_eq!(program.executable().num_replicas().unwrap(), 2);
    let module = program.executable().optimized_program().unwrap();
    let analysis = Analysis::new(&module, 3).unwrap();
    assert_eq!(analysis.replicas, 2);
    let [collective] = &analysis.collectives[..] else { panic!("{:?}", analysis.collectives) };
    assert_eq!((&*collective.opcode, collective.count, collective.bytes), ("all-reduce", 1, 8));
    assert_eq!(analysis.cycles, None, "only TPU's compiler estimates cycles");
}

#[test]
fn a_donated_argument_is_updated_in_place() {
    let client = cpu_client(1);
    let n = 1 << 20;
    let program = compile(&client, INCREMENT, &[f32s(&[n])], 1);
    assert_eq!(program.executable().memory_stats().unwrap().aliased, 4 << 20);
    let mut x = upload(&client, &vec![0.0; n], &[n]);
    let mut completions = Vec::new();
    for _ in 0..10 {
        // Queued one behind the other: the device orders them, not the host.
        let execution = program.execute_async(vec![vec![Argument::Donate(x)]]).unwrap();
        x = execution.outputs.into_iter().flatten().next().unwrap();
        completions.push(execution.completion);
    }
    completions.into_iter().for_each(|completion| completion.wait().unwrap());
    assert_eq!(x.to_host::<f32>().unwrap(), vec![10.0; n]);
    // Borrowed, the same program must leave its argument alone.
    let y = program.execute(vec![vec![Argument::Borrow(&x)]]).unwrap();
    assert_eq!(x.to_host::<f32>().unwrap(), vec![10.0; n]);
    assert_eq!(y[0][0].to_host::<f32>().unwrap(), vec![11.0; n]);
}

#[test]
fn threads_share_a_program() {
    let client = cpu_client(1);
    let program = compile(&client, DOUBLE_AND_SUM, &[f32s(&[2, 3]), f32s(&[2, 3])], 1);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (client, program) = (&client, &program);
            scope.spawn(move || {
                let x = upload(client, &[thread as f32; 6], &[2, 3]);
                for _ in 0..100 {
                    let arguments = vec![vec![Argument::Borrow(&x), Argument::Borrow(&x)]];
                    let outputs = program.execute(arguments).unwrap();
                    assert_eq!(outputs[0][0].to_host::<f32>().unwrap(), [2.0 * thread as f32; 6]);
                }
            });
        }
    });
}

#[test]
fn dropping_handles_in_any_order_is_safe() {
    let n = 1 << 20;
    let (pending, execution) = {
        let client = cpu_client(2);
        let program = compile(&client, INCREMENT, &[f32s(&[n])], 1);
        let x = upload(&client, &vec![1.0; n], &[n]);
        drop(program.execute_async(vec![vec![Argument::Borrow(&x)]]).unwrap());
        let execution = program.execute_async(vec![vec![Argument::Borrow(&x)]]).unwrap();
        (execution.outputs[0][0].read::<f32>().unwrap(), execution)
    };
    drop(execution);
    assert_eq!(pending.wait().unwrap(), vec![2.0; n]);
}

#[test]
fn arguments_are_checked_before_the_plugin_sees_them() {
    let client = cpu_client(1);
    let device = client.addressable_device(0).unwrap();
    let program = compile(&client, DOUBLE_AND_SUM, &[f32s(&[2, 3]), f32s(&[2, 3])], 1);
    let good = upload(&client, &[0.0; 6], &[2, 3]);
    let turned = upload(&client, &[0.0; 6], &[3, 2]);
    let ints = client.buffer_from_host(&[0i32; 6], &[2, 3], device).unwrap();
    let run = |second: Vec<&Buffer>| {
        let list = [&good].into_iter().chain(second).map(Argument::Borrow).collect();
        message(program.execute(vec![list]))
    };
    assert_eq!(run(vec![]), "replica 0: expected 2 arguments, found 1");
    assert_eq!(run(vec![&turned]), "argument 1: expected f32[2,3], found f32[3,2]");
    assert_eq!(run(vec![&ints]), "argument 1: expected f32[2,3], found s32[2,3]");
    let other = cpu_client(1);
    let foreign = upload(&other, &[0.0; 6], &[2, 3]);
    assert_eq!(run(vec![&foreign]), "argument 1: the buffer belongs to another client");
    assert_eq!(
        message(client.buffer_from_host(&[0f32], &[1], other.addressable_device(0).unwrap())),
        "the device belongs to another client"
    );
    assert_eq!(message(client.addressable_device(3).map(|_| ())), "no device 3: the client has 1");
}

#[test]
fn the_plugins_own_errors_come_back_on_one_line() {
    let client = cpu_client(1);
    let program = Module { format: ModuleFormat::Mlir, code: b"module { nonsense }", parameters: &[] };
    let error = message(client.compile(&program, &CompileOptions::default()));
    assert!(error.starts_with("PJRT_Client_Compile: UNKNOWN: "), "{error}");
    assert!(error.contains("nonsense") && !error.contains('\n'), "{error}");
    let program = Module { format: ModuleFormat::Hlo, code: b"not a module", parameters: &[] };
    let error = message(client.compile(&program, &CompileOptions::default()));
    assert!(error.starts_with("PJRT_Client_Compile: "), "{error}");

    let shapes = [f32s(&[2, 3]), f32s(&[2, 3])];
    let program = Module { format: ModuleFormat::Mlir, code: DOUBLE_AND_SUM.as_bytes(), parameters: &shapes };
    let flags = |name: &str| CompileOptions::default().flag(name, FlagValue::BoolField(true));
    client.compile(&program, &flags("xla_cpu_enable_fast_math")).unwrap();
    let error = message(client.compile(&program, &flags("xla_no_such_flag")));
    assert_eq!(error, "PJRT_Client_Compile: INVALID_ARGUMENT: No such compile option: 'xla_no_such_flag'");
    // More replicas than devices.
    let error = message(client.compile(&program, &CompileOptions::replicas(2)));
    assert!(error.contains("No matching device found for device_id 1"), "{error}");
}

/// A training step has hundreds of small arguments, each with its own output.
#[test]
fn many_arguments_keep_their_places() {
    let client = cpu_client(1);
    let n = 120;
    let parameters: Vec<String> =
        (0..n).map(|i| format!("%a{i}: tensor<8xf32> {{tf.aliasing_output = {i} : i32}}")).collect();
    let types = vec!["tensor<8xf32>"; n].join(", ");
    let sums: Vec<String> =
        (0..n).map(|i| format!("%b{i} = stablehlo.add %a{i}, %a{i} : tensor<8xf32>")).collect();
    let results: Vec<String> = (0..n).map(|i| format!("%b{i}")).collect();
    let code = format!(
        "module @many {{ func.func public @main({}) -> ({types}) {{ {}\n return {} : {types} }} }}",
        parameters.join(", "),
        sums.join("\n"),
        results.join(", ")
    );
    let program = compile(&client, &code, &vec![f32s(&[8]); n], 1);
    let mut state: Vec<Buffer> = (0..n).map(|i| upload(&client, &[i as f32; 8], &[8])).collect();
    for _ in 0..3 {
        let arguments = vec![state.into_iter().map(Argument::Donate).collect()];
        state = program.execute(arguments).unwrap().remove(0);
    }
    for (i, buffer) in state.iter().enumerate() {
        assert_eq!(buffer.to_host::<f32>().unwrap(), [8.0 * i as f32; 8]);
    }
}

#[test]
fn loading_twice_gives_two_working_plugins() {
    let path = cpu_plugin();
    let (first, second) =
        (Plugin::load(Backend::Cpu, &path).unwrap(), Plugin::load(Backend::Cpu, &path).unwrap());
    let clients = [first.client(&[]).unwrap(), second.client(&[]).unwrap()];
    for client in &clients {
        assert_eq!(upload(client, &[3.0], &[1]).to_host::<f32>().unwrap(), [3.0]);
    }
}
