//! The crate's calls, on the CPU.

use half::{bf16, f16};

use super::*;
use crate::hlo::{Graph, Program, Tensor};
use crate::pjrt::{Backend, GpuOptions};

fn client() -> Client {
    Client::open(Backend::Cpu, &DeviceOptions::default()).unwrap()
}

/// A program of one parameter.
fn compile(
    client: &Client,
    shape: Shape,
    outputs: impl for<'g> FnOnce(Tensor<'g>) -> Vec<Tensor<'g>>,
    alias: Option<usize>,
) -> Executable {
    let graph = Graph::new();
    let x = graph.parameter("x", shape);
    let mut program = Program::new("p", vec![x], outputs(x));
    alias.into_iter().for_each(|output| program.alias(output, 0));
    client.compile(&Lowered::new(&program, client.device_ids(), Backend::Cpu)).unwrap()
}

#[test]
fn a_borrowed_argument_survives_a_program_that_would_take_its_memory() {
    let client = client();
    let halved = compile(&client, Shape::new(ElementType::F32, [4]), |x| vec![x * 0.5], Some(0));
    let mut x = client.upload(&[1f32, 2.0, 3.0, 4.0], &[4], 0).unwrap();
    for _ in 0..2 {
        let (outputs, _) = halved.run(vec![vec![Argument::Borrow(&x)]]).unwrap();
        assert_eq!(outputs[0][0].read_into::<f32>(vec![]).unwrap(), [0.5, 1.0, 1.5, 2.0]);
    }
    assert_eq!(x.read_into::<f32>(vec![]).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    for _ in 0..2 {
        let (mut outputs, _) = halved.run(vec![vec![Argument::Donate(x)]]).unwrap();
        x = outputs.remove(0).remove(0);
    }
    assert_eq!(x.read_into::<f32>(vec![9.0; 7]).unwrap(), [0.25, 0.5, 0.75, 1.0]);
}

#[test]
fn outputs_come_apart_however_many_there_are() {
    let client = client();
    let x = client.upload(&[3f32], &[], 0).unwrap();
    for count in [1, 3] {
        let scalar = Shape::scalar(ElementType::F32);
        let program = compile(&client, scalar, |x| (0..count).map(|n| x + f64::from(n)).collect(), None);
        let (outputs, _) = program.run(vec![vec![Argument::Borrow(&x)]]).unwrap();
        let values = outputs[0].iter().map(|output| output.read_into::<f32>(vec![]).unwrap()[0]);
        assert_eq!(values.collect::<Vec<_>>(), [3f32, 4.0, 5.0][..count as usize]);
    }
}

fn comes_back<T: Element + PartialEq + std::fmt::Debug>(client: &Client, values: &[T]) {
    let shape = Shape::new(T::TYPE, [2, 2]);
    let unchanged = compile(client, shape.clone(), |x| vec![x.transpose(&[1, 0])], None);
    let x = client.upload(values, &shape.dims, 0).unwrap();
    assert_eq!(x.read_into::<T>(vec![]).unwrap(), values);
    let (outputs, _) = unchanged.run(vec![vec![Argument::Donate(x)]]).unwrap();
    assert_eq!(outputs[0][0].shape(), &shape);
    let transposed = [values[0], values[2], values[1], values[3]];
    assert_eq!(outputs[0][0].read_into::<T>(vec![]).unwrap(), transposed);
}

#[test]
fn every_element_type_comes_back() {
    let client = client();
    comes_back(&client, &[1u8, 2, 3, 255]);
    comes_back(&client, &[1i32, 2, 3, i32::MIN]);
    comes_back(&client, &[1i64, 2, 3, i64::MIN]);
    comes_back(&client, &[1u32, 2, 3, u32::MAX]);
    comes_back(&client, &[1u64, 2, 3, u64::MAX]);
    comes_back(&client, &[1.0, 2.0, 3.0, -0.5].map(f16::from_f32));
    comes_back(&client, &[1.0, 2.0, 3.0, -0.5].map(bf16::from_f32));
    comes_back(&client, &[1f32, 2.0, 3.0, f32::MAX]);
    comes_back(&client, &[1f64, 2.0, 3.0, f64::MAX]);
    let is_two = compile(
        &client,
        Shape::new(ElementType::F32, [2]),
        |x| vec![x.compare(crate::hlo::Comparison::Eq, x)],
        None,
    );
    let x = client.upload(&[1f32, f32::NAN], &[2], 0).unwrap();
    let (outputs, _) = is_two.run(vec![vec![Argument::Borrow(&x)]]).unwrap();
    assert_eq!(outputs[0][0].shape(), &Shape::new(ElementType::Pred, [2]));
}

#[test]
fn a_wrong_call_is_an_error_of_one_line() {
    let client = client();
    let scalar = Shape::scalar(ElementType::F32);
    let program = compile(&client, scalar.clone(), |x| vec![x], None);
    let x = client.upload(&[3f32], &[], 0).unwrap();
    assert!(x.read_into::<i32>(vec![]).is_err());
    let error = program.run(vec![vec![]]).err().unwrap().to_string();
    assert!(error.starts_with("xla: running a program: ") && !error.contains('\n'), "{error}");
    let graph = Graph::new();
    let x = graph.parameter("x", scalar);
    let program = Program::new("elsewhere", vec![x], vec![x]);
    let error = client.compile(&Lowered::new(&program, &[7], Backend::Cpu)).err().unwrap();
    assert!(error.to_string().starts_with("replicas are for devices [7]"), "{error}");
}

#[test]
fn what_a_gpu_cant_be_asked_for_is_named() {
    let refused = |options: &DeviceOptions| {
        check_gpu(options, &options.gpu.values().unwrap()).err().map(|error| error.to_string())
    };
    let options = |gpu| DeviceOptions { gpu, ..Default::default() };
    let memory = GpuOptions { memory_fraction: Some(0.5), preallocate: Some(false), devices: None };
    assert_eq!(refused(&options(memory)), None);
    let devices = options(GpuOptions { devices: Some(vec![1]), ..Default::default() });
    assert!(refused(&devices).unwrap().starts_with("the xla runtime can't choose among GPUs: "));
    assert_eq!(refused(&DeviceOptions { plugin: Some("plugin.so".into()), ..devices }), None);
    let deterministic = DeviceOptions { deterministic: true, ..Default::default() };
    assert!(refused(&deterministic).unwrap().contains("the same bits each time: set XLA_FLAGS="));
}
