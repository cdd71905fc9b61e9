//! Devices as a made-up sysfs shows them.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

/// A made-up `/sys`, laid out as the kernel does: devices in a tree, links to them in `class/block`.
struct Sys {
    folder: TempDir,
}

impl Sys {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("class/block")).unwrap();
        Self { folder }
    }

    /// A device under `place` (`vda`, or `vda/vda1` for a partition).
    fn add(&self, place: &str, number: &str) -> &Self {
        let real = self.folder.path().join("devices").join(place);
        let name = real.file_name().unwrap().to_owned();
        for directory in ["slaves", "holders"] {
            fs::create_dir_all(real.join(directory)).unwrap();
        }
        if place.contains('/') {
            fs::write(real.join("partition"), "1\n").unwrap();
        }
        fs::write(real.join("dev"), format!("{number}\n")).unwrap();
        fs::write(real.join("size"), "204800\n").unwrap();
        symlink(&real, self.folder.path().join("class/block").join(name)).unwrap();
        self
    }

    fn set(&self, name: &str, attribute: &str, value: &str) -> &Self {
        let path = self.folder.path().join("class/block").join(name).join(attribute);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
        self
    }

    /// `upper` lies on `lower`.
    fn stack(&self, upper: &str, lower: &str) -> &Self {
        let class = self.folder.path().join("class/block");
        fs::create_dir(class.join(upper).join("slaves").join(lower)).unwrap();
        fs::create_dir(class.join(lower).join("holders").join(upper)).unwrap();
        self
    }

    fn roots(&self) -> Roots {
        Roots { sysfs: self.folder.path().to_owned(), dev: PathBuf::from("/dev") }
    }

    fn list(&self, allowed: Option<&[(u32, u32)]>) -> Listing {
        let allowed = allowed.map(|numbers| {
            let entry = |&(major, minor): &(u32, u32)| {
                (DeviceNumber { major, minor }, PathBuf::from(format!("/dev/disk/{major}:{minor}")))
            };
            numbers.iter().map(entry).collect::<BTreeMap<_, _>>()
        });
        let mut listing = Listing::default();
        list_among(&self.roots(), allowed.as_ref(), None, &mut listing).unwrap();
        listing
    }
}

fn paths(listing: &Listing) -> Vec<&str> {
    listing.candidates.iter().map(|candidate| candidate.path.to_str().unwrap()).collect()
}

fn reason<'a>(listing: &'a Listing, name: &str) -> Option<&'a Reason> {
    listing.skipped.iter().find(|skipped| skipped.name == name).map(|skipped| &skipped.reason)
}

#[test]
fn disks_partitions_and_encrypted_disks_are_looked_at() {
    let sys = Sys::new();
    sys.add("vda", "254:0").add("vda/vda1", "254:1").add("sdb", "8:16").add("dm-0", "253:0").add("cciss!c0d0", "104:0");
    sys.set("dm-0", "dm/uuid", "CRYPT-LUKS2-x").stack("dm-0", "sdb");
    let listing = sys.list(None);
    assert_eq!(paths(&listing), ["/dev/cciss/c0d0", "/dev/dm-0", "/dev/vda", "/dev/vda1"]);
    assert_eq!(reason(&listing, "sdb"), Some(&Reason::PartOf("dm-0".into())));
    assert!(listing.problems.is_empty());
    assert_eq!(listing.candidates[1].number, DeviceNumber { major: 253, minor: 0 });
}

#[test]
fn a_physical_volume_in_use_is_looked_at_and_its_volumes_never() {
    let sys = Sys::new();
    sys.add("vda", "254:0").add("dm-0", "253:0").add("dm-1", "253:1").add("dm-2", "253:2");
    sys.set("dm-0", "dm/uuid", "LVM-abc").stack("dm-0", "vda");
    sys.set("dm-1", "dm/uuid", "LVM-abc-tpool").stack("dm-1", "dm-0");
    // A tenant's encryption on its volume.
    sys.set("dm-2", "dm/uuid", "CRYPT-x").stack("dm-2", "dm-1");
    let listing = sys.list(None);
    assert_eq!(paths(&listing), ["/dev/vda"]);
    assert_eq!(reason(&listing, "dm-0"), Some(&Reason::LogicalVolume));
    assert_eq!(reason(&listing, "dm-2"), Some(&Reason::OnLogicalVolume("dm-1".into())));
    // Not even when the configuration says so; that is told.
    let listing = sys.list(Some(&[(253, 2), (254, 0)]));
    assert_eq!(paths(&listing), ["/dev/vda"]);
    let problem = &listing.problems[0];
    assert_eq!(problem.device, Path::new("/dev/disk/253:2"));
    assert!(problem.problem.to_string().contains("lies on the logical volume dm-1"), "{}", problem.problem);
}

