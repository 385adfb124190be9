//! The commands, as a user runs them, on the embedded sample and its tiny model.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Output, Stdio};

use bert_xla::data::{Purpose, Table, TableOptions};
use bert_xla::model::{BertConfig, ClassifierConfig, HeadConfig};
use safetensors::SafeTensors;
use serde_json::Value as Json;

use crate::common::cli::{asset, command, demo, fails, json_lines, text, train, with_run, works};
use crate::common::{empty_folder, minilm};

/// The fields of a CSV file without quoted fields, a row each.
fn rows(path: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

/// The sample's texts and labels, each text once, in the file's order.
fn sample() -> Vec<(String, String)> {
    let Table { texts, classes, labels, .. } =
        Table::read(&asset("sample.csv"), &TableOptions::default(), Purpose::Evaluate).unwrap();
    let label = |class: &u32| labels.label_of(*class).unwrap().to_owned();
    let rows = texts.iter().zip(classes.iter().map(label));
    let mut seen = HashSet::new();
    rows.map(|(text, label)| (text.to_owned(), label)).filter(|(text, _)| seen.insert(text.clone())).collect()
}

/// Checks a `dev_predictions.csv` against the sample; gives the held-out texts with their labels, and the number
/// whose most probable class is the label's.
fn check_dev_predictions(path: &Path) -> (Vec<(String, String)>, usize) {
    let rows = rows(path);
    assert_eq!(rows[0], ["row", "id", "label", "predicted", "p_class_0", "p_-1", "p_0", "p_1"]);
    let sample = sample();
    // A tenth of the 400 distinct texts.
    assert_eq!((sample.len(), rows.len() - 1), (400, 40));
    let (mut held_out, mut correct, mut seen) = (Vec::new(), 0, HashSet::new());
    for row in &rows[1..] {
        let index = row[0].parse::<usize>().unwrap();
        assert!(seen.insert(index), "row {index} twice");
        // The sample's ids count its rows from 1, the two that repeat a text included.
        assert!(row[1].parse::<usize>().unwrap() - index <= 3, "row {index} has id {}", row[1]);
        assert_eq!(row[2], sample[index].1, "row {index}");
        let p = row[4..].iter().map(|p| p.parse::<f64>().unwrap()).collect::<Vec<_>>();
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{row:?}");
        let best =
            |classes: &[usize]| classes.iter().copied().max_by(|a, b| p[*a].total_cmp(&p[*b])).unwrap();
        assert_eq!(row[3], ["", "-1", "0", "1"][best(&[1, 2, 3])], "{row:?}");
        correct += usize::from(["", "-1", "0", "1"][best(&[0, 1, 2, 3])] == row[2]);
        held_out.push(sample[index].clone());
    }
    (held_out, correct)
}

#[test]
fn demo_learns_its_sample() {
    let run = demo().join("run");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert!(run.join(name).is_file(), "{name}");
    }
    for name in ["loss.png", "accuracy.png"] {
        let file = BufReader::new(fs::File::open(run.join(name)).unwrap());
        let mut image = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; image.output_buffer_size().unwrap()];
        image.next_frame(&mut pixels).unwrap();
        assert!(pixels.iter().any(|byte| *byte != pixels[0]), "{name} is blank");
    }
    let history = json_lines(&fs::read_to_string(run.join("history.jsonl")).unwrap());
    let number = |epoch: usize, name: &str| history[epoch][name].as_f64().unwrap();
    assert_eq!(history.len(), 6);
    assert_eq!((0..6).map(|epoch| number(epoch, "epoch")).collect::<Vec<_>>(), [1., 2., 3., 4., 5., 6.]);
    assert_eq!(number(5, "step"), 6.0 * 45.0);
    assert!((1..6).all(|epoch| number(epoch, "loss") < number(epoch - 1, "loss")), "{history:?}");
    assert!(number(5, "val_accuracy") > 0.9, "{history:?}");

    let (_, correct) = check_dev_predictions(&run.join("dev_predictions.csv"));
    assert_eq!(correct as f64 / 40.0, number(5, "val_accuracy"));

    let submission = rows(&demo().join("submission.csv"));
    assert_eq!(submission[0], ["ID", "label"]);
    let ids = submission[1..].iter().map(|row| row[0].parse::<usize>().unwrap()).collect::<Vec<_>>();
    assert_eq!(ids, (1..=40).collect::<Vec<_>>());
    assert!(submission[1..].iter().all(|row| ["-1", "0", "1"].contains(&row[1].as_str())));
}

