//! Tenants of one disk get the shares and limits that they were promised: real fio in real pod cgroups, on disks that do
//! 600 operations a second (`testbed suite isolation`).
//!
//! **Invariant.** A ratio is compared only with what was measured in the same run. Where nothing should hold, it is seen
//! that nothing holds: a disk that divides itself fairly would prove nothing.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a step of a test that fails is a panic, in helpers too")]

mod calibration;
mod limits;
mod load;
mod places;
#[expect(dead_code, reason = "the kernel suite needs more of it")]
#[path = "../kernel/pod.rs"]
mod pod;
#[expect(dead_code, reason = "the kernel suite needs more of it")]
#[path = "../kernel/scene.rs"]
mod scene;
mod tenant;
mod truth;
mod weights;
