//! The model and the train step against PyTorch and transformers: `tests/fixtures/tiny_bert.safetensors` holds a
//! 2-layer BERT with the recipe's head, its outputs, gradients and three Keras-Adam steps, all made there in float32.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bert_xla::data::{Dataset, Tokens};
use bert_xla::exec::{Error as ExecError, Replicas};
use bert_xla::hlo::{Graph, Program, Tensor};
use bert_xla::infer::{EncodeProgram, EvalProgram, upload_weights};
use bert_xla::model::head::DenseHeadConfig;
use bert_xla::model::{Bert, BertConfig, Classifier, ClassifierConfig, HeadConfig};
use bert_xla::nn::{DropoutBits, Mode, Params, Part, Randomness, Weight};
use bert_xla::pjrt::{Argument, Buffer, Element};
use bert_xla::shape::{ElementType, Shape};
use bert_xla::step::{EncodeConfig, StepConfig, eval_step};
use bert_xla::train::{Origin, TrainOptions, Trainer};
use bert_xla::weights::{InitialValues, TensorFiles};
use safetensors::SafeTensors;

use crate::common::graph::{Compiled, client};
use crate::common::minilm;
use crate::common::training::connect;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The tensors of a fixture file.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn read(name: &str) -> Self {
        Self(std::fs::read(fixture(name)).unwrap())
    }

    fn bytes<const N: usize, T>(&self, name: &str, value: fn([u8; N]) -> T) -> Vec<T> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|_| panic!("no {name}"));
        tensor.data().chunks_exact(N).map(|chunk| value(chunk.try_into().unwrap())).collect()
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        self.bytes(name, f32::from_le_bytes)
    }

    pub fn i32s(&self, name: &str) -> Vec<i32> {
        self.bytes(name, i32::from_le_bytes)
    }

    /// `input_ids`, without what `mask` hides.
    pub fn tokens(&self, mask: &str, max_length: usize) -> Tokens {
        let (ids, mask) = (self.i32s("input_ids"), self.i32s(mask));
        let row = |(ids, mask): (&[i32], &[i32])| {
            let length = mask.iter().sum::<i32>() as usize;
            ids[..length].iter().map(|id| *id as u32).collect::<Vec<_>>()
        };
        let rows = ids.chunks(max_length).zip(mask.chunks(max_length));
        Tokens::new(rows.map(row), max_length, 0)
    }
}

pub fn tiny(mask: bool) -> ClassifierConfig {
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("tiny_config.json")).unwrap()).unwrap();
    ClassifierConfig {
        bert: BertConfig::read(&fixture("tiny_config.json")).unwrap(),
        head: HeadConfig::Dense(DenseHeadConfig {
            hidden: vec![16, 12],
            dropout: 0.0,
            num_classes: 4,
            ..DenseHeadConfig::default()
        }),
        max_length: json["max_length"].as_u64().unwrap() as usize,
        mask,
        // PyTorch made the file.
        zero_padding: false,
        freeze_padding: true,
    }
}

#[track_caller]
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off <= tolerance, "{what}: off by {off}, more than {tolerance}");
}

/// Puts values on the first device.
pub fn upload<T: Element>(values: &[T], dims: &[usize]) -> Buffer {
    client().buffer_from_host(values, dims, client().addressable_device(0).unwrap()).unwrap()
}

/// The fixture's parameters, on the first device.
fn parameters_of(golden: &Golden, weights: &[Weight]) -> Vec<Buffer> {
    let values = |weight: &Weight| golden.f32s(&format!("param/{}", weight.name));
    weights.iter().map(|weight| upload(&values(weight), &weight.shape.dims)).collect()
}

