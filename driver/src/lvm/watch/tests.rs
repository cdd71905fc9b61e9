//! Devices, locks, and their events.

use std::fs::{self, File};

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// Regular files stand for the device nodes: the kernel's events are the same.
struct Stage {
    folder: TempDir,
    watch: Watch,
    events: ReceiverStream<WatchEvent>,
}

impl Stage {
    fn new(period: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("lock")).unwrap();
        for name in ["pv0", "pv1"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let (watch, events) = Watch::start(WatchOptions {
            lock_directory: folder.path().join("lock"),
            settle: Duration::from_millis(20),
            period,
            retry: Duration::from_millis(100),
        });
        Self { folder, watch, events }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Groups `one` on `pv0`, `two` on `pv1`; the first event, which names both, is taken.
    async fn begin(&mut self) {
        let group = |name: &str, device| WatchedGroup { name: name.into(), devices: vec![self.path(device)] };
        self.watch.set(vec![group("one", "pv0"), group("two", "pv1")]);
        assert_eq!(self.next().await, changed(&["one", "two"], Cause::Missed));
    }

    async fn next(&mut self) -> WatchEvent {
        timeout(Duration::from_secs(10), self.events.next()).await.expect("an event in time").expect("not the end")
    }

    async fn silent(&mut self) {
        let event = timeout(Duration::from_millis(300), self.events.next()).await;
        assert!(event.is_err(), "{event:?}");
    }
}

fn changed(groups: &[&str], cause: Cause) -> WatchEvent {
    WatchEvent::MayHaveChanged { groups: groups.iter().map(|name| (*name).to_owned()).collect(), cause }
}

const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn writing_to_a_device_names_its_group() {
    let mut stage = Stage::new(NEVER);
    stage.begin().await;
    drop(File::open(stage.path("pv0")).unwrap());
    stage.silent().await;
    for _ in 0..5 {
        drop(File::options().write(true).open(stage.path("pv1")).unwrap());
    }
    assert_eq!(stage.next().await, changed(&["two"], Cause::Used));
    stage.silent().await;
}

#[tokio::test]
async fn a_lock_names_its_group_and_its_guard_does_not() {
    let mut stage = Stage::new(NEVER);
    stage.begin().await;
    for other in ["V_one:aux", "V_three", "P_global", "V_"] {
        fs::write(stage.path("lock").join(other), "").unwrap();
    }
    stage.silent().await;
    fs::write(stage.path("lock/V_one"), "").unwrap();
    assert_eq!(stage.next().await, changed(&["one"], Cause::Used));
    fs::remove_file(stage.path("lock/V_one")).unwrap();
    assert_eq!(stage.next().await, changed(&["one"], Cause::Used));
}

#[tokio::test]
async fn a_node_that_vanishes_is_reported_and_watched_again() {
    let mut stage = Stage::new(NEVER);
    stage.begin().await;
    let node = stage.path("pv0");
    fs::remove_file(&node).unwrap();
    let mut blind = false;
    let mut seen = false;
    while !seen {
        match stage.next().await {
            WatchEvent::Blind { path, why } => {
                assert_eq!(path, node);
                assert!(why.contains("No such file"), "{why}");
                blind = true;
                fs::write(&node, "new").unwrap();
            }
            WatchEvent::Sees { path } => {
                assert!(blind);
                assert_eq!(path, node);
                seen = true;
            }
            WatchEvent::MayHaveChanged { groups, .. } => assert!(groups.contains("one")),
        }
    }
    // The time without a watch counts as a change.
    let WatchEvent::MayHaveChanged { groups, .. } = stage.next().await else { panic!("not a change") };
    assert!(groups.contains("one"));
    drop(File::options().write(true).open(&node).unwrap());
    assert_eq!(stage.next().await, changed(&["one"], Cause::Used));
}

#[tokio::test]
async fn a_node_replaced_by_another_is_noticed_without_an_event() {
    let mut stage = Stage::new(NEVER);
    stage.begin().await;
    // Held open, the old file gives no event of its end.
    let held = File::open(stage.path("pv1")).unwrap();
    fs::write(stage.path("new"), "new").unwrap();
    fs::rename(stage.path("new"), stage.path("pv1")).unwrap();
    let WatchEvent::MayHaveChanged { groups, .. } = stage.next().await else { panic!("not a change") };
    assert!(groups.contains("two"));
    drop(held);
    drop(File::options().write(true).open(stage.path("pv1")).unwrap());
    assert_eq!(stage.next().await, changed(&["two"], Cause::Used));
}

#[tokio::test]
async fn without_any_watch_the_timer_remains() {
    let mut stage = Stage::new(Duration::from_millis(300));
    let nowhere = PathBuf::from("/nonexistent/device");
    stage.watch.set(vec![WatchedGroup { name: "one".into(), devices: vec![nowhere.clone()] }]);
    let mut blind = false;
    loop {
        match stage.next().await {
            WatchEvent::Blind { path, .. } => blind |= path == nowhere,
            WatchEvent::MayHaveChanged { groups, cause: Cause::Timer } => {
                assert!(groups.contains("one"));
                break;
            }
            _ => {}
        }
    }
    assert!(blind, "a blind spot must be told");
}

#[tokio::test]
async fn groups_no_longer_wanted_are_not_watched() {
    let mut stage = Stage::new(NEVER);
    stage.begin().await;
    let two = WatchedGroup { name: "two".into(), devices: vec![stage.path("pv1")] };
    stage.watch.set(vec![two]);
    assert_eq!(stage.next().await, changed(&["two"], Cause::Missed));
    drop(File::options().write(true).open(stage.path("pv0")).unwrap());
    fs::write(stage.path("lock/V_one"), "").unwrap();
    stage.silent().await;
}

#[tokio::test]
async fn the_watch_ends_with_its_handle() {
    let stage = Stage::new(NEVER);
    let Stage { watch, mut events, .. } = stage;
    drop(watch);
    assert_eq!(timeout(Duration::from_secs(10), events.next()).await.expect("an end"), None);
}
