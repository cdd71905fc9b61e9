//! Reads a machine's console for signs that its kernel is in trouble.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The kernel cannot go on: whatever runs in the machine gets no verdict.
    Fatal,
    /// Something was stuck for long. An emulated machine on a busy host may show it without fault, and a test may
    /// want it; it explains a command that does not end.
    Stuck,
}

/// A line of the console that looks bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// The line.
    pub line: String,
}

/// What the kernel prints when it is in trouble (lib/bug.c, kernel/panic.c, kernel/watchdog.c, kernel/hung_task.c,
/// kernel/rcu/tree_stall.h, arch/x86).
const SIGNS: [(&str, Severity); 11] = [
    ("Kernel panic", Severity::Fatal),
    ("kernel BUG at", Severity::Fatal),
    ("BUG: unable to handle", Severity::Fatal),
    ("BUG: kernel NULL pointer", Severity::Fatal),
    ("general protection fault", Severity::Fatal),
    ("Oops:", Severity::Fatal),
    ("soft lockup", Severity::Stuck),
    ("hard LOCKUP", Severity::Stuck),
    ("blocked for more than", Severity::Stuck),
    ("self-detected stall", Severity::Stuck),
    ("detected stalls on", Severity::Stuck),
];

/// The signs of trouble in a piece of a console, in order.
#[must_use]
pub fn scan(text: &str) -> Vec<Finding> {
    text.lines().filter_map(finding).collect()
}

fn finding(line: &str) -> Option<Finding> {
    let sign = SIGNS.iter().find(|(sign, _)| line.contains(sign));
    sign.map(|(_, severity)| Finding { severity: *severity, line: line.trim().to_owned() })
}

/// As [`scan`], of a file; one that does not exist has nothing to say.
pub(super) fn scan_file(path: &Path) -> Vec<Finding> {
    std::fs::read(path).map(|bytes| scan(&String::from_utf8_lossy(&bytes))).unwrap_or_default()
}

/// The last lines of a console.
pub(super) fn tail(path: &Path, lines: usize) -> String {
    match std::fs::read(path) {
        Err(error) => format!("({}: {error})", path.display()),
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            let mut tail = all[all.len().saturating_sub(lines)..].join("\n");
            tail.push_str(&format!("\n(all of it: {})", path.display()));
            tail
        }
    }
}

/// Looks at what a console said since the last look.
#[derive(Debug)]
pub(super) struct Watch {
    path: PathBuf,
    offset: u64,
    partial: Vec<u8>,
}

impl Watch {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0, partial: Vec::new() }
    }

    /// Fails if a fatal sign has come up. A console that cannot be read yet says nothing.
    pub(super) fn look(&mut self) -> Result<()> {
        let Ok(mut file) = File::open(&self.path) else { return Ok(()) };
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.read_to_end(&mut self.partial)?;
        self.offset += read as u64;
        // The last line may not be complete: it is looked at again with its rest.
        let complete = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.partial.drain(..complete).collect();
        let fatal = scan(&String::from_utf8_lossy(&lines)).into_iter().find(|f| f.severity == Severity::Fatal);
        if let Some(fatal) = fatal {
            bail!("the kernel of the virtual machine failed: {}\n(console: {})", fatal.line, self.path.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn trouble_is_told_from_chatter() {
        let text = "[    0.1] Linux version 6.1.0\n\
            [   10.0] BUG: kernel NULL pointer dereference, address: 0000000000000008\n\
            [   60.0] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [lvm:77]\n\
            [  240.0] INFO: task mkfs.ext4:812 blocked for more than 120 seconds.\n\
            [  240.1] debug: everything is fine\n";
        let severities: Vec<Severity> = scan(text).iter().map(|f| f.severity).collect();
        assert_eq!(severities, [Severity::Fatal, Severity::Stuck, Severity::Stuck]);
    }

    #[test]
    fn a_panic_written_in_two_pieces_is_seen_once_it_is_whole() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut watch = Watch::new(file.path());
        file.write_all(b"[ 1.0] fine\n[ 2.0] Kernel pa").unwrap();
        watch.look().unwrap();
        file.write_all(b"nic - not syncing: x\n").unwrap();
        let error = watch.look().unwrap_err().to_string();
        assert!(error.contains("[ 2.0] Kernel panic - not syncing: x"), "{error}");
    }

    #[test]
    fn a_tail_names_its_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"a\nb\nc\n").unwrap();
        assert!(tail(file.path(), 2).starts_with("b\nc\n(all of it: /"));
    }
}
