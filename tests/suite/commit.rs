//! A run's commits: whole or not there, wherever a process is killed, and nothing left lying about.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bert_xla::data::{LabelMap, Tokenizer};
use bert_xla::nn::Weight;
use bert_xla::report::{EpochRecord, History};
use bert_xla::run::{
    Description, DevPredictions, Error, Progress, Provenance, Run, Snapshot, Tensor, Terms, Writer, layout,
    model_folder,
};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::common::cli::text;
use crate::common::training::{MAX_LENGTH, files, model, original};
use crate::common::{empty_folder, killer};

/// Commits a run in which every file tells the step: all weights have it as their value, and so do loss and
/// probabilities.
fn commit(root: &Path, step: u64) {
    let (model, labels) = (model(0.1), LabelMap::default());
    let tokenizer = Tokenizer::open(&files().tokenizer, MAX_LENGTH).unwrap();
    let mut history = History::default();
    history.push(EpochRecord {
        epoch: 1,
        step,
        loss: step as f64,
        accuracy: 0.5,
        val_loss: None,
        val_accuracy: None,
        val_f1: None,
        seconds: 1.0,
        step_ms: 1.0,
        examples_per_second: 1.0,
        learning_rate: 1e-5,
        kept: None,
    });
    let tensor = |name: String, dims: &[usize]| Tensor {
        name,
        dims: dims.to_vec(),
        values: vec![step as f32; dims.iter().product()],
    };
    let tensors = |prefix: &str| {
        let named = |weight: &Weight| tensor(format!("{prefix}{}", weight.name), &weight.shape.dims);
        model.weights().iter().map(named).collect::<Vec<_>>()
    };
    let (ids, classes) = (["a"].into_iter().collect(), [1]);
    let description =
        Description::new(&original(), &tokenizer, &model, &labels, Provenance::default()).unwrap();
    let mut writer = Writer::open(root).unwrap();
    let snapshot = Snapshot {
        progress: Progress {
            version: "0.0.0".to_owned(),
            run: writer.start(1, true, None).unwrap().unwrap(),
            arguments: vec![],
            terms: Terms::default(),
            step,
            epoch: 1,
            within: None,
            best: None,
            keeps_best: false,
        },
        history,
        predictions: Some(DevPredictions {
            rows: &[0],
            files: &[0],
            ids: &ids,
            classes: &classes,
            probabilities: vec![step as f32; 4],
            num_classes: 4,
            labels: &labels,
        }),
        weights: tensors(""),
        moments: [tensors("m."), tensors("v.")],
        logs: vec![],
    };
    writer.commit(&description, &snapshot).unwrap();
}

/// Opens a folder and starts a run in it.
fn start(root: &Path, replace: bool) -> Result<Writer, Error> {
    let mut writer = Writer::open(root)?;
    writer.start(1, replace, None)?;
    Ok(writer)
}

/// The step that our readers see, after checking that every file in their folder is of it.
#[track_caller]
fn step_of(root: &Path) -> u64 {
    Run::open(root).unwrap();
    let folder = model_folder(root).unwrap();
    let history = fs::read_to_string(folder.join(layout::HISTORY)).unwrap();
    let history: Json = serde_json::from_str(history.trim()).unwrap();
    let step = history["step"].as_u64().unwrap();
    let weights = fs::read(folder.join(layout::WEIGHTS)).unwrap();
    let weights = safetensors::SafeTensors::deserialize(&weights).unwrap();
    for (name, tensor) in weights.iter() {
        let (values, _) = tensor.data().as_chunks();
        assert!(values.iter().all(|value| f32::from_le_bytes(*value) == step as f32), "{name}");
    }
    let predictions = fs::read_to_string(folder.join(layout::DEV_PREDICTIONS)).unwrap();
    assert!(predictions.contains(&format!(",{:?}", step as f32)), "{predictions}");
    // By a reader of its own.
    let manifest: Json = serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    let listed = manifest["files"].as_array().unwrap();
    for file in listed {
        let bytes = fs::read(folder.join(file["name"].as_str().unwrap())).unwrap();
        let hash = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            (file["size"].as_u64(), file["sha256"].as_str()),
            (Some(bytes.len() as u64), Some(&*hash))
        );
    }
    let names = listed.iter().map(|file| file["name"].as_str().unwrap()).collect::<BTreeSet<_>>();
    assert_eq!(names, layout::FILES.into_iter().chain(layout::TRAINING_FILES).collect());
    step
}

