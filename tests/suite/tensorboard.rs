//! `--tensorboard` and `steps.jsonl`: what is told of each step, read without anything of ours, also where a run was killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use bert_xla::run::layout;
use serde_json::Value as Json;

use crate::common::cli::{json_lines, train};
use crate::common::empty_folder;
use crate::common::runs::{FLAGS, Training, outcome, run, steps, trains, uninterrupted};

/// CRC-32C bit by bit, masked as TFRecords have it.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The records of a file, up to its end or one that is cut.
fn records(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = vec![];
    while let Some((head, rest)) = bytes.split_at_checked(12) {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
        assert_eq!(checksum(&head[..8]), word(&head[8..]));
        if rest.len() < length + 4 {
            break;
        }
        assert_eq!(checksum(&rest[..length]), word(&rest[length..length + 4]));
        found.push(&rest[..length]);
        bytes = &rest[length + 4..];
    }
    found
}

/// The fields of a protocol buffer: numbers, and what they hold, fixed numbers as their bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let length = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let (own, rest) = bytes.split_at(length);
        *bytes = rest;
        own.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
    }
    let mut found = vec![];
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, bytes[..length].to_vec()));
        bytes = &bytes[length..];
    }
    found
}

/// Scalars by their name and step.
type Scalars = BTreeMap<String, BTreeMap<u64, f32>>;

/// What TensorBoard shows of files, in the order of their names: a start drops what was told of its step and later ones.
fn shown(files: &BTreeMap<String, Vec<u8>>) -> Scalars {
    let mut scalars = Scalars::new();
    for (name, bytes) in files {
        let parts = name.strip_prefix("events.out.tfevents.").unwrap().split('.').collect::<Vec<_>>();
        assert!(parts[0].len() == 10 && parts.len() >= 4, "{name}");
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        for (at, record) in records(bytes).into_iter().enumerate() {
            let event = fields(record);
            let field = |wanted: u64| event.iter().find(|(field, _)| *field == wanted).map(|(_, it)| &**it);
            let time = f64::from_le_bytes(field(1).unwrap().try_into().unwrap());
            assert!((1.7e9..1e10).contains(&time), "{time}");
            assert_eq!(field(3), (at == 0).then_some(&b"brain.Event:2"[..]));
            let step = field(2).map_or(0, number);
            if let Some(log) = field(7) {
                assert_eq!((at, fields(log)), (1, vec![(1, 1u64.to_le_bytes().to_vec())]));
                scalars.values_mut().for_each(|steps| steps.retain(|told, _| *told < step));
            }
            for (field, value) in field(5).map(fields).unwrap_or_default() {
                assert_eq!(field, 1);
                let [(1, tag), (2, value)] = &fields(&value)[..] else { panic!("{value:?}") };
                let tag = String::from_utf8(tag.clone()).unwrap();
                let value = f32::from_le_bytes(value[..].try_into().unwrap());
                let before = scalars.entry(tag).or_default().insert(step, value);
                assert_eq!(before, None, "step {step} is told twice");
            }
        }
    }
    scalars
}

/// The event files in a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.file_name().unwrap().display().to_string(), fs::read(&path).unwrap())).collect()
}

/// A number of each of these records, as TensorBoard has numbers.
fn column(records: &[Json], name: &str) -> BTreeMap<u64, f32> {
    let of = |record: &Json| (record["step"].as_u64().unwrap(), record[name].as_f64().unwrap() as f32);
    records.iter().map(of).collect()
}

fn lines(run: &Path, name: &str) -> Vec<Json> {
    json_lines(&fs::read_to_string(run.join(name)).unwrap())
}

