//! Folders of models.

use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value as Json, json};

use super::{Case, TRAIN};
use crate::common::cli::demo;

const ENCODE: &str =
    "encode --backend cpu --max-length 8 --model {}/model --input {}/sentences.txt --output {}/new/states";

/// A model with weights, but for an `edit` of its folder.
fn model(name: &str, edit: impl FnOnce(&Path) + Send + 'static, message: &str) -> Case {
    Case::new(format!("model: {name}"), ENCODE, message).make(|folder| {
        let model = folder.join("model");
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            fs::copy(demo().join("run").join(name), model.join(name)).unwrap();
        }
        edit(&model);
    })
}

fn remove(name: &'static str) -> impl FnOnce(&Path) + Send {
    move |folder| fs::remove_file(folder.join(name)).unwrap()
}

fn write(name: &'static str, bytes: impl AsRef<[u8]> + Send) -> impl FnOnce(&Path) + Send {
    move |folder| fs::write(folder.join(name), bytes).unwrap()
}

/// Other bytes for a file that is there.
fn change(name: &'static str, edit: impl FnOnce(&mut Vec<u8>) + Send) -> impl FnOnce(&Path) + Send {
    move |folder| {
        let mut bytes = fs::read(folder.join(name)).unwrap();
        edit(&mut bytes);
        fs::write(folder.join(name), bytes).unwrap();
    }
}

/// One value of `config.json`.
fn config(key: &'static str, value: Json, message: &str) -> Case {
    let name = format!("config.json: {key} is {value}");
    model(&name, json("config.json", move |json| json[key] = value), message)
}

pub(super) fn json(name: &'static str, edit: impl FnOnce(&mut Json) + Send) -> impl FnOnce(&Path) + Send {
    change(name, move |bytes| {
        let mut json = serde_json::from_slice(bytes).unwrap();
        edit(&mut json);
        *bytes = json.to_string().into_bytes();
    })
}

/// A tensor's name, type, shape and bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// Other tensors than those that are there.
fn weights(edit: impl FnOnce(&mut Vec<Tensor>) + Send) -> impl FnOnce(&Path) + Send {
    change("model.safetensors", move |bytes| {
        let read = SafeTensors::deserialize(bytes).unwrap();
        let owned = |(name, view): (String, TensorView<'_>)| {
            (name, view.dtype(), view.shape().to_vec(), view.data().to_vec())
        };
        let mut tensors = read.tensors().into_iter().map(owned).collect::<Vec<_>>();
        edit(&mut tensors);
        let view = |(name, dtype, shape, bytes): &'_ Tensor| -> (String, Vec<u8>, Dtype, Vec<usize>) {
            (name.clone(), bytes.clone(), *dtype, shape.clone())
        };
        let tensors = tensors.iter().map(view).collect::<Vec<_>>();
        let views = tensors.iter().map(|(name, bytes, dtype, shape)| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        *bytes = safetensors::serialize(views, None).unwrap();
    })
}

const BIAS: &str = "bert.encoder.layer.1.output.dense.bias";

fn bias(edit: impl FnOnce(&mut Tensor) + Send) -> impl FnOnce(&Path) + Send {
    weights(move |tensors| edit(tensors.iter_mut().find(|(name, ..)| name == BIAS).unwrap()))
}

fn tensor(name: &str) -> Tensor {
    (name.to_owned(), Dtype::F32, vec![1], vec![0; 4])
}

