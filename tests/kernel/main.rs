//! The kernel suite: runs in a virtual machine, as root, one test at a time (`testbed suite kernel`).

mod bed;
mod outside;
mod scene;
mod volumes;