/// Runs the tiny model on the first `length` tokens of the fixture's batch, with its parameters: the outputs that `outputs` makes of the hidden
/// states, the scores and the declared weights.
fn run_tiny(
    golden: &Golden,
    config: &ClassifierConfig,
    length: usize,
    outputs: impl for<'g> FnOnce(Tensor<'g>, Tensor<'g>, &[Tensor<'g>]) -> Vec<Tensor<'g>>,
) -> (Vec<String>, Vec<Vec<f32>>) {
    let mask = config.mask;
    let (graph, dims) = (Graph::new(), [6, length]);
    let params = Params::new(&graph, ElementType::F32);
    let model = Classifier::new(config, &graph, &params);
    let ids = graph.parameter("input_ids", Shape::new(ElementType::S32, dims));
    let attention_mask = mask.then(|| graph.parameter("attention_mask", Shape::new(ElementType::S32, dims)));
    let states = model.bert.forward(ids, attention_mask, &Mode::inference(ElementType::F32));
    let scores = model.forward(ids, attention_mask, &Mode::inference(ElementType::F32)).values();
    let (weights, tensors): (Vec<_>, Vec<_>) = params.declared().into_iter().unzip();
    let outputs = outputs(states, scores, &tensors);

    let mut parameters = tensors;
    parameters.push(ids);
    parameters.extend(attention_mask);
    let Compiled(executable) = Compiled::new(&Program::new("tiny", parameters, outputs), 1);
    let mut arguments = parameters_of(golden, &weights);
    let cut = |name| {
        let rows = golden.i32s(name);
        rows.chunks(config.max_length).flat_map(|row| row[..length].to_vec()).collect::<Vec<_>>()
    };
    arguments.push(upload(&cut("input_ids"), &dims));
    if mask {
        arguments.push(upload(&cut("attention_mask"), &dims));
    }
    let outputs = executable.execute(vec![arguments.into_iter().map(Argument::Donate).collect()]).unwrap();
    let names = weights.into_iter().map(|weight| weight.name).collect();
    (names, outputs[0].iter().map(|buffer| buffer.to_host().unwrap()).collect())
}

#[test]
fn hidden_states_and_outputs_equal_pytorchs() {
    let golden = Golden::read("tiny_bert.safetensors");
    for (mask, prefix) in [(false, ""), (true, "masked/")] {
        let config = tiny(mask);
        let (_, outputs) =
            run_tiny(&golden, &config, config.max_length, |states, scores, _| vec![states, scores]);
        assert_close("hidden states", &outputs[0], &golden.f32s(&format!("{prefix}last_hidden_state")), 1e-5);
        assert_close("scores", &outputs[1], &golden.f32s(&format!("{prefix}output")), 1e-5);
    }
}

/// The head's scores of PyTorch's masked hidden states, of which those of padding are zero, in this test's own words.
fn scores_without_padding(golden: &Golden) -> Vec<f32> {
    let (states, mask) = (golden.f32s("masked/last_hidden_state"), golden.i32s("attention_mask"));
    let hidden = states.len() / mask.len();
    let kept = states.iter().enumerate().map(|(at, state)| f64::from(*state) * f64::from(mask[at / hidden]));
    let kept = kept.collect::<Vec<_>>();
    let dense = |inputs: &[f64], name: &str| {
        let [weight, bias] = ["weight", "bias"].map(|part| golden.f32s(&format!("param/{name}.{part}")));
        let sum = |(row, bias): (&[f32], &f32)| {
            let terms = row.iter().zip(inputs).map(|(w, x)| f64::from(*w) * x);
            terms.sum::<f64>() + f64::from(*bias)
        };
        weight.chunks(inputs.len()).zip(&bias).map(sum).collect::<Vec<_>>()
    };
    let relu = |values: Vec<f64>| values.into_iter().map(|value| value.max(0.0)).collect::<Vec<_>>();
    let row = |row: &[f64]| {
        let last = dense(&relu(dense(&relu(dense(row, "dense_1")), "dense_2")), "dense_3");
        last.into_iter().map(|value| value.exp().ln_1p() as f32).collect::<Vec<_>>()
    };
    kept.chunks(kept.len() / 6).flat_map(row).collect()
}

#[test]
fn padding_that_is_zero_counts_for_nothing_at_any_length() {
    let golden = Golden::read("tiny_bert.safetensors");
    let config = ClassifierConfig { zero_padding: true, ..tiny(true) };
    let mask = golden.i32s("attention_mask");
    let longest = mask.chunks(config.max_length).map(|row| row.iter().sum::<i32>()).max().unwrap() as usize;
    let expected = scores_without_padding(&golden);
    let mut lengths = vec![longest, config.max_length];
    lengths.dedup();
    for length in lengths {
        let (_, outputs) = run_tiny(&golden, &config, length, |_, scores, _| vec![scores]);
        assert_close("scores", &outputs[0], &expected, 1e-5);
    }
    // Where padding is hidden from attention alone, it counts.
    let off =
        expected.iter().zip(golden.f32s("masked/output")).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off > 1e-3, "{off}");
}

