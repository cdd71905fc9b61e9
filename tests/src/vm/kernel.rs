//! Fetches the stock Debian kernel: the package that `linux-image-amd64` depends on, unpacked into the cache, never
//! installed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cache;
use crate::command::Command;
use crate::process;

/// How long fetching or unpacking 70 MB may take.
const FETCH: Duration = Duration::from_secs(600);

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// Where the package was unpacked.
    pub root: PathBuf,
}

impl Kernel {
    /// The kernel image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The folder of its modules, with `modules.dep`.
    #[must_use]
    pub fn modules_dir(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }
}

/// The kernel in the cache; fetched if there is none. A newer one is fetched once the cache's `kernel` folder is gone.
///
/// # Errors
/// If Debian's package archive is not reached or the package is not as expected.
pub fn kernel() -> Result<Kernel> {
    let place = cache::folder("kernel")?.join("debian");
    cache::ensure(&place, fetch)?;
    let modules = place.join("lib/modules");
    let mut releases: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(&modules).with_context(|| format!("cannot read {}", modules.display()))? {
        releases.push(entry?.file_name().to_string_lossy().into_owned());
    }
    match releases.as_slice() {
        [release] => Ok(Kernel { release: release.clone(), root: place }),
        _ => bail!("{} has {} kernels instead of one: remove {}", modules.display(), releases.len(), place.display()),
    }
}

fn fetch(into: &Path) -> Result<()> {
    let package = match image_package()? {
        Some(package) => package,
        None => {
            // A fresh machine has no package lists.
            process::run(&Command::new("apt-get").args(["-qq", "update"]), FETCH)?.success()?;
            image_package()?.context("apt-cache does not know which kernel linux-image-amd64 depends on")?
        }
    };
    eprintln!("testbed: fetching the kernel package {package}");
    let download = Command::new("apt-get").args(["-q", "download", &package]).cwd(into);
    process::run(&download, FETCH)?.success()?;
    let mut files = std::fs::read_dir(into)?;
    let file = files.next().context("apt-get download left no file")??.path();
    process::run(&Command::new("dpkg").arg("-x").arg(&file).arg(into), FETCH)?.success()?;
    std::fs::remove_file(&file)?;
    let release = package.trim_start_matches("linux-image-");
    process::run(&Command::new("depmod").arg("-b").arg(into).arg(release), FETCH)?.success()?;
    Ok(())
}

fn image_package() -> Result<Option<String>> {
    let depends = process::run(&Command::new("apt-cache").args(["depends", "linux-image-amd64"]), FETCH)?;
    Ok(depends.exit.success().then(|| parse_depends(&depends.stdout_text())).flatten())
}

fn parse_depends(text: &str) -> Option<String> {
    let mut names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_found_among_the_dependencies() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n  Conflicts: x\n";
        assert_eq!(parse_depends(text).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(parse_depends("linux-image-amd64\n"), None);
    }
}
