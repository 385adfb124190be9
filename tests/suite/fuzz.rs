//! Damaged files of every kind: reading them gives an answer or an error, and never panics or hangs.
//!
//! A few cases by default; with `BERT_XLA_FUZZ_SECONDS`, as many as so much time allows, each test for itself. `ulimit -v`
//! around that finds what takes too much memory.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bert_xla::data::{DataError, Header, Labels, Purpose, TableFile, TableOptions};
use bert_xla::run::{Checkpoint, Newest, Run, layout, model_folder};
use bert_xla::storage::Folder;
use bert_xla::weights::TensorFiles;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseResult, TestRunner};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value as Json, json};

use crate::common::cli::{asset, copy_of_run, demo};
use crate::common::empty_folder;
use crate::common::runs::commit;

/// Runs `test` on inputs of a strategy.
fn fuzz<S: Strategy>(name: &str, strategy: &S, test: impl Fn(S::Value) -> TestCaseResult) {
    let seconds = std::env::var("BERT_XLA_FUZZ_SECONDS").ok().map(|seconds| seconds.parse().unwrap());
    let config = Config { cases: 100, failure_persistence: None, ..Config::default() };
    let (started, slowest) = (Instant::now(), std::cell::Cell::new(Duration::ZERO));
    let mut runs = 0;
    loop {
        let timed = |input| {
            let started = Instant::now();
            let result = test(input);
            slowest.set(slowest.get().max(started.elapsed()));
            result
        };
        if let Err(failure) = TestRunner::new(config.clone()).run(strategy, timed) {
            panic!("{name}: {failure}");
        }
        runs += config.cases;
        if seconds.is_none_or(|seconds| started.elapsed() >= Duration::from_secs(seconds)) {
            break eprintln!("{name}: {runs} cases, the slowest in {:?}", slowest.get());
        }
    }
}

