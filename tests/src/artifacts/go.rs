//! Kubernetes, etcd, Helm and the CSI tools, built from their Go modules.
//!
//! Each module below `tests/go` pins its tools and all they depend on in `go.mod` and `go.sum`. They are modules of
//! their own because the tools need different versions of the same packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::store::{Key, Store};
use crate::command::Command;
use crate::progress::Progress;
use crate::{cache, process};

/// A cold build on two cores took 5 minutes; a slow network may add as much.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

/// A Go module whose tools are built together.
struct Module {
    /// Its folder below `tests/go`.
    folder: &'static str,
    /// What people read while it is built.
    what: &'static str,
    linker_flags: &'static str,
    /// What must come out of it, and the name it gets when Go names it otherwise.
    tools: &'static [(&'static str, &'static str)],
}

/// The version that the Kubernetes programs say they are; the one that `tests/go/kubernetes/go.mod` pins.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

const MODULES: &[Module] = &[
    Module {
        folder: "kubernetes",
        what: "Kubernetes and etcd",
        linker_flags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
             -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
        tools: &[
            ("server", "etcd"),
            ("kube-apiserver", "kube-apiserver"),
            ("kube-controller-manager", "kube-controller-manager"),
            ("kube-scheduler", "kube-scheduler"),
            ("kubectl", "kubectl"),
            ("kubelet", "kubelet"),
        ],
    },
    Module {
        folder: "csi-tools",
        what: "csi-provisioner and csi-sanity",
        linker_flags: "-s -w -X main.version=v6.3.0",
        tools: &[("csi-provisioner", "csi-provisioner"), ("csi-sanity", "csi-sanity")],
    },
    Module { folder: "helm", what: "Helm", linker_flags: "-s -w", tools: &[("helm", "helm")] },
];

/// Where the built programs are.
#[derive(Debug, Clone)]
pub struct Binaries {
    folders: Vec<PathBuf>,
}

impl Binaries {
    /// The programs of these modules (folders below `tests/go`); what is not built yet is built now.
    ///
    /// # Errors
    /// When Go is missing or a build fails; the error ends with the compiler's words.
    pub fn build(store: &Store, wanted: &[&str], progress: &Progress) -> Result<Self> {
        let version = process::run(&Command::new("go").arg("version"), Duration::from_secs(30))
            .and_then(crate::command::Outcome::success)
            .context("Go builds Kubernetes for the test cluster: install Go 1.26 or newer")?;
        let go_modules = cache::workspace().join("tests/go");
        let mut folders = Vec::new();
        for module in MODULES.iter().filter(|m| wanted.contains(&m.folder)) {
            let source = go_modules.join(module.folder);
            let key = Key::default()
                .with(version.stdout_text().trim())
                .with(module.linker_flags)
                .with_file(&source.join("go.mod"))?
                .with_file(&source.join("go.sum"))?;
            folders.push(store.folder(&format!("go-{}", module.folder), key, |folder| {
                let what = format!("build {} (minutes the first time, then cached)", module.what);
                progress.step(&what, || build(module, &source, folder))
            })?);
        }
        Ok(Self { folders })
    }

    /// Where a program is.
    ///
    /// # Errors
    /// When no built module has it.
    pub fn path(&self, program: &str) -> Result<PathBuf> {
        let path = self.folders.iter().map(|f| f.join(program)).find(|p| p.is_file());
        path.with_context(|| format!("{program} is not among the built programs"))
    }
}

fn build(module: &Module, source: &Path, folder: &Path) -> Result<()> {
    let out = format!("{}/", folder.display());
    let command = Command::new("nice")
        .args(["go", "build", "-trimpath", "-mod=readonly", "-ldflags", module.linker_flags, "-o", &out, "tool"])
        .env("CGO_ENABLED", "0")
        .cwd(source);
    process::run(&command, BUILD_LIMIT)?.success().with_context(|| format!("cannot build {}", module.what))?;
    for (built, name) in module.tools {
        let from = folder.join(built);
        if !from.is_file() {
            bail!("building {} gave no {built}", module.what);
        }
        fs::rename(from, folder.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_say_the_version_that_is_pinned() {
        let pinned = include_str!("../../go/kubernetes/go.mod");
        assert!(pinned.contains(&format!("k8s.io/kubernetes {KUBERNETES_VERSION}")), "{KUBERNETES_VERSION}");
        let kubernetes = MODULES.iter().find(|m| m.folder == "kubernetes").unwrap();
        assert!(kubernetes.linker_flags.contains(&format!("gitVersion={KUBERNETES_VERSION}")));
        let tools = include_str!("../../go/csi-tools/go.mod");
        assert!(tools.contains("external-provisioner/v6 v6.3.0"));
    }
}
