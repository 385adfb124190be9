//! What becomes of a run's checkpoints when values, the disk or the files themselves go wrong.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bert_xla::run::{Newest, layout};
use bert_xla::storage::{Folder, MANIFEST};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value as Json, json};

use crate::common::cli::{fails, train};
use crate::common::empty_folder;
use crate::common::runs::{
    FLAGS, check_whole, commit, copy_of_uninterrupted, copy_uninterrupted_to, newest_checkpoint, outcome,
    read_json, run, steps, uninterrupted, went_on_after,
};

/// Every value of every checkpoint is a number.
#[track_caller]
fn check_finite(root: &Path) {
    for step in steps(root) {
        let folder = root.join(layout::CHECKPOINTS).join(layout::checkpoint(step));
        for name in [layout::WEIGHTS, layout::MOMENTS[0], layout::MOMENTS[1]] {
            let bytes = fs::read(folder.join(name)).unwrap();
            for (tensor, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
                let mut values = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                assert!(values.all(f32::is_finite), "step {step}: {name}: {tensor}");
            }
        }
    }
}

const LOWER: &str =
    "; try a lower --learning-rate: that is another run, so with another --output, or with --overwrite";

#[test]
fn a_run_that_diverges_ends_with_its_last_good_checkpoint() {
    let folder = empty_folder("faults_diverged");
    for rate in ["1e10", "1e20", "1e30", "3e38"] {
        let root = folder.join(rate);
        let flags = ["--epochs", "3", "--learning-rate", rate, "--checkpoint-every", "1"];
        // It goes on from there, and comes to the same end.
        for _ in 0..2 {
            let message = fails(&mut train(&root, &flags), 1);
            assert!(message.contains(": the run has diverged; "), "{message}");
            assert!(message.ends_with(LOWER), "{message}");
            let kept = check_whole(&root);
            let last = kept.last().unwrap_or_else(|| panic!("{message}"));
            assert!(message.contains(&format!("; the checkpoint of step {last} is kept; ")), "{message}");
            check_finite(&root);
        }
    }
    // Where there is none, it doesn't say so.
    let root = folder.join("none");
    let flags = ["--epochs", "1", "--learning-rate", "1e30", "--batch-size", "360"];
    let message = fails(&mut train(&root, &flags), 1);
    assert!(
        message.starts_with("error: the loss is NaN after 1 steps: the run has diverged; try"),
        "{message}"
    );
    assert_eq!(steps(&root), [0; 0]);
}

/// What is told to be kept is there, also where training has gone on since it was refused.
#[test]
fn a_checkpoint_that_is_refused_is_not_told_to_be_kept() {
    let root = copy_of_uninterrupted("faults_refused");
    let folder = root.join("checkpoints/step-46");
    let bytes = fs::read(folder.join(layout::MOMENTS[0])).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let table = "m.bert.embeddings.word_embeddings.weight";
    let squares = fs::read(folder.join(layout::MOMENTS[1])).unwrap();
    let squares = SafeTensors::deserialize(&squares).unwrap();
    let squares = squares.tensor(&table.replacen('m', "v", 1)).unwrap();
    // Of a word that no text has: its weight is the only one that overflows, and nothing meets it.
    let unused = squares.data().as_chunks::<4>().0.iter().position(|value| *value == [0; 4]).unwrap();
    let mut values = read.tensor(table).unwrap().data().to_vec();
    values[4 * unused..][..4].copy_from_slice(&3e38f32.to_le_bytes());
    let tensors = read.tensors().into_iter().map(|(name, view)| {
        let data = if name == table { &values[..] } else { view.data() };
        (name, TensorView::new(view.dtype(), view.shape().to_vec(), data).unwrap())
    });
    commit(&folder, layout::MOMENTS[0], &safetensors::serialize(tensors.collect::<Vec<_>>(), None).unwrap());
    let message = fails(&mut train(&root, &["--epochs", "3", "--checkpoint-every", "5"]), 1);
    assert!(
        message.contains("word_embeddings.weight` has values that are no numbers after 50 steps"),
        "{message}"
    );
    assert!(message.contains("; the checkpoint of step 46 is kept; "), "{message}");
    assert_eq!(steps(&root).last(), Some(&46));
}

