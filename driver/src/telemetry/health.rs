//! What is not in order on this node, collected from whoever knows a part of it.
//!
//! **Invariant.** A check tells what is known already. It waits for nothing: no disk, no process, no lock that is held
//! while either is waited for.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

/// One thing that is not in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What: a volume group with its device classes, the journal.
    pub subject: String,
    /// What is wrong with it.
    pub reason: String,
    /// For how long, where that is known.
    pub since: Option<Duration>,
}

/// Someone who knows whether a part is in order.
pub trait Check: Send + Sync {
    /// What is not.
    fn faults(&self) -> Vec<Fault>;
}

/// All checks.
#[derive(Clone, Default)]
pub struct Health {
    checks: Vec<Arc<dyn Check>>,
}

/// The list as `/readyz` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether the list is empty.
    pub ready: bool,
    /// What is not in order.
    pub faults: Vec<ReportedFault>,
}

/// A fault as `/readyz` shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportedFault {
    subject: String,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    for_seconds: Option<u64>,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").field("checks", &self.checks.len()).finish()
    }
}

impl Health {
    /// What is not in order now, part by part.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        self.checks.iter().flat_map(|check| check.faults()).collect()
    }

    /// With one more check.
    #[must_use]
    pub fn with(mut self, check: Arc<dyn Check>) -> Self {
        self.checks.push(check);
        self
    }

    /// What is not in order now.
    #[must_use]
    pub fn report(&self) -> Report {
        let faults: Vec<ReportedFault> = self
            .faults()
            .into_iter()
            .map(|Fault { subject, reason, since }| ReportedFault {
                subject,
                reason,
                for_seconds: since.map(|since| since.as_secs()),
            })
            .collect();
        Report { ready: faults.is_empty(), faults }
    }
}
