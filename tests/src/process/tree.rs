//! Processes and their descendants.

use std::fs;

use rustix::process::{Pid, Signal};

/// Kills a process with all its descendants, whatever groups they are in. Each is stopped before its children are
/// looked up, so none starts another one meanwhile.
pub(super) fn kill(root: Pid) {
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(pid) = tree.get(next).copied() {
        rustix::process::kill_process(pid, Signal::STOP).ok();
        tree.extend(children(pid));
        next += 1;
    }
    for pid in tree {
        rustix::process::kill_process(pid, Signal::KILL).ok();
    }
}

/// Children of all threads of a process.
fn children(of: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{}/task", of.as_raw_nonzero())).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::command::Command;
    use crate::process::{self, Log};
    use crate::wait;
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn a_descendant_in_a_group_of_its_own_dies_too() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "sh -c 'setsid -w sh -c \"echo \\$\\$; exec sleep 60\"; true'; true";
        let mut child = process::start(&Command::shell(script), Log::File(&log)).unwrap();
        let read = || Ok(std::fs::read_to_string(&log)?.trim().parse::<u32>().ok());
        let pid = wait::until("pid in the log", Duration::from_secs(20), Duration::from_millis(10), read).unwrap();
        child.kill_tree().unwrap();
        let comm = format!("/proc/{pid}/cmdline");
        let gone = || Ok(std::fs::read(Path::new(&comm)).map_or(true, |line| line.is_empty()).then_some(()));
        wait::until("end of the descendant", Duration::from_secs(10), Duration::from_millis(10), gone).unwrap();
    }
}
