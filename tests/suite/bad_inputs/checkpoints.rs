//! Runs that can't go on: checkpoints that are no more what they were, and commands that are not the run's.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value as Json, json};

use super::Case;
use crate::common::cli::{asset, demo};
use crate::common::runs::commit;

const RESUME: &str = "train --resume --epochs 7 --output {}/run";
/// The command of the run, but for where it goes.
const AGAIN: &str = "train --train {demo}/../sample.csv --model {demo}/../model --output {}/run --random-weights \
                     --max-length 24 --batch-size 8 --learning-rate 5e-4 --epochs 7 --backend cpu";
const CHECKPOINT: &str = "checkpoints/step-270";

/// Goes on with a whole run, but for an `edit` of its only checkpoint.
fn case(name: &str, command: &str, edit: impl FnOnce(&Path) + Send + 'static, message: &str) -> Case {
    Case::new(format!("checkpoint: {name}"), command, message).make(|folder| {
        let run = folder.join("run");
        let copied = std::process::Command::new("cp").arg("-a").arg(demo().join("run")).arg(&run).status();
        assert!(copied.unwrap().success());
        for entry in fs::read_dir(run.join("checkpoints")).unwrap() {
            let path = entry.unwrap().path();
            if !path.ends_with("step-270") {
                fs::remove_dir_all(path).unwrap();
            }
        }
        edit(&run);
    })
}

/// One that was damaged after it was written, or was written with what no version of this program writes: it is passed
/// over, and there is nothing else to go on from.
fn passed_over(name: &str, edit: impl FnOnce(&Path) + Send + 'static, why: &str) -> Case {
    let edit = |run: &Path| edit(&run.join(CHECKPOINT));
    let message = "{}/run: there is no whole checkpoint to go on from; leave --resume out to start one, or give the \
                   --output of one";
    case(name, RESUME, edit, message).after(format!("Passed over: {{}}/run/{CHECKPOINT}/{why}"))
}

/// One whose own account of itself can't be used, so that not even the run's arguments are known.
fn unread(name: &str, edit: impl FnOnce(&Path) + Send + 'static, why: &str) -> Case {
    refused(name, edit, &format!("{{}}/run/{CHECKPOINT}/{why}"))
}

