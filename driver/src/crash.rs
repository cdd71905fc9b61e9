//! Points at which a test can have this process die, to see what the next one makes of what is left.
//!
//! Built only with cargo's feature `crash-points`, which no image has: without it a point is nothing at all. With it, a
//! driver whose environment names a file in `QUARRY_CRASH_FILE` looks there at every point for an order; the file may
//! come, change and go while it runs.
//!
//! An order is one line: an id that differs from earlier orders', the file to which the name of every passed point is
//! added, and, if the driver is to die, where and how: the point's name, at which of its passes since the order came,
//! and `alone` (commands under way go on) or `children` (they die too, as at a pod's end).
//!
//! ```text
//! 7 /run/trace exec.lvm-lvcreate.running 1 children
//! ```

use std::fmt::Display;

/// Passes a point of this name. Names have no blanks.
#[inline]
pub fn point(name: impl Display) {
    #[cfg(feature = "crash-points")]
    live::pass(&name.to_string());
    #[cfg(not(feature = "crash-points"))]
    let _ = name;
}

/// Notes that a process of this id, the leader of its process group, runs until the returned value is dropped.
#[must_use = "it runs as long as this lives"]
#[inline]
pub fn running(pid: u32) -> Running {
    #[cfg(feature = "crash-points")]
    live::children().insert(pid);
    Running { pid }
}

/// A process under way.
#[derive(Debug)]
pub struct Running {
    #[cfg_attr(not(feature = "crash-points"), expect(dead_code, reason = "only a death asks who runs"))]
    pid: u32,
}

impl Drop for Running {
    #[inline]
    fn drop(&mut self) {
        #[cfg(feature = "crash-points")]
        live::children().remove(&self.pid);
    }
}

#[cfg(feature = "crash-points")]
mod live {
    use std::collections::BTreeSet;
    use std::io::Write as _;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use rustix::process::{Pid, Signal};

    use super::order::{Death, Passes};

    /// The environment variable that names the file with the order.
    const FILE: &str = "QUARRY_CRASH_FILE";

    static PASSES: Mutex<Option<Passes>> = Mutex::new(None);
    static CHILDREN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

    pub(super) fn children() -> MutexGuard<'static, BTreeSet<u32>> {
        CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pass(name: &str) {
        let Some(file) = std::env::var_os(FILE) else { return };
        // Held to the end: whoever comes to a point while another thread dies, waits there for the end.
        let mut passes = PASSES.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(text) = std::fs::read_to_string(&file) else {
            *passes = None;
            return;
        };
        let passes = match &mut *passes {
            Some(passes) if passes.is_of(&text) => passes,
            other => match Passes::ordered(&text) {
                Ok(new) => other.insert(new),
                Err(error) => return tracing::error!(order = text, error, "order for crash points not understood"),
            },
        };
        let death = passes.pass(name);
        let trace = passes.trace();
        let added = std::fs::OpenOptions::new().create(true).append(true).open(trace);
        if let Err(error) = added.and_then(|mut trace| trace.write_all(format!("{name}\n").as_bytes())) {
            tracing::error!(trace = %trace.display(), %error, "a crash point was not noted");
        }
        if let Some(death) = death {
            die(death);
        }
    }

    fn die(death: Death) {
        if death == Death::WithChildren {
            for pid in children().iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
                // One that has ended meanwhile has no group to kill.
                rustix::process::kill_process_group(pid, Signal::KILL).ok();
            }
        }
        rustix::process::kill_process(rustix::process::getpid(), Signal::KILL).ok();
        loop {
            std::thread::park();
        }
    }
}

/// What an order says, and how far it is.
#[cfg(any(test, feature = "crash-points"))]
mod order {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    /// Who dies.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) enum Death {
        /// The driver; its commands go on.
        Alone,
        /// The driver and its commands.
        WithChildren,
    }

    /// The points passed since an order came.
    #[derive(Debug)]
    pub(super) struct Passes {
        order: String,
        trace: PathBuf,
        death: Option<(String, u64, Death)>,
        count: BTreeMap<String, u64>,
    }

    impl Passes {
        /// The beginning of an order.
        pub(super) fn ordered(order: &str) -> Result<Self, &'static str> {
            let mut words = order.split_whitespace();
            let (_id, trace) = (words.next().ok_or("no id")?, words.next().ok_or("no trace file")?);
            let death = match (words.next(), words.next(), words.next(), words.next()) {
                (None, ..) => None,
                (Some(name), Some(nth), Some(who), None) => {
                    let who = match who {
                        "alone" => Death::Alone,
                        "children" => Death::WithChildren,
                        _ => return Err("neither `alone` nor `children`"),
                    };
                    Some((name.to_owned(), nth.parse().map_err(|_| "which pass is not a number")?, who))
                }
                _ => return Err("not 2 or 5 words"),
            };
            Ok(Self { order: order.to_owned(), trace: trace.into(), death, count: BTreeMap::new() })
        }

        /// Whether these are the passes of this order.
        pub(super) fn is_of(&self, order: &str) -> bool {
            self.order == order
        }

        /// Where names are noted.
        pub(super) fn trace(&self) -> &Path {
            &self.trace
        }

        /// Counts one pass; tells if it is the one to die at.
        pub(super) fn pass(&mut self, name: &str) -> Option<Death> {
            let count = self.count.entry(name.to_owned()).or_default();
            *count += 1;
            self.death.as_ref().and_then(|(at, nth, who)| (at == name && nth == count).then_some(*who))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::order::{Death, Passes};

    #[test]
    fn death_comes_at_the_ordered_pass_alone() {
        let mut passes = Passes::ordered("7 /run/trace a.before 2 children").unwrap();
        let deaths: Vec<_> = ["a.before", "a.after", "b", "a.before", "a.before"].map(|name| passes.pass(name)).into();
        assert_eq!(deaths, [None, None, None, Some(Death::WithChildren), None]);
        assert_eq!(passes.trace().to_str(), Some("/run/trace"));
        assert!(passes.is_of("7 /run/trace a.before 2 children") && !passes.is_of("8 /run/trace a.before 2 children"));
    }

    #[test]
    fn an_order_without_a_death_only_traces_and_a_half_one_is_refused() {
        let mut passes = Passes::ordered("1 /run/trace\n").unwrap();
        assert_eq!(passes.pass("a"), None);
        for bad in ["", "1", "1 t a", "1 t a 2", "1 t a x alone", "1 t a 2 both", "1 t a 2 alone more"] {
            assert!(Passes::ordered(bad).is_err(), "{bad:?}");
        }
    }
}
