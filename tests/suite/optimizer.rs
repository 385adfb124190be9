//! What a step may do beyond the recipe's, against Keras, PyTorch and transformers.
//!
//! `tiny_training.safetensors` holds six steps of transformers 5.24's `BertForSequenceClassification` (the weights of
//! `tiny_bert.safetensors`, the classifier of `tiny_heads.safetensors`, its batch, masked, no dropout): the loss is the mean of
//! `cross_entropy(logits, labels, reduction="none", label_smoothing=0.1) * weights[labels]`, PyTorch 2.15's, with weights of
//! 1, 2, 0.5 and 1.5; the optimizer is Keras 3.15's `AdamW(weight_decay=0.1, global_clipnorm=0.5, epsilon=1e-7)`, excluding
//! biases and LayerNorm; the rate of 0.002 goes by transformers' `get_scheduler(name, warmup=2, steps=6)`. In `frozen`, the
//! embeddings and the first layer are not given to the optimizer.

use std::rc::Rc;
use std::sync::Arc;

use bert_xla::data::{Dataset, Tokens};
use bert_xla::exec::Replicas;
use bert_xla::hlo::Graph;
use bert_xla::model::head::LinearHeadConfig;
use bert_xla::model::{ClassifierConfig, HeadConfig};
use bert_xla::nn::{Part, Weight};
use bert_xla::step::{Execution, Freeze, LeafId, Schedule, StepConfig, Training, train_step};
use bert_xla::train::{ClassWeights, Origin, Programs, StepMetrics, TrainOptions, Trainer, Warmup};
use bert_xla::weights::InitialValues;

use crate::common::training::{self, MAX_LENGTH, ROWS, connect, model, sample};
use crate::golden::{Golden, assert_close, tiny};

const ROUND: f32 = 2e-5;

/// A trainer of `BertForSequenceClassification` from the fixtures' weights.
fn reference_trainer(training: &Training, options: TrainOptions) -> Trainer {
    let head = HeadConfig::Cls(LinearHeadConfig { dropout: 0.0, num_classes: 4 });
    // PyTorch keeps the padding's embedding, but its gradient is not all that there is: decay is.
    let model = ClassifierConfig { head, ..tiny(true) };
    let (golden, heads) = (Golden::read("tiny_bert.safetensors"), Golden::read("tiny_heads.safetensors"));
    let programs =
        Programs::compile(connect(1), &model, 6, training, Execution::default(), &[model.max_length])
            .unwrap();
    let values = |name: &str, _: &[usize]| {
        Ok(match name.strip_prefix("classifier.") {
            _ if name.starts_with("m.") || name.starts_with("v.") => {
                let weights = model.weights();
                let weight = weights.iter().find(|weight| weight.name == name[2..]).unwrap();
                vec![0.0; weight.shape.num_elements()]
            }
            Some(_) => heads.f32s(name),
            None => golden.f32s(&format!("param/{name}")),
        })
    };
    Trainer::start(Rc::new(programs), options, Origin::Saved { steps: 0, tensor: &values }).unwrap()
}

/// The fixture's batch, with the lengths that its mask tells.
fn reference_data(golden: &Golden) -> (Tokens, Vec<u32>) {
    let max_length = tiny(true).max_length;
    (
        golden.tokens("attention_mask", max_length),
        golden.i32s("labels").into_iter().map(|label| label as u32).collect(),
    )
}

#[test]
fn steps_equal_keras_and_transformers() {
    let golden = Golden::read("tiny_bert.safetensors");
    let expected = Golden::read("tiny_training.safetensors");
    let (tokens, classes) = reference_data(&golden);
    let data = Dataset::new(&tokens, &classes, (0..6).collect());
    let all = Training {
        schedule: Schedule::Linear,
        warms_up: true,
        weight_decay: 0.1,
        clip_norm: Some(0.5),
        label_smoothing: 0.1,
        class_weights: true,
        gradient_norm: true,
        ..Training::default()
    };
    let options = TrainOptions {
        warmup_steps: 2,
        total_steps: 6,
        class_weights: vec![1.0, 2.0, 0.5, 1.5],
        ..TrainOptions::new(2e-3, 0)
    };
    let cosine = Training { schedule: Schedule::Cosine, ..all.clone() };
    let frozen = Training { freeze: Freeze::Layers(1), ..all.clone() };
    for (case, training) in [("linear", all), ("cosine", cosine), ("frozen", frozen)] {
        let mut trainer = reference_trainer(&training, options.clone());
        let mut steps: Vec<StepMetrics> = vec![];
        // One batch per epoch: the order within it changes nothing.
        for epoch in 1..=6 {
            trainer.train_epoch(&data, epoch, |step| steps.push(*step)).unwrap();
        }
        let series = |value: &dyn Fn(&StepMetrics) -> f64| {
            steps.iter().map(|step| value(step) as f32).collect::<Vec<_>>()
        };
        let golden = |name: &str| expected.f32s(&format!("{case}/{name}"));
        assert_close("rates", &series(&|step| step.learning_rate), &golden("rates"), 1e-9);
        assert_close("losses", &series(&StepMetrics::loss), &golden("losses"), ROUND);
        for (found, expected) in series(&|step| step.gradient_norm.unwrap()).iter().zip(golden("norms")) {
            assert!((found / expected - 1.0).abs() < 1e-4, "{case}: {found} and {expected}");
        }
        for weight in trainer.weights() {
            let names = [
                "classifier.weight",
                "classifier.bias",
                "bert.pooler.dense.weight",
                "bert.encoder.layer.0.attention.self.query.weight",
                "bert.encoder.layer.1.output.dense.weight",
                "bert.embeddings.LayerNorm.weight",
                "bert.embeddings.word_embeddings.weight",
            ];
            if names.contains(&&*weight.name) {
                let found = trainer.values(weight).unwrap();
                assert_close(&format!("{case}: {}", weight.name), &found, &golden(&weight.name), ROUND);
            }
        }
    }
}