fn flip(name: &'static str) -> impl FnOnce(&Path) + Send {
    move |folder| {
        let path = folder.join(name);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
}

/// Other bytes for a file of the checkpoint, as if it had been written so.
fn rewrite(name: &'static str, edit: impl FnOnce(Vec<u8>) -> Vec<u8> + Send) -> impl FnOnce(&Path) + Send {
    move |folder| commit(folder, name, &edit(fs::read(folder.join(name)).unwrap()))
}

fn progress(edit: impl FnOnce(&mut Json) + Send) -> impl FnOnce(&Path) + Send {
    rewrite("progress.json", |bytes| {
        let mut json = serde_json::from_slice(&bytes).unwrap();
        edit(&mut json);
        // On lines, so that a place doesn't depend on how long others are.
        format!("{json:#}").into_bytes()
    })
}

fn moments(edit: impl FnOnce(&mut Vec<(String, TensorView<'_>)>) + Send) -> impl FnOnce(&Path) + Send {
    rewrite("first_moments.safetensors", |bytes| {
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors = read.tensors();
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        edit(&mut tensors);
        safetensors::serialize(tensors, None).unwrap()
    })
}

/// One that is refused for what it holds.
fn refused(name: &str, edit: impl FnOnce(&Path) + Send + 'static, message: &str) -> Case {
    case(name, RESUME, |run| edit(&run.join(CHECKPOINT)), message)
}

/// Another command than the run's.
fn other(flags: &str, differences: &str) -> Case {
    case(&format!("other: {flags}"), &format!("{RESUME} {flags}"), |_| (), &another(differences))
}

fn another(differences: &str) -> String {
    format!(
        "the run in {{}}/run was started otherwise: {differences}; give what it was started with, choose another --output, or pass \
         --overwrite"
    )
}

pub fn cases() -> Vec<Case> {
    let (first, second) = ("first_moments.safetensors", "second_moments.safetensors");
    let not_as_committed = |name| format!("{name}: it is not as it was committed");
    let started_with =
        |message: &str| format!("{{}}/run: with the arguments that its run was started with: {message}");
    vec![
        Case::new(
            "checkpoint: none",
            RESUME,
            "{}/run: there is no whole checkpoint to go on from; leave --resume out to start one, or give the --output of one",
        ),
        case(
            "damaged, and the same command",
            AGAIN,
            |run| flip("model.safetensors")(&run.join(CHECKPOINT)),
            "{}/run already holds a run; choose another --output, or pass --overwrite",
        )
        .after(format!("Passed over: {{}}/run/{CHECKPOINT}/{}", not_as_committed("model.safetensors"))),
        passed_over(
            "damaged: the weights",
            flip("model.safetensors"),
            &not_as_committed("model.safetensors"),
        ),
        passed_over("damaged: a moment", flip(second), &not_as_committed(second)),
        passed_over("damaged: the history", flip("history.jsonl"), &not_as_committed("history.jsonl")),
        unread("damaged: the progress", flip("progress.json"), &not_as_committed("progress.json")),
        unread(
            "damaged: the manifest",
            |folder| fs::write(folder.join("manifest.json"), "{").unwrap(),
            "manifest.json: EOF while parsing an object at line 1 column 1",
        ),
        unread(
            "damaged: the manifest is deep",
            |folder| {
                fs::write(folder.join("manifest.json"), "[".repeat(100_000)).unwrap();
            },
            "manifest.json: invalid type: sequence, expected a string at line 1 column 3",
        ),
        passed_over(
            "damaged: no moments",
            |folder| fs::remove_file(folder.join("first_moments.safetensors")).unwrap(),
            "first_moments.safetensors: No such file or directory (os error 2)",
        ),
        passed_over(
            "damaged: a moment is a folder",
            |folder| {
                fs::remove_file(folder.join("first_moments.safetensors")).unwrap();
                fs::create_dir(folder.join("first_moments.safetensors")).unwrap();
            },
            "first_moments.safetensors: it is no file",
        ),
        // What was never finished is no checkpoint, and nothing to tell of.
        case(
            "no manifest",
            RESUME,
            |run| fs::remove_file(run.join(CHECKPOINT).join("manifest.json")).unwrap(),
            "{}/run: there is no whole checkpoint to go on from; leave --resume out to start one, or give the --output of one",
        ),
        unread(
            "progress.json: the step is a text",
            progress(|json| json["step"] = "1".into()),
            "progress.json: invalid type: string \"1\", expected u64 at line 20 column 13",
        ),
        unread(
            "progress.json: a negative epoch",
            progress(|json| json["epoch"] = (-1).into()),
            "progress.json: invalid value: integer `-1`, expected u32 at line 18 column 13",
        ),
        unread(
            "progress.json: no terms",
            progress(|json| drop(json.as_object_mut().unwrap().remove("terms"))),
            "progress.json: missing field `terms` at line 23 column 1",
        ),
        unread(
            "progress.json: the arguments are a text",
            progress(|json| json["arguments"] = "--seed 1".into()),
            "progress.json: invalid type: string \"--seed 1\", expected a sequence at line 2 column 25",
        ),
        unread(
            "progress.json: a list",
            rewrite("progress.json", |_| b"[]".to_vec()),
            "progress.json: invalid length 0, expected struct Progress with 9 elements at line 1 column 2",
        ),
        unread(
            "progress.json: empty",
            rewrite("progress.json", |_| vec![]),
            "progress.json: EOF while parsing a value at line 1 column 0",
        ),
        unread(
            "progress.json: no text",
            rewrite("progress.json", |_| vec![0xff; 9]),
            "progress.json: expected value at line 1 column 1",
        ),
        passed_over(
            "progress.json: not as many epochs as in the history",
            progress(|json| json["epoch"] = 5.into()),
            "history.jsonl: it tells of 6 epochs where 5 are done",
        ),
        passed_over(
            "history.jsonl: no records",
            rewrite("history.jsonl", |_| b"{}\n".to_vec()),
            "history.jsonl: line 1: not an epoch record (missing field `epoch`",
        ),
        passed_over(
            "history.jsonl: empty",
            rewrite("history.jsonl", |_| vec![]),
            "history.jsonl: it tells of 0 epochs where 6 are done",
        ),
        refused(
            "progress.json: a step beyond",
            progress(|json| json["step"] = u64::MAX.into()),
            "{}/run: its checkpoint can't be gone on from: it is after 18446744073709551615 steps, and tells of 6 epochs \
             of 45 steps and 0 more",
        ),
        refused(
            "progress.json: a place beyond the epoch",
            progress(|json| {
                json["within"] = json!({"steps": 46, "examples": 1, "loss": 1.0, "accuracy": 1.0, "seconds": 1.0,
                "step_seconds": 1.0});
                json["step"] = (270 + 46).into();
            }),
            "{}/run: its checkpoint can't be gone on from: it is after 316 steps, and tells of 6 epochs of 45 steps and 46 \
             more",
        ),
        refused(
            "progress.json: another seed",
            progress(|json| json["terms"]["fixed"]["seed"] = 9.into()),
            &another("seed was 9, now 0"),
        ),
        refused(
            "progress.json: an argument that is unknown",
            progress(|json| json["arguments"] = json!(["--unknown"])),
            &started_with("unexpected argument '--unknown' found"),
        ),
        refused(
            "progress.json: an argument that is no number",
            progress(|json| json["arguments"] = json!(["--seed", "x"])),
            &started_with("invalid value 'x' for '--seed <SEED>': invalid digit found in string"),
        ),
        refused(
            "moments: none",
            moments(|tensors| tensors.clear()),
            "{}/run/checkpoints/step-270/model.safetensors: there is no tensor \
             `m.bert.embeddings.word_embeddings.weight`; the nearest name is `v.bert.embeddings.word_embeddings.weight`",
        ),
        refused(
            "moments: one is missing",
            moments(|tensors| drop(tensors.remove(0))),
            "{}/run/checkpoints/step-270/model.safetensors: there is no tensor `m.bert.embeddings.LayerNorm.bias`; the \
             nearest name is `v.bert.embeddings.LayerNorm.bias`",
        ),
        refused(
            "moments: another shape",
            moments(|tensors| {
                let (_, view) = &mut tensors[0];
                let shape = view.shape().iter().copied().chain([1]).collect();
                *view = TensorView::new(view.dtype(), shape, view.data()).unwrap();
            }),
            "{}/run/checkpoints/step-270/first_moments.safetensors: tensor `m.bert.embeddings.LayerNorm.bias` has the shape \
             [64, 1], expected [64]",
        ),
        refused(
            "moments: no safetensors",
            rewrite("second_moments.safetensors", |_| b"text".to_vec()),
            "can't read {}/run/checkpoints/step-270/second_moments.safetensors: not a complete safetensors file: header \
             too small",
        ),
        refused(
            "moments: empty",
            rewrite("first_moments.safetensors", |_| vec![]),
            &format!("can't read {{}}/run/checkpoints/step-270/{first}: the file is empty"),
        ),
        refused(
            "moments in the place of weights",
            |folder| {
                let bytes = fs::read(folder.join("first_moments.safetensors")).unwrap();
                commit(folder, "model.safetensors", &bytes);
            },
            "tensor `m.bert.embeddings.LayerNorm.bias` is in both {}/run/checkpoints/step-270/model.safetensors and \
             {}/run/checkpoints/step-270/first_moments.safetensors",
        ),
        refused(
            "progress.json: a table that is gone",
            progress(|json| json["arguments"] = json!(["--train", "/nowhere/data.csv"])),
            "{}/run: its table /nowhere/data.csv can't be read any more; --train says where it is now",
        ),
        other("--seed 1", "seed was 0, now 1"),
        other("--batch-size 16", "batch_size was 8, now 16"),
        other("--learning-rate 1e-4", "learning_rate was 0.0005, now 0.0001"),
        other("--mask", "model.mask was false, now true; model.zero_padding was not set, now true"),
        other("--dropout 0.5", "model.head.dropout was 0.3, now 0.5"),
        other("--num-classes 5", "model.head.num_classes was 4, now 5"),
        other("--skip-bad-rows --keep-last 5 --seed 2", "seed was 0, now 2"),
        other(
            "--seed 1 --batch-size 16 --learning-rate 1e-4",
            "batch_size was 8, now 16; learning_rate was 0.0005, now 0.0001; seed was 0, now 1",
        ),
        other(
            "--split-seed 1",
            "data was sha256:14c38bf0e71170a5, now sha256:eb5c4982bec24690; split_seed was 42, now 1",
        ),
        other(
            "--stratify",
            "data was sha256:14c38bf0e71170a5, now sha256:4d4c219c29b0bfb4; stratify was not set, now true",
        ),
        other(
            "--dev-size 0.2",
            "data was sha256:14c38bf0e71170a5, now sha256:65ce1e69c839f6ba; dev_size was 0.1, now 0.2",
        ),
        other(
            "--max-length 16",
            "data was sha256:14c38bf0e71170a5, now sha256:5b004dfa496d0765; model.max_length was 24, now 16",
        ),
        other(
            "--labels -1=0,0=2,1=3",
            "data was sha256:14c38bf0e71170a5, now sha256:3f04bdaf5a544d4c; labels was -1=1,0=2,1=3, now -1=0,0=2,1=3",
        ),
        case(
            "other: a word of the table",
            &format!("{RESUME} --train {{}}/data.csv"),
            |run| {
                let table = fs::read_to_string(asset("sample.csv")).unwrap();
                fs::write(run.with_file_name("data.csv"), table.replacen("the", "a", 1)).unwrap();
            },
            &another("data was sha256:14c38bf0e71170a5, now sha256:43e201c17c4f7a70"),
        ),
    ]
}
