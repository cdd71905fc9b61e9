//! csi-sanity against the driver on real LVM.

use std::path::Path;

use anyhow::{Result, bail};

use super::build::{self, Profile};
use super::{Program, Suite, Verdict, budget, kernel, run};
use crate::command::Command;

/// Builds what is needed and runs csi-sanity for thin and thick volumes, mounted and as block devices, in one machine.
///
/// # Errors
/// If it cannot be built, or `csi_sanity` is not there.
pub fn suite(csi_sanity: &Path, udev: bool) -> Result<Verdict> {
    if !csi_sanity.is_file() {
        bail!("no csi-sanity at {}", csi_sanity.display());
    }
    let tests = build::test_program("sanity")?;
    let driver = build::driver(Profile::Debug)?;
    let command = Command::new(tests).env("QUARRY_DRIVER_BIN", driver).env("QUARRY_CSI_SANITY", csi_sanity);
    let name = if udev { "sanity-udev" } else { "sanity" };
    let program =
        Program { name: name.to_owned(), command, budget: budget(Suite::Sanity), side_by_side: false, result: None };
    Ok(run(&program, |folder| kernel::machine(name, udev, folder)))
}