/// By transformers 5.24: `get_scheduler(name, optimizer, 3, 10)`, what `get_last_lr()` gives before each step.
#[test]
fn schedules_equal_transformers() {
    let third = 1.0 / 3.0;
    let cosine = [1.0, 0.950484, 0.811745, 0.611260, 0.388740, 0.188255, 0.049516, 0.0];
    let linear = [1.0, 0.857143, 0.714286, 0.571429, 0.428571, 0.285714, 0.142857, 0.0];
    for (schedule, then) in
        [(Schedule::Constant, [1.0; 8]), (Schedule::Linear, linear), (Schedule::Cosine, cosine)]
    {
        let expected = [&[0.0, third, 2.0 * third], &then[..]].concat();
        for (done, expected) in expected.into_iter().enumerate() {
            let found = schedule.factor(done as u64, 3, 10);
            assert!((found - expected).abs() < 1e-6, "{schedule:?} after {done}: {found} and {expected}");
        }
        // Steps that a schedule doesn't know of; and one that is all warm-up.
        assert_eq!(schedule.factor(12, 3, 10), if schedule.has_end() { 0.0 } else { 1.0 });
        assert_eq!(schedule.factor(9, 10, 10), 0.9);
    }
    assert_eq!("0.25".parse::<Warmup>().unwrap().steps(10), 3);
    assert_eq!("7".parse::<Warmup>().unwrap().steps(10), 7);
}

/// Twenty steps of up to 64 examples, without dropout: their losses, and the weights then.
fn sixty_four(replicas: Arc<Replicas>, batch_size: usize, accumulate: usize) -> (Vec<f64>, Vec<Vec<f32>>) {
    let (tokens, classes) = sample();
    // The last batch is not full, whatever the number of rows.
    let rows = (0..ROWS).chain(0..ROWS).chain(0..ROWS).take(75).collect();
    let data = Dataset::new(&tokens, &classes, rows);
    let training = Training { accumulate, clip_norm: Some(1.0), label_smoothing: 0.1, ..Training::default() };
    let programs =
        Programs::compile(replicas, &model(0.0), batch_size, &training, Execution::default(), &[MAX_LENGTH])
            .unwrap();
    assert_eq!(programs.examples_per_step(), 64);
    let values = InitialValues::Random { seed: 7 };
    let origin = Origin::Weights(&values);
    let mut trainer = Trainer::start(Rc::new(programs), TrainOptions::new(1e-3, 7), origin).unwrap();
    let mut losses = vec![];
    for epoch in 1..=10 {
        trainer.train_epoch(&data, epoch, |step| losses.push(step.loss())).unwrap();
    }
    let weights = trainer.weights().into_iter().map(|weight| trainer.values(weight).unwrap());
    (losses, weights.collect())
}

#[test]
fn accumulated_batches_are_one_that_is_as_large() {
    let (losses, weights) = sixty_four(connect(1), 64, 1);
    assert_eq!(losses.len(), 20);
    assert!(losses[19] < losses[0] - 0.01, "{losses:?}");
    for (replicas, batch_size, accumulate) in [(1, 16, 4), (2, 16, 4), (1, 1, 64)] {
        let (found, found_weights) = sixty_four(connect(replicas), batch_size, accumulate);
        for (found, expected) in found.iter().zip(&losses) {
            assert!((found - expected).abs() < 1e-6, "{found} and {expected}");
        }
        for (found, expected) in found_weights.iter().zip(&weights) {
            assert_close("weights", found, expected, 1e-6);
        }
    }
}