/// Each step and each epoch, once, with the numbers of the run's own files; `has_times` tells whether one process has done
/// all steps, so that both were told the same times.
#[track_caller]
fn check(run: &Path, train: &Scalars, validation: &Scalars, has_times: bool) {
    let (steps, history) = (lines(run, layout::STEPS), lines(run, layout::HISTORY));
    let names = ["accuracy", "epoch_accuracy", "epoch_loss", "examples_per_second", "gradient_norm"];
    let names = names.into_iter().chain(["learning_rate", "loss"]).collect::<Vec<_>>();
    assert_eq!(train.keys().collect::<Vec<_>>(), names);
    for name in names.into_iter().filter(|name| !name.starts_with("epoch_")) {
        let expected = column(&steps, name);
        match name == "examples_per_second" && !has_times {
            true => assert!(train[name].keys().eq(expected.keys())),
            false => assert_eq!(train[name], expected, "{name}"),
        }
    }
    assert_eq!(train["epoch_loss"], column(&history, "loss"));
    assert_eq!(train["epoch_accuracy"], column(&history, "accuracy"));
    assert_eq!(validation.keys().collect::<Vec<_>>(), ["epoch_accuracy", "epoch_f1", "epoch_loss"]);
    for (name, of_history) in
        [("epoch_accuracy", "val_accuracy"), ("epoch_f1", "val_f1"), ("epoch_loss", "val_loss")]
    {
        assert_eq!(validation[name], column(&history, of_history), "{name}");
    }
}

#[test]
fn each_step_and_epoch_is_told() {
    let root = empty_folder("tensorboard_run").join("run");
    trains(&mut train(&root, &[&FLAGS[..], &["--tensorboard"]].concat()));
    let folder = root.join(layout::TENSORBOARD);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    let [of_train, of_validation] = ["train", "validation"].map(|name| files(&folder.join(name)));
    assert_eq!((of_train.len(), of_validation.len()), (1, 1));
    check(&root, &shown(&of_train), &shown(&of_validation), true);

    // The epochs' numbers are made of the steps': 360 rows by 16, and the last batch has 8.
    let (steps, history) = (lines(&root, layout::STEPS), lines(&root, layout::HISTORY));
    assert_eq!(steps.len(), 46);
    for (epoch, steps) in history.iter().zip(steps.chunks(23)) {
        let value = |step: &Json, name: &str| step[name].as_f64().unwrap();
        for name in ["loss", "accuracy"] {
            let rows = |at: usize| if at == 22 { 8.0 } else { 16.0 };
            let sum = steps.iter().enumerate().map(|(at, step)| rows(at) * value(step, name)).sum::<f64>();
            assert!((sum / 360.0 - value(epoch, name)).abs() < 1e-9, "{name}: {sum}");
        }
        for (at, step) in steps.iter().enumerate() {
            assert_eq!(step["epoch"], epoch["epoch"]);
            let rate = value(step, "examples_per_second") * value(step, "step_ms") / 1e3;
            assert!((rate - if at == 22 { 8.0 } else { 16.0 }).abs() < 1e-9, "{rate}");
            assert!(value(step, "gradient_norm") > 0.0);
        }
        let median = value(epoch, "step_ms");
        // A runtime may take a step while it is launched: then, the last one doesn't end when it is waited for.
        assert!(steps.iter().all(|step| value(step, "step_ms") > median / 20.0), "{steps:?}");
        let faster = steps.iter().filter(|step| value(step, "step_ms") <= median).count();
        assert_eq!(faster, 12);
    }
    // To be told is all that changes.
    let mut told = outcome(&root);
    told.steps.iter_mut().for_each(|step| _ = step.as_object_mut().unwrap().remove("gradient_norm").unwrap());
    assert_eq!(told, *uninterrupted().1);
}

/// `BERT_XLA_KILLS` says how often it is killed.
#[test]
fn a_run_that_is_killed_tells_each_step_once() {
    let kills = std::env::var("BERT_XLA_KILLS").map_or(4, |kills| kills.parse().unwrap());
    let folder = empty_folder("tensorboard_killed");
    let (root, events) = (folder.join("run"), folder.join("events"));
    let flags = [&FLAGS[..], &["--tensorboard", events.to_str().unwrap()]].concat();
    let mut random = fastrand::Rng::with_seed(kills);
    for _ in 0..kills {
        let newest = steps(&root).last().copied().unwrap_or_default();
        if newest >= 40 {
            break;
        }
        let training = Training::start(train(&root, &flags), &root, newest + 1);
        std::thread::sleep(std::time::Duration::from_millis(random.u64(..60)));
        training.kill();
        // As it would be after more steps, the last of them cut.
        let mut log = fs::File::options().append(true).open(root.join(layout::STEPS)).unwrap();
        log.write_all(b"{\"step\":999,\"epoch\":9}\n{\"step\":7,\"epo").unwrap();
    }
    trains(&mut train(&root, &flags));
    let [of_train, of_validation] = ["train", "validation"].map(|name| files(&events.join(name)));
    assert!(of_train.len() > 1);
    let mut cut = of_train.clone();
    check(&root, &shown(&of_train), &shown(&of_validation), false);
    let mut told = outcome(&root);
    told.steps.iter_mut().for_each(|step| _ = step.as_object_mut().unwrap().remove("gradient_norm").unwrap());
    assert_eq!(told, *uninterrupted().1);
    // A record that a kill has cut ends its file, and nothing else.
    let first = cut.values_mut().next().unwrap();
    first.extend_from_slice(&200u64.to_le_bytes());
    first.extend_from_slice(&checksum(&200u64.to_le_bytes()).to_le_bytes());
    first.extend_from_slice(b"half");
    assert_eq!(shown(&cut), shown(&of_train));
}

