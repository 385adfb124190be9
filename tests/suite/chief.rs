//! The file by which whoever starts hosts learns which of them the chief is on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::cli::train;
use crate::common::empty_folder;
use crate::common::runs::run;
use crate::common::slice::{Host, Slice, wait};

const EPOCH: [&str; 2] = ["--epochs", "1"];

fn marks(mut command: Command, file: &Path) -> Command {
    command.env("BERT_XLA_CHIEF_FILE", file);
    command
}

/// This host's name, as the kernel has it, on a line.
fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap()
}

#[test]
fn a_process_that_is_alone_is_the_chief() {
    let folder = empty_folder("chief_alone");
    let (file, old) = (folder.join("new/chief"), folder.join("old"));
    let (code, stderr) = run(&mut marks(train(&folder.join("run"), &EPOCH), &file));
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(fs::read_to_string(&file).unwrap(), host_name());
    // What ends it later changes nothing; what was there is replaced.
    fs::write(&old, "another\nand more\n").unwrap();
    let flags = ["--replicas", "2", "--batch-size", "3"];
    let (code, stderr) = run(&mut marks(train(&folder.join("refused"), &flags), &old));
    assert_eq!(code, Some(2), "{stderr}");
    assert_eq!(fs::read_to_string(&old).unwrap(), host_name());
}

#[test]
fn a_file_that_cant_be_written_is_a_warning() {
    let folder = empty_folder("chief_warning");
    fs::write(folder.join("file"), "").unwrap();
    let file = folder.join("file/chief");
    let (code, stderr) = run(&mut marks(train(&folder.join("run"), &EPOCH), &file));
    assert_eq!(code, Some(0), "{stderr}");
    let warnings = stderr.lines().filter(|line| line.starts_with("warning: ")).collect::<Vec<_>>();
    let start = format!("warning: BERT_XLA_CHIEF_FILE: can't write {}: ", file.display());
    assert!(matches!(warnings[..], [only] if only.starts_with(&start)), "{stderr}");
    // An empty name is none.
    let (code, stderr) = run(&mut marks(train(&folder.join("unnamed"), &EPOCH), Path::new("")));
    assert!(code == Some(0) && !stderr.contains("warning:"), "{stderr}");
}

/// The chief is the host of process 0, here the last that is started.
#[test]
fn one_host_of_a_slice_says_that_it_is_the_chief() {
    let folder = empty_folder("chief_slice");
    let Some(slice) = Slice::start(4) else { return };
    let files: [PathBuf; 4] = [0, 1, 2, 3].map(|process| folder.join(format!("chief-{process}")));
    let mut hosts = [3, 1, 2, 0].map(|process: usize| {
        let command = train(&folder.join(format!("run-{process}")), &EPOCH);
        slice.spawn(process, marks(command, &files[process]), 4)
    });
    hosts[3].wait_for("Running on cpu");
    assert!(hosts[..3].iter().all(|host: &Host| !host.stderr().contains("Running on")));
    for end in wait(hosts) {
        assert_eq!(end.code, Some(0), "{end:?}");
    }
    slice.wait();
    assert_eq!(fs::read_to_string(&files[0]).unwrap(), host_name());
    assert!(files[1..].iter().all(|file| !file.exists()));
}
