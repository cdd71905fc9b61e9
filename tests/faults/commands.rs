//! LVM commands that misbehave, and disks that take no writes.

use std::path::Path;

use tonic::Code;

use crate::node::{Node, SICK, WELL};
use crate::scene::{refused, shell};
use crate::watch::children;

/// Another `lvm` in the place of the real one, for the driver alone. Dropping it brings the real one back.
struct Impostor;

/// What stands in its place: it does as the order says for the verb that the order names.
const SCRIPT: &str = "#!/bin/sh
if [ -n \"$LVM_SYSTEM_DIR\" ] && [ \"$1\" = \"$(cat /run/impostor/verb)\" ]; then . /run/impostor/order; fi
exec /run/impostor/real/lvm \"$@\"
";

impl Impostor {
    fn new() -> Self {
        shell("mkdir -p /run/impostor/real && cp /usr/sbin/lvm /run/impostor/real/lvm && : > /run/impostor/verb");
        std::fs::write("/run/impostor/lvm", SCRIPT).unwrap();
        shell("chmod 755 /run/impostor/lvm && mount --bind /run/impostor/lvm /usr/sbin/lvm");
        Self
    }

    /// What becomes of commands with that verb.
    fn order(&self, verb: &str, script: &str) {
        std::fs::write("/run/impostor/order", script).unwrap();
        std::fs::write("/run/impostor/verb", verb).unwrap();
    }

    fn obey_lvm(&self) {
        self.order("", "");
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        shell("umount -l /usr/sbin/lvm && rm -r /run/impostor");
        assert!(std::thread::panicking() || !Path::new("/run/impostor").exists());
    }
}

#[tokio::test]
async fn an_lvm_that_floods_talks_nonsense_or_lies_is_told_in_its_words_and_believed_nothing() {
    let node = Node::new().await;
    let impostor = Impostor::new();
    impostor.order(
        "lvcreate",
        "echo '  first words' >&2; yes 'lvm is flooded' | head -c 20000000 >&2; echo 'last words' >&2; exit 5",
    );
    let flooded = node.made("pvc-1", SICK).await.unwrap_err();
    refused::<()>(
        Err(flooded.clone()),
        Code::Internal,
        &["first words", "last words", "bytes left out", "exit code 5"],
    );
    assert!(flooded.message().len() < 10_000, "{}", flooded.message().len());

    impostor.order(
        "lvcreate",
        "printf '\\377\\376 {\"report\": \\0 [' ; printf '\\377\\376 \\033[31mwhat?\\n' >&2; exit 77",
    );
    refused(node.made("pvc-1", SICK).await, Code::Internal, &["exit code 77", "what?"]);

    // Success of which the metadata show nothing.
    impostor.order("lvcreate", "echo '  Logical volume \"pvc-1\" created.'; exit 0");
    refused(node.made("pvc-1", SICK).await, Code::Internal, &["reported success", "does not show pvc-1"]);
    impostor.obey_lvm();
    node.made("pvc-1", SICK).await.unwrap();
    impostor.order("lvremove", "exit 0");
    refused(node.deleted("node-1/pvc-1").await, Code::Internal, &["still shows pvc-1"]);

    // A list that is none does not say that a volume is gone.
    for list in ["echo '{\"report\": [{\"lv\": ['", "exit 0", "echo '{\"report\": []}'; exit 3"] {
        impostor.order("lvs", &format!("{list}; exit 0"));
        refused(node.deleted("node-1/none").await, Code::Unavailable, &["lvm cannot list"]);
    }
    impostor.order("lvcreate", "kill -9 $$");
    refused(node.create_once("pvc-2", SICK).await, Code::Aborted, &["pvc-2", "not known"]);
    impostor.obey_lvm();
    node.made("pvc-2", SICK).await.unwrap();
    node.deleted("node-1/none").await.unwrap();
    node.deleted("node-1/pvc-1").await.unwrap();
    node.deleted("node-1/pvc-2").await.unwrap();
    node.other_group_is_served("well").await;
    assert_eq!((node.ids().await.unwrap(), children(node.driver.pid().unwrap()).len()), (vec![], 0));
}

#[tokio::test]
async fn a_disk_that_takes_no_writes_is_told_and_nothing_is_half_made() {
    let node = Node::new().await;
    node.made("pvc-1", SICK).await.unwrap();
    node.disks[0].fail_writes().unwrap();
    refused(node.made("pvc-2", SICK).await, Code::Internal, &["pvc-2", node.sick.name()]);
    refused(node.deleted("node-1/pvc-1").await, Code::Internal, &["pvc-1"]);
    assert_eq!(node.ids().await.unwrap(), ["node-1/pvc-1"]);
    node.other_group_is_served("well").await;
    node.disks[0].heal().unwrap();
    node.made("pvc-2", SICK).await.unwrap();
    node.made("pvc-3", WELL).await.unwrap();
    let mut rows: Vec<_> =
        node.sick.lvs("lv_name").unwrap().into_iter().map(|mut row| row.remove("lv_name").unwrap()).collect();
    rows.sort();
    assert_eq!(rows, ["pvc-1", "pvc-2"]);
    for id in ["node-1/pvc-1", "node-1/pvc-2", "node-1/pvc-3"] {
        node.deleted(id).await.unwrap();
    }
    node.becomes_ready().await;
}
