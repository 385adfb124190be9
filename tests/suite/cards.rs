//! The model card of a run: what the Hub reads of it, and what people do.

use std::fs;
use std::path::Path;

use bert_xla::run::{Run, layout};
use serde_json::{Value as Json, json};

use crate::common::cli::{asset, command, demo, json_lines, train, works};
use crate::common::empty_folder;
use crate::common::runs::{read_json, trains};

/// Two classes whose labels are anything but words, in a table whose name isn't either.
const LABELS: [&str; 2] = ["--- # a|b: \"\u{1f600}", "<b>`\\it's_"];
const TABLE: &str = "it's: #1 \"a\".csv";

/// Trains on such a table, for some epochs of which the best is kept.
fn odd_run(folder: &Path) -> std::path::PathBuf {
    let (data, model, run) = (folder.join(TABLE), folder.join("copy"), folder.join("run"));
    let quoted = |label: &str| format!("\"{}\"", label.replace('"', "\"\""));
    let rows = (0..60).map(|row| format!("\"text {row}\",{}\n", quoted(LABELS[row % 2])));
    fs::write(&data, format!("text,label\n{}", rows.collect::<String>())).unwrap();
    // Weights that it starts from, in a folder that says whose they are.
    let pretrained = demo().join("run");
    fs::create_dir(&model).unwrap();
    for name in ["tokenizer.json", "model.safetensors"] {
        fs::copy(pretrained.join(name), model.join(name)).unwrap();
    }
    let mut config: Json =
        serde_json::from_slice(&fs::read(pretrained.join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("bert_xla");
    config["_name_or_path"] = "owner/tiny".into();
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let mut command = command(&["train", "--backend", "cpu", "--max-length", "8", "--labels", "auto"]);
    command.arg("--train").arg(&data).arg("--model").arg(&model).arg("--output").arg(&run);
    command.args(["--epochs", "3", "--learning-rate", "3e-3", "--keep", "best", "--metric", "f1"]);
    trains(&mut command);
    run
}

/// The value of `key: value` on a line of its own, which is JSON in quotes or a plain word.
#[track_caller]
fn value(front: &str, key: &str) -> Json {
    let start = format!("{key}: ");
    let mut found = front.lines().filter_map(|line| line.trim_start_matches([' ', '-']).strip_prefix(&start));
    let value = found.next().unwrap_or_else(|| panic!("no {key}: {front}"));
    serde_json::from_str(value).unwrap_or_else(|_| value.into())
}

#[test]
fn the_card_tells_what_was_measured_and_how_whatever_the_names() {
    let folder = empty_folder("cards_odd");
    let run = odd_run(&folder);
    let card = fs::read_to_string(run.join(layout::CARD)).unwrap();
    let (front, body) = card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
    let history = json_lines(&fs::read_to_string(run.join(layout::HISTORY)).unwrap());
    let kept = history.iter().find(|record| record["kept"] == json!(true)).unwrap();

    let title = format!("owner/tiny, trained on {TABLE}");
    assert_eq!(value(front, "base_model"), json!("owner/tiny"));
    assert_eq!(value(front, "library_name"), json!("bert-xla"));
    assert_eq!(value(front, "pipeline_tag"), json!("text-classification"));
    assert!(!front.contains("license") && !front.contains("language"));
    let names = front.lines().filter_map(|line| line.trim_start_matches([' ', '-']).strip_prefix("name: "));
    let names = names.map(|name| serde_json::from_str(name).unwrap_or_else(|_| json!(name)));
    let data = format!("{TABLE}, 6 rows held out");
    let expected = [&*title, "Text Classification", &data, "Accuracy", "F1 (macro)", "Loss"];
    assert_eq!(names.collect::<Vec<_>>(), expected);
    let metrics = front.split("metrics:").nth(1).unwrap();
    let measured = metrics.lines().filter_map(|line| line.trim().strip_prefix("value: "));
    let measured = measured.map(|value| value.parse::<f64>().unwrap()).collect::<Vec<_>>();
    let of_kept = ["val_accuracy", "val_f1", "val_loss"].map(|name| kept[name].as_f64().unwrap());
    assert_eq!(measured, of_kept);

    // Escaped, so that they are shown as they are.
    assert!(body.contains("\n# owner/tiny, trained on it's: \\#1 \"a\".csv\n"), "{body}");
    assert!(body.contains("| 0 | --- \\# a\\|b: \"\u{1f600} |\n| 1 | \\<b\\>\\`\\\\it's\\_ |\n"), "{body}");
    for record in &history {
        let (epoch, is_kept) = (record["epoch"].as_u64().unwrap(), record["kept"] == json!(true));
        let epoch = if is_kept { format!("**{epoch}** (kept)") } else { epoch.to_string() };
        let metrics = ["loss", "accuracy", "val_loss", "val_accuracy", "val_f1"];
        let metrics = metrics.map(|name| format!("{:.4}", record[name].as_f64().unwrap())).join(" | ");
        let line = format!("\n| {epoch} | {} | {metrics} | 0.003 |\n", record["step"]);
        assert!(body.contains(&line), "no {line}: {body}");
    }
    let command = "bert-xla train --backend cpu --max-length 8 --labels auto --train 'it'\\''s: #1 \"a\".csv' --model copy \
                   --output run --epochs 3 --learning-rate 3e-3 --keep best --metric f1";
    assert!(body.contains(&format!("```sh\n{command}\n```")), "{body}");
    assert!(
        body.contains("| keep | best by f1 |\n") && body.contains("| learning\\_rate | 0.003 |\n"),
        "{body}"
    );
    assert!(body.contains("![loss](loss.png) ![accuracy](accuracy.png)"), "{body}");
    assert!(!card.contains(folder.to_str().unwrap()), "{card}");
}

#[test]
fn the_card_tells_of_a_table_of_its_own_that_it_is_evaluated_on() {
    let folder = empty_folder("cards_dev");
    let (dev, run) = (folder.join("dev_1.jsonl"), folder.join("run"));
    fs::write(&dev, "{\"text\": \"I love it\", \"label\": 1}\n{\"text\": \"so bad\", \"label\": -1}\n")
        .unwrap();
    let dev = dev.to_str().unwrap();
    trains(&mut train(&run, &["--epochs", "2", "--schedule", "cosine", "--dev", dev]));
    let card = fs::read_to_string(run.join(layout::CARD)).unwrap();
    assert!(card.contains("\n      type: \"json\"\n      name: \"dev_1.jsonl\"\n"), "{card}");
    assert!(card.contains("are of the 2 rows of dev\\_1.jsonl.\n"), "{card}");
    // A schedule fixes it, where it could change otherwise.
    assert_eq!(card.matches("| epochs | 2 |").count(), 1, "{card}");
}

/// It is that of the last epoch's commit, also where the model is an earlier one's.
#[test]
fn the_card_is_committed_with_the_epoch() {
    let run = demo().join("run");
    let pointer: Json = serde_json::from_slice(&fs::read(run.join(layout::RUN)).unwrap()).unwrap();
    let checkpoint = run.join(pointer["checkpoint"].as_str().unwrap());
    let card = fs::read(run.join(layout::CARD)).unwrap();
    assert_eq!(fs::read(checkpoint.join(layout::CARD)).unwrap(), card);
    let card = String::from_utf8(card).unwrap();
    // Its weights were random.
    assert!(!card.contains("base_model") && card.contains("| starting\\_weights | random |\n"), "{card}");
    assert!(card.contains("\nlibrary_name: bert-xla\n") && card.contains("**6** (kept)"), "{card}");
}

#[test]
fn a_readme_of_the_users_own_stays() {
    let folder = empty_folder("cards_own");
    let (run, own) = (folder.join("run"), folder.join("run").join(layout::CARD));
    fs::create_dir(&run).unwrap();
    fs::write(&own, "mine").unwrap();
    trains(&mut train(&run, &["--epochs", "1"]));
    assert_eq!(fs::read_to_string(&own).unwrap(), "mine");
    let committed = run.join("checkpoints/step-23").join(layout::CARD);
    let card = fs::read_to_string(committed).unwrap();
    // One of ours that was edited is, but for its mark, ours.
    fs::write(&own, format!("{card}\nmore\n")).unwrap();
    trains(&mut train(&run, &["--epochs", "2"]));
    let card = fs::read_to_string(&own).unwrap();
    assert!(card.contains("**2** (kept)") && !card.contains("\nmore\n"), "{card}");
    let edited = card.lines().filter(|line| !line.starts_with("<!-- ")).collect::<Vec<_>>().join("\n");
    fs::write(&own, &edited).unwrap();
    trains(&mut train(&run, &["--epochs", "3"]));
    assert_eq!(fs::read_to_string(&own).unwrap(), edited);
    // And a run that is only its files is one still.
    fs::remove_dir_all(run.join(layout::CHECKPOINTS)).unwrap();
    assert_eq!(Run::open(&run).unwrap().labels.num_classes(), 4);
}

/// A head of transformers' own is loaded by it; an export's README tells the same of texts and labels.
#[test]
fn the_card_says_how_the_model_is_loaded() {
    let folder = empty_folder("cards_head");
    let run = folder.join("run");
    trains(&mut train(&run, &["--epochs", "1", "--head", "cls", "--mask"]));
    let card = fs::read_to_string(run.join(layout::CARD)).unwrap();
    assert!(card.contains("\nlibrary_name: transformers\n"), "{card}");
    assert!(card.contains("AutoModelForSequenceClassification.from_pretrained(\".\")"), "{card}");
    assert!(
        card.contains("model_max_length=24, model_input_names=[\"input_ids\", \"attention_mask\"]"),
        "{card}"
    );
    let output = folder.join("export");
    let paths = ["--run", run.to_str().unwrap(), "--output", output.to_str().unwrap()];
    works(&[&["export", "--format", "transformers"][..], &paths].concat());
    let exported = fs::read_to_string(output.join("README.md")).unwrap();
    let (_, about) = card.split_once("| class | label |").unwrap();
    let (about, _) = about.split_once("## Results").unwrap();
    assert!(exported.contains(about.trim()), "{exported}");
    assert!(card.contains("--model tiny"), "{card}");
}

#[test]
fn what_is_tested_is_on_the_card_and_an_ensemble_has_one() {
    let folder = empty_folder("cards_test");
    let (single, many, test) = (folder.join("single"), folder.join("many"), folder.join("test_1.csv"));
    fs::write(&test, "text,label\nI love it,1\nso bad,-1\n").unwrap();
    let flags = ["--epochs", "1", "--learning-rate", "1e-3", "--test", test.to_str().unwrap()];
    let card = |root: &Path| fs::read_to_string(root.join(layout::CARD)).unwrap();
    let read = |root: &Path, name: &str| read_json(&root.join(name));
    trains(&mut train(&single, &flags));
    let measured = |report: &Json| {
        let number = |value: &Json| format!("{:.4}", value.as_f64().unwrap());
        let (accuracy, f1) = (number(&report["accuracy"]), number(&report["macro_average"]["f1"]));
        format!("accuracy {accuracy}, f1 {f1}, loss {}.", number(&report["loss"]))
    };
    let told =
        format!("## Test\n\nOn the 2 rows of test\\_1.csv: {}", measured(&read(&single, layout::TEST)));
    assert_eq!(card(&single).matches(&told).count(), 1, "{}", card(&single));
    // As it is after another epoch.
    trains(&mut train(&single, &[&["--epochs", "2"], &flags[2..]].concat()));
    let told =
        format!("## Test\n\nOn the 2 rows of test\\_1.csv: {}", measured(&read(&single, layout::TEST)));
    let now = card(&single);
    assert!(
        now.matches("## Test").count() == 1 && now.contains(&told) && now.contains("**2** (kept)"),
        "{now}"
    );

    trains(&mut train(&many, &[&flags[..], &["--folds", "2"]].concat()));
    let (card, summary, report) = (card(&many), read(&many, layout::SUMMARY), read(&many, layout::TEST));
    let told = format!("The ensemble on the 2 rows of test\\_1.csv: {}", measured(&report));
    assert!(card.contains(&told), "{card}");
    assert!(card.contains("The ensemble on the 400 rows of sample.csv, out of fold: "), "{card}");
    for member in summary["members"].as_array().unwrap() {
        let metrics = ["val_accuracy", "f1", "val_loss"].map(|name| member[name].as_f64().unwrap());
        let [accuracy, f1, loss] = metrics.map(|value| format!("{value:.4}"));
        let line = format!("| {} | 1 | {accuracy} | {f1} | {loss} |\n", member["name"].as_str().unwrap());
        assert!(card.contains(&line), "no {line}: {card}");
    }
    let (front, _) = card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
    assert_eq!(value(front, "split"), json!("test"));
    let accuracy = format!("      value: {}\n", report["accuracy"]);
    assert!(front.contains(&accuracy), "{front}");
}

#[test]
fn parts_of_a_card_are_told_by_lines_of_their_own() {
    let folder = empty_folder("cards_headings");
    let (data, test, run) =
        (folder.join("a ## How to use it.csv"), folder.join("b ## Test.csv"), folder.join("run"));
    fs::copy(asset("sample.csv"), &data).unwrap();
    fs::copy(asset("sample.csv"), &test).unwrap();
    let mut command = command(&["train", "--backend", "cpu", "--random-weights", "--max-length", "8"]);
    command.arg("--train").arg(&data).arg("--model").arg(asset("tiny")).arg("--output").arg(&run);
    trains(command.args(["--epochs", "1", "--test"]).arg(&test));
    let (committed, card) = (run.join("checkpoints/step-23").join(layout::CARD), run.join(layout::CARD));
    let told = fs::read_to_string(&card).unwrap();
    let (before, rest) = told.split_once("\n## Test\n").unwrap();
    let (_, after) = rest.split_once("\n## How it was trained\n").unwrap();
    assert_eq!(
        format!("{before}\n## How it was trained\n{after}"),
        fs::read_to_string(committed).unwrap(),
        "all else is as it was"
    );
    let export = |name: &str| {
        let output = folder.join(name);
        let paths = ["--run", run.to_str().unwrap(), "--output", output.to_str().unwrap()];
        works(&[&["export", "--format", "transformers"][..], &paths].concat());
        fs::read_to_string(output.join("README.md")).unwrap()
    };
    let exported = export("export");
    assert!(exported.contains("| option | value |") && !exported.contains("bert-xla predict"), "{exported}");
    // Somebody has moved how it is used to the front.
    let (mut front, mut usage) = told.split_once("\n## How to use it\n").unwrap();
    let moved = front.replacen("\n## Results\n", &format!("\n## How to use it\n{usage}\n## Results\n"), 1);
    (front, usage) = moved.split_once("\n## Results\n").unwrap();
    assert!(front.ends_with("```\n") && usage.contains("## Test"));
    fs::write(&card, &moved).unwrap();
    let exported = export("moved");
    assert!(!exported.contains("## Results") && exported.contains("| class | label |"), "{exported}");
}

#[test]
fn the_format_is_that_of_the_table_that_is_named() {
    let folder = empty_folder("cards_format");
    let (root, test) = (folder.join("run"), folder.join("test.jsonl"));
    fs::write(&test, "{\"text\": \"I love it\", \"label\": 1}\n{\"text\": \"so bad\", \"label\": -1}\n")
        .unwrap();
    trains(&mut train(&root, &["--epochs", "1", "--seeds", "1", "--test", test.to_str().unwrap()]));
    let card = fs::read_to_string(root.join(layout::CARD)).unwrap();
    assert!(card.contains("\n      type: \"json\"\n      name: \"test.jsonl\"\n"), "{card}");
}
