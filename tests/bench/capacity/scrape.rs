//! What the API servers say of themselves: requests, watches, events, processor time.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result};
use kube::Client;

use crate::exposition;

/// What reporters read and write; what else API servers do is their own.
const RESOURCES: [&str; 7] =
    ["csistoragecapacities", "storageclasses", "csinodes", "nodes", "pods", "persistentvolumeclaims", "leases"];

/// What each of them watches.
const WATCHED: [&str; 3] = ["csistoragecapacities", "storageclasses", "leases"];

/// Sums over all API servers.
#[derive(Debug, Clone)]
pub struct Scrape {
    at: Instant,
    /// Requests by verb and resource.
    requests: BTreeMap<(String, String), f64>,
    /// Watches that go on, by resource.
    watches: BTreeMap<String, f64>,
    /// Events sent to watchers of capacity objects, and their bytes.
    events: f64,
    bytes: f64,
    /// Events of all resources that reporters watch, and their bytes.
    all_events: f64,
    all_bytes: f64,
    cpu: f64,
}

/// What happened between two of them.
#[derive(Debug, Clone)]
pub struct Difference {
    /// How long it was.
    pub seconds: f64,
    /// Requests by verb and resource.
    pub requests: BTreeMap<String, f64>,
    /// Watches begun, whether they go on or not.
    pub watches: f64,
    /// Events of capacity objects sent to watchers.
    pub events: f64,
    /// Their bytes.
    pub bytes: f64,
    /// Events of all that reporters watch.
    pub all_events: f64,
    /// Their bytes.
    pub all_bytes: f64,
    /// Processor time of the API servers in seconds.
    pub cpu: f64,
}

impl Scrape {
    /// Asks each API server.
    ///
    /// # Errors
    /// When one does not answer.
    pub async fn of(servers: &[Client]) -> Result<Self> {
        let mut all = Self {
            at: Instant::now(),
            requests: BTreeMap::new(),
            watches: BTreeMap::new(),
            events: 0.0,
            bytes: 0.0,
            all_events: 0.0,
            all_bytes: 0.0,
            cpu: 0.0,
        };
        for server in servers {
            let request = http::Request::get("/metrics").body(Vec::new())?;
            all.add(&server.request_text(request).await.context("an API server's metrics")?);
        }
        all.at = Instant::now();
        Ok(all)
    }

    fn add(&mut self, text: &str) {
        for line in exposition::lines(text) {
            let resource = line.label("resource");
            match line.name {
                "apiserver_request_total" if RESOURCES.contains(&resource) => {
                    *self.requests.entry((line.label("verb").to_owned(), resource.to_owned())).or_default() +=
                        line.value;
                }
                "apiserver_longrunning_requests" if line.label("verb") == "WATCH" && RESOURCES.contains(&resource) => {
                    *self.watches.entry(resource.to_owned()).or_default() += line.value;
                }
                "apiserver_watch_events_total" if WATCHED.contains(&resource) => {
                    self.all_events += line.value;
                    if resource == WATCHED[0] {
                        self.events += line.value;
                    }
                }
                "apiserver_watch_events_sizes_sum" if WATCHED.contains(&resource) => {
                    self.all_bytes += line.value;
                    if resource == WATCHED[0] {
                        self.bytes += line.value;
                    }
                }
                "process_cpu_seconds_total" => self.cpu += line.value,
                _ => {}
            }
        }
    }

    /// How many watches go on.
    #[must_use]
    pub fn watches(&self) -> f64 {
        self.watches.values().sum()
    }

    /// What happened since then.
    #[must_use]
    pub fn since(&self, before: &Self) -> Difference {
        let mut requests = BTreeMap::new();
        let mut ended = 0.0;
        for ((verb, resource), now) in &self.requests {
            let more = now - before.requests.get(&(verb.clone(), resource.clone())).copied().unwrap_or_default();
            if verb == "WATCH" {
                // A watch is counted when it ends.
                ended += more;
            } else if more > 0.0 {
                requests.insert(format!("{verb} {resource}"), more);
            }
        }
        Difference {
            seconds: self.at.duration_since(before.at).as_secs_f64(),
            requests,
            watches: ended + self.watches() - before.watches(),
            events: self.events - before.events,
            bytes: self.bytes - before.bytes,
            all_events: self.all_events - before.all_events,
            all_bytes: self.all_bytes - before.all_bytes,
            cpu: self.cpu - before.cpu,
        }
    }
}
