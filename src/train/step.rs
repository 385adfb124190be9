//! The programs of one step: training (forward, loss, gradients, all-reduce and Adam in one module), evaluation,
//! prediction and encoding.

use super::adam::{Adam, AdamState};
use crate::hlo::{Comparison, Graph, Program, Tensor};
use crate::model::{Bert, BertConfig, Classifier, ClassifierConfig};
use crate::nn::{Mode, Params, Randomness, Weight};
use crate::shape::{ElementType, Shape};

/// Keras' `epsilon()`: probabilities are clipped to `[1e-7, 1 - 1e-7]` before the logarithm.
const CLIP: f64 = 1e-7;

/// What fixes a step's program.
#[derive(Clone, Debug, PartialEq)]
pub struct StepConfig {
    pub model: ClassifierConfig,
    /// Rows that each replica takes per step.
    pub batch_size: usize,
    /// Replicas that run the program together.
    pub replicas: usize,
}

/// A step's program, and the weights that it takes first, in this order.
pub struct Step<'g> {
    pub program: Program<'g>,
    pub weights: Vec<Weight>,
}

/// One optimizer step.
///
/// Inputs: the weights; their first moments; their second moments; `step` `u32[]`, the steps done; `learning_rate`
/// `f32[]`; `seed` `u32[]`; the batch: `input_ids`, the mask if the model takes one, `labels` and
/// `weights`.
///
/// Outputs: the new weights, moments and `step`, each in its input's memory; `metrics` `f32[2]`: over all replicas,
/// the sum over examples of the loss, and the number that the model got right.
pub fn train_step<'g>(graph: &'g Graph, config: &StepConfig) -> Step<'g> {
    let scalar = |name: &str, element_type| graph.parameter(name, Shape::scalar(element_type));
    let done = scalar("step", ElementType::U32);
    let learning_rate = scalar("learning_rate", ElementType::F32);
    let seed = scalar("seed", ElementType::U32);
    let batch = BatchTensors::new(graph, config);

    let params = Params::new(graph, ElementType::F32);
    let model = Classifier::new(&config.model, graph, &params);
    let mode = Mode::Train(Randomness::new(graph, seed, done));
    let scores = model.forward(batch.texts.input_ids, batch.texts.mask, &mode);
    let (loss, metrics) = graph.scope("loss", || {
        let terms = LossTerms::new(scores, &batch);
        let examples = across_replicas(batch.weights.sum(&[0]), config.replicas);
        (terms.loss_sum / examples, across_replicas(terms.metrics(), config.replicas))
    });

    let (weights, tensors): (Vec<_>, Vec<_>) = params.declared().into_iter().unzip();
    let gradients = graph.gradients(loss, &tensors);
    let adam = graph.scope("adam", || Adam::new(learning_rate, done + 1.0));
    let mut trained = Trained::default();
    for ((weight, tensor), gradient) in weights.into_iter().zip(tensors).zip(gradients) {
        // A weight that the loss doesn't depend on (the pooler's) is no part of the step.
        let Some(gradient) = gradient else { continue };
        graph.scope(&format!("adam/{}", weight.name), || {
            let moment =
                |kind: &str| graph.parameter(format!("{kind}.{}", weight.name), weight.shape.clone());
            let state = AdamState { weight: tensor, m: moment("m"), v: moment("v") };
            let updated = adam.update(state, across_replicas(gradient, config.replicas));
            trained.push(weight.clone(), state, updated);
        });
    }

    let (mut inputs, mut outputs) = (Trained::flatten(&trained.before), Trained::flatten(&trained.after));
    inputs.push(done);
    outputs.push(done + 1.0);
    let state = inputs.len();
    inputs.extend([learning_rate, seed]);
    inputs.extend(batch.inputs());
    outputs.push(metrics);
    let mut program = Program::new("train_step", inputs, outputs);
    (0..state).for_each(|i| program.alias(i, i));
    Step { program, weights: trained.weights }
}

/// Loss and predictions of one batch, without training.
///
/// Inputs: the weights; the batch as in [`train_step`]. Outputs: `metrics` `f32[2]` as there; `probabilities`
/// `f32[replicas * batch_size, classes]`, the whole batch's on each replica.
pub fn eval_step<'g>(graph: &'g Graph, config: &StepConfig) -> Step<'g> {
    let batch = BatchTensors::new(graph, config);
    let params = Params::new(graph, ElementType::F32);
    let scores = Classifier::new(&config.model, graph, &params).forward(
        batch.texts.input_ids,
        batch.texts.mask,
        &Mode::Inference,
    );
    let outputs = graph.scope("loss", || {
        let terms = LossTerms::new(scores, &batch);
        let probabilities = terms.probabilities.all_gather(config.replicas);
        vec![across_replicas(terms.metrics(), config.replicas), probabilities]
    });
    inference_step("eval_step", &params, batch.inputs(), outputs)
}

/// Class probabilities of one batch.
///
/// Inputs: the weights; `input_ids` and the mask if the model takes one. Output: `probabilities`
/// `f32[replicas * batch_size, classes]`, the whole batch's on each replica.
pub fn predict_step<'g>(graph: &'g Graph, config: &StepConfig) -> Step<'g> {
    let texts = Texts::new(graph, config.batch_size, config.model.max_length, config.model.mask);
    let params = Params::new(graph, ElementType::F32);
    let model = Classifier::new(&config.model, graph, &params);
    let scores = model.forward(texts.input_ids, texts.mask, &Mode::Inference);
    let probabilities = normalize(scores).all_gather(config.replicas);
    inference_step("predict_step", &params, texts.inputs(), vec![probabilities])
}