/// `command` where files may be of so many blocks.
fn with_limit(blocks: u32, command: &Command) -> Command {
    let mut limited = Command::new("sh");
    let script = format!("ulimit -f {blocks}; exec \"$@\"");
    limited.args(["-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited
}

#[test]
fn a_write_that_fails_leaves_the_checkpoint_before() {
    let root = empty_folder("faults_limit").join("run");
    let (code, stderr) = run(&mut train(&root, &["--epochs", "1"]));
    assert_eq!(code, Some(0), "{stderr}");
    let before = outcome(&root);
    // Too little for the weights.
    let command = train(&root, &FLAGS);
    let message = fails(&mut with_limit(2000, &command), 1);
    let expected =
        format!("error: can't write {}: ", root.join("checkpoints/step-25/model.safetensors").display());
    assert!(message.starts_with(&expected) && message.contains("large"), "{message}");
    assert_eq!(steps(&root), [23]);
    assert_eq!(outcome(&root), before);
    let (code, stderr) = run(&mut train(&root, &FLAGS));
    assert_eq!((code, went_on_after(&stderr)), (Some(0), Some(23)), "{stderr}");
    assert_eq!(outcome(&root), *uninterrupted().1);
    check_whole(&root);
}

/// Runs a command into a small disk, then into one that has grown; and copies what is there after each.
const DISK: &str = r#"
set -e
disk=$1 copies=$2
shift 2
mount -t tmpfs -o size=36m tmpfs "$disk"
code=0
"$@" 2> "$copies/said-1" || code=$?
echo $code > "$copies/code-1"
cp -a "$disk/run" "$copies/run-1"
mount -o remount,size=200m "$disk"
code=0
"$@" 2> "$copies/said-2" || code=$?
echo $code > "$copies/code-2"
cp -a "$disk/run" "$copies/run-2"
"#;

#[test]
fn a_full_disk_leaves_what_is_whole_and_the_run_goes_on_when_there_is_room() {
    let folder = empty_folder("faults_full");
    let disk = folder.join("disk");
    fs::create_dir(&disk).unwrap();
    let unshare = ["--user", "--map-root-user", "--mount"];
    match Command::new("unshare").args(unshare).args(["mount", "-t", "tmpfs", "tmpfs"]).arg(&disk).output() {
        Ok(tried) if tried.status.success() => {}
        tried => return eprintln!("skipped: no namespace: {tried:?}"),
    }
    let command = train(&disk.join("run"), &FLAGS);
    let mut shell = Command::new("unshare");
    shell.args(unshare).args(["sh", "-c", DISK, "sh"]).arg(&disk).arg(&folder);
    shell.arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let (code, stderr) = run(&mut shell);
    assert_eq!(code, Some(0), "{stderr}");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let said = read("said-1");
    let errors = said.lines().filter(|line| line.starts_with("error: ")).collect::<Vec<_>>();
    assert_eq!((read("code-1").trim(), errors.len()), ("1", 1), "{said}");
    assert!(errors[0].starts_with("error: can't write ") && errors[0].contains("No space left"), "{said}");
    let left = steps(&folder.join("run-1"));
    assert!(!left.is_empty(), "{said}");
    assert_eq!((read("code-2").trim(), went_on_after(&read("said-2"))), ("0", left.last().copied()));
    assert_eq!(outcome(&folder.join("run-2")), *uninterrupted().1);
    check_whole(&folder.join("run-2"));
}

/// A bit of a folder's files: of any file, or of any byte, each as likely as the others.
fn any_bit(folder: &Path, random: &mut fastrand::Rng) -> (PathBuf, u64) {
    let mut files = Folder::new(folder).list().unwrap();
    if random.bool() {
        files = vec![files.swap_remove(random.usize(..files.len()))];
    }
    let size = |file: &String| fs::metadata(folder.join(file)).unwrap().len();
    let mut byte = random.u64(..files.iter().map(size).sum::<u64>());
    let is_in = |file: &&String| {
        let is_in = byte < size(file);
        byte -= if is_in { 0 } else { size(file) };
        is_in
    };
    let file = folder.join(files.iter().find(is_in).unwrap());
    (file, 8 * byte + random.u64(..8))
}

fn flip(file: &Path, bit: u64) {
    let file = fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << (bit % 8)], bit / 8).unwrap();
}