#[test]
fn a_dry_run_counts_the_parameters_and_writes_nothing() {
    let output = empty_folder("cli_dry").join("run");
    let Output { status, stdout, .. } = train(&output, &["--dry-run"]).output().unwrap();
    let bert = BertConfig::read(&asset("tiny/config.json")).unwrap();
    let (hidden, intermediate) = (64, 128);
    let layer =
        4 * (hidden * hidden + hidden) + 2 * hidden * intermediate + intermediate + hidden + 4 * hidden;
    let encoder = (636 + 64 + 2) * hidden + 2 * hidden + 2 * layer + hidden * hidden + hidden;
    let head = (24 * hidden + 1) * 512 + (512 + 1) * 440 + (440 + 1) * 4;
    let head_config = HeadConfig::default();
    let model = ClassifierConfig {
        bert,
        head: head_config,
        max_length: 24,
        mask: false,
        zero_padding: false,
        freeze_padding: false,
    };
    assert_eq!(model.num_parameters(), encoder + head);
    let total = format!(
        "{},{:03},{:03}",
        (encoder + head) / 1_000_000,
        (encoder + head) / 1000 % 1000,
        (encoder + head) % 1000
    );
    let stdout = text(stdout);
    assert!(status.success() && stdout.contains(&format!("Total params: {total}\n")), "{stdout}");
    let arguments = ["--dry-run", "--mask", "--buckets", "8,16"];
    let Output { status, stderr, .. } = train(&output, &arguments).output().unwrap();
    let stderr = text(stderr);
    assert!(status.success() && stderr.contains("Batches of 8, 16, 24 tokens: "), "{stderr}");
    assert!(stderr.contains(" % fewer than at full length"), "{stderr}");
    assert!(!output.exists());
}

#[test]
fn json_of_training_and_evaluation_agrees_with_the_files() {
    let output = empty_folder("cli_json").join("run");
    let arguments = ["--json", "--mask", "--replicas", "2", "--epochs", "3", "--batch-size", "8"];
    let Output { status, stdout, stderr } =
        train(&output, &arguments).args(["--learning-rate", "5e-4"]).output().unwrap();
    let stderr = text(stderr);
    assert!(status.success() && stderr.contains("Number of replicas: 2\n"), "{stderr}");
    assert!(!stderr.contains("Epoch"), "{stderr}");
    let stdout = text(stdout);
    assert_eq!(stdout, fs::read_to_string(output.join("history.jsonl")).unwrap());
    let lines = json_lines(&stdout);
    assert_eq!(lines.len(), 3);

    let (held_out, correct) = check_dev_predictions(&output.join("dev_predictions.csv"));
    assert_eq!(lines[2]["val_accuracy"].as_f64().unwrap(), correct as f64 / 40.0);
    let data = output.join("held_out.csv");
    let row = |(text, label): &(String, String)| format!("{label},\"{}\"\n", text.replace('"', "\"\""));
    fs::write(&data, format!("label,text\n{}", held_out.iter().map(row).collect::<String>())).unwrap();
    // In batches that 40 rows don't fill.
    let mut evaluate = with_run("evaluate", &output, &data, &["--json", "--batch-size", "7"]);
    let json = evaluate.output().unwrap().stdout;
    let json: Json = serde_json::from_slice(&json).unwrap();
    assert_eq!((json["rows"].as_u64(), json["accuracy"].as_f64()), (Some(40), Some(correct as f64 / 40.0)));
    let loss = (json["loss"].as_f64().unwrap(), lines[2]["val_loss"].as_f64().unwrap());
    assert!((loss.0 - loss.1).abs() < 1e-5, "{loss:?}");
}

