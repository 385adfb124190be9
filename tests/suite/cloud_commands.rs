//! The commands on tables, models and runs in a bucket.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;

use crate::common::buckets::FakeGcs;
use crate::common::cli::{asset, command, copy_of_run, demo, fails, text};
use crate::common::empty_folder;
use crate::common::gcs::{Fault, Gcs};

/// A bucket `runs` to which files are brought without this project's client.
struct Bucket<'a> {
    /// Of the test's folders.
    name: &'static str,
    variables: Vec<(&'static str, String)>,
    put: &'a dyn Fn(&str, &[u8]),
}

impl Bucket<'_> {
    /// Puts all files of a folder, and of those in it, where names start with `prefix`.
    fn put_folder(&self, prefix: &str, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}/{}", path.file_name().unwrap().to_str().unwrap());
            match path.is_dir() {
                true => self.put_folder(&name, &path),
                false => (self.put)(&name, &fs::read(&path).unwrap()),
            }
        }
    }

    /// The program, with its temporary files in `temporary`.
    fn command(&self, arguments: &[&str], temporary: &Path) -> Command {
        let mut command = command(arguments);
        command.env("TMPDIR", temporary).env_remove("STORAGE_EMULATOR_HOST");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs it as it must work, and gives its stdout; nothing stays behind.
    #[track_caller]
    fn works(&self, arguments: &[&str]) -> String {
        let temporary = empty_folder(&format!("{}_temporary", self.name));
        let output = self.command(arguments, &temporary).output().unwrap();
        let said = text(output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains(temporary.to_str().unwrap()), "{said}");
        check_empty(&temporary);
        text(output.stdout)
    }
}

#[track_caller]
fn check_empty(folder: &Path) {
    let left = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<PathBuf>>();
    assert!(left.is_empty(), "{left:?}");
}

