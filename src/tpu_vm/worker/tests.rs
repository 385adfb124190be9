use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use super::*;

/// Runs a line in `home`, as sshd would, with these programs alone beside the shell's own.
fn run(home: &Path, line: &str, programs: &[(&str, &str)]) -> Output {
    let bin = home.join("bin");
    fs::create_dir_all(&bin).unwrap();
    for (name, text) in programs {
        fs::write(bin.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let command = format!("PATH='{}'; {line}", bin.display());
    Command::new("/bin/bash").arg("-c").arg(command).current_dir(home).env("HOME", home).output().unwrap()
}

/// As on an image whose snaps are mounted late.
#[test]
fn gcloud_is_waited_for_right_after_a_vm_was_made() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("bert-xla");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("bert-xla"), "#!/bin/sh\necho \"$@\" >installed\n").unwrap();
    fs::set_permissions(folder.join("bert-xla"), fs::Permissions::from_mode(0o755)).unwrap();
    let gcloud = "echo \"$@\" >>copied; [ \"$4\" != gs://none ]";
    let waits = format!(
        "echo \"$@\" >waited; printf '#!/bin/sh\\n%s\\n' '{gcloud}' >../bin/gcloud; /bin/chmod +x ../bin/gcloud"
    );
    let timeout = "shift; exec \"$@\"";
    let line = complete(Some("lib tpu.whl"), &["gs://b/it's", "gs://c"], "id");
    let output = run(home.path(), &line, &[("timeout", timeout), ("snap", &waits)]);
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!(read("installed"), "plugins install tpu --wheel ./lib tpu.whl\n");
    assert_eq!(read("waited"), "wait system seed.loaded\n");
    assert_eq!(read("copied"), "storage cp -r gs://b/it's .\nstorage cp -r gs://c .\n");
    assert_eq!(read("setup.id"), "id\n");
    // It is there now.
    fs::remove_file(folder.join("waited")).unwrap();
    assert!(run(home.path(), &line, &[]).status.success());
    assert!(!folder.join("waited").exists());
    // What fails is not called done.
    let output = run(home.path(), &complete(None, &["gs://none", "gs://c"], "other"), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(read("setup.id"), "id\n");
}

#[test]
fn too_little_room_is_told_before_anything_is_copied() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("bert-xla");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("my data"), [0; 5000]).unwrap();
    fs::set_permissions(folder.join("my data"), fs::Permissions::from_mode(0o444)).unwrap();
    fs::write(folder.join("setup.id"), "id\n").unwrap();
    let programs =
        ["mkdir", "rm", "tail", "cut", "chmod", "du"].map(|name| (name, format!("exec /bin/{name} \"$@\"")));
    let mut programs = programs.iter().map(|(name, text)| (*name, text.as_str())).collect::<Vec<_>>();
    programs.extend([("df", "echo Avail; echo 10"), ("hostname", "echo w0")]);
    // What is there will be overwritten: two blocks.
    let with = |names: &[&str], bytes: u64| {
        let names = names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        run(home.path(), &prepare(&names, bytes), &programs)
    };
    assert!(with(&[], 10_240).status.success());
    let refused = with(&["none"], 10_241);
    assert_eq!(refused.status.code(), Some(1));
    let expected =
        format!("error: w0: 10240 bytes are free in {}, and 10241 are to come\n", folder.display());
    assert_eq!(String::from_utf8(refused.stderr).unwrap(), expected);
    assert!(with(&["my data"], 18_432).status.success());
    assert_eq!(with(&["my data"], 18_433).status.code(), Some(1));
    assert_eq!(fs::metadata(folder.join("my data")).unwrap().permissions().mode() & 0o777, 0o644);
    assert!(!folder.join("setup.id").exists());
}

/// As gcloud does when the connection breaks after it was done.
#[test]
fn what_puts_the_program_in_place_may_be_repeated() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("bert-xla");
    fs::create_dir(&folder).unwrap();
    let program =
        |text: &str| fs::write(folder.join("bert-xla.new"), format!("#!/bin/bash\n{text}\n")).unwrap();
    let check = || {
        let output = Command::new("bash").args(["-c", CHECK]).current_dir(home.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(check().0, Some(1), "nothing was copied");
    program("echo 1");
    assert_eq!(check(), (Some(0), "1\n".to_owned()));
    assert_eq!(check(), (Some(0), String::new()));
    program("exit 1");
    assert_eq!(check().0, Some(1));
    assert_eq!(check().0, Some(1), "it does not run any better");
}

/// As on a full disk; and a file of one line has room for another one.
#[test]
fn where_nothing_can_be_written_nothing_is_started() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("bert-xla");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("bert-xla"), "#!/bin/sh\n>ran\nexit 9\n").unwrap();
    fs::set_permissions(folder.join("bert-xla"), fs::Permissions::from_mode(0o755)).unwrap();
    let bash =
        |line: &str| Command::new("bash").args(["-c", line]).current_dir(home.path()).output().unwrap();
    let line = start(&["a".to_owned()], "-n", "job", "call");
    for file in ["run.pid", "run.status", "run.output", "run.job", "run.call", "run.log"] {
        fs::create_dir(folder.join(file)).unwrap();
        let output = bash(&line);
        assert!(!output.status.success() && !folder.join("ran").exists(), "{file}: {output:?}");
        fs::remove_dir(folder.join(file)).unwrap();
        let _ = fs::remove_file(folder.join("run.call"));
    }
    assert!(bash(&line).status.success());
    let status = || fs::read_to_string(folder.join("run.status")).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while status() == "\n" && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(status(), "9\n");
    assert_eq!(fs::read_to_string(folder.join("run.output")).unwrap(), "-n\n");
}
