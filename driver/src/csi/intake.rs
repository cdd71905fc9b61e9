//! What every request passes first: it is measured, gets its line in the log, and once the driver ends it is refused.
//!
//! **Invariant.** A request that comes after the end was asked for begins nothing. Identity's RPCs are answered to the
//! last: a driver that ends is alive.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::telemetry::metrics::Metrics;

use super::call::{self, Note};
use super::detached;

/// Wraps the CSI services.
#[derive(Debug, Clone)]
pub struct Intake {
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the driver is asked to end.
    pub ending: CancellationToken,
}

impl<S> Layer<S> for Intake {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { intake: self.clone(), inner }
    }
}

/// The services behind it.
#[derive(Debug, Clone)]
pub struct Gate<S> {
    intake: Intake,
    inner: S,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let begin = Instant::now();
        let (service, rpc) = split(request.uri().path());
        let metrics = Arc::clone(&self.intake.metrics);
        let refused = self.intake.ending.is_cancelled() && service != IDENTITY;
        let answer = (!refused).then(|| self.inner.call(request));
        Box::pin(async move {
            let Some(answer) = answer else {
                let status = detached::ending();
                metrics.answered(&rpc, name(status.code()), begin.elapsed());
                log(&rpc, &status, begin.elapsed(), &Note::default());
                return Ok(status.into_http());
            };
            let (response, note) = call::noted(answer).await;
            let response = response?;
            // An answer that is an error has its code in the head; one that is none has it at the end.
            let status = Status::from_header_map(response.headers()).unwrap_or_else(|| Status::ok(""));
            let code = status.code();
            log(&rpc, &status, begin.elapsed(), &note);
            // Only what is served is a label: anything else a client sends would be a metric of its own.
            let rpc = if code == Code::Unimplemented { "other" } else { &rpc };
            metrics.answered(rpc, name(code), begin.elapsed());
            Ok(response)
        })
    }
}

/// A request's line. What changes nothing comes all the time, and is told only where somebody looks closely.
fn log(rpc: &str, status: &Status, took: Duration, note: &Note) {
    let (volume, claim) = (note.volume.as_deref(), note.claim.as_deref());
    let (code, error) = (status.code(), status.message());
    let (code_name, seconds) = (name(code), (took.as_secs_f64() * 1e4).round() / 1e4);
    match code {
        Code::Ok if CHANGING.contains(&rpc) => {
            tracing::info!(rpc, volume, claim, code = code_name, seconds, "answered");
        }
        Code::Ok | Code::Unimplemented => tracing::debug!(rpc, volume, claim, code = code_name, seconds, "answered"),
        // What is wrong with the node; else it is the caller's doing, or its to retry.
        Code::Internal | Code::Unknown | Code::DataLoss | Code::Unavailable => {
            tracing::error!(rpc, volume, claim, code = code_name, seconds, error, "failed");
        }
        _ => tracing::warn!(rpc, volume, claim, code = code_name, seconds, error, "refused"),
    }
}

/// The RPCs that change something.
const CHANGING: [&str; 11] = [
    "CreateVolume",
    "DeleteVolume",
    "ControllerModifyVolume",
    "NodeStageVolume",
    "NodeUnstageVolume",
    "NodePublishVolume",
    "NodeUnpublishVolume",
    "ForgetVolume",
    "ForgetVolumeGroup",
    "RemoveOrphan",
    "SetLogFilter",
];

const IDENTITY: &str = "csi.v1.Identity";

/// Service and RPC of a path such as `/csi.v1.Node/NodeGetInfo`.
fn split(path: &str) -> (String, String) {
    let (service, rpc) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    (service.to_owned(), rpc.to_owned())
}

