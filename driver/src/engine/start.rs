//! Starts the engine: finds the volume groups, repairs what an earlier life left behind, keeps the readings true.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, DeviceClass};
use crate::exec::{Exec, Tools};
use crate::journal::Journal;
use crate::lvm::metadata::LvmUuid;
use crate::lvm::repair;
use crate::lvm::runner::{Processes, Runner};
use crate::lvm::system_dir::{SystemDir, SystemDirError};
use crate::lvm::watch::{Watch, WatchEvent, WatchOptions, WatchedGroup};
use crate::telemetry::chain;
use crate::volume::TopologyValue;

use super::Engine;
use super::backups::Backups;
use super::changes::{Changes, Reason};
use super::deleted::Deleted;
use super::groups::{Groups, ScanError};
use super::holds::Holds;
use super::locks::VolumeLocks;
use super::pins::{PinError, Pins};
use super::underway::UnderWay;
use super::usage::Gauge;

/// What the engine is started with.
#[derive(Debug)]
pub struct Settings {
    /// This node's name in Kubernetes.
    pub node_name: String,
    /// The configuration.
    pub config: Config,
    /// The programs.
    pub tools: Tools,
    /// Where state is kept.
    pub state_dir: PathBuf,
    /// The host's LVM configuration.
    pub host_lvm_dir: PathBuf,
    /// Runs programs.
    pub exec: Exec,
    /// What was under way when the last driver ended.
    pub journal: Arc<dyn Journal>,
}

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// LVM's configuration.
    #[error(transparent)]
    SystemDir(#[from] SystemDirError),
    /// The note of which groups hold volumes.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The volume groups.
    #[error(transparent)]
    Scan(#[from] ScanError),
}

/// LVM's reports are killed after this: they wait for the lock of a hanging writer.
const REPORT_LIMIT: Duration = Duration::from_secs(30);

/// How long the start waits for volume groups to be usable: a repair and the activation of a pool take seconds.
const TAKE_UP: Duration = Duration::from_secs(20);

/// How often is looked for volume groups that are not there: an admin may be making one, a disk may come back. A look
/// reads the first sectors of each disk.
const MISSING_PERIOD: Duration = Duration::from_secs(10);

impl Engine {
    /// Starts the engine. A volume group that is missing or broken does not keep it from starting.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(settings: Settings) -> Result<Arc<Self>, StartError> {
        let engine = Self::open(settings).await?;
        engine.report_missing_groups();
        engine.take_up(&BTreeSet::new()).await;
        Ok(engine)
    }

    /// Finds out what is there, and changes nothing.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn open(settings: Settings) -> Result<Arc<Self>, StartError> {
        let config = Arc::new(settings.config);
        let system_dir = SystemDir::create(&settings.state_dir.join("lvm"), &settings.host_lvm_dir)?;
        let pins = Arc::new(Pins::open(&settings.state_dir)?);
        let backups = Arc::new(Backups::new(&settings.state_dir));
        let runner: Arc<dyn Runner> = Arc::new(Processes::new(
            settings.exec.clone(),
            settings.tools.lvm.clone(),
            system_dir.path().to_owned(),
            REPORT_LIMIT,
            config.timeouts.kill(),
        ));
        let engine = Arc::new(Self {
            node: TopologyValue::for_node(&settings.node_name),
            lvm_system_dir: system_dir.path().to_owned(),
            groups: Groups::new(Arc::clone(&config), pins, Arc::clone(&backups), system_dir),
            config,
            tools: settings.tools,
            exec: settings.exec,
            runner,
            locks: VolumeLocks::default(),
            backups,
            deleted: Deleted::default(),
            journal: settings.journal,
            background: TaskTracker::new(),
            stop: CancellationToken::new(),
            changes: Changes::default(),
            under_way: UnderWay::default(),
            gauge: Gauge::default(),
            holds: Holds::default(),
            samples: super::sampler::Samples::default(),
            figures: super::inventory::Figures::default(),
            recovery_put_off: AtomicBool::new(false),
            tenancy: tokio::sync::Notify::new(),
        });
        engine.groups.scan().await?;
        Ok(engine)
    }

    /// Takes up the groups that are not among the known ones: repairs them, activates their pools, finishes what was cut
    /// off. All groups at once, and a group that hangs is left to itself after a while.
    async fn take_up(self: &Arc<Self>, known: &BTreeSet<LvmUuid>) {
        let new: Vec<_> = self.groups.all().into_iter().filter(|group| !known.contains(&group.uuid())).collect();
        if new.is_empty() {
            return;
        }
        let tasks: Vec<_> = new
            .into_iter()
            .map(|group| {
                let engine = Arc::clone(self);
                self.background.spawn(async move {
                    engine.make_usable(&group).await;
                    engine.recover().await;
                })
            })
            .collect();
        let all = async {
            for task in tasks {
                if let Err(error) = task.await {
                    tracing::error!(%error, "taking up a volume group was cut off");
                }
            }
        };
        if tokio::time::timeout(TAKE_UP, all).await.is_err() {
            tracing::warn!("a volume group takes long to become usable; the others are served");
        }
        self.recover().await;
        self.changes.hint(Reason::GroupFound);
    }

    /// Ends what only waits in the background, and waits for what goes on there.
    pub async fn finish_background(&self) {
        self.stop.cancel();
        self.background.close();
        self.background.wait().await;
    }

    /// Repairs a group and activates its thin pools, whose fill is otherwise unknown. What fails is tried again before
    /// the group's next change.
    async fn make_usable(&self, group: &super::Group) {
        // Before anything is believed: a command of a killed driver may still be running. Nobody else changes the group
        // before it is over.
        let mut writer = group.writer().await;
        tokio::select! {
            () = self.stop.cancelled() => return,
            () = repair::wait_for_leftover_commands(&self.lvm_system_dir, group.name()) => {}
        }
        while let Err(error) = group.read().await {
            drop(writer);
            tracing::error!(vg = group.name(), error = chain(&error), "volume group cannot be read");
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(MISSING_PERIOD) => {}
            }
            if self.groups.by_uuid(group.uuid()).is_err() {
                return;
            }
            writer = group.writer().await;
        }
        group.settle();
        if let Err(error) = writer.ready(self.runner.as_ref()).await {
            tracing::error!(vg = group.name(), error = chain(&error), "volume group is not usable yet");
            return;
        }
        if let Err(error) = self.remove_leftover_scratch(group, &mut writer).await {
            tracing::error!(vg = group.name(), %error, "a scratch volume of an earlier driver is left");
        }
        let reading = group.known();
        for class in self.config.device_classes.iter().filter(|class| class.volume_group == group.name()) {
            let metadata = &reading.state().group;
            let Some(pool) = metadata.logical_volume(&class.thin_pool).filter(|lv| lv.thin_pool().is_some()) else {
                continue;
            };
            match super::usage::pool_status(metadata, pool).await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    let command = crate::lvm::verbs::activate(group.name(), &pool.name);
                    if let Err(error) = writer.run(self.runner.as_ref(), command).await {
                        tracing::error!(
                            vg = group.name(),
                            pool = pool.name,
                            error = chain(&error),
                            "cannot activate the thin pool"
                        );
                    }
                }
                Err(error) => {
                    tracing::error!(vg = group.name(), error = chain(&error), "cannot ask for the thin pool's state")
                }
            }
        }
    }

    fn report_missing_groups(&self) {
        for class in &self.config.device_classes {
            if self.groups.by_name(&class.volume_group).is_none() {
                tracing::warn!(
                    class = class.name,
                    vg = class.volume_group,
                    "this node lacks the device class's volume group; it serves the others"
                );
            }
        }
        if let Err(error) = self.groups.none_gone() {
            tracing::error!(error = chain(&error), "volumes are out of reach");
        }
    }

    /// Keeps the readings true while others change the volume groups: woken by writes to the disks and by LVM's locks,
    /// and slowly by a timer. Ends when `shutdown` is cancelled.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        let (watch, mut events) = Watch::start(WatchOptions::default());
        let mut watched = Vec::new();
        // Groups that are not there cannot be watched. Its own clock: events of one group must not put off the others.
        let mut period = tokio::time::interval(MISSING_PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Told only what is new: each group that the watch is told of is looked at again.
            let groups = self.watched();
            if groups != watched {
                watch.set(groups.clone());
                watched = groups;
            }
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
                _ = period.tick() => {
                    if self.lacks_groups() {
                        self.look_again(&BTreeSet::new()).await;
                    }
                    if self.recovery_put_off.load(Ordering::Relaxed) {
                        self.recover().await;
                    }
                    continue;
                }
            };
            match event {
                None => return tracing::error!("the watch over the volume groups ended"),
                Some(WatchEvent::Blind { path, why }) => {
                    tracing::warn!(path = %path.display(), why, "changes are noticed by a timer only");
                }
                Some(WatchEvent::Sees { path }) => tracing::info!(path = %path.display(), "watched again"),
                Some(WatchEvent::MayHaveChanged { groups, .. }) => self.look_again(&groups).await,
            }
        }
    }

    fn watched(&self) -> Vec<WatchedGroup> {
        let groups = self.groups.all().into_iter();
        groups.map(|group| WatchedGroup { name: group.name().to_owned(), devices: group.known().devices() }).collect()
    }

    /// Whether a group is not there that a class names, or that held volumes; or is there and was not read whole.
    fn lacks_groups(&self) -> bool {
        let lacks = |class: &DeviceClass| self.groups.by_name(&class.volume_group).is_none();
        self.config.device_classes.iter().any(lacks)
            || self.groups.none_gone().is_err()
            || self.groups.all().iter().any(|group| group.condition().trouble.is_some())
    }

    /// Reads groups again, and looks at all devices anew where one of the groups is not as it should be.
    async fn look_again(self: &Arc<Self>, names: &BTreeSet<String>) {
        let known: BTreeSet<LvmUuid> = self.groups.all().iter().map(|group| group.uuid()).collect();
        let before = self.standing();
        self.read_again(names, &known).await;
        let now = self.standing();
        self.changes.hint(match () {
            () if before.keys().any(|group| !now.contains_key(group)) => Reason::GroupGone,
            () if now.keys().any(|group| !before.contains_key(group)) => Reason::GroupFound,
            () if before != now => Reason::Completeness,
            () if self.groups.all().iter().any(|group| group.is_being_changed()) => Reason::Command,
            () => Reason::Foreign,
        });
    }

    /// The groups that are there, and whether each is whole.
    fn standing(&self) -> BTreeMap<LvmUuid, bool> {
        self.groups.all().iter().map(|group| (group.uuid(), group.known().is_complete())).collect()
    }

    async fn read_again(self: &Arc<Self>, names: &BTreeSet<String>, known: &BTreeSet<LvmUuid>) {
        let mut rescan = self.lacks_groups();
        // At the same time: one that hangs must not keep the others' changes from being seen.
        let mut reads = tokio::task::JoinSet::new();
        for group in self.groups.all().into_iter().filter(|group| names.contains(group.name())) {
            reads.spawn(async move { group.read().await });
        }
        while let Some(read) = reads.join_next().await {
            match read {
                // A physical volume that we do not know was added, or one is missing that may be back.
                Ok(Ok(reading)) => rescan |= !reading.state().completeness.missing.is_empty(),
                Ok(Err(error)) => {
                    tracing::warn!(error = chain(&error), "a volume group was not read");
                    rescan = true;
                }
                Err(_) => rescan = true,
            }
        }
        if !rescan {
            return;
        }
        match self.groups.scan().await {
            Ok(()) => self.take_up(known).await,
            Err(error) => tracing::error!(error = chain(&error), "cannot look for volume groups"),
        }
    }
}
