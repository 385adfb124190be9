//! Buckets, and what gives the credentials for them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;

use super::{Case, TRAIN};
use crate::common::cli::asset;
use crate::common::gcs::{ACCOUNT, Fault, Gcs, TOKEN};

const EVALUATE: &str = "evaluate --backend cpu --run {demo} --data gs://runs/data.csv";
const RUN: &str = "evaluate --backend cpu --run gs://runs/run --data {}/data.csv";
const PREDICT: &str = "predict --backend cpu --run {demo} --data {}/data.csv --output gs://runs/labels.csv";

const LOGIN: &str = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to the file of a \
                     service account's key";

/// What is said where the account lacks a permission.
fn may_not(what: &str, permission: &str) -> String {
    format!(
        "{what}: {ACCOUNT} may not do that, {permission} (403): give the role by `gcloud storage buckets \
         add-iam-policy-binding gs://runs --member=serviceAccount:{ACCOUNT} --role=roles/storage.objectUser`"
    )
}

/// A bucket `runs` that holds a table and a model, some of whose answers go wrong.
fn case(name: &str, command: &str, faults: Vec<(&str, &str, Fault)>, message: &str) -> Case {
    let server = Gcs::start();
    server.put("data.csv", &fs::read(asset("sample.csv")).unwrap());
    for name in ["config.json", "tokenizer.json"] {
        server.put(&format!("model/{name}"), &fs::read(asset("tiny").join(name)).unwrap());
    }
    server.put("odd/checkpoints//step-1", b"");
    faults.into_iter().for_each(|(method, part, fault)| server.fail(method, part, fault));
    with(name, command, &server.url, TOKEN, message)
}

fn with(name: &str, command: &str, url: &str, token: &str, message: &str) -> Case {
    let case = Case::new(format!("bucket: {name}"), command, message);
    case.variable("GOOGLE_BASE_URL", url).variable("GOOGLE_BEARER_TOKEN", token)
}

fn status(status: u16) -> Fault {
    Fault::Status(status, String::new())
}

fn denied(permission: &str) -> Fault {
    let details = format!("{ACCOUNT} does not have {permission} access to the Google Cloud Storage object.");
    Fault::Status(403, format!("<Error><Code>AccessDenied</Code><Details>{details}</Details></Error>"))
}

/// No token is given, but a server, which answers all requests as the VM's metadata server would, with this.
fn metadata(name: &str, answer: &'static str, message: &str) -> Case {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // The client may be gone.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let case = Case::new(format!("metadata: {name}"), EVALUATE, message).variable("HOME", "{}");
    case.variable("GCE_METADATA_HOST", &host).variable("GCE_METADATA_IP", &host)
}

/// A key file with this in it.
fn key(name: &str, text: &'static str, message: &str) -> Case {
    let case = Case::new(format!("credentials: {name}"), EVALUATE, message).variable("HOME", "{}");
    let case = case.make(move |folder| fs::write(folder.join("key.json"), text).unwrap());
    case.variable("GOOGLE_APPLICATION_CREDENTIALS", "{}/key.json")
}

/// A table elsewhere than `data.csv`.
fn table(name: &str, at: &str, why: &str) -> Case {
    let command = EVALUATE.replace("gs://runs/data.csv", at);
    case(name, &command, vec![], &format!("can't read {at}: {why}"))
}

/// A table that is there and can't be read.
fn reading(name: &str, fault: Fault, message: &str) -> Case {
    case(name, EVALUATE, vec![("GET", "data.csv", fault)], message)
}

/// A run that can't go there.
fn output(name: &str, at: &str, faults: Vec<(&str, &str, Fault)>, message: &str) -> Case {
    case(name, &TRAIN.replace("{}/new/run", at), faults, message)
}

fn no_bucket(what: &str) -> String {
    format!(
        "{what}: there is no bucket `others` (404): check its name; `gcloud storage ls` lists those of your project"
    )
}

