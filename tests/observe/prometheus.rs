//! A real Prometheus that scrapes both endpoints.

use std::net::SocketAddr;
use std::time::Duration;

use quarry_tests::command::Command;
use quarry_tests::process::{self, Child, Log};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::{exposed, files};

/// The label that Prometheus adds.
pub const CLUSTER: &str = "test";
/// How many scrapes there are before anything is asked.
const SCRAPES: u32 = 20;

/// Prometheus with what it scrapes.
pub struct Prometheus {
    address: SocketAddr,
    end: CancellationToken,
    _child: Child,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts it, and waits until it has seen enough for rates. It evaluates the alerts, too.
    pub async fn start() -> Self {
        let end = CancellationToken::new();
        let (driver, reporter) = exposed::serve(&end).await;
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yaml");
        let rules = files::path("manifests/chart/alerts/quarry.yaml");
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n  - job_name: \
             quarry\n    static_configs:\n      - targets: [\"{driver}\", \"{reporter}\"]\n        labels: {{cluster: {CLUSTER}}}\n",
            rules.display()
        );
        std::fs::write(&config, text).unwrap();
        // Free a moment ago; whoever takes it in between makes the start fail, not the test lie.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let command = Command::new("prometheus").args([
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", folder.path().join("data").display()),
            format!("--web.listen-address={address}"),
        ]);
        let child = process::start(&command, Log::File(&folder.path().join("log"))).unwrap();
        let prometheus = Self { address, end, _child: child, _folder: folder };
        for _ in 0..600 {
            let ready = prometheus.try_query(&format!("min(count_over_time(up[2m])) >= {SCRAPES}")).await;
            if ready.is_some_and(|answer| answer["data"]["result"].as_array().is_some_and(|all| !all.is_empty())) {
                return prometheus;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let log = std::fs::read_to_string(prometheus._folder.path().join("log")).unwrap_or_default();
        panic!("Prometheus did not come so far: {log}");
    }

    /// The result of a query: its series.
    pub async fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let answer = self.try_query(query).await.ok_or("Prometheus does not answer")?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"]["result"].as_array().unwrap().clone()),
            _ => Err(answer.to_string()),
        }
    }

    /// What it says of its rules.
    pub async fn rules(&self) -> Value {
        serde_json::from_str(&get(self.address, "/api/v1/rules").await).unwrap()
    }

    async fn try_query(&self, query: &str) -> Option<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let body = ask(self.address, &format!("/api/v1/query?query={encoded}")).await.ok()?;
        serde_json::from_str(&body).ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// What an address answers.
pub async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, path).await.unwrap()
}

/// HTTP/1.0: the answer comes in one piece.
async fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut connection = tokio::net::TcpStream::connect(address).await?;
    connection.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
