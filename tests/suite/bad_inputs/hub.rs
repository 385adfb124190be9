//! Answers of the Hub, and what is said of it in the environment.

use std::collections::BTreeMap;
use std::fs;

use super::Case;
use crate::common::cli::{asset, demo};
use crate::common::hub::{Fault, MODEL, Server};

const TRAIN: &str = "train --backend cpu --max-length 24 --train {}/data.csv --output {}/new/run --model";

fn repository() -> BTreeMap<String, Vec<u8>> {
    let tiny = ["config.json", "tokenizer.json"].map(|name| (name, asset("tiny").join(name)));
    let weights = ("model.safetensors", demo().join("run/model.safetensors"));
    tiny.into_iter().chain([weights]).map(|(name, path)| (name.to_owned(), fs::read(path).unwrap())).collect()
}

/// A model of the Hub, some of whose answers go wrong.
fn case(name: &str, faults: Vec<(&str, Fault)>, message: &str) -> Case {
    of(name, &format!("{TRAIN} {MODEL}"), repository(), faults, message)
}

fn of(
    name: &str,
    command: &str,
    files: BTreeMap<String, Vec<u8>>,
    faults: Vec<(&str, Fault)>,
    message: &str,
) -> Case {
    let server = Server::start(files);
    faults.into_iter().for_each(|(part, fault)| server.fail(part, fault));
    let message =
        message.replace("HUB", &server.endpoint).replace("HOST", &server.endpoint["http://".len()..]);
    Case::new(format!("hub: {name}"), command, message).variable("HF_ENDPOINT", &server.endpoint)
}

fn status(status: u16) -> Fault {
    Fault::Status(status, String::new())
}

/// As often as it is tried.
fn each(part: &str, fault: fn() -> Fault) -> Vec<(&str, Fault)> {
    (0..6).map(|_| (part, fault())).collect()
}

pub fn cases() -> Vec<Case> {
    let without = |name: &str| {
        let mut files = repository();
        files.remove(name).unwrap();
        files
    };
    let pickle = {
        let mut files = without("model.safetensors");
        files.insert("pytorch_model.bin".to_owned(), vec![]);
        files
    };
    let mut broken = repository();
    broken.insert("config.json".to_owned(), b"<!doctype html>".to_vec());
    let model = format!("{TRAIN} {MODEL}");
    vec![
        case(
            "500",
            each("/revision/", || status(500)),
            "someone/tiny-bert: downloading the list of files from HUB failed: HOST: answered 500",
        )
        .failure(),
        case(
            "a list that is cut",
            each("/revision/", || Fault::CutAfter(10)),
            "someone/tiny-bert: downloading the list of files from HUB failed: HOST: Peer \
            disconnected",
        )
        .failure(),
        case(
            "401",
            vec![("/revision/", status(401))],
            "someone/tiny-bert: the Hub at HUB answered 401: check the name and the revision, and \
            set HF_TOKEN if the model is private or gated",
        ),
        case(
            "403",
            vec![("/revision/", status(403))],
            "someone/tiny-bert: the Hub at HUB answered 403: check the name and the revision, and \
            set HF_TOKEN if the model is private or gated",
        ),
        case(
            "403 for one file",
            vec![("model.safetensors", status(403))],
            "someone/tiny-bert: the Hub at HUB answered 403: check the name and the revision, and \
            set HF_TOKEN if the model is private or gated",
        ),
        case(
            "a page for a list",
            vec![("/revision/", Fault::Page)],
            "someone/tiny-bert: downloading the list of files from HUB failed: the answer is not \
            such a list: expected value at line 1 column 1",
        )
        .failure(),
        of(
            "404",
            &format!("{TRAIN} someone/else"),
            repository(),
            vec![],
            "someone/else: the Hub at HUB answered 404: check the name and the revision, and set \
            HF_TOKEN if the model is private or gated",
        ),
        of(
            "404 for a revision",
            &format!("{model} --revision v2"),
            repository(),
            vec![],
            "someone/tiny-bert: the Hub at HUB answered 404: check the name and the revision, and \
            set HF_TOKEN if the model is private or gated",
        ),
        of(
            "a redirect to nowhere",
            &model,
            repository(),
            vec![("/revision/", Fault::Status(302, "Location: ftp://hub.example/\r\n".to_owned()))],
            "someone/tiny-bert: downloading the list of files from HUB failed: HOST: redirects to \
                what is not an http or https URL",
        )
        .failure(),
        of(
            "no config.json",
            &model,
            without("config.json"),
            vec![],
            "someone/tiny-bert: there is no config.json",
        ),
        of(
            "no tokenizer",
            &model,
            without("tokenizer.json"),
            vec![],
            "someone/tiny-bert: there is no tokenizer.json or vocab.txt",
        ),
        of(
            "no weights",
            &model,
            without("model.safetensors"),
            vec![],
            "someone/tiny-bert: there is no model.safetensors",
        ),
        of(
            "pickle alone",
            &model,
            pickle,
            vec![],
            "someone/tiny-bert: the weights are in PyTorch's pickle format alone; convert them to \
            model.safetensors, or choose a revision that has it",
        ),
        of(
            "a page for a file",
            &model,
            broken,
            vec![],
            "{hub}/hub/models--someone--tiny-bert/snapshots/0123456789abcdef0123456789abcdef01234567/config.json: \
            expected value at line 1 column 1",
        ),
        Case::new(
            "hub: offline",
            &model,
            "someone/tiny-bert: HF_HUB_OFFLINE is set and {}/none/hub does not hold all of its \
            files",
        )
        .variable("HF_HUB_OFFLINE", "1")
        .variable("HF_HOME", "{}/none"),
        Case::new(
            "hub: no URL",
            &model,
            "HF_ENDPOINT: expected the URL of a Hub, such as https://huggingface.co",
        )
        .variable("HF_ENDPOINT", "hub"),
        Case::new(
            "hub: a token of two lines",
            &model,
            "HF_TOKEN: expected a token of letters, digits and `_`",
        )
        .variable("HF_TOKEN", "a\nb"),
        case(
            "a cache that is a file",
            vec![],
            "can't make {}/data.csv/.locks/models--someone--tiny-bert: Not a directory (os error \
            20)",
        )
        .failure()
        .variable("HF_HUB_CACHE", "{}/data.csv"),
    ]
}
