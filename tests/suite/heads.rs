//! Heads beside the recipe's, against Keras and transformers.
//!
//! `keras_lstm.safetensors` was made with Keras 3.15 on PyTorch 2.15 by `keras.layers.LSTM(6)` and
//! `Bidirectional(LSTM(6))` of random weights on `x` `[3, 5, 4]`, called without a mask and with one; the gradients are those
//! of `(layer(x, mask=mask) * weights).sum()`. `tiny_heads.safetensors` was made with transformers 5.24 by
//! `BertForSequenceClassification` with the weights of `tiny_bert.safetensors` and a random classifier, and by that
//! classifier on the mean of the hidden states; the loss is `cross_entropy(logits, labels)`.

use std::collections::HashMap;

use bert_xla::hlo::{Graph, Program, Tensor};
use bert_xla::model::head::{DenseHeadConfig, LinearHeadConfig, LstmHeadConfig};
use bert_xla::model::{Classifier, ClassifierConfig, HeadConfig};
use bert_xla::nn::{Access, Init, Lstm, Mode, Params, Part, Weight};
use bert_xla::pjrt::{Argument, Buffer};
use bert_xla::shape::{ElementType, Shape};
use bert_xla::step::{StepConfig, train_step};
use bert_xla::weights::InitialValues;

use crate::common::graph::Compiled;
use crate::golden::{Golden, assert_close, tiny, upload};

/// Within 1e-4 of the largest value.
#[track_caller]
fn assert_relative(what: &str, found: &[f32], expected: &[f32]) {
    let scale = expected.iter().fold(0f32, |max, value| max.max(value.abs()));
    assert!(scale > 1e-6, "{what} is all but zero");
    assert_close(what, found, expected, 1e-4 * scale);
}

/// A matrix as `[columns, rows]`.
fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

/// The fixture's weight that a layer declares, in the layer's layout: `forward.kernel` and so on.
fn keras(golden: &Golden, name: &str) -> Vec<f32> {
    let values = golden.f32s(name);
    match name {
        _ if name.ends_with("kernel") => transposed(&values, 4),
        _ if name.ends_with("recurrent") => transposed(&values, 6),
        _ => values,
    }
}

/// What Keras calls a weight.
fn keras_name(weight: &Weight) -> String {
    weight.name.replace("recurrent_kernel", "recurrent")
}

fn execute(program: &Program<'_>, arguments: Vec<Buffer>) -> Vec<Vec<f32>> {
    let Compiled(executable) = Compiled::new(program, 1);
    let arguments = arguments.into_iter().map(Argument::Donate).collect();
    let outputs = executable.execute(vec![arguments]).unwrap();
    outputs[0].iter().map(|buffer| buffer.to_host().unwrap()).collect()
}

#[test]
fn lstms_and_their_gradients_equal_keras() {
    let golden = Golden::read("keras_lstm.safetensors");
    for (layer, sides) in [("lstm", &["forward"][..]), ("bilstm", &["forward", "backward"])] {
        for (case, is_masked) in [("", false), ("masked.", true)] {
            let graph = Graph::new();
            let params = Params::new(&graph, ElementType::F32);
            let root = params.root(Part::Head);
            let x = graph.parameter("x", Shape::new(ElementType::F32, [3, 5, 4]));
            let mask = graph.parameter("mask", Shape::new(ElementType::S32, [3, 5]));
            let width = 6 * sides.len();
            let weights = graph.parameter("weights", Shape::new(ElementType::F32, [3, width]));
            let last = sides.iter().map(|side| {
                Lstm::new(4, 6, *side == "backward", root.pp(side)).forward(x, is_masked.then_some(mask))
            });
            let output = graph.concatenate(&last.collect::<Vec<_>>(), 1);
            let loss = (output * weights).sum(&[0, 1]);
            let (declared, tensors): (Vec<_>, Vec<_>) = params.declared().into_iter().unzip();
            let wrt = [&[x], &tensors[..]].concat();
            let gradients = graph.gradients(loss, &wrt).into_iter().map(Option::unwrap);
            let outputs = [output].into_iter().chain(gradients).collect();
            let program = Program::new("lstm", [&[x, mask, weights], &tensors[..]].concat(), outputs);

            let mut arguments = vec![
                upload(&golden.f32s("x"), &[3, 5, 4]),
                upload(&golden.i32s("mask"), &[3, 5]),
                upload(&golden.f32s(&format!("{layer}.weights")), &[3, width]),
            ];
            let value = |weight: &Weight| upload(&keras(&golden, &keras_name(weight)), &weight.shape.dims);
            arguments.extend(declared.iter().map(value));
            let found = execute(&program, arguments);
            assert_close(layer, &found[0], &golden.f32s(&format!("{layer}.{case}output")), 1e-6);
            assert_relative("x", &found[1], &golden.f32s(&format!("{layer}.{case}gradient.x")));
            for (weight, found) in declared.iter().zip(&found[2..]) {
                let name = format!("{layer}.{case}gradient.{}", keras_name(weight));
                assert_relative(&name, found, &keras(&golden, &name));
            }
        }
    }
}

