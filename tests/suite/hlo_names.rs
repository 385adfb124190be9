//! Names of parameters, in the text and in what the compiler makes of the module.

use crate::common::graph::{Compiled, HostArray};
use bert_xla::hlo::{Graph, Program, Tensor};
use bert_xla::plan;
use bert_xla::shape::{ElementType, Shape};
use ndarray::Array1;

/// A program with a parameter `f32[1, 2, 3...]` of each name, all of which it adds up.
fn sums<'g>(graph: &'g Graph, names: &[&str]) -> Program<'g> {
    let shapes = (1..).map(|n| Shape::new(ElementType::F32, [n]));
    let parameters = names.iter().zip(shapes).map(|(name, shape)| graph.parameter(*name, shape));
    let parameters = parameters.collect::<Vec<_>>();
    let sum = parameters.iter().map(|x: &Tensor<'_>| x.tanh().sum(&[0])).reduce(|sum, x| sum + x).unwrap();
    Program::new("sums", parameters, vec![sum])
}

/// The lines that declare the entry's parameters, `name = shape`.
fn declared(text: &str) -> Vec<String> {
    let entry = &text[text.find("ENTRY").unwrap()..];
    let lines = entry.lines().filter_map(|line| line.split_once(" parameter("));
    lines.map(|(line, _)| line.trim().trim_start_matches('%').to_owned()).collect()
}

#[test]
fn parameters_keep_their_names_in_text_and_module() {
    let graph = Graph::new();
    let names = ["bert.encoder.layer.0.weight", "m.head-1.bias", "_seed", "Step"];
    let program = sums(&graph, &names);
    let expected = ["f32[1]", "f32[2]", "f32[3]", "f32[4]"].iter().zip(names);
    let expected = expected.map(|(shape, name)| format!("{name} = {shape}")).collect::<Vec<_>>();
    assert_eq!(declared(&program.to_text()), expected);
    let compiled = Compiled::new(&program, 1);
    let text = plan::to_text(&compiled.0.executable().optimized_program().unwrap()).unwrap();
    for name in names {
        // A compiler may number them once more.
        assert!(declared(&text).iter().any(|line| line.starts_with(name)), "{name} is not in\n{text}");
    }
}

#[test]
fn names_that_xla_has_not_are_changed_and_stay_apart() {
    let graph = Graph::new();
    let names = ["a/b", "a_b", "f32[2,3]", "0", "", "é", "tanh.10", "dot.1", "add.3", "maximum.2", "result"];
    let program = sums(&graph, &names);
    let text = program.to_text();
    let found = declared(&text);
    let found = found.iter().map(|line| line.split_once(' ').unwrap().0).collect::<Vec<_>>();
    let expected =
        ["a_b", "a_b_", "f32_2_3_", "_0", "_", "__", "tanh.10", "dot.1", "add.3", "maximum.2", "result"];
    assert_eq!(found, expected);
    let mut values = text[text.find("ENTRY").unwrap()..]
        .lines()
        .filter_map(|line| Some(line.trim().trim_start_matches("ROOT ").split_once(" = ")?.0))
        .collect::<Vec<_>>();
    let all = values.len();
    values.sort_unstable();
    values.dedup();
    assert_eq!(values.len(), all, "{text}");
    let inputs = (1..=names.len()).map(|n| HostArray::from(&*Array1::from_elem(n, 0.5f32)));
    let outputs = Compiled::new(&program, 1).run(&inputs.collect::<Vec<_>>());
    let expected = 66.0 * 0.5f64.tanh();
    assert!((outputs[0].to_f64()[[]] - expected).abs() < 1e-4, "{:?}, expected {expected}", outputs[0]);
}
