//! One volume group with a driver on it, next to which others use the disk too: what dies here must not touch them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use quarry_proto::csi::v1 as csi;
use quarry_tests::in_vm::{DriverUnderTest, Row, VolumeGroup, lvm};
use tonic::Status;

use crate::invariant;
use crate::operation::{Kind, Operation, Subject};
use crate::orders::{self, Orders, Target, reached};
use crate::scene::{self, Scene};

/// How long a pod's write may take where nothing is wrong: an emulated machine on a busy host.
const WRITE: Duration = Duration::from_secs(60);

/// A thin volume of somebody else's in a pool that is to grow.
pub const IN_POOL: &str = "in-pool";

/// What must be there at any rest.
#[derive(Debug, Default)]
pub struct Expected {
    /// Volumes, by name.
    pub volumes: BTreeSet<String>,
    /// Mounts below the driver's folder.
    pub mounts: BTreeSet<PathBuf>,
}

pub struct Lane {
    pub scene: Scene,
    pub orders: Orders,
    pub expected: Expected,
    /// A logical volume that is not ours, as LVM described it at first.
    pub theirs: Option<Row>,
    /// Whether LVM's spare of a pool's metadata may be left, which carries no mark of ours: where making a pool is killed.
    pub spare_may_be_left: bool,
    /// Where another pod has its volume mounted.
    neighbour: PathBuf,
}

/// What an ordered death came to.
pub enum Fate {
    /// The driver died there, and runs again.
    Died,
    /// It did its work without passing the point.
    Passed,
}

impl Lane {
    /// A fresh volume group with a foreign volume and another pod's, thin or thick.
    pub async fn new(test: String, neighbour_thick: bool) -> Result<Self> {
        let group = VolumeGroup::fresh(&test)?;
        let vg = group.name().to_owned();
        lvm("lvcreate", &["-y", "-L", "16m", "-n", "theirs", "--addtag", "mine", &vg])?.success()?;
        let device = File::options().write(true).open(format!("/dev/{vg}/theirs"))?;
        device.write_all_at(&pattern(), 0)?;
        device.sync_all()?;
        drop(device);
        // The disk is named: the drivers of other lanes have theirs in the same machine. A small pool is made quickly.
        let disk = group.disks().first().context("a group without a disk")?.display().to_string();
        let config = format!(
            "deviceClasses:\n  - {{name: default, volumeGroup: {vg}, devices: [{disk}], poolPercent: 10}}\n\
             timeouts: {{answerSeconds: 300, nodeAnswerSeconds: 300}}\n"
        );
        let folder = PathBuf::from(format!("/run/crash-{vg}"));
        std::fs::create_dir_all(&folder)?;
        let orders = Orders::new(&folder);
        let mut spec = scene::spec(&config);
        spec.env.push((orders::VARIABLE.to_owned(), orders.file().display().to_string()));
        let driver = DriverUnderTest::start(spec)?;
        let csi = driver.connect().await?;
        let theirs = invariant::of_theirs(&group)?;
        let scene = Scene { csi, driver, group };
        let mut lane = Self {
            scene,
            orders,
            expected: Expected::default(),
            theirs,
            spare_may_be_left: false,
            neighbour: PathBuf::new(),
        };
        lane.answers().await?;
        let kind = Kind { name: "neighbour", thick: neighbour_thick, block: false };
        let mut subject = Subject::new(&lane.scene, kind, "neighbour");
        for operation in [Operation::Create, Operation::Stage, Operation::Publish] {
            subject.insist(&lane.scene.csi, operation).await?;
            subject.done(&mut lane.expected, operation)?;
        }
        lane.neighbour = subject.target();
        let mut file = File::create(lane.neighbour.join("data"))?;
        file.write_all(&pattern())?;
        file.sync_all()?;
        Ok(lane)
    }

    /// Waits until the driver answers.
    pub async fn answers(&mut self) -> Result<()> {
        self.scene.csi = self.scene.driver.connect().await?;
        self.scene.csi.identity.probe(csi::ProbeRequest {}).await.context("the driver does not answer")?;
        Ok(())
    }

    /// Starts the driver again.
    pub async fn restart(&mut self) -> Result<()> {
        self.scene.driver.launch()?;
        self.answers().await
    }

