//! Replicas: any number of them trains, evaluates and predicts as one does.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;

use bert_xla::data::{Dataset, LabelMap, Order};
use bert_xla::exec::{Error as ExecError, Executable, PlacementError, State};
use bert_xla::hlo::Graph;
use bert_xla::infer::{EncodeProgram, EvalProgram, Evaluation, PredictProgram, upload_batch, upload_weights};
use bert_xla::step::{
    EncodeConfig, InputId, Layout, LeafId, OutputId, Signature, StepConfig, StepKind, encode_step, eval_step,
};
use bert_xla::train::{Error, Origin, TrainOptions, Trainer};
use bert_xla::weights::InitialValues;

use crate::common::cli::{asset, demo, fails, with_run};
use crate::common::empty_folder;
use crate::common::training::{
    MAX_LENGTH, ROWS, assert_close, connect, model, options, run, sample, trainer,
};

const REPLICAS: [usize; 3] = [2, 4, 8];

#[test]
fn replicas_train_as_one_does() {
    let one = run(connect(1), 0.0, 7);
    for replicas in REPLICAS {
        let many = run(connect(replicas), 0.0, 7);
        for (found, expected) in many.history.iter().zip(&one.history) {
            assert!((found.0 - expected.0).abs() < 1e-5, "{replicas} replicas: {found:?}, {expected:?}");
            assert_eq!(found.1, expected.1, "{replicas} replicas");
        }
        assert_eq!(many.weights.len(), replicas);
        for weights in &many.weights {
            assert_eq!(weights, &many.weights[0], "{replicas} replicas went apart");
        }
        for (found, expected) in many.weights[0].iter().zip(&one.weights[0]) {
            assert_close("a weight", found, expected, 1e-5);
        }
        assert!((many.evaluation.loss - one.evaluation.loss).abs() < 1e-5);
        assert_eq!(many.evaluation.accuracy, one.evaluation.accuracy);
        assert_close("probabilities", &many.evaluation.probabilities, &one.evaluation.probabilities, 1e-5);
    }
}

/// What the three programs that don't train say of the sample, in batches of 8.
struct Answers {
    evaluation: Evaluation,
    /// `[batch]`: `[rows, classes]`.
    predictions: Vec<f32>,
    /// `[batch]`: `[rows, MAX_LENGTH, hidden]`.
    states: Vec<Vec<f32>>,
}

fn answers(replicas: usize) -> Answers {
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect());
    let (replicas, model) = (connect(replicas), model(0.1));
    let rows = replicas.rows(8).unwrap();
    let upload = |signature: &Signature| {
        let values = InitialValues::Random { seed: 7 };
        upload_weights(&replicas, signature, &model.weights(), &values).unwrap()
    };
    let config = StepConfig::new(model.clone(), rows, replicas.count());
    let weights = upload(&eval_step(&Graph::new(), &config).signature);
    let program = EvalProgram::compile(&replicas, &config).unwrap();
    let evaluation = program.evaluate(&replicas, &weights, &data, &|| false).unwrap().unwrap();
    let predict = PredictProgram::compile(&replicas, &config).unwrap();
    let predictions = predict.predict(&replicas, &weights, &data).unwrap();
    let encoder = EncodeConfig { bert: model.bert.clone(), max_length: MAX_LENGTH, mask: false };
    let mut states = Vec::new();
    let each = |values| {
        states.push(values);
        Ok::<_, ExecError>(())
    };
    let weights = upload(&encode_step(&Graph::new(), &encoder, 1, 1).signature);
    let encode = EncodeProgram::compile(&replicas, &encoder, rows).unwrap();
    encode.encode(&replicas, &weights, &data, each).unwrap();
    Answers { evaluation, predictions, states }
}

#[test]
fn replicas_evaluate_predict_and_encode_as_one_does() {
    let rows =
        |batches: &[Vec<f32>], width| batches.iter().map(|batch| batch.len() / width).collect::<Vec<_>>();
    let classes = |probabilities: &[f32]| LabelMap::default().answers(probabilities, 4);
    let one = answers(1);
    let hidden = model(0.1).bert.hidden_size;
    for replicas in REPLICAS {
        let many = answers(replicas);
        assert!((many.evaluation.loss - one.evaluation.loss).abs() < 1e-6);
        assert_eq!(many.evaluation.accuracy, one.evaluation.accuracy);
        let (found, expected) = (&many.evaluation.probabilities, &one.evaluation.probabilities);
        assert_close("probabilities", found, expected, 1e-6);
        assert_eq!(classes(found), classes(expected));
        // The padding of the last batch is left out.
        assert_close("predictions", &many.predictions, expected, 1e-6);
        assert_eq!(rows(&many.states, MAX_LENGTH * hidden), [8, 8, 8, 6]);
        assert_close("hidden states", &many.states.concat(), &one.states.concat(), 1e-5);
    }
}

