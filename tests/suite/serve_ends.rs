//! `bert-xla serve` under load: it ends, loads anew and is attacked, and no request is lost.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::cli::{text, train};
use crate::common::empty_folder;
use crate::common::server::{Server, ask, head, host, serve};
use crate::serve::masked;

/// Clients that ask one request after another on one connection each, as long as `goes_on`.
struct Load {
    /// Requests that were answered as they should be.
    answered: AtomicUsize,
    goes_on: AtomicBool,
}

/// How a client's connection ended.
enum End {
    /// After an answer, by the server's own announcement, or before anything of a request was read.
    Told,
    /// With a request on its way.
    Lost(String),
}

impl Load {
    fn new() -> Self {
        Self { answered: AtomicUsize::new(0), goes_on: AtomicBool::new(true) }
    }

    /// Asks again and again. `check` is given what a 200 says.
    fn ask(&self, host: &str, client: usize, check: &(dyn Fn(&str) + Sync)) -> End {
        while self.goes_on.load(Relaxed) {
            // A server that has ended refuses connections: nothing of such a request was taken.
            let Ok(mut stream) = TcpStream::connect(host) else { return End::Told };
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let body = json!({ "inputs": [format!("text number {client}"), "x"] }).to_string();
            let request = format!(
                "POST /predict HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            while self.goes_on.load(Relaxed) {
                if stream.write_all(request.as_bytes()).is_err() {
                    return End::Lost("can't write".to_owned());
                }
                match answer(&mut stream) {
                    Ok((200, is_last, body)) => {
                        check(&body);
                        self.answered.fetch_add(1, Relaxed);
                        if is_last {
                            break;
                        }
                    }
                    Ok((status, _, body)) => return End::Lost(format!("{status}: {body}")),
                    Err(error) => return End::Lost(error.to_string()),
                }
            }
        }
        End::Told
    }
}

/// The next answer: its status, whether the connection ends with it, and its body.
fn answer(stream: &mut TcpStream) -> std::io::Result<(u16, bool, String)> {
    let (mut bytes, mut part) = (vec![], [0; 4096]);
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head
                .split("content-length: ")
                .nth(1)
                .and_then(|rest| rest.lines().next()?.trim().parse().ok());
            let length: usize = length.unwrap_or_default();
            if bytes.len() >= end + 4 + length {
                let body = String::from_utf8_lossy(&bytes[end + 4..]).into_owned();
                return Ok((head[9..12].parse().unwrap_or(0), head.contains("connection: close"), body));
            }
        }
        match stream.read(&mut part)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&part[..count]),
        }
    }
}

/// Runs `during` while 16 clients ask; panics if a request was lost.
#[track_caller]
fn under_load(host: &str, check: &(dyn Fn(&str) + Sync), during: impl FnOnce(&Load)) -> usize {
    let load = Load::new();
    thread::scope(|scope| {
        let clients = (0..16).map(|client| {
            let load = &load;
            scope.spawn(move || load.ask(host, client, check))
        });
        let clients = clients.collect::<Vec<_>>();
        during(&load);
        load.goes_on.store(false, Relaxed);
        for client in clients {
            if let End::Lost(why) = client.join().unwrap() {
                panic!("a request was lost: {why}");
            }
        }
    });
    load.answered.into_inner()
}

#[test]
fn what_was_taken_before_the_end_is_answered() {
    let folder = empty_folder("serve_drain");
    for round in 0..4 {
        let mut server =
            Server::start(masked(), &folder.join("log"), &["--log", "none", "--batch-sizes", "1,8"]);
        let host = server.host.clone();
        let answered = under_load(&host, &|_| (), |load| {
            thread::sleep(Duration::from_millis(150 + 70 * round));
            server.signal("TERM");
            assert_eq!(server.end(), Some(0));
            load.goes_on.store(false, Relaxed);
        });
        assert!(answered > 16, "{answered}");
        assert!(server.log().contains(": answering what was taken"), "{}", server.log());
    }
}

