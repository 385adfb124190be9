//! Runs that are cut short, and what they leave.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use bert_xla::run::layout;
use bert_xla::storage::{Folder, MANIFEST, Manifest, sha256};
use serde_json::Value as Json;

use super::cli::{json_lines, text, train};
use super::empty_folder;

/// All that a run has come to, as it must be however often it was cut short: hashes of files, and what they tell but for
/// times and for how the run was started.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub hashes: BTreeMap<String, String>,
    pub history: Vec<Json>,
    card: String,
    pub steps: Vec<Json>,
    progress: Json,
}

/// What the run's newest checkpoint holds, which must be that of a whole epoch, and what is beside `run.json`.
#[track_caller]
pub fn outcome(run: &Path) -> Outcome {
    let newest = PathBuf::from(newest_checkpoint(run));
    let same = layout::FILES.into_iter().filter(|name| ![layout::HISTORY, layout::CARD].contains(name));
    let beside = same.clone().map(PathBuf::from);
    let within = same.chain(layout::MOMENTS).map(|name| newest.join(name));
    let hash = |path: PathBuf| {
        let bytes = fs::read(run.join(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // A checkpoint of the same step may have another name.
        let folder = if path.starts_with(&newest) { "newest/" } else { "" };
        let name = format!("{folder}{}", path.file_name().unwrap().display());
        (name, sha256(&mut &*bytes).unwrap().1)
    };
    let history = fs::read_to_string(run.join(layout::HISTORY)).unwrap();
    assert_eq!(history, fs::read_to_string(run.join(&newest).join(layout::HISTORY)).unwrap());
    let mut history = json_lines(&history);
    for record in &mut history {
        for name in ["seconds", "step_ms", "examples_per_second"] {
            let time = record.as_object_mut().unwrap().remove(name).unwrap();
            // A process that has done no step of the epoch has none to tell.
            let is_unknown = name == "step_ms" && time.is_null();
            assert!(is_unknown || time.as_f64().is_some_and(|time| time > 0.0), "{name}: {time}");
        }
    }
    let mut progress = read_json(&run.join(&newest).join(layout::PROGRESS));
    for own in ["run", "arguments"] {
        progress.as_object_mut().unwrap().remove(own).unwrap();
    }
    let card = fs::read_to_string(run.join(layout::CARD)).unwrap();
    assert_eq!(card, fs::read_to_string(run.join(&newest).join(layout::CARD)).unwrap());
    let is_command = |line: &&str| line.starts_with("bert-xla train ");
    let card = card.lines().filter(|line| !is_command(line)).collect::<Vec<_>>().join("\n");
    // Of later ones, the run may be gone on with once more.
    let is_of_newest = |step: &Json| step["step"].as_u64() <= progress["step"].as_u64();
    let steps = fs::read_to_string(run.join(layout::STEPS)).unwrap();
    let steps = steps.split_inclusive('\n').filter(|line| line.ends_with('\n')).flat_map(json_lines);
    let steps = steps.filter(is_of_newest).map(without_times).collect();
    Outcome { hashes: beside.chain(within).map(hash).collect(), history, card, steps, progress }
}

/// A step's line, but for times.
#[track_caller]
fn without_times(mut step: Json) -> Json {
    for name in ["step_ms", "examples_per_second"] {
        let time = step.as_object_mut().unwrap().remove(name).unwrap();
        assert!(time.as_f64().is_some_and(|time| time > 0.0), "{name}: {time}");
    }
    step
}

/// Two epochs of 23 steps.
pub const FLAGS: [&str; 4] = ["--epochs", "2", "--checkpoint-every", "5"];

/// The folder of a run with these that was never cut short, and what it came to. It is for reading alone.
pub fn uninterrupted() -> (&'static Path, &'static Outcome) {
    static RUN: OnceLock<(PathBuf, Outcome)> = OnceLock::new();
    let (root, outcome) = RUN.get_or_init(|| {
        let root = empty_folder("resume_uninterrupted").join("run");
        let (code, stderr) = run(&mut train(&root, &FLAGS));
        assert_eq!(code, Some(0), "{stderr}");
        let outcome = outcome(&root);
        (root, outcome)
    });
    (root, outcome)
}

/// Trains to the end, and gives what was said.
#[track_caller]
pub fn trains(command: &mut Command) -> String {
    let (code, stderr) = run(command);
    assert_eq!(code, Some(0), "{stderr}");
    stderr
}

/// A copy of the run that was never cut short: its checkpoints are those of the steps 23, 45 and 46.
pub fn copy_of_uninterrupted(name: &str) -> PathBuf {
    let root = empty_folder(name).join("run");
    copy_uninterrupted_to(&root);
    root
}

/// Puts one in the place of `root`.
pub fn copy_uninterrupted_to(root: &Path) {
    let _ = fs::remove_dir_all(root);
    fs::create_dir_all(root.parent().unwrap()).unwrap();
    assert!(Command::new("cp").arg("-a").arg(uninterrupted().0).arg(root).status().unwrap().success());
}

pub fn read_json(path: &Path) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The path in `run` of the checkpoint that `run.json` tells to be the newest.
#[track_caller]
pub fn newest_checkpoint(run: &Path) -> String {
    read_json(&run.join(layout::RUN))["newest"].as_str().unwrap().to_owned()
}

/// Replaces a file of a checkpoint, as if it had been committed so.
pub fn commit(folder: &Path, name: &str, bytes: &[u8]) {
    fs::remove_file(folder.join(name)).unwrap();
    fs::write(folder.join(name), bytes).unwrap();
    let path = folder.join(MANIFEST);
    let mut manifest = read_json(&path);
    let files = manifest["files"].as_array_mut().unwrap();
    let file = files.iter_mut().find(|file| file["name"] == name).unwrap();
    file["size"] = bytes.len().into();
    file["sha256"] = sha256(&mut &*bytes).unwrap().1.into();
    fs::write(path, manifest.to_string()).unwrap();
}

/// The steps of the checkpoints in `run` whose manifest is there, sorted.
pub fn steps(run: &Path) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(run.join(layout::CHECKPOINTS)) else { return vec![] };
    let folders = entries.map(|entry| entry.unwrap().path());
    let whole = folders.filter(|folder| folder.join(MANIFEST).is_file());
    let mut steps =
        whole.filter_map(|folder| layout::step(folder.file_name()?.to_str()?)).collect::<Vec<_>>();
    steps.sort_unstable();
    steps
}

/// The same, after making sure that there is nothing else in `run` but what belongs to these: no stray file, no half of a
/// checkpoint, every file as it was committed.
#[track_caller]
pub fn check_whole(run: &Path) -> Vec<u64> {
    let names = |folder: &Path| Folder::new(folder).list().unwrap();
    let is_run = |name: &String| layout::FILES.contains(&&**name);
    let is_log = |name: &String| name == layout::STEPS;
    let (files, others): (Vec<_>, Vec<_>) =
        names(run).into_iter().filter(|name| !is_log(name)).partition(is_run);
    assert_eq!(others, [layout::CHECKPOINTS, layout::RUN]);
    let has_epoch = read_json(&run.join(layout::RUN)).get("checkpoint").is_some();
    assert_eq!(files.len(), if has_epoch { layout::FILES.len() } else { 0 });
    let checkpoints = run.join(layout::CHECKPOINTS);
    for name in names(&checkpoints) {
        let folder = Folder::new(checkpoints.join(&name));
        let manifest = Manifest::read(&folder).unwrap().unwrap_or_else(|| panic!("{name} has no manifest"));
        manifest.check(&folder).unwrap();
        let mut listed = manifest.files.iter().map(|file| &*file.name).chain([MANIFEST]).collect::<Vec<_>>();
        listed.sort_unstable();
        assert_eq!(folder.list().unwrap(), listed, "{name}");
    }
    steps(run)
}

/// The step that a start has told to go on after; `None` if it has not.
pub fn went_on_after(stderr: &str) -> Option<u64> {
    let (_, rest) = stderr.split_once("Going on after step ")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The step that a run has told to be saved when it stopped.
#[track_caller]
pub fn saved_step(stderr: &str, reason: &str, root: &Path) -> u64 {
    let start = format!("Stopped ({reason}) after step ");
    let (_, rest) = stderr.split_once(&start).unwrap_or_else(|| panic!("{stderr}"));
    let (step, rest) = rest.split_once(',').unwrap();
    let end = format!(" which is saved in {}; the same command goes on from there\n", root.display());
    assert_eq!(rest, end);
    step.parse().unwrap()
}

/// A process that trains. It is killed when it is dropped.
pub struct Training(Option<Child>);

impl Training {
    /// Starts `command`, and waits until its `run` holds a checkpoint of `step` or later.
    #[track_caller]
    pub fn start(command: Command, run: &Path, step: u64) -> Self {
        Self::until(command, step, || steps(run))
    }

    /// Starts `command`, and waits until one of the checkpoints, whose steps `steps` tells sorted, is of `step` or later.
    #[track_caller]
    pub fn until(mut command: Command, step: u64, steps: impl Fn() -> Vec<u64>) -> Self {
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut training = Self(Some(child));
        let deadline = Instant::now() + Duration::from_secs(240);
        while steps().last().is_none_or(|last| *last < step) {
            let ended = training.0.as_mut().unwrap().try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                panic!("no checkpoint of step {step} is made: {:?}", training.end());
            }
            sleep(Duration::from_millis(1));
        }
        training
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let pid = self.0.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Kills it if it still runs after this time.
    pub fn kill_after(&mut self, time: Duration) {
        let (child, deadline) = (self.0.as_mut().unwrap(), Instant::now() + time);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                return child.kill().unwrap();
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end: the exit code, `None` if a signal ended it, and what it said on stderr.
    pub fn end(mut self) -> (Option<i32>, String) {
        let Output { status, stderr, .. } = self.0.take().unwrap().wait_with_output().unwrap();
        (status.code(), text(stderr))
    }

    pub fn kill(self) {
        assert!(self.kill_unless_done());
    }

    /// Whether it is killed before it is done.
    pub fn kill_unless_done(self) -> bool {
        self.signal("KILL");
        let (code, stderr) = self.end();
        assert!(matches!(code, None | Some(0)), "{code:?}: {stderr}");
        code.is_none()
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs `command` to its end: the exit code and what it said on stderr.
pub fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), text(stderr))
}