/// All files and folders under `root`, relative to it.
fn tree(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            found.insert(path.strip_prefix(root).unwrap().to_owned());
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

/// Nothing but the run: these checkpoints, and the files of the first of them once more beside `run.json`.
#[track_caller]
fn check_tree(root: &Path, checkpoints: &[&str]) {
    let mut expected = BTreeSet::from([layout::RUN.into(), layout::CHECKPOINTS.into()]);
    expected.extend(layout::FILES.map(PathBuf::from));
    for checkpoint in checkpoints {
        let folder = PathBuf::from(layout::CHECKPOINTS).join(checkpoint);
        expected
            .extend(layout::FILES.into_iter().chain(layout::TRAINING_FILES).map(|name| folder.join(name)));
        expected.extend([folder.join("manifest.json"), folder]);
    }
    assert_eq!(tree(root), expected);
    let current = root.join(layout::CHECKPOINTS).join(checkpoints[0]);
    for name in layout::FILES {
        assert_eq!(fs::read(root.join(name)).unwrap(), fs::read(current.join(name)).unwrap(), "{name}");
    }
    // Whoever writes into the one leaves the other as it is.
    let inode = |folder: &Path| fs::metadata(folder.join(layout::WEIGHTS)).unwrap().ino();
    assert_ne!(inode(root), inode(&current));
}

/// What a process that is killed does: see [`kill`].
#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn commits_in_a_process_of_its_own() {
    let Some(root) = std::env::var_os("COMMIT_TO") else { return };
    commit(Path::new(&root), 2);
}

/// Commits step 2 in a process that is killed before the `at`-th thing that it does to a file; false if it came to its
/// end before that.
fn kill(library: &Path, root: &Path, at: usize) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "commit::commits_in_a_process_of_its_own", "--ignored", "--quiet"]);
    let child = child.env("LD_PRELOAD", library).env("KILL_AT", at.to_string()).env("COMMIT_TO", root);
    let ended = child.output().unwrap();
    assert!(ended.status.success() || ended.status.signal() == Some(9), "{}", text(ended.stdout));
    !ended.status.success()
}

/// A copy.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn a_kill_anywhere_leaves_one_whole_epoch_and_the_next_run_no_stray_file() {
    let Some(library) = killer("commit_killer") else { return };
    let folder = empty_folder("commit_killed");
    let (first, root) = (folder.join("first"), folder.join("run"));
    commit(&first, 1);
    check_tree(&first, &["step-1"]);
    let mut seen = vec![];
    loop {
        copy(&first, &root);
        if !kill(&library, &root, seen.len() + 1) {
            break;
        }
        seen.push(step_of(&root));
        commit(&root, 3);
        assert_eq!(step_of(&root), 3);
        check_tree(&root, &["step-3", &format!("step-{}", seen[seen.len() - 1])]);
    }
    // Nothing of 2 before it counts, and nothing of 1 after.
    assert!(seen.is_sorted() && seen.contains(&1) && seen.contains(&2), "{seen:?}");
    assert!(seen.len() >= 20, "{} kills", seen.len());
    assert_eq!(step_of(&root), 2);
    check_tree(&root, &["step-2", "step-1"]);
    eprintln!(
        "{} kills, {} of them after the commit",
        seen.len(),
        seen.iter().filter(|step| **step == 2).count()
    );
}

#[test]
fn a_first_commit_that_is_cut_short_is_no_run() {
    let Some(library) = killer("commit_first_killer") else { return };
    let root = empty_folder("commit_first").join("run");
    let mut runs = vec![];
    loop {
        let _ = fs::remove_dir_all(&root);
        if !kill(&library, &root, runs.len() + 1) {
            break;
        }
        // Without leave to replace anything.
        let is_run = start(&root, false).is_err();
        assert_eq!(Run::open(&root).is_ok(), is_run);
        runs.push(is_run);
    }
    assert!(runs.is_sorted() && runs.contains(&true) && runs.contains(&false), "{runs:?}");
}

