//! Whether machines run on KVM or are emulated.
//!
//! `/dev/kvm` may be there and a guest hang on it all the same, so KVM is used only after one machine has really booted
//! on it. The verdict is kept in the cache until this machine's next boot. `VM_ACCEL=kvm|tcg` decides without a probe.

use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::{Vm, VmSpec};
use crate::cache;

/// How long the probe may take to reach the agent; a working KVM needs 2 s.
const PROBE: Duration = Duration::from_secs(20);

/// How a machine's processors come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the processor itself.
    Kvm,
    /// By QEMU's translator: always works, 10-30 times slower.
    Tcg,
}

impl Accelerator {
    pub(super) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "qemu64,+rdrand,+sse4.1,+sse4.2,+ssse3,+popcnt"],
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Verdict {
    /// The boot of this machine that it holds for.
    boot_id: String,
    accelerator: Accelerator,
}

/// The accelerator to use, probed at most once per boot of this machine.
///
/// # Errors
/// If `VM_ACCEL` is neither `kvm` nor `tcg`, or the cache cannot be used.
pub fn accelerator() -> Result<Accelerator> {
    static CHOSEN: OnceLock<Result<Accelerator, String>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| choose().map_err(|error| format!("{error:#}")));
    chosen.clone().map_err(|error| anyhow!(error))
}

fn choose() -> Result<Accelerator> {
    match std::env::var("VM_ACCEL").ok().as_deref() {
        Some("kvm") => return Ok(Accelerator::Kvm),
        Some("tcg") => return Ok(Accelerator::Tcg),
        None | Some("") => {}
        Some(other) => bail!("VM_ACCEL is {other:?}: want kvm or tcg"),
    }
    if !Path::new("/dev/kvm").exists() {
        return Ok(Accelerator::Tcg);
    }
    let boot_id =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read this machine's boot id")?;
    let boot_id = boot_id.trim().to_owned();
    let dir = cache::folder("accelerator")?;
    // One probe at a time: whoever comes second finds the verdict.
    let lock = File::create(dir.join("lock")).context("cannot make the accelerator's lock")?;
    lock.lock().context("cannot lock the accelerator's verdict")?;
    let path = dir.join("verdict.json");
    let known = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Verdict>(&bytes).ok());
    if let Some(known) = known.filter(|known| known.boot_id == boot_id) {
        return Ok(known.accelerator);
    }
    let accelerator = probe()?;
    let verdict =
        serde_json::to_vec(&Verdict { boot_id, accelerator }).context("cannot encode the accelerator's verdict")?;
    std::fs::write(&path, verdict).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(accelerator)
}

fn probe() -> Result<Accelerator> {
    let scratch = tempfile::tempdir().context("cannot make a scratch folder")?;
    let mut spec = VmSpec::new("kvm-probe", scratch.path());
    spec.modules.clear();
    spec.memory_mib = 512;
    eprintln!("testbed: /dev/kvm is there: trying it for at most {} s", PROBE.as_secs());
    match Vm::boot_with(spec, Accelerator::Kvm, PROBE) {
        Ok(_) => Ok(Accelerator::Kvm),
        Err(error) => {
            eprintln!("testbed: no machine boots on /dev/kvm, so machines are emulated ({})", error.root_cause());
            Ok(Accelerator::Tcg)
        }
    }
}
