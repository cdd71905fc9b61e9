//! The pods' cgroups, by UID: under any root, of both of the kubelet's cgroup drivers, of any QoS class.
//!
//! **Invariant.** A pod's place is looked for, never computed: roots are nested, and nobody tells the class.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The cgroups of a pod and of its class.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodCgroup {
    /// The pod's folder.
    pub path: PathBuf,
    /// The folder of its QoS class, for burstable and best-effort pods: there the pod competes, and the class with the
    /// guaranteed pods.
    pub class: Option<PathBuf>,
}

/// How deep below the root a kubelet's own root may be: kind has `kubelet.slice/kubelet-kubepods.slice`, in a container
/// of a slice.
const DEEPEST: usize = 5;

/// What there is of the kubelets'.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Every pod of the node, by its UID with dashes.
    pub pods: BTreeMap<String, PodCgroup>,
    /// The folders in which roots, classes and pods come and go.
    pub homes: BTreeSet<PathBuf>,
}

/// Looks at the whole tree.
///
/// # Errors
/// A folder that cannot be read. One that goes away meanwhile is no error.
pub fn find(root: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    look(root, 0, &mut found)?;
    Ok(found)
}

/// Looks for the kubelet's roots.
fn look(folder: &Path, depth: usize, found: &mut Found) -> io::Result<()> {
    for (name, path) in folders(folder)? {
        if name.contains("kubepods") {
            found.homes.insert(folder.to_owned());
            gather(&path, None, found)?;
        } else if depth < DEEPEST {
            look(&path, depth + 1, found)?;
        }
    }
    Ok(())
}

/// Gathers pods below a root of the kubelet's, or below one of its classes.
fn gather(folder: &Path, class: Option<&Path>, found: &mut Found) -> io::Result<()> {
    found.homes.insert(folder.to_owned());
    for (name, path) in folders(folder)? {
        if let Some(uid) = uid_of(&name) {
            found.pods.insert(uid, PodCgroup { path, class: class.map(Path::to_owned) });
        } else if is_class(&name) {
            gather(&path, Some(&path), found)?;
        } else if name.contains("kubepods") {
            // Nested roots: `kubelet-kubepods.slice` within a `kubepods.slice` of an outer kubelet.
            gather(&path, class, found)?;
        }
    }
    Ok(())
}

fn folders(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let gone = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound) || error.raw_os_error() == Some(19);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if gone(&error) => continue,
            Err(error) => return Err(error),
        };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
    }
    Ok(found)
}

/// `pod<uid>` (cgroupfs) or `kubepods-burstable-pod<uid_>.slice` (systemd, where a dash would mean a parent).
fn uid_of(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    // UIDs are UUIDs; those of static pods are 32 digits of a hash.
    let sound = uid.len() >= 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    sound.then_some(uid)
}

fn is_class(name: &str) -> bool {
    ["burstable", "besteffort"]
        .into_iter()
        .any(|class| name == class || name.strip_suffix(".slice").is_some_and(|slice| slice.ends_with(class)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6c7dba21-9a4c-4c1d-9a5b-4cf7f7a3d111";
    const STATIC: &str = "0123456789abcdef0123456789abcdef";

    fn found(paths: &[&str]) -> BTreeMap<String, (String, Option<String>)> {
        let root = tempfile::tempdir().unwrap();
        for path in paths {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let relative = |path: &Path| path.strip_prefix(root.path()).unwrap().display().to_string();
        let Found { pods, homes } = find(root.path()).unwrap();
        let parent = |pod: &PodCgroup| homes.contains(pod.path.parent().unwrap());
        assert!(pods.values().all(parent), "a pod lies outside of {homes:?}");
        pods.into_iter().map(|(uid, pod)| (uid, (relative(&pod.path), pod.class.as_deref().map(relative)))).collect()
    }

    #[test]
    fn both_drivers_every_class_and_nested_roots_are_found() {
        let under = UID.replace('-', "_");
        let cases = [
            (format!("kubepods/pod{UID}/container"), UID, None),
            (format!("kubepods/burstable/pod{UID}"), UID, Some("kubepods/burstable")),
            (format!("kubepods/besteffort/pod{STATIC}"), STATIC, Some("kubepods/besteffort")),
            (format!("kubepods.slice/kubepods-pod{under}.slice/cri.scope"), UID, None),
            (
                format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice"),
                UID,
                Some("kubepods.slice/kubepods-besteffort.slice"),
            ),
            (
                format!(
                    "docker/box/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                     kubelet-kubepods-burstable-pod{under}.slice"
                ),
                UID,
                Some("docker/box/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice"),
            ),
        ];
        for (path, uid, class) in cases {
            let pods = found(&[&path, "system.slice/containerd.service", "kubepods/podless"]);
            let (place, found_class) = pods.get(uid).unwrap_or_else(|| panic!("{uid} of {path} is not in {pods:?}"));
            assert!(path.starts_with(place.as_str()), "{place} in {path}");
            assert_eq!((found_class.as_deref(), pods.len()), (class, 1), "{path}");
        }
    }
}
