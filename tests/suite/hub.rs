//! Model files from folders and from the Hub, and the tensors in them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::common::hub::{COMMIT, MODEL, Server, hub};
use bert_xla::data::TokenizerFiles;
use bert_xla::model::{Activation, BertConfig};
use bert_xla::shape::{ElementType, Shape};
use bert_xla::weights::{Hub, HubError, ModelFiles, TensorFiles, WeightsError, save_safetensors};
use half::{bf16, f16};
use tempfile::TempDir;

const VALUES: [f32; 6] = [0.5, -1.25, 3.0, 0.0, 1024.0, -0.0078125];

/// A file of tensors `[2, 3]` that hold [`VALUES`].
fn write_tensors(path: &Path, element_type: ElementType, names: &[&str]) {
    let shape = Shape::new(element_type, [2, 3]);
    let tensors: Vec<_> = names.iter().map(|name| (name.to_string(), shape.clone())).collect();
    let bytes: Vec<u8> = match element_type {
        ElementType::F16 => VALUES.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        ElementType::Bf16 => VALUES.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        ElementType::F32 => VALUES.iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => vec![0; shape.size_in_bytes()],
    };
    save_safetensors(path, &tensors, &[("format", "pt")], |_, file| Ok(file.write_all(&bytes)?)).unwrap();
}

/// A model folder with one weight file for each list of names.
fn model_folder(element_type: ElementType, shards: &[&[&str]]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("config.json"), r#"{"model_type": "bert", "hidden_size": 12, "num_attention_heads": 3}"#)
        .unwrap();
    fs::write(path("vocab.txt"), "[PAD]\n").unwrap();
    if let [names] = shards {
        write_tensors(&path("model.safetensors"), element_type, names);
        return folder;
    }
    let mut weight_map = BTreeMap::new();
    for (i, names) in shards.iter().enumerate() {
        let file = format!("model-{}-of-{}.safetensors", i + 1, shards.len());
        write_tensors(&path(&file), element_type, names);
        weight_map.extend(names.iter().map(|name| (name.to_string(), file.clone())));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map });
    fs::write(path("model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}

/// A Hub that must not be asked.
fn no_hub() -> Hub {
    hub(Path::new("/no/such/folder"), "http://127.0.0.1:1", &[])
}

fn local(folder: &TempDir) -> Result<ModelFiles, HubError> {
    ModelFiles::resolve(folder.path().to_str().unwrap(), None, true, &no_hub())
}

#[test]
fn every_float_type_is_read_as_f32() {
    for element_type in [ElementType::F32, ElementType::F16, ElementType::Bf16] {
        let folder = model_folder(element_type, &[&["a.weight", "b.weight"]]);
        let checkpoint = TensorFiles::open(&local(&folder).unwrap()).unwrap();
        let values = checkpoint.tensor_f32("b.weight", &[2, 3]).unwrap();
        assert_eq!(*values, VALUES, "{element_type}");
        let borrowed = matches!(values, Cow::Borrowed(_));
        assert_eq!(borrowed, element_type == ElementType::F32, "{element_type}");
    }
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = model_folder(ElementType::F32, &[&["a", "b"], &["c"]]);
    let files = local(&folder).unwrap();
    assert_eq!(files.weights.len(), 2);
    let checkpoint = TensorFiles::open(&files).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(*checkpoint.tensor_f32("c", &[2, 3]).unwrap(), VALUES);

    fs::remove_file(folder.path().join("model-2-of-2.safetensors")).unwrap();
    let message = local(&folder).unwrap_err().to_string();
    assert!(message.contains("there is no shard"), "{message}");

    // A name that would be more than one line of a message.
    let index = r#"{"weight_map": {"a": "m\u001b[31m\nall is well.safetensors"}}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let message = local(&folder).unwrap_err().to_string();
    assert!(
        message.ends_with("`m\\u{1b}[31m\\nall is well.safetensors` is not in the same folder"),
        "{message}"
    );
}

#[test]
fn names_are_normalized() {
    let names = [
        "bert.embeddings.LayerNorm.gamma",
        "bert.embeddings.LayerNorm.beta",
        "bert.embeddings.position_ids",
        "bert.pooler.dense.weight",
        "cls.predictions.bias",
        "cls.seq_relationship.weight",
    ];
    let checkpoint = TensorFiles::open(&local(&model_folder(ElementType::F32, &[&names])).unwrap()).unwrap();
    // The numbers of the positions are no weight.
    let known = [
        "cls.predictions.bias",
        "cls.seq_relationship.weight",
        "embeddings.LayerNorm.bias",
        "embeddings.LayerNorm.weight",
        "pooler.dense.weight",
    ];
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), known);
    assert_eq!(checkpoint.unused(&known[..4].iter().copied().collect()), ["pooler.dense.weight"]);
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let folder = model_folder(ElementType::F32, &[&["encoder.layer.0.output.dense.weight", "x"]]);
    let checkpoint = TensorFiles::open(&local(&folder).unwrap()).unwrap();
    let message = |name: &str, dims: &[usize]| {
        let error = checkpoint.tensor_f32(name, dims).unwrap_err();
        assert!(error.is_input_error());
        error.to_string()
    };
    let missing = message("encoder.layer.1.output.dense.weight", &[2, 3]);
    assert!(
        missing.contains(
            "no tensor `encoder.layer.1.output.dense.weight`; the nearest name is `encoder.layer.0."
        )
    );
    assert!(message("x", &[3, 2]).ends_with("tensor `x` has the shape [2, 3], expected [3, 2]"));

    let folder = model_folder(ElementType::S64, &[&["x"]]);
    let checkpoint = TensorFiles::open(&local(&folder).unwrap()).unwrap();
    let error = checkpoint.tensor_f32("x", &[2, 3]).unwrap_err();
    assert!(error.to_string().ends_with("tensor `x` has the type I64, expected F32, F16 or BF16"));

    let twice = model_folder(ElementType::F32, &[&["bert.x", "x"]]);
    let error = TensorFiles::open(&local(&twice).unwrap()).unwrap_err();
    assert!(matches!(error, WeightsError::Duplicate { .. }), "{error}");
}

