//! The kernel suite: runs in a virtual machine, as root, one test at a time (`testbed suite kernel`).

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a step of a test that fails is a panic, in helpers too")]

mod bed;
mod behind;
mod capacity;
mod claims;
mod disks;
mod filesystem;
mod journal;
#[path = "../../driver/tests/support/lvm_report.rs"]
mod lvm_report;
mod metadata;
mod node;
mod observe;
mod outside;
mod pod;
mod restore;
mod scene;
mod volumes;