#[test]
fn the_same_step_again_replaces_the_run_all_the_same() {
    let root = empty_folder("commit_again").join("run");
    commit(&root, 1);
    // A name is free again when the commit after the next has removed it.
    for checkpoints in [["step-1-2", "step-1"], ["step-1-3", "step-1-2"], ["step-1", "step-1-3"]] {
        commit(&root, 1);
        assert_eq!(step_of(&root), 1);
        check_tree(&root, &checkpoints);
    }
}

#[test]
fn the_commit_before_stays_for_those_who_read_it() {
    let folder = empty_folder("commit_before");
    let (root, copy_of_pointer) = (folder.join("run"), folder.join("run.json"));
    commit(&root, 1);
    fs::copy(root.join(layout::RUN), &copy_of_pointer).unwrap();
    commit(&root, 2);
    // A copy that took the pointer before the commit, and the rest after it.
    let copied = folder.join("copied");
    copy(&root, &copied);
    fs::copy(&copy_of_pointer, copied.join(layout::RUN)).unwrap();
    assert_eq!((step_of(&copied), step_of(&root)), (1, 2));
    commit(&root, 3);
    check_tree(&root, &["step-3", "step-2"]);
}

/// Whatever is not ours stays, and so does what would be replaced, unless it may be.
#[test]
fn other_peoples_files_stay() {
    let folder = empty_folder("commit_others");
    let root = folder.join("run");
    let elsewhere = folder.join("elsewhere");
    let files = [
        "checkpoints/epoch=3.ckpt",
        "checkpoints/best/model.pt",
        "checkpoints/step-7/model.pt",
        "checkpoints/step-x/config.json",
        "checkpoints/step-9/config.json",
        "checkpoints/step-9/model.safetensors",
        ".movie.part",
        ".labels.csv.1-0.part",
        "notes.txt",
    ];
    for name in files {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), name).unwrap();
    }
    // Ours, not finished.
    fs::create_dir_all(root.join("checkpoints/step-8")).unwrap();
    fs::write(root.join("checkpoints/step-8").join(layout::PROGRESS), "{}").unwrap();
    fs::write(root.join("checkpoints/step-8").join(layout::CONFIG), "{").unwrap();
    fs::write(root.join(".config.json.12-0.part"), "{").unwrap();
    for step in 1..=3 {
        commit(&root, step);
    }
    for name in files {
        assert_eq!(fs::read_to_string(root.join(name)).unwrap(), name);
    }
    assert!(!root.join("checkpoints/step-8").exists() && !root.join(".config.json.12-0.part").exists());
    assert!(!root.join("checkpoints/step-1").exists());

    // A folder of checkpoints that others share.
    let shared = folder.join("shared");
    commit(&elsewhere, 5);
    fs::create_dir_all(&shared).unwrap();
    std::os::unix::fs::symlink(elsewhere.join(layout::CHECKPOINTS), shared.join(layout::CHECKPOINTS))
        .unwrap();
    for step in 5..=8 {
        commit(&shared, step);
    }
    assert_eq!((step_of(&shared), step_of(&elsewhere)), (8, 5));

    for name in [layout::CONFIG, layout::HISTORY, layout::RUN] {
        let root = empty_folder("commit_holds");
        fs::write(root.join(name), "{}").unwrap();
        let error = start(&root, false).err().unwrap();
        assert!(error.is_input_error() && error.to_string().contains("already holds"), "{error}");
        assert_eq!(tree(&root), BTreeSet::from([name.into()]));
    }
}

#[test]
fn one_process_writes_to_a_folder_at_a_time() {
    let root = empty_folder("commit_lock").join("run");
    let first = start(&root, false).unwrap();
    let error = start(&root, true).err().unwrap();
    assert!(error.is_input_error(), "{error}");
    assert!(error.to_string().ends_with("run: another process is writing a run there"), "{error}");
    drop(first);
    start(&root, false).unwrap();
}