#[test]
fn cut_off_files_are_refused() {
    let folder = model_folder(ElementType::F32, &[&["x"]]);
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 40, whole.len() - 1] {
        let cut = folder.path().join(format!("cut-{length}"));
        fs::write(&cut, &whole[..length]).unwrap();
        let error = TensorFiles::open_files(&[&cut]).unwrap_err();
        assert!(error.to_string().contains(&format!("cut-{length}: ")) && error.is_input_error(), "{error}");
    }
}

#[test]
fn saving_is_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/model.safetensors");
    let tensors = [
        ("b".to_owned(), Shape::new(ElementType::F32, [2])),
        ("step".to_owned(), Shape::scalar(ElementType::S32)),
    ];
    let bytes = [[0, 0, 128, 63, 0, 0, 0, 192].to_vec(), vec![7, 0, 0, 0]];
    save_safetensors(&path, &tensors, &[("k", "v")], |i, file| Ok(file.write_all(&bytes[i])?)).unwrap();
    let written = fs::read(&path).unwrap();
    // An independent reader sees the same.
    let read = safetensors::SafeTensors::deserialize(&written).unwrap();
    assert_eq!(read.tensor("step").unwrap().data(), [7, 0, 0, 0]);
    assert_eq!(read.tensor("step").unwrap().shape(), [0; 0]);
    let checkpoint = TensorFiles::open_files(&[&path]).unwrap();
    assert_eq!(*checkpoint.tensor_f32("b", &[2]).unwrap(), [1.0, -2.0]);

    let error = save_safetensors(&path, &tensors, &[], |i, file| match i {
        0 => Ok(file.write_all(&bytes[0])?),
        _ => Err("the device is gone".into()),
    })
    .unwrap_err();
    assert!(error.to_string().ends_with("the device is gone") && !error.is_input_error());
    let error = save_safetensors(&path, &tensors, &[], |_, file| Ok(file.write_all(&[0; 8])?)).unwrap_err();
    assert!(error.to_string().contains("tensor `step` of s32[] was given in 8 bytes"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), written);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a temporary file was left");
}

