//! The program of one optimizer step: forward, gradients, their reduction over the replicas, and the update.

use super::StepConfig;
use super::backward::{Forward, accumulated};
use super::forward::{Examples, Targets, meet, metrics};
use super::reduce::Mirrored;
use super::signature::{InputId, Interface, Layout, LeafId, Moment, OutputId, Step};
use super::update::{Adam, AdamState, clip, norm};
use crate::hlo::{Graph, Tensor};
use crate::model::Classifier;
use crate::nn::{Params, Randomness, Weight};
use crate::shape::{ElementType, Shape};

/// One optimizer step: takes the state (weights, moments, step count), learning rate, seed and a labelled batch;
/// returns the new state, in its old memory, and the metrics.
pub fn train_step<'g>(graph: &'g Graph, config: &StepConfig) -> Step<'g> {
    let training = &config.training;
    let replicas = Mirrored { replicas: config.replicas };
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

    let params = Params::new(graph, ElementType::F32);
    let model = Classifier::new(&config.model, graph, &params);
    let (weights, tensors): (Vec<_>, Vec<_>) = params.declared().into_iter().unzip();
    let is_trained = weights.iter().map(|weight| !training.freeze.keeps(weight)).collect::<Vec<_>>();
    let told = |sums| graph.scope("loss", || metrics(sums, meet, replicas));
    let (gradients, metrics) = if training.accumulate == 1 {
        let total = || replicas.sum(examples.count());
        let forward = Forward::new(&model, &examples, targets, Randomness::new(graph, seed, done), total);
        let metrics = told(forward.sums);
        (forward.gradients(&tensors, &is_trained), metrics)
    } else {
        let (gradients, sums) = accumulated(config, &tensors, &is_trained, &examples, targets, [seed, done]);
        (gradients, told(sums))
    };

    let norm = (training.clip_norm.is_some() || training.gradient_norm).then(|| {
        let reduced = gradients.iter().flatten().map(|gradient| replicas.reduce(*gradient));
        graph.scope("adam", || norm(reduced))
    });
    let scale = norm.zip(training.clip_norm).map(|(norm, most)| graph.scope("adam", || clip(norm, most)));
    let adam = graph.scope("adam", || Adam::new(rate, done + 1.0, training.weight_decay));
    for ((weight, tensor), gradient) in weights.iter().zip(tensors).zip(gradients) {
        let Some(gradient) = gradient else {
            // A weight that the loss doesn't depend on (the recipe's pooler) is no part of the step.
            if metrics.depends_on(tensor) {
                interface.adopt(InputId::Leaf(weight.leaf()), tensor, Mirrored::STATE);
            }
            continue;
        };
        graph.scope(&format!("adam/{}", weight.name), || {
            let before = state(&mut interface, weight, tensor);
            let gradient = replicas.reduce(gradient);
            let after = adam.update(before, scale.map_or(gradient, |scale| gradient * scale));
            let after = AdamState { weight: replicas.publish(after.weight), ..after };
            for (leaf, tensor) in leaves(weight).into_iter().zip([after.weight, after.m, after.v]) {
                interface.output(OutputId::Leaf(leaf), tensor, Mirrored::STATE);
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

/// What the optimizer keeps of a weight: itself and both moments.
fn leaves(weight: &Weight) -> [LeafId; 3] {
    let moment = |moment| LeafId::Moment(moment, weight.name.clone());
    [weight.leaf(), moment(Moment::First), moment(Moment::Second)]
}

/// A weight's state before the step, declared as inputs.
fn state<'g>(interface: &mut Interface<'g>, weight: &Weight, tensor: Tensor<'g>) -> AdamState<'g> {
    let [own, first, second] = leaves(weight).map(InputId::Leaf);
    interface.adopt(own, tensor, Mirrored::STATE);
    let mut moment = |id| interface.input(id, weight.shape.clone(), Mirrored::STATE);
    AdamState { weight: tensor, m: moment(first), v: moment(second) }
}