#[test]
fn what_isnt_answered_in_time_is_given_up() {
    let folder = empty_folder("serve_given_up");
    let arguments = ["--batch-sizes", "1", "--drain-time-out", "0.1", "--max-queue", "20000"];
    let mut server = Server::start(masked(), &folder.join("log"), &arguments);
    let body = json!({ "inputs": vec!["a b c d e f g h"; 256] }).to_string();
    let length = body.len().to_string();
    let request = server.head("POST", "/predict", &[("content-length", &length)]) + &body;
    let streams = (0..70).map(|_| {
        let mut stream = TcpStream::connect(&server.host).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    });
    let _streams = streams.collect::<Vec<_>>();
    server.wait_for_figure("bert_xla_queue_texts", |texts| texts >= 10_000.0);
    let asked = Instant::now();
    server.signal("TERM");
    assert_eq!(server.end(), Some(0));
    // All of it would take 10 s and more.
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert!(server.log().contains("not all that was taken was answered in time"));
}

#[test]
fn an_ensembles_newer_member_is_loaded_too() {
    let folder = empty_folder("serve_members");
    copy(masked(), &folder.join("members/a"));
    fs::write(folder.join("ensemble.json"), r#"{"members": ["members/a"]}"#).unwrap();
    let server = Server::start(&folder, &folder.join("log"), &["--batch-sizes", "1", "--watch", "0.1"]);
    copy(masked(), &folder.join("members/b"));
    fs::write(folder.join("ensemble.json"), r#"{"members": ["members/a", "members/b"]}"#).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while server.get("/info").json()["models"].as_array().unwrap().len() < 2 {
        assert!(Instant::now() < deadline, "{}", server.log());
        thread::sleep(Duration::from_millis(20));
    }
}

/// A log that nobody reads fills its pipe: no request waits for it, nor does the end.
#[test]
fn a_log_that_nobody_reads_keeps_nobody_waiting() {
    let mut child = serve(masked(), &["--batch-sizes", "1"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("Listening") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0);
    }
    let mut stream = TcpStream::connect(host(&line)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // Some 80 bytes each, where a pipe holds 64 KiB.
    for _ in 0..3000 {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        answer(&mut stream).unwrap();
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").arg(&id).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                panic!("it doesn't end");
            }
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    assert_eq!(status.code(), Some(0));
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert!(rest.lines().count() > 100, "{rest}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            _ = fs::copy(entry.path(), target).unwrap()
        }
    }
}

#[test]
fn a_newer_model_takes_over_without_a_lost_request() {
    let folder = empty_folder("serve_reload");
    let run = folder.join("run");
    copy(masked(), &run);
    let arguments = ["--batch-sizes", "1,8", "--watch", "0.1", "--log", "none"];
    let server = Server::start(&run, &folder.join("log"), &arguments);
    let labels = ["-1", "0", "1"];
    let answer = || server.probabilities(&["text number 1"], &labels).remove(0);
    // By more than what steps of other sizes differ by.
    let differ = |a: &[f32], b: &[f32]| a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-5);
    let (before, mut after) = (answer(), vec![]);
    let wait = |is_so: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < deadline, "{}", server.log());
            thread::sleep(Duration::from_millis(5));
        }
    };
    under_load(&server.host, &|_| (), |_| {
        for loads in 2..8 {
            server.signal("HUP");
            wait(&|| server.get("/info").json()["loads"].as_u64() >= Some(loads));
        }
        // Trained on, which is seen.
        let arguments = ["--epochs", "2", "--mask", "--learning-rate", "1e-3"];
        let output = train(&run, &arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(output.stderr));
        wait(&|| differ(&answer(), &before));
        after = answer();
    });
    // Another run in its place, which may have as many steps.
    let other = folder.join("other");
    let arguments = ["--epochs", "2", "--mask", "--learning-rate", "1e-3", "--seed", "7"];
    let output = train(&other, &arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    fs::rename(&run, folder.join("old")).unwrap();
    fs::rename(&other, &run).unwrap();
    wait(&|| differ(&answer(), &after));
    let after = answer();
    assert!(server.get("/info").json()["models"][0]["checkpoint"].as_str().unwrap().starts_with("step-"));
    // What can't be read changes nothing.
    let config = run.join("run.json");
    fs::write(&config, "{").unwrap();
    server.signal("HUP");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !server.get("/metrics").body.contains("outcome=\"failed\"}") {
        assert!(Instant::now() < deadline, "{}", server.log());
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(answer(), after);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn before_it_is_ready_it_says_so() {
    let folder = empty_folder("serve_start");
    let mut server = Server::launch(masked(), &folder.join("log"), &["--no-cache"]);
    let first = server.get("/health");
    if first.status != 200 {
        assert_eq!(first.refusal(503), "the model isn't loaded yet");
        assert_eq!(first.header("retry-after"), Some("1"));
    }
    assert_eq!(server.get("/").status, 200);
    server.wait_until("Ready after");
    assert_eq!(server.get("/health").status, 200);
    // Asked for before there is anything to load anew: keys that were replaced are of no use from then on.
    let keys = folder.join("keys");
    fs::write(&keys, "the first key of all").unwrap();
    let arguments = ["--no-cache", "--api-key-file", keys.to_str().unwrap()];
    let mut server = Server::launch(masked(), &folder.join("log"), &arguments);
    fs::write(&keys, "a second key, in its place").unwrap();
    server.signal("HUP");
    server.wait_until("the model was loaded anew");
    let asked = |key: &str| {
        let key = format!("Bearer {key}");
        server.post_with("/predict", br#"{"inputs": "a"}"#, &[("authorization", &key)]).status
    };
    assert_eq!((asked("the first key of all"), asked("a second key, in its place")), (401, 200));
    // One that is asked to end while it loads does.
    let mut server = Server::launch(masked(), &folder.join("log"), &["--no-cache"]);
    server.signal("TERM");
    assert_eq!(server.end(), Some(0));
}

/// What a client does that means no good, or no better.
fn attack(host: &str, kind: usize, held: &mut Vec<TcpStream>) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let post = |length: usize| head(host, "POST", "/predict", &[("content-length", &length.to_string())]);
    match kind % 8 {
        // A body that never comes to its end; a head that doesn't.
        0 => {
            stream.write_all(post(1000).as_bytes())?;
            stream.write_all(b"{\"inputs\"")?;
            held.push(stream);
        }
        1 => {
            stream.write_all(b"POST /predict HTTP/1.1\r\nhost: loc")?;
            held.push(stream);
        }
        // Nothing at all.
        2 => held.push(stream),
        // Half of a connection closed, with a request on it; all of it.
        3 => {
            stream.write_all((post(16) + r#"{"inputs": "abc"}"#).as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            let _ = stream.read(&mut [0; 64]);
        }
        4 => stream.write_all((post(16) + r#"{"inputs": "abc"}"#).as_bytes())?,
        5 => {
            stream.write_all(b"\x16\x03\x01\x02\x00 GET / HTTP/9.9\r\n\r\n")?;
            let _ = stream.read(&mut [0; 64]);
        }
        // A body that is far too large, of no JSON.
        6 => {
            stream.write_all(post(64 << 20).as_bytes())?;
            let part = vec![b'['; 1 << 20];
            (0..64).take_while(|_| stream.write_all(&part).is_ok()).for_each(drop);
        }
        // A head without an end.
        _ => {
            stream.write_all(b"GET / HTTP/1.1\r\n")?;
            (0..2000)
                .take_while(|at| stream.write_all(format!("x-{at}: {at}\r\n").as_bytes()).is_ok())
                .for_each(drop);
        }
    }
    Ok(())
}

#[test]
fn nobody_is_kept_from_an_answer_by_others() {
    let folder = empty_folder("serve_attacked");
    let server = Server::start(
        masked(),
        &folder.join("log"),
        &["--log", "none", "--batch-sizes", "1,8", "--read-time-out", "1", "--time-out", "20"],
    );
    let expected = server.post("/predict", br#"{"inputs": ["text number 3", "x"]}"#).body;
    let is_array = |body: &str| assert!(body.starts_with("[[{\"label\""), "{body}");
    let mut held = vec![];
    let answered = under_load(&server.host, &is_array, |_| {
        for kind in 0..160 {
            let _ = attack(&server.host, kind, &mut held);
        }
        // Many that only wait.
        held.extend((0..400).map_while(|_| TcpStream::connect(&server.host).ok()));
        thread::sleep(Duration::from_secs(2));
    });
    assert!(answered > 100, "{answered}");
    assert!(held.len() > 300);
    // Those who don't ask in time are let go.
    let left = Instant::now();
    server.wait_for_figure("bert_xla_connections", |connections| connections <= 5.0);
    assert!(left.elapsed() < Duration::from_secs(20), "{:?}", left.elapsed());
    let length = 34.to_string();
    let request = head(&server.host, "POST", "/predict", &[("content-length", &length)]);
    let again = ask(&server.host, &request, br#"{"inputs": ["text number 3", "x"]}"#).unwrap();
    assert_eq!(again.body, expected);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
