//! `--labels auto`: the labels of the table as classes, from the table to what the run's readers answer.

use std::fs;
use std::path::Path;

use bert_xla::data::{DataError, LabelMap, Labels, Purpose, Records, Table, TableOptions};
use serde_json::{Value, json};

use crate::common::cli::{asset, command, demo, fails, text, with_run};
use crate::common::empty_folder;
use crate::common::runs::read_json;
use crate::common::slice::run_hosts;

/// Of the 28 rows with texts of their own: with commas, quotes, spaces, `=`, and beyond U+FFFF.
const LABELS: [&str; 14] = [
    "très bien",
    "a, b",
    "say \"hi\"",
    "x=1",
    "LABEL_0",
    "10",
    "2",
    "-1",
    "Zebra",
    "apple",
    "ممتاز",
    "😀",
    "￮",
    " padded ",
];

/// `LabelEncoder().fit(labels).classes_` of scikit-learn 1.9.1, for `labels = df.drop_duplicates("text").label.str.strip()`
/// of the frame `df` that pandas reads from [`table`]; and `transform(labels)[:14]`.
const SORTED: [&str; 14] = [
    "-1",
    "10",
    "2",
    "LABEL_0",
    "Zebra",
    "a, b",
    "apple",
    "padded",
    "say \"hi\"",
    "très bien",
    "x=1",
    "ممتاز",
    "￮",
    "😀",
];
const ENCODED: [u32; 14] = [9, 5, 8, 10, 3, 1, 2, 0, 4, 6, 11, 13, 12, 7];

fn texts() -> Vec<String> {
    (0..28).map(|row| format!("text {row}")).collect()
}

/// The last row's text is the first's.
fn table() -> String {
    let quoted = |label: &str| format!("\"{}\"", label.replace('"', "\"\""));
    let rows = texts().into_iter().zip(LABELS.iter().cycle());
    let rows = rows.map(|(text, label)| format!("{text},{}\n", quoted(label)));
    format!("text,label\n{}text 0,only of a duplicate\n", rows.collect::<String>())
}

fn auto() -> TableOptions {
    TableOptions { labels: Labels::Auto, ..TableOptions::default() }
}

#[test]
fn equal_scikit_learns_label_encoder() {
    let path = empty_folder("labels_encoder").join("data.csv");
    fs::write(&path, table()).unwrap();
    let table = Table::read(&path, &auto(), Purpose::Train).unwrap();
    assert_eq!(table.labels.iter().collect::<Vec<_>>(), SORTED.into_iter().zip(0..).collect::<Vec<_>>());
    assert_eq!(table.classes, [ENCODED, ENCODED].concat());
    assert_eq!(table.duplicates, 1);
    // No rows are dropped here.
    let table = Table::read(&path, &auto(), Purpose::Evaluate).unwrap();
    assert_eq!((table.labels.num_classes(), table.labels.class_of("only of a duplicate")), (15, Some(7)));
    let table = Table::read(&path, &auto(), Purpose::Predict).unwrap();
    assert_eq!((table.texts.len(), table.labels.num_classes()), (29, 0));
}

#[test]
fn labels_that_make_no_classifier_are_refused() {
    let folder = empty_folder("labels_refused");
    let read = |csv: &str, skip_bad_rows| {
        let path = folder.join("data.csv");
        fs::write(&path, csv).unwrap();
        Table::read(&path, &TableOptions { skip_bad_rows, ..auto() }, Purpose::Train)
            .map(|table| table.classes)
    };
    let one = read("text,label\na,x\nb, x\n", false).unwrap_err();
    assert!(one.to_string().ends_with("every row has the label `x`, and a classifier needs two"), "{one}");
    let empty = "text,label\na,x\nb, \nc,y\n";
    let error = read(empty, false).unwrap_err();
    assert!(error.to_string().ends_with("1 row can't be used: line 3: the label is empty"), "{error}");
    assert_eq!(read(empty, true).unwrap(), [0, 1]);
    // A label that only rows have that can't be used.
    let error = read("text,label\na,x\n,y\n", true).unwrap_err();
    assert!(matches!(error, DataError::Labels { .. }), "{error}");

    let many = |n: usize| {
        let rows = (0..n).map(|row| format!("text {row},label {row:05}\n"));
        format!("text,label\n{}", rows.collect::<String>())
    };
    assert_eq!(read(&many(10_000), false).unwrap().last(), Some(&9_999));
    let error = read(&many(10_001), false).unwrap_err();
    let expected = "there are more than 10000 labels, such as `label 00000`, `label 00001`, `label 00002`";
    assert!(error.to_string().ends_with(expected) && error.is_input_error(), "{error}");
    // At once, however much follows.
    let path = folder.join("data.csv");
    fs::write(&path, many(30_000)).unwrap();
    let mut records = Records::open(&path, &auto(), Purpose::Train).unwrap();
    assert_eq!(records.by_ref().take_while(|record| record.is_ok()).count(), 10_000);
    assert!(records.next().is_none());
}

