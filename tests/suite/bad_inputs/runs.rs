//! Folders of runs.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value as Json, json};

use super::Case;
use super::models::json;
use crate::common::cli::demo;

const EVALUATE: &str = "evaluate --backend cpu --run {}/run --data {}/data.csv";
const CHECKPOINT: &str = "checkpoints/step-270";

fn case(name: &str, make: impl FnOnce(&Path) + Send + 'static, message: &str) -> Case {
    Case::new(format!("run: {name}"), EVALUATE, message).make(make)
}

/// A whole run, but for an `edit` of its folder.
fn run(name: &str, edit: impl FnOnce(&Path) + Send + 'static, message: &str) -> Case {
    case(
        name,
        |folder| {
            let run = folder.join("run");
            let copied = Command::new("cp").arg("-a").arg(demo().join("run")).arg(&run).status().unwrap();
            assert!(copied.success());
            edit(&run);
        },
        message,
    )
}

/// A run's files alone, which nothing vouches for, but for an edit of `config.json`.
fn config(name: &str, edit: impl FnOnce(&mut Json) + Send + 'static, message: &str) -> Case {
    run(
        &format!("config.json: {name}"),
        |folder| {
            fs::remove_file(folder.join("run.json")).unwrap();
            json("config.json", edit)(folder);
        },
        message,
    )
}

fn settings(name: &str, key: &'static str, value: Json, message: &str) -> Case {
    config(name, move |json| json["bert_xla"][key] = value, message)
}

fn pointer(name: &str, edit: impl FnOnce(&mut Json) + Send + 'static, message: &str) -> Case {
    run(&format!("run.json: {name}"), json("run.json", edit), message)
}

fn manifest(name: &str, edit: impl FnOnce(&mut Json) + Send + 'static, message: &str) -> Case {
    let edit = |folder: &Path| json("manifest.json", edit)(&folder.join(CHECKPOINT));
    run(&format!("manifest.json: {name}"), edit, message)
}

fn committed(name: &str, edit: impl FnOnce(&Path) + Send + 'static, message: &str) -> Case {
    run(&format!("checkpoint: {name}"), |folder| edit(&folder.join(CHECKPOINT)), message)
}

fn write(name: &'static str, text: &'static str) -> impl FnOnce(&Path) + Send {
    move |folder| fs::write(folder.join(name), text).unwrap()
}

