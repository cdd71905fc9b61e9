//! What explains a failure, in one folder.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Cluster;
use crate::command::{Command, Outcome};

const LIMIT: Duration = Duration::from_secs(60);

/// What is asked of the API server: file name and kubectl's arguments.
const QUESTIONS: [(&str, &str); 8] = [
    ("events.txt", "get events -A --sort-by=.lastTimestamp -o wide"),
    ("objects.txt", "get nodes,pods,pvc,pv,storageclasses,csidrivers,csinodes -A -o wide"),
    ("capacity.yaml", "get csistoragecapacities -A -o yaml"),
    ("pods.txt", "describe pods -A"),
    ("claims.txt", "describe pvc -A"),
    ("nodes.txt", "describe nodes"),
    ("volumes.yaml", "get pv,pvc -A -o yaml"),
    ("csinodes.yaml", "get csinodes -o yaml"),
];

/// What is asked of each node.
const NODE_QUESTIONS: [(&str, &str); 6] = [
    ("lvm.txt", "vgs; lvs -a -o +lv_tags,lv_layout,lv_active; pvs"),
    ("device-mapper.txt", "dmsetup ls --tree; dmsetup status; dmsetup table"),
    ("mounts.txt", "cat /proc/self/mountinfo"),
    ("processes.txt", "ps axo pid,ppid,stat,etimes,args"),
    ("kernel.txt", "dmesg"),
    ("containers.txt", "ctr -n k8s.io containers list; ctr -n k8s.io tasks list"),
];

pub(super) fn collect(cluster: &Cluster, folder: &Path) -> Result<()> {
    let made = |path: &Path| fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()));
    let write =
        |path: &Path, text: &str| fs::write(path, text).with_context(|| format!("cannot write {}", path.display()));
    made(folder)?;
    for entry in fs::read_dir(cluster.folder())?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "log") {
            fs::copy(&path, folder.join(entry.file_name()))?;
        }
    }
    let kubectl = cluster.kubectl();
    let ask = |question: &str| said(kubectl.outcome(&question.split(' ').collect::<Vec<_>>(), LIMIT));
    for (file, question) in QUESTIONS {
        write(&folder.join(file), &ask(question))?;
    }
    let pods = folder.join("pods");
    made(&pods)?;
    let list = ask("get pods -A --no-headers -o custom-columns=NAMESPACE:.metadata.namespace,NAME:.metadata.name");
    for (namespace, pod) in list.lines().filter_map(|line| line.trim().split_once(' ')) {
        let pod = pod.trim();
        for (suffix, more) in [("", ""), (".previous", " --previous")] {
            let log = ask(&format!("logs -n {namespace} {pod} --all-containers --prefix --timestamps{more}"));
            if !(suffix == ".previous" && log.contains("previous terminated container")) {
                write(&pods.join(format!("{namespace}-{pod}{suffix}.log")), &log)?;
            }
        }
    }
    for node in cluster.nodes() {
        let place = folder.join(node);
        made(&place)?;
        for entry in fs::read_dir(cluster.folder().join(node))?.flatten() {
            if entry.path().extension().is_some_and(|e| e == "log") {
                fs::copy(entry.path(), place.join(entry.file_name()))?;
            }
        }
        let machine = cluster.node(node)?;
        let ask = |script: &str| said(machine.run(&Command::new("sh").args(["-c", script]), LIMIT));
        for (file, script) in NODE_QUESTIONS {
            write(&place.join(file), &ask(script))?;
        }
        for log in ["containerd", "kubelet"] {
            write(&place.join(format!("{log}.log")), &ask(&format!("cat /var/log/node/{log}.log")))?;
        }
    }
    Ok(())
}

/// All that a command said, or why it said nothing.
fn said(outcome: Result<Outcome>) -> String {
    match outcome {
        Ok(outcome) if outcome.exit.success() => outcome.stdout_text() + &outcome.stderr_text(),
        Ok(outcome) => format!(
            "{}{}({} ended with {})\n",
            outcome.stdout_text(),
            outcome.stderr_text(),
            outcome.line,
            outcome.exit
        ),
        Err(error) => format!("{error:#}\n"),
    }
}
