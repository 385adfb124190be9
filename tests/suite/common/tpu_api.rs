//! The Cloud TPU API v2 on this machine, as Google's REST reference has it: nodes, queued resources and operations, their
//! states over time, and what goes wrong. The real `gcloud` is its client.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use serde_json::{Value as Json, json};

/// What machines do when the API makes or removes them. The API is locked meanwhile.
pub trait Machines: Send + 'static {
    /// A VM's workers start, from nothing.
    fn boot(&mut self);
    /// They are gone, with all that was on them.
    fn remove(&mut self);
    /// The keys that may log in, as in the metadata `ssh-keys`.
    fn authorize(&mut self, keys: &str);
    /// Where workers are.
    fn endpoints(&self) -> Vec<Json>;
}

/// One project, `p`, with one zone, `z`, until the test ends.
pub struct TpuApi {
    pub url: String,
    state: Arc<Mutex<State>>,
}

pub struct State {
    pub nodes: BTreeMap<String, Node>,
    pub queued: BTreeMap<String, Queued>,
    pub requests: Vec<Request>,
    /// How many creations find no capacity.
    pub without_stock: usize,
    /// The most nodes that there were at once, not counting those that were gone.
    pub most_alive: usize,
    /// Nodes that were deleted while they were neither gone nor told to be.
    pub deleted_alive: Vec<String>,
    /// When nodes were made.
    pub create_time: String,
    operations: Vec<Operation>,
    faults: Vec<(String, String, u16, usize)>,
    machines: Box<dyn Machines>,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub state: String,
    pub health: String,
    /// What it was made with, and what was added to it.
    pub spec: Json,
    pub queued: Option<String>,
    /// How often it was asked for while it was on its way: that ends by itself, whether or not anyone waits for it.
    looks: usize,
}

#[derive(Clone, Debug)]
pub struct Queued {
    pub state: String,
    pub node: String,
    pub spec: Json,
    pub error: Option<String>,
    /// The states that are ahead; each is reached when it is looked at.
    pub ahead: Vec<&'static str>,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Without the version, such as `projects/p/locations/z/nodes/n`.
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub body: Json,
}

enum Operation {
    Create(String),
    Refused,
    Delete(String),
    DeleteQueued(String),
    Done,
}

impl TpuApi {
    pub fn start(machines: Box<dyn Machines>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            nodes: BTreeMap::new(),
            queued: BTreeMap::new(),
            requests: vec![],
            without_stock: 0,
            most_alive: 0,
            deleted_alive: vec![],
            create_time: "2026-01-02T03:04:05Z".to_owned(),
            operations: vec![],
            faults: vec![],
            machines,
        }));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = shared.clone();
                // A client that hangs up is the client's business.
                thread::spawn(move || stream.and_then(|stream| answer(stream, &state)));
            }
        });
        Self { url, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The next `times` requests of this method whose path has this part get this status.
    pub fn fail(&self, method: &str, part: &str, status: u16, times: usize) {
        self.state().faults.push((method.to_owned(), part.to_owned(), status, times));
    }

    /// Methods and paths so far, and forgets them.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    pub fn is_ready(&self, name: &str) -> bool {
        self.state().nodes.get(name).is_some_and(|node| node.state == "READY")
    }

    /// A node is taken away; `how` is the state that it is left in, or nothing if it vanishes.
    pub fn preempt(&self, name: &str, how: Option<&str>) {
        let mut state = self.state();
        if !state.nodes.contains_key(name) {
            return;
        }
        state.machines.remove();
        let queued = state.nodes[name].queued.clone();
        match how {
            Some(how) => state.nodes.get_mut(name).unwrap().state = how.to_owned(),
            None => _ = state.nodes.remove(name),
        }
        if let Some(queued) = queued.and_then(|queued| state.queued.get_mut(&queued)) {
            queued.state = "SUSPENDED".to_owned();
        }
    }
}

