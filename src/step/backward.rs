//! Loss and gradients of one replica's examples: of all at once, or of one part after another.

use super::StepConfig;
use super::forward::{Examples, Loss, Targets, Texts};
use super::held::{Given, Held, Replicas, pass};
use crate::hlo::{Function, Residuals, Scan, Tensor};
use crate::model::Classifier;
use crate::nn::{Mode, Randomness};
use crate::shape::{ElementType, Shape};

/// The model's loss on one replica's examples.
pub(super) struct Forward<'g> {
    /// `f32[]`: the part of the mean over all replicas' examples that is of these.
    mean: Tensor<'g>,
    /// `f32[]` each: of losses, and of correct answers.
    pub sums: [Tensor<'g>; 2],
    residuals: Residuals,
}

impl<'g> Forward<'g> {
    /// `total` gives the number of all replicas' examples, `f32[]`.
    pub fn new(
        model: &Classifier<'g>,
        examples: &Examples<'g>,
        targets: Targets<'g>,
        randomness: Randomness<'g>,
        config: &StepConfig,
        total: impl FnOnce() -> Tensor<'g>,
    ) -> Self {
        let element_type = config.execution.precision.element_type();
        let mode = Mode { element_type, randomness: Some(randomness) };
        let scores = examples.texts.scores(model, &mode);
        examples.labels.graph().scope("loss", || {
            let loss = Loss::new(scores, examples, targets);
            let residuals = config.execution.residuals;
            Self { mean: loss.sum / total(), sums: [loss.sum, loss.correct], residuals }
        })
    }

    /// Of the mean loss, for each of the weights that is trained and that the loss depends on: see [`Given::own_part`].
    pub fn gradients(&self, given: &[&Given<'g>], is_trained: &[bool]) -> Vec<Option<Tensor<'g>>> {
        let trained = pick(given, is_trained);
        let read = trained.iter().map(|given| given.read).collect::<Vec<_>>();
        let graph = self.mean.graph();
        let gradients = graph.gradients_from(self.residuals, self.mean, &read);
        let own =
            trained.iter().zip(gradients).map(|(given, gradient)| gradient.map(|all| given.own_part(all)));
        let mut own = graph.scope("adam/exchange", || own.collect::<Vec<_>>()).into_iter();
        is_trained.iter().map(|is_trained| if *is_trained { own.next()? } else { None }).collect()
    }
}

/// Gradients and sums of one replica's examples, as [`Forward`] has them, of `rows` at a time: one gradient of each weight is
/// in memory, and one part's activations. What is gathered of the weights, is once.
pub(super) fn accumulated<'g>(
    config: &StepConfig,
    held: &[Held<'g>],
    is_trained: &[bool],
    examples: &Examples<'g>,
    targets: Targets<'g>,
    [seed, done]: [Tensor<'g>; 2],
) -> (Vec<Option<Tensor<'g>>>, [Tensor<'g>; 2]) {
    let graph = seed.graph();
    let replicas = Replicas { count: config.replicas };
    let total = graph.scope("loss", || replicas.sum(examples.count()));
    let parts = config.training.accumulate;
    let Examples { texts: Texts { input_ids, mask }, labels, weights: counted } = *examples;
    let part = |tensor: Tensor<'g>| {
        let dims = tensor.dims();
        tensor.reshape(&[&[parts, dims[0] / parts], &dims[1..]].concat())
    };
    let scanned = [input_ids, labels, counted].into_iter().chain(mask).map(part).collect::<Vec<_>>();

    let (mut is_used, mut has_gradient) = (vec![], vec![]);
    let one_part = Function::build(|graph| {
        let (model, given) = pass(graph, config, held);
        let weights = given.iter().map(|given| given.passed).collect::<Vec<_>>();
        let like = |name: &str, outer: Tensor<'_>| graph.parameter(name, outer.shape());
        let entry = |name: &str, outer: Tensor<'_>| {
            let Shape { element_type, dims } = outer.shape();
            graph.parameter(name, Shape::new(element_type, &dims[1..]))
        };
        let [input_ids, labels, counted] =
            [(0, "input_ids"), (1, "labels"), (2, "weights")].map(|(i, name)| entry(name, scanned[i]));
        let mask = mask.map(|_| entry("attention_mask", scanned[3]));
        let own = Examples { texts: Texts { input_ids, mask }, labels, weights: counted };
        let index = graph.parameter("part", Shape::scalar(ElementType::S32));
        let [total, seed, done] = [("total", total), ("seed", seed), ("done", done)].map(|(n, t)| like(n, t));
        let class_weights = targets.class_weights.map(|weights| like("class_weights", weights));
        let targets = Targets { label_smoothing: targets.label_smoothing, class_weights };
        let randomness = Randomness::new(graph, seed, done, config.execution.dropout_bits).part(index);
        let forward = Forward::new(&model, &own, targets, randomness, config, || total);
        let gradients = forward.gradients(&given.iter().collect::<Vec<_>>(), is_trained);
        is_used = weights.iter().map(|weight| forward.mean.depends_on(*weight)).collect();
        has_gradient = gradients.iter().map(Option::is_some).collect::<Vec<_>>();
        let used = pick(&weights, &is_used);
        let parameters = [index, input_ids, labels, counted].into_iter().chain(mask);
        let parameters = parameters.chain([total, seed, done]).chain(class_weights).chain(used).collect();
        (parameters, forward.sums.into_iter().chain(gradients.into_iter().flatten()).collect())
    });

    let zero = graph.constant(ElementType::F32, 0.0);
    let gradients = pick(held, &has_gradient);
    let start = gradients.iter().map(|held| graph.full(held.own.shape(), 0.0));
    let start = [zero, zero].into_iter().chain(start).collect::<Vec<_>>();
    let weights = held.iter().map(|held| held.given.passed).collect::<Vec<_>>();
    let invariant =
        [total, seed, done].into_iter().chain(targets.class_weights).chain(pick(&weights, &is_used));
    let invariant = invariant.collect::<Vec<_>>();
    let over =
        Scan { trips: parts, reversed: false, carried: &start, scanned: &scanned, invariant: &invariant };
    let (sums, _) = graph.scan(over, |graph, trip| {
        let inputs = [&[trip.index], &trip.scanned[..], &trip.invariant].concat();
        let sums = graph.call(&one_part, &inputs).into_iter().zip(trip.carried).map(|(term, sum)| sum + term);
        (sums.collect(), vec![])
    });
    let (of_examples, gradients) = sums.split_at(2);
    let mut gradients = gradients.iter().copied();
    let gradients = has_gradient.iter().map(|has| if *has { gradients.next() } else { None });
    (gradients.collect(), [of_examples[0], of_examples[1]])
}

fn pick<T: Clone>(all: &[T], which: &[bool]) -> Vec<T> {
    all.iter().zip(which).filter(|(_, is_picked)| **is_picked).map(|(one, _)| one.clone()).collect()
}