#[test]
fn predict_labels_every_row_in_order() {
    let folder = empty_folder("cli_predict");
    let (data, output) = (folder.join("data.csv"), folder.join("labels.csv"));
    let rows_in = [
        ("b7", "\"I hate the movie, so bad\"", "-1"),
        ("a1", "", ""),
        ("c", "\"she said \"\"merci\"\", then left\"", ""),
        ("a1b", "\"I hate the movie, so bad\"", "-1"),
        ("9", "\"\"", ""),
        ("x,y", "is the coffee available tomorrow?", "0"),
    ];
    let row = |(id, text, _): &(&str, &str, &str)| {
        if id.contains(',') { format!("\"{id}\",{text}\n") } else { format!("{id},{text}\n") }
    };
    fs::write(&data, format!("ID,text\n{}", rows_in.iter().map(row).collect::<String>())).unwrap();
    let arguments = ["--batch-size", "4", "--output", output.to_str().unwrap()];
    let stdout = with_run("predict", &demo().join("run"), &data, &arguments).output().unwrap().stdout;
    assert!(text(stdout).contains("labels.csv: 6 rows\n"));
    let written = fs::read_to_string(&output).unwrap();
    let lines = written.lines().collect::<Vec<_>>();
    assert_eq!((lines[0], lines.len()), ("ID,label", 7));
    for ((id, _, expected), line) in rows_in.iter().zip(&lines[1..]) {
        let (found, label) = line.rsplit_once(',').unwrap();
        assert_eq!(found.trim_matches('"'), *id);
        assert!(["-1", "0", "1"].contains(&label) && (expected.is_empty() || *expected == label), "{line}");
    }
}

#[test]
fn predict_takes_more_rows_than_are_held_at_a_time() {
    let folder = empty_folder("cli_predict_many");
    let run = demo().join("run");
    let predict = |name: &str, data: &Path, arguments: &[&str]| {
        let output = folder.join(name);
        let arguments = [&["--output", output.to_str().unwrap()], arguments].concat();
        assert!(with_run("predict", &run, data, &arguments).output().unwrap().status.success());
        rows(&output)
    };
    let few = sample().into_iter().map(|(text, _)| text).collect::<Vec<_>>();
    let table = |name: &str, texts: &mut dyn Iterator<Item = &String>| {
        let row = |text: &String| format!("\"{}\"\n", text.replace('"', "\"\""));
        fs::write(folder.join(name), format!("text\n{}", texts.map(row).collect::<String>())).unwrap();
        folder.join(name)
    };
    let expected = predict("few.csv", &table("few", &mut few.iter()), &[]);
    // Three parts of 4096 rows; a row in 50 is longer than its part's others together.
    let long = format!("{} {}", few[7], "x".repeat(50_000));
    let text = |at: usize| if at % 50 == 7 { &long } else { &few[at * 13 % few.len()] };
    let found = predict("many.csv", &table("many", &mut (0..9000).map(text)), &[]);
    let probable = predict("long.csv", &table("long", &mut [long.clone()].iter()), &[]);
    assert_eq!(found.len(), 9001);
    for at in 0..9000 {
        let expected = if at % 50 == 7 { &probable[1] } else { &expected[1 + at * 13 % few.len()] };
        assert_eq!(found[1 + at], [(at + 1).to_string(), expected[1].clone()], "row {at}");
    }
}

