//! Cloud Storage as Google's reference of its XML API has it, on this machine: what fake-gcs-server lacks, which are
//! uploads in parts and preconditions, and what goes wrong with a network.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What the server takes for a token.
pub const TOKEN: &str = "ya29.c0-secret_token";
pub const ACCOUNT: &str = "trainer@project.iam.gserviceaccount.com";
/// A list comes in pages of so many names.
const PAGE: usize = 3;

/// One bucket, `runs`, until the test ends.
pub struct Gcs {
    pub url: String,
    shared: Arc<Mutex<State>>,
}

#[derive(Default)]
pub struct State {
    pub objects: BTreeMap<String, Object>,
    /// By its id: the object's name, and the parts by their numbers.
    pub uploads: BTreeMap<String, (String, BTreeMap<u32, Vec<u8>>)>,
    pub requests: Vec<Request>,
    generation: u64,
    /// Connections that are open.
    active: usize,
    faults: Vec<(String, String, Fault)>,
}

#[derive(Clone)]
pub struct Object {
    pub bytes: Vec<u8>,
    pub generation: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    /// The object's name, decoded.
    pub name: String,
    pub query: BTreeMap<String, String>,
    pub range: Option<String>,
    pub if_generation: Option<String>,
    pub copy_source: Option<String>,
    pub authorization: Option<String>,
    pub length: usize,
}

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer; a body that has `{}` gets the token there.
    Status(u16, String),
    /// The connection ends before the request is read to its end.
    CutRequest,
    /// The connection ends after so many bytes of the answer's body.
    CutAfter(usize),
    /// It is done, but the connection ends before the answer.
    LoseAnswer,
    /// The answer comes once this is so.
    Held(Arc<AtomicBool>),
}

impl Gcs {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Mutex::new(State::default()));
        let state = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = state.clone();
                state.lock().unwrap().active += 1;
                // A client that hangs up is the client's business: the test sees what it made of it.
                thread::spawn(move || {
                    let answered = stream.and_then(|stream| answer(stream, &state));
                    state.lock().unwrap().active -= 1;
                    answered
                });
            }
        });
        Self { url, shared }
    }

    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.lock().unwrap()
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        self.state().put(name, bytes.to_vec());
    }

    /// The next request of `method` whose target has `part` in it goes wrong; several faults follow one another.
    pub fn fail(&self, method: &str, part: &str, fault: Fault) {
        self.state().faults.push((method.to_owned(), part.to_owned(), fault));
    }

    /// The requests that have this method and all of these parameters.
    pub fn requests(&self, method: &str, parameters: &[&str]) -> Vec<Request> {
        let state = self.state();
        let asks = |request: &&Request| parameters.iter().all(|name| request.query.contains_key(*name));
        state.requests.iter().filter(|request| request.method == method).filter(asks).cloned().collect()
    }

    /// Waits until what clients have sent, which may be gone, is done.
    pub fn settle(&self) {
        while self.state().active > 0 {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What a process needs to come here with a token.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        vec![("GOOGLE_BASE_URL", self.url.clone()), ("GOOGLE_BEARER_TOKEN", TOKEN.to_owned())]
    }
}

impl State {
    fn put(&mut self, name: &str, bytes: Vec<u8>) -> u64 {
        self.generation += 1;
        let generation = 1_700_000_000_000_000 + self.generation;
        self.objects.insert(name.to_owned(), Object { bytes, generation });
        generation
    }
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(&text.replace('+', "%20")).decode_utf8().unwrap().into_owned()
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16, headers: String, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers, body: body.into() }
    }

    fn error(status: u16, code: &str) -> Self {
        let text = format!(
            "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>Told.</Message></Error>"
        );
        Self::new(status, String::new(), text)
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let (bucket, name) =
        path.trim_start_matches('/').split_once('/').unwrap_or((path.get(1..).unwrap_or_default(), ""));
    let parameter = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    };
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(parameter).collect();
    let mut request = Request { method, name: decode(name), query, ..Request::default() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.to_owned()),
            "range" => request.range = Some(value.to_owned()),
            "x-goog-if-generation-match" => request.if_generation = Some(value.to_owned()),
            "x-goog-copy-source" => request.copy_source = Some(decode(value)),
            "content-length" => request.length = value.parse().unwrap(),
            _ => {}
        }
    }
    let fault = {
        let faults = &mut state.lock().unwrap().faults;
        let meant = |(method, part, _): &(String, String, Fault)| {
            *method == request.method && decode(&target).contains(part)
        };
        faults.iter().position(meant).map(|i| faults.remove(i).2)
    };
    state.lock().unwrap().requests.push(request.clone());
    if let Some(Fault::CutRequest) = fault {
        return Ok(());
    }
    let mut body = vec![0; request.length];
    reader.read_exact(&mut body)?;
    let Answer { status, headers, body } = match &fault {
        Some(Fault::Status(status, body)) => Answer::new(
            *status,
            String::new(),
            body.replace("{}", request.authorization.as_deref().unwrap_or("")),
        ),
        _ if request.authorization.as_deref() != Some(&format!("Bearer {TOKEN}")) => {
            Answer::error(401, "AuthenticationRequired")
        }
        _ if bucket != "runs" => Answer::error(404, "NoSuchBucket"),
        _ => serve(&request, body, &mut state.lock().unwrap()),
    };
    match fault {
        Some(Fault::LoseAnswer) => return Ok(()),
        Some(Fault::Held(ref until)) => {
            while !until.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(5));
            }
        }
        _ => {}
    }
    let head = format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    let sent = match fault {
        _ if request.method == "HEAD" => 0,
        Some(Fault::CutAfter(bytes)) => bytes.min(body.len()),
        _ => body.len(),
    };
    stream.write_all(&body[..sent])
}