#[test]
fn linear_heads_and_their_gradients_equal_transformers() {
    let (golden, heads) = (Golden::read("tiny_bert.safetensors"), Golden::read("tiny_heads.safetensors"));
    let linear = LinearHeadConfig { dropout: 0.1, num_classes: 4 };
    for (name, head) in [("cls", HeadConfig::Cls(linear.clone())), ("mean", HeadConfig::Mean(linear))] {
        for (case, mask) in [("", false), ("masked/", true)] {
            let config = ClassifierConfig { head: head.clone(), mask, ..tiny(mask) };
            let graph = Graph::new();
            let params = Params::new(&graph, ElementType::F32);
            let model = Classifier::new(&config, &graph, &params);
            let tokens = |name| graph.parameter(name, Shape::new(ElementType::S32, [6, config.max_length]));
            let (ids, mask) = (tokens("input_ids"), mask.then(|| tokens("attention_mask")));
            let scores = model.forward(ids, mask, &Mode::inference(ElementType::F32));
            let labels = golden.i32s("labels");
            let loss = cross_entropy(scores.log_probabilities(), &labels);
            let (declared, tensors): (Vec<_>, Vec<_>) = params.declared().into_iter().unzip();
            let gradients = graph.gradients(loss, &tensors);
            let (trained, gradients): (Vec<_>, Vec<_>) = declared
                .iter()
                .zip(gradients)
                .filter_map(|(weight, gradient)| Some((weight, gradient?)))
                .unzip();
            let outputs = [&[scores.values(), scores.probabilities(), loss], &gradients[..]].concat();
            let parameters = tensors.iter().copied().chain([ids]).chain(mask).collect();
            let program = Program::new(name, parameters, outputs);

            let value = |weight: &Weight| match weight.part {
                Part::Head => upload(&heads.f32s(&weight.name), &weight.shape.dims),
                _ => upload(&golden.f32s(&format!("param/{}", weight.name)), &weight.shape.dims),
            };
            let mut arguments = declared.iter().map(value).collect::<Vec<_>>();
            arguments.push(upload(&golden.i32s("input_ids"), &[6, config.max_length]));
            arguments.extend(mask.map(|_| upload(&golden.i32s("attention_mask"), &[6, config.max_length])));
            let found = execute(&program, arguments);

            let logits = heads.f32s(&format!("{name}/{case}logits"));
            assert_close("logits", &found[0], &logits, 1e-5);
            let softmax = logits.chunks(4).flat_map(|row| {
                let sum = row.iter().map(|x| x.exp()).sum::<f32>();
                row.iter().map(move |x| x.exp() / sum)
            });
            assert_close("probabilities", &found[1], &softmax.collect::<Vec<_>>(), 1e-5);
            assert_close("loss", &found[2], &heads.f32s(&format!("{name}/{case}loss")), 1e-5);
            let found =
                trained.iter().map(|weight| &*weight.name).zip(&found[3..]).collect::<HashMap<_, _>>();
            let pooler = "bert.pooler.dense.weight";
            assert_eq!(found.contains_key(pooler), name == "cls");
            let names = [
                "classifier.weight",
                "classifier.bias",
                pooler,
                "bert.encoder.layer.0.attention.self.query.weight",
                "bert.embeddings.LayerNorm.weight",
            ];
            for weight in names.into_iter().filter(|weight| found.contains_key(weight)) {
                assert_relative(weight, found[weight], &heads.f32s(&format!("{name}/{case}grad/{weight}")));
            }
        }
    }
}