/// A code as the gRPC specification writes it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt as _;

    fn gate(code: Code) -> (Intake, impl Service<Request<Body>, Response = Response<Body>, Error = std::io::Error>) {
        let intake =
            Intake { metrics: Arc::new(Metrics::new(Default::default()).unwrap()), ending: CancellationToken::new() };
        let served = tower::service_fn(move |_: Request<Body>| async move {
            Ok::<_, std::io::Error>(match code {
                Code::Ok => Response::new(Body::empty()),
                code => Status::new(code, "as a test").into_http(),
            })
        });
        (intake.clone(), intake.layer(served))
    }

    async fn ask<S>(service: S, path: &str) -> Code
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = std::io::Error>,
    {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = service.oneshot(request).await.unwrap();
        Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
    }

    fn text(intake: &Intake) -> String {
        String::from_utf8(intake.metrics.text(&Default::default()).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn answers_are_counted_by_rpc_and_code_and_unknown_paths_together() {
        let (intake, service) = gate(Code::Aborted);
        ask(service, "/csi.v1.Controller/CreateVolume").await;
        assert!(text(&intake).contains("duration_seconds_count{code=\"ABORTED\",rpc=\"CreateVolume\",node=\"\"} 1"));
        let (intake, service) = gate(Code::Unimplemented);
        ask(service, "/csi.v1.Controller/Nonsense4711").await;
        assert!(!text(&intake).contains("4711") && text(&intake).contains("rpc=\"other\",node=\"\"} 1"));
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn read(&self) -> Vec<serde_json::Value> {
            let text = std::mem::take(&mut *self.0.lock().unwrap());
            String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    #[tokio::test]
    async fn a_request_is_one_line_with_rpc_volume_code_and_duration() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone());
        let _logging = tracing::subscriber::set_default(subscriber.finish());
        let intake =
            Intake { metrics: Arc::new(Metrics::new(Default::default()).unwrap()), ending: CancellationToken::new() };
        let serve = |result: Result<(), Status>| {
            let served = tower::service_fn(move |_: Request<Body>| {
                let result = result.clone();
                async move {
                    call::note(|note| note.claim = Some("db/data-0".to_owned()));
                    let answer = crate::csi::status::answer("pvc-1", result);
                    Ok::<_, std::io::Error>(answer.map_or_else(Status::into_http, |_| Response::new(Body::empty())))
                }
            });
            intake.layer(served)
        };
        let refused = || Err(Status::resource_exhausted("no room on node-1"));
        ask(serve(refused()), "/csi.v1.Controller/CreateVolume").await;
        ask(serve(Ok(())), "/csi.v1.Controller/CreateVolume").await;
        // What is asked all the time is told only where somebody looks closely.
        ask(serve(Ok(())), "/csi.v1.Controller/GetCapacity").await;
        let told = lines.read();
        let field = |line: usize, key: &str| told[line][key].as_str().unwrap_or_default().to_owned();
        assert_eq!(told.len(), 2, "{told:#?}");
        for (line, level, code) in [(0, "WARN", "RESOURCE_EXHAUSTED"), (1, "INFO", "OK")] {
            assert_eq!((field(line, "level"), field(line, "code")), (level.to_owned(), code.to_owned()));
            assert_eq!((field(line, "rpc"), field(line, "volume")), ("CreateVolume".to_owned(), "pvc-1".to_owned()));
            assert_eq!(field(line, "claim"), "db/data-0");
            assert!(told[line]["seconds"].is_number(), "{told:#?}");
        }
        assert_eq!((field(0, "message"), field(0, "error")), ("refused".to_owned(), "no room on node-1".to_owned()));
    }

    #[tokio::test]
    async fn while_the_driver_ends_only_identity_is_served() {
        for (path, expected) in [
            ("/csi.v1.Identity/Probe", Code::Ok),
            ("/csi.v1.Controller/CreateVolume", Code::Unavailable),
            ("/csi.v1.Node/NodeStageVolume", Code::Unavailable),
        ] {
            let (intake, service) = gate(Code::Ok);
            intake.ending.cancel();
            assert_eq!(ask(service, path).await, expected, "{path}");
        }
    }
}