/// Weights in two files, and the index that names them.
fn shards(index: Json) -> impl FnOnce(&Path) + Send {
    move |folder| {
        fs::rename(folder.join("model.safetensors"), folder.join("a.safetensors")).unwrap();
        fs::copy(folder.join("a.safetensors"), folder.join("b.safetensors")).unwrap();
        fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        model("no config.json", remove("config.json"), "{}/model: there is no config.json"),
        model(
            "config.json is empty",
            write("config.json", ""),
            "{}/model/config.json: EOF while parsing a value at line 1 column 0",
        ),
        model(
            "config.json is cut",
            change("config.json", |bytes| bytes.truncate(100)),
            "{}/model/config.json: EOF while parsing an object at line 7 column 1",
        ),
        model(
            "config.json is a list",
            write("config.json", "[]"),
            "{}/model/config.json: expected a JSON object",
        ),
        model(
            "config.json is a page",
            write("config.json", "<!doctype html>"),
            "{}/model/config.json: expected value at line 1 column 1",
        ),
        model(
            "config.json is deep",
            write("config.json", "[".repeat(100_000)),
            "{}/model/config.json: recursion limit exceeded at line 1 column 128",
        ),
        model("no tokenizer", remove("tokenizer.json"), "{}/model: there is no tokenizer.json or vocab.txt"),
        model(
            "tokenizer.json is empty",
            write("tokenizer.json", ""),
            "{}/model/tokenizer.json: not a usable tokenizer: EOF while parsing a value at line 1 column 0",
        ),
        model(
            "tokenizer.json has nothing",
            write("tokenizer.json", "{}"),
            "{}/model/tokenizer.json: not a usable tokenizer: Model missing. at line 1 column 2",
        ),
        model(
            "tokenizer.json is cut",
            change("tokenizer.json", |bytes| bytes.truncate(1000)),
            "{}/model/tokenizer.json: not a usable tokenizer: EOF while parsing a string at line 53 column 9",
        ),
        model(
            "tokenizer.json has no [PAD]",
            change("tokenizer.json", |bytes| {
                *bytes = String::from_utf8(bytes.clone()).unwrap().replace("[PAD]", "<pad>").into_bytes();
            }),
            "{}/model/tokenizer.json: the vocabulary has no [PAD] token",
        ),
        model(
            "tokenizer.json has no [UNK]",
            json("tokenizer.json", |json| json["model"]["unk_token"] = "<unk>".into()),
            "{}/model/tokenizer.json: it can't tokenize: WordPiece error: Missing [UNK] token \
                from the vocabulary",
        ),
        model(
            "a tokenizer larger than the vocabulary",
            json("config.json", |json| json["vocab_size"] = 600.into()),
            "{}/model/config.json: vocab_size is 600, but the tokenizer beside it has 636 tokens: \
                the files are not of one model",
        ),
        model(
            "an id far beyond the vocabulary",
            json("tokenizer.json", |json| json["model"]["vocab"]["far"] = 4_000_000_000u32.into()),
            "{}/model/config.json: vocab_size is 636, but the tokenizer beside it has 4000000001 \
                tokens: the files are not of one model",
        ),
        model(
            "vocab.txt lacks tokens",
            |folder| {
                remove("tokenizer.json")(folder);
                write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\na\n")(folder);
            },
            "{}/model/vocab.txt: not a usable tokenizer: there is no [SEP] token",
        ),
        model(
            "vocab.txt is not UTF-8",
            |folder| {
                remove("tokenizer.json")(folder);
                write("vocab.txt", b"[PAD]\n\xff\n")(folder);
            },
            "{}/model/vocab.txt: not a usable tokenizer: stream did not contain valid UTF-8",
        ),
        model(
            "tokenizer_config.json is no JSON",
            |folder| {
                remove("tokenizer.json")(folder);
                write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n")(folder);
                write("tokenizer_config.json", "{")(folder);
            },
            "{}/model/vocab.txt: not a usable tokenizer: tokenizer_config.json: EOF while parsing \
                an object at line 1 column 1",
        ),
        model("no weights", remove("model.safetensors"), "{}/model: there is no model.safetensors"),
        model(
            "weights in pickle alone",
            |folder| {
                remove("model.safetensors")(folder);
                write("pytorch_model.bin", "")(folder);
            },
            "{}/model: the weights are in PyTorch's pickle format alone; convert them to \
                model.safetensors, or choose a revision that has it",
        ),
        model(
            "weights are empty",
            write("model.safetensors", ""),
            "can't read {}/model/model.safetensors: the file is empty",
        ),
        model(
            "weights are text",
            write("model.safetensors", "<!doctype html>"),
            "can't read {}/model/model.safetensors: not a complete safetensors file: header too large",
        ),
        model(
            "weights were not fetched",
            write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
            "can't read {}/model/model.safetensors: it only says which file to fetch; fetch that \
                (git lfs pull)",
        ),
        model(
            "weights are cut in the header",
            change("model.safetensors", |bytes| bytes.truncate(500)),
            "can't read {}/model/model.safetensors: not a complete safetensors file: invalid header length",
        ),
        model(
            "weights are cut",
            change("model.safetensors", |bytes| bytes.truncate(bytes.len() - 1)),
            "can't read {}/model/model.safetensors: not a complete safetensors file: incomplete \
                metadata, file not fully covered",
        ),
        model(
            "weights go on",
            change("model.safetensors", |bytes| bytes.push(0)),
            "can't read {}/model/model.safetensors: not a complete safetensors file: incomplete \
                metadata, file not fully covered",
        ),
        model(
            "weights have a huge header",
            write("model.safetensors", [0xff; 16]),
            "can't read {}/model/model.safetensors: not a complete safetensors file: header too large",
        ),
        model(
            "a weight is missing",
            weights(|tensors| tensors.retain(|(name, ..)| name != BIAS)),
            "{}/model/model.safetensors: there is no tensor `encoder.layer.1.output.dense.bias`; \
                the nearest name is `encoder.layer.0.output.dense.bias`",
        ),
        model(
            "a weight has another shape",
            bias(|tensor| (tensor.2, tensor.3) = (vec![63], vec![0; 4 * 63])),
            "{}/model/model.safetensors: tensor `encoder.layer.1.output.dense.bias` has the shape \
                [63], expected [64]",
        ),
        model(
            "a weight has another type",
            bias(|tensor| (tensor.1, tensor.3) = (Dtype::I64, vec![0; 8 * 64])),
            "{}/model/model.safetensors: tensor `encoder.layer.1.output.dense.bias` has the type \
                I64, expected F32, F16 or BF16",
        ),
        model(
            "a weight has no place",
            weights(|tensors| tensors.push(tensor("encoder.layer.2.output.dense.bias"))),
            "{}/model/model.safetensors: tensor `encoder.layer.2.output.dense.bias` [1]: the \
                model that config.json describes has no such weight",
        ),
        model(
            "the name of a weight has several lines",
            weights(|tensors| tensors.push(tensor("encoder.a\nerror: b\u{1b}[31m"))),
            "{}/model/model.safetensors: tensor `encoder.a\\nerror: b\\u{1b}[31m` [1]: the model \
                that config.json describes has no such weight",
        ),
        model(
            "a weight is there twice",
            weights(|tensors| tensors.push(tensor("encoder.layer.1.output.dense.bias"))),
            "tensor `encoder.layer.1.output.dense.bias` is twice in {}/model/model.safetensors",
        ),
        model(
            "the index is no JSON",
            |folder| {
                remove("model.safetensors")(folder);
                write("model.safetensors.index.json", "{")(folder);
            },
            "{}/model/model.safetensors.index.json: EOF while parsing an object at line 1 column 1",
        ),
        model(
            "the index names nothing",
            shards(json!({"weight_map": {}})),
            "{}/model/model.safetensors.index.json: no shard is named",
        ),
        model(
            "the index has no map",
            shards(json!({"weights": {}})),
            "{}/model/model.safetensors.index.json: missing field `weight_map` at line 1 column 14",
        ),
        model(
            "the index names a missing shard",
            shards(json!({"weight_map": {"x": "c.safetensors"}})),
            "{}/model: there is no shard c.safetensors, which model.safetensors.index.json names",
        ),
        model(
            "the index leads elsewhere",
            shards(json!({"weight_map": {"x": "../model/a.safetensors"}})),
            "{}/model/model.safetensors.index.json: shard `../model/a.safetensors` is not in the same folder",
        ),
        model(
            "shards have the same weights",
            shards(json!({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})),
            "tensor `bert.embeddings.LayerNorm.bias` is in both {}/model/a.safetensors and \
                {}/model/b.safetensors",
        ),
        Case::new(
            "model: a dry run of a broken one",
            format!("{TRAIN} --dry-run"),
            "{}/model/config.json: EOF while parsing an object at line 1 column 1",
        )
        .make(|folder| write("config.json", "{")(&folder.join("model"))),
    ];
    for (key, value, message) in [
        (
            "model_type",
            json!("roberta"),
            "{}/model/config.json: model_type is \"roberta\"; only \"bert\" is supported",
        ),
        ("model_type", json!(3), "{}/model/config.json: model_type is 3; only \"bert\" is supported"),
        ("vocab_size", json!(0), "{}/model/config.json: vocab_size is 0; expected 1 to 16777216"),
        (
            "vocab_size",
            json!(1e30),
            "{}/model/config.json: vocab_size: invalid type: floating point `1e+30`, expected usize",
        ),
        (
            "vocab_size",
            json!(1_000_000_000_000u64),
            "{}/model/config.json: vocab_size is 1000000000000; expected 1 to 16777216",
        ),
        (
            "hidden_size",
            json!(-64),
            "{}/model/config.json: hidden_size: invalid value: integer `-64`, expected usize",
        ),
        (
            "hidden_size",
            json!("64"),
            "{}/model/config.json: hidden_size: invalid type: string \"64\", expected usize",
        ),
        (
            "hidden_size",
            json!(64.5),
            "{}/model/config.json: hidden_size: invalid type: floating point `64.5`, expected usize",
        ),
        ("hidden_size", json!(null), "{}/model/config.json: hidden_size: invalid type: null, expected usize"),
        (
            "hidden_size",
            json!(1u64 << 60),
            "{}/model/config.json: hidden_size is 1152921504606846976; expected 1 to 65536",
        ),
        (
            "num_attention_heads",
            json!(5),
            "{}/model/config.json: hidden_size 64 can't be divided among 5 attention heads",
        ),
        (
            "num_hidden_layers",
            json!(1_000_000_000),
            "{}/model/config.json: num_hidden_layers is 1000000000; expected 1 to 1024",
        ),
        (
            "num_hidden_layers",
            json!(3),
            "{}/model/model.safetensors: there is no tensor \
                `encoder.layer.2.attention.self.query.weight`; the nearest name is \
                `encoder.layer.0.attention.self.query.weight`",
        ),
        (
            "intermediate_size",
            json!(u64::MAX),
            "{}/model/config.json: intermediate_size is 18446744073709551615; expected 1 to 262144",
        ),
        (
            "max_position_embeddings",
            json!(7),
            "{}/model/config.json: this model reads at most 7 tokens, not 8; lower --max-length",
        ),
        (
            "max_position_embeddings",
            json!(1u64 << 62),
            "{}/model/config.json: max_position_embeddings is 4611686018427387904; expected 1 to 65536",
        ),
        (
            "type_vocab_size",
            json!(3),
            "{}/model/model.safetensors: tensor `embeddings.token_type_embeddings.weight` has the \
                shape [2, 64], expected [3, 64]",
        ),
        ("layer_norm_eps", json!(0), "{}/model/config.json: layer_norm_eps is 0, not above 0"),
        (
            "hidden_act",
            json!("swish"),
            "{}/model/config.json: hidden_act: unknown variant `swish`, expected one of `gelu`, \
                `gelu_python`, `gelu_new`, `gelu_pytorch_tanh`, `relu`",
        ),
        (
            "hidden_dropout_prob",
            json!(1),
            "{}/model/config.json: hidden_dropout_prob is 1; expected a share from 0 to less than 1",
        ),
        (
            "attention_probs_dropout_prob",
            json!(-0.5),
            "{}/model/config.json: attention_probs_dropout_prob is -0.5; expected a share from 0 \
                to less than 1",
        ),
        ("pad_token_id", json!(636), "{}/model/config.json: pad_token_id 636 is not below vocab_size 636"),
        (
            "pad_token_id",
            json!(-1),
            "{}/model/config.json: pad_token_id: invalid value: integer `-1`, expected u32",
        ),
        (
            "position_embedding_type",
            json!("relative_key"),
            "{}/model/config.json: position_embedding_type: unknown variant `relative_key`, \
                expected `absolute`",
        ),
    ] {
        cases.push(config(key, value, message));
    }
    cases
}
