//! The driver is asked to end.

use std::time::Duration;

use quarry_proto::csi::v1 as csi;
use quarry_tests::command::Exit;
use rustix::process::Signal;
use tonic::Code;

use crate::hang::hold;
use crate::node::{Node, SICK, eventually};
use crate::scene::{MIB, filesystem, refused};
use crate::watch::{ask, children};

const PATIENT: &str = "timeouts: {answerSeconds: 2, nodeAnswerSeconds: 2, shutdownSeconds: 600}\n";

/// A request whose lvcreate waits for LVM's lock, and that lock.
async fn begin(node: &Node, name: &str) -> std::fs::File {
    let lock = hold(&node.sick);
    refused(node.create(filesystem(name, 32 * MIB, SICK)).await, Code::Aborted, &["still runs"]);
    assert_eq!(children(node.driver.pid().unwrap()).len(), 1);
    lock
}

/// Waits until the driver refuses what is new.
async fn ending(node: &Node) {
    let refuses = || async {
        node.room(SICK)
            .await
            .is_err_and(|status| status.code() == Code::Unavailable && status.message().contains("is ending"))
    };
    eventually("the driver refuses what is new", refuses).await;
}

#[tokio::test]
async fn a_driver_that_is_asked_to_end_ends_at_its_bound_and_names_what_still_ran() {
    let mut node = Node::new().await;
    let lock = begin(&node, "pvc-1").await;
    node.driver.signal(Signal::TERM).unwrap();
    let exit = node.scene().driver.wait().unwrap();
    let log = node.driver.log();
    assert_eq!(exit, Exit::Code(1), "{log}");
    for part in ["ended after 3 s while there still ran: CreateVolume of volume pvc-1", "lvm lvcreate"] {
        assert!(log.contains(part), "no {part:?} in:\n{log}");
    }
    // The command goes on, and the next driver finds what came of it.
    drop(lock);
    node.scene().restart().await;
    node.made("pvc-1", SICK).await.unwrap();
    assert_eq!(node.ids().await.unwrap(), ["node-1/pvc-1"]);
    node.deleted("node-1/pvc-1").await.unwrap();
}

#[tokio::test]
async fn while_it_ends_the_new_is_refused_and_what_runs_is_finished() {
    let mut node = Node::with(1, 1024, "", PATIENT).await;
    let lock = begin(&node, "pvc-1").await;
    // Neither a connection nor a request that never comes to its end keeps it.
    let idle = node.driver.connect().await.unwrap();
    let open = half_a_request(&node).await;
    node.driver.signal(Signal::TERM).unwrap();
    ending(&node).await;
    refused(node.create(filesystem("pvc-2", 32 * MIB, SICK)).await, Code::Unavailable, &["is ending", "ask again"]);
    refused(node.delete("node-1/pvc-1").await, Code::Unavailable, &["is ending"]);
    refused(node.ids().await, Code::Unavailable, &["is ending"]);
    node.is_alive().await;
    let (status, body) = ask("/readyz").await;
    assert!(status == 503 && body.contains("it is ending"), "{body}");
    drop(lock);
    let exit = node.scene().driver.wait().unwrap();
    assert!(exit.success(), "{exit}:\n{}", node.driver.log());
    drop((idle, open));
    node.scene().restart().await;
    assert_eq!(node.ids().await.unwrap(), ["node-1/pvc-1"], "it was finished before the end");
    node.deleted("node-1/pvc-1").await.unwrap();
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut node = Node::with(1, 1024, "", PATIENT).await;
    let lock = begin(&node, "pvc-1").await;
    node.driver.signal(Signal::TERM).unwrap();
    ending(&node).await;
    node.driver.signal(Signal::INT).unwrap();
    assert_eq!(node.scene().driver.wait().unwrap(), Exit::Code(1));
    let log = node.driver.log();
    assert!(log.contains("ended at the second signal while there still ran: CreateVolume of volume pvc-1"), "{log}");
    drop(lock);
    node.scene().restart().await;
    node.made("pvc-1", SICK).await.unwrap();
    node.deleted("node-1/pvc-1").await.unwrap();
}

/// A request of which only the head has been sent; its stream stays open.
async fn half_a_request(node: &Node) -> tokio::task::JoinHandle<()> {
    let mut identity = node.csi.identity.clone();
    let mut stream = tokio::net::UnixStream::connect(node.driver.socket()).await.unwrap();
    identity.probe(csi::ProbeRequest {}).await.unwrap();
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        [&[0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let literal = |name: &str, value: &str| {
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
    };
    let head = [
        literal(":method", "POST"),
        literal(":scheme", "http"),
        literal(":path", "/csi.v1.Controller/ListVolumes"),
        literal(":authority", "localhost"),
        literal("content-type", "application/grpc"),
        literal("te", "trailers"),
    ];
    // Settings, and the head of a request without its end.
    let bytes =
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), frame(1, 4, 1, &head.concat())].concat();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await.unwrap();
    tokio::spawn(async move {
        // Read, so that nothing piles up; never answered to its end.
        let mut answer = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await.ok();
        tokio::time::sleep(Duration::from_secs(3600)).await;
    })
}
