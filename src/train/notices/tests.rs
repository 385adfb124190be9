use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::*;

/// How the stand-in for a metadata server answers a request. When it has no more answers for a value, it holds them back.
#[derive(Clone, Copy)]
enum Answer {
    /// A value and its tag.
    Value(&'static str, &'static str),
    /// The same, a while later.
    Late(&'static str, &'static str),
    /// As a server that isn't Google's.
    OfAnother(&'static str),
    Status(u16),
    Close,
    Hold,
}
use Answer::*;

struct Server {
    host: String,
    /// Path and query, and the headers, of each request.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(preempted: &[Answer], maintenance: &[Answer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let queue = |answers: &[Answer]| answers.iter().copied().collect::<VecDeque<_>>();
        let answers = Arc::new(Mutex::new([queue(preempted), queue(maintenance)]));
        let told = requests.clone();
        thread::spawn(move || {
            for connection in listener.incoming() {
                let (answers, told) = (answers.clone(), told.clone());
                thread::spawn(move || {
                    let mut connection = connection.unwrap();
                    let request = request(&connection);
                    let which =
                        usize::from(request.contains("/computeMetadata/v1/instance/maintenance-event?"));
                    let answer = answers.lock().unwrap()[which].pop_front().unwrap_or(Hold);
                    told.lock().unwrap().push(request);
                    reply(&mut connection, answer);
                });
            }
        });
        Self { host, requests }
    }

    /// The requests for a value.
    fn requests(&self, name: &str) -> Vec<String> {
        let start = format!("GET /computeMetadata/v1/instance/{name}?");
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|request| request.starts_with(&start)).cloned().collect()
    }
}

fn request(connection: &TcpStream) -> String {
    let lines = BufReader::new(connection).lines().map_while(Result::ok);
    lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

fn reply(connection: &mut TcpStream, answer: Answer) {
    const FLAVOR: &str = "Metadata-Flavor: Google\r\n";
    let (status, headers, body) = match answer {
        Value(value, etag) => (200, format!("{FLAVOR}ETag: {etag}\r\n"), value),
        Late(value, etag) => {
            thread::sleep(Duration::from_millis(300));
            (200, format!("{FLAVOR}ETag: {etag}\r\n"), value)
        }
        OfAnother(value) => (200, String::new(), value),
        Status(status) => (status, FLAVOR.to_owned(), "TRUE"),
        Close => return,
        Hold => loop {
            thread::sleep(Duration::from_secs(60));
        },
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status} so\r\nContent-Length: {length}\r\n{headers}\r\n");
    connection.write_all((head + body).as_bytes()).unwrap();
}

const QUICK: Pace = Pace {
    hold: 1,
    patience: Duration::from_millis(500),
    pause: Duration::from_millis(10),
    longest_pause: Duration::from_millis(20),
};

/// The reason to stop, once there is one.
#[track_caller]
fn reason(stop: &Stop) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(reason) = stop.reason() {
            return reason;
        }
        assert!(Instant::now() < deadline, "nobody asks to stop");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_preemption_is_told_at_once_or_when_it_comes() {
    let pending = Value("TRUE", "b7");
    for answers in [&[pending][..], &[Value("FALSE", "a/1"), Late("TRUE\n", "b7")]] {
        let server = Server::start(answers, &[Value("NONE", "c")]);
        let stop = Stop::default();
        watch_at(&stop, &server.host, QUICK);
        assert_eq!(reason(&stop), "the VM is preempted");
        let requests = server.requests("preempted");
        assert_eq!(requests.len(), answers.len());
        for (request, etag) in requests.iter().zip(["0", "a%2F1"]) {
            let query = format!("preempted?wait_for_change=true&timeout_sec=1&last_etag={etag} HTTP/1.1\n");
            assert!(request.contains(&query), "{request}");
            assert!(request.to_lowercase().contains("\nmetadata-flavor: google"), "{request}");
        }
    }
}

#[test]
fn maintenance_is_told_after_whatever_went_wrong_before() {
    let before = [
        Status(404),
        Status(503),
        Close,
        Hold,
        OfAnother("TERMINATE_ON_HOST_MAINTENANCE"),
        Status(302),
        Value("", "1"),
        Value("<html> an error </html>", "2"),
        Value("NONE", "3"),
    ];
    let answers = [&before[..], &[Value("TERMINATE_ON_HOST_MAINTENANCE", "4")]].concat();
    let server = Server::start(&[Status(404), Value("FALSE", "1")], &answers);
    let stop = Stop::default();
    watch_at(&stop, &server.host, QUICK);
    assert_eq!(reason(&stop), "maintenance of the VM's host: TERMINATE_ON_HOST_MAINTENANCE");
    assert_eq!(server.requests("maintenance-event").len(), answers.len());
}

/// A run that is started again meanwhile would otherwise stop after each step.
#[test]
fn maintenance_that_was_known_before_is_no_reason_but_another_one_is() {
    let known = Value("TERMINATE_ON_HOST_MAINTENANCE", "1");
    let server = Server::start(&[], &[known, known, Value("MIGRATE_ON_HOST_MAINTENANCE", "2")]);
    let stop = Stop::default();
    watch_at(&stop, &server.host, QUICK);
    assert_eq!(reason(&stop), "maintenance of the VM's host: MIGRATE_ON_HOST_MAINTENANCE");
    assert_eq!(server.requests("maintenance-event").len(), 3);
}

#[test]
fn pauses_grow_while_it_fails() {
    // 10 + 20 + 40 + 80 + 160 ms, then 10 at a time.
    let pace = Pace { longest_pause: Duration::from_millis(160), ..QUICK };
    let answers = [&[Status(404); 5][..], &[Value("FALSE", "1"); 5], &[Value("TRUE", "2")]].concat();
    let server = Server::start(&answers, &[]);
    let (stop, started) = (Stop::default(), Instant::now());
    watch_at(&stop, &server.host, pace);
    reason(&stop);
    assert!(started.elapsed() >= Duration::from_millis(310 + 50), "{:?}", started.elapsed());
    assert_eq!(server.requests("preempted").len(), answers.len());
}

/// A process of its own, for its variables. It ends although a thread still waits for the server.
#[test]
fn the_server_is_the_one_that_a_variable_names_and_is_asked_without_a_proxy() {
    let server = Server::start(&[Value("TRUE", "1")], &[]);
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", "train::notices::tests::process_with_a_proxy", "--ignored", "--nocapture"]);
    for proxy in ["ALL_PROXY", "HTTP_PROXY", "http_proxy"] {
        process.env(proxy, "http://127.0.0.1:1");
    }
    let output = process.env("GCE_METADATA_HOST", &server.host).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("stops: the VM is preempted\n"), "{output:?}");
    assert_eq!(server.requests("preempted").len(), 1);
}

#[test]
#[ignore = "the process of the_server_is_the_one_that_a_variable_names_and_is_asked_without_a_proxy"]
fn process_with_a_proxy() {
    let stop = Stop::default();
    watch(&stop, &host(Backend::Cpu).unwrap());
    println!("stops: {}", reason(&stop));
}