#[test]
fn loop_devices_are_looked_at_only_by_name() {
    let sys = Sys::new();
    sys.add("loop0", "7:0").add("loop0/loop0p1", "259:0").add("dm-0", "253:0").add("vda", "254:0");
    sys.set("dm-0", "dm/uuid", "CRYPT-x").stack("dm-0", "loop0p1");
    let listing = sys.list(None);
    assert_eq!(paths(&listing), ["/dev/vda"]);
    for name in ["loop0", "loop0p1", "dm-0"] {
        assert_eq!(reason(&listing, name), Some(&Reason::Loop("loop0".into())), "{name}");
    }
    let listing = sys.list(Some(&[(7, 0)]));
    assert_eq!(paths(&listing), ["/dev/loop0"]);
    assert_eq!(listing.candidates[0].loops, [PathBuf::from("/dev/loop0")]);
    assert_eq!(reason(&listing, "vda"), Some(&Reason::NotConfigured));
    // What lies on a loop device needs the loop device named too, and the kernel is asked what is below it.
    let listing = sys.list(Some(&[(253, 0)]));
    assert!(listing.candidates.is_empty() && listing.problems.len() == 1);
    let listing = sys.list(Some(&[(253, 0), (7, 0)]));
    assert_eq!(paths(&listing), ["/dev/dm-0", "/dev/loop0"]);
    assert!(listing.candidates.iter().all(|candidate| candidate.loops == [PathBuf::from("/dev/loop0")]));
}

#[test]
fn what_cannot_be_a_disk_is_left_out_with_its_reason() {
    let sys = Sys::new();
    sys.add("ram0", "1:0").add("zram0", "252:0").add("sr0", "11:0").add("fd0", "2:0").add("nbd0", "43:0");
    sys.set("nbd0", "size", "0");
    let listing = sys.list(None);
    assert!(listing.candidates.is_empty() && listing.problems.is_empty());
    let reasons: Vec<_> = ["ram0", "zram0", "sr0", "fd0", "nbd0"].map(|name| reason(&listing, name).cloned()).into();
    let [memory, removable] = [Some(Reason::Memory), Some(Reason::Removable)];
    assert_eq!(reasons, [memory.clone(), memory, removable.clone(), removable, Some(Reason::Empty)]);
}

#[test]
fn a_device_that_sys_does_not_explain_is_a_problem() {
    let sys = Sys::new();
    sys.add("vda", "254:0").set("vda", "dev", "what");
    let listing = sys.list(None);
    assert!(listing.candidates.is_empty());
    assert!(listing.problems[0].problem.to_string().contains("\"what\" is not a device number"));
    // A broken link, as of a device that just went away, is none.
    fs::remove_dir_all(sys.folder.path().join("devices/vda")).unwrap();
    let listing = sys.list(None);
    assert!(listing.problems.is_empty() && listing.candidates.is_empty());
}

#[test]
fn configured_paths_that_are_no_devices_are_problems() {
    let sys = Sys::new();
    sys.add("vda", "254:0");
    let paths = [PathBuf::from("/nonexistent/disk"), PathBuf::from("/proc/version")];
    let listing = list_candidates(&sys.roots(), &paths, None).unwrap();
    assert!(listing.candidates.is_empty());
    let complaints: Vec<_> = listing.problems.iter().map(|problem| problem.problem.to_string()).collect();
    assert!(complaints[0].contains("cannot be found"), "{complaints:?}");
    assert!(complaints[1].contains("is no block device"), "{complaints:?}");
}

#[test]
fn a_second_look_is_at_the_named_nodes_only() {
    let sys = Sys::new();
    sys.add("vda", "254:0").add("vdb", "254:16");
    let only = [PathBuf::from("/dev/vdb"), PathBuf::from("/dev/vdc")];
    let listing = list_candidates(&sys.roots(), &[], Some(&only)).unwrap();
    assert_eq!(super::tests::paths(&listing), ["/dev/vdb"]);
    assert!(listing.problems.is_empty());
}

#[test]
fn no_list_is_an_error() {
    let roots = Roots { sysfs: PathBuf::from("/nonexistent"), dev: PathBuf::from("/dev") };
    let error = list_candidates(&roots, &[], None).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/class/block"), "{error}");
}
