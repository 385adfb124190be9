//! A stand-in for the Hub, on this machine: one repository, with the headers and redirects of the real one, and beside it,
//! on another host, the store that holds its weights.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread;

use bert_xla::weights::Hub;
use sha2::{Digest, Sha256};

pub const MODEL: &str = "someone/tiny-bert";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// What the store's addresses are signed with.
pub const SIGNATURE: &str = "Signature=c2lnbmVk";

/// Serves files until the test ends.
pub struct Server {
    pub endpoint: String,
    shared: Arc<Shared>,
}

struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    endpoint: String,
    store: String,
    requests: Mutex<Vec<Request>>,
    faults: Mutex<Vec<(String, Fault)>>,
}

#[derive(Clone, Debug, Default)]
pub struct Request {
    pub at_store: bool,
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

/// What goes wrong with one answer.
pub enum Fault {
    /// Another status and further headers.
    Status(u16, String),
    /// The connection ends after so many bytes of the body.
    CutAfter(usize),
    /// Nothing more comes after so many bytes of the body.
    StallAfter(usize),
    /// Nothing comes at all.
    Silence,
    /// A bit is another.
    Flip,
    /// A page for people comes, with status 200.
    Page,
    /// The range that was asked for is overlooked.
    Whole,
    /// The range is another one.
    FromStart,
    /// The rest comes when the test says so.
    HoldAfter(usize, Receiver<()>),
}

/// The hash by which a file is named that the store holds.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The Hub at `endpoint`, with its cache in `home` and further variables.
pub fn hub(home: &Path, endpoint: &str, more: &[(&str, &str)]) -> Hub {
    let home = home.to_str().unwrap();
    Hub::from_variables(|name| match more.iter().find(|(known, _)| *known == name) {
        Some((_, value)) => Some(value.to_string()),
        None if name == "HF_HOME" => Some(home.to_owned()),
        None if name == "HF_ENDPOINT" => Some(endpoint.to_owned()),
        None => None,
    })
    .unwrap()
}

impl Server {
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self::with_store_at("127.0.0.2", files)
    }

    /// With the store on this host, on another port.
    pub fn with_store_at(host: &str, files: BTreeMap<String, Vec<u8>>) -> Self {
        let (hub, store) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind((host, 0)).unwrap());
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (endpoint, store_url) = (url(&hub), url(&store));
        let (requests, faults) = Default::default();
        let shared = Shared { files, endpoint: endpoint.clone(), store: store_url, requests, faults };
        let shared = Arc::new(shared);
        for (at_store, listener) in [(false, hub), (true, store)] {
            let shared = shared.clone();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let shared = shared.clone();
                    // A client that hangs up is the client's business: the test sees what it made of it.
                    thread::spawn(move || stream.and_then(|stream| answer(stream, at_store, &shared)));
                }
            });
        }
        Self { endpoint, shared }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The requests that the store got.
    pub fn stored(&self) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.at_store).collect()
    }

    /// The next download whose path has `part` in it goes wrong; several faults follow one another.
    pub fn fail(&self, part: &str, fault: Fault) {
        self.shared.faults.lock().unwrap().push((part.to_owned(), fault));
    }
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