#[test]
fn a_flipped_bit_is_noticed_and_the_checkpoint_before_goes_on() {
    let flips = std::env::var("BERT_XLA_FLIPS").map_or(8, |flips| flips.parse().unwrap());
    let root = copy_of_uninterrupted("faults_bits");
    let newest = root.join(newest_checkpoint(&root));
    let mut random = fastrand::Rng::with_seed(flips);
    for _ in 0..flips {
        let (file, bit) = any_bit(&newest, &mut random);
        let context = format!("bit {bit} of {}", file.display());
        flip(&file, bit);
        let Newest { checkpoint, damaged, .. } = Newest::find(&Folder::new(&root)).unwrap();
        let messages = damaged.iter().map(|error| error.to_string()).collect::<Vec<_>>();
        assert!(messages.len() == 1 && messages[0].contains("/step-46/"), "{context}: {messages:?}");
        assert_eq!(checkpoint.map(|checkpoint| checkpoint.progress.step), Some(45), "{context}");
        flip(&file, bit);
    }
    let Newest { checkpoint, damaged, .. } = Newest::find(&Folder::new(&root)).unwrap();
    assert_eq!((checkpoint.unwrap().progress.step, damaged.len()), (46, 0));

    let moments = newest.join(layout::MOMENTS[1]);
    flip(&moments, 1_000_000);
    let (code, stderr) = run(&mut train(&root, &FLAGS));
    assert_eq!((code, went_on_after(&stderr)), (Some(0), Some(45)), "{stderr}");
    let passed_over = format!("Passed over: {}: it is not as it was committed\n", moments.display());
    assert!(stderr.contains(&passed_over), "{stderr}");
    assert_eq!(outcome(&root), *uninterrupted().1);
}

/// A process that is killed may have finished a checkpoint and not named it in `run.json`.
#[test]
fn a_checkpoint_that_was_not_named_yet_counts_all_the_same() {
    let root = copy_of_uninterrupted("faults_pointer");
    let whole = read_json(&root.join(layout::RUN));
    let mut before = whole.clone();
    let manifest = read_json(&root.join("checkpoints/step-23").join(MANIFEST));
    let of_model = |file: &&Json| layout::FILES.iter().any(|name| file["name"] == **name);
    before["files"] = manifest["files"].as_array().unwrap().iter().filter(of_model).cloned().collect();
    before["checkpoint"] = json!("checkpoints/step-23");
    before["best"] = before["checkpoint"].clone();
    before["newest"] = json!("checkpoints/step-45");
    fs::write(root.join(layout::RUN), before.to_string()).unwrap();
    for name in [layout::HISTORY, layout::DEV_PREDICTIONS] {
        fs::copy(root.join("checkpoints/step-23").join(name), root.join(name)).unwrap();
    }
    let (code, stderr) = run(&mut train(&root, &FLAGS));
    assert!(code == Some(0) && stderr.contains("Nothing to do"), "{stderr}");
    assert_eq!(read_json(&root.join(layout::RUN)), whole);
    assert_eq!(outcome(&root), *uninterrupted().1);
}