    /// Asks with an order to die at the target; when that came about, starts the driver again.
    pub async fn strike(&mut self, subject: &Subject, operation: Operation, target: &Target) -> Result<Fate> {
        self.orders.give(Some(target))?;
        let answer: Result<(), Status> = subject.ask(&self.scene.csi, operation).await;
        if answer.is_err() {
            // The answer may have been lost because the driver has died, or the request was refused.
            let trace = self.orders.passed()?;
            if !reached(&trace, target) {
                self.orders.take_back()?;
                bail!("{} was refused before the point was reached: {answer:?}", operation.name());
            }
            let exit = self.scene.driver.wait_for_end()?;
            self.orders.take_back()?;
            ensure!(exit == quarry_tests::command::Exit::Signal(9), "the driver ended with {exit}");
            self.restart().await?;
            return Ok(Fate::Died);
        }
        let trace = self.orders.take_back()?;
        ensure!(!reached(&trace, target), "the driver passed the point and lives");
        Ok(Fate::Passed)
    }

    /// Whether LVM's spare of a pool's metadata was left as a volume of its own.
    pub fn spare_is_left(&self) -> Result<bool> {
        Ok(self.scene.group.lvs("lv_name")?.iter().any(|row| row["lv_name"].starts_with("lvol")))
    }

    /// Removes the thin pool, which no volume of ours is in any more, behind the driver's back.
    pub fn remove_pool(&self) -> Result<()> {
        let rows = self.scene.group.lvs("lv_name")?;
        // With the pool goes what is in it.
        for row in rows {
            let name = &row["lv_name"];
            if name == "quarry-pool" || name.starts_with("lvol") {
                lvm("lvremove", &["-y", &format!("{}/{name}", self.scene.group.name())])?.success()?;
            }
        }
        Ok(())
    }

    /// Makes the thin pool anew, as the driver does and so small that the next volume needs it larger, in data and in
    /// metadata. Somebody else's volume is in it.
    pub fn shrink_pool(&self) -> Result<()> {
        self.remove_pool()?;
        let vg = self.scene.group.name();
        let pool = ["-y", "--type", "thin-pool", "-n", "quarry-pool", "--addtag", "quarry-pool", "-Z", "y"];
        let sizes = ["-L", "8m", "--poolmetadatasize", "2m", "--chunksize", "64k", vg];
        lvm("lvcreate", &[&pool[..], &sizes[..]].concat())?.success()?;
        lvm("lvcreate", &["-y", "-V", "4m", "--thinpool", "quarry-pool", "-n", IN_POOL, vg])?.success()?;
        let device = File::options().write(true).open(format!("/dev/{vg}/{IN_POOL}"))?;
        device.write_all_at(&pattern(), 0)?;
        Ok(device.sync_all()?)
    }

    /// Looks at the data of others: of the foreign volume, and of the pod that reads and writes in the same group.
    pub fn others_are_well(&self) -> Result<()> {
        let device = format!("/dev/{}/theirs", self.scene.group.name());
        let in_pool = PathBuf::from(format!("/dev/{}/{IN_POOL}", self.scene.group.name()));
        let neighbour = self.neighbour.clone();
        // A frozen pool would hold this thread for ever; the suite must say so and go on.
        let (sender, done) = mpsc::channel();
        std::thread::spawn(move || {
            let look = || -> Result<()> {
                ensure!(read_from_disk(&PathBuf::from(device))? == pattern(), "the foreign volume's data have changed");
                if in_pool.exists() {
                    ensure!(read_from_disk(&in_pool)? == pattern(), "the data of the volume in the pool have changed");
                    // A block that the pool must give out.
                    let file = File::options().write(true).open(&in_pool)?;
                    let written = file.write_all_at(&pattern(), 1 << 20).and_then(|()| file.sync_all());
                    written.context("the volume in the pool cannot be written")?;
                }
                let data = read_from_disk(&neighbour.join("data"))?;
                ensure!(data == pattern(), "the other pod's data have changed");
                let mut beat = File::create(neighbour.join("beat")).context("the other pod cannot write")?;
                beat.write_all(&pattern()).and_then(|()| beat.sync_all()).context("the other pod cannot write")
            };
            sender.send(look()).ok();
        });
        done.recv_timeout(WRITE).map_err(|_| anyhow!("the other pod's write hangs"))?
    }
}

/// Data of which every block differs.
fn pattern() -> Vec<u8> {
    (0..16384_u32).flat_map(u32::to_le_bytes).collect()
}

/// Reads as many bytes as the pattern has, past the page cache.
fn read_from_disk(path: &std::path::Path) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut data = vec![0; pattern().len()];
    file.read_exact_at(&mut data, 0).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(data)
}
