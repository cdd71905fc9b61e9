//! Who makes and deletes a volume in the benchmark: the driver, bare LVM, and the LVM commands that other drivers give.
//!
//! The others' sequences are what their node parts run for one volume, without the `nsenter` that some of them put
//! before each and without their own waiting: the least that they can take.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use quarry_proto::csi::v1 as csi;
use quarry_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use quarry_tests::command::Command;
use quarry_tests::in_vm::{Csi, DriverUnderTest, VolumeGroup, lvm};
use quarry_tests::process;
use tokio::runtime::Runtime;

/// How long one LVM command may take.
const LIMIT: Duration = Duration::from_secs(120);
/// The size of a thin volume, and of a thick one.
const THIN_BYTES: i64 = 1 << 30;
const THICK_BYTES: i64 = 64 << 20;
const POOL: &str = "quarry-pool";

/// One way to make and delete volumes.
pub trait Contender {
    /// As the table calls it.
    fn name(&self) -> &str;
    /// Makes a volume.
    fn create(&self, volume: &str) -> Result<()>;
    /// Deletes it.
    fn delete(&self, volume: &str) -> Result<()>;
    /// LVM processes that it has started so far.
    fn processes(&self) -> usize;

    /// Milliseconds and LVM processes of an operation.
    fn timed(&self, operation: impl FnOnce() -> Result<()>) -> Result<(f64, usize)>
    where
        Self: Sized,
    {
        let (before, begin) = (self.processes(), Instant::now());
        operation()?;
        let took = begin.elapsed().as_secs_f64() * 1000.0;
        Ok((took, self.processes() - before))
    }
}

impl Contender for Box<dyn Contender + '_> {
    fn name(&self) -> &str {
        (**self).name()
    }
    fn create(&self, volume: &str) -> Result<()> {
        (**self).create(volume)
    }
    fn delete(&self, volume: &str) -> Result<()> {
        (**self).delete(volume)
    }
    fn processes(&self) -> usize {
        (**self).processes()
    }
}

/// All of them, in the order of the table.
pub fn all<'a>(
    runtime: &'a Runtime,
    driver: &'a DriverUnderTest,
    group: &'a VolumeGroup,
) -> Result<Vec<Box<dyn Contender + 'a>>> {
    let csi = runtime.block_on(driver.connect())?;
    let quarry = |name, provisioning, bytes| Quarry { name, provisioning, bytes, csi: csi.clone(), runtime, driver };
    let (vg, own) = (group.name(), Some(driver.state_dir().join("lvm")));
    let bytes = |bytes: i64| format!("{bytes}b");
    let thin_create = [
        "lvcreate",
        "-y",
        "-V",
        &bytes(THIN_BYTES),
        "--thinpool",
        POOL,
        "-n",
        "VOLUME",
        "--addtag",
        "quarry",
        "--addtag",
        "c=default",
        "--addtag",
        "f=ext4",
        "--addtag",
        "g=new",
        vg,
    ]
    .map(str::to_owned)
    .to_vec();
    let thick_create = [
        "lvcreate",
        "-y",
        "-W",
        "y",
        "-Z",
        "y",
        "-L",
        &bytes(THICK_BYTES),
        "-n",
        "VOLUME",
        "--addtag",
        "quarry",
        "--addtag",
        "c=default",
        "--addtag",
        "f=ext4",
        "--addtag",
        "g=new",
        vg,
    ]
    .map(str::to_owned)
    .to_vec();
    let remove = vec!["lvremove".to_owned(), "-y".to_owned(), format!("{vg}/VOLUME")];
    let report = |verb: &str, of: &str| {
        ["", "--reportformat", "json", "--units", "b", "-o", "all", ""].map(str::to_owned).to_vec().tap(|words| {
            words[0] = verb.to_owned();
            words[7] = of.to_owned();
        })
    };
    let pool = format!("{vg}/{POOL}");
    let volume = format!("{vg}/VOLUME");
    let sequence = |name, system_dir: Option<PathBuf>, create: Vec<Vec<String>>, delete: Vec<Vec<String>>| Sequence {
        name,
        system_dir,
        create,
        delete,
        started: std::cell::Cell::new(0),
    };
    let topolvm = vec![
        report("vgs", vg),
        report("lvs", &pool),
        report("lvs", vg),
        report("vgs", vg),
        report("lvs", &pool),
        report("lvs", vg),
        thin_create.clone(),
        report("lvs", &volume),
        vec!["fullreport".to_owned(), "--reportformat".to_owned(), "json".to_owned()],
    ];
    let csi_driver_lvm = vec![report("lvs", vg), report("vgs", vg), thick_create.clone()];
    Ok(vec![
        Box::new(sequence("one lvm process, thin", own.clone(), vec![thin_create.clone()], vec![remove.clone()])),
        Box::new(quarry("Quarry, thin", "thin", THIN_BYTES)),
        Box::new(sequence(
            "TopoLVM's commands, thin",
            None,
            topolvm,
            vec![
                report("lvs", &volume),
                remove.clone(),
                vec!["fullreport".to_owned(), "--reportformat".to_owned(), "json".to_owned()],
            ],
        )),
        Box::new(sequence("one lvm process, thick", own, vec![thick_create.clone()], vec![remove.clone()])),
        Box::new(quarry("Quarry, thick", "thick", THICK_BYTES)),
        Box::new(sequence(
            "csi-driver-lvm's commands, thick",
            None,
            csi_driver_lvm,
            vec![report("lvs", vg), report("vgs", vg), remove],
        )),
    ])
}