/// What a checkpoint holds that no version of this program writes is refused in one line.
#[test]
fn a_checkpoint_of_garbage_is_refused_in_one_line() {
    let root = copy_of_uninterrupted("faults_garbage");
    let read = |root: &Path, name: &str| fs::read(root.join("checkpoints/step-46").join(name)).unwrap();
    let progress = |change: &dyn Fn(&mut Json)| {
        let mut progress: Json = serde_json::from_slice(&read(&root, layout::PROGRESS)).unwrap();
        change(&mut progress);
        progress.to_string().into_bytes()
    };
    type Tensors<'t> = Vec<(String, TensorView<'t>)>;
    let moments = |change: &dyn Fn(&mut Tensors<'_>)| {
        let bytes = read(&root, layout::MOMENTS[0]);
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors = tensors.tensors();
        change(&mut tensors);
        safetensors::serialize(tensors, None).unwrap()
    };
    let other_shape = |tensors: &mut Tensors<'_>| {
        let (_, view) = tensors.iter_mut().find(|(_, view)| view.shape().len() == 2).unwrap();
        let shape = view.shape().iter().rev().copied().chain([1]).collect();
        *view = TensorView::new(view.dtype(), shape, view.data()).unwrap();
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            layout::PROGRESS,
            progress(&|progress| progress["step"] = json!("46")),
            "progress.json: invalid type",
        ),
        (
            layout::PROGRESS,
            progress(&|progress| progress["epoch"] = json!(-1)),
            "progress.json: invalid value",
        ),
        (layout::PROGRESS, progress(&|progress| progress["terms"] = json!([])), "progress.json: invalid"),
        (layout::PROGRESS, b"[]".to_vec(), "progress.json: "),
        (layout::PROGRESS, vec![0xff; 9], "progress.json: "),
        (
            layout::PROGRESS,
            progress(&|progress| progress["terms"]["fixed"]["seed"] = json!({"a": null})),
            "seed was {\"a\":null}, now 0",
        ),
        (layout::HISTORY, b"{}\n".to_vec(), "history.jsonl: line 1: not an epoch record"),
        (layout::HISTORY, vec![0xff; 9], "history.jsonl: line 1: not an epoch record"),
        (layout::MOMENTS[0], moments(&other_shape), "has the shape"),
        (layout::MOMENTS[0], moments(&|tensors| tensors.clear()), "there is no tensor"),
        (layout::MOMENTS[0], b"text".to_vec(), "first_moments.safetensors"),
        (layout::MOMENTS[1], vec![], "second_moments.safetensors"),
        (layout::WEIGHTS, read(&root, layout::MOMENTS[0]), "tensor `"),
    ];
    for (name, bytes, part) in cases {
        copy_uninterrupted_to(&root);
        // Nothing else to go on from.
        for step in [23, 45] {
            fs::remove_dir_all(root.join(layout::CHECKPOINTS).join(layout::checkpoint(step))).unwrap();
        }
        commit(&root.join("checkpoints/step-46"), name, &bytes);
        let (code, stderr) = run(&mut train(&root, &["--epochs", "3", "--checkpoint-every", "5"]));
        let errors = stderr.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!((code, errors), (Some(2), 1), "{name}: {stderr}");
        assert!(stderr.contains(part) && !stderr.contains("panicked"), "{name}: {part}: {stderr}");
    }
    // Numbers that don't go together: whatever comes of them, it is no panic.
    let within = json!({"steps": u64::MAX, "examples": u64::MAX, "loss": 1e308, "accuracy": -1.0, "seconds": -1.0,
        "step_seconds": 0.0});
    let changes = [
        json!({"step": u64::MAX}),
        json!({"epoch": u32::MAX}),
        json!({"best": {"epoch": 9, "val_loss": -1.0}}),
        json!({"epoch": 1, "within": within}),
    ];
    for change in &changes {
        copy_uninterrupted_to(&root);
        let bytes = progress(&|progress| {
            let entries = change.as_object().unwrap().clone();
            progress.as_object_mut().unwrap().extend(entries);
        });
        commit(&root.join("checkpoints/step-46"), layout::PROGRESS, &bytes);
        let (code, stderr) = run(&mut train(&root, &["--epochs", "3"]));
        assert!(code.is_some_and(|code| code < 3) && !stderr.contains("panicked"), "{code:?}: {stderr}");
    }
}
