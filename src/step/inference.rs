//! The programs that don't train: evaluation, prediction and encoding. Each replica returns the whole batch's results.

use super::StepConfig;
use super::forward::{Examples, Loss, Targets, Texts, meet, metrics};
use super::held::{Held, Replicas, hold};
use super::signature::{InputId, Interface, Layout, OutputId, Step};
use crate::hlo::{Graph, Tensor};
use crate::model::{Bert, BertConfig, ENCODER};
use crate::nn::{Mode, Params, Part, Weight};
use crate::shape::ElementType;

/// Loss and probabilities of one labelled batch, without training.
pub fn eval_step<'g>(graph: &'g Graph, config: &StepConfig) -> Step<'g> {
    let replicas = Replicas { count: config.replicas };
    let mut interface = Interface::new(graph);
    let examples = Examples::new(&mut interface, config, config.rows);
    let meet = meet(&mut interface);
    let (model, held) = hold(graph, config);
    let scores = examples.texts.scores(&model, &inference(config));
    let outputs = graph.scope("loss", || {
        let loss = Loss::new(scores, &examples, Targets::default());
        let probabilities = loss.probabilities.all_gather(config.replicas);
        let metrics = metrics([loss.sum, loss.correct], meet, replicas);
        vec![(OutputId::Metrics, metrics), (OutputId::Probabilities, probabilities)]
    });
    finish("eval_step", interface, &held, outputs)
}

/// Class probabilities of one batch of texts.
pub fn predict_step<'g>(graph: &'g Graph, config: &StepConfig) -> Step<'g> {
    let mut interface = Interface::new(graph);
    let texts = Texts::new(&mut interface, config.rows, config.length, config.model.mask);
    let (model, held) = hold(graph, config);
    let scores = texts.scores(&model, &inference(config));
    let probabilities = scores.probabilities().all_gather(config.replicas);
    finish("predict_step", interface, &held, vec![(OutputId::Probabilities, probabilities)])
}

fn inference<'g>(config: &StepConfig) -> Mode<'g> {
    Mode::inference(config.execution.precision.element_type())
}

/// What fixes the program of [`encode_step`].
#[derive(Clone, Debug, PartialEq)]
pub struct EncodeConfig {
    pub bert: BertConfig,
    pub max_length: usize,
    /// Whether an attention mask hides the padding.
    pub mask: bool,
}

impl EncodeConfig {
    /// The weights that the encoder declares.
    pub fn weights(&self) -> Vec<Weight> {
        let graph = Graph::new();
        let params = Params::new(&graph, ElementType::F32);
        Bert::new(&self.bert, &graph, params.root(Part::Encoder).pp(ENCODER));
        params.declared().into_iter().map(|(weight, _)| weight).collect()
    }
}

/// The last hidden states of one batch of texts, `rows` on each replica, by the encoder alone.
pub fn encode_step<'g>(graph: &'g Graph, config: &EncodeConfig, rows: usize, replicas: usize) -> Step<'g> {
    let mut interface = Interface::new(graph);
    let params = Params::new(graph, ElementType::F32);
    let bert = Bert::new(&config.bert, graph, params.root(Part::Encoder).pp(ENCODER));
    let texts = Texts::new(&mut interface, rows, config.max_length, config.mask);
    let states = bert.forward(texts.input_ids, texts.mask, &Mode::inference(ElementType::F32));
    let states = states.all_gather(replicas);
    for (weight, tensor) in params.declared() {
        if states.depends_on(tensor) {
            interface.adopt(InputId::Leaf(weight.leaf()), tensor, Layout::Mirrored);
        }
    }
    interface.output(OutputId::HiddenStates, states, Layout::Mirrored);
    interface.finish("encode_step")
}

/// The program of `outputs`, which takes the weights that they depend on.
fn finish<'g>(
    name: &str,
    mut interface: Interface<'g>,
    held: &[Held<'g>],
    outputs: Vec<(OutputId, Tensor<'g>)>,
) -> Step<'g> {
    let tensors = outputs.iter().map(|(_, tensor)| *tensor).collect::<Vec<_>>();
    held.iter().for_each(|held| held.adopt(&mut interface, &tensors));
    for (id, tensor) in outputs {
        interface.output(id, tensor, Layout::Mirrored);
    }
    interface.finish(name)
}