const NODE: &str = "type.googleapis.com/google.cloud.tpu.v2.Node";
const GONE: [&str; 3] = ["PREEMPTED", "TERMINATED", "STOPPED"];

impl State {
    fn add_node(&mut self, name: &str, spec: Json, queued: Option<String>) {
        let health = "HEALTHY".to_owned();
        self.nodes
            .insert(name.to_owned(), Node { state: "CREATING".to_owned(), health, spec, queued, looks: 0 });
        let alive = self.nodes.values().filter(|node| !GONE.contains(&&*node.state)).count();
        self.most_alive = self.most_alive.max(alive);
    }

    fn make_ready(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name).filter(|node| node.state == "CREATING") {
            node.state = "READY".to_owned();
            let keys = node.spec["metadata"]["ssh-keys"].as_str().unwrap_or_default().to_owned();
            self.machines.boot();
            self.machines.authorize(&keys);
        }
    }

    fn remove_node(&mut self, name: &str) {
        if self.nodes.remove(name).is_some() {
            self.machines.remove();
        }
    }

    fn look_at(&mut self, name: &str) {
        const ENOUGH: usize = 2;
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.looks += 1;
        match (node.looks >= ENOUGH, &*node.state) {
            (true, "CREATING") => self.make_ready(name),
            (true, "DELETING") => {
                let queued = self.nodes[name].queued.clone();
                self.remove_node(name);
                queued.map(|queued| self.queued.remove(&queued));
            }
            _ => {}
        }
    }

    fn begin(&mut self, operation: Operation) -> Answer {
        self.operations.push(operation);
        Answer::ok(self.operation(self.operations.len() - 1, false))
    }

    fn operation(&self, number: usize, done: bool) -> Json {
        json!({
            "name": format!("projects/p/locations/z/operations/{number}"),
            "metadata": { "@type": "type.googleapis.com/google.cloud.tpu.v2.OperationMetadata" },
            "done": done,
        })
    }

    fn node(&self, name: &str) -> Option<Json> {
        let node = self.nodes.get(name)?;
        let mut json = node.spec.clone();
        json["name"] = json!(format!("projects/p/locations/z/nodes/{name}"));
        json["id"] = json!("1234567890");
        json["state"] = json!(node.state);
        json["health"] = json!(node.health);
        json["createTime"] = json!(self.create_time);
        if let Some(queued) = &node.queued {
            json["queuedResource"] = json!(format!("projects/p/locations/z/queuedResources/{queued}"));
        }
        let public = self.machines.endpoints();
        let is_internal = node.spec["networkConfig"]["enableExternalIps"] == json!(false);
        let endpoints = public.into_iter().map(|mut endpoint| {
            if is_internal {
                endpoint.as_object_mut().unwrap().remove("accessConfig");
            }
            endpoint
        });
        json["networkEndpoints"] = if node.state == "READY" { endpoints.collect() } else { json!([]) };
        Some(json)
    }

    /// What is asked of a queued resource moves it on.
    fn queued(&mut self, name: &str) -> Option<Json> {
        let is_gone = |queued: &Queued| queued.state == "DELETING" && !self.nodes.contains_key(&queued.node);
        if self.queued.get(name).is_some_and(is_gone) {
            self.queued.remove(name);
        }
        let queued = self.queued.get_mut(name)?;
        if !queued.ahead.is_empty() {
            queued.state = queued.ahead.remove(0).to_owned();
        }
        let (node, spec, state, error) =
            (queued.node.clone(), queued.spec.clone(), queued.state.clone(), queued.error.clone());
        match &*state {
            "PROVISIONING" if !self.nodes.contains_key(&node) => {
                let spec = spec["tpu"]["nodeSpec"][0]["node"].clone();
                self.add_node(&node, spec, Some(name.to_owned()));
            }
            "ACTIVE" => self.make_ready(&node),
            _ => {}
        }
        let mut json = spec;
        json["name"] = json!(format!("projects/p/locations/z/queuedResources/{name}"));
        json["state"] = json!({ "state": state });
        if let Some(error) = error {
            json["state"]["failedData"] = json!({ "error": { "code": 8, "message": error } });
        }
        Some(json)
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let words = request.path.split('/').collect::<Vec<_>>();
        let query = |name: &str| request.query.get(name).cloned().unwrap_or_default();
        match (&*request.method, &words[..]) {
            ("GET", ["projects", "p"]) => Answer::ok(json!({ "name": "p", "commonInstanceMetadata": {} })),
            ("GET", [.., "operations", number]) => self.poll(number.parse().unwrap_or(usize::MAX)),
            ("GET", [.., "nodes"]) => {
                let nodes = self.nodes.keys().filter_map(|name| self.node(name)).collect::<Vec<_>>();
                Answer::ok(json!({ "nodes": nodes }))
            }
            ("GET", [.., "queuedResources"]) => {
                let names = self.queued.keys().cloned().collect::<Vec<_>>();
                let all = names.iter().filter_map(|name| self.queued(name)).collect::<Vec<_>>();
                Answer::ok(json!({ "queuedResources": all }))
            }
            ("POST", [.., "nodes"]) => self.create(&query("nodeId"), request.body.clone()),
            ("GET", [.., "nodes", name]) => {
                self.look_at(name);
                self.node(name).map_or_else(Answer::not_found, Answer::ok)
            }
            ("PATCH", [.., "nodes", name]) => {
                let Some(node) = self.nodes.get_mut(*name) else { return Answer::not_found() };
                node.spec["metadata"] = request.body["metadata"].clone();
                let keys = node.spec["metadata"]["ssh-keys"].as_str().unwrap_or_default().to_owned();
                self.machines.authorize(&keys);
                self.begin(Operation::Done)
            }
            ("DELETE", [.., "nodes", name]) => self.delete(name),
            ("POST", [.., "queuedResources"]) => self.enqueue(&query("queuedResourceId"), &request.body),
            ("GET", [.., "queuedResources", name]) => {
                self.queued(name).map_or_else(Answer::not_found, Answer::ok)
            }
            ("DELETE", [.., "queuedResources", name]) => {
                self.delete_queued(name, query("force").eq_ignore_ascii_case("true"))
            }
            // Guest attributes: none are set.
            _ => Answer::not_found(),
        }
    }

    fn create(&mut self, name: &str, spec: Json) -> Answer {
        if self.nodes.contains_key(name) {
            return Answer::error(
                409,
                &format!("Resource 'projects/p/locations/z/nodes/{name}' already exists"),
            );
        }
        // There is one machine.
        if self.without_stock > 0 || !self.nodes.is_empty() {
            self.without_stock = self.without_stock.saturating_sub(1);
            return self.begin(Operation::Refused);
        }
        self.add_node(name, spec, None);
        self.begin(Operation::Create(name.to_owned()))
    }

    fn enqueue(&mut self, name: &str, spec: &Json) -> Answer {
        if self.queued.contains_key(name) {
            return Answer::error(409, "it already exists");
        }
        let node = spec["tpu"]["nodeSpec"][0]["nodeId"].as_str().unwrap_or_default().to_owned();
        let ahead = vec!["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"];
        let (state, error) = ("ACCEPTED".to_owned(), None);
        self.queued.insert(name.to_owned(), Queued { state, node, spec: spec.clone(), error, ahead });
        self.begin(Operation::Done)
    }

    fn delete(&mut self, name: &str) -> Answer {
        let Some(node) = self.nodes.get(name) else { return Answer::not_found() };
        if node.queued.is_some() {
            return Answer::error(400, "a node of a queued resource is deleted with it");
        }
        self.note_alive(name);
        let node = self.nodes.get_mut(name).unwrap();
        (node.state, node.looks) = ("DELETING".to_owned(), 0);
        self.begin(Operation::Delete(name.to_owned()))
    }

    fn delete_queued(&mut self, name: &str, force: bool) -> Answer {
        let Some(queued) = self.queued.get(name) else { return Answer::not_found() };
        let node = queued.node.clone();
        if self.nodes.contains_key(&node) && !force {
            return Answer::error(400, "it has a node: force must be set");
        }
        if queued.state != "SUSPENDED" {
            self.note_alive(&node);
        }
        let queued = self.queued.get_mut(name).unwrap();
        (queued.state, queued.ahead) = ("DELETING".to_owned(), vec![]);
        if let Some(node) = self.nodes.get_mut(&node) {
            (node.state, node.looks) = ("DELETING".to_owned(), 0);
        }
        self.begin(Operation::DeleteQueued(name.to_owned()))
    }

    fn note_alive(&mut self, name: &str) {
        let is_alive = |node: &Node| node.state != "DELETING" && !GONE.contains(&&*node.state);
        if self.nodes.get(name).is_some_and(is_alive) {
            self.deleted_alive.push(name.to_owned());
        }
    }

    fn poll(&mut self, number: usize) -> Answer {
        let Some(operation) = self.operations.get_mut(number) else { return Answer::not_found() };
        let mut json = json!({});
        match std::mem::replace(operation, Operation::Done) {
            Operation::Create(name) => self.make_ready(&name),
            Operation::Delete(name) => self.remove_node(&name),
            Operation::DeleteQueued(name) => {
                if let Some(queued) = self.queued.remove(&name) {
                    self.remove_node(&queued.node);
                }
            }
            Operation::Refused => {
                json = json!({ "error": { "code": 8, "message": "There is no more capacity in the zone \"z\"; you can \
                    try in another zone where Cloud TPU Nodes are offered [EID: 0x1]" } });
                // It stays refused.
                self.operations[number] = Operation::Refused;
            }
            Operation::Done => {}
        }
        let mut done = self.operation(number, true);
        match json["error"].take() {
            // What was made or changed, as far as clients read it.
            Json::Null => {
                done["response"] = json!({ "@type": NODE, "name": "projects/p/locations/z/nodes/my-tpu" })
            }
            error => done["error"] = error,
        }
        Answer::ok(done)
    }
}