/// The loss as the file's maker wrote it, in this test's own words: the mean of `-log(out[label] / sum(out))`.
fn mean_loss<'g>(scores: Tensor<'g>, labels: &[i32]) -> Tensor<'g> {
    let probabilities = scores / scores.sum(&[1]).reshape(&[6, 1]);
    let pick = |(row, label): (usize, &i32)| {
        let (row, label) = (row, *label as usize);
        probabilities.slice(&[row, label], &[row + 1, label + 1], &[1, 1]).log().reshape(&[1])
    };
    let logs = labels.iter().enumerate().map(pick).collect::<Vec<_>>();
    -scores.graph().concatenate(&logs, 0).sum(&[0]) / 6.0
}

#[test]
fn loss_and_every_gradient_equal_pytorchs() {
    let golden = Golden::read("tiny_bert.safetensors");
    let labels = golden.i32s("labels");
    let config = tiny(false);
    let (names, outputs) = run_tiny(&golden, &config, config.max_length, |_, scores, weights| {
        let loss = mean_loss(scores, &labels);
        let gradients = loss.graph().gradients(loss, weights).into_iter().zip(weights);
        let gradients = gradients.map(|(gradient, weight)| gradient.unwrap_or(*weight * 0.0));
        [loss].into_iter().chain(gradients).collect()
    });
    assert_close("loss", &outputs[0], &golden.f32s("loss"), 1e-5);
    for (name, found) in names.iter().zip(&outputs[1..]) {
        let expected = golden.f32s(&format!("grad/{name}"));
        let scale = expected.iter().fold(0f32, |max, value| max.max(value.abs()));
        // A key's bias moves all scores of a query alike, so its gradient is 0 but for rounding.
        let floor = if name.ends_with("self.key.bias") { 1e-7 } else { 0.0 };
        assert_close(name, found, &expected, (1e-4 * scale).max(floor));
    }
}

fn tiny_checkpoint(golden: &Golden, folder: &Path) -> TensorFiles {
    let tensors = SafeTensors::deserialize(&golden.0).unwrap();
    let named = tensors.tensors().into_iter();
    let params = named.filter_map(|(name, view)| Some((name.strip_prefix("param/")?.to_owned(), view)));
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(params, None, &path).unwrap();
    TensorFiles::open_files(&[path]).unwrap()
}

