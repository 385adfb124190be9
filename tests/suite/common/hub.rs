//! A stand-in for the Hub, on this machine: one repository, with the headers and redirects of the real one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub const MODEL: &str = "someone/tiny-bert";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves `files` until the test ends.
pub struct Server {
    pub endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub authorization: Option<String>,
    range: Option<String>,
}

impl Server {
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, base) = (requests.clone(), endpoint.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that hangs up is the client's business: the test sees what it made of it.
                let _ = stream.and_then(|stream| answer(stream, &base, &files, &log));
            }
        });
        Self { endpoint, requests }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    base: &str,
    files: &BTreeMap<String, Vec<u8>>,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let path = lines.next().transpose()?.unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request { path, authorization: None, range: None };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.to_owned()),
            "range" => request.range = Some(value.to_owned()),
            _ => {}
        }
    }
    log.lock().unwrap().push(request.clone());
    let (status, headers, body) = respond(&request, base, files);
    write!(
        stream,
        "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
        body.len()
    )?;
    stream.write_all(&body)
}

/// Status, further headers and body. Small files are behind a relative redirect, weights behind one to the store.
fn respond(request: &Request, base: &str, files: &BTreeMap<String, Vec<u8>>) -> (u16, String, Vec<u8>) {
    let path = request.path.as_str();
    if ["main", "v1"].iter().any(|revision| path == format!("/api/models/{MODEL}/revision/{revision}")) {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let list = serde_json::json!({ "sha": COMMIT, "siblings": siblings, "private": false });
        return (200, "Content-Type: application/json\r\n".to_owned(), list.to_string().into_bytes());
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some(content) = files.get(name) else { return (404, String::new(), Vec::new()) };
    let commit = format!("X-Repo-Commit: {COMMIT}\r\n");
    if path == format!("/{MODEL}/resolve/{COMMIT}/{name}") {
        return match name.ends_with(".safetensors") {
            true => (
                302,
                format!("{commit}X-Linked-Etag: \"sha-{name}\"\r\nLocation: {base}/store/{name}\r\n"),
                Vec::new(),
            ),
            false => (307, format!("{commit}Location: /api/resolve-cache/{name}\r\n"), Vec::new()),
        };
    }
    let total = content.len();
    let last = if request.range.as_deref() == Some("bytes=0-0") { 0 } else { total - 1 };
    let headers = format!("{commit}ETag: \"etag-{name}\"\r\nContent-Range: bytes 0-{last}/{total}\r\n");
    (206, headers, content[..=last].to_vec())
}