fn answer(mut stream: TcpStream, at_store: bool, shared: &Shared) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { at_store, method, path, ..Request::default() };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.to_owned()),
            "range" => request.range = Some(value.to_owned()),
            _ => {}
        }
    }
    let fault = {
        let mut faults = shared.faults.lock().unwrap();
        let is_meant = |(part, _): &(String, Fault)| request.method == "GET" && request.path.contains(part);
        faults.iter().position(is_meant).map(|i| faults.remove(i).1)
    };
    shared.requests.lock().unwrap().push(request.clone());
    match fault {
        Some(Fault::Whole) => request.range = None,
        Some(Fault::FromStart) => request.range = Some("bytes=0-".to_owned()),
        _ => {}
    }
    let mut answer = if at_store { from_store(&request, shared) } else { from_hub(&request, shared) };
    let mut length = answer.body.len();
    if request.method == "HEAD" {
        answer.body.clear();
    }
    // Waits until the client hangs up.
    let wait = |mut stream: TcpStream| stream.read(&mut [0]).map(drop);
    match fault {
        Some(Fault::Silence) => return wait(stream),
        Some(Fault::Flip) => answer.body[length / 2] ^= 1,
        Some(Fault::Page) => {
            answer =
                Answer { status: 200, headers: String::new(), body: b"<!doctype html>\n<p>Log in".to_vec() };
            length = answer.body.len();
        }
        Some(Fault::Status(status, ref headers)) => {
            answer = Answer { status, headers: headers.clone(), body: vec![] };
            length = 0;
        }
        _ => {}
    }
    let Answer { status, headers, body } = answer;
    let head =
        format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes())?;
    match fault {
        Some(Fault::CutAfter(bytes)) => stream.write_all(&body[..bytes]),
        Some(Fault::StallAfter(bytes)) => {
            stream.write_all(&body[..bytes])?;
            wait(stream)
        }
        Some(Fault::HoldAfter(bytes, go_on)) => {
            stream.write_all(&body[..bytes])?;
            let _ = go_on.recv();
            stream.write_all(&body[bytes..])
        }
        _ => stream.write_all(&body),
    }
}

/// Small files are behind a relative redirect, weights behind one to the store.
fn from_hub(request: &Request, shared: &Shared) -> Answer {
    let path = request.path.as_str();
    if ["main", "v1", "refs%2Fpr%2F1"]
        .iter()
        .any(|name| path == format!("/api/models/{MODEL}/revision/{name}"))
    {
        let siblings: Vec<_> =
            shared.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let list = serde_json::json!({ "sha": COMMIT, "siblings": siblings, "private": false });
        let headers = "Content-Type: application/json\r\n".to_owned();
        return Answer { status: 200, headers, body: list.to_string().into_bytes() };
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some(content) = shared.files.get(name) else {
        return Answer { status: 404, headers: String::new(), body: vec![] };
    };
    let commit = format!("X-Repo-Commit: {COMMIT}\r\n");
    if path != format!("/{MODEL}/resolve/{COMMIT}/{name}") {
        // The hash that git has for it is shorter than the store's.
        let headers = format!("{commit}ETag: \"{}\"\r\n", &sha256(content)[..40]);
        return Answer { status: 200, headers, body: content.clone() };
    }
    let (status, headers) = if name.ends_with(".safetensors") {
        let (hash, size, store) = (sha256(content), content.len(), &shared.store);
        let linked = format!("X-Linked-Etag: \"{hash}\"\r\nX-Linked-Size: {size}\r\n");
        (302, format!("{commit}{linked}Location: {store}/store/{name}?{SIGNATURE}\r\n"))
    } else if name == "tokenizer_config.json" {
        (301, format!("{commit}Location: {}/api/resolve-cache/{name}\r\n", shared.endpoint))
    } else {
        (307, format!("{commit}Location: /api/resolve-cache/{name}\r\n"))
    };
    Answer { status, headers, body: vec![] }
}

fn from_store(request: &Request, shared: &Shared) -> Answer {
    let name = request.path.trim_start_matches("/store/").split('?').next().unwrap_or_default();
    let content = &shared.files[name];
    let etag = "ETag: \"of the store\"\r\n";
    let start = request.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    let Some(start) = start.map(|start| start.parse::<usize>().unwrap()) else {
        return Answer { status: 200, headers: etag.to_owned(), body: content.clone() };
    };
    let (last, total) = (content.len() - 1, content.len());
    let headers = format!("{etag}Content-Range: bytes {start}-{last}/{total}\r\n");
    Answer { status: 206, headers, body: content[start..].to_vec() }
}