/// The last hidden states of one batch of texts, by the encoder alone.
///
/// Inputs: the weights; `input_ids` `s32[batch_size, max_length]`; with `mask`, the attention mask of the same
/// shape. Output: `f32[replicas * batch_size, max_length, hidden]`, the whole batch's on each replica.
pub fn encode_step<'g>(
    graph: &'g Graph,
    config: &BertConfig,
    batch_size: usize,
    max_length: usize,
    mask: bool,
    replicas: usize,
) -> Step<'g> {
    let params = Params::new(graph, ElementType::F32);
    let bert = Bert::new(config, graph, params.root().pp("bert"));
    let texts = Texts::new(graph, batch_size, max_length, mask);
    let states = bert.forward(texts.input_ids, texts.mask, &Mode::Inference);
    inference_step("encode_step", &params, texts.inputs(), vec![states.all_gather(replicas)])
}

/// The program of `outputs`, which takes the weights that they depend on and then `inputs`.
fn inference_step<'g>(
    name: &str,
    params: &Params<'g>,
    inputs: Vec<Tensor<'g>>,
    outputs: Vec<Tensor<'g>>,
) -> Step<'g> {
    let used = |(_, tensor): &(Weight, Tensor<'g>)| outputs.iter().any(|output| output.depends_on(*tensor));
    let (weights, mut parameters): (_, Vec<_>) = params.declared().into_iter().filter(used).unzip();
    parameters.extend(inputs);
    Step { program: Program::new(name, parameters, outputs), weights }
}

/// The texts of one replica's batch.
struct Texts<'g> {
    /// `s32[batch_size, max_length]`.
    input_ids: Tensor<'g>,
    /// Of the same shape, 0 for padding.
    mask: Option<Tensor<'g>>,
}

impl<'g> Texts<'g> {
    fn new(graph: &'g Graph, batch_size: usize, max_length: usize, mask: bool) -> Self {
        let tokens = |name| graph.parameter(name, Shape::new(ElementType::S32, [batch_size, max_length]));
        Self { input_ids: tokens("input_ids"), mask: mask.then(|| tokens("attention_mask")) }
    }

    fn inputs(&self) -> Vec<Tensor<'g>> {
        [self.input_ids].into_iter().chain(self.mask).collect()
    }
}

/// One replica's share of a labelled batch.
struct BatchTensors<'g> {
    texts: Texts<'g>,
    /// `s32[batch_size]`.
    labels: Tensor<'g>,
    /// `f32[batch_size]`: 1 for an example, 0 for a row that only fills up the last batch.
    weights: Tensor<'g>,
}

impl<'g> BatchTensors<'g> {
    fn new(graph: &'g Graph, config: &StepConfig) -> Self {
        let column =
            |name, element_type| graph.parameter(name, Shape::new(element_type, [config.batch_size]));
        Self {
            texts: Texts::new(graph, config.batch_size, config.model.max_length, config.model.mask),
            labels: column("labels", ElementType::S32),
            weights: column("weights", ElementType::F32),
        }
    }

    fn inputs(&self) -> Vec<Tensor<'g>> {
        self.texts.inputs().into_iter().chain([self.labels, self.weights]).collect()
    }
}

/// Keras' `categorical_crossentropy` on outputs that are not logits, summed over one replica's examples.
struct LossTerms<'g> {
    /// `f32[batch_size, classes]`.
    probabilities: Tensor<'g>,
    /// `f32[]`.
    loss_sum: Tensor<'g>,
    /// `f32[]`: the number of examples whose most probable class is their label.
    correct: Tensor<'g>,
}

impl<'g> LossTerms<'g> {
    /// `scores` `[batch_size, classes]`, positive.
    fn new(scores: Tensor<'g>, batch: &BatchTensors<'g>) -> Self {
        let probabilities = normalize(scores);
        let one_hot = batch.labels.one_hot(scores.dim(1), ElementType::F32);
        let log = probabilities.clip(CLIP, 1.0 - CLIP).log();
        let loss = -(log * one_hot).sum(&[1]);
        let correct = scores.argmax().compare(Comparison::Eq, batch.labels).convert(ElementType::F32);
        Self {
            probabilities,
            loss_sum: (loss * batch.weights).sum(&[0]),
            correct: (correct * batch.weights).sum(&[0]),
        }
    }

    /// `f32[2]`: the loss sum and the number of correct answers.
    fn metrics(&self) -> Tensor<'g> {
        let pair = [self.loss_sum.reshape(&[1]), self.correct.reshape(&[1])];
        self.loss_sum.graph().concatenate(&pair, 0)
    }
}

/// Each row divided by its sum.
fn normalize(scores: Tensor<'_>) -> Tensor<'_> {
    scores / scores.sum(&[1]).keep_dims(&[1])
}

/// The sum over the replicas.
fn across_replicas(tensor: Tensor<'_>, replicas: usize) -> Tensor<'_> {
    if replicas == 1 { tensor } else { tensor.all_reduce_sum() }
}

/// The weights that a train step updates, before and after.
#[derive(Default)]
struct Trained<'g> {
    weights: Vec<Weight>,
    before: Vec<AdamState<'g>>,
    after: Vec<AdamState<'g>>,
}

impl<'g> Trained<'g> {
    fn push(&mut self, weight: Weight, before: AdamState<'g>, after: AdamState<'g>) {
        self.weights.push(weight);
        self.before.push(before);
        self.after.push(after);
    }

    /// All weights, then all first moments, then all second moments.
    fn flatten(states: &[AdamState<'g>]) -> Vec<Tensor<'g>> {
        let parts: [fn(&AdamState<'g>) -> Tensor<'g>; 3] = [|s| s.weight, |s| s.m, |s| s.v];
        parts.into_iter().flat_map(|part| states.iter().map(part)).collect()
    }
}