#[test]
fn members_have_their_own() {
    let folder = empty_folder("tensorboard_members");
    let (root, events) = (folder.join("run"), folder.join("events"));
    let flags = ["--epochs", "1", "--seeds", "2", "--tensorboard", events.to_str().unwrap()];
    trains(&mut train(&root, &flags));
    let mut losses = BTreeSet::new();
    for name in ["seed-0", "seed-1"] {
        let [of_train, of_validation] =
            ["train", "validation"].map(|part| shown(&files(&events.join(name).join(part))));
        check(&root.join(layout::MEMBERS).join(name), &of_train, &of_validation, true);
        losses.insert(of_train["loss"][&1].to_bits());
    }
    assert_eq!(losses.len(), 2);
}

/// What can't be told is said once, and nothing else is lost.
#[test]
fn training_goes_on_where_nothing_can_be_told() {
    let root = empty_folder("tensorboard_fails").join("run");
    fs::create_dir_all(root.join(layout::STEPS)).unwrap();
    fs::write(root.join(layout::TENSORBOARD), "a file").unwrap();
    let (code, stderr) = run(&mut train(&root, &[&FLAGS[..], &["--tensorboard", "--overwrite"]].concat()));
    assert_eq!(code, Some(0), "{stderr}");
    for (file, rest) in [
        (root.join(layout::STEPS), "training goes on, and steps.jsonl tells no more of it"),
        (root.join(layout::TENSORBOARD), "training goes on, and TensorBoard is told no more of it"),
    ] {
        let told = stderr.lines().filter(|line| line.ends_with(rest)).collect::<Vec<_>>();
        let [line] = told[..] else { panic!("{stderr}") };
        assert!(line.contains(file.to_str().unwrap()), "{line}");
    }
    assert_eq!(fs::read(root.join(layout::WEIGHTS)).unwrap(), fs::read(uninterrupted_weights()).unwrap());
}

fn uninterrupted_weights() -> PathBuf {
    uninterrupted().0.join(layout::WEIGHTS)
}

/// A bucket can't append: what is there is replaced with each checkpoint.
#[cfg(feature = "cloud")]
#[test]
fn in_a_bucket_they_come_with_each_checkpoint() {
    use crate::common::gcs::Gcs;

    let gcs = Gcs::start();
    let training = |flags: &[&str]| {
        let mut command = train(Path::new("gs://runs/run"), flags);
        command.env_remove("STORAGE_EMULATOR_HOST").envs(gcs.variables());
        command
    };
    let brought = |name: &str| {
        let folder = empty_folder(name);
        for (object, bytes) in &gcs.state().objects {
            let path = folder.join(object.strip_prefix("run/").unwrap());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &bytes.bytes).unwrap();
        }
        folder
    };
    let flags = [&FLAGS[..], &["--tensorboard"]].concat();
    let newest = || steps(&brought("tensorboard_bucket"));
    Training::until(training(&flags), 10, newest).kill();
    gcs.settle();
    let root = brought("tensorboard_bucket");
    let newest = *steps(&root).last().unwrap();
    let told = lines(&root, layout::STEPS);
    assert!(told.len() as u64 >= newest, "{newest}: {told:?}");
    trains(&mut training(&flags));
    let root = brought("tensorboard_bucket");
    let [of_train, of_validation] =
        ["train", "validation"].map(|part| shown(&files(&root.join(layout::TENSORBOARD).join(part))));
    check(&root, &of_train, &of_validation, false);
    assert_eq!(lines(&root, layout::STEPS).len(), 46);
}