#[test]
fn no_two_maps_of_labels_look_alike() {
    let map = |pairs: &[(&str, u32)]| {
        LabelMap::new(pairs.iter().map(|(label, class)| ((*label).to_owned(), *class))).unwrap()
    };
    assert_eq!(LabelMap::default().to_unique_string(), "-1=1,0=2,1=3");
    assert_eq!(map(&[("x=1", 0), ("a b", 1)]).to_unique_string(), "x=1=0,a b=1");
    // `a=0,b=1` would be either.
    assert_eq!(map(&[("a", 0), ("b", 1)]).to_unique_string(), "a=0,b=1");
    assert_eq!(map(&[("a=0,b", 1)]).to_unique_string(), r#"[["a=0,b",1]]"#);
}

/// Trains a tiny model for an epoch on the table at `data`.
fn train(data: &Path, output: &Path, arguments: &[&str]) -> std::process::Command {
    let mut command = command(&["train", "--backend", "cpu", "--random-weights", "--max-length", "8"]);
    command.arg("--train").arg(data).arg("--model").arg(asset("tiny")).arg("--output").arg(output);
    command.args(["--epochs", "1"]).args(arguments);
    command
}

#[test]
fn a_run_goes_by_the_labels_that_its_table_had() {
    let folder = empty_folder("labels_run");
    let (data, output) = (folder.join("data.csv"), folder.join("run"));
    fs::write(&data, table()).unwrap();
    let message = fails(&mut train(&data, &output, &["--labels", "auto", "--num-classes", "13"]), 2);
    assert_eq!(message, "error: --num-classes 13: --labels auto needs 14");
    let ended = train(&data, &output, &["--labels", "auto", "--num-classes", "15"]).output().unwrap();
    assert!(ended.status.success(), "{}", text(ended.stderr));
    let config = read_json(&output.join("config.json"));
    for (class, label) in SORTED.iter().enumerate() {
        assert_eq!(config["id2label"][class.to_string()], *label);
        assert_eq!(config["label2id"][label], class);
    }
    assert_eq!(config["id2label"]["14"], "LABEL_14");
    assert_eq!(config["bert_xla"]["unlabelled"], json!([14]));
    let predictions = fs::read_to_string(output.join("dev_predictions.csv")).unwrap();
    let header = "row,id,label,predicted,p_-1,p_10,p_2,p_LABEL_0,p_Zebra,\"p_a, b\",p_apple,p_padded,\"p_say \"\"hi\"\"\",\
                  p_très bien,p_x=1,p_ممتاز,p_￮,p_😀,p_class_14";
    assert_eq!(predictions.lines().next(), Some(header));

    // The readers of the run: each label is known, and an answer is one of them.
    let report = with_run("evaluate", &output, &data, &["--json"]).output().unwrap();
    let said = text(report.stderr);
    assert!(said.contains("line 30: label `only of a duplicate` is not one of -1, 10, 2,"), "{said}");
    fs::write(&data, table().replace("text 0,only of a duplicate\n", "")).unwrap();
    let report = with_run("evaluate", &output, &data, &["--json"]).output().unwrap();
    let report = serde_json::from_slice::<Value>(&report.stdout).unwrap();
    let classes =
        report["per_class"].as_array().unwrap().iter().map(|class| class["label"].as_str().unwrap());
    assert_eq!(classes.collect::<Vec<_>>(), SORTED);
    let answers = folder.join("answers.csv");
    let arguments = ["--text-column", "text", "--id-column", "text", "--output", answers.to_str().unwrap()];
    assert!(with_run("predict", &output, &data, &arguments).output().unwrap().status.success());
    let labels = Labels::Given(Table::read(&data, &auto(), Purpose::Train).unwrap().labels);
    let options = TableOptions { labels, text_column: Some("ID".parse().unwrap()), ..auto() };
    assert_eq!(Table::read(&answers, &options, Purpose::Evaluate).unwrap().texts, texts());

    // It goes on with the labels of its table, however they are given, and with no others.
    let finished = train(&data, &output, &["--resume"]).output().unwrap();
    assert!(text(finished.stderr).contains("Nothing to do"));
    fs::write(&data, table().replace("Zebra", "zebra")).unwrap();
    let message = fails(&mut train(&data, &output, &["--labels", "auto", "--num-classes", "15"]), 2);
    assert!(message.contains(r#"labels was [["-1",0],["10",1],"#), "{message}");
}

#[test]
fn the_hosts_of_a_slice_find_the_same_labels() {
    let folder = empty_folder("labels_slice");
    let (data, other_data) = (folder.join("data.csv"), folder.join("other.csv"));
    fs::write(&data, table()).unwrap();
    fs::write(&other_data, table().replace("Zebra", "zebra")).unwrap();
    let host = |data: &Path, name: &str| train(data, &folder.join(name), &["--labels", "auto"]);
    let Some(hosts) = run_hosts(2, [host(&data, "chief"), host(&data, "other")]) else { return };
    assert!(hosts.iter().all(|host| host.code == Some(0)), "{hosts:?}");
    let alone = host(&data, "alone").args(["--replicas", "4"]).output().unwrap();
    assert!(alone.status.success(), "{}", text(alone.stderr));
    let read = |name: &str, file: &str| fs::read(folder.join(name).join(file)).unwrap();
    assert!(read("chief", "config.json") == read("alone", "config.json"));
    let hosts = run_hosts(2, [host(&data, "differ"), host(&other_data, "differ")]).unwrap();
    for host in hosts {
        assert!(
            host.code == Some(2) && host.error().contains("process 1 in the options, the data"),
            "{host:?}"
        );
    }
}

#[test]
fn what_may_not_have_been_meant_is_told() {
    let folder = empty_folder("labels_told");
    let (data, test) = (folder.join("data.csv"), folder.join("test.csv"));
    let rows = (0..40).map(|row| format!("text {row},{}\n", ["good", "bad"][row % 2])).collect::<String>();
    // The first is a duplicate with the same label, the next two with others.
    fs::write(&data, format!("text,label\n{rows}text 0,good\ntext 0,bad\ntext 1,new\ntext 99,rare\n"))
        .unwrap();
    fs::write(&test, "text,label\ntext 7,bad\nunseen,good\n").unwrap();
    let mut command =
        train(&data, &folder.join("run"), &["--labels", "auto", "--dry-run", "--split-seed", "8"]);
    command.args(["--warmup", "90", "--accumulate", "5", "--test"]).arg(&test);
    let output = command.output().unwrap();
    let said = text(output.stderr);
    assert!(output.status.success(), "{said}");
    for line in [
        "41 texts (3 duplicates dropped, 2 of them with another label, 0 bad rows skipped): 36 to train on, 5 held out\n",
        "test.csv: 2 texts, 1 of them also in ",
        "\nLabels: bad 20, good 20, rare 1\n",
        "\nNo row to train on has the label rare\n",
        "\n--accumulate 5: an epoch has 3 batches, fewer than a step goes over\n",
        "\n--warmup 90: the rate never rises to --learning-rate in the run's 1 steps\n",
    ] {
        assert!(said.contains(line), "no {line}: {said}");
    }
    // Rows without a text are labelled, and told.
    let (data, labels) = (folder.join("data.jsonl"), folder.join("labels.csv"));
    fs::write(&data, "{\"text\": \"a\"}\n{\"text\": null}\n{\"text\": \" \"}\n").unwrap();
    let mut predict =
        with_run("predict", &demo().join("run"), &data, &["--output", labels.to_str().unwrap()]);
    let said = text(predict.output().unwrap().stderr);
    assert!(said.contains("data.jsonl: 2 rows without a text; labelled all the same\n"), "{said}");
    assert_eq!(fs::read_to_string(&labels).unwrap().lines().count(), 4);
}
