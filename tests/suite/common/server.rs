//! The program as a server, and what asks it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::cli::command;

/// A server of `serve`, ended with this.
pub struct Server {
    child: Child,
    /// `127.0.0.1:PORT`
    pub host: String,
    log: PathBuf,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// What a refusal of this status says.
    #[track_caller]
    pub fn refusal(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.body.lines().count(), 1, "{self:?}");
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

impl Server {
    /// Starts to serve `run` on a free port, with further arguments, and waits until it is ready. `log` is a new file's.
    #[track_caller]
    pub fn start(run: &Path, log: &Path, arguments: &[&str]) -> Self {
        let mut server = Self::launch(run, log, arguments);
        server.wait_until("Ready after");
        server
    }

    /// The same, as soon as it listens.
    #[track_caller]
    pub fn launch(run: &Path, log: &Path, arguments: &[&str]) -> Self {
        let child = serve(run, arguments).stderr(fs::File::create(log).unwrap()).spawn().unwrap();
        let mut server = Self { child, host: String::new(), log: log.to_owned() };
        server.host = host(&server.wait_until("Listening on http://"));
        server
    }

    /// Waits for a line with this in it, and gives it.
    #[track_caller]
    pub fn wait_until(&mut self, part: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(240);
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| line.contains(part)) {
                return line.to_owned();
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "no `{part}`: {ended:?}: {log}");
            sleep(Duration::from_millis(5));
        }
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn get(&self, path: &str) -> Answer {
        ask(&self.host, &self.head("GET", path, &[]), b"").unwrap()
    }

    pub fn post(&self, path: &str, body: &[u8]) -> Answer {
        self.post_with(path, body, &[])
    }

    pub fn post_with(&self, path: &str, body: &[u8], headers: &[(&str, &str)]) -> Answer {
        let length = body.len().to_string();
        let headers = [headers, &[("content-length", &*length)]].concat();
        ask(&self.host, &self.head("POST", path, &headers), body).unwrap()
    }

    pub fn head(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
        head(&self.host, method, path, headers)
    }

    /// All labels' probabilities of texts, in the order of `labels`.
    #[track_caller]
    pub fn probabilities(&self, texts: &[&str], labels: &[&str]) -> Vec<Vec<f32>> {
        let answer =
            self.post("/predict", json!({"inputs": texts, "probabilities": true}).to_string().as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
        let rows: Vec<Vec<Json>> = serde_json::from_str(&answer.body).unwrap();
        let score = |row: &[Json], label: &str| {
            row.iter().find(|one| one["label"] == label).unwrap()["score"].as_f64().unwrap() as f32
        };
        rows.iter().map(|row| labels.iter().map(|label| score(row, label)).collect()).collect()
    }

    /// A figure of its metrics, such as `bert_xla_texts_total`.
    pub fn figure(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name}: {text}")).rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    /// Waits until a figure is as it should be.
    #[track_caller]
    pub fn wait_for_figure(&self, name: &str, is_so: impl Fn(f64) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let figure = self.figure(name);
            if is_so(figure) {
                return;
            }
            assert!(Instant::now() < deadline, "{name} is {figure}: {}", self.log());
            sleep(Duration::from_millis(2));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Waits for its end: the exit code.
    pub fn end(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

/// The program on a free port.
pub fn serve(run: &Path, arguments: &[&str]) -> Command {
    let mut command = command(&["serve", "--backend", "cpu", "--port", "0", "--run"]);
    command.arg(run).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// `127.0.0.1:PORT`, of the line that says where it listens.
pub fn host(line: &str) -> String {
    let port = line.rsplit_once(':').unwrap().1;
    let port = port.split('"').next().unwrap().trim();
    format!("127.0.0.1:{port}")
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request's head, after whose answer the connection ends.
pub fn head(host: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        head.push_str(&format!("host: {host}\r\n"));
    }
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    head + "connection: close\r\n\r\n"
}

/// Sends a request on a connection of its own; `None` if there is no whole answer.
pub fn ask(host: &str, head: &str, body: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(host).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream.write_all(head.as_bytes()).ok()?;
    // Who refuses it may not read it all.
    let _ = stream.write_all(body);
    let mut bytes = vec![];
    stream.read_to_end(&mut bytes).ok()?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers =
        headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect::<Vec<_>>();
    let body = &bytes[end + 4..];
    let is_chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let length = headers.iter().find(|(name, _)| name == "content-length").map(|(_, value)| value);
    let body = match length {
        _ if is_chunked => joined(body)?,
        Some(length) if *length != body.len().to_string() => return None,
        _ => body.to_vec(),
    };
    Some(Answer { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

/// A chunked body; `None` if its end is missing.
fn joined(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = vec![];
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        let chunk = rest.get(end + 2..end + 2 + size)?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(chunk);
        rest = rest.get(end + 4 + size..)?;
    }
}
