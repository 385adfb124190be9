//! Leaks, in a process of its own: other tests would move the process's memory.

#[path = "suite/common/mod.rs"]
mod common;

use bert_xla::pjrt::{Argument, CompileOptions, Module, ModuleFormat};
use bert_xla::shape::{ElementType, Shape};
use common::cpu_client;

const SUM: &str =
    "module { func.func public @main(%x: tensor<256xf32>, %y: tensor<256xf32>) -> tensor<256xf32> {
  %z = stablehlo.add %x, %y : tensor<256xf32>
  return %z : tensor<256xf32>
} }";

#[test]
fn many_executions_do_not_grow_the_process() {
    const ROUNDS: usize = 100_000;
    let client = cpu_client(1);
    let device = client.addressable_device(0).unwrap();
    let parameters = vec![Shape::new(ElementType::F32, [256]); 2];
    let program = Module { format: ModuleFormat::Mlir, code: SUM.as_bytes(), parameters: &parameters };
    let program = client.compile(&program, &CompileOptions::default()).unwrap();
    let damaged = Module { format: ModuleFormat::Hlo, code: b"not a module", parameters: &[] };
    let step = || {
        let x = client.buffer_from_host(&[1f32; 256], &[256], device).unwrap();
        let y = client.buffer_from_shared(vec![2f32; 256], &[256], device).unwrap();
        let outputs = program.execute(vec![vec![Argument::Borrow(&x), Argument::Donate(y)]]).unwrap();
        assert_eq!(outputs[0][0].to_host::<f32>().unwrap(), [3.0; 256]);
        drop(program.execute_async(vec![vec![Argument::Borrow(&x), Argument::Borrow(&x)]]).unwrap());
        // An error of the plugin, which is freed too.
        assert!(client.compile(&damaged, &CompileOptions::default()).is_err());
    };
    (0..500).for_each(|_| step());
    let before = resident_bytes();
    (0..ROUNDS).for_each(|_| step());
    let grown = resident_bytes().saturating_sub(before);
    eprintln!("{ROUNDS} rounds grew the process by {grown} bytes");
    // One lost object of 100 bytes in each round would be 10 MB. The system may make pages large meanwhile, of 2 MB each.
    assert!(grown < 5_000_000, "{ROUNDS} rounds grew the process by {grown} bytes");
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
