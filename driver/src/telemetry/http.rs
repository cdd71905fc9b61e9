//! The HTTP endpoint: `/livez`, `/readyz`, `/metrics`.
//!
//! **Invariant.** `/livez` says only that the driver's own loop turns: no disk has a part in it, since whoever kills the
//! driver for a bad answer heals no disk with that. What is not in order is in `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::health::{Health, Report};
use super::metrics::{Metrics, Source};

/// What is served.
#[derive(Clone)]
pub struct Endpoint {
    /// For `/readyz`.
    pub health: Health,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Where its values come from.
    pub source: Arc<dyn Source>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("health", &self.health).finish_non_exhaustive()
    }
}

/// The address cannot be served on.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve HTTP on {address}")]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// Takes the address.
///
/// # Errors
/// [`BindError`]: it is taken, or not one of this machine.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

impl Endpoint {
    /// Serves until `end` is cancelled, then leaves connections to themselves.
    pub async fn serve(self, listener: TcpListener, end: CancellationToken) {
        let served = axum::serve(listener, self.router());
        tokio::select! {
            served = served => {
                if let Err(error) = served {
                    tracing::error!(%error, "the HTTP endpoint ended");
                }
            }
            () = end.cancelled() => {}
        }
    }

    fn router(self) -> Router {
        Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self)
    }
}

async fn readyz(State(endpoint): State<Endpoint>) -> Response {
    let report = endpoint.health.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match json(&report) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => broken(&error),
    }
}

fn json(report: &Report) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(report).map(|text| text + "\n")
}

async fn metrics(State(endpoint): State<Endpoint>) -> Response {
    match endpoint.metrics.text(&endpoint.source.snapshot()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => broken(&error),
    }
}

fn broken(error: &dyn std::error::Error) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, super::chain(error)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::health::{Check, Fault};
    use crate::telemetry::metrics::Snapshot;
    use std::sync::Mutex;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[derive(Default)]
    struct Part(Mutex<Vec<Fault>>);

    impl Check for Part {
        fn faults(&self) -> Vec<Fault> {
            self.0.lock().unwrap().clone()
        }
    }

    impl Source for Part {
        fn snapshot(&self) -> Snapshot {
            Snapshot { ready: self.0.lock().unwrap().is_empty(), ..Snapshot::default() }
        }
    }

    async fn ask(address: SocketAddr, path: &str) -> (u16, String) {
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn what_is_not_in_order_is_listed_and_does_not_end_the_driver() {
        let part = Arc::new(Part::default());
        let endpoint = Endpoint {
            health: Health::default().with(Arc::clone(&part) as Arc<dyn Check>),
            metrics: Arc::new(Metrics::new(Default::default()).unwrap()),
            source: Arc::clone(&part) as Arc<dyn Source>,
        };
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(bind(address).await.unwrap_err().to_string().contains(&address.to_string()));
        let end = CancellationToken::new();
        let server = tokio::spawn(endpoint.serve(listener, end.clone()));

        assert_eq!(ask(address, "/livez").await, (200, "ok\n".to_owned()));
        let (status, body) = ask(address, "/readyz").await;
        assert_eq!(
            (status, serde_json::from_str::<serde_json::Value>(&body).unwrap()["ready"].as_bool()),
            (200, Some(true))
        );
        let fault = Fault {
            subject: "volume group fast of device class nvme".to_owned(),
            reason: "it is not found on this node".to_owned(),
            since: Some(Duration::from_millis(7200)),
        };
        part.0.lock().unwrap().push(fault);
        let (status, body) = ask(address, "/readyz").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let expected = serde_json::json!({"ready": false, "faults": [{
            "subject": "volume group fast of device class nvme",
            "reason": "it is not found on this node",
            "forSeconds": 7,
        }]});
        assert_eq!((status, body), (503, expected));
        assert_eq!(ask(address, "/livez").await.0, 200);
        let (status, text) = ask(address, "/metrics").await;
        assert!(
            status == 200 && text.contains("# HELP quarry_ready ") && text.contains("\nquarry_ready{node=\"\"} 0\n"),
            "{text}"
        );
        assert_eq!(ask(address, "/other").await.0, 404);
        end.cancel();
        server.await.unwrap();
    }
}
