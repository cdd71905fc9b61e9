//! The kernel suite: runs in a virtual machine, as root, one test at a time (`testbed suite kernel`).

mod bed;
#[path = "../../driver/tests/support/lvm_report.rs"]
mod lvm_report;
mod metadata;
mod outside;
mod scene;
mod volumes;
