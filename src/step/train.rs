//! The program of one optimizer step: forward, gradients, their reduction over the replicas, and the update.

use super::StepConfig;
use super::backward::{Forward, accumulated};
use super::forward::{Examples, Targets, meet, metrics};
use super::held::{Held, Replicas, hold, norm};
use super::signature::{InputId, Interface, Layout, LeafId, Moment, OutputId, Step};
use super::update::{Adam, AdamState, clip};
use crate::hlo::Graph;
use crate::nn::{Randomness, Weight};
use crate::shape::{ElementType, Shape};

/// One optimizer step: takes the state (weights, moments, step count), learning rate, seed and a labelled batch;
/// returns the new state, in its old memory, and the metrics.
pub fn train_step<'g>(graph: &'g Graph, config: &StepConfig) -> Step<'g> {
    let training = &config.training;
    let replicas = Replicas { count: config.replicas };
    let mut interface = Interface::new(graph);
    let done = interface.scalar(InputId::Leaf(LeafId::Step), ElementType::U32);
    let learning_rate = interface.scalar(InputId::LearningRate, ElementType::F32);
    let seed = interface.scalar(InputId::Seed, ElementType::U32);
    let examples = Examples::new(&mut interface, config, config.rows * training.accumulate);
    let meet = meet(&mut interface);
    let classes = Shape::new(ElementType::F32, [config.model.head.num_classes()]);
    let class_weights =
        training.class_weights.then(|| interface.input(InputId::ClassWeights, classes, Layout::Mirrored));
    let targets = Targets { label_smoothing: training.label_smoothing, class_weights };
    let rate = match training.schedule.build(&mut interface, done, training.warms_up) {
        Some(factor) => learning_rate * factor,
        None => learning_rate,
    };

    let (model, held) = hold(graph, config);
    let is_trained = held.iter().map(|held| !training.freeze.keeps(held.weight())).collect::<Vec<_>>();
    let told = |sums| graph.scope("loss", || metrics(sums, meet, replicas));
    let (gradients, metrics) = if training.accumulate == 1 {
        let total = || replicas.sum(examples.count());
        let randomness = Randomness::new(graph, seed, done, config.execution.dropout_bits);
        let forward = Forward::new(&model, &examples, targets, randomness, config, total);
        let metrics = told(forward.sums);
        let given = held.iter().map(|held| &held.given).collect::<Vec<_>>();
        (forward.gradients(&given, &is_trained), metrics)
    } else {
        let (gradients, sums) = accumulated(config, &held, &is_trained, &examples, targets, [seed, done]);
        (gradients, told(sums))
    };
    let reduced = held.iter().zip(gradients).map(|(held, gradient)| gradient.map(|part| held.reduce(part)));
    let gradients = graph.scope("adam/exchange", || reduced.collect::<Vec<_>>());

    let norm = (training.clip_norm.is_some() || training.gradient_norm)
        .then(|| graph.scope("adam", || norm(&held, &gradients, replicas)));
    let scale = norm.zip(training.clip_norm).map(|(norm, most)| graph.scope("adam", || clip(norm, most)));
    let adam = graph.scope("adam", || Adam::new(rate, done + 1.0, training.weight_decay));
    for (held, gradient) in held.iter().zip(gradients) {
        let Some(gradient) = gradient else {
            // A weight that the loss doesn't depend on (the recipe's pooler) is no part of the step.
            held.adopt(&mut interface, &[metrics]);
            continue;
        };
        graph.scope(&format!("adam/{}", held.weight().name), || {
            let before = state(&mut interface, held);
            let after = adam.update(before, scale.map_or(gradient, |scale| gradient * scale));
            held.publish(&mut interface, after.weight);
            for (leaf, tensor) in moments(held.weight()).into_iter().zip([after.m, after.v]) {
                interface.output(OutputId::Leaf(leaf), tensor, held.given.layout);
            }
        });
    }
    interface.output(OutputId::Leaf(LeafId::Step), done + 1.0, Layout::Mirrored);
    interface.output(OutputId::Metrics, metrics, Layout::Mirrored);
    if let Some(norm) = norm.filter(|_| training.gradient_norm) {
        interface.output(OutputId::GradientNorm, norm, Layout::Mirrored);
    }
    interface.finish("train_step")
}

fn moments(weight: &Weight) -> [LeafId; 2] {
    [Moment::First, Moment::Second].map(|moment| LeafId::Moment(moment, weight.name.clone()))
}

/// A weight's state before the step, declared as inputs.
fn state<'g>(interface: &mut Interface<'g>, held: &Held<'g>) -> AdamState<'g> {
    held.adopt_all(interface);
    let moment = |id| interface.input(InputId::Leaf(id), held.own.shape(), held.given.layout);
    let [m, v] = moments(held.weight()).map(moment);
    AdamState { weight: held.own, m, v }
}
