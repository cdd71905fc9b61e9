//! Runs suites in machines and judges them.
//!
//! **Invariant.** A suite passes only if its program ended with exit code 0, as told by the machine's agent, and said
//! itself that at least one test ran and none failed. Everything else is a failure or no verdict.

pub mod bed;
pub mod bench;
mod budget;
pub(crate) mod build;
pub mod capacity;
mod closing;
pub mod cluster;
pub mod crash;
pub mod faults;
pub mod isolation;
pub mod kernel;
pub mod power;
mod run;
pub mod sanity;

pub use budget::{Suite, budget};
pub use run::{Program, Verdict, run};