#[test]
fn a_folder_that_cant_take_a_run_is_told_before_it_is_trained() {
    let folder = empty_folder("commit_unwritable");
    fs::create_dir_all(folder.join("a/history.jsonl")).unwrap();
    fs::create_dir_all(folder.join("b")).unwrap();
    fs::write(folder.join("b/checkpoints"), "a file").unwrap();
    for (name, part) in [("a", "history.jsonl"), ("b", "checkpoints")] {
        let error = start(&folder.join(name), true).err().unwrap();
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn readers_go_by_the_pointer_alone() {
    let root = empty_folder("commit_pointer").join("run");
    commit(&root, 1);
    // A newer checkpoint that was never committed.
    fs::create_dir_all(root.join("checkpoints/step-9")).unwrap();
    fs::write(root.join("checkpoints/step-9").join(layout::WEIGHTS), "half").unwrap();
    assert_eq!(step_of(&root), 1);
    // What others may do to the files that are there for them: changed in place, replaced, removed.
    fs::write(root.join(layout::CONFIG), "text").unwrap();
    fs::write(root.join("new"), "text").unwrap();
    fs::rename(root.join("new"), root.join(layout::TOKENIZER)).unwrap();
    fs::remove_file(root.join(layout::WEIGHTS)).unwrap();
    assert_eq!(step_of(&root), 1);

    let whole = fs::read(root.join(layout::RUN)).unwrap();
    let refused = |pointer: &Json| {
        fs::write(root.join(layout::RUN), pointer.to_string()).unwrap();
        Run::open(&root).err().map(|error| (error.is_input_error(), error.to_string())).unwrap()
    };
    let mut pointer: Json = serde_json::from_slice(&whole).unwrap();
    pointer["checkpoint"] = "checkpoints/step-9".into();
    let (is_input_error, message) = refused(&pointer);
    assert!(is_input_error && message.contains("step-9/manifest.json: there is none"), "{message}");
    for elsewhere in ["checkpoints/../..", "checkpoints/", "/etc", "checkpoints/.."] {
        pointer["checkpoint"] = elsewhere.into();
        let (is_input_error, message) = refused(&pointer);
        assert!(is_input_error && message.contains("is no checkpoint of this run"), "{message}");
    }
    let (is_input_error, message) = refused(&Json::from("text"));
    // Somebody else's file of that name says nothing of a run: the folder is a model's, and here a broken one.
    assert!(is_input_error && message.contains("model.safetensors"), "{message}");
    fs::write(root.join(layout::RUN), "{").unwrap();
    assert!(Run::open(&root).err().unwrap().is_input_error());
}

#[test]
fn what_is_not_as_it_was_committed_is_refused_by_name() {
    let folder = empty_folder("commit_damaged");
    let (first, root) = (folder.join("first"), folder.join("run"));
    commit(&first, 1);
    let error = |root: &Path| {
        let error = Run::open(root).err().unwrap();
        assert!(error.is_input_error(), "{error}");
        error.to_string()
    };
    let change = |root: &Path, name: &str, edit: fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(root.join(name)).unwrap();
        edit(&mut bytes);
        fs::write(root.join(name), bytes).unwrap();
    };
    copy(&first, &root);
    let checkpoint = root.join("checkpoints/step-1");
    change(&checkpoint, layout::WEIGHTS, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let message = error(&root);
    assert!(message.ends_with("step-1/model.safetensors: it is not as it was committed"), "{message}");
    change(&checkpoint, layout::WEIGHTS, |bytes| bytes.truncate(100));
    let message = error(&root);
    assert!(message.contains("step-1/model.safetensors: it has 100 bytes where"), "{message}");

    // Without its checkpoints, a run is read from the files beside run.json, if they are those.
    copy(&first, &root);
    fs::remove_dir_all(root.join(layout::CHECKPOINTS)).unwrap();
    assert_eq!(model_folder(&root).unwrap(), root);
    Run::open(&root).unwrap();
    change(&root, layout::CONFIG, |bytes| bytes.push(b' '));
    let message = error(&root);
    assert!(message.contains("run/config.json: it has "), "{message}");
}
