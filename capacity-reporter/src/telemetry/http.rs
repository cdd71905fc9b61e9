//! The HTTP endpoint: `/livez`, `/readyz`, `/metrics`.
//!
//! **Invariant.** `/livez` says only that the reporter's own loop turns: a driver or an API server that is away is no
//! reason to start the reporter anew. That is in `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::metrics::Metrics;

/// Takes the address.
///
/// # Errors
/// It is taken, or not one of this machine.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot serve HTTP on {address}"))
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(text))
        .with_state(metrics);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the HTTP endpoint ended");
    }
}

async fn readyz(State(metrics): State<Arc<Metrics>>) -> Response {
    if metrics.ready() {
        (StatusCode::OK, "ok\n").into_response()
    } else {
        let said = "the driver does not answer, or objects could not be written; see the log\n";
        (StatusCode::SERVICE_UNAVAILABLE, said).into_response()
    }
}

async fn text(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, super::chain(&error)).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::RequestError;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
    async fn alive_at_once_and_ready_once_the_driver_was_asked() {
        let metrics = Arc::new(Metrics::of_node("n").unwrap());
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(format!("{:#}", bind(address).await.unwrap_err()).contains(&address.to_string()));
        let server = tokio::spawn(serve(listener, Arc::clone(&metrics)));
        assert_eq!(ask(address, "/livez").await, (200, "ok\n".to_owned()));
        assert_eq!(ask(address, "/readyz").await.0, 503);
        metrics.connected(true);
        metrics.round(3, 0, 1);
        metrics.requested("apply", &Ok::<(), RequestError>(()));
        metrics.requested("apply", &Err::<(), _>(RequestError::NoAnswer));
        metrics.published(Duration::from_millis(40));
        assert_eq!(ask(address, "/readyz").await.0, 200);
        metrics.round(3, 1, 0);
        assert_eq!(ask(address, "/readyz").await.0, 503);
        let text = ask(address, "/metrics").await.1;
        for line in [
            "quarry_capacity_objects{node=\"n\"} 3",
            "quarry_capacity_objects_behind{node=\"n\"} 1",
            "quarry_capacity_driver_connected{node=\"n\"} 1",
            "quarry_capacity_requests_total{result=\"ok\",verb=\"apply\",node=\"n\"} 1",
            "quarry_capacity_requests_total{result=\"no answer\",verb=\"apply\",node=\"n\"} 1",
            "quarry_capacity_publish_delay_seconds_bucket{node=\"n\",le=\"0.05\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
        }
        assert_eq!(metrics.requests(), 2);
        let timestamps = || {
            let text = String::from_utf8(metrics.text().unwrap()).unwrap();
            let lines = text.lines().filter(|line| line.starts_with("quarry_capacity_object_timestamp_seconds{"));
            lines.map(|line| line.split('"').nth(1).unwrap().to_owned()).collect::<Vec<_>>()
        };
        metrics.agreed(["fast", "slow", "new"].into_iter(), ["fast", "slow"].into_iter());
        assert_eq!(timestamps(), ["fast", "slow"]);
        metrics.agreed(["slow", "new"].into_iter(), [].into_iter());
        assert_eq!(timestamps(), ["slow"], "a class that is gone has no age");
        server.abort();
    }
}
