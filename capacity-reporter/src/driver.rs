//! The driver, reached over its unix socket: who it is, when its figures may have changed, and what they are.
//!
//! **Invariant.** A driver that is away says nothing about room: only an answer of a driver that is there does.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quarry_proto::csi::v1 as csi;
use quarry_proto::csi::v1::controller_client::ControllerClient;
use quarry_proto::csi::v1::identity_client::IdentityClient;
use quarry_proto::csi::v1::node_client::NodeClient;
use quarry_proto::quarry::v1::WatchRequest;
use quarry_proto::quarry::v1::capacity_client::CapacityClient;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::object::Figures;
use crate::pace::Pause;
use crate::telemetry::chain;
use crate::telemetry::metrics::Metrics;

/// How long the driver may take for an answer. It asks no disk for most; where it does, and that hangs, there is no room.
const LIMIT: Duration = Duration::from_secs(10);
/// Pauses while the driver is away. It costs next to nothing to look for a local socket, and a pod without a volume waits.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Why the driver said nothing.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Nobody listens, or the connection broke.
    #[error("the driver does not answer on {}", .socket.display())]
    Away {
        /// Where it should.
        socket: PathBuf,
        /// What happened.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The driver answered with an error.
    #[error("the driver answered {rpc} with {code:?}: {message}")]
    Refused {
        /// To what.
        rpc: &'static str,
        /// The code.
        code: tonic::Code,
        /// Its words.
        message: String,
    },
    /// The driver took too long.
    #[error("the driver did not answer {rpc} within {} s", LIMIT.as_secs())]
    NoAnswer {
        /// What.
        rpc: &'static str,
    },
    /// The driver's own description cannot be used.
    #[error("the driver names {0} topology segments for this node; there must be exactly one")]
    Segments(usize),
}

/// Who the driver says it is, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// The node's one topology segment.
    pub segment: (String, String),
}

/// A driver that answers.
#[derive(Debug, Clone)]
pub struct Driver {
    socket: PathBuf,
    channel: Channel,
    description: Description,
}

impl Driver {
    /// Connects, and asks who is there.
    ///
    /// # Errors
    /// [`DriverError`].
    pub async fn connect(socket: &Path) -> Result<Self, DriverError> {
        let away =
            |source: tonic::transport::Error| DriverError::Away { socket: socket.to_owned(), source: source.into() };
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(away)?;
        let channel = endpoint.connect_timeout(LIMIT).connect().await.map_err(away)?;
        let mut driver = Self {
            socket: socket.to_owned(),
            channel,
            description: Description { name: String::new(), segment: (String::new(), String::new()) },
        };
        let mut identity = IdentityClient::new(driver.channel.clone());
        let info = identity.get_plugin_info(csi::GetPluginInfoRequest {});
        let name = driver.answer("GetPluginInfo", info).await?.name;
        let mut node = NodeClient::new(driver.channel.clone());
        let info = driver.answer("NodeGetInfo", node.node_get_info(csi::NodeGetInfoRequest {})).await?;
        let segments: Vec<(String, String)> =
            info.accessible_topology.unwrap_or_default().segments.into_iter().collect();
        let count = segments.len();
        let [segment] = <[_; 1]>::try_from(segments).map_err(|_| DriverError::Segments(count))?;
        driver.description = Description { name, segment };
        Ok(driver)
    }

