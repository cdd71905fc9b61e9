//! The suite of faults: runs in a virtual machine, as root, one test at a time (`testbed suite faults`).
//!
//! Each test has two volume groups, and makes something go wrong with one of them: the right code and message come in
//! time, the other group is served as if nothing were the matter, and everything recovers without a restart. Nothing is
//! timed but by the faults themselves: an answer that comes while a disk hangs did not wait for it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a step of a test that fails is a panic, in helpers too")]

mod commands;
mod end;
mod hang;
mod lost;
mod node;
#[expect(dead_code, reason = "the kernel suite needs more of it")]
#[path = "../kernel/pod.rs"]
mod pod;
mod pool;
#[expect(dead_code, reason = "the kernel suite needs more of it")]
#[path = "../kernel/scene.rs"]
mod scene;
mod watch;
