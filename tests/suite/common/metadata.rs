//! A stand-in for the metadata server of a Google Cloud VM, on loopback. As Google's does, it holds an answer back while
//! the value has the tag that the asker knows, for as long as it is told to, and refuses requests without its header.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The values of a VM that nothing has happened to yet.
const VALUES: [(&str, &str); 2] = [("preempted", "FALSE"), ("maintenance-event", "NONE")];

struct Value {
    text: &'static str,
    /// Grows with each change.
    version: u64,
    /// The last version that somebody has read to its end.
    heard: u64,
}

impl Value {
    fn etag(&self) -> String {
        format!("{:016x}", self.version.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

type Values = (Mutex<BTreeMap<&'static str, Value>>, Condvar);

/// The server of one VM. Its threads end with the process.
pub struct Metadata {
    host: String,
    values: Arc<Values>,
}

impl Metadata {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let values = VALUES.map(|(name, text)| (name, Value { text, version: 1, heard: 0 }));
        let values = Arc::new((Mutex::new(BTreeMap::from(values)), Condvar::new()));
        let served = values.clone();
        thread::spawn(move || {
            for connection in listener.incoming() {
                let (connection, values) = (connection.unwrap(), served.clone());
                // Who asks may be killed meanwhile.
                thread::spawn(move || _ = answer(connection, &values));
            }
        });
        Self { host, values }
    }

    /// Its address, for `GCE_METADATA_HOST`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Changes a value: whoever waits for that is told.
    pub fn set(&self, name: &str, text: &'static str) {
        let (values, changed) = &*self.values;
        let mut values = values.lock().unwrap();
        let value = values.get_mut(name).unwrap();
        (value.text, value.version) = (text, value.version + 1);
        changed.notify_all();
    }

    /// Waits until somebody has read the present value.
    #[track_caller]
    pub fn wait_until_heard(&self, name: &str) {
        let (values, changed) = &*self.values;
        let is_open = |values: &mut BTreeMap<_, Value>| values[name].heard < values[name].version;
        let waited = changed.wait_timeout_while(values.lock().unwrap(), Duration::from_secs(120), is_open);
        assert!(!waited.unwrap().1.timed_out(), "nobody asks for {name}");
    }
}

fn answer(mut connection: TcpStream, (values, changed): &Values) -> std::io::Result<()> {
    let lines = BufReader::new(&connection).lines().map_while(Result::ok);
    let lines = lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>();
    let line = lines.first().map_or("", String::as_str);
    let path = line.strip_prefix("GET /computeMetadata/v1/instance/").unwrap_or("");
    let (name, query) = path.split(' ').next().unwrap().split_once('?').unwrap_or((path, ""));
    let of_query = |name: &str| {
        query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    let has_header = lines.iter().any(|line| line.eq_ignore_ascii_case("metadata-flavor: google"));
    let mut known = values.lock().unwrap();
    if !has_header || !known.contains_key(name) {
        let status = if has_header { "404 Not Found" } else { "403 Forbidden" };
        return write!(connection, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    }
    let deadline = Instant::now() + Duration::from_secs(of_query("timeout_sec").parse().unwrap_or(3600));
    let waits = of_query("wait_for_change") == "true";
    while waits && of_query("last_etag") == known[name].etag() && Instant::now() < deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        known = changed.wait_timeout(known, left).unwrap().0;
    }
    let Value { text, version, .. } = known[name];
    let headers = format!("Metadata-Flavor: Google\r\nETag: {}\r\n", known[name].etag());
    drop(known);
    let length = text.len();
    write!(connection, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{headers}\r\n{text}")?;
    // Until it has all.
    connection.read_to_end(&mut vec![])?;
    let mut known = values.lock().unwrap();
    if let Some(value) = known.get_mut(name) {
        value.heard = version;
    }
    changed.notify_all();
    Ok(())
}