pub fn cases() -> Vec<Case> {
    vec![
        case("missing", |_| (), "{}/run: there is no such folder; give the --output of a training run"),
        case(
            "an empty folder",
            |folder| fs::create_dir(folder.join("run")).unwrap(),
            "{}/run: there is no config.json",
        ),
        case(
            "a file",
            |folder| fs::write(folder.join("run"), "").unwrap(),
            "{}/run: there is no such folder; give the --output of a training run",
        ),
        case(
            "a bare model",
            |folder| fs::rename(folder.join("model"), folder.join("run")).unwrap(),
            "{}/run: there is no model.safetensors",
        ),
        run(
            "run.json: empty",
            write("run.json", ""),
            "{}/run/run.json: it should name the run's checkpoint, but is no JSON: EOF while \
                parsing a value at line 1 column 0",
        ),
        run(
            "run.json: no JSON",
            write("run.json", "{"),
            "{}/run/run.json: it should name the run's checkpoint, but is no JSON: EOF while \
                parsing an object at line 1 column 1",
        ),
        pointer(
            "a number for a name",
            |json| json["checkpoint"] = 3.into(),
            "{}/run/run.json: not a run's, whose checkpoint it should name: invalid type: integer \
                `3`, expected a string",
        ),
        pointer(
            "no files",
            |json| drop(json.as_object_mut().unwrap().remove("files")),
            "{}/run/run.json: not a run's: it lists no file of `checkpoints/step-270`",
        ),
        pointer(
            "a file elsewhere",
            |json| json["files"][0]["name"] = "../../config.json".into(),
            "{}/run/run.json: not a run's: `../../config.json` is no file of one",
        ),
        pointer(
            "elsewhere",
            |json| json["checkpoint"] = "/etc".into(),
            "{}/run/run.json: `/etc` is no checkpoint of this run",
        ),
        pointer(
            "up and elsewhere",
            |json| json["checkpoint"] = "checkpoints/../..".into(),
            "{}/run/run.json: `checkpoints/../..` is no checkpoint of this run",
        ),
        pointer(
            "no name",
            |json| json["checkpoint"] = "checkpoints/".into(),
            "{}/run/run.json: `checkpoints/` is no checkpoint of this run",
        ),
        run(
            "run.json: a checkpoint that is gone, and changed files",
            |folder| {
                fs::remove_dir_all(folder.join("checkpoints")).unwrap();
                fs::write(folder.join("config.json"), "{}").unwrap();
            },
            "{}/run/config.json: it has 2 bytes where 885 were committed",
        ),
        run(
            "manifest.json: missing",
            |folder| fs::remove_file(folder.join(CHECKPOINT).join("manifest.json")).unwrap(),
            "{}/run/checkpoints/step-270/manifest.json: there is none: the checkpoint is not whole",
        ),
        run(
            "manifest.json: no JSON",
            |folder| write("manifest.json", "{")(&folder.join(CHECKPOINT)),
            "{}/run/checkpoints/step-270/manifest.json: EOF while parsing an object at line 1 column 1",
        ),
        manifest(
            "another hash",
            |json| json["files"][1]["sha256"] = "00".into(),
            "{}/run/checkpoints/step-270/config.json: it is not as it was committed",
        ),
        manifest(
            "another size",
            |json| json["files"][1]["size"] = 1.into(),
            "{}/run/checkpoints/step-270/config.json: it has 885 bytes where 1 were committed",
        ),
        manifest(
            "a negative size",
            |json| json["files"][1]["size"] = (-1).into(),
            "{}/run/checkpoints/step-270/manifest.json: invalid value: integer `-1`, expected u64 \
                at line 1 column 230",
        ),
        manifest(
            "a file elsewhere",
            |json| json["files"][1]["name"] = "../../config.json".into(),
            "{}/run/checkpoints/step-270/../../config.json: it is not in the checkpoint's own folder",
        ),
        manifest(
            "a device",
            |json| json["files"][1]["name"] = "/dev/zero".into(),
            "/dev/zero: it is not in the checkpoint's own folder",
        ),
        committed(
            "weights are cut",
            |folder| {
                let file = fs::File::options().write(true).open(folder.join("model.safetensors")).unwrap();
                file.set_len(1000).unwrap();
            },
            "{}/run/checkpoints/step-270/model.safetensors: it has 1000 bytes where 4527088 were committed",
        ),
        committed(
            "a bit of the weights is another",
            |folder| {
                let path = folder.join("model.safetensors");
                let mut bytes = fs::read(&path).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                fs::write(path, bytes).unwrap();
            },
            "{}/run/checkpoints/step-270/model.safetensors: it is not as it was committed",
        ),
        committed(
            "a file is missing",
            |folder| fs::remove_file(folder.join("tokenizer.json")).unwrap(),
            "{}/run/checkpoints/step-270/tokenizer.json: No such file or directory (os error 2)",
        ),
        committed(
            "a file is a pipe",
            |folder| {
                fs::remove_file(folder.join("tokenizer.json")).unwrap();
                assert!(
                    Command::new("mkfifo").arg(folder.join("tokenizer.json")).status().unwrap().success()
                );
            },
            "{}/run/checkpoints/step-270/tokenizer.json: it is no file",
        ),
        config(
            "no settings",
            |json| drop(json.as_object_mut().unwrap().remove("bert_xla")),
            "{}/run/config.json: it has no \"bert_xla\": it is no training run's, but a bare model's",
        ),
        config(
            "no id2label",
            |json| drop(json.as_object_mut().unwrap().remove("id2label")),
            "{}/run/config.json: it has no id2label",
        ),
        config(
            "id2label is a list",
            |json| json["id2label"] = json!(["a", "b"]),
            "{}/run/config.json: id2label: invalid type: sequence, expected a map",
        ),
        config(
            "id2label has names for numbers",
            |json| json["id2label"] = json!({"a": "b"}),
            "{}/run/config.json: id2label: invalid value: expected key to be a number in quotes",
        ),
        config(
            "id2label has a number for a name",
            |json| json["id2label"] = json!({"1": 1}),
            "{}/run/config.json: id2label: invalid type: integer `1`, expected a string",
        ),
        config(
            "id2label has a label twice",
            |json| json["id2label"] = json!({"1": "a", "2": "a"}),
            "{}/run/config.json: id2label: label `a` is given twice",
        ),
        config(
            "id2label has a class beyond",
            |json| json["id2label"]["4294967295"] = "a".into(),
            "{}/run/config.json: num_classes is 4, but the labels -1=1,0=2,1=3,a=4294967295 need 4294967296",
        ),
        config(
            "id2label has too many classes",
            |json| {
                json["id2label"] =
                    (0..20_000).map(|class| (class.to_string(), json!(class.to_string()))).collect();
            },
            "{}/run/config.json: id2label has 20000 classes; expected at most 10000",
        ),
        settings(
            "no class has a label",
            "unlabelled",
            json!([0, 1, 2, 3]),
            "{}/run/config.json: id2label: there is no label",
        ),
        settings(
            "unlabelled is no list",
            "unlabelled",
            json!(0),
            "{}/run/config.json: bert_xla: invalid type: integer `0`, expected a sequence",
        ),
        settings(
            "labels of older runs",
            "labels",
            json!("a"),
            "{}/run/config.json: labels `a`: `a` has no `=`; expected LABEL=CLASS,... such as -1=1,0=2,1=3",
        ),
        settings(
            "no head",
            "head",
            json!(null),
            "{}/run/config.json: bert_xla: invalid type: null, expected a map",
        ),
        settings(
            "a head without sizes",
            "head",
            json!({}),
            "{}/run/config.json: bert_xla: missing field `hidden`",
        ),
        settings(
            "an unknown head",
            "head",
            json!({"type": "sparse"}),
            "{}/run/config.json: bert_xla: unknown variant `sparse`, expected one of `dense`, `lstm`, `bilstm`, `cls`, `mean`",
        ),
        settings(
            "a head of other widths",
            "head",
            json!({"hidden": [9], "dropout": 0.1, "num_classes": 4}),
            "{}/run/model.safetensors: tensor `dense_3.bias` [4] and 1 more: the model that \
                config.json describes has no such weight",
        ),
        settings(
            "a head of fewer classes",
            "head",
            json!({"hidden": [512, 440], "dropout": 0.1, "num_classes": 2}),
            "{}/run/config.json: num_classes is 2, but the labels -1=1,0=2,1=3 need 4",
        ),
        settings(
            "a length of 0",
            "max_length",
            json!(0),
            "{}/run/config.json: bert_xla: max_length is 0; expected 1 to 64",
        ),
        settings(
            "a length beyond the positions",
            "max_length",
            json!(65),
            "{}/run/config.json: bert_xla: max_length is 65; expected 1 to 64",
        ),
        settings(
            "a length beyond memory",
            "max_length",
            json!(1u64 << 63),
            "{}/run/config.json: bert_xla: max_length is 9223372036854775808; expected 1 to 64",
        ),
        settings(
            "a length that is none",
            "max_length",
            json!("24"),
            "{}/run/config.json: bert_xla: invalid type: string \"24\", expected usize",
        ),
        config(
            "other heads than its weights",
            |json| json["hidden_size"] = 32.into(),
            "{}/run/model.safetensors: tensor `embeddings.word_embeddings.weight` has the shape \
                [636, 64], expected [636, 32]",
        ),
    ]
}
