//! Cloud Storage: against fake-gcs-server, and against a server that keeps to Google's reference where that one doesn't.
//! What connects runs in processes of their own, since the endpoint comes from the environment.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::Duration;

use bert_xla::storage::{Commit, Folder, Manifest, Replaced};
use sha2::{Digest, Sha256};

use crate::common::buckets::FakeGcs;
use crate::common::cli::text;
use crate::common::gcs::{ACCOUNT, Fault, Gcs, TOKEN};

/// Variables that say where Cloud Storage is, and who asks, unset.
const UNSET: [&str; 5] = [
    "STORAGE_EMULATOR_HOST",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_BASE_URL",
    "GOOGLE_BEARER_TOKEN",
];

/// Runs `part` of this file in a process of its own with these variables.
#[track_caller]
fn apart<V: AsRef<str>>(part: &str, variables: &[(&'static str, V)]) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", &format!("cloud::{part}"), "--ignored", "--nocapture"]);
    UNSET.iter().for_each(|name| _ = child.env_remove(name));
    child.env("BERT_XLA_APART", "1");
    let output = child.envs(variables.iter().map(|(name, value)| (name, value.as_ref()))).output().unwrap();
    let said = format!("{}{}", text(output.stdout), text(output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    said
}

/// False for one who runs all tests, the ignored ones too.
fn is_apart() -> bool {
    std::env::var_os("BERT_XLA_APART").is_some()
}

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn uses_a_folder() {
    if !is_apart() {
        return;
    }
    let root = Folder::new("gs://runs/a/run");
    assert!(!root.is_local() && root.local().is_none());
    root.make().unwrap();
    assert_eq!(root.list().unwrap(), Vec::<String>::new());
    assert_eq!(root.read("none").unwrap(), None);
    assert!(!root.exists("none").unwrap());
    root.write("one", b"1").unwrap();
    assert_eq!(root.read("one").unwrap().unwrap(), b"1");
    let (bytes, version) = root.read_versioned("one").unwrap().unwrap();
    assert_eq!(bytes, b"1");
    let Replaced::Done(next) = root.replace("one", b"2", Some(&version)).unwrap() else { panic!() };
    assert_ne!(next, version);
    root.folder("sub").write("deep/er", b"x").unwrap();
    root.write("on", b"").unwrap();
    assert_eq!(root.list().unwrap(), ["on", "one", "sub"]);
    assert!(root.exists("sub").unwrap() && root.exists("sub/deep").unwrap() && !root.exists("su").unwrap());
    assert_eq!(root.size("on").unwrap(), Some(0));
    let mut none = vec![];
    assert_eq!(root.copy_to("on", &mut none).unwrap(), 0);
    root.folder("sub/deep").copy(&root, "one").unwrap();
    assert_eq!(root.read("sub/deep/one").unwrap().unwrap(), b"2");
    root.remove("sub").unwrap();
    root.remove("sub").unwrap();
    assert_eq!(root.list().unwrap(), ["on", "one"]);
    assert_eq!(Folder::new("gs://runs").list().unwrap(), ["a"]);
    assert_eq!(Folder::new("gs://runs/a/").list().unwrap(), ["run"]);
}

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn commits_a_folder() {
    if !is_apart() {
        return;
    }
    let folder = Folder::new("gs://runs/committed");
    let mut commit = Commit::begin(folder.clone()).unwrap();
    commit.write("a", |file| Ok(file.write_all(b"some")?)).unwrap();
    commit.write("b", |_| Ok(())).unwrap();
    assert_eq!(Manifest::read(&folder).unwrap(), None);
    let manifest = commit.finish().unwrap();
    assert_eq!(Manifest::read(&folder).unwrap().as_ref(), Some(&manifest));
    manifest.check(&folder).unwrap();
    let error = Commit::begin(folder.clone()).err().unwrap().to_string();
    assert!(error.contains("can't make gs://runs/committed: "), "{error}");
    folder.write("a", b"samo").unwrap();
    manifest.check(&folder).unwrap();
    let error = manifest.files[0].copy_to(&folder, &mut vec![]).unwrap_err();
    assert_eq!(error.to_string(), "can't use gs://runs/committed/a: it is not as it was committed");
    folder.write("a", b"som").unwrap();
    let error = manifest.check(&folder).unwrap_err();
    assert_eq!(error.to_string(), "can't use gs://runs/committed/a: it has 3 bytes where 4 were committed");
}

#[test]
fn a_folder_in_a_bucket_is_one() {
    let Some(server) = FakeGcs::start(&["runs"]) else { return };
    apart("uses_a_folder", &[("STORAGE_EMULATOR_HOST", &server.host)]);
    apart("commits_a_folder", &[("STORAGE_EMULATOR_HOST", &server.host)]);
}

#[test]
fn a_folder_in_a_bucket_is_one_by_googles_reference() {
    let server = Gcs::start();
    // As consoles mark a folder.
    server.put("a/run/", b"");
    apart("uses_a_folder", &server.variables());
    server.state().objects.clear();
    apart("commits_a_folder", &server.variables());
    assert!(server.state().requests.iter().all(|request| request.authorization.is_some()));
}

/// Bytes that are not the same in any two places.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..length.div_ceil(4)).flat_map(|_| word().to_le_bytes()).take(length).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn uploads_large_files() {
    if !is_apart() {
        return;
    }
    const MIB: usize = 1 << 20;
    let folder = Folder::new("gs://runs/large");
    let mut commit = Commit::begin(folder).unwrap();
    for length in [16 * MIB, 16 * MIB + 1, 41 * MIB + 5] {
        let bytes = noise(length);
        let add = |file: &mut dyn Write| bytes.chunks(1_000_003).try_for_each(|part| file.write_all(part));
        commit.write(&length.to_string(), |file| Ok(add(file)?)).unwrap();
    }
    commit.finish().unwrap();
}

#[test]
fn large_files_go_in_parts_that_are_sent_again() {
    let server = Gcs::start();
    server.fail("PUT", "partNumber=2", Fault::Status(503, String::new()));
    server.fail("PUT", "partNumber=2", Fault::CutRequest);
    server.fail("PUT", "partNumber=3", Fault::LoseAnswer);
    server.fail("POST", "uploads", Fault::Status(429, String::new()));
    server.fail("POST", "uploadId", Fault::LoseAnswer);
    apart("uploads_large_files", &server.variables());
    let state = server.state();
    assert!(state.uploads.is_empty());
    let manifest: Manifest = serde_json::from_slice(&state.objects["large/manifest.json"].bytes).unwrap();
    for file in &manifest.files {
        let bytes = &state.objects[&format!("large/{}", file.name)].bytes;
        assert_eq!(
            (file.name.as_str(), &file.sha256),
            (&*bytes.len().to_string(), &sha256(&noise(bytes.len())))
        );
        assert_eq!(file.sha256, sha256(bytes));
    }
    drop(state);
    let parts = server.requests("PUT", &["partNumber"]);
    assert!(parts.iter().all(|part| part.length <= 8 << 20));
    // 3 of 16 MiB and a byte, 6 of the larger, and 3 once more.
    assert_eq!(parts.len(), 3 + 6 + 3);
}

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn fails_to_upload() {
    if !is_apart() {
        return;
    }
    let folder = Folder::new("gs://runs/failed");
    let mut commit = Commit::begin(folder.clone()).unwrap();
    let error =
        commit.write("weights", |file| Ok(file.write_all(&noise(60 << 20))?)).unwrap_err().to_string();
    assert!(error.starts_with("can't write gs://runs/failed/weights: trainer@project"), "{error}");
    // One that is given up.
    let error = commit.write("other", |file| {
        file.write_all(&noise(30 << 20))?;
        Err("no more".into())
    });
    assert_eq!(error.unwrap_err().to_string(), "can't write gs://runs/failed/other: no more");
    assert_eq!(folder.list().unwrap(), Vec::<String>::new());
}

#[test]
fn an_upload_that_fails_leaves_nothing() {
    let server = Gcs::start();
    server.fail("PUT", "weights?partNumber=3", Fault::Status(403, denied("storage.objects.create")));
    apart("fails_to_upload", &server.variables());
    let state = server.state();
    assert!(state.uploads.is_empty() && state.objects.is_empty());
}

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn downloads_a_large_file() {
    if !is_apart() {
        return;
    }
    let mut bytes = vec![];
    Folder::new("gs://runs/some").copy_to("large file", &mut bytes).unwrap();
    assert_eq!(sha256(&bytes), sha256(&noise((20 << 20) + 7)));
}

#[test]
fn a_download_goes_on_where_it_was_cut() {
    let server = Gcs::start();
    server.put("some/large file", &noise((20 << 20) + 7));
    server.fail("GET", "large file", Fault::CutAfter(100));
    server.fail("GET", "large file", Fault::Status(500, String::new()));
    server.fail("GET", "large file", Fault::CutAfter(3 << 20));
    apart("downloads_a_large_file", &server.variables());
    let asked = server.requests("GET", &["generation"]);
    assert_eq!(asked.len(), 6);
    assert!(asked.iter().all(|request| request.range.is_some()));
}

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn replaces_a_pointer() {
    if !is_apart() {
        return;
    }
    let folder = Folder::new("gs://runs/run");
    let replace = |bytes: &[u8], version| folder.replace("run.json", bytes, version).unwrap();
    let Replaced::Done(first) = replace(b"a1", None) else { panic!() };
    assert_eq!(replace(b"b1", None), Replaced::Outdated);
    let Replaced::Done(second) = replace(b"a2", Some(&first)) else { panic!() };
    // The older one has been replaced: its next one changes nothing.
    assert_eq!(replace(b"a3", Some(&first)), Replaced::Outdated);
    assert_eq!(folder.read_versioned("run.json").unwrap().unwrap(), (b"a2".to_vec(), second.clone()));
    let Replaced::Done(third) = replace(b"a4", Some(&second)) else { panic!() };
    assert_eq!(folder.read_versioned("run.json").unwrap().unwrap(), (b"a4".to_vec(), third.clone()));
    folder.remove("run.json").unwrap();
    assert_eq!(replace(b"a5", Some(&third)), Replaced::Outdated);
}

#[test]
fn a_file_is_replaced_only_if_nobody_else_has() {
    let server = Gcs::start();
    apart("replaces_a_pointer", &server.variables());
    // What was written counts as written, though no answer says so.
    server.state().objects.clear();
    (0..2).for_each(|_| server.fail("PUT", "run.json", Fault::LoseAnswer));
    apart("replaces_a_pointer", &server.variables());
}

/// What Google answers to an account without a role.
fn denied(permission: &str) -> String {
    format!(
        "<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code><Message>Access denied.</Message>\
         <Details>{ACCOUNT} does not have {permission} access to the Google Cloud Storage object. Permission \
         '{permission}' denied on resource (or it may not exist). {{}}</Details></Error>"
    )
}

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn fails_to_make_a_folder() {
    if is_apart() {
        let error = Folder::new(std::env::var("FOLDER").unwrap()).make().unwrap_err();
        println!("says: {error}");
    }
}

/// What `Folder::make` says.
#[track_caller]
fn told<V: AsRef<str>>(folder: &str, variables: &[(&'static str, V)]) -> String {
    let mut all = vec![("FOLDER", folder)];
    all.extend(variables.iter().map(|(name, value)| (*name, value.as_ref())));
    let said = apart("fails_to_make_a_folder", &all);
    assert!(!said.contains("ya29") && !said.contains("Bearer"), "{said}");
    said.lines().find_map(|line| line.strip_prefix("says: ")).unwrap().to_owned()
}

/// It comes some seconds after the pod; told is what comes after it, of a bucket that isn't there.
#[test]
fn a_pod_waits_for_its_metadata_server() {
    let server = Gcs::start();
    // Connections are refused until somebody listens. Of an address and below the ports that are given out, so that no other
    // test's server listens there meanwhile.
    let address = "127.0.12.1:8980";
    thread::spawn(move || {
        thread::sleep(Duration::from_secs(12));
        for stream in TcpListener::bind(address).unwrap().incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let body = format!(
                "{{\"access_token\": \"{TOKEN}\", \"expires_in\": 3600, \"token_type\": \"Bearer\"}}"
            );
            let head = "HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nConnection: close\r\nContent-Length:";
            let _ = write!(stream, "{head} {}\r\n\r\n{body}", body.len());
        }
    });
    let variables = [
        ("GOOGLE_BASE_URL", &*server.url),
        ("GCE_METADATA_HOST", address),
        ("GCE_METADATA_IP", address),
        ("HOME", "/nonexistent"),
        ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
    ];
    let said = told("gs://other/run", &variables);
    assert!(said.contains("there is no bucket `other` (404)"), "{said}");
}

#[test]
fn what_is_missing_is_told_in_a_line_that_says_what_to_do() {
    let server = Gcs::start();
    let login = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to the file of a \
                 service account's key";
    let variables = server.variables();
    let say = |folder: &str| told(folder, &variables);
    assert_eq!(
        say("gs://other/run"),
        "can't write to gs://other/run: there is no bucket `other` (404): check its name; `gcloud storage ls` lists those \
         of your project"
    );
    server.fail("PUT", "probe", Fault::Status(403, denied("storage.objects.create")));
    assert_eq!(
        say("gs://runs/run"),
        format!(
            "can't write to gs://runs/run: {ACCOUNT} may not do that, storage.objects.create (403): give the role by \
             `gcloud storage buckets add-iam-policy-binding gs://runs --member=serviceAccount:{ACCOUNT} \
             --role=roles/storage.objectUser`"
        )
    );
    // A server that repeats what it was sent: see `told`.
    server.fail("GET", "list-type", Fault::Status(403, "{} {} does not have {} access".to_owned()));
    assert!(say("gs://runs/run").contains("the account may not do that (403): give the role by `gcloud"));
    server.fail("GET", "list-type", Fault::Status(400, "<Code>{}</Code> {}".to_owned()));
    assert_eq!(say("gs://runs/run"), "can't write to gs://runs/run: Cloud Storage answered 400");
    server.fail("GET", "list-type", Fault::Status(200, "{}".to_owned()));
    assert_eq!(
        say("gs://runs/run"),
        "can't write to gs://runs/run: Cloud Storage's answer was not understood"
    );
    let expired = [("GOOGLE_BASE_URL", &*server.url), ("GOOGLE_BEARER_TOKEN", "ya29.expired")];
    assert_eq!(
        told("gs://runs/run", &expired),
        format!(
            "can't write to gs://runs/run: Cloud Storage doesn't take the token (401), which may have expired: {login}"
        )
    );
    assert!(server.state().objects.is_empty());
    for (folder, part) in [
        ("gs://", "expected gs://bucket/path"),
        ("gs://Runs/a", "the bucket in a-z"),
        ("gs://runs/a//b", "without empty names"),
        ("gs://runs/../b", "`.` or `..`"),
    ] {
        let said = told(folder, &variables);
        assert!(said.contains(part), "{said}");
    }
    // Without any: a metadata server that never answers; without a limit, the wait is one of minutes, and ends otherwise.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let nothing = [("GCE_METADATA_HOST", &*silent), ("GCE_METADATA_IP", &silent), ("HOME", "/nonexistent")];
    let said = told("gs://runs/run", &nothing);
    assert_eq!(
        said,
        format!(
            "can't write to gs://runs/run: there are no credentials for Google Cloud, or Google was not reached: {login}"
        )
    );
    let broken = [("GOOGLE_APPLICATION_CREDENTIALS", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))];
    let path = broken[0].1;
    assert_eq!(
        told("gs://runs/run", &broken),
        format!(
            "can't write to gs://runs/run: Google's credentials can't be used: {path}, which \
             GOOGLE_APPLICATION_CREDENTIALS names, can't be read, or is none of the kinds authorized_user and service_account"
        )
    );
}

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn moves_300_mb() {
    if !is_apart() {
        return;
    }
    const LENGTH: usize = 300_000_000;
    let folder = Folder::new("gs://runs/moved");
    folder.read("none").unwrap();
    let before = peak();
    let mut commit = Commit::begin(folder.clone()).unwrap();
    let block = noise(1_000_000);
    commit
        .write("large", |file| Ok((0..LENGTH / block.len()).try_for_each(|_| file.write_all(&block))?))
        .unwrap();
    let manifest = commit.finish().unwrap();
    let uploaded = peak();
    manifest.files[0].copy_to(&folder, &mut std::io::sink()).unwrap();
    let (up, down) = (uploaded - before, peak() - uploaded);
    println!("peak memory of 300 MB: {up} KiB more up, and {down} KiB more down");
    assert!(up + down < 120 << 10, "{up} KiB up, {down} KiB down");
}

/// The process's largest resident set so far, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn memory_does_not_grow_with_a_file() {
    let server = Gcs::start();
    let said = apart("moves_300_mb", &server.variables());
    eprintln!("{}", said.lines().find(|line| line.contains("peak memory")).unwrap());
    assert_eq!(server.state().objects["moved/large"].bytes.len(), 300_000_000);
}
