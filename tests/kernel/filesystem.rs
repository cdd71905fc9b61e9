//! Filesystems on real devices: claims, mounts and the mount table as the kernel has them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quarry_driver::device_number::DeviceNumber;
use quarry_driver::exec::{Exec, Tools};
use quarry_driver::filesystem::{
    CheckError, Checked, Content, Filesystems, FormatError, Ground, MountError, MountRequest, MountTable, Mounted,
    Outcome, Proof, device, target,
};
use quarry_driver::volume::FilesystemType;
use quarry_tests::in_vm::{VolumeGroup, lvm};

use crate::scene::shell;

/// A logical volume and a folder to mount it in; unmounted and removed at the end.
struct Bench {
    filesystems: Filesystems,
    device: PathBuf,
    number: DeviceNumber,
    folder: tempfile::TempDir,
    group: VolumeGroup,
}

impl Bench {
    fn new(test: &str) -> Self {
        let group = VolumeGroup::fresh(test).unwrap();
        let vg = group.name();
        lvm("lvcreate", &["-y", "--type", "thin-pool", "-L", "1g", "-n", "pool", vg]).unwrap().success().unwrap();
        lvm("lvcreate", &["-y", "-V", "512m", "--thinpool", "pool", "-n", "thin", vg]).unwrap().success().unwrap();
        let device = Path::new("/dev").join(vg).join("thin");
        let number = DeviceNumber::of_node(&device).unwrap().unwrap();
        let filesystems = Filesystems::new(Exec::default(), Tools::find().unwrap(), Duration::from_secs(300));
        let folder = tempfile::tempdir_in("/run").unwrap();
        Self { filesystems, device, number, folder, group }
    }

    fn place(&self, name: impl AsRef<Path>) -> PathBuf {
        let place = target::resolve(&self.folder.path().join(name)).unwrap();
        target::make_directory(&place).unwrap();
        place
    }

    async fn format(&self, fs: FilesystemType) -> Result<(), FormatError> {
        self.filesystems.format(&self.device, fs, Ground::CutOff, &[]).await
    }

    async fn mount(&self, fs: FilesystemType, target: &Path) -> Result<Outcome, MountError> {
        let (device, number) = (self.device.as_path(), self.number);
        self.filesystems.mount(MountRequest { device, number, target, fs, flags: &[] }).await
    }

    async fn unmount(&self, target: &Path) -> Result<Outcome, MountError> {
        self.filesystems.unmount(target, "the test's", |mount| mount.device() == Some(self.number)).await
    }

    /// Bytes of the pool in use.
    fn pool_used(&self) -> f64 {
        let rows = self.group.lvs("lv_name,lv_size,data_percent").unwrap();
        let pool = rows.iter().find(|row| row["lv_name"] == "pool").unwrap();
        pool["data_percent"].parse::<f64>().unwrap() / 100.0 * pool["lv_size"].parse::<f64>().unwrap()
    }
}

#[tokio::test]
async fn a_device_in_use_is_neither_formatted_nor_checked() {
    let bench = Bench::new("claim");
    for fs in FilesystemType::ALL {
        bench.format(fs).await.unwrap();
        let place = bench.place("mount");
        assert!(!device::is_claimed(&bench.device).unwrap());
        bench.mount(fs, &place).await.unwrap();
        assert!(device::is_claimed(&bench.device).unwrap());
        assert!(matches!(bench.format(fs).await, Err(FormatError::InUse(_))), "{fs}");
        if fs == FilesystemType::Ext4 {
            assert!(matches!(bench.filesystems.check(&bench.device, fs).await, Err(CheckError::InUse(_))));
        }
        // Also where only another mount namespace has it mounted.
        let hold =
            "unshare -m --propagation private sh -c 'touch /run/held; while [ -e /run/held ]; do sleep 0.1; done'";
        shell(&format!(
            "rm -f /run/held; setsid {hold} >/dev/null 2>&1 & while ! [ -e /run/held ]; do sleep 0.1; done"
        ));
        bench.unmount(&place).await.unwrap();
        let elsewhere = bench.format(fs).await;
        shell("rm /run/held");
        assert!(matches!(elsewhere, Err(FormatError::InUse(_))), "{fs}: {elsewhere:?}");
        quarry_tests::wait::until(
            "the other namespace's end",
            Duration::from_secs(30),
            Duration::from_millis(100),
            || Ok((!device::is_claimed(&bench.device)?).then_some(())),
        )
        .unwrap();
    }
}