/// Changes a value in place, for building lists of words.
trait Tap: Sized {
    fn tap(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl Tap for Vec<String> {}

/// The driver, asked over its socket.
struct Quarry<'a> {
    name: &'static str,
    provisioning: &'static str,
    bytes: i64,
    csi: Csi,
    runtime: &'a Runtime,
    driver: &'a DriverUnderTest,
}

impl Contender for Quarry<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn create(&self, volume: &str) -> Result<()> {
        let request = csi::CreateVolumeRequest {
            name: volume.to_owned(),
            capacity_range: Some(csi::CapacityRange { required_bytes: self.bytes, limit_bytes: 0 }),
            volume_capabilities: vec![csi::VolumeCapability {
                access_mode: Some(AccessMode { mode: 7 }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }],
            parameters: [("provisioning".to_owned(), self.provisioning.to_owned())].into(),
            ..Default::default()
        };
        let answer = self.runtime.block_on(self.csi.controller.clone().create_volume(request));
        answer.map(drop).with_context(|| format!("{} cannot make {volume}", self.name))
    }

    fn delete(&self, volume: &str) -> Result<()> {
        let request = csi::DeleteVolumeRequest { volume_id: format!("node-1/{volume}"), ..Default::default() };
        let answer = self.runtime.block_on(self.csi.controller.clone().delete_volume(request));
        answer.map(drop).with_context(|| format!("{} cannot delete {volume}", self.name))
    }

    fn processes(&self) -> usize {
        self.driver.log().lines().filter(|line| line.contains("command ended") && line.contains("/lvm ")).count()
    }
}

/// LVM commands one after the other; `VOLUME` in a word stands for the volume's name.
struct Sequence {
    name: &'static str,
    /// With the driver's settings; without, with LVM's own.
    system_dir: Option<PathBuf>,
    create: Vec<Vec<String>>,
    delete: Vec<Vec<String>>,
    started: std::cell::Cell<usize>,
}

impl Sequence {
    fn run(&self, commands: &[Vec<String>], volume: &str) -> Result<()> {
        for command in commands {
            let words: Vec<String> = command.iter().map(|word| word.replace("VOLUME", volume)).collect();
            let (verb, rest) = words.split_first().context("an empty command")?;
            self.started.set(self.started.get() + 1);
            let outcome = match &self.system_dir {
                None => lvm(verb, rest)?,
                Some(dir) => {
                    let command = Command::new("lvm").arg(verb).args(rest);
                    process::run(&command.env("LVM_SYSTEM_DIR", dir).env("LVM_SUPPRESS_FD_WARNINGS", "1"), LIMIT)?
                }
            };
            outcome.success()?;
        }
        Ok(())
    }
}

impl Contender for Sequence {
    fn name(&self) -> &str {
        self.name
    }

    fn create(&self, volume: &str) -> Result<()> {
        self.run(&self.create, volume)
    }

    fn delete(&self, volume: &str) -> Result<()> {
        self.run(&self.delete, volume)
    }

    fn processes(&self) -> usize {
        self.started.get()
    }
}
