//! Makes the driver known to kubelet.
//!
//! kubelet watches its folder `plugins_registry`, connects to a socket that appears there, asks who it is, calls the
//! driver's NodeGetInfo and says whether it took the driver. If it did not, it tries again by itself; the driver goes
//! on serving meanwhile, because ending would only add a restart to kubelet's own pauses. Who wants to know how it
//! stands asks the watch channel.
//!
//! **Invariant.** The socket appears only when CSI is served, and it appears again when somebody removes it.

use std::path::PathBuf;

use quarry_proto::registration::registration_server::{Registration as Service, RegistrationServer};
use quarry_proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::DRIVER_NAME;
use super::authority;
use super::socket::{Socket, SocketError};

/// Whether kubelet knows the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// It has not said yet.
    Waiting,
    /// It does.
    Yes,
    /// It refused, and why.
    Refused(String),
}

/// Why the driver cannot be made known.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// No socket.
    #[error("cannot register with kubelet")]
    Socket(#[from] SocketError),
    /// The server on it failed.
    #[error("the registration server failed")]
    Serve(#[source] tonic::transport::Error),
}

/// What is needed to register.
#[derive(Debug, Clone)]
pub struct Registration {
    /// In kubelet's folder `plugins_registry`, as this process sees it.
    pub socket: PathBuf,
    /// The CSI socket, as kubelet sees it.
    pub csi_socket: PathBuf,
}

impl Registration {
    /// Serves registration until `shutdown`, then removes the socket, so that kubelet forgets a driver that is taken
    /// away. CSI must be served already.
    ///
    /// # Errors
    /// [`RegistrationError`].
    pub async fn serve(
        self,
        state: watch::Sender<Registered>,
        shutdown: CancellationToken,
    ) -> Result<(), RegistrationError> {
        while !shutdown.is_cancelled() {
            let Socket { listener, path } = Socket::bind(&self.socket)?;
            tracing::info!(socket = %self.socket.display(), "waiting for kubelet to register the driver");
            state.send_replace(Registered::Waiting);
            let service = Server { csi_socket: self.csi_socket.clone(), state: state.clone() };
            let until = async {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = path.lost() => {
                        tracing::warn!(socket = %self.socket.display(), "the registration socket was removed: making it again");
                    }
                }
            };
            // kubelet closes its connection after each question, so a graceful end has little to wait for; a client
            // that does not must not keep the driver from ending.
            let connections = UnixListenerStream::new(listener).map(|stream| stream.map(authority::localhost));
            let server = tonic::transport::Server::builder()
                .add_service(RegistrationServer::new(service))
                .serve_with_incoming(connections);
            let served = tokio::select! {
                served = server => served,
                () = until => Ok(()),
            };
            path.remove();
            served.map_err(RegistrationError::Serve)?;
        }
        Ok(())
    }
}

/// Answers kubelet.
#[derive(Debug)]
struct Server {
    csi_socket: PathBuf,
    state: watch::Sender<Registered>,
}

#[tonic::async_trait]
impl Service for Server {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: DRIVER_NAME.to_owned(),
            endpoint: self.csi_socket.display().to_string(),
            // kubelet takes any CSI 1.x driver by this version.
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        let state = if plugin_registered {
            tracing::info!("kubelet registered the driver");
            Registered::Yes
        } else {
            tracing::error!(error, "kubelet refused to register the driver; it tries again by itself");
            Registered::Refused(error)
        };
        self.state.send_replace(state);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use quarry_proto::registration::registration_client::RegistrationClient;
    use tonic::transport::{Channel, Endpoint};

    async fn client(socket: &std::path::Path) -> RegistrationClient<Channel> {
        let limit = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
            match endpoint.connect().await {
                Ok(channel) => return RegistrationClient::new(channel),
                Err(error) => assert!(tokio::time::Instant::now() < limit, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn kubelet_learns_who_we_are_and_we_learn_what_it_thinks() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("lvm.quarry.storage-reg.sock");
        let registration =
            Registration { socket: socket.clone(), csi_socket: "/var/lib/kubelet/plugins/x/csi.sock".into() };
        let (state, mut seen) = watch::channel(Registered::Waiting);
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(registration.serve(state, shutdown.clone()));

        let mut kubelet = client(&socket).await;
        let info = kubelet.get_info(InfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "lvm.quarry.storage"));
        assert_eq!(info.endpoint, "/var/lib/kubelet/plugins/x/csi.sock");
        assert_eq!(info.supported_versions, ["1.0.0"]);

        let refused = RegistrationStatus { plugin_registered: false, error: "topology value collision".to_owned() };
        kubelet.notify_registration_status(refused).await.unwrap();
        assert_eq!(*seen.borrow_and_update(), Registered::Refused("topology value collision".to_owned()));
        let taken = RegistrationStatus { plugin_registered: true, error: String::new() };
        kubelet.notify_registration_status(taken).await.unwrap();
        assert_eq!(*seen.borrow_and_update(), Registered::Yes);

        // Somebody wipes the folder: the driver registers anew, without anybody's help.
        std::fs::remove_file(&socket).unwrap();
        client(&socket).await.get_info(InfoRequest {}).await.unwrap();
        assert_eq!(*seen.borrow_and_update(), Registered::Waiting);

        shutdown.cancel();
        server.await.unwrap().unwrap();
        assert!(!socket.exists(), "kubelet still sees a driver that is gone");
    }

    /// What kubelet's Go client sends, byte for byte as far as it matters: the authority is the socket's escaped path.
    #[tokio::test]
    async fn a_request_whose_authority_is_a_path_is_answered() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("lvm.quarry.storage-reg.sock");
        let registration = Registration { socket: socket.clone(), csi_socket: "/csi.sock".into() };
        let (state, _seen) = watch::channel(Registered::Waiting);
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(registration.serve(state, shutdown.clone()));
        client(&socket).await;

        let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
            [&[0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, stream], payload].concat()
        };
        let literal = |name: &str, value: &str| {
            let length = |text: &str| u8::try_from(text.len()).unwrap();
            [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
        };
        let headers = [
            literal(":method", "POST"),
            literal(":scheme", "http"),
            literal(":path", "/pluginregistration.Registration/GetInfo"),
            literal(":authority", "%2Fvar%2Flib%2Fkubelet%2Fx-reg.sock"),
            literal("content-type", "application/grpc"),
            literal("te", "trailers"),
        ];
        let request = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, &[]),
            frame(1, 4, 1, &headers.concat()),
            frame(0, 1, 1, &[0, 0, 0, 0, 0]),
        ];
        let mut connection = tokio::net::UnixStream::connect(&socket).await.unwrap();
        connection.write_all(&request.concat()).await.unwrap();
        let mut answer = Vec::new();
        let name = b"lvm.quarry.storage";
        while !answer.windows(name.len()).any(|window| window == name) {
            let read = tokio::time::timeout(Duration::from_secs(20), connection.read_buf(&mut answer)).await;
            assert!(read.expect("no answer").unwrap() > 0, "the connection was closed after {answer:?}");
        }
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }
}