#[test]
fn parts_of_a_step_draw_dropout_masks_of_their_own() {
    let (tokens, classes) = sample();
    // The same example in each part: without dropout, they would all have the same loss.
    let loss = |parts: usize, rate| {
        let data = Dataset::new(&tokens, &classes, vec![3; parts]);
        let training = Training { accumulate: 4, ..Training::default() };
        let programs =
            Programs::compile(connect(1), &model(rate), 1, &training, Execution::default(), &[MAX_LENGTH])
                .unwrap();
        let values = InitialValues::Random { seed: 7 };
        let origin = Origin::Weights(&values);
        let mut trainer = Trainer::start(Rc::new(programs), TrainOptions::new(0.0, 7), origin).unwrap();
        trainer.train_epoch(&data, 1, |_| ()).unwrap().loss
    };
    // Of four parts, and of the first alone.
    assert!((loss(4, 0.0) - loss(1, 0.0)).abs() < 1e-6);
    assert!((loss(4, 0.5) - loss(1, 0.5)).abs() > 1e-4, "all parts have one mask");
}

#[test]
fn what_is_frozen_has_no_moments_and_stays() {
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect());
    for (freeze, layers) in [(Freeze::Embeddings, 0), (Freeze::Layers(1), 1), (Freeze::Layers(2), 2)] {
        let is_frozen = |weight: &Weight| {
            weight.name.starts_with("bert.embeddings.")
                || (0..layers).any(|layer| weight.name.starts_with(&format!("bert.encoder.layer.{layer}.")))
        };
        let training = Training { freeze, ..Training::default() };
        let config = StepConfig { training: training.clone(), ..StepConfig::new(model(0.1), 1, 1) };
        let graph = Graph::new();
        let signature = train_step(&graph, &config).signature;
        for weight in model(0.1).weights().iter().filter(|weight| weight.part != Part::Pooler) {
            let has_moments = signature
                .leaves()
                .any(|(leaf, _)| matches!(leaf, LeafId::Moment(_, name) if *name == weight.name));
            assert_eq!(has_moments, !is_frozen(weight), "{freeze:?}: {}", weight.name);
        }
        let programs =
            Programs::compile(connect(2), &model(0.1), 8, &training, Execution::default(), &[MAX_LENGTH])
                .unwrap();
        let values = InitialValues::Random { seed: 7 };
        let origin = Origin::Weights(&values);
        let mut trainer = Trainer::start(Rc::new(programs), training::options(7), origin).unwrap();
        let before =
            trainer.weights().iter().map(|weight| trainer.values(weight).unwrap()).collect::<Vec<_>>();
        for epoch in 1..=2 {
            trainer.train_epoch(&data, epoch, |_| ()).unwrap();
        }
        let [weights, first, second] = trainer.snapshot(Default::default()).unwrap();
        let frozen = trainer.weights().iter().filter(|weight| is_frozen(weight)).count();
        // The pooler has none either.
        assert_eq!([first.len(), second.len()], [weights.len() - frozen - 2; 2]);
        for (weight, before) in trainer.weights().into_iter().zip(before) {
            let found = weights.iter().find(|tensor| tensor.name == weight.name).unwrap();
            assert_eq!(found.values, trainer.values(weight).unwrap());
            let stays = is_frozen(weight) || weight.part == Part::Pooler;
            assert_eq!(found.values == before, stays, "{freeze:?}: {}", weight.name);
        }
    }
}

/// By scikit-learn 1.7's `compute_class_weight("balanced", classes=[1, 2, 3], y=[1] * 6 + [2] * 3 + [3])`: 0.5555...,
/// 1.1111..., 3.3333...
#[test]
fn class_weights_are_scikit_learns() {
    let labels = bert_xla::data::LabelMap::default();
    let classes = [1, 1, 1, 1, 1, 1, 2, 2, 2, 3];
    let balanced = "balanced".parse::<ClassWeights>().unwrap();
    let found = balanced.of(&labels, 4, classes.into_iter());
    assert_close("balanced", &found, &[1.0, 10.0 / 18.0, 10.0 / 9.0, 10.0 / 3.0], 1e-6);
    let given = "-1=2,1=0.5".parse::<ClassWeights>().unwrap();
    assert_eq!(given.of(&labels, 4, classes.into_iter()), [1.0, 2.0, 1.0, 0.5]);
    assert_eq!(given.to_string(), "-1=2,1=0.5");
    for wrong in ["", "1", "1=x", "1=-2", "1=nan", "1=1,1=2", "1=1e300"] {
        assert!(wrong.parse::<ClassWeights>().is_err(), "{wrong}");
    }
}
