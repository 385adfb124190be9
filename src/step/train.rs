//! The program of one optimizer step: forward, gradients, their reduction over the replicas, and the update.

use super::StepConfig;
use super::forward::{Batch, Loss};
use super::reduce::Mirrored;
use super::signature::{InputId, Interface, Layout, LeafId, Moment, OutputId, Step};
use super::update::{Adam, AdamState};
use crate::hlo::{Graph, Tensor};
use crate::model::Classifier;
use crate::nn::{Mode, Params, Randomness, Weight};
use crate::shape::ElementType;

/// One optimizer step: takes the state (weights, moments, step count), learning rate, seed and a labelled batch;
/// returns the new state, in its old memory, and the metrics.
pub fn train_step<'g>(graph: &'g Graph, config: &StepConfig) -> Step<'g> {
    let replicas = Mirrored { replicas: config.replicas };
    let mut interface = Interface::new(graph);
    let done = interface.scalar(InputId::Leaf(LeafId::Step), ElementType::U32);
    let learning_rate = interface.scalar(InputId::LearningRate, ElementType::F32);
    let seed = interface.scalar(InputId::Seed, ElementType::U32);
    let batch = Batch::new(&mut interface, config);

    let params = Params::new(graph, ElementType::F32);
    let model = Classifier::new(&config.model, graph, &params);
    let mode = Mode::Train(Randomness::new(graph, seed, done));
    let scores = batch.texts.scores(&model, &mode);
    let (loss, metrics) = graph.scope("loss", || {
        let terms = Loss::new(scores, &batch);
        (terms.sum / replicas.sum(batch.examples()), terms.metrics(replicas))
    });

    let (weights, tensors): (Vec<_>, Vec<_>) = params.declared().into_iter().unzip();
    let gradients = graph.gradients(loss, &tensors);
    let adam = graph.scope("adam", || Adam::new(learning_rate, done + 1.0));
    for ((weight, tensor), gradient) in weights.iter().zip(tensors).zip(gradients) {
        // A weight that the loss doesn't depend on (the pooler's) is no part of the step.
        let Some(gradient) = gradient else { continue };
        graph.scope(&format!("adam/{}", weight.name), || {
            let before = state(&mut interface, weight, tensor);
            let after = adam.update(before, replicas.reduce(gradient));
            let after = AdamState { weight: replicas.publish(after.weight), ..after };
            for (leaf, tensor) in leaves(weight).into_iter().zip([after.weight, after.m, after.v]) {
                interface.output(OutputId::Leaf(leaf), tensor, Mirrored::STATE);
            }
        });
    }
    interface.output(OutputId::Leaf(LeafId::Step), done + 1.0, Layout::Mirrored);
    interface.output(OutputId::Metrics, metrics, Layout::Mirrored);
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