#[test]
fn folders_that_lack_files_are_named() {
    let folder = model_folder(ElementType::F32, &[&["x"]]);
    let path = |name: &str| folder.path().join(name);
    assert!(matches!(local(&folder).unwrap().tokenizer, TokenizerFiles::Vocab { config: None, .. }));
    fs::rename(path("model.safetensors"), path("pytorch_model.bin")).unwrap();
    assert!(matches!(local(&folder), Err(HubError::OnlyPickle { .. })));
    fs::remove_file(path("pytorch_model.bin")).unwrap();
    assert!(local(&folder).unwrap_err().to_string().ends_with("there is no model.safetensors"));
    fs::remove_file(path("vocab.txt")).unwrap();
    assert!(local(&folder).unwrap_err().to_string().ends_with("there is no tokenizer.json or vocab.txt"));
    for wrong in ["./nowhere", "a/b/c", "/x", ""] {
        let error = ModelFiles::resolve(wrong, None, true, &no_hub()).unwrap_err();
        assert!(matches!(error, HubError::NotAModel(_)) && error.is_input_error(), "{wrong}: {error}");
    }
    let file = path("config.json");
    let error = ModelFiles::resolve(file.to_str().unwrap(), None, true, &no_hub()).unwrap_err();
    assert!(matches!(error, HubError::NotAFolder(_)));
}

/// The files of a small model, by name.
fn repository() -> BTreeMap<String, Vec<u8>> {
    let folder = model_folder(ElementType::F32, &[&["bert.x"]]);
    let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut files: BTreeMap<_, _> = files.map(|path| (name(&path), fs::read(&path).unwrap())).collect();
    files.insert("tokenizer_config.json".to_owned(), br#"{"do_lower_case": false}"#.to_vec());
    files.insert("pytorch_model.bin".to_owned(), b"not wanted".to_vec());
    files
}

#[test]
fn a_model_is_downloaded_once() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(repository());
    let online = hub(home.path(), &server.endpoint, &[]);
    let files = ModelFiles::resolve(MODEL, None, true, &online).unwrap();
    let snapshot = home.path().join("hub/models--someone--tiny-bert/snapshots").join(COMMIT);
    assert_eq!(files.config, snapshot.join("config.json"));
    assert!(matches!(&files.tokenizer, TokenizerFiles::Vocab { config: Some(_), .. }));
    let checkpoint = TensorFiles::open(&files).unwrap();
    assert_eq!(*checkpoint.tensor_f32("x", &[2, 3]).unwrap(), VALUES);

    let requests = server.requests();
    assert!(requests[0].path.ends_with("/revision/main"));
    assert!(!requests.iter().any(|request| request.path.ends_with("pytorch_model.bin")));

    // From the cache, with the network and without.
    assert_eq!(ModelFiles::resolve(MODEL, None, true, &online).unwrap(), files);
    let offline = hub(home.path(), &server.endpoint, &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(ModelFiles::resolve(MODEL, None, true, &offline).unwrap(), files);
    assert_eq!(ModelFiles::resolve(MODEL, Some(COMMIT), true, &offline).unwrap(), files);
    // Once more for the list: what is there may be without a tokenizer.json that the Hub has.
    assert_eq!(server.requests().len(), requests.len() + 1);
    let error = ModelFiles::resolve(MODEL, Some("v1"), true, &offline).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }) && error.is_input_error(), "{error}");

    // Another revision of the same commit needs the list of files and nothing more.
    assert_eq!(ModelFiles::resolve(MODEL, Some("v1"), true, &online).unwrap(), files);
    assert_eq!(server.requests().len(), requests.len() + 2);
}

/// Python's older tokenizers leave a vocabulary and its settings in the cache, where the Hub has a `tokenizer.json` too.
#[test]
fn tokens_dont_depend_on_what_is_in_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let mut files = repository();
    files.insert("tokenizer.json".to_owned(), b"{}".to_vec());
    let server = Server::start(files);
    let hub = hub(home.path(), &server.endpoint, &[]);
    let found = ModelFiles::resolve(MODEL, None, true, &hub).unwrap();
    for (name, content) in repository().into_iter().filter(|(name, _)| name.starts_with(['v', 't'])) {
        fs::write(found.config.with_file_name(name), content).unwrap();
    }
    fs::remove_file(found.config.with_file_name("tokenizer.json")).unwrap();
    assert_eq!(ModelFiles::resolve(MODEL, None, true, &hub).unwrap(), found);
    assert!(matches!(found.tokenizer, TokenizerFiles::Json(_)));
}

