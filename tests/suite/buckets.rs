//! Batches of like lengths.

use std::collections::BTreeMap;
use std::fs;
use std::rc::Rc;

use bert_xla::data::{Buckets, Dataset, Order, Tokens};
use bert_xla::model::head::{LinearHeadConfig, LstmHeadConfig};
use bert_xla::model::{ClassifierConfig, HeadConfig};
use bert_xla::run::layout;
use bert_xla::step::{Execution, ExecutionOptions, Precision, Training};
use bert_xla::train::{Origin, Programs, TrainOptions, Trainer};
use bert_xla::weights::InitialValues;
use proptest::prelude::*;

use crate::common::cli::{command, fails, json_lines, text, train, with_run};
use crate::common::runs::{commit, newest_checkpoint, read_json};
use crate::common::training::{MAX_LENGTH, assert_close, connect, model, sample};
use crate::common::{cli::asset, empty_folder};

/// A table of rows with so many tokens.
fn tokens(lengths: &[usize]) -> Tokens {
    Tokens::new(lengths.iter().map(|length| vec![7; *length]), 40, 0)
}

proptest! {
    #[test]
    fn each_row_is_in_one_batch_which_has_room_for_it(
        lengths in prop::collection::vec(1_usize..=40, 0..200),
        batch_size in 1_usize..9,
        buckets in prop::collection::vec(1_usize..40, 0..5),
        shuffled in any::<bool>(),
    ) {
        let tokens = tokens(&lengths);
        let buckets = Buckets::new(buckets, 40);
        let data = Dataset::new(&tokens, &[], (0..lengths.len()).rev().collect()).in_buckets(buckets.clone());
        let order = if shuffled { Order::Shuffled { seed: 3, epoch: 1 } } else { Order::Sequential };
        let batches = data.batches(batch_size, order).collect::<Vec<_>>();
        // As many as without buckets, so that a run has as many steps.
        prop_assert_eq!(batches.len(), lengths.len().div_ceil(batch_size));
        let mut met = batches.iter().flat_map(|batch| batch.positions.clone()).collect::<Vec<_>>();
        met.sort_unstable();
        prop_assert_eq!(met, (0..lengths.len()).collect::<Vec<_>>());
        let full = batches.iter().filter(|batch| batch.positions.len() == batch_size).count();
        prop_assert!(full + 1 >= batches.len());
        for batch in &batches {
            let own = batch.positions.iter().map(|position| lengths[lengths.len() - 1 - position]);
            let longest = own.max().unwrap();
            prop_assert_eq!(batch.length(), buckets.of(longest));
            let of_rows = batch.input_ids.chunks(batch.length()).zip(&batch.lengths);
            for (ids, length) in of_rows {
                prop_assert!(ids[..*length].iter().all(|id| *id == 7));
                prop_assert!(ids[*length..].iter().all(|id| *id == 0));
            }
        }
    }
}