/// A change of a few bytes.
#[derive(Clone, Debug)]
enum Edit {
    Replace(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
}

impl Edit {
    fn apply(self, bytes: &mut Vec<u8>) {
        let at = |index: Index, bytes: &Vec<u8>| index.index(bytes.len() + 1);
        match self {
            Self::Replace(index, byte) => {
                let at = at(index, bytes);
                bytes.get_mut(at).into_iter().for_each(|old| *old = byte);
            }
            Self::Insert(index, new) => {
                let at = at(index, bytes);
                bytes.splice(at..at, new);
            }
            Self::Remove(index, length) => {
                let at = at(index, bytes);
                bytes.drain(at..bytes.len().min(at + length));
            }
            Self::Repeat(index, length) => {
                let at = at(index, bytes);
                let part = bytes[at..bytes.len().min(at + length)].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let bytes = || prop_oneof![any::<u8>(), select(b"\",;\n\r\t{}[]:\\0-9e.\0\xff\xc3".to_vec())];
    let edit = prop_oneof![
        (any::<Index>(), bytes()).prop_map(|(index, byte)| Edit::Replace(index, byte)),
        (any::<Index>(), prop::collection::vec(bytes(), 1..9)).prop_map(|(at, new)| Edit::Insert(at, new)),
        (any::<Index>(), 1..40usize).prop_map(|(at, length)| Edit::Remove(at, length)),
        (any::<Index>(), 1..400usize).prop_map(|(at, length)| Edit::Repeat(at, length)),
    ];
    prop::collection::vec(edit, 0..8)
}

/// `bytes`, but for some of them.
fn damaged(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    edits().prop_map(move |edits| {
        let mut bytes = bytes.clone();
        edits.into_iter().for_each(|edit| edit.apply(&mut bytes));
        bytes
    })
}

/// Values that a file may have where others are expected.
fn values() -> impl Strategy<Value = Json> {
    let numbers = [0, 1, 2, 3, 63, 64, 65, 1 << 20, 1 << 31, 1 << 32, 1 << 62, u64::MAX].map(|n| json!(n));
    let texts = ["", "x", "0", "a\nb", "..", "../x", "/dev/zero", "checkpoints/step-1", "\u{202e}\u{0}"]
        .map(|t| json!(t));
    let others = [
        json!(null),
        json!(true),
        json!(-1),
        json!(i64::MIN),
        json!(0.5),
        json!(1e300),
        json!([]),
        json!({}),
        json!([[]]),
        json!([1, 2]),
        json!(vec![1u64 << 40; 9]),
        json!({"0": "a", "00": "b"}),
        json!({"4294967295": "a"}),
        json!("x".repeat(5000)),
    ];
    select([&numbers[..], &texts, &others].concat())
}

/// The values within a value, and itself.
fn places(json: &mut Json) -> usize {
    let inner = match json {
        Json::Array(values) => values.iter_mut().map(places).sum(),
        Json::Object(map) => map.values_mut().map(places).sum::<usize>(),
        _ => 0,
    };
    inner + 1
}

/// Puts `new` in the place of one of [`places`], or takes that out of its object.
fn put(json: &mut Json, mut at: usize, new: &Option<Json>) {
    if at == 0 {
        return *json = new.clone().unwrap_or_default();
    }
    at -= 1;
    match json {
        Json::Array(values) => {
            for value in values {
                let count = places(value);
                if at < count {
                    return put(value, at, new);
                }
                at -= count;
            }
        }
        Json::Object(map) => {
            for key in map.keys().cloned().collect::<Vec<_>>() {
                let count = places(&mut map[&key]);
                if at == 0 && new.is_none() {
                    return drop(map.remove(&key));
                }
                if at < count {
                    return put(&mut map[&key], at, new);
                }
                at -= count;
            }
        }
        _ => {}
    }
}

/// `json` with other values in some places, or other bytes.
fn damaged_json(json: Json) -> impl Strategy<Value = Vec<u8>> {
    let bytes = json.to_string().into_bytes();
    let change = (any::<Index>(), prop::option::weighted(0.8, values()));
    let changed = prop::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut json = json.clone();
        for (index, new) in changes {
            let count = places(&mut json);
            put(&mut json, index.index(count), &new);
        }
        json.to_string().into_bytes()
    });
    prop_oneof![3 => changed, 1 => damaged(bytes)]
}

/// Tables, and how they are read.
fn tables() -> impl Strategy<Value = (Vec<u8>, TableOptions, Purpose)> {
    let sample = fs::read(asset("sample.csv")).unwrap()[..3000].to_vec();
    let parts: [&[u8]; 12] =
        [b"a", b"1", b"\"", b"\"\"", b",", b";", b"\n", b"\r\n", b"\r", b"\",\"", b"\xc3\xa9", b"\0"];
    let parts = prop::collection::vec(select(parts.to_vec()), 0..200).prop_map(|parts| parts.concat());
    let file = prop_oneof![
        damaged(sample),
        parts.prop_map(|rows| [b"id,text,label\n", &rows[..]].concat()),
        prop::collection::vec(any::<u8>(), 0..600),
    ];
    let header = select(vec![Header::Absent, Header::Expected, Header::Present]);
    let purpose = select(vec![Purpose::Train, Purpose::Evaluate, Purpose::Predict]);
    (file, select(b",;\t".to_vec()), any::<bool>(), header, any::<bool>(), purpose).prop_map(
        |(file, separator, quoted, header, skip_bad_rows, purpose)| {
            let quote = quoted.then_some(b'"');
            (
                file,
                TableOptions { separator, quote, header, skip_bad_rows, ..TableOptions::default() },
                purpose,
            )
        },
    )
}

#[test]
fn tables_of_any_bytes() {
    let path = empty_folder("fuzz_tables").join("data.csv");
    fuzz("tables", &tables(), |(bytes, options, purpose)| {
        fs::write(&path, &bytes).unwrap();
        let check = |options: &TableOptions| match TableFile::open(&path, options, purpose) {
            Ok(table) => table.check().and_then(|summary| Ok((summary, table.collect()?))),
            Err(error) => Err(error),
        };
        let strict = check(&TableOptions { skip_bad_rows: false, ..options.clone() });
        match check(&options) {
            Ok((summary, (table, again))) => {
                prop_assert_eq!(&summary, &again);
                prop_assert_eq!(summary.rows, table.texts.len());
                // Where no row spans lines, each line that isn't blank is told of, once.
                if options.quote.is_none()
                    && options.separator == b','
                    && bytes.starts_with(b"id,text,label\n")
                {
                    let header = usize::from(options.header != Header::Absent);
                    let lines =
                        bytes.split(|&byte| byte == b'\n').filter(|line| !matches!(*line, [] | [b'\r']));
                    let told = summary.rows + summary.skipped + summary.duplicates + header;
                    prop_assert_eq!(told, lines.count());
                }
                match strict {
                    Ok(_) => prop_assert_eq!(summary.skipped, 0),
                    Err(DataError::BadRows { total, .. }) => prop_assert_eq!(total, summary.skipped),
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
            Err(error) => {
                // Polars has read all that the scan has let through.
                prop_assert!(!matches!(error, DataError::Parse { .. }), "{error}");
                prop_assert!(!error.to_string().contains('\n'), "{error}");
                prop_assert!(strict.is_err());
            }
        }
        Ok(())
    });
}

/// A table in a format that isn't CSV: every pass gives the same, and an error is a line about the input.
fn check_table(
    path: &Path,
    bytes: &[u8],
    (skip_bad_rows, purpose): (bool, Purpose),
    text: &str,
) -> TestCaseResult {
    fs::write(path, bytes).unwrap();
    let text_column = Some(text.parse().unwrap());
    let options =
        TableOptions { skip_bad_rows, text_column, labels: Labels::Auto, ..TableOptions::default() };
    let read = || {
        let table = TableFile::open(path, &options, purpose)?;
        Ok::<_, DataError>((table.check()?, table.collect()?))
    };
    match read() {
        Ok((summary, (table, again))) => {
            prop_assert_eq!(&summary, &again);
            prop_assert_eq!(summary.rows, table.texts.len());
            prop_assert!(skip_bad_rows || summary.skipped == 0);
        }
        Err(error) => {
            prop_assert!(error.is_input_error() && !error.to_string().contains('\n'), "{error:?}");
        }
    }
    Ok(())
}

/// How such a table is read.
fn reading() -> impl Strategy<Value = (bool, Purpose)> {
    (any::<bool>(), select(vec![Purpose::Train, Purpose::Evaluate, Purpose::Predict]))
}

#[test]
fn tables_of_any_json_lines() {
    let path = empty_folder("fuzz_json_lines").join("data.jsonl");
    let lines = || asset("../tests/fixtures/tables");
    let rows = ["rows.jsonl", "types.jsonl"].map(|name| damaged(fs::read(lines().join(name)).unwrap()));
    let [rows, types] = rows;
    let object = json!({"text": "a", "label": 1, "ID": [1, {"x": null}], "more": 1e300});
    let objects = prop::collection::vec(damaged_json(object), 1..6).prop_map(|lines| lines.join(&b'\n'));
    let files = prop_oneof![rows, types, objects];
    fuzz("JSON Lines", &(files, reading()), |(bytes, how)| check_table(&path, &bytes, how, "text"));
}

#[cfg(feature = "parquet")]
#[test]
fn tables_of_any_parquet() {
    let path = empty_folder("fuzz_parquet").join("data.parquet");
    let names = ["rows", "types.snappy", "types.zstd", "types.gzip", "types.lz4"];
    let file =
        |name: &&str| fs::read(asset("../tests/fixtures/tables").join(format!("{name}.parquet"))).unwrap();
    let files = names.iter().map(file).collect::<Vec<_>>();
    let columns = [
        "text", "bytes", "broken", "label", "small", "unsigned", "single", "double", "truth", "word", "none",
    ];
    let input = (select(files), edits(), reading(), select(columns.to_vec()));
    fuzz("Parquet", &input, |(mut bytes, edits, how, text)| {
        edits.into_iter().for_each(|edit| edit.apply(&mut bytes));
        check_table(&path, &bytes, how, text)
    });
}

#[test]
fn weights_with_any_header() {
    let path = empty_folder("fuzz_weights").join("model.safetensors");
    let header = json!({
        "__metadata__": {"format": "pt"},
        "bert.embeddings.LayerNorm.gamma": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "encoder.x": {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]},
        "y": {"dtype": "BF16", "shape": [], "data_offsets": [32, 34]},
        "z": {"dtype": "I64", "shape": [0], "data_offsets": [34, 34]},
    });
    let length = prop_oneof![9 => Just(None), 1 => any::<u64>().prop_map(Some)];
    let file = (damaged_json(header), length, 30..40usize).prop_map(|(header, length, data)| {
        let length = length.unwrap_or(header.len() as u64);
        let data = if data > 35 { 34 } else { data };
        [&length.to_le_bytes()[..], &header, &vec![1; data]].concat()
    });
    fuzz("weights", &file, |bytes| {
        fs::write(&path, bytes).unwrap();
        let files = match TensorFiles::open_files(&[&path]) {
            Ok(files) => files,
            Err(error) => {
                prop_assert!(error.is_input_error(), "{error}");
                return Ok(());
            }
        };
        for name in files.names() {
            let shape = files.shape(name).unwrap();
            if let Ok(values) = files.tensor_f32(name, shape) {
                prop_assert_eq!(values.len(), shape.iter().product::<usize>());
            }
        }
        prop_assert!(files.check("none", &[1]).is_err());
        Ok(())
    });
}

/// A copy of the demo's run, and the name of its checkpoint.
fn copy_of_whole_run(name: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    let root = empty_folder(name).join("run");
    let copied =
        std::process::Command::new("cp").arg("-a").arg(demo().join("run")).arg(&root).status().unwrap();
    assert!(copied.success());
    let checkpoint = model_folder(&root).unwrap();
    (root, checkpoint)
}

fn read_json(path: &Path) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn runs_with_any_pointer_and_manifest() {
    for name in ["run.json", "manifest.json"] {
        let (root, checkpoint) = copy_of_whole_run("fuzz_runs");
        // Hashing the large files would take most of the time.
        let path = if name == "run.json" { root.join(name) } else { checkpoint.join(name) };
        let mut whole = read_json(&path);
        let is_small = |file: &Json| file["size"].as_u64().unwrap() < 5000;
        whole["files"].as_array_mut().unwrap().retain(is_small);
        let manifest = checkpoint.join("manifest.json");
        fs::write(&manifest, json!({"files": whole["files"]}).to_string()).unwrap();
        fuzz(name, &damaged_json(whole), |bytes| {
            fs::write(&path, bytes).unwrap();
            match model_folder(&root) {
                Ok(found) => prop_assert!(found == root || found == checkpoint, "{}", found.display()),
                Err(error) => prop_assert!(error.is_input_error(), "{error}"),
            }
            Ok(())
        });
    }
}

#[test]
fn runs_with_any_configuration() {
    let root = copy_of_run("fuzz_configuration");
    let path = root.join("config.json");
    let whole = read_json(&path);
    // What is wrong with the configuration alone is to be found: the tokenizer is read last, and takes long.
    fs::write(root.join("tokenizer.json"), "{}").unwrap();
    fuzz("config.json", &damaged_json(whole), |bytes| {
        fs::write(&path, bytes).unwrap();
        let error = Run::open(&root).err().unwrap();
        prop_assert!(error.is_input_error(), "{error}");
        Ok(())
    });
}

/// What a checkpoint is to be gone on from with, where its manifest vouches for it.
#[test]
fn checkpoints_that_were_written_so() {
    let (root, checkpoint) = copy_of_whole_run("fuzz_checkpoints");
    for entry in fs::read_dir(root.join(layout::CHECKPOINTS)).unwrap() {
        let other = entry.unwrap().path();
        if other != checkpoint {
            fs::remove_dir_all(other).unwrap();
        }
    }
    let read = |name: &str| fs::read(checkpoint.join(name)).unwrap();
    // Hashing the large files would take most of the time; damaged tensors are another test's.
    commit(&checkpoint, layout::TOKENIZER, b"{}");
    for name in [layout::WEIGHTS, layout::MOMENTS[0], layout::MOMENTS[1]] {
        let tensor = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        commit(&checkpoint, name, &safetensors::serialize([(name, tensor)], None).unwrap());
    }
    let history = damaged(read(layout::HISTORY)).boxed();
    let progress = damaged_json(read_json(&checkpoint.join(layout::PROGRESS))).boxed();
    for (name, strategy) in [(layout::PROGRESS, progress), (layout::HISTORY, history)] {
        let whole = read(name);
        fuzz(name, &strategy, |bytes| {
            commit(&checkpoint, name, &bytes);
            let Newest { checkpoint, damaged, .. } = Newest::find(&Folder::new(&root)).unwrap();
            damaged.iter().try_for_each(|error| {
                prop_assert!(error.is_input_error() && !error.to_string().contains('\n'), "{error}");
                Ok(())
            })?;
            if let Some(checkpoint) = checkpoint {
                prop_assert!(damaged.is_empty());
                // As another host gets it.
                let (progress, history) = Checkpoint::parse_text(checkpoint.to_text().as_bytes()).unwrap();
                prop_assert_eq!(&progress, &checkpoint.progress);
                prop_assert_eq!(history.epochs(), checkpoint.history.epochs());
                prop_assert!(checkpoint.tensors().is_ok());
            }
            Ok(())
        });
        commit(&checkpoint, name, &whole);
    }
}