/// The metrics of a step with a batch of 4 whose replicas ask to meet or don't; its state is zeros.
fn metrics(kind: StepKind, asks: &[f32]) -> Vec<f32> {
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..4).collect());
    let batch = data.batches(4, Order::Sequential).next().unwrap();
    let replicas = connect(asks.len());
    let rows = replicas.rows(4).unwrap();
    let config = StepConfig::new(model(0.0), rows, replicas.count());
    let graph = Graph::new();
    let step = Executable::compile(&replicas, kind.build(&graph, &config)).unwrap();
    let shapes = step.signature().leaves().map(|(leaf, port)| (leaf.clone(), port.shape.clone()));
    let shapes = shapes.collect::<HashMap<_, _>>();
    let mut state = State::start(step.signature(), |leaf, _| match leaf {
        LeafId::Step => replicas.upload(&[0u32], &[], Layout::Mirrored),
        _ => {
            let shape = &shapes[leaf];
            replicas.upload(vec![0f32; shape.num_elements()], &shape.dims, Layout::Mirrored)
        }
    })
    .unwrap();
    let inputs = upload_batch(&replicas, step.signature(), &batch).unwrap();
    let others = vec![
        (InputId::LearningRate, replicas.upload(&[1e-3f32], &[], Layout::Mirrored).unwrap()),
        (InputId::Seed, replicas.upload(&[0u32], &[], Layout::Mirrored).unwrap()),
        (InputId::Meet, replicas.upload(asks, &[asks.len()], Layout::Sharded).unwrap()),
    ];
    let inputs = [&inputs, &others];
    let pending = match kind {
        StepKind::Train => step.update(&replicas, &mut state, &inputs),
        _ => step.query(&replicas, &state, &inputs),
    };
    pending.unwrap().wait().unwrap().take(&OutputId::Metrics)
}

#[test]
fn replicas_that_ask_to_meet_are_counted_beside_loss_and_right_answers() {
    for kind in [StepKind::Train, StepKind::Eval] {
        for (asks, count) in
            [(&[0.0][..], 0.0), (&[1.0], 1.0), (&[0.0; 4], 0.0), (&[0.0, 1.0, 1.0, 0.0], 2.0)]
        {
            let [loss, correct, meet] = metrics(kind, asks)[..] else { panic!("three metrics") };
            // Weights of 0 give each of the 4 classes the same, and the answer to the first.
            assert!((loss - 4.0 * 4f32.ln()).abs() < 1e-5, "{kind}, {asks:?}: {loss}");
            let (_, classes) = sample();
            assert_eq!(correct, classes[..4].iter().filter(|class| **class == 0).count() as f32);
            assert_eq!(meet, count, "{kind}, {asks:?}");
        }
    }
}

#[test]
fn an_evaluation_ends_where_the_only_host_asks_to_meet() {
    let (tokens, classes) = sample();
    // Four batches of 8.
    let data = Dataset::new(&tokens, &classes, (0..ROWS).collect());
    let (replicas, model) = (connect(2), model(0.0));
    let config = StepConfig::new(model.clone(), 4, 2);
    let signature = eval_step(&Graph::new(), &config).signature;
    let values = InitialValues::Random { seed: 7 };
    let weights = upload_weights(&replicas, &signature, &model.weights(), &values).unwrap();
    let program = EvalProgram::compile(&replicas, &config).unwrap();
    // Asks before the batch of that number, counted from 0, and only then.
    let asking_before = |number: usize| {
        let asked = Cell::new(0);
        let asks = || asked.replace(asked.get() + 1) == number;
        let evaluation = program.evaluate(&replicas, &weights, &data, &asks).unwrap();
        (evaluation, asked.get())
    };
    let (whole, batches) = asking_before(4);
    assert_eq!(batches, 4);
    let whole = whole.unwrap();
    assert_eq!(whole.probabilities.len(), ROWS * 4);
    // There is nobody to tell, so that the batch need not be taken.
    for number in 0..4 {
        assert_eq!(asking_before(number), (None, number + 1), "before batch {number}");
    }
    // What was queued when it ended is no part of the next one.
    assert_eq!(asking_before(4), (Some(whole), 4));
}