fn serve(request: &Request, body: Vec<u8>, state: &mut State) -> Answer {
    let query = |name: &str| request.query.get(name).cloned();
    let name = request.name.as_str();
    let headers = |object: &Object| {
        let generation = object.generation;
        format!(
            "ETag: \"{generation}\"\r\nLast-Modified: Tue, 01 Sep 2026 10:00:00 GMT\r\nx-goog-generation: {generation}\r\n"
        )
    };
    let now = state.objects.get(name).map_or(0, |object| object.generation);
    if request.if_generation.as_ref().is_some_and(|wanted| *wanted != now.to_string()) {
        return Answer::error(412, "PreconditionFailed");
    }
    match (request.method.as_str(), query("uploadId")) {
        ("GET", None) if name.is_empty() => list(request, state),
        ("GET" | "HEAD", None) => match state.objects.get(name) {
            Some(object)
                if query("generation").is_none_or(|asked| asked == object.generation.to_string()) =>
            {
                let range =
                    request.range.as_ref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
                let Some((start, end)) = range else {
                    return Answer::new(200, headers(object), &*object.bytes);
                };
                let size = object.bytes.len();
                let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap_or(size - 1));
                let end = (end + 1).min(size);
                let range = format!("Content-Range: bytes {start}-{}/{size}\r\n", end - 1);
                Answer::new(206, headers(object) + &range, &object.bytes[start..end])
            }
            _ => Answer::error(404, "NoSuchKey"),
        },
        ("PUT", None) => {
            let bytes = match request.copy_source.as_ref().and_then(|source| source.strip_prefix("runs/")) {
                Some(source) => match state.objects.get(source) {
                    Some(object) => object.bytes.clone(),
                    None => return Answer::error(404, "NoSuchKey"),
                },
                None => body,
            };
            state.put(name, bytes);
            Answer::new(200, headers(&state.objects[name]), "")
        }
        ("DELETE", None) => match state.objects.remove(name) {
            Some(_) => Answer::new(204, String::new(), ""),
            None => Answer::error(404, "NoSuchKey"),
        },
        ("POST", None) if query("uploads").is_some() => {
            let id = format!("upload-{}", state.requests.len());
            state.uploads.insert(id.clone(), (name.to_owned(), BTreeMap::new()));
            Answer::new(
                200,
                String::new(),
                format!(
                    "<InitiateMultipartUploadResult><Bucket>runs</Bucket><Key>{name}</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                ),
            )
        }
        ("PUT", Some(id)) => {
            let number: u32 = query("partNumber").unwrap().parse().unwrap();
            let Some((_, parts)) = state.uploads.get_mut(&id) else {
                return Answer::error(404, "NoSuchUpload");
            };
            parts.insert(number, body);
            Answer::new(200, format!("ETag: \"part-{number}\"\r\n"), "")
        }
        ("POST", Some(id)) => {
            let Some((_, mut parts)) = state.uploads.remove(&id) else {
                return Answer::error(404, "NoSuchUpload");
            };
            let wanted = String::from_utf8(body).unwrap();
            // All but the last are at least 5 MiB, by the reference.
            let last = parts.keys().max().copied();
            let is_small = |(number, part): (&u32, &Vec<u8>)| Some(*number) != last && part.len() < 5 << 20;
            if parts.iter().any(is_small) || wanted.matches("<PartNumber>").count() != parts.len() {
                return Answer::error(400, "EntityTooSmall");
            }
            let bytes = std::mem::take(&mut parts).into_values().flatten().collect();
            let generation = state.put(name, bytes);
            Answer::new(
                200,
                format!("x-goog-generation: {generation}\r\n"),
                format!(
                    "<CompleteMultipartUploadResult><ETag>\"{generation}\"</ETag></CompleteMultipartUploadResult>"
                ),
            )
        }
        ("DELETE", Some(id)) => {
            state.uploads.remove(&id);
            Answer::new(204, String::new(), "")
        }
        _ => Answer::error(400, "InvalidArgument"),
    }
}

/// `list-type=2`, as S3 has it too.
fn list(request: &Request, state: &State) -> Answer {
    let query = |name: &str| request.query.get(name).map_or("", String::as_str);
    let (prefix, delimiter, after) = (query("prefix"), query("delimiter"), query("continuation-token"));
    let mut entries = BTreeMap::new();
    for (name, object) in state.objects.iter().filter(|(name, _)| name.starts_with(prefix)) {
        let folder = name[prefix.len()..].find('/').filter(|_| !delimiter.is_empty());
        match folder {
            Some(end) => entries.insert(name[..prefix.len() + end + 1].to_owned(), None),
            None => entries.insert(name.clone(), Some(object)),
        };
    }
    let left = entries.into_iter().filter(|(name, _)| name.as_str() > after).collect::<Vec<_>>();
    let most = request.query.get("max-keys").map_or(PAGE, |most| PAGE.min(most.parse().unwrap()));
    let truncated = left.len() > most;
    let mut xml = format!(
        "<ListBucketResult><Name>runs</Name><Prefix>{prefix}</Prefix><IsTruncated>{truncated}</IsTruncated>"
    );
    for (name, object) in left.iter().take(most) {
        xml += &match object {
            None => format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"),
            Some(object) => format!(
                "<Contents><Key>{name}</Key><LastModified>2026-09-01T10:00:00.000Z</LastModified><ETag>\"{}\"</ETag>\
                 <Size>{}</Size></Contents>",
                object.generation,
                object.bytes.len()
            ),
        };
    }
    if truncated {
        xml += &format!("<NextContinuationToken>{}</NextContinuationToken>", left[most - 1].0);
    }
    Answer::new(200, String::new(), xml + "</ListBucketResult>")
}