/// The mean of `-log p[label]`, in this test's own words.
fn cross_entropy<'g>(log_probabilities: Tensor<'g>, labels: &[i32]) -> Tensor<'g> {
    let pick = |(row, label): (usize, &i32)| {
        let label = *label as usize;
        log_probabilities.slice(&[row, label], &[row + 1, label + 1], &[1, 1]).reshape(&[1])
    };
    let logs = labels.iter().enumerate().map(pick).collect::<Vec<_>>();
    -log_probabilities.graph().concatenate(&logs, 0).sum(&[0]) / labels.len() as f64
}

fn heads() -> Vec<HeadConfig> {
    let dense = DenseHeadConfig { hidden: vec![16, 12], ..DenseHeadConfig::default() };
    let lstm = LstmHeadConfig { units: 8, dense: dense.clone() };
    let linear = LinearHeadConfig { dropout: 0.1, num_classes: 4 };
    vec![
        HeadConfig::Dense(dense),
        HeadConfig::Lstm(lstm.clone()),
        HeadConfig::Bilstm(lstm),
        HeadConfig::Cls(linear.clone()),
        HeadConfig::Mean(linear),
    ]
}

#[test]
fn heads_are_written_down_and_read_back() {
    for head in heads() {
        let json = serde_json::to_value(&head).unwrap();
        assert_eq!(json["type"], head.name());
        assert_eq!(HeadConfig::deserialize_field(json).unwrap(), head);
    }
    // As written before there were others.
    let json = serde_json::json!({ "hidden": [16, 12], "dropout": 0.3, "num_classes": 4 });
    assert_eq!(HeadConfig::deserialize_field(json).unwrap(), heads()[0]);
}

#[test]
fn a_weight_is_trained_where_the_head_uses_it() {
    for head in heads() {
        let name = head.name();
        let model = ClassifierConfig { head, mask: true, ..tiny(true) };
        let weights = model.weights();
        let signature = train_step(&Graph::new(), &StepConfig::new(model, 2, 1)).signature;
        let untrained = weights.len() - signature.used(&weights).len();
        assert_eq!(untrained, if name == "cls" { 0 } else { 2 }, "{name}");
    }
}

#[test]
fn the_module_of_an_lstm_does_not_grow_with_the_text() {
    let size = |max_length| {
        let mut model = ClassifierConfig { head: heads().remove(2), max_length, ..tiny(true) };
        model.bert.max_position_embeddings = 512;
        let graph = Graph::new();
        let step = train_step(&graph, &StepConfig::new(model, 2, 1));
        step.program.to_hlo_proto().len() as f64
    };
    let (short, long) = (size(64), size(512));
    // Numbers take a byte more.
    assert!(long / short < 1.01, "{short} and {long} bytes");
}

/// By `keras.initializers.Orthogonal`'s documentation, and `LSTM`'s `unit_forget_bias`.
#[test]
fn lstms_start_as_keras_do() {
    let weight = |init, dims: [usize; 2]| Weight {
        name: "lstm".into(),
        shape: Shape::new(ElementType::F32, dims),
        init,
        part: Part::Head,
        access: Access::Whole,
    };
    let values = InitialValues::Random { seed: 1 };
    for dims in [[24, 6], [6, 24], [7, 7]] {
        let found = values.get(&weight(Init::Orthogonal, dims)).unwrap().into_owned();
        let [rows, columns] = dims;
        let vectors = if columns <= rows { transposed(&found, rows) } else { found };
        let vectors = vectors.chunks(rows.max(columns)).collect::<Vec<_>>();
        for (i, a) in vectors.iter().enumerate() {
            for (j, b) in vectors.iter().enumerate() {
                let product = a.iter().zip(*b).map(|(a, b)| a * b).sum::<f32>();
                assert!((product - f32::from(u8::from(i == j))).abs() < 1e-6, "{i} and {j}: {product}");
            }
        }
    }
    let bias = Weight { shape: Shape::new(ElementType::F32, [8]), ..weight(Init::ForgetGate, [1, 1]) };
    assert_eq!(*values.get(&bias).unwrap(), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
}