/// The fixture's parameters as a checkpoint, and its batch as a data set.
fn with_tiny(golden: &Golden, test: impl FnOnce(&TensorFiles, &Dataset<'_>)) {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = tiny_checkpoint(golden, folder.path());
    let max_length = tiny(false).max_length;
    let ids = golden.i32s("input_ids").into_iter().map(|id| id as u32).collect::<Vec<_>>();
    let tokens = Tokens::new(ids.chunks(max_length), max_length, 0);
    let classes = golden.i32s("labels").into_iter().map(|label| label as u32).collect::<Vec<_>>();
    test(&checkpoint, &Dataset::new(&tokens, &classes, (0..6).collect()));
}

#[test]
fn three_adam_steps_equal_the_reference() {
    check_adam_steps(connect(1));
}

/// Trains on `replicas` as the fixture's maker did.
pub fn check_adam_steps(replicas: Arc<Replicas>) {
    let golden = Golden::read("tiny_bert.safetensors");
    with_tiny(&golden, |checkpoint, data| {
        let options = TrainOptions::new(1e-3, 0);
        let values = InitialValues::Trained(checkpoint);
        let mut trainer = Trainer::new(replicas, &tiny(false), 6, options, Origin::Weights(&values)).unwrap();

        // One batch per epoch: the order within it changes nothing.
        let losses = (1..=3).map(|epoch| trainer.train_epoch(data, epoch, |_| ()).unwrap().loss as f32);
        assert_close("losses", &losses.collect::<Vec<_>>(), &golden.f32s("adam3/losses"), 1e-5);
        for weight in trainer.weights() {
            assert_close(
                &weight.name,
                &trainer.values(weight).unwrap(),
                &golden.f32s(&format!("adam3/{}", weight.name)),
                1e-5,
            );
        }
    });
}

#[test]
fn the_padding_row_is_trained_as_keras_does_unless_frozen() {
    let golden = Golden::read("tiny_bert.safetensors");
    let labels = golden.i32s("labels");
    let hidden = tiny(false).bert.hidden_size;
    let padding_row = |freeze_padding: bool| {
        let config = ClassifierConfig { freeze_padding, ..tiny(false) };
        let graph = Graph::new();
        let params = Params::new(&graph, ElementType::F32);
        let model = Classifier::new(&config, &graph, &params);
        let ids = graph.parameter("input_ids", Shape::new(ElementType::S32, [6, config.max_length]));
        let loss = mean_loss(model.forward(ids, None, &Mode::inference(ElementType::F32)).values(), &labels);
        let tensors = params.declared().into_iter().map(|(_, tensor)| tensor).collect::<Vec<_>>();
        let word_embeddings = graph.gradients(loss, &tensors)[0].unwrap();
        let weights = params.declared().into_iter().map(|(weight, _)| weight).collect::<Vec<_>>();
        let parameters = tensors.into_iter().chain([ids]).collect();
        let program = Program::new("padding", parameters, vec![word_embeddings]);
        let mut arguments = parameters_of(&golden, &weights);
        arguments.push(upload(&golden.i32s("input_ids"), &[6, config.max_length]));
        let arguments = arguments.into_iter().map(Argument::Donate).collect();
        let outputs = Compiled::new(&program, 1).0.execute(vec![arguments]).unwrap();
        outputs[0][0].to_host::<f32>().unwrap()[..hidden].to_vec()
    };
    assert!(padding_row(true).iter().all(|value| *value == 0.0));
    // The largest entry of the row's gradient with `padding_idx=None`, from the same PyTorch model.
    let largest = padding_row(false).iter().fold(0f32, |max, value| max.max(value.abs()));
    assert!((largest - 0.0847).abs() < 1e-4, "{largest}");
}

#[test]
fn a_real_checkpoints_hidden_states_equal_transformers() {
    check_hidden_states(&connect(1));
}

/// Encodes with a real checkpoint on one replica, if there is one.
pub fn check_hidden_states(replicas: &Arc<Replicas>) {
    let Some(folder) = minilm::folder() else { return };
    let golden = Golden::read("minilm_hidden.safetensors");
    let config = BertConfig::read(&folder.join("config.json")).unwrap();
    let checkpoint = TensorFiles::open_files(&[folder.join("model.safetensors")]).unwrap();
    let tokens = golden.tokens("attention_mask", 32);
    for (mask, name) in [(false, "unmasked"), (true, "masked")] {
        let config = EncodeConfig { bert: config.clone(), max_length: 32, mask };
        let program = EncodeProgram::compile(replicas, &config, 2).unwrap();
        let values = InitialValues::Trained(&checkpoint);
        let weights = upload_weights(replicas, program.signature(), &config.weights(), &values).unwrap();
        let mut states = vec![];
        let data = Dataset::new(&tokens, &[], vec![0, 1]);
        let each = |rows| {
            states.extend::<Vec<f32>>(rows);
            Ok::<_, ExecError>(())
        };
        program.encode(replicas, &weights, &data, each).unwrap();
        assert_close(name, &states, &golden.f32s(name), 2e-4);
    }
}

#[test]
fn the_articles_model_has_its_parameter_count() {
    let bert = BertConfig { vocab_size: 119_547, ..BertConfig::default() };
    let config = ClassifierConfig {
        bert,
        head: HeadConfig::default(),
        max_length: 140,
        mask: false,
        zero_padding: false,
        freeze_padding: false,
    };
    // By Keras' model.summary() in the article: encoder 177,853,440, head 55,050,752 + 225,720 + 1,764.
    assert_eq!(config.num_parameters(), 233_131_676);
}

#[test]
fn evaluation_reports_the_reference_loss() {
    check_evaluation(&connect(1));
}

/// Evaluates the fixture's batch on one replica.
pub fn check_evaluation(replicas: &Arc<Replicas>) {
    let golden = Golden::read("tiny_bert.safetensors");
    with_tiny(&golden, |checkpoint, data| {
        // Four rows at a time: the second batch is half padding, which must not count.
        let step = StepConfig::new(tiny(false), 4, 1);
        let values = InitialValues::Trained(checkpoint);
        let signature = eval_step(&Graph::new(), &step).signature;
        let weights = upload_weights(replicas, &signature, &step.model.weights(), &values).unwrap();
        let program = EvalProgram::compile(replicas, &step).unwrap();
        let evaluation = program.evaluate(replicas, &weights, data, &|| false).unwrap().unwrap();
        assert_close("loss", &[evaluation.loss as f32], &golden.f32s("loss"), 1e-5);
        let scores = golden.f32s("output");
        let expected =
            scores.chunks(4).flat_map(|row| row.iter().map(|value| value / row.iter().sum::<f32>()));
        assert_close("probabilities", &evaluation.probabilities, &expected.collect::<Vec<_>>(), 1e-5);
    });
}

/// Dropout where transformers has it, and as much of it: the spread of a real checkpoint's hidden states over the
/// masks. The constant is from `BertModel(...).train()` with transformers 4.57 and torch 2.7, 256 draws on the same
/// two sentences: `torch.stack(draws).std(0).mean()`.
#[test]
fn dropout_moves_the_hidden_states_as_much_as_in_transformers() {
    const TRANSFORMERS: f32 = 0.1609;
    const DRAWS: u32 = 256;
    let Some(folder) = minilm::folder() else { return };
    let golden = Golden::read("minilm_hidden.safetensors");
    let config = BertConfig::read(&folder.join("config.json")).unwrap();
    let checkpoint = TensorFiles::open_files(&[folder.join("model.safetensors")]).unwrap();
    let graph = Graph::new();
    let params = Params::new(&graph, ElementType::F32);
    let bert = Bert::new(&config, &graph, params.root(Part::Encoder).pp("bert"));
    let ids = graph.parameter("input_ids", Shape::new(ElementType::S32, [2, 32]));
    let step = graph.parameter("step", Shape::scalar(ElementType::U32));
    let randomness =
        Randomness::new(&graph, graph.constant(ElementType::U32, 0.0), step, DropoutBits::default());
    let mode = Mode { element_type: ElementType::F32, randomness: Some(randomness) };
    let states = bert.forward(ids, None, &mode);
    let used = params.declared().into_iter().filter(|(_, tensor)| states.depends_on(*tensor));
    let (weights, mut parameters): (Vec<_>, Vec<_>) = used.unzip();
    parameters.extend([ids, step]);
    let Compiled(executable) = Compiled::new(&Program::new("dropout", parameters, vec![states]), 1);
    let values = InitialValues::Trained(&checkpoint);
    let values = |weight: &Weight| upload(&values.get(weight).unwrap(), &weight.shape.dims);
    let mut buffers = weights.iter().map(values).collect::<Vec<_>>();
    buffers.push(upload(&golden.i32s("input_ids"), &[2, 32]));

    let (mut sum, mut squares) = (vec![0f64; 2 * 32 * 384], vec![0f64; 2 * 32 * 384]);
    for draw in 0..DRAWS {
        let step = upload(&[draw], &[]);
        let arguments = buffers.iter().chain([&step]).map(Argument::Borrow).collect();
        let outputs = executable.execute(vec![arguments]).unwrap();
        for (i, value) in outputs[0][0].to_host::<f32>().unwrap().into_iter().enumerate() {
            sum[i] += f64::from(value);
            squares[i] += f64::from(value).powi(2);
        }
    }
    let n = f64::from(DRAWS);
    let deviations =
        sum.iter().zip(&squares).map(|(sum, square)| ((square - sum * sum / n) / (n - 1.0)).sqrt());
    let spread = (deviations.sum::<f64>() / sum.len() as f64) as f32;
    assert!((spread / TRANSFORMERS - 1.0).abs() < 0.02, "{spread}, {TRANSFORMERS} in transformers");
}