struct Answer {
    status: u16,
    body: Json,
}

impl Answer {
    fn ok(body: Json) -> Self {
        Self { status: 200, body }
    }

    fn error(status: u16, message: &str) -> Self {
        let name = match status {
            400 => "INVALID_ARGUMENT",
            401 => "UNAUTHENTICATED",
            403 => "PERMISSION_DENIED",
            404 => "NOT_FOUND",
            409 => "ALREADY_EXISTS",
            429 => "RESOURCE_EXHAUSTED",
            503 => "UNAVAILABLE",
            _ => "INTERNAL",
        };
        Self { status, body: json!({ "error": { "code": status, "message": message, "status": name } }) }
    }

    fn not_found() -> Self {
        Self::error(404, "Resource was not found")
    }
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut words = first.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let path = ["/v2/", "/v2alpha1/", "/compute/v1/", "/compute/alpha/"]
            .iter()
            .find_map(|version| path.strip_prefix(version));
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        };
        let request = Request {
            method,
            path: decode(path.unwrap_or_default()),
            query: query.split('&').filter(|pair| !pair.is_empty()).map(pair).collect(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        };
        let Answer { status, body } = {
            let mut state = state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            state.requests.push(request.clone());
            let is_meant = |(method, part, _, times): &mut (String, String, u16, usize)| {
                *times > 0 && *method == request.method && request.path.contains(&**part)
            };
            match state.faults.iter_mut().find_map(|fault| is_meant(fault).then_some(fault)) {
                Some((_, _, status, times)) => {
                    *times -= 1;
                    Answer::error(*status, "told by the test")
                }
                None => state.answer(&request),
            }
        };
        let body = body.to_string();
        write!(
            stream,
            "HTTP/1.1 {status} .\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
}