#[test]
fn encode_gives_transformers_hidden_states() {
    let Some(model) = minilm::folder() else { return };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = empty_folder("cli_encode");
    let (input, output) = (folder.join("sentences.txt"), folder.join("states.safetensors"));
    let tokens = fs::read(fixtures.join("minilm_tokens.json")).unwrap();
    let tokens: Vec<Json> = serde_json::from_slice(&tokens).unwrap();
    let lines = tokens[..2].iter().map(|token| format!("{}\n", token["text"].as_str().unwrap()));
    fs::write(&input, lines.collect::<String>()).unwrap();
    let golden = fs::read(fixtures.join("minilm_hidden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    for (mask, name) in [(&[][..], "unmasked"), (&["--mask"], "masked")] {
        let mut command = command(&["encode", "--backend", "cpu", "--max-length", "32", "--batch-size", "2"]);
        command.arg("--model").arg(model).arg("--input").arg(&input).arg("--output").arg(&output).args(mask);
        assert!(command.output().unwrap().status.success());
        let written = fs::read(&output).unwrap();
        let written = SafeTensors::deserialize(&written).unwrap();
        for ids in ["input_ids", "attention_mask"] {
            assert_eq!(written.tensor(ids).unwrap().data(), golden.tensor(ids).unwrap().data(), "{ids}");
        }
        let (found, expected) = (written.tensor("last_hidden_state").unwrap(), golden.tensor(name).unwrap());
        assert_eq!(found.shape(), [2, 32, 384]);
        let values = |bytes: &[u8]| {
            bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>()
        };
        let pairs = values(found.data()).into_iter().zip(values(expected.data()));
        let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 2e-4, "{name}: off by {off}");
    }
}

#[test]
fn graph_prints_each_step() {
    for (step, replicas) in [("train", "2"), ("eval", "1"), ("predict", "1"), ("predict", "2")] {
        let program = works(&["graph", "--step", step, "--size", "tiny", "--replicas", replicas]);
        assert!(program.contains(&format!("{step}_step")) && program.contains("s32[16,24]"), "{program}");
        assert_eq!(program.contains("all-reduce") || program.contains("all-gather"), replicas == "2");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut graph = command(&["graph", "--step", "train", "--size", "tiny"]);
    let mut child = graph.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!((status.code(), text(stderr).as_str()), (Some(0), ""), "after {line}");

    // The same for the notes on stderr.
    let output = empty_folder("cli_closed").join("run");
    let mut train = train(&output, &["--epochs", "1", "--batch-size", "8"]);
    let mut child = train.stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(output.join("model.safetensors").is_file());
}

#[test]
fn bench_times_steps() {
    let arguments = ["bench", "--backend", "cpu", "--size", "tiny", "--length", "8,16", "--steps", "4"];
    let lines = json_lines(&works(&[&arguments[..], &["--batch-size", "4,8", "--json"]].concat()));
    let cases =
        lines.iter().map(|case| (case["length"].as_u64().unwrap(), case["batch_size"].as_u64().unwrap()));
    assert_eq!(cases.collect::<Vec<_>>(), [(8, 4), (8, 8), (16, 4), (16, 8)]);
    for case in &lines {
        let times = ["min", "lower_quartile", "median", "upper_quartile", "max"];
        let times = times.map(|time| case["step_ms"][time].as_f64().unwrap());
        assert!(times[0] > 0.0 && times.is_sorted(), "{case}");
        // Of four steps.
        assert!(times[0] < times[1] && times[3] < times[4], "{case}");
        assert_eq!((case["steps"].as_u64(), case["share_of_peak"].is_null()), (Some(4), true));
    }
    // Twice the examples are twice the products, but for none of the head's or the encoder's alone.
    let flops = |at: usize| lines[at]["dot_flops"].as_u64().unwrap();
    assert_eq!((flops(1), flops(3)), (2 * flops(0), 2 * flops(2)));
    let text = works(&[&arguments[..], &["--replicas", "2"]].concat());
    assert!(text.contains("2 replicas of cpu") && text.contains("no published peak"), "{text}");
    fails(&mut command(&[&arguments[..], &["--batch-size", "5", "--replicas", "2"]].concat()), 2);
    fails(&mut command(&["bench", "--size", "huge"]), 2);
}