    /// Who it is.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// For other services on the socket.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    async fn answer<T>(
        &self,
        rpc: &'static str,
        asked: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, DriverError> {
        match tokio::time::timeout(LIMIT, asked).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.refused(rpc, status)),
            Err(_) => Err(DriverError::NoAnswer { rpc }),
        }
    }

    /// Tells the driver's own errors from those of the connection, which tonic makes statuses of too.
    fn refused(&self, rpc: &'static str, status: tonic::Status) -> DriverError {
        if std::error::Error::source(&status).is_some() {
            return DriverError::Away { socket: self.socket.clone(), source: status.into() };
        }
        DriverError::Refused { rpc, code: status.code(), message: status.message().to_owned() }
    }

    /// What one CreateVolume with these parameters would get now.
    ///
    /// # Errors
    /// [`DriverError`].
    pub async fn figures(&self, parameters: &HashMap<String, String>) -> Result<Figures, DriverError> {
        let (key, value) = self.description.segment.clone();
        let request = csi::GetCapacityRequest {
            parameters: parameters.clone(),
            accessible_topology: Some(csi::Topology { segments: HashMap::from([(key, value)]) }),
            ..csi::GetCapacityRequest::default()
        };
        let mut controller = ControllerClient::new(self.channel.clone());
        let answer = self.answer("GetCapacity", controller.get_capacity(request)).await?;
        let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
        let capacity = bytes(answer.available_capacity);
        let largest = answer.maximum_volume_size.map_or(capacity, bytes).min(capacity);
        Ok(Figures { capacity, largest })
    }

    /// Calls `changed` with the driver's reason each time its figures may have changed; ends when the driver does.
    ///
    /// # Errors
    /// [`DriverError`]: always, in the end.
    pub async fn watch(&self, mut changed: impl FnMut(&str)) -> Result<(), DriverError> {
        let mut client = CapacityClient::new(self.channel.clone());
        let mut stream = self.answer("Watch", client.watch(WatchRequest {})).await?;
        loop {
            match stream.message().await {
                Ok(Some(message)) => changed(&message.reason),
                Ok(None) => return Ok(()),
                Err(status) => return Err(self.refused("Watch", status)),
            }
        }
    }
}

/// The driver as it is now; nothing while it is away.
pub type Current = Option<Driver>;

/// Work with one driver, over a stream of it.
pub trait Work: Send {
    /// Goes on as long as the stream does.
    fn with(&mut self, driver: &Driver) -> impl Future<Output = Result<(), tonic::Status>> + Send;
}

/// Works with whatever driver there is, for ever: anew with each new one, and after a pause where a stream broke while its
/// driver is there.
pub async fn with_each(mut driver: watch::Receiver<Current>, pause: Duration, mut work: impl Work) {
    loop {
        let current = driver.borrow_and_update().clone();
        match current {
            Some(current) => {
                let ended = tokio::select! {
                    ended = work.with(&current) => Some(ended),
                    // The old connection is of no use any more.
                    changed = driver.changed() => match changed {
                        Ok(()) => None,
                        Err(_) => return,
                    },
                };
                if let Some(Err(status)) = ended {
                    tracing::debug!(error = chain(&status), "a stream of the driver has ended");
                    tokio::time::sleep(pause).await;
                }
            }
            None if driver.changed().await.is_err() => return,
            None => {}
        }
    }
}

/// When the driver said first that something changed which nobody has looked at yet.
#[derive(Debug, Clone, Default)]
pub struct Signal(Arc<std::sync::Mutex<Option<Instant>>>);

impl Signal {
    fn raise(&self) {
        let mut since = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        since.get_or_insert_with(Instant::now);
    }

    /// Takes the moment.
    #[must_use]
    pub fn take(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

/// Keeps a connection to the driver, for ever: `current` has it, `changed` is told of each change.
pub async fn keep(
    socket: &Path,
    current: &watch::Sender<Current>,
    changed: &Notify,
    signal: &Signal,
    metrics: &Metrics,
) {
    let mut pause = Pause::new(PAUSES.0, PAUSES.1);
    let mut said = String::new();
    loop {
        let outcome = match Driver::connect(socket).await {
            Ok(driver) => {
                let Description { name, segment: (_, value) } = driver.description();
                tracing::info!(driver = name, topology = value, "connected to the driver");
                said.clear();
                metrics.connected(true);
                current.send_replace(Some(driver.clone()));
                let watched = driver
                    .watch(|reason| {
                        pause.reset();
                        tracing::debug!(reason, "the driver's figures may have changed");
                        signal.raise();
                        changed.notify_one();
                    })
                    .await;
                current.send_replace(None);
                metrics.connected(false);
                watched
            }
            Err(error) => Err(error),
        };
        // The same for minutes, while a node's driver is updated or repaired: said once.
        let now = outcome.map_or_else(|error| chain(&error), |()| "the driver ended".to_owned());
        if now != said {
            tracing::warn!(reason = now, "without the driver; what is published stays as it is");
            said = now;
        }
        tokio::time::sleep(pause.step()).await;
    }
}
