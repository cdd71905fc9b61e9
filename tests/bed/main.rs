//! The machines of the test bed, proved from outside: what they run, that they end, and that a machine in trouble never
//! looks like one that passed. Boots several machines (`testbed suite bed`).

#[cfg(test)]
mod end;
#[cfg(test)]
mod machine;

use std::time::Duration;

/// How long a small command may take in an emulated machine on a busy host.
const SOON: Duration = Duration::from_secs(120);
