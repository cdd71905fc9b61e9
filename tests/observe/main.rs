//! What people and Prometheus see of the driver and the capacity-reporter: that every metric is documented, that every
//! query of a dashboard and of an alert finds what it asks for, and that every alert fires when it should.
//!
//! Needs Debian's `prometheus`; `./dev observe` runs it. No virtual machine: the metrics are those of the real
//! registries, over HTTP, filled with a volume group as LVM wrote it.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod alerts;
mod dashboards;
mod exposed;
mod files;
mod metrics;
mod prometheus;
mod promql;
mod volume;
