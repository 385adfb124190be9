//! The CUDA plugin, in a process of its own: it is not to share one with the CPU plugin's threads.

use bert_xla::pjrt::install::{installed_path, is_installed};
use bert_xla::pjrt::{
    Argument, Backend, CompileOptions, Error, GpuOptions, Module, ModuleFormat, Plugin, Value,
};
use bert_xla::shape::{ElementType, Shape};

/// `x -> x + x`.
const DOUBLE: &str = "module { func.func public @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  %y = stablehlo.add %x, %x : tensor<4xf32>
  return %y : tensor<4xf32>
} }";

/// Where there is a GPU, it runs a program; where there is none, the plugin itself says so, or we what it lacks. The options
/// it checks first.
#[test]
fn the_gpu_plugin_runs_a_program_or_says_that_there_is_no_gpu() {
    if !is_installed(Backend::Gpu).unwrap() {
        eprintln!("skipped: no gpu plugin; `bert-xla plugins install gpu` brings it");
        return;
    }
    let plugin = Plugin::load(Backend::Gpu, &installed_path(Backend::Gpu).unwrap()).unwrap();
    let options = GpuOptions { memory_fraction: Some(0.5), preallocate: Some(false), devices: Some(vec![0]) };
    let mut options = options.values().unwrap();
    options.push(("allocator", Value::String("bfc".to_owned())));
    let client = plugin.client(&options);
    let wrong = plugin.client(&[("preallocate", Value::Int64(0))]).map(drop).unwrap_err();
    assert!(matches!(wrong, Error::Plugin { code: "INVALID_ARGUMENT", .. }), "{wrong}");
    let client = match (Backend::Gpu.probe(), client) {
        (Ok(()), client) => client.unwrap(),
        (Err(_), Ok(_)) => panic!("a client without a GPU"),
        (Err(reason), Err(error)) => {
            eprintln!("no GPU here: {reason}; the plugin: {error}");
            assert!(matches!(error, Error::NoDevices { backend: Backend::Gpu, .. }), "{error}");
            let reasons = ["visible GPU devices", "no libcudart.so.13", "no libcuda.so.1"];
            assert!(reasons.iter().any(|reason| error.to_string().contains(reason)), "{error}");
            assert!(!error.to_string().contains('\n') && error.is_input_error() && error.is_absence());
            return;
        }
    };
    let parameters = [Shape::new(ElementType::F32, [4])];
    let program = Module { format: ModuleFormat::Mlir, code: DOUBLE.as_bytes(), parameters: &parameters };
    let program = client.compile(&program, &CompileOptions::default()).unwrap();
    let x = [1f32, -2.0, 0.5, 3.0];
    let x = client.buffer_from_host(&x, &[4], client.addressable_device(0).unwrap()).unwrap();
    let outputs = program.execute(vec![vec![Argument::Borrow(&x)]]).unwrap();
    assert_eq!(outputs[0][0].to_host::<f32>().unwrap(), [2.0, -4.0, 1.0, 6.0]);
}
