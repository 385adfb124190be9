use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::*;

/// Runs a line in `home`, as sshd would, with these programs alone beside the shell's own.
fn run(home: &Path, line: &str, programs: &[(&str, &str)]) -> Output {
    use std::os::unix::fs::PermissionsExt;
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
    use std::os::unix::fs::PermissionsExt;
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
    assert_eq!(read("installed"), "plugins install tpu --wheel lib tpu.whl\n");
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
    let df = "echo Avail; echo 10";
    let with = |bytes: u64| {
        run(
            home.path(),
            &prepare(bytes),
            &[("df", df), ("tail", "exec /usr/bin/tail \"$@\""), ("hostname", "echo w0"), ("mkdir", "")],
        )
    };
    assert!(with(10_240).status.success());
    let refused = with(10_241);
    assert_eq!(refused.status.code(), Some(1));
    let expected =
        format!("error: w0: 10240 bytes are free in {}, and 10241 are to come\n", home.path().display());
    assert_eq!(String::from_utf8(refused.stderr).unwrap(), expected);
}
