//! The builder held against XLA's own: each program is built a second time with the C++ `XlaBuilder`, which infers shapes by
//! itself, and a third time from its text by XLA's parser; all of them must be one module, and give one result.
//!
//! `cargo test --release --features xla-extension --lib judge`; with `BERT_XLA_JUDGE_GRAPHS=5000`, so many random graphs.

mod attempts;
mod bench;
mod builder;
mod cases;
mod graphs;
mod grow;
mod lacking;
mod loops;
mod module;
mod refusals;
mod scans;
mod texts;
mod values;

use std::sync::LazyLock;

use xla::{HloModuleProto, PjRtClient, XlaComputation};

use self::builder::Builder;
use self::values::{Array, xla_shape};
use super::program::Program;

static CLIENT: LazyLock<PjRtClient> = LazyLock::new(|| PjRtClient::cpu().expect("XLA has a CPU client"));

/// The module that we write, as XLA reads it.
fn ours(program: &Program<'_>) -> HloModuleProto {
    HloModuleProto::parse_proto(&program.to_hlo_proto(), true)
        .unwrap_or_else(|error| panic!("{error}\n{}", program.to_text()))
}

/// The same with the factors of products as wide as their sums, which is what XLA's builder can be asked for.
fn widened(program: &Program<'_>) -> HloModuleProto {
    HloModuleProto::parse_proto(&program.to_widened_hlo_proto(), true)
        .unwrap_or_else(|error| panic!("{error}\n{}", program.to_text()))
}

/// The module for XLA's CPU compiler.
fn for_cpu(program: &Program<'_>) -> HloModuleProto {
    HloModuleProto::parse_proto(&program.to_cpu_hlo_proto(), true)
        .unwrap_or_else(|error| panic!("{error}\n{}", program.to_text()))
}

/// The same from our text.
fn parsed(program: &Program<'_>) -> HloModuleProto {
    let text = program.to_text();
    let parsed = HloModuleProto::parse_and_return_unverified_module(text.as_bytes());
    parsed.unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The same by XLA's builder, which must infer the shape that the graph states for every node.
fn theirs(program: &Program<'_>) -> builder::Result<HloModuleProto> {
    let builder = Builder::new(&program.name);
    let parameters = program.parameters.iter().map(|tensor| {
        let node = program.graph.node(tensor.id);
        builder.apply(&node.op, &[])
    });
    let values = builder.nodes(program, &parameters.collect::<builder::Result<Vec<_>>>()?)?;
    for (id, node) in program.live_nodes() {
        let inferred = values[&id].shape()?;
        assert_eq!(inferred, xla_shape(&node.shape), "%{id} {:?}\n{}", node.op, program.to_text());
    }
    let outputs = program.outputs.iter().map(|tensor| values[&tensor.id].clone()).collect::<Vec<_>>();
    let built = builder.tuple(&outputs)?.build()?.proto().to_pbtxt()?;
    // As XLA makes a module of it, with all defaults in place.
    let snapshot = format!("hlo {{ hlo_module {{ {} }} }}", module::row_major(&built));
    Ok(HloModuleProto::parse_proto(snapshot.as_bytes(), false)?)
}

fn run(module: &HloModuleProto, program: &Program<'_>, inputs: &[Array]) -> Vec<Array> {
    let executable = CLIENT.compile(&XlaComputation::from_proto(module));
    let executable = executable.unwrap_or_else(|error| panic!("{error}\n{}", program.to_text()));
    let inputs = inputs.iter().map(Array::literal).collect::<Vec<_>>();
    let outputs =
        executable.execute(&inputs).unwrap_or_else(|error| panic!("{error}\n{}", program.to_text()));
    let outputs = outputs[0].iter().map(|buffer| buffer.to_literal_sync().unwrap());
    outputs.zip(program.output_shapes()).map(|(literal, shape)| Array::read(&literal, &shape)).collect()
}

/// That our module and XLA's are the same.
fn same_module(a: &HloModuleProto, b: &HloModuleProto, program: &Program<'_>) {
    if let Some(difference) = module::difference(a, b) {
        panic!("{difference}\n{}", program.to_text());
    }
}

/// That two modules give the same bits.
fn same_results(a: &[Array], b: &[Array], program: &Program<'_>) {
    assert_eq!(a.len(), b.len(), "outputs");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        if let Some(difference) = a.difference(b, None) {
            panic!("output {i}, {difference}\n{}", program.to_text());
        }
    }
}