#[tokio::test]
async fn the_mount_table_tells_every_use_of_a_device() {
    let bench = Bench::new("table");
    for fs in FilesystemType::ALL {
        bench.format(fs).await.unwrap();
        let odd = OsStr::from_bytes(b"with blank\ttab\\back\xff");
        let (staged, bound) = (bench.place("staged"), bench.place(odd));
        assert_eq!(bench.mount(fs, &staged).await.unwrap(), Outcome::Done);
        assert_eq!(bench.mount(fs, &staged).await.unwrap(), Outcome::Already);
        assert_eq!(bench.filesystems.bind(&staged, &bound, bench.number, true).await.unwrap(), Outcome::Done);
        assert_eq!(bench.filesystems.bind(&staged, &bound, bench.number, true).await.unwrap(), Outcome::Already);
        let file = target::resolve(&bench.folder.path().join("node")).unwrap();
        target::make_file(&file).unwrap();
        assert_eq!(bench.filesystems.bind_node(&bench.device, &file, bench.number).await.unwrap(), Outcome::Done);

        let table = MountTable::read().unwrap();
        let mut users: Vec<_> = table.users_of(bench.number).map(|mount| mount.target.clone()).collect();
        users.sort();
        let mut expected = vec![staged.clone(), bound.clone(), file.clone()];
        expected.sort();
        assert_eq!(users, expected, "{fs}");
        assert!(table.at(&bound).unwrap().is_read_only() && !table.at(&staged).unwrap().is_read_only());
        assert_eq!(table.at(&file).unwrap().mounted, Mounted::Node(bench.number));

        for place in [&bound, &file, &staged] {
            assert_eq!(bench.unmount(place).await.unwrap(), Outcome::Done);
            assert_eq!(bench.unmount(place).await.unwrap(), Outcome::Already);
            target::remove(place).unwrap();
        }
        assert_eq!(MountTable::read().unwrap().users_of(bench.number).count(), 0);
    }
}

#[tokio::test]
async fn mounts_on_one_another_are_all_taken_away_and_a_busy_one_stays() {
    let bench = Bench::new("stack");
    bench.format(FilesystemType::Ext4).await.unwrap();
    let (staged, bound) = (bench.place("staged"), bench.place("bound"));
    bench.mount(FilesystemType::Ext4, &staged).await.unwrap();
    shell(&format!("for n in 1 2 3; do mount --bind {} {}; done", staged.display(), bound.display()));
    assert_eq!(bench.unmount(&bound).await.unwrap(), Outcome::Done);
    assert!(MountTable::read().unwrap().at(&bound).is_none());

    let held = std::fs::File::create(staged.join("file")).unwrap();
    let error = bench.unmount(&staged).await.unwrap_err();
    assert!(matches!(error, MountError::Command { action: "unmount", .. }), "{error}");
    assert!(MountTable::read().unwrap().at(&staged).is_some());
    drop(held);
    bench.unmount(&staged).await.unwrap();
}

#[tokio::test]
async fn a_filesystem_that_met_an_error_is_known_by_its_refusing_writes() {
    let bench = Bench::new("shut");
    for fs in FilesystemType::ALL {
        bench.format(fs).await.unwrap();
        let place = bench.place("mount");
        bench.mount(fs, &place).await.unwrap();
        let changed = || shell(&format!("stat -c '%y %z' {0}; find {0} | sort", place.display()));
        let before = changed();
        assert!(bench.filesystems.takes_writes(&place).await.unwrap(), "{fs}");
        assert_eq!(changed(), before, "{fs}: asking left a trace");
        if fs == FilesystemType::Btrfs {
            shell(&format!("mount -o remount,ro {}", place.display()));
        } else {
            shell(&format!("xfs_io -x -c 'shutdown' {}", place.display()));
        }
        assert!(!bench.filesystems.takes_writes(&place).await.unwrap(), "{fs}");
        bench.unmount(&place).await.unwrap();
    }
}

#[tokio::test]
async fn a_new_thin_volume_is_formatted_without_filling_its_pool() {
    let bench = Bench::new("fill");
    let filesystems = &bench.filesystems;
    let bytes = bench.number.size().unwrap();
    assert_eq!(bytes, 512 << 20);
    assert_eq!(filesystems.probe(&bench.device, bytes, Proof::Zeroes).await.unwrap(), Content::Empty);
    filesystems.format(&bench.device, FilesystemType::Ext4, Ground::Unwritten, &[]).await.unwrap();
    assert!(bench.pool_used() < f64::from(8 << 20), "mkfs took {} bytes of the pool", bench.pool_used());
    shell(&format!("e2fsck -fn {}", bench.device.display()));
    let place = bench.place("mount");
    bench.mount(FilesystemType::Ext4, &place).await.unwrap();
    // The kernel's lazy initialisation would begin within seconds.
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert!(bench.pool_used() < f64::from(12 << 20), "the kernel took {} bytes of the pool", bench.pool_used());
    bench.unmount(&place).await.unwrap();
    assert_eq!(filesystems.check(&bench.device, FilesystemType::Ext4).await.unwrap(), Checked::Clean);
}

#[tokio::test]
async fn a_node_of_another_device_is_not_waited_into_the_right_one() {
    let bench = Bench::new("wait");
    let limit = Duration::from_millis(300);
    device::wait_for(&bench.device, bench.number, limit).await.unwrap();
    let other = DeviceNumber { minor: bench.number.minor + 1000, ..bench.number };
    let error = device::wait_for(&bench.device, other, limit).await.unwrap_err();
    assert!(error.to_string().contains(&format!("it is block device {}", bench.number)), "{error}");
    assert!(bench.number.mapper_name().unwrap().unwrap().ends_with("-thin"));
}