fn local(arguments: &[&str]) -> String {
    let output = command(arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    text(output.stdout)
}

/// Everything that reads, and the files that are written, against the same on this machine.
fn check_commands(bucket: &Bucket<'_>, get: &dyn Fn(&str) -> Vec<u8>) {
    let (run, folder) = (demo().join("run"), empty_folder(bucket.name));
    bucket.put_folder("demo/run", &run);
    for name in ["sample.csv", "sample_test.csv"] {
        (bucket.put)(&format!("data/{name}"), &fs::read(asset(name)).unwrap());
    }
    let (here, data) = (run.to_str().unwrap(), asset("sample_test.csv"));
    let (data, labels) = (data.to_str().unwrap(), folder.join("labels.csv"));
    let predict = ["predict", "--backend", "cpu", "--run"];
    local(&[&predict[..], &[here, "--data", data, "--output", labels.to_str().unwrap()]].concat());
    let there = [
        "gs://runs/demo/run",
        "--data",
        "gs://runs/data/sample_test.csv",
        "--output",
        "gs://runs/out/labels.csv",
    ];
    let said = bucket.works(&[&predict[..], &there].concat());
    assert!(said.starts_with("gs://runs/out/labels.csv: "), "{said}");
    assert_eq!(text(get("out/labels.csv")), fs::read_to_string(&labels).unwrap());

    let sample = asset("sample.csv");
    let evaluate = |run: &str, data: &str| {
        ["evaluate", "--json", "--backend", "cpu", "--run", run, "--data", data].map(str::to_owned)
    };
    let expected = local(&evaluate(here, sample.to_str().unwrap()).each_ref().map(String::as_str));
    let arguments = evaluate("gs://runs/demo/run", "gs://runs/data/sample.csv");
    assert_eq!(bucket.works(&arguments.each_ref().map(String::as_str)), expected);

    // In each format, the same rows.
    let files = ["rows.csv", "rows.jsonl", "rows.parquet"].into_iter();
    let reports = files.filter(|file| cfg!(feature = "parquet") || !file.ends_with(".parquet")).map(|file| {
        let path = format!("tables/{file}");
        (bucket.put)(&path, &fs::read(asset("../tests/fixtures").join(&path)).unwrap());
        let arguments = evaluate("gs://runs/demo/run", &format!("gs://runs/{path}"));
        bucket.works(&arguments.each_ref().map(String::as_str))
    });
    let reports = reports.collect::<Vec<_>>();
    assert!(reports.iter().all(|report| *report == reports[0]), "{reports:?}");

    let states = folder.join("states.safetensors");
    let encode = ["encode", "--backend", "cpu", "--max-length", "16", "--model"];
    local(&[&encode[..], &[here, "--input", data, "--output", states.to_str().unwrap()]].concat());
    // A folder without `run.json`, and with slashes at its end.
    let there = ["gs://runs/demo/run/checkpoints/", "--input", "gs://runs/data/sample_test.csv"];
    let step = fs::read_dir(run.join("checkpoints")).unwrap().next().unwrap().unwrap().file_name();
    let model = format!("{}{}/", there[0], step.to_str().unwrap());
    let run_states = |model: &str| {
        let output = ["--output", "gs://runs/out/states.safetensors"];
        bucket.works(&[&encode[..], &[model], &there[1..], &output].concat());
        get("out/states.safetensors")
    };
    assert!(run_states("gs://runs/demo/run") == fs::read(&states).unwrap());
    // Weights of an older checkpoint, maybe.
    assert_eq!(run_states(&model).len(), fs::read(&states).unwrap().len());

    let train = [
        "train",
        "--dry-run",
        "--random-weights",
        "--max-length",
        "16",
        "--train",
        "gs://runs/data/sample.csv",
    ];
    let of = ["--model", "gs://runs/demo/run", "--output", "run"];
    let said = bucket.works(&[&train[..], &of].concat());
    assert!(said.contains("dense"), "{said}");
}

#[test]
fn commands_read_and_write_a_bucket_of_fake_gcs_server() {
    let Some(server) = FakeGcs::start(&["runs"]) else { return };
    let put = |name: &str, bytes: &[u8]| {
        let path = format!("/upload/storage/v1/b/runs/o?uploadType=media&name={name}");
        let answer = server.request("POST", &path, bytes);
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    };
    let get = |name: &str| {
        let answer = server.request("GET", &format!("/runs/{name}"), b"");
        let body = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        answer[body..].to_vec()
    };
    let variables = vec![("STORAGE_EMULATOR_HOST", server.host.clone())];
    check_commands(&Bucket { name: "cloud_fake", variables, put: &put }, &get);
}

#[test]
fn commands_read_and_write_a_bucket_by_googles_reference() {
    let server = Gcs::start();
    let put = |name: &str, bytes: &[u8]| server.put(name, bytes);
    let get = |name: &str| server.state().objects[name].bytes.clone();
    check_commands(&Bucket { name: "cloud_reference", variables: server.variables(), put: &put }, &get);
}

#[test]
fn what_is_wrong_in_a_bucket_is_told_by_its_address() {
    let server = Gcs::start();
    let put = |name: &str, bytes: &[u8]| server.put(name, bytes);
    let bucket = Bucket { name: "cloud_errors", variables: server.variables(), put: &put };
    let temporary = empty_folder("cloud_commands_errors");
    let says = |arguments: &[&str], code: i32| {
        let said = fails(&mut bucket.command(arguments, &temporary), code);
        assert!(!said.contains(temporary.to_str().unwrap()), "{said}");
        check_empty(&temporary);
        said
    };
    put("data/sample.csv", &fs::read(asset("sample.csv")).unwrap());
    put("data/bad.csv", b"id,text,label\n1,one,7\n");
    let evaluate = |run: &str, data: &str, code: i32| {
        says(&["evaluate", "--backend", "cpu", "--run", run, "--data", data], code)
    };
    let (sample, run) = ("gs://runs/data/sample.csv", "gs://runs/demo/run");
    assert_eq!(
        evaluate(run, sample, 2),
        "error: gs://runs/demo/run: there is no such folder; give the --output of a training run"
    );
    bucket.put_folder("demo/run", &demo().join("run"));
    let bad = evaluate(run, "gs://runs/data/bad.csv", 2);
    assert!(bad.starts_with("error: gs://runs/data/bad.csv: "), "{bad}");
    assert_eq!(
        evaluate(run, "gs://runs/data/none.csv", 2),
        "error: can't read gs://runs/data/none.csv: there is no such file"
    );
    let other = evaluate(run, "gs://other/sample.csv", 2);
    assert!(other.contains("can't read gs://other/sample.csv: there is no bucket `other` (404)"), "{other}");
    let train = ["train", "--random-weights", "--model", run, "--output", "run", "--train"];
    let none = says(&[&train[..], &["gs://runs/data/none.csv"]].concat(), 2);
    assert_eq!(none, "error: can't read gs://runs/data/none.csv: there is no such file");
    // Two bytes of the weights that were committed are others, then one is missing.
    let weights = {
        let state = server.state();
        let pointer: Json = serde_json::from_slice(&state.objects["demo/run/run.json"].bytes).unwrap();
        format!("demo/run/{}/model.safetensors", pointer["checkpoint"].as_str().unwrap())
    };
    let whole = server.state().objects[&weights].bytes.clone();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    put(&weights, &flipped);
    assert_eq!(
        evaluate(run, sample, 2),
        format!("error: gs://runs/{weights}: it is not as it was committed")
    );
    put(&weights, &whole[..whole.len() - 1]);
    let size = evaluate(run, sample, 2);
    assert!(size.starts_with(&format!("error: gs://runs/{weights}: it has ")), "{size}");
    // Files that are vouched for by none.
    bucket.put_folder("plain", &copy_of_run("cloud_commands_plain"));
    put("plain/model.safetensors", b"no weights");
    let plain = evaluate("gs://runs/plain", sample, 2);
    assert!(
        plain.starts_with("error: can't read gs://runs/plain/model.safetensors: not a complete"),
        "{plain}"
    );
    // Told before anything is computed.
    put(&weights, &whole);
    server.fail("PUT", "probe", Fault::Status(403, String::new()));
    let predict = ["predict", "--backend", "cpu", "--run", run, "--data", sample, "--output"];
    let refused = says(&[&predict[..], &["gs://runs/out/labels.csv"]].concat(), 2);
    assert!(
        refused.starts_with("error: can't write gs://runs/out/labels.csv: the account may not do that (403)"),
        "{refused}"
    );
    let over = says(&[&predict[..], &[sample]].concat(), 2);
    assert_eq!(over, format!("error: --output {sample}: it is the input; name another file"));
}