pub fn cases() -> Vec<Case> {
    let read = |why: &str| format!("can't read gs://runs/data.csv: {why}");
    let expected = "expected gs://bucket/path";
    let letters = "expected gs://bucket/path, the bucket in a-z, 0-9, `-`, `_` and `.`";
    let nothing_there =
        read(&format!("there are no credentials for Google Cloud, or Google was not reached: {LOGIN}"));
    let bad_credentials = &read(
        "Google's credentials can't be used: {}/key.json, which GOOGLE_APPLICATION_CREDENTIALS names, can't be read, or \
         is none of the kinds authorized_user and service_account",
    );
    let no_credentials = &read(
        "Google's credentials can't be used: {}/none.json, which GOOGLE_APPLICATION_CREDENTIALS names, isn't there",
    );
    let trained = TRAIN.replace("--random-weights", "");
    let role = "the account may not do that (403): give the role by `gcloud storage buckets add-iam-policy-binding \
                gs://runs --member=serviceAccount:ACCOUNT --role=roles/storage.objectUser`";
    vec![
        table("no such table", "gs://runs/none.csv", "there is no such file"),
        table("a table is a folder", "gs://runs/model", "there is no such file"),
        table("an empty name", "gs://runs/a//data.csv", "there is no such file"),
        table("no name of a table", "gs://runs", expected),
        table("no name of a bucket", "gs://", expected),
        table("a slash too few", "gs:/runs/data.csv", expected),
        table("a bucket in capitals", "gs://Runs/data.csv", letters),
        table(
            "a path upwards",
            "gs://runs/../data.csv",
            "expected gs://bucket/path, without empty names, `.` or `..` between the slashes",
        ),
        table("another bucket", "gs://others/data.csv", no_bucket("").trim_start_matches(": ")),
        reading(
            "no role to read",
            denied("storage.objects.get"),
            &may_not("can't read gs://runs/data.csv", "storage.objects.get"),
        ),
        reading("no role, of a server that says nothing", status(403), &read(role)),
        reading("400", status(400), &read("Cloud Storage answered 400")).failure(),
        reading(
            "400 with a word",
            Fault::Status(400, "<Code>InvalidArgument</Code>".to_owned()),
            &read("Cloud Storage answered 400, InvalidArgument"),
        )
        .failure(),
        with(
            "a token that has expired",
            EVALUATE,
            &Gcs::start().url,
            "ya29.expired",
            &read(&format!("Cloud Storage doesn't take the token (401), which may have expired: {LOGIN}")),
        ),
        with(
            "nobody is there",
            EVALUATE,
            "http://127.0.0.1:1",
            TOKEN,
            &read("can't connect to Cloud Storage: is there a network?"),
        )
        .failure(),
        case(
            "no such run",
            RUN,
            vec![],
            "gs://runs/run: there is no such folder; give the --output of a training run",
        ),
        case(
            "a run without a file",
            &RUN.replace("runs/run", "runs/model"),
            vec![],
            "gs://runs/model: there is no model.safetensors",
        ),
        case(
            "a run in no bucket",
            &RUN.replace("runs/run", "others/run"),
            vec![],
            &no_bucket("can't read gs://others/run"),
        ),
        case(
            "no such model",
            &TRAIN.replace("{}/model", "gs://runs/none"),
            vec![],
            "gs://runs/none: there is no config.json",
        ),
        case(
            "a model without weights",
            &trained.replace("{}/model", "gs://runs/model"),
            vec![],
            "gs://runs/model: there is no model.safetensors",
        ),
        output(
            "an output in no bucket",
            "gs://others/run",
            vec![],
            &no_bucket("can't write to gs://others/run"),
        ),
        output(
            "an output that may not be written",
            "gs://runs/run",
            vec![("PUT", "probe", denied("storage.objects.create"))],
            &may_not("can't write to gs://runs/run", "storage.objects.create"),
        ),
        output(
            "an output that may not be listed",
            "gs://runs/run",
            vec![("GET", "list-type", denied("storage.objects.list"))],
            &may_not("can't write to gs://runs/run", "storage.objects.list"),
        ),
        output(
            "an output that holds files",
            "gs://runs/model",
            vec![],
            "gs://runs/model already holds config.json, which a run would replace; choose another --output, or pass \
             --overwrite",
        ),
        output("an output without a bucket", "gs://", vec![], &format!("can't write to gs://: {letters}")),
        case(
            "nothing to resume",
            "train --resume --output gs://runs/run",
            vec![],
            "gs://runs/run: there is no whole checkpoint to go on from; leave --resume out to start one, or give the \
             --output of one",
        ),
        case(
            "names that can't be worked with",
            "train --resume --output gs://runs/odd",
            vec![],
            "can't list gs://runs/odd/checkpoints: a name there has an empty part, `.` or `..` between slashes, which can't \
             be worked with",
        ),
        case(
            "answers that may not be written",
            PREDICT,
            vec![("PUT", "probe", denied("storage.objects.create"))],
            &may_not("can't write gs://runs/labels.csv", "storage.objects.create"),
        ),
        case(
            "answers in place of the input",
            &PREDICT.replace("{}/data.csv", "gs://runs/labels.csv"),
            vec![],
            "--output gs://runs/labels.csv: it is the input; name another file",
        ),
        case(
            "answers without a name",
            &PREDICT.replace("runs/labels.csv", "runs"),
            vec![],
            &format!("can't write gs://runs: {expected}"),
        ),
        case(
            "no room for a copy",
            EVALUATE,
            vec![],
            &read("in the temporary folder {}/none: No such file or directory (os error 2)"),
        )
        .variable("TMPDIR", "{}/none"),
        metadata(
            "no account",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            &read(&format!(
                "this VM has no service account, which would be its credentials for Google Cloud: {LOGIN}"
            )),
        ),
        metadata(
            "no JSON",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
            &nothing_there,
        ),
        metadata(
            "no token",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
            &nothing_there,
        ),
        metadata("it hangs up", "", &nothing_there),
        key("empty", "", bad_credentials),
        key("no JSON", "{", bad_credentials),
        key("another kind", "{\"type\": \"external_account\"}", bad_credentials),
        key(
            "no private key",
            "{\"type\": \"service_account\", \"client_email\": \"a\", \"private_key_id\": \"b\", \
            \"private_key\": \"none\"}",
            bad_credentials,
        ),
        Case::new("credentials: no file", EVALUATE, no_credentials)
            .variable("GOOGLE_APPLICATION_CREDENTIALS", "{}/none.json"),
    ]
}
