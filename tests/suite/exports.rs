//! `export`: what other programs find in its folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bert_xla::pjrt::{Argument, Buffer, CompileOptions, LoadedExecutable, Module, ModuleFormat};
use bert_xla::shape::{ElementType, Shape};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value as Json, json};

use crate::common::cli::{asset, demo, fails, text, with_run, works};
use crate::common::graph::client;
use crate::common::runs::{read_json, trains};
use crate::common::{empty_folder, ensembles::other_run};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn export(run: &Path, format: &str, output: &Path, arguments: &[&str]) -> String {
    let paths = ["--run", run.to_str().unwrap(), "--output", output.to_str().unwrap()];
    works(&[&["export", "--format", format][..], &paths, arguments].concat())
}

/// Tensors by their names: shapes and bytes.
fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let file = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let entry = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (view.shape().to_vec(), view.data().to_vec()))
    };
    tensors.tensors().into_iter().map(entry).collect()
}

/// The model that PyTorch and transformers have made `tests/fixtures/tiny_bert.safetensors` of, as a run's folder.
fn golden_run(folder: &Path) -> PathBuf {
    let run = folder.join("run");
    fs::create_dir(&run).unwrap();
    let mut config = read_json(&fixture("tiny_config.json"));
    for name in ["head", "max_length", "batch"] {
        config.as_object_mut().unwrap().remove(name);
    }
    config["model_type"] = "bert".into();
    config["torch_dtype"] = "float16".into();
    config["id2label"] = json!({ "0": "LABEL_0", "1": "b", "2": "a", "3": "c" });
    let head = json!({ "type": "dense", "hidden": [16, 12], "dropout": 0.3, "num_classes": 4 });
    config["bert_xla"] =
        json!({ "max_length": 12, "mask": false, "freeze_padding": true, "head": head, "unlabelled": [0] });
    fs::write(run.join("config.json"), config.to_string()).unwrap();
    fs::copy(fixture("wordpiece/cased/vocab.txt"), run.join("vocab.txt")).unwrap();
    let golden = fs::read(fixture("tiny_bert.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let parameters = golden.tensors().into_iter();
    let parameters =
        parameters.filter_map(|(name, view)| Some((name.strip_prefix("param/")?.to_owned(), view)));
    safetensors::serialize_to_file(parameters, None, &run.join("model.safetensors")).unwrap();
    run
}

#[test]
fn transformers_finds_its_own_names_and_the_head_beside_them() {
    let folder = empty_folder("exports_golden");
    let (run, output) = (golden_run(&folder), folder.join("new/model"));
    let said = export(&run, "transformers", &output, &[]);
    let files = [
        "README.md",
        "config.json",
        "head.json",
        "head.safetensors",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(said, format!("{}: {}\n", output.display(), files.join(", ")));
    // The names are those of transformers' `BertModel`, which was an attribute `bert` when they were saved.
    let golden = tensors(&fixture("tiny_bert.safetensors"));
    let parameters =
        golden.into_iter().filter_map(|(name, it)| Some((name.strip_prefix("param/")?.to_owned(), it)));
    let (encoder, head): (BTreeMap<_, _>, BTreeMap<_, _>) =
        parameters.partition(|(name, _)| name.starts_with("bert."));
    let encoder = encoder.into_iter().map(|(name, tensor)| (name["bert.".len()..].to_owned(), tensor));
    assert_eq!(tensors(&output.join("model.safetensors")), encoder.collect());
    assert_eq!(tensors(&output.join("head.safetensors")), head);

    let config = read_json(&output.join("config.json"));
    assert_eq!(config["architectures"], json!(["BertModel"]));
    assert_eq!(config["id2label"], json!({ "0": "LABEL_0", "1": "b", "2": "a", "3": "c" }));
    assert_eq!(config["label2id"], json!({ "LABEL_0": 0, "b": 1, "a": 2, "c": 3 }));
    assert_eq!((&config["torch_dtype"], config.get("bert_xla")), (&json!("float32"), None));
    let layers = read_json(&output.join("head.json"))["layers"].as_array().unwrap().clone();
    let layers = layers.iter().map(|layer| (layer["layer"].as_str().unwrap(), layer["tensors"].clone()));
    let dense = |name: &str| json!([format!("{name}.weight"), format!("{name}.bias")]);
    let expected = [
        ("flatten", json!([])),
        ("dense_1 (relu)", dense("dense_1")),
        ("dropout_1 (0.3)", json!([])),
        ("dense_2 (relu)", dense("dense_2")),
        ("dropout_2 (0.3)", json!([])),
        ("dense_3 (softplus)", dense("dense_3")),
    ];
    assert_eq!(layers.collect::<Vec<_>>(), expected);

    // The folder is a pretrained model, too.
    let states = |model: &Path, name: &str| {
        let output = folder.join(name);
        let flags = ["encode", "--backend", "cpu", "--max-length", "12", "--batch-size", "2"];
        let input = folder.join("sentences.txt");
        fs::write(&input, "yezzi\nbarcha behi\n").unwrap();
        let paths = [Path::new("--model"), model, "--input".as_ref(), &input, "--output".as_ref(), &output];
        works(&[&flags.map(Path::new)[..], &paths].concat());
        tensors(&output)
    };
    assert_eq!(states(&output, "states_of_export"), states(&run, "states_of_run"));
}

/// `tiny_heads.safetensors` has a classifier of transformers' `BertForSequenceClassification`, which gives its logits with the
/// weights of `tiny_bert.safetensors`: see `heads.rs`, which compares them with ours.
#[test]
fn a_pooled_head_is_exported_as_transformers_own() {
    let folder = empty_folder("exports_cls");
    let (run, output) = (golden_run(&folder), folder.join("model"));
    let own =
        tensors(&run.join("model.safetensors")).into_iter().filter(|(name, _)| name.starts_with("bert."));
    let classifier = tensors(&fixture("tiny_heads.safetensors")).into_iter();
    let classifier = classifier.filter(|(name, _)| name.starts_with("classifier."));
    let expected = own.chain(classifier).collect::<BTreeMap<_, _>>();
    let views = expected.iter().map(|(name, (shape, bytes))| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &run.join("model.safetensors")).unwrap();
    let mut config = read_json(&run.join("config.json"));
    config["bert_xla"]["head"] = json!({ "type": "cls", "dropout": 0.2, "num_classes": 4 });
    fs::write(run.join("config.json"), config.to_string()).unwrap();

    let said = export(&run, "transformers", &output, &[]);
    assert!(!said.contains("head."), "{said}");
    assert_eq!(tensors(&output.join("model.safetensors")), expected);
    let config = read_json(&output.join("config.json"));
    assert_eq!(config["architectures"], json!(["BertForSequenceClassification"]));
    assert_eq!(config["problem_type"], "single_label_classification");
    assert_eq!(config["id2label"].as_object().unwrap().len(), 4);
    assert_eq!((&config["classifier_dropout"], config.get("bert_xla")), (&json!(0.2), None));
}

/// A program of which nothing is known but what its folder tells.
struct Stranger {
    executable: LoadedExecutable,
    weights: Vec<Buffer>,
    signature: Json,
}

impl Stranger {
    fn open(folder: &Path) -> Self {
        let signature = read_json(&folder.join("signature.json"));
        let file = |key: &str| folder.join(signature[key].as_str().unwrap());
        let parameters = signature["parameters"].as_array().unwrap();
        let shapes = parameters.iter().map(shape).collect::<Vec<_>>();
        let code = fs::read(file("module")).unwrap();
        let module = Module { format: ModuleFormat::Hlo, code: &code, parameters: &shapes };
        let executable = client().compile(&module, &CompileOptions::replicas(1)).unwrap();
        let tensors = tensors(&file("weights"));
        let named = parameters.iter().filter_map(|parameter| parameter["tensor"].as_str());
        assert!(named.clone().eq(parameters.iter().map_while(|parameter| parameter["tensor"].as_str())));
        let device = client().addressable_device(0).unwrap();
        let upload = |(name, shape): (&str, &Shape)| {
            client().buffer_from_bytes(&tensors[name].1, shape, device).unwrap()
        };
        let weights = named.zip(&shapes).map(upload).collect::<Vec<_>>();
        assert_eq!(weights.len(), tensors.len());
        Self { executable, weights, signature }
    }

    /// What comes after the weights, by name.
    fn inputs(&self) -> Vec<(&str, Shape)> {
        let parameters = &self.signature["parameters"].as_array().unwrap()[self.weights.len()..];
        parameters.iter().map(|input| (input["name"].as_str().unwrap(), shape(input))).collect()
    }

    /// `[batch, classes]`.
    fn probabilities(&self, inputs: &[Vec<i32>]) -> Vec<f32> {
        let device = client().addressable_device(0).unwrap();
        let shapes = self.inputs();
        assert_eq!(shapes.len(), inputs.len());
        let upload = |(values, (_, shape)): (&Vec<i32>, &(&str, Shape))| {
            client().buffer_from_host(values, &shape.dims, device).unwrap()
        };
        let inputs = inputs.iter().zip(&shapes).map(upload).collect::<Vec<_>>();
        let arguments = self.weights.iter().chain(&inputs).map(Argument::Borrow).collect();
        let outputs = self.executable.execute(vec![arguments]).unwrap();
        let [output] = &self.signature["outputs"].as_array().unwrap()[..] else { panic!() };
        assert_eq!((output["name"].as_str(), outputs[0].len()), (Some("probabilities"), 1));
        assert_eq!(*outputs[0][0].shape(), shape(output));
        outputs[0][0].to_host().unwrap()
    }
}

fn shape(json: &Json) -> Shape {
    let element_type = match json["dtype"].as_str().unwrap() {
        "f32" => ElementType::F32,
        "s32" => ElementType::S32,
        other => panic!("{other}"),
    };
    let dims = json["shape"].as_array().unwrap().iter().map(|dim| dim.as_u64().unwrap() as usize);
    Shape::new(element_type, dims.collect::<Vec<_>>())
}

/// PyTorch's outputs of the same weights: `output` is the head's, before each row is divided by its sum.
#[test]
fn an_exported_module_gives_pytorchs_probabilities() {
    let folder = empty_folder("exports_hlo_golden");
    let (run, output) = (golden_run(&folder), folder.join("hlo"));
    fs::create_dir(&output).unwrap();
    let said = export(&run, "hlo", &output, &["--batch-size", "6"]);
    let files = ["model.safetensors", "predict.hlo.pb", "signature.json", "tokenizer.json"];
    assert_eq!(said, format!("{}: {}\n", output.display(), files.join(", ")));
    let stranger = Stranger::open(&output);
    assert_eq!(stranger.inputs(), [("input_ids", Shape::new(ElementType::S32, [6, 12]))]);
    assert_eq!(stranger.signature["labels"], json!([null, "b", "a", "c"]));
    let golden = tensors(&fixture("tiny_bert.safetensors"));
    let ids = golden["input_ids"].1.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();
    let scores = golden["output"].1.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let scores = scores.collect::<Vec<_>>();
    let expected = scores.chunks(4).flat_map(|row| row.iter().map(|score| score / row.iter().sum::<f32>()));
    let off = stranger.probabilities(&[ids]).into_iter().zip(expected).map(|(a, b)| (a - b).abs());
    let off = off.fold(0.0, f32::max);
    assert!(off < 1e-5, "off by {off}");
}

/// The texts and what `predict` gives them: a probability per label, by the header's names.
fn predicted(folder: &Path, run: &Path) -> (Vec<String>, Vec<BTreeMap<String, f32>>) {
    let (data, labels) = (asset("sample_test.csv"), folder.join("labels.csv"));
    let arguments = ["--probabilities", "--output", labels.to_str().unwrap()];
    assert!(with_run("predict", run, &data, &arguments).output().unwrap().status.success());
    let options = bert_xla::data::TableOptions::default();
    let table = bert_xla::data::Table::read(&data, &options, bert_xla::data::Purpose::Predict).unwrap();
    let written = fs::read_to_string(labels).unwrap();
    let mut rows = written.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
    let names = rows.next().unwrap();
    let row = |row: Vec<String>| {
        let named = names.iter().zip(row).filter_map(|(name, field)| Some((name.strip_prefix("p_")?, field)));
        named.map(|(label, field)| (label.to_owned(), field.parse().unwrap())).collect()
    };
    (table.texts.iter().map(str::to_owned).collect(), rows.map(row).collect())
}

#[test]
fn an_exported_module_gives_the_probabilities_of_predict() {
    let folder = empty_folder("exports_hlo");
    // Without a mask and with one.
    for (run, name) in [(&*demo().join("run"), "demo"), (other_run(), "other")] {
        let output = folder.join(name);
        export(run, "hlo", &output, &[]);
        let stranger = Stranger::open(&output);
        let signature = &stranger.signature;
        let tokenizer = output.join(signature["tokenizer"].as_str().unwrap());
        let mut tokenizer = tokenizers::Tokenizer::from_file(tokenizer).unwrap();
        let max_length = signature["max_length"].as_u64().unwrap() as usize;
        let truncation = tokenizers::TruncationParams { max_length, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).unwrap();
        let pad = signature["pad_token_id"].as_u64().unwrap() as i32;
        let (texts, expected) = predicted(&folder, run);
        let labels = signature["labels"].as_array().unwrap();
        let mut found = vec![];
        for texts in texts.chunks(16) {
            let mut ids = vec![pad; 16 * max_length];
            let mut mask = vec![0; 16 * max_length];
            for (row, text) in texts.iter().enumerate() {
                let encoding = tokenizer.encode(text.as_str(), true).unwrap();
                for (at, id) in encoding.get_ids().iter().enumerate() {
                    ids[row * max_length + at] = *id as i32;
                    mask[row * max_length + at] = 1;
                }
            }
            let named = |(name, _): &(&str, Shape)| match *name {
                "input_ids" => ids.clone(),
                "attention_mask" => mask.clone(),
                other => panic!("{other}"),
            };
            let inputs = stranger.inputs().iter().map(named).collect::<Vec<_>>();
            assert_eq!(inputs.len(), if name == "demo" { 1 } else { 2 });
            let probabilities = stranger.probabilities(&inputs);
            found.extend(probabilities.chunks(labels.len()).take(texts.len()).map(<[f32]>::to_vec));
        }
        assert_eq!(found.len(), expected.len());
        for (row, expected) in found.iter().zip(&expected) {
            assert_eq!(expected.len(), 3);
            for (label, p) in labels.iter().zip(row).filter_map(|(label, p)| Some((label.as_str()?, p))) {
                assert!((expected[label] - p).abs() < 1e-6, "{label}: {row:?}, not {expected:?}");
            }
        }
    }
}

/// Prints the largest difference between the probabilities of an exported model, with the head that `head.json` tells, and
/// those of `predict`.
const TRANSFORMERS: &str = r#"
import csv, json, sys, torch
from safetensors.torch import load_file
from torch.nn.functional import linear, softplus
from transformers import AutoModel, AutoTokenizer
folder, data, labels = sys.argv[1:]
model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
assert not any(report[keys] for keys in ["missing_keys", "unexpected_keys", "mismatched_keys"]), report
texts = [row["text"] for row in csv.DictReader(open(data))]
tokens = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", truncation=True, return_tensors="pt")
head, weights = json.load(open(folder + "/head.json")), load_file(folder + "/head.safetensors")
with torch.no_grad():
    x = model.eval()(**tokens).last_hidden_state
    for layer in head["layers"]:
        if layer["layer"] == "flatten":
            x = x.flatten(1)
        elif layer["tensors"]:
            weight, bias = (weights[tensor] for tensor in layer["tensors"])
            x = linear(x, weight, bias)
            x = x.relu() if "(relu)" in layer["layer"] else softplus(x)
p = x / x.sum(1, keepdim=True)
rows = list(csv.DictReader(open(labels)))
assert len(rows) == len(texts) == 40
found = {c: "p_" + name for c, name in model.config.id2label.items() if "p_" + name in rows[0]}
assert len(found) == 3
print(max(abs(p[i, c].item() - float(row[name])) for i, row in enumerate(rows) for c, name in found.items()))
"#;

/// `BERT_XLA_TEST_PYTHON` names a Python that has torch and transformers.
#[test]
fn transformers_loads_an_export_and_agrees() {
    let Some(python) = std::env::var_os("BERT_XLA_TEST_PYTHON") else {
        return eprintln!("skipped: BERT_XLA_TEST_PYTHON names no Python with torch and transformers");
    };
    let folder = empty_folder("exports_transformers");
    for (run, name) in [(&*demo().join("run"), "demo"), (other_run(), "other")] {
        let output = folder.join(name);
        export(run, "transformers", &output, &[]);
        predicted(&folder, run);
        let mut command = std::process::Command::new(&python);
        command.args(["-c", TRANSFORMERS]).arg(&output).arg(asset("sample_test.csv"));
        let printed = command.arg(folder.join("labels.csv")).output().unwrap();
        assert!(printed.status.success(), "{}", text(printed.stderr));
        let off = text(printed.stdout).trim().parse::<f64>().unwrap();
        eprintln!("transformers: off by {off}");
        assert!(off < 1e-5, "{name}: off by {off}");
    }
}

/// What transformers would take from the model that a run started from, and what would contradict it.
#[test]
fn the_configuration_says_what_the_model_is() {
    let folder = empty_folder("exports_config");
    let (model, run, output) = (folder.join("model"), folder.join("run"), folder.join("export"));
    fs::create_dir(&model).unwrap();
    fs::copy(asset("tiny/tokenizer.json"), model.join("tokenizer.json")).unwrap();
    let mut config = read_json(&asset("tiny/config.json"));
    config.as_object_mut().unwrap().remove("model_type");
    for (name, value) in [
        ("num_labels", json!(2)),
        ("return_dict", json!(false)),
        ("output_hidden_states", json!(true)),
        ("torch_dtype", json!("float16")),
        ("_name_or_path", json!("/home/somebody/model")),
        ("mine", json!("stays")),
    ] {
        config[name] = value;
    }
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let paths = [Path::new("--model"), &model, Path::new("--output"), &run];
    let mut train = crate::common::cli::command(&["train", "--backend", "cpu", "--random-weights"]);
    train.args(["--max-length", "8", "--epochs", "1", "--head", "mean", "--mask", "--train"]);
    trains(train.arg(asset("sample.csv")).args(paths));
    export(&run, "transformers", &output, &[]);
    for folder in [&run, &output] {
        let config = read_json(&folder.join("config.json"));
        assert_eq!((&config["model_type"], &config["torch_dtype"]), (&json!("bert"), &json!("float32")));
        assert_eq!(config["mine"], "stays");
        for name in ["num_labels", "return_dict", "output_hidden_states", "_name_or_path"] {
            assert!(config.get(name).is_none(), "{name}");
        }
    }
    let input = "last_hidden_state of 8 tokens, of which the mean takes those that the attention mask keeps";
    assert_eq!(read_json(&output.join("head.json"))["input"], input);
    // The card goes with it, but for the pictures.
    let [card, exported] =
        [&run, &output].map(|folder| fs::read_to_string(folder.join("README.md")).unwrap());
    let (_, results) = card.split_once("## Results").unwrap();
    let (results, _) = results.split_once("## How to use it").unwrap();
    let results = results.replace("![loss](loss.png) ![accuracy](accuracy.png)\n\n", "");
    assert!(results.contains("\n| **1** (kept) | 23 | "), "{results}");
    assert!(
        exported.contains(&results) && exported.starts_with("---\nlibrary_name: transformers\n"),
        "{exported}"
    );
    assert_eq!(exported.matches("library_name").count(), 1);
    assert!(exported.split("---").nth(1).unwrap().contains("    - type: accuracy\n"), "{exported}");
}

#[test]
fn the_working_folder_is_not_replaced() {
    let folder = empty_folder("exports_here");
    let mut command = crate::common::cli::command(&["export", "--format", "hlo", "--output", ".", "--run"]);
    let message = fails(command.arg(demo().join("run")).current_dir(&folder), 2);
    assert_eq!(message, "error: --output .: it is the working folder; name a new one");
}
