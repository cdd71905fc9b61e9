//! An API server in memory: as much of one as the reporter sees, and it can be made to fail.
//!
//! It stands in where a real one cannot be made to do what is tested: to answer 429 at the right moment, say. How the
//! reporter gets on with a real one is the suites' to show.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// What the next write gets instead of its answer.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// This status.
    Status(u16),
    /// 429, to be tried after so many seconds.
    Later(u64),
    /// It is done, and the answer is lost.
    Lost,
    /// A broken connection.
    Broken,
}

/// A request, as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub verb: &'static str,
    pub resource: String,
    pub name: String,
}

type Key = (String, String, String);
type Line = Result<String, std::io::Error>;

#[derive(Default)]
struct State {
    version: u64,
    /// Watches that ask for what was before this get 410.
    compacted: u64,
    objects: BTreeMap<Key, Value>,
    history: Vec<(u64, Key, &'static str, Value)>,
    watchers: Vec<(String, String, mpsc::UnboundedSender<Line>)>,
    asked: Vec<Asked>,
    /// How many seconds each watch was to last.
    lengths: Vec<u32>,
    faults: VecDeque<Fault>,
    down: bool,
}

/// The server.
#[derive(Clone, Default)]
pub struct Api(Arc<Mutex<State>>);

struct Path {
    resource: String,
    namespace: String,
    name: String,
}

impl Path {
    fn of(path: &str) -> Self {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let rest = if parts[0] == "api" { &parts[2..] } else { &parts[3..] };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let part = |at: usize| rest.get(at).map_or(String::new(), |part| (*part).to_owned());
        Self { resource: part(0), namespace: namespace.to_owned(), name: part(1) }
    }
}

fn selected(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let labels = query.get("labelSelector").map_or("", String::as_str);
    let label = |term: &str| {
        let (key, value) = term.split_once('=').unwrap();
        object["metadata"]["labels"][key] == value
    };
    let fields = query.get("fieldSelector").map_or("", String::as_str);
    let field = |term: &str| {
        let (path, value) = term.split_once('=').unwrap();
        let found = path.split('.').fold(object, |object, part| &object[part]);
        found.as_str().unwrap_or("") == value
    };
    labels.split(',').filter(|t| !t.is_empty()).all(label) && fields.split(',').filter(|t| !t.is_empty()).all(field)
}

fn query(text: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'%' => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                b'+' => b' ',
                byte => byte,
            });
        }
        String::from_utf8(bytes).unwrap()
    };
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (decode(key), decode(value))).collect()
}

fn answer(code: u16, body: &Value) -> Response<Body> {
    let status = StatusCode::from_u16(code).unwrap();
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
}

impl State {
    fn note(&mut self, key: Key, what: &'static str, object: &Value) {
        self.history.push((self.version, key.clone(), what, object.clone()));
        let line = || format!("{}\n", json!({"type": what, "object": object}));
        self.watchers.retain(|(resource, selector, sender)| {
            let wanted = *resource == key.0 && selected(object, &query(selector));
            !wanted || sender.send(Ok(line())).is_ok()
        });
    }

    fn put(&mut self, key: Key, mut object: Value) -> Value {
        self.version += 1;
        let before = self.objects.get(&key);
        let uid =
            before.map_or_else(|| json!(format!("uid-{}", self.version)), |before| before["metadata"]["uid"].clone());
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        if before.is_some() || object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = uid;
        }
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        object["metadata"]["name"] = json!(key.2);
        if !key.1.is_empty() {
            object["metadata"]["namespace"] = json!(key.1);
        }
        self.objects.insert(key.clone(), object.clone());
        self.note(key, what, &object);
        object
    }

    fn remove(&mut self, key: &Key) -> Option<Value> {
        let mut object = self.objects.remove(key)?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.note(key.clone(), "DELETED", &object);
        Some(object)
    }

    fn write(&mut self, method: &Method, key: Key, body: Value) -> Response<Body> {
        let there = self.objects.get(&key).cloned();
        let conflict = || answer(409, &status(409, "Conflict", "the object has been changed"));
        if *method == Method::POST {
            return match there {
                Some(_) => answer(409, &status(409, "AlreadyExists", "already exists")),
                None => answer(201, &self.put(key, body)),
            };
        }
        let precondition = |pointer: &str, body_pointer: &str| {
            let wanted = body.pointer(body_pointer).and_then(Value::as_str);
            let found = there.as_ref().and_then(|there| there.pointer(pointer)).and_then(Value::as_str);
            wanted.is_none() || wanted == found
        };
        if *method == Method::DELETE {
            if there.is_none() {
                return answer(404, &status(404, "NotFound", "not found"));
            }
            if !precondition("/metadata/uid", "/preconditions/uid") {
                return conflict();
            }
            self.remove(&key);
            return answer(200, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}));
        }
        let right = precondition("/metadata/uid", "/metadata/uid")
            && precondition("/metadata/resourceVersion", "/metadata/resourceVersion");
        match there {
            _ if !right => conflict(),
            // A lease is patched in parts.
            Some(mut there) if key.0 == "leases" => {
                there["spec"] = body["spec"].clone();
                answer(200, &self.put(key, there))
            }
            // An apply that changes nothing makes no new version.
            Some(there)
                if ["metadata/labels", "metadata/ownerReferences", "capacity", "maximumVolumeSize"]
                    .iter()
                    .all(|part| there.pointer(&format!("/{part}")) == body.pointer(&format!("/{part}"))) =>
            {
                answer(200, &there)
            }
            _ => answer(200, &self.put(key, body)),
        }
    }

    fn list(&self, path: &Path, query: &BTreeMap<String, String>) -> Response<Body> {
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|((resource, namespace, _), object)| {
                *resource == path.resource
                    && (path.namespace.is_empty() || *namespace == path.namespace)
                    && selected(object, query)
            })
            .map(|(_, object)| object)
            .collect();
        let version = self.version.max(1).to_string();
        answer(
            200,
            &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
        )
    }

    fn watch(&mut self, path: &Path, text: &str, query: &BTreeMap<String, String>) -> Response<Body> {
        let from: u64 = query["resourceVersion"].parse().unwrap();
        self.lengths.push(query["timeoutSeconds"].parse().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        if from < self.compacted {
            let gone = status(410, "Expired", "too old resource version");
            sender.send(Ok(format!("{}\n", json!({"type": "ERROR", "object": gone})))).unwrap();
        } else {
            for (version, key, what, object) in &self.history {
                if *version > from && key.0 == path.resource && selected(object, query) {
                    sender.send(Ok(format!("{}\n", json!({"type": what, "object": object})))).unwrap();
                }
            }
            self.watchers.push((path.resource.clone(), text.to_owned(), sender));
        }
        Response::new(Body::from_stream(UnboundedReceiverStream::new(lines)))
    }
}