#[test]
fn a_cache_that_lacks_a_file_is_completed() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(repository());
    let hub = hub(home.path(), &server.endpoint, &[]);
    let files = ModelFiles::resolve(MODEL, None, true, &hub).unwrap();
    assert!(server.requests().iter().all(|request| request.authorization.is_none()));
    fs::remove_file(files.config.with_file_name("tokenizer_config.json")).unwrap();
    let before = server.requests().len();
    assert_eq!(ModelFiles::resolve(MODEL, None, true, &hub).unwrap(), files);
    let after = server.requests().split_off(before);
    assert!(after[1..].iter().all(|request| request.path.ends_with("tokenizer_config.json")), "{after:?}");
}

#[test]
fn the_hubs_refusals_are_told() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(repository());
    let hub = hub(home.path(), &server.endpoint, &[]);
    for (model, revision) in [("someone/else", None), (MODEL, Some("v2"))] {
        let error = ModelFiles::resolve(model, revision, true, &hub).unwrap_err();
        assert!(
            error.to_string().contains("answered 404: check the name") && error.is_input_error(),
            "{error}"
        );
    }
    let pickled =
        ["config.json", "vocab.txt", "pytorch_model.bin"].map(|name| (name.to_owned(), b"{}".to_vec()));
    let server = Server::start(pickled.into());
    let error =
        ModelFiles::resolve(MODEL, None, true, &self::hub(home.path(), &server.endpoint, &[])).unwrap_err();
    assert!(matches!(error, HubError::OnlyPickle { .. }), "{error}");
}

#[test]
fn a_real_checkpoint() {
    let Some(folder) = crate::common::minilm::folder() else { return };
    let files = ModelFiles::resolve(folder.to_str().unwrap(), None, true, &no_hub()).unwrap();
    let config = BertConfig::read(&files.config).unwrap();
    assert_eq!((config.num_hidden_layers, config.hidden_size, config.num_attention_heads), (6, 384, 12));
    let checkpoint = TensorFiles::open(&files).unwrap();
    // 5 for the embeddings, 16 for each layer, 2 for the pooler.
    assert_eq!(checkpoint.names().count(), 5 + 6 * 16 + 2);
    let words = checkpoint.tensor_f32("embeddings.word_embeddings.weight", &[30_522, 384]).unwrap();
    assert!(matches!(words, Cow::Borrowed(_)));
}

fn config(text: &str) -> Result<BertConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    fs::write(&path, text).unwrap();
    BertConfig::read(&path).map_err(|error| error.to_string())
}

#[test]
fn configurations() {
    // The fields of bert-base-multilingual-cased.
    let multilingual = r#"{"architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
        "directionality": "bidi", "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
        "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12,
        "pad_token_id": 0, "pooler_fc_size": 768, "pooler_type": "first_token_transform",
        "position_embedding_type": "absolute", "type_vocab_size": 2, "use_cache": true, "vocab_size": 119547}"#;
    assert_eq!(config(multilingual).unwrap(), BertConfig { vocab_size: 119_547, ..BertConfig::default() });
    for (name, expected) in [
        ("gelu", Activation::Gelu),
        ("gelu_new", Activation::GeluNew),
        ("gelu_pytorch_tanh", Activation::GeluNew),
        ("relu", Activation::Relu),
    ] {
        assert_eq!(config(&format!(r#"{{"hidden_act": "{name}"}}"#)).unwrap().hidden_act, expected);
    }
    for (text, part) in [
        (r#"{"model_type": "roberta", "hidden_act": "swish"}"#, r#"model_type is "roberta""#),
        (r#"{"hidden_size": 100}"#, "hidden_size 100 can't be divided among 12 attention heads"),
        (r#"{"num_attention_heads": 0}"#, "num_attention_heads is 0"),
        (r#"{"hidden_dropout_prob": 1.0}"#, "hidden_dropout_prob is 1"),
        (r#"{"hidden_act": "swish"}"#, "unknown variant `swish`"),
        (r#"{"position_embedding_type": "relative_key"}"#, "unknown variant `relative_key`"),
        (r#"{"vocab_size": 5, "pad_token_id": 5}"#, "pad_token_id 5"),
        ("{", "config.json: EOF"),
    ] {
        let error = config(text).unwrap_err();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    }
}
