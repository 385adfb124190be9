//! Rematerialization: a step that computes values again rather than keep them is the same step, in less memory.

use std::rc::Rc;

use bert_xla::data::Dataset;
use bert_xla::hlo::{Graph, Program, Residuals};
use bert_xla::model::head::{LinearHeadConfig, LstmHeadConfig};
use bert_xla::model::{BertConfig, ClassifierConfig, HeadConfig};
use bert_xla::shape::{ElementType, Shape};
use bert_xla::step::{Execution, Precision, StepConfig, Training, train_step};
use bert_xla::train::{Origin, Programs, TrainOptions, Trainer};
use bert_xla::weights::InitialValues;

use crate::common::graph::Compiled;
use crate::common::training::{MAX_LENGTH, ROWS, assert_close, connect, model, sample};

/// The losses of two epochs of batches of 8, and the weights after them.
fn trained(
    model: &ClassifierConfig,
    replicas: usize,
    training: &Training,
    execution: Execution,
) -> (Vec<f32>, Vec<f32>) {
    let programs = Programs::compile(connect(replicas), model, 8, training, execution, &[MAX_LENGTH]);
    let values = InitialValues::Random { seed: 7 };
    let options = TrainOptions::new(1e-3, 7);
    let mut trainer = Trainer::start(Rc::new(programs.unwrap()), options, Origin::Weights(&values)).unwrap();
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect());
    let mut losses = vec![];
    (1..3).for_each(|epoch| {
        _ = trainer.train_epoch(&data, epoch, |step| losses.push(step.loss() as f32)).unwrap()
    });
    let [weights, ..] = trainer.snapshot(Default::default()).unwrap();
    (losses, weights.into_iter().flat_map(|tensor| tensor.values).collect())
}

#[track_caller]
fn assert_same(model: &ClassifierConfig, replicas: usize, training: &Training, kept: Execution) {
    let expected = trained(model, replicas, training, kept);
    let tolerance = if kept.precision == Precision::F32 { 2e-6 } else { 2e-2 };
    for residuals in [Residuals::Products, Residuals::Barriers] {
        let found = trained(model, replicas, training, Execution { residuals, ..kept });
        assert_close("losses", &found.0, &expected.0, tolerance);
        assert_close("weights", &found.1, &expected.1, tolerance);
    }
}

/// With dropout, whose masks are drawn again.
#[test]
fn other_heads_train_as_they_do_with_all_kept() {
    let HeadConfig::Dense(dense) = model(0.1).head else { unreachable!("the recipe's head") };
    let linear = LinearHeadConfig { dropout: 0.1, num_classes: 4 };
    let heads = [HeadConfig::Bilstm(LstmHeadConfig { units: 8, dense }), HeadConfig::Cls(linear)];
    for head in heads {
        let model = ClassifierConfig { head, mask: true, ..model(0.1) };
        assert_same(&model, 1, &Training::default(), Execution::default());
    }
}

#[test]
fn shares_parts_of_a_step_and_narrow_products_are_the_same_too() {
    let parts = Training { accumulate: 2, clip_norm: Some(0.5), ..Training::default() };
    assert_same(&model(0.1), 4, &Training::default(), Execution { sharded: true, ..Execution::default() });
    let narrow =
        Execution { precision: Precision::Bf16, gradient_precision: Precision::Bf16, ..Execution::default() };
    assert_same(&model(0.1), 2, &parts, Execution { sharded: true, ..narrow });
}

/// XLA's CPU compiler doesn't find out that what is computed again is the same, and does so as late as it can.
#[test]
fn the_less_is_kept_the_less_memory_is_taken() {
    let bert =
        BertConfig { num_hidden_layers: 6, hidden_size: 64, intermediate_size: 256, ..model(0.1).bert };
    let model = ClassifierConfig { bert, max_length: 64, ..model(0.1) };
    let training = Training::default();
    let [all, products, barriers] =
        [Residuals::All, Residuals::Products, Residuals::Barriers].map(|residuals| {
            let execution = Execution { residuals, ..Execution::default() };
            let config = StepConfig { execution, ..StepConfig::new(model.clone(), 16, 1) };
            let flops = train_step(&Graph::new(), &config).program.dot_flops();
            let programs = Programs::compile(connect(1), &model, 16, &training, execution, &[64]).unwrap();
            (flops, programs.memory_stats().unwrap().temporaries)
        });
    assert_eq!(products.0, all.0, "no product is computed again");
    assert!(4 * products.1 < 3 * all.1, "{} bytes, and {} with all kept", products.1, all.1);
    // All of the forward pass' at most, which are a third.
    assert!(all.0 < barriers.0 && 3 * barriers.0 <= 4 * all.0);
    assert!(2 * barriers.1 < all.1, "{} bytes, and {} with all kept", barriers.1, all.1);
}

/// In all element types and shapes, for the CPU and as others have it.
#[test]
fn a_value_after_another_is_the_value() {
    let types = [ElementType::F32, ElementType::Bf16, ElementType::F64, ElementType::S32, ElementType::U64];
    let graph = Graph::new();
    let mut outputs = vec![];
    for element_type in types {
        for dims in [&[][..], &[0], &[2, 3]] {
            let index = graph.full(Shape::new(element_type, dims), 3.0);
            for other in
                [graph.full(Shape::new(ElementType::F32, [0, 2]), 1.0), graph.constant(ElementType::S32, 7.0)]
            {
                outputs.push((index, index.after(other)));
            }
        }
    }
    let both = outputs.iter().flat_map(|(value, after)| [*value, *after]).collect();
    let program = Program::new("after", vec![], both);
    for compiled in [Compiled::new(&program, 1), Compiled::for_cpu(&program, 1)] {
        let found = compiled.run(&[]);
        found.chunks(2).for_each(|pair| assert_eq!(pair[0].bytes, pair[1].bytes));
    }
}

/// Through what is computed again, no gradient flows where none did.
#[test]
fn gradients_of_gradients_are_those_of_what_is_kept() {
    for residuals in [Residuals::All, Residuals::Products, Residuals::Barriers] {
        let graph = Graph::new();
        let x = graph.parameter("x", Shape::new(ElementType::F32, [3]));
        let y = (x * x.exp().stop_gradient()).sum(&[0]);
        let slope = graph.gradients_from(residuals, y, &[x])[0].unwrap();
        assert!(graph.gradients(slope.sum(&[0]), &[x])[0].is_none(), "{residuals:?}");
    }
}
