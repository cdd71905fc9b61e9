//! A driver that says what it is told to: for the reporter's tests, and for the nodes of `bench capacity`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use quarry_proto::csi::v1 as csi;
use quarry_proto::csi::v1::controller_server::{Controller, ControllerServer};
use quarry_proto::csi::v1::identity_server::{Identity, IdentityServer};
use quarry_proto::csi::v1::node_server::{Node, NodeServer};
use quarry_proto::quarry::v1 as proto;
use quarry_proto::quarry::v1::capacity_server::{Capacity, CapacityServer};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream, WatchStream};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

/// What it says of a device class.
pub type Room = Result<(i64, Option<i64>), tonic::Code>;

struct State {
    /// The node's name, which is its topology value too.
    node: String,
    rooms: Mutex<HashMap<String, Room>>,
    changes: watch::Sender<u64>,
    asked: Mutex<u64>,
    answers: mpsc::UnboundedSender<proto::ClaimsAnswer>,
    questions: Mutex<Option<mpsc::Sender<Result<proto::ClaimsQuestion, Status>>>>,
    shares: watch::Sender<Vec<proto::Share>>,
}

#[derive(Clone)]
struct Service(Arc<State>);

/// The driver, and its server while it runs.
pub struct Driver {
    socket: PathBuf,
    state: Arc<State>,
    server: Option<tokio::task::JoinHandle<()>>,
    answers: mpsc::UnboundedReceiver<proto::ClaimsAnswer>,
}

impl Driver {
    /// Serves on this socket as the driver of this node.
    pub fn start(socket: &Path, node: &str) -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        let state = State {
            node: node.to_owned(),
            rooms: Mutex::default(),
            changes: watch::channel(0).0,
            asked: Mutex::default(),
            answers: sender,
            questions: Mutex::default(),
            shares: watch::Sender::default(),
        };
        let mut driver = Self { socket: socket.to_owned(), state: Arc::new(state), server: None, answers };
        driver.begin();
        driver
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Serves, again.
    pub fn begin(&mut self) {
        std::fs::remove_file(&self.socket).ok();
        self.state.changes.send_replace(0);
        let listener = UnixListener::bind(&self.socket).unwrap();
        let service = Service(Arc::clone(&self.state));
        let server = tonic::transport::Server::builder()
            .add_service(IdentityServer::new(service.clone()))
            .add_service(NodeServer::new(service.clone()))
            .add_service(ControllerServer::new(service.clone()))
            .add_service(CapacityServer::new(service))
            .serve_with_incoming(UnixListenerStream::new(listener));
        self.server = Some(tokio::spawn(async move { server.await.unwrap() }));
    }

    /// Is gone, and its socket with it.
    pub async fn end(&mut self) {
        let server = self.server.take().unwrap();
        server.abort();
        server.await.unwrap_err();
        std::fs::remove_file(&self.socket).unwrap();
        // The streams of its connections are tasks of their own.
        self.state.changes.send_replace(u64::MAX);
    }

    /// Says something else of a class from now on, without telling.
    pub fn whisper(&self, class: &str, room: Room) {
        self.state.rooms.lock().unwrap().insert(class.to_owned(), room);
    }

    /// Tells that something has changed.
    pub fn signal(&self) {
        self.state.changes.send_modify(|sequence| *sequence = sequence.wrapping_add(1));
    }

    /// Says something else of a class from now on, and tells so.
    pub fn say(&self, class: &str, room: Room) {
        self.whisper(class, room);
        self.signal();
    }

    /// How often it was asked for figures.
    pub fn asked(&self) -> u64 {
        *self.state.asked.lock().unwrap()
    }

    /// Asks about a claim; the answer to that.
    pub async fn question(&mut self, question: proto::ClaimsQuestion) -> proto::ClaimsAnswer {
        let id = question.id;
        let questions = self.state.questions.lock().unwrap().clone().unwrap();
        questions.send(Ok(question)).await.unwrap();
        loop {
            let answer = self.answers.recv().await.unwrap();
            if answer.id == id {
                return answer;
            }
        }
    }

    /// Says what became of weights and limits.
    pub fn share(&self, shares: Vec<proto::Share>) {
        self.state.shares.send_replace(shares);
    }

    /// Whether somebody is there to be asked.
    pub fn is_watched(&self) -> bool {
        self.state.questions.lock().unwrap().is_some()
    }
}

#[tonic::async_trait]
impl Identity for Service {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        let name = "lvm.quarry.storage".to_owned();
        Ok(Response::new(csi::GetPluginInfoResponse { name, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl Node for Service {
    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let node_id = self.0.node.clone();
        let segments = HashMap::from([("topology.lvm.quarry.storage/node".to_owned(), node_id.clone())]);
        let accessible_topology = Some(csi::Topology { segments });
        Ok(Response::new(csi::NodeGetInfoResponse { node_id, accessible_topology, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl Controller for Service {
    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        *self.0.asked.lock().unwrap() += 1;
        let request = request.into_inner();
        let segments = request.accessible_topology.unwrap().segments;
        assert_eq!(segments["topology.lvm.quarry.storage/node"], self.0.node);
        let class = &request.parameters["deviceClass"];
        let room = self.0.rooms.lock().unwrap().get(class).copied().unwrap_or(Ok((0, Some(0))));
        let (available_capacity, maximum_volume_size) = room.map_err(|code| Status::new(code, "as ordered"))?;
        Ok(Response::new(csi::GetCapacityResponse {
            available_capacity,
            maximum_volume_size,
            minimum_volume_size: None,
        }))
    }
}

#[tonic::async_trait]
impl Capacity for Service {
    async fn watch(
        &self,
        _: Request<proto::WatchRequest>,
    ) -> Result<Response<BoxStream<proto::WatchResponse>>, Status> {
        let message =
            |sequence| proto::WatchResponse { sequence, reason: "test".to_owned(), device_classes: Vec::new() };
        let stream = WatchStream::new(self.0.changes.subscribe()).take_while(|s| *s != u64::MAX).map(message).map(Ok);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn shares(
        &self,
        _: Request<proto::SharesRequest>,
    ) -> Result<Response<BoxStream<proto::SharesResponse>>, Status> {
        let stream = WatchStream::new(self.0.shares.subscribe());
        Ok(Response::new(Box::pin(stream.map(|shares| Ok(proto::SharesResponse { shares })))))
    }

    async fn claims(
        &self,
        request: Request<Streaming<proto::ClaimsAnswer>>,
    ) -> Result<Response<BoxStream<proto::ClaimsQuestion>>, Status> {
        let (sender, questions) = mpsc::channel(4);
        *self.0.questions.lock().unwrap() = Some(sender);
        let (mut stream, answers) = (request.into_inner(), self.0.answers.clone());
        tokio::spawn(async move {
            while let Ok(Some(answer)) = stream.message().await {
                answers.send(answer).ok();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(questions))))
    }
}
