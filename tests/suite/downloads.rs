//! Downloads that go wrong in every way that a network has, and whom the token reaches.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use bert_xla::weights::{Hub, HubError, ModelFiles, Timeouts};
use tempfile::TempDir;

use crate::common::cli::{asset, command, fails};
use crate::common::hub::{COMMIT, Fault, MODEL, SIGNATURE, Server, hub, sha256};

const WEIGHTS: &str = "/store/model.safetensors";
/// That many failures in a row are enough.
const TRIES: usize = 6;

fn weights() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..300_000).map(|_| random.u8(..)).collect()
}

fn repository() -> BTreeMap<String, Vec<u8>> {
    let files = [
        ("config.json", br#"{"model_type": "bert"}"#.to_vec()),
        ("vocab.txt", b"[PAD]\n[UNK]\n".to_vec()),
        ("tokenizer_config.json", br#"{"do_lower_case": false}"#.to_vec()),
        ("model.safetensors", weights()),
    ];
    files.map(|(name, bytes)| (name.to_owned(), bytes)).into()
}

/// Does not wait between tries.
fn impatient(hub: Hub) -> Hub {
    hub.with_timeouts(Timeouts { retry: Duration::ZERO, ..Timeouts::default() })
}

fn resolve(hub: &Hub) -> Result<ModelFiles, HubError> {
    ModelFiles::resolve(MODEL, None, true, hub)
}

/// A model's folder in a cache, and the two names of its weights.
struct Cached {
    home: TempDir,
    blobs: PathBuf,
    whole: PathBuf,
    part: PathBuf,
}

impl Cached {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let blobs = home.path().join("hub/models--someone--tiny-bert/blobs");
        fs::create_dir_all(&blobs).unwrap();
        let whole = blobs.join(sha256(&weights()));
        let part = whole.with_added_extension("incomplete");
        Self { home, blobs, whole, part }
    }

    fn hub(&self, server: &Server) -> Hub {
        impatient(hub(self.home.path(), &server.endpoint, &[]))
    }

    /// The weights are there, right, and nothing else is left of their download.
    #[track_caller]
    fn is_whole(&self, files: &ModelFiles) {
        let bytes = fs::read(&files.weights[0]).unwrap();
        assert!(bytes == weights(), "{} bytes, which are not the file's", bytes.len());
        assert!(self.whole.is_file() && !self.part.exists());
        assert_eq!(fs::read_dir(&self.blobs).unwrap().count(), repository().len());
    }

    /// They are not, and what is there of them is no part of anything.
    #[track_caller]
    fn has_none(&self) {
        assert!(!self.whole.exists() && !self.part.exists());
        assert!(!self.blobs.join(format!("../snapshots/{COMMIT}/model.safetensors")).is_symlink());
    }
}

#[track_caller]
fn ranges(server: &Server, expected: &[Option<&str>]) {
    let stored = server.stored();
    assert_eq!(stored.iter().map(|request| request.range.as_deref()).collect::<Vec<_>>(), expected);
}

#[test]
fn the_token_is_for_the_hub_alone() {
    // Another host, and another port of the same one.
    for host in ["127.0.0.2", "127.0.0.1"] {
        let cached = Cached::new();
        let server = Server::with_store_at(host, repository());
        let hub = impatient(hub(cached.home.path(), &server.endpoint, &[("HF_TOKEN", "hf_secret")]));
        // The store leads back to the Hub: what is the Hub's own may have the token, whoever leads there.
        let back = format!("Location: {}/api/resolve-cache/model.safetensors\r\n", server.endpoint);
        server.fail(WEIGHTS, Fault::Status(302, back));
        cached.is_whole(&resolve(&hub).unwrap());
        fs::remove_file(&cached.whole).unwrap();
        cached.is_whole(&resolve(&hub).unwrap());
        ranges(&server, &[None, None]);
        let (store, own): (Vec<_>, Vec<_>) =
            server.requests().into_iter().partition(|request| request.at_store);
        assert!(store.iter().all(|request| request.authorization.is_none()), "{store:?}");
        let token = |authorization: &Option<String>| authorization.as_deref() == Some("Bearer hf_secret");
        assert!(own.iter().all(|request| token(&request.authorization)), "{own:?}");
        for (method, path) in
            [("GET", "config.json"), ("HEAD", "tokenizer_config.json"), ("GET", "model.safetensors")]
        {
            let path = format!("/api/resolve-cache/{path}");
            assert!(own.iter().any(|request| request.method == method && request.path == path), "{path}");
        }
    }
}

#[test]
fn redirects_have_an_end() {
    let cached = Cached::new();
    let server = Server::start(repository());
    for _ in 0..11 {
        server.fail("config.json", Fault::Status(302, "Location: /around/config.json\r\n".to_owned()));
    }
    let error = resolve(&cached.hub(&server)).unwrap_err();
    assert!(error.to_string().ends_with("failed: more than 10 redirects"), "{error}");
    assert_eq!(server.requests().iter().filter(|request| request.path.starts_with("/around")).count(), 10);
    resolve(&cached.hub(&server)).unwrap();
}

#[test]
fn the_cache_is_laid_out_as_pythons() {
    let cached = Cached::new();
    let server = Server::start(repository());
    let revision = Some("refs/pr/1");
    let files = ModelFiles::resolve(MODEL, revision, true, &cached.hub(&server)).unwrap();
    cached.is_whole(&files);
    let model = cached.home.path().join("hub/models--someone--tiny-bert");
    assert_eq!(files.weights, [model.join("snapshots").join(COMMIT).join("model.safetensors")]);
    let target = format!("../../blobs/{}", sha256(&weights()));
    assert_eq!(fs::read_link(&files.weights[0]).unwrap(), Path::new(&target));
    assert_eq!(fs::read_to_string(model.join("refs/refs/pr/1")).unwrap(), COMMIT);
    let lock = format!("hub/.locks/models--someone--tiny-bert/{}.lock", sha256(&weights()));
    assert!(cached.home.path().join(lock).is_file());
    // A commit needs no reference to itself.
    fs::remove_file(files.weights[0].with_file_name("config.json")).unwrap();
    let again = ModelFiles::resolve(MODEL, revision, true, &cached.hub(&server)).unwrap();
    assert_eq!(again, files);
    assert_eq!(fs::read_dir(model.join("refs")).unwrap().count(), 1);
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let cached = Cached::new();
    let server = Server::start(repository());
    server.fail(WEIGHTS, Fault::CutAfter(100_000));
    server.fail(WEIGHTS, Fault::Status(503, String::new()));
    server.fail(WEIGHTS, Fault::CutAfter(100_000));
    cached.is_whole(&resolve(&cached.hub(&server)).unwrap());
    let (first, second) = (Some("bytes=100000-"), Some("bytes=200000-"));
    ranges(&server, &[None, first, first, second]);
}

#[test]
fn a_server_without_ranges_starts_anew() {
    for fault in [Fault::Whole, Fault::FromStart, Fault::Status(416, String::new())] {
        let cached = Cached::new();
        let server = Server::start(repository());
        server.fail(WEIGHTS, Fault::CutAfter(100_000));
        server.fail(WEIGHTS, fault);
        cached.is_whole(&resolve(&cached.hub(&server)).unwrap());
    }
}

#[test]
fn progress_is_not_a_failure() {
    let cached = Cached::new();
    let server = Server::start(repository());
    // More often than is bearable without.
    (0..2 * TRIES).for_each(|_| server.fail(WEIGHTS, Fault::CutAfter(20_000)));
    cached.is_whole(&resolve(&cached.hub(&server)).unwrap());
    assert_eq!(server.stored().len(), 2 * TRIES + 1);
}

#[test]
fn parts_that_others_left_are_checked() {
    let server = Server::start(repository());
    let right = weights();
    let wrong = vec![0; right.len()];
    for (part, expected) in [
        (&right[..5000], vec![Some("bytes=5000-")]),
        (&right[..], vec![]),
        (&wrong[..5000], vec![Some("bytes=5000-"), None]),
        (&wrong[..], vec![None]),
        (&[&wrong[..], &[1]].concat()[..], vec![None]),
    ] {
        let cached = Cached::new();
        fs::write(&cached.part, part).unwrap();
        let before = server.stored().len();
        cached.is_whole(&resolve(&cached.hub(&server)).unwrap());
        let ranges: Vec<_> = server.stored()[before..].iter().map(|request| request.range.clone()).collect();
        assert_eq!(ranges, expected.iter().map(|range| range.map(str::to_owned)).collect::<Vec<_>>());
    }
    // One without a hash begins anew, and a whole file of another size isn't taken for it.
    let cached = Cached::new();
    let vocab = cached.blobs.join(&sha256(&repository()["vocab.txt"])[..40]);
    fs::write(vocab.with_added_extension("incomplete"), "[MASK]").unwrap();
    fs::write(cached.blobs.join(&sha256(&repository()["config.json"])[..40]), "{").unwrap();
    fs::write(&cached.whole, &right[1..]).unwrap();
    let files = resolve(&cached.hub(&server)).unwrap();
    cached.is_whole(&files);
    for name in ["vocab.txt", "config.json"] {
        assert_eq!(fs::read(files.config.with_file_name(name)).unwrap(), repository()[name], "{name}");
    }
}

#[test]
fn wrong_bytes_never_count() {
    let cached = Cached::new();
    let server = Server::start(repository());
    server.fail(WEIGHTS, Fault::Flip);
    cached.is_whole(&resolve(&cached.hub(&server)).unwrap());

    let cached = Cached::new();
    (0..TRIES).for_each(|_| server.fail(WEIGHTS, Fault::Flip));
    let error = resolve(&cached.hub(&server)).unwrap_err();
    let parts = ["model.safetensors from", "its SHA-256 is", &sha256(&weights())];
    assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
    assert!(!error.is_input_error());
    cached.has_none();
    cached.is_whole(&resolve(&cached.hub(&server)).unwrap());
}

#[test]
fn a_server_that_says_nothing_is_not_waited_for() {
    let cached = Cached::new();
    let server = Server::start(repository());
    let read = Duration::from_secs(1);
    let hub = cached.hub(&server).with_timeouts(Timeouts { read, retry: read / 100, ..Timeouts::default() });
    server.fail("/revision/", Fault::Silence);
    server.fail("config.json", Fault::StallAfter(3));
    server.fail(WEIGHTS, Fault::Silence);
    server.fail(WEIGHTS, Fault::StallAfter(100_000));
    cached.is_whole(&resolve(&hub).unwrap());
    ranges(&server, &[None, None, Some("bytes=100000-")]);

    let cached = Cached::new();
    let hub = cached.hub(&server).with_timeouts(Timeouts { read, retry: read / 100, ..Timeouts::default() });
    server.fail(WEIGHTS, Fault::StallAfter(100_000));
    (0..TRIES).for_each(|_| server.fail(WEIGHTS, Fault::StallAfter(0)));
    let error = resolve(&hub).unwrap_err();
    assert!(error.to_string().ends_with("nothing came for 1s") && !error.is_input_error(), "{error}");
    // What came is kept for the next try.
    assert_eq!(fs::read(&cached.part).unwrap(), weights()[..100_000]);
    cached.is_whole(&resolve(&hub).unwrap());
    assert_eq!(server.stored().last().unwrap().range.as_deref(), Some("bytes=100000-"));
}

#[test]
fn failures_that_may_pass_are_tried_again() {
    for status in [408, 429, 500, 503] {
        let cached = Cached::new();
        let server = Server::start(repository());
        for part in ["/revision/", "config.json", WEIGHTS] {
            server.fail(part, Fault::Status(status, String::new()));
        }
        // A signed address may have run out.
        server.fail(WEIGHTS, Fault::Status(403, String::new()));
        cached.is_whole(&resolve(&cached.hub(&server)).unwrap());
        (0..TRIES).for_each(|_| server.fail("/revision/", Fault::Status(status, String::new())));
        let error = ModelFiles::resolve(MODEL, Some("v1"), true, &cached.hub(&server)).unwrap_err();
        assert!(error.to_string().ends_with(&format!("answered {status}")), "{error}");
        assert!(matches!(error, HubError::Download { .. }) && !error.is_input_error());
    }
    let home = tempfile::tempdir().unwrap();
    let unreachable = impatient(hub(home.path(), "http://127.0.0.1:1", &[]));
    let error = resolve(&unreachable).unwrap_err();
    assert!(matches!(error, HubError::Download { .. }) && !error.is_input_error(), "{error}");
}

#[test]
fn refusals_are_final() {
    for status in [401, 403, 404] {
        let cached = Cached::new();
        let server = Server::start(repository());
        server.fail("/revision/", Fault::Status(status, String::new()));
        let error = resolve(&cached.hub(&server)).unwrap_err();
        assert!(matches!(error, HubError::Refused { status: found, .. } if found == status), "{error}");
        assert!(error.is_input_error() && error.to_string().contains("set HF_TOKEN"));
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn no_message_holds_a_secret() {
    let cached = Cached::new();
    let server = Server::start(repository());
    let endpoint = server.endpoint.replace("http://", "http://someone:passw0rd@");
    let hub = impatient(hub(cached.home.path(), &endpoint, &[("HF_TOKEN", "hf_secret")]));
    let mut told = vec![format!("{hub:?}")];
    let mut failing = |part: &str, fault: &dyn Fn() -> Fault| {
        (0..TRIES).for_each(|_| server.fail(part, fault()));
        told.push(resolve(&hub).unwrap_err().to_string());
    };
    failing("/revision/", &|| Fault::Status(500, String::new()));
    failing(WEIGHTS, &|| Fault::Status(403, String::new()));
    failing(WEIGHTS, &|| Fault::CutAfter(0));
    let away = format!("Location: ftp://127.0.0.1/?{SIGNATURE}\r\n");
    failing(WEIGHTS, &|| Fault::Status(302, away.clone()));
    let refused = ModelFiles::resolve("someone/else", None, true, &hub).unwrap_err();
    told.push(refused.to_string());
    for text in &told {
        for secret in ["passw0rd", "hf_secret", "Signature"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    // Yet it says where.
    assert!(told[1..].iter().all(|text| text.contains(&server.endpoint)), "{told:?}");
    let no_url = self::hub(cached.home.path(), "someone:passw0rd@hub.example", &[]);
    let error = resolve(&no_url).unwrap_err();
    assert_eq!(error.to_string(), "HF_ENDPOINT: expected the URL of a Hub, such as https://huggingface.co");
    assert!(error.is_input_error());

    // Without a token, the user and the password are what lets us in.
    let server = Server::start(repository());
    let endpoint = server.endpoint.replace("http://", "http://someone:passw0rd@");
    let cached = Cached::new();
    cached.is_whole(&resolve(&self::hub(cached.home.path(), &endpoint, &[])).unwrap());
    for request in server.requests() {
        let basic = (!request.at_store).then_some("Basic c29tZW9uZTpwYXNzdzByZA==");
        assert_eq!(request.authorization.as_deref(), basic, "{request:?}");
    }
}

#[test]
fn variables_are_pythons() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for (name, token) in
        [("home/token", "of-home"), ("xdg/huggingface/token", "of-xdg"), ("token", "of-path")]
    {
        fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        fs::write(path(name), format!("{token}\n")).unwrap();
    }
    let (home, xdg) = (("HF_HOME", path("home")), ("XDG_CACHE_HOME", path("xdg")));
    let (cache, older) = (("HF_HUB_CACHE", path("cache")), ("HUGGINGFACE_HUB_CACHE", path("older")));
    let (token, older_token) = (("HF_TOKEN", "t".to_owned()), ("HUGGING_FACE_HUB_TOKEN", "u\n".to_owned()));
    let token_path = ("HF_TOKEN_PATH", path("token"));
    for (set, cache, token) in [
        (vec![&xdg], "xdg/huggingface/hub", "of-xdg"),
        (vec![&xdg, &home], "home/hub", "of-home"),
        (vec![&xdg, &home, &older, &token_path], "older", "of-path"),
        (vec![&home, &older, &cache, &token_path, &older_token], "cache", "u"),
        (vec![&xdg, &cache, &older_token, &token], "cache", "t"),
    ] {
        let server = Server::start(repository());
        let hub = Hub::from_variables(|name| match set.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => Some(value.clone()),
            None => (name == "HF_ENDPOINT").then(|| server.endpoint.clone()),
        });
        let files = resolve(&hub.unwrap()).unwrap();
        let model = folder.path().join(cache).join("models--someone--tiny-bert");
        assert!(files.config.starts_with(&model), "{}", files.config.display());
        assert_eq!(server.requests()[0].authorization, Some(format!("Bearer {token}")));
        fs::remove_dir_all(model).unwrap();
    }
}

/// `train --dry-run` with the tiny model from this server.
fn dry_run(home: &Path, server: &Server) -> Command {
    let mut command = command(&["train", "--dry-run", "--max-length", "24"]);
    command
        .arg("--train")
        .arg(asset("sample.csv"))
        .arg("--output")
        .arg(home.join("run"))
        .args(["--model", MODEL]);
    for variable in ["HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"] {
        command.env_remove(variable);
    }
    command.env("HF_HOME", home).env("HF_ENDPOINT", &server.endpoint);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn tiny() -> Server {
    let names = ["config.json", "tokenizer.json"];
    let files = names.map(|name| (name.to_owned(), fs::read(asset("tiny").join(name)).unwrap()));
    Server::start(files.into_iter().chain([("model.safetensors".to_owned(), weights())]).collect())
}

#[test]
fn a_dry_run_downloads_no_weights() {
    let (home, server) = (tempfile::tempdir().unwrap(), tiny());
    let output = dry_run(home.path(), &server).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("Weights: of the checkpoint, which a dry run doesn't download"), "{said}");
    let requests = server.requests();
    let asks_for = |name: &str| requests.iter().any(|request| request.path.ends_with(name));
    assert!(asks_for("tokenizer.json") && !asks_for("model.safetensors"), "{requests:?}");
}

/// A process, and what it says on stderr.
struct Spoken {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Spoken {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr }
    }

    /// Reads until a line that begins like this.
    #[track_caller]
    fn says(&mut self, start: &str) -> String {
        let mut before = String::new();
        for line in self.stderr.by_ref().lines().map_while(Result::ok) {
            if line.starts_with(start) {
                return line;
            }
            before += &format!("{line}\n");
        }
        panic!("`{start}` was not said, but:\n{before}")
    }

    #[track_caller]
    fn ends_well(mut self) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
    }
}

#[test]
fn one_process_downloads_and_the_others_wait() {
    const TOKENIZER: &str = "/api/resolve-cache/tokenizer.json";
    for dies in [false, true] {
        let home = tempfile::tempdir().unwrap();
        let server = tiny();
        let (go_on, held) = channel();
        server.fail(TOKENIZER, Fault::HoldAfter(10, held));
        let mut first = Spoken::start(dry_run(home.path(), &server));
        first.says("downloading tokenizer.json of someone/tiny-bert (");
        let mut second = Spoken::start(dry_run(home.path(), &server));
        second.says("waiting for another process that downloads tokenizer.json of someone/tiny-bert");
        if dies {
            first.child.kill().unwrap();
            first.child.wait().unwrap();
            second.says("downloading tokenizer.json");
        } else {
            go_on.send(()).unwrap();
            first.ends_well();
        }
        second.ends_well();
        let downloads = server
            .requests()
            .iter()
            .filter(|request| request.method == "GET" && request.path == TOKENIZER)
            .count();
        assert_eq!(downloads, if dies { 2 } else { 1 });
    }
}

#[test]
fn a_servers_wish_to_be_left_alone_is_heeded() {
    let home = tempfile::tempdir().unwrap();
    let server = tiny();
    server.fail("/revision/", Fault::Status(429, "Retry-After: 1\r\n".to_owned()));
    let mut process = Spoken::start(dry_run(home.path(), &server));
    let line = process.says("the list of files of someone/tiny-bert: ");
    assert!(line.ends_with("answered 429; trying again in 1s"), "{line}");
    process.ends_well();
}

#[test]
fn a_cache_that_cant_be_written_is_named() {
    let home = tempfile::tempdir().unwrap();
    let server = tiny();
    fs::write(home.path().join("hub"), "a file").unwrap();
    let message = fails(&mut dry_run(home.path(), &server), 1);
    let place = home.path().join("hub/.locks/models--someone--tiny-bert");
    assert!(message.starts_with(&format!("error: can't make {}: ", place.display())), "{message}");

    // No space left.
    let cached = Cached::new();
    let server = Server::start(repository());
    symlink("/dev/full", &cached.part).unwrap();
    let error = resolve(&cached.hub(&server)).unwrap_err();
    let expected = format!("can't write {}: No space left on device", cached.part.display());
    assert!(error.to_string().starts_with(&expected) && !error.is_input_error(), "{error}");
}

/// A mirror whose `ETag`s are no hashes, the same for all files, and which may leave lengths out: an answer ends with its
/// connection, here after half of it.
fn mirror(files: [(&'static str, &'static str); 2], says_lengths: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let answer = move |mut stream: TcpStream| {
        let mut request = String::new();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        lines.read_line(&mut request).unwrap();
        while lines.read_line(&mut String::new()).unwrap() > 2 {}
        let names = files.map(|(name, _)| serde_json::json!({ "rfilename": name }));
        let list = serde_json::json!({ "sha": COMMIT, "siblings": names }).to_string();
        let file = files.iter().find(|(name, _)| request.contains(&format!("/{name} ")));
        let body = file.map_or(&*list, |(_, content)| content);
        let (length, sent) = match says_lengths || file.is_none() {
            true => (format!("Content-Length: {}\r\n", body.len()), body),
            false => (String::new(), &body[..body.len() / 2]),
        };
        let sent = if request.starts_with("HEAD") { "" } else { sent };
        write!(stream, "HTTP/1.0 200 x\r\nETag: \"const\"\r\n{length}\r\n{sent}").unwrap();
    };
    std::thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.unwrap())));
    endpoint
}

#[test]
fn a_mirrors_etags_are_no_names_of_contents() {
    let home = tempfile::tempdir().unwrap();
    let files = [("config.json", r#"{"model_type": "bert"}"#), ("tokenizer.json", "{}")];
    let hub = impatient(hub(home.path(), &mirror(files, true), &[]));
    let found = ModelFiles::resolve(MODEL, None, false, &hub).unwrap();
    assert_eq!(
        found.paths().into_iter().map(|path| fs::read_to_string(path).unwrap()).collect::<Vec<_>>(),
        [files[0].1, files[1].1]
    );
}

#[test]
fn what_may_have_been_cut_never_counts() {
    let home = tempfile::tempdir().unwrap();
    let files = [("config.json", r#"{"model_type": "bert"}"#), ("tokenizer.json", "{}")];
    let hub = impatient(hub(home.path(), &mirror(files, false), &[]));
    let error = ModelFiles::resolve(MODEL, None, false, &hub).unwrap_err();
    assert!(error.to_string().ends_with("doesn't say how long the file is"), "{error}");
}
