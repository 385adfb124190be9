//! A run's commits: whole or not there, wherever a process is killed, and nothing left lying about.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bert_xla::data::{LabelMap, Tokenizer};
use bert_xla::report::{EpochRecord, History};
use bert_xla::run::{Description, DevPredictions, Run, Snapshot, Tensors, Writer, layout, model_folder};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::common::cli::{asset, text};
use crate::common::empty_folder;
use crate::common::training::{MAX_LENGTH, files, model};

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
        seconds: 1.0,
        step_ms: 1.0,
        examples_per_second: 1.0,
        learning_rate: 1e-5,
    });
    let weights = model.weights();
    let mut bytes = |i: usize| {
        let values = vec![step as f32; weights[i].shape.num_elements()];
        Ok(bytemuck::cast_slice(&values).to_vec())
    };
    let snapshot = Snapshot {
        step,
        description: &Description::new(&files(), &tokenizer, &model, &labels).unwrap(),
        history: &history,
        predictions: DevPredictions {
            rows: &[0],
            ids: &["a".to_owned()],
            classes: &[1],
            probabilities: &[step as f32; 4],
            num_classes: 4,
            labels: &labels,
        },
        weights: Tensors {
            names: weights.iter().map(|weight| (weight.name.clone(), weight.shape.clone())).collect(),
            bytes: &mut bytes,
        },
    };
    Writer::create(root, true).unwrap().commit(snapshot).unwrap();
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
    assert_eq!(names, layout::FILES.into_iter().collect());
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

/// Nothing but the run: one checkpoint, and its files once more beside `run.json`, as the same files.
#[track_caller]
fn check_tree(root: &Path, checkpoint: &str) {
    let folder = PathBuf::from(layout::CHECKPOINTS).join(checkpoint);
    let mut expected =
        BTreeSet::from([layout::RUN.into(), layout::CHECKPOINTS.into(), folder.join("manifest.json")]);
    for name in layout::FILES {
        expected.insert(name.into());
        expected.insert(folder.join(name));
        let inode = |path: PathBuf| fs::metadata(root.join(path)).unwrap().ino();
        assert_eq!(inode(name.into()), inode(folder.join(name)), "{name}");
    }
    expected.insert(folder);
    assert_eq!(tree(root), expected);
}

/// What a process that is killed does: see [`kill`].
#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn commits_in_a_process_of_its_own() {
    let Some(root) = std::env::var_os("COMMIT_TO") else { return };
    commit(Path::new(&root), 2);
}

/// Builds the library that kills; without a C compiler, says so and gives `None`: the test is skipped.
fn killer(name: &str) -> Option<PathBuf> {
    let library = empty_folder(name).join("kill_at.so");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library);
    match compile.arg(asset("../tests/fixtures/kill_at.c")).arg("-ldl").output() {
        Ok(compiled) => {
            assert!(compiled.status.success(), "{}", text(compiled.stderr));
            Some(library)
        }
        Err(error) => {
            eprintln!("skipped: cc: {error}");
            None
        }
    }
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

/// A copy, hard links as they are.
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
    check_tree(&first, "step-1");
    let mut seen = vec![];
    loop {
        copy(&first, &root);
        if !kill(&library, &root, seen.len() + 1) {
            break;
        }
        seen.push(step_of(&root));
        commit(&root, 3);
        assert_eq!(step_of(&root), 3);
        check_tree(&root, "step-3");
    }
    // Nothing of 2 before it counts, and nothing of 1 after.
    assert!(seen.is_sorted() && seen.contains(&1) && seen.contains(&2), "{seen:?}");
    assert!(seen.len() >= 20, "{} kills", seen.len());
    assert_eq!(step_of(&root), 2);
    check_tree(&root, "step-2");
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
        let is_run = root.join(layout::RUN).exists();
        assert_eq!(Run::open(&root).is_ok(), is_run);
        // Without leave to replace anything.
        assert_eq!(Writer::create(&root, false).is_ok(), !is_run);
        runs.push(is_run);
    }
    assert!(runs.is_sorted() && runs.contains(&true) && runs.contains(&false), "{runs:?}");
}

#[test]
fn the_same_step_again_replaces_the_run_all_the_same() {
    let root = empty_folder("commit_again").join("run");
    for expected in ["step-1", "step-1-again", "step-1"] {
        commit(&root, 1);
        assert_eq!(step_of(&root), 1);
        check_tree(&root, expected);
    }
}

#[test]
fn readers_go_by_the_pointer_alone() {
    let root = empty_folder("commit_pointer").join("run");
    commit(&root, 1);
    // What others may do to the files that are there for them.
    fs::remove_file(root.join(layout::WEIGHTS)).unwrap();
    fs::write(root.join("new"), "text").unwrap();
    fs::rename(root.join("new"), root.join(layout::CONFIG)).unwrap();
    assert_eq!(step_of(&root), 1);
    // A newer checkpoint that was never committed.
    fs::create_dir_all(root.join("checkpoints/step-9")).unwrap();
    fs::write(root.join("checkpoints/step-9").join(layout::WEIGHTS), "half").unwrap();
    assert_eq!(step_of(&root), 1);
    let pointer = |checkpoint: &str| {
        fs::write(root.join(layout::RUN), format!("{{\"checkpoint\": \"{checkpoint}\"}}")).unwrap();
        Run::open(&root).err().map(|error| (error.is_input_error(), error.to_string())).unwrap()
    };
    let (is_input_error, message) = pointer("checkpoints/step-9");
    assert!(is_input_error && message.contains("step-9: there is no manifest.json"), "{message}");
    for elsewhere in ["checkpoints/../..", "checkpoints/", "/etc", "checkpoints/.."] {
        let (is_input_error, message) = pointer(elsewhere);
        assert!(is_input_error && message.contains("is no checkpoint of this run"), "{message}");
    }
    // A file that isn't as it was written.
    pointer("checkpoints/step-1-gone");
    fs::write(root.join(layout::RUN), "{\"checkpoint\": \"checkpoints/step-1\"}").unwrap();
    let weights = root.join("checkpoints/step-1").join(layout::WEIGHTS);
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let error = Run::open(&root).err().unwrap().to_string();
    assert!(error.contains("model.safetensors") && error.contains("manifest.json says"), "{error}");
}