#[test]
fn any_number_of_replicas_writes_the_same_labels() {
    let (demo, folder) = (demo(), empty_folder("replicas_predict"));
    for replicas in ["2", "4", "8"] {
        let output = folder.join(format!("{replicas}.csv"));
        let arguments = ["--replicas", replicas, "--output", output.to_str().unwrap()];
        let data = demo.join("sample_test.csv");
        let predict = with_run("predict", &demo.join("run"), &data, &arguments).output().unwrap();
        assert!(predict.status.success(), "{}", String::from_utf8_lossy(&predict.stderr));
        assert!(fs::read(&output).unwrap() == fs::read(demo.join("submission.csv")).unwrap());
    }
}

#[test]
fn a_batch_that_cant_be_split_is_refused() {
    let expected = "a batch of 6 can't be split evenly over 4 replicas; choose a --batch-size that is a multiple of \
                    4, or other --replicas";
    let values = InitialValues::Random { seed: 7 };
    let error = Trainer::new(connect(4), &model(0.1), 6, options(7), Origin::Weights(&values)).err().unwrap();
    let placement = PlacementError::Batch { batch_size: 6, replicas: 4 };
    assert!(matches!(&error, Error::Exec(ExecError::Placement(found)) if *found == placement), "{error}");
    let (run, data) = (demo().join("run"), asset("sample.csv"));
    let output = empty_folder("replicas_refused").join("labels.csv");
    let shared = ["--replicas", "4", "--batch-size", "6"];
    let predict = [&shared[..], &["--output", output.to_str().unwrap()]].concat();
    for mut command in
        [with_run("evaluate", &run, &data, &shared), with_run("predict", &run, &data, &predict)]
    {
        assert_eq!(fails(&mut command, 2), format!("error: {expected}"));
    }
}

#[test]
fn replicas_stay_alike_under_dropout() {
    let first = run(connect(2), 0.2, 7);
    assert_eq!(first.weights[0], first.weights[1]);
    assert_eq!(run(connect(2), 0.2, 7), first);
}

/// The loss of a step on one text alone, and the mean over two replicas that both have that text.
fn loss_alone_and_doubled(rate: f64) -> (f64, f64) {
    let (tokens, classes) = sample();
    let loss = |replicas: usize| {
        let data = Dataset::new(&tokens, &classes, vec![0; replicas]);
        let mut trainer = trainer(connect(replicas), &model(rate), replicas, options(7));
        trainer.train_epoch(&data, 1, |_| ()).unwrap().loss
    };
    (loss(1), loss(2))
}

#[test]
fn each_replica_has_its_own_dropout_masks() {
    let (alone, doubled) = loss_alone_and_doubled(0.0);
    assert!((alone - doubled).abs() < 1e-6, "{alone}, {doubled}");
    // The first replica's mask is the same in both runs: only another one on the second can move the mean.
    let (alone, doubled) = loss_alone_and_doubled(0.2);
    assert!((alone - doubled).abs() > 1e-3, "{alone}, {doubled}");
}

#[test]
fn the_last_batch_counts_each_example_once() {
    let (tokens, classes) = sample();
    let data = Dataset::new(&tokens, &classes, (0..7).collect());
    let one_by_one =
        trainer(connect(1), &model(0.0), 1, options(7)).evaluate(&data, &|| false).unwrap().unwrap();
    // At a rate of 0 the weights stay, so that training measures what evaluation does.
    let still = TrainOptions { learning_rate: 0.0, ..options(7) };
    for replicas in [1, 2] {
        let mut trainer = trainer(connect(replicas), &model(0.0), 4, still.clone());
        let metrics = trainer.train_epoch(&data, 1, |_| ()).unwrap();
        let evaluation = trainer.evaluate(&data, &|| false).unwrap().unwrap();
        assert_eq!((metrics.examples, metrics.step_times.len()), (7, 2));
        for (loss, accuracy) in [(metrics.loss, metrics.accuracy), (evaluation.loss, evaluation.accuracy)] {
            assert!((loss - one_by_one.loss).abs() < 1e-6, "{loss}, {}", one_by_one.loss);
            assert!((accuracy - one_by_one.accuracy).abs() < 1e-12, "{accuracy}, {}", one_by_one.accuracy);
        }
        assert_close("probabilities", &evaluation.probabilities, &one_by_one.probabilities, 1e-6);
    }
}
