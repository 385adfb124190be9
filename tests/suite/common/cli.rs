//! The program, run on the embedded sample and its tiny model.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use bert_xla::pjrt::{Backend, Plugin};
use bert_xla::run::layout;
use serde_json::Value as Json;

use super::{cpu_plugin, empty_folder};

/// The program with the user's plugins, but with a cache of this test run: programs that an earlier build compiled
/// would hide that this one's don't compile.
pub fn command<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Command {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    cpu_plugin();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bert-xla"));
    command.args(arguments).env("BERT_XLA_CACHE", CACHE.get_or_init(|| empty_folder("cli_cache")));
    for (backend, variable) in [
        (Backend::Cpu, "BERT_XLA_CPU_PLUGIN"),
        (Backend::Gpu, "BERT_XLA_GPU_PLUGIN"),
        (Backend::Tpu, "BERT_XLA_TPU_PLUGIN"),
    ] {
        command.envs(Plugin::find(backend, None).map(|path| (variable, path)));
    }
    command
}

pub fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Runs a command line that must work, and gives its stdout.
#[track_caller]
pub fn works<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> String {
    let Output { status, stdout, stderr } = command(arguments).output().unwrap();
    assert!(status.success(), "{}", text(stderr));
    text(stdout)
}

/// Runs a command line that must fail with this exit code, and gives the one line that says why.
#[track_caller]
pub fn fails(command: &mut Command, code: i32) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = text(stderr);
    let errors = stderr.lines().filter(|line| line.starts_with("error: ")).collect::<Vec<_>>();
    assert_eq!((status.code(), errors.len()), (Some(code), 1), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    errors[0].to_owned()
}

pub fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name)
}

/// What `bert-xla demo` left, which is run once.
pub fn demo() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = empty_folder("cli_demo");
        works(&["demo".as_ref(), "--output".as_ref(), folder.as_os_str()]);
        folder
    })
}

/// `train` on the sample and the tiny model, with further arguments.
pub fn train(output: &Path, arguments: &[&str]) -> Command {
    let mut command = command(&["train", "--backend", "cpu", "--random-weights", "--max-length", "24"]);
    command.arg("--train").arg(asset("sample.csv")).arg("--model").arg(asset("tiny"));
    command.arg("--output").arg(output).args(arguments);
    command
}

/// `evaluate` or `predict` of the demo's run.
pub fn with_run(name: &str, run: &Path, data: &Path, arguments: &[&str]) -> Command {
    let mut command = command(&[name, "--backend", "cpu"]);
    command.arg("--run").arg(run).arg("--data").arg(data).args(arguments);
    command
}

pub fn json_lines(text: &str) -> Vec<Json> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A copy of the demo's run, as one was laid out before there were checkpoints: files alone.
pub fn copy_of_run(name: &str) -> PathBuf {
    let folder = empty_folder(name);
    for name in layout::FILES {
        fs::copy(demo().join("run").join(name), folder.join(name)).unwrap();
    }
    folder
}