/// Rows that are short, and those that are long, come early and late in an epoch, and otherwise in each.
#[test]
fn batches_are_shuffled_fairly_and_the_same_again() {
    let lengths = (0..400).map(|row| if row % 4 == 0 { 30 } else { 5 }).collect::<Vec<_>>();
    let tokens = tokens(&lengths);
    let data = Dataset::new(&tokens, &[], (0..400).collect()).in_buckets(Buckets::new([8], 40));
    let order = |epoch| {
        let batches = data.batches(10, Order::Shuffled { seed: 7, epoch });
        batches.map(|batch| (batch.length(), batch.positions)).collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    assert_eq!(
        data.batches(10, Order::Shuffled { seed: 7, epoch: 1 }).nth(5).unwrap().positions,
        order(1)[5].1
    );
    // Where the ten batches of long rows are among forty, over many epochs: each place is as likely as another.
    const EPOCHS: u32 = 400;
    let mut of_place = BTreeMap::<usize, u32>::new();
    for epoch in 0..EPOCHS {
        for (place, (length, _)) in order(epoch).into_iter().enumerate() {
            *of_place.entry(place).or_default() += u32::from(length == 40);
        }
    }
    // 100 are expected, with a standard deviation of 8.7.
    assert!(of_place.values().all(|count| (60..140).contains(count)), "{of_place:?}");
}

/// Models that don't read padding.
fn models() -> Vec<ClassifierConfig> {
    let masked = ClassifierConfig { mask: true, ..model(0.0) };
    let HeadConfig::Dense(dense) = masked.head.clone() else { unreachable!("the recipe's head") };
    let linear = LinearHeadConfig { dropout: 0.0, num_classes: 4 };
    let with = |head| ClassifierConfig { head, ..masked.clone() };
    vec![
        ClassifierConfig { zero_padding: true, ..masked.clone() },
        with(HeadConfig::Bilstm(LstmHeadConfig { units: 8, dense })),
        with(HeadConfig::Cls(linear.clone())),
        with(HeadConfig::Mean(linear)),
    ]
}

#[test]
fn a_shorter_batch_trains_as_the_full_length_does() {
    let texts = (0..8_u32).map(|row| (0..3 + row % 4).map(|at| 30 * row + at).collect::<Vec<_>>());
    let (tokens, classes) = (Tokens::new(texts, MAX_LENGTH, 0), [1, 2, 3, 2, 1, 3, 3, 1]);
    let sharded = ExecutionOptions::default().resolve(Precision::F32, 2);
    for model in models() {
        assert!(model.ignores_padding());
        let executions = [(1, Execution::default()), (2, sharded)];
        // The recipe's head alone has rows that a shorter batch doesn't use.
        for (replicas, execution) in executions.into_iter().take(if model.zero_padding { 2 } else { 1 }) {
            let trained = |length: usize| {
                let training = Training { accumulate: 2, ..Training::default() };
                let programs =
                    Programs::compile(connect(replicas), &model, 4, &training, execution, &[length]);
                let values = InitialValues::Random { seed: 7 };
                let origin = Origin::Weights(&values);
                let options = TrainOptions::new(1e-3, 7);
                let mut trainer = Trainer::start(Rc::new(programs.unwrap()), options, origin).unwrap();
                let buckets = Buckets::new([length], MAX_LENGTH);
                let data = Dataset::new(&tokens, &classes, (0..8).collect()).in_buckets(buckets);
                let losses = (1..4).map(|epoch| trainer.train_epoch(&data, epoch, |_| ()).unwrap().loss);
                let losses = losses.map(|loss| loss as f32).collect::<Vec<_>>();
                let evaluation = trainer.evaluate(&data, &|| false).unwrap().unwrap();
                (losses, evaluation.probabilities, trainer.snapshot(Default::default()).unwrap())
            };
            let (short, full) = (trained(6), trained(MAX_LENGTH));
            let name = model.head.name();
            assert_close(name, &short.0, &full.0, 1e-5);
            assert_close(name, &short.1, &full.1, 1e-5);
            for (short, full) in short.2.iter().flatten().zip(full.2.iter().flatten()) {
                assert_close(&format!("{name}: {}", full.name), &short.values, &full.values, 1e-5);
            }
        }
    }
}

#[test]
fn an_evaluation_in_buckets_has_the_order_of_its_rows() {
    let (tokens, classes) = sample();
    let model = models().remove(0);
    let programs = Programs::compile(
        connect(1),
        &model,
        4,
        &Training::default(),
        Execution::default(),
        &[4, 6, MAX_LENGTH],
    );
    let values = InitialValues::Random { seed: 7 };
    let origin = Origin::Weights(&values);
    let trainer = Trainer::start(Rc::new(programs.unwrap()), TrainOptions::new(1e-3, 7), origin).unwrap();
    let data = Dataset::new(&tokens, &classes, (0..30).rev().collect());
    let evaluate = |data: &Dataset<'_>| trainer.evaluate(data, &|| false).unwrap().unwrap();
    let expected = evaluate(&data);
    let found = evaluate(&data.in_buckets(Buckets::new([4, 6], MAX_LENGTH)));
    assert_close("probabilities", &found.probabilities, &expected.probabilities, 1e-5);
    assert_eq!(found.accuracy, expected.accuracy);
    assert!((found.loss - expected.loss).abs() < 1e-5);
}

#[test]
fn a_run_in_buckets_goes_on_and_answers() {
    let folder = empty_folder("buckets");
    let run = folder.join("run");
    let arguments = ["--epochs", "1", "--mask", "--buckets", "auto", "--json"];
    let output = train(&run, &arguments).output().unwrap();
    let told = text(output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("fewer than at full length"), "{told}");
    let first = json_lines(&text(output.stdout));
    assert_eq!(read_json(&run.join("config.json"))["bert_xla"]["zero_padding"], true);
    // Other batches would be another run.
    let error = fails(&mut train(&run, &["--epochs", "2", "--mask", "--buckets", "12"]), 2);
    assert!(error.contains("buckets"), "{error}");
    let output = train(&run, &["--epochs", "2", "--mask", "--buckets", "auto", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    assert_eq!(json_lines(&text(output.stdout))[0]["epoch"], 2);

    // The same at full length: the batches are others, the examples are the same.
    let full = folder.join("full");
    let output = train(&full, &["--epochs", "1", "--mask", "--json"]).output().unwrap();
    let [found, expected] = [&first, &json_lines(&text(output.stdout))].map(|lines| lines[0]["loss"].clone());
    assert!((found.as_f64().unwrap() - expected.as_f64().unwrap()).abs() < 0.05, "{found} and {expected}");

    let sample = asset("sample.csv");
    let output = with_run("evaluate", &run, &sample, &["--json"]).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));

    // A run from before there was the setting answers as it did: its padding counts.
    let config = run.join("config.json");
    let before = fs::read_to_string(&config).unwrap();
    let older = before.replace(",\n    \"zero_padding\": true", "");
    assert_ne!(older, before);
    let older_run = folder.join("older");
    fs::create_dir(&older_run).unwrap();
    for name in layout::FILES {
        fs::copy(run.join(name), older_run.join(name)).unwrap();
    }
    fs::write(older_run.join("config.json"), older).unwrap();
    let loss = |run| {
        let output = with_run("evaluate", run, &sample, &["--json"]).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["loss"].as_f64().unwrap()
    };
    assert!((loss(&older_run) - loss(&run)).abs() > 1e-6);
    let mut next = command(&["train", "--backend", "cpu", "--buckets", "8"]);
    next.arg("--train").arg(&sample).arg("--model").arg(&older_run).arg("--output").arg(folder.join("next"));
    let error = fails(&mut next, 2);
    assert!(error.contains("reads padding"), "{error}");
    // A head that starts anew reads none.
    let mut next =
        command(&["train", "--backend", "cpu", "--buckets", "8", "--hidden", "8", "--epochs", "1"]);
    next.arg("--train").arg(&sample).arg("--model").arg(&older_run).arg("--output").arg(folder.join("anew"));
    let output = next.output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
}

#[test]
fn buckets_that_cant_be_are_refused() {
    let folder = empty_folder("no_buckets");
    for (arguments, expected) in [
        (&["--buckets", "8"][..], "--mask"),
        (&["--mask", "--buckets", "8,25"], "up to --max-length, 24"),
        (&["--mask", "--buckets", "0"], "`0` is no length"),
        (&["--mask", "--buckets", "short"], "auto"),
    ] {
        let error = fails(&mut train(&folder.join("run"), arguments), 2);
        assert!(error.contains("--buckets") && error.contains(expected), "{error}");
    }
}

#[test]
fn a_host_reads_the_rows_that_it_feeds() {
    let tokens = Tokens::new((1..=20_u32).map(|id| [id, id]), 4, 0);
    let data = Dataset::new(&tokens, &[], (0..20).collect());
    let order = Order::Shuffled { seed: 1, epoch: 1 };
    let all = data.batches(8, order).map(|batch| batch.input_ids).collect::<Vec<_>>();
    for parts in [0..1, 1..3, 0..4] {
        let own = data.clone().fed_to(parts.clone(), 4);
        for (batch, all) in own.batches(8, order).zip(&all) {
            for part in 0..4 {
                let [found, expected] = [&batch.input_ids, all].map(|ids| &ids[part * 8..(part + 1) * 8]);
                let is_fed = parts.contains(&part);
                assert_eq!(found, if is_fed { expected } else { &[0; 8] }, "{parts:?}, {part}");
            }
        }
    }
}

/// What a run says of its data was once a hash of all rows as they are padded: runs that do go on.
#[test]
fn an_older_run_goes_on() {
    let run = empty_folder("older_data").join("run");
    assert!(train(&run, &["--epochs", "1", "--batch-size", "8"]).output().unwrap().status.success());
    let checkpoint = run.join(newest_checkpoint(&run));
    let progress = std::fs::read_to_string(checkpoint.join(layout::PROGRESS)).unwrap();
    let data = read_json(&checkpoint.join(layout::PROGRESS))["terms"]["fixed"]["data"].clone();
    // By the program of before, for the same table, tokenizer, length and split.
    let older = progress.replace(data.as_str().unwrap(), "sha256:9cdbd4cc7993817e");
    assert_ne!(older, progress);
    commit(&checkpoint, layout::PROGRESS, older.as_bytes());
    let output = train(&run, &["--epochs", "2", "--batch-size", "8"]).output().unwrap();
    let told = text(output.stderr);
    assert!(output.status.success() && told.contains("Going on after step 45"), "{told}");
}