impl Api {
    /// A client of it.
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await?;
                let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? };
                api.serve(&head.method, head.uri.path(), head.uri.query().unwrap_or(""), body)
            }
        });
        kube::Client::new(service, "default")
    }

    fn serve(&self, method: &Method, path: &str, text: &str, body: Value) -> Result<Response<Body>, tower::BoxError> {
        let mut state = self.0.lock().unwrap();
        if state.down {
            return Err("connection refused".into());
        }
        let (mut path, query) = (Path::of(path), query(text));
        let verb = match *method {
            Method::GET if query.get("watch").is_some_and(|watch| watch != "false") => "watch",
            Method::GET if path.name.is_empty() => "list",
            Method::GET => "get",
            Method::POST => "create",
            Method::PATCH => "patch",
            _ => "delete",
        };
        if *method == Method::POST {
            path.name = body["metadata"]["name"].as_str().unwrap().to_owned();
        }
        state.asked.push(Asked { verb, resource: path.resource.clone(), name: path.name.clone() });
        let key = (path.resource.clone(), path.namespace.clone(), path.name.clone());
        match verb {
            "watch" => return Ok(state.watch(&path, text, &query)),
            "list" => return Ok(state.list(&path, &query)),
            "get" => {
                let found = state.objects.get(&key);
                return Ok(found.map_or_else(|| answer(404, &status(404, "NotFound", "not found")), |o| answer(200, o)));
            }
            _ => {}
        }
        let fault = if path.resource == "csistoragecapacities" { state.faults.pop_front() } else { None };
        match fault {
            None => Ok(state.write(method, key, body)),
            Some(Fault::Status(code)) => Ok(answer(code, &status(code, "Test", "as ordered"))),
            Some(Fault::Later(seconds)) => {
                let mut said = status(429, "TooManyRequests", "later");
                said["details"] = json!({"retryAfterSeconds": seconds});
                Ok(answer(429, &said))
            }
            Some(Fault::Lost) => {
                drop(state.write(method, key, body));
                Err("connection reset".into())
            }
            Some(Fault::Broken) => Err("connection reset".into()),
        }
    }

    /// Makes or changes an object as somebody else would.
    pub fn put(&self, resource: &str, namespace: &str, name: &str, object: Value) {
        self.0.lock().unwrap().put((resource.to_owned(), namespace.to_owned(), name.to_owned()), object);
    }

    /// Deletes an object as somebody else would.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) {
        self.0.lock().unwrap().remove(&(resource.to_owned(), namespace.to_owned(), name.to_owned())).unwrap();
    }

    /// All objects of a resource.
    pub fn all(&self, resource: &str) -> Vec<Value> {
        let state = self.0.lock().unwrap();
        state.objects.iter().filter(|(key, _)| key.0 == resource).map(|(_, object)| object.clone()).collect()
    }

    /// The requests so far with this verb, for capacity objects.
    pub fn asked(&self, verb: &str) -> Vec<Asked> {
        let state = self.0.lock().unwrap();
        state.asked.iter().filter(|a| a.verb == verb && a.resource == "csistoragecapacities").cloned().collect()
    }

    /// How often a resource was listed.
    pub fn lists(&self, resource: &str) -> usize {
        self.0.lock().unwrap().asked.iter().filter(|a| a.verb == "list" && a.resource == resource).count()
    }

    /// How many seconds each watch so far was to last.
    pub fn watch_lengths(&self) -> Vec<u32> {
        self.0.lock().unwrap().lengths.clone()
    }

    /// How many requests there were besides watches.
    pub fn requests(&self) -> usize {
        self.0.lock().unwrap().asked.iter().filter(|asked| asked.verb != "watch").count()
    }

    /// How many writes of capacity objects there were.
    pub fn writes(&self) -> usize {
        ["create", "patch", "delete"].iter().map(|verb| self.asked(verb).len()).sum()
    }

    /// What becomes of the next writes.
    pub fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.0.lock().unwrap().faults.extend(faults);
    }

    /// Ends: watches break, nobody answers.
    pub fn stop(&self) {
        let mut state = self.0.lock().unwrap();
        state.down = true;
        state.watchers.clear();
    }

    /// Begins again. What happened meanwhile is forgotten, but for what came of it.
    pub fn start(&self) {
        let mut state = self.0.lock().unwrap();
        state.down = false;
        state.version += 10;
        state.compacted = state.version;
        state.history.clear();
    }
}
