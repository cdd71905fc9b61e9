//! Tells at once when a cgroup appears where pods have theirs, by inotify.
//!
//! **Rule.** This only hastens: what it cannot watch is found by the next look at the clock. A cgroup's files give no
//! events of their own; its being made does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio_stream::StreamExt as _;

/// Room for some dozens of events, in bytes.
const EVENT_BUFFER: usize = 4096;

/// How far the watches reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// As far as before.
    Same,
    /// Further: what appeared there before is not told of.
    New,
    /// Not everywhere.
    Blind,
}

/// Watches folders for new folders in them.
#[derive(Default)]
pub struct Arrivals {
    stream: Option<EventStream<Vec<u8>>>,
    watched: BTreeMap<PathBuf, WatchDescriptor>,
    /// Said once, not at every look.
    told_blind: bool,
}

impl Arrivals {
    /// Watches exactly these folders from now on.
    pub fn watch(&mut self, folders: &BTreeSet<PathBuf>) -> Sight {
        match self.try_watch(folders) {
            Ok(new) => {
                self.told_blind = false;
                if new { Sight::New } else { Sight::Same }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.told_blind, true) {
                    tracing::warn!(%error, "pods' cgroups cannot be watched; they are looked for by the clock");
                }
                Sight::Blind
            }
        }
    }

    /// Says whether a watch is new.
    fn try_watch(&mut self, folders: &BTreeSet<PathBuf>) -> io::Result<bool> {
        if folders.is_empty() {
            self.forget();
            return Ok(false);
        }
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(Inotify::init()?.into_event_stream(vec![0; EVENT_BUFFER])?),
        };
        let unwanted: Vec<PathBuf> = self.watched.keys().filter(|path| !folders.contains(*path)).cloned().collect();
        for path in unwanted {
            if let Some(descriptor) = self.watched.remove(&path) {
                // It fails only if the folder, and with it the watch, is gone.
                drop(stream.watches().remove(descriptor));
            }
        }
        let mut new = false;
        for path in folders {
            // Asked for each time: a folder that stayed has the watch it had, one made anew another.
            match stream.watches().add(path, WatchMask::CREATE | WatchMask::ONLYDIR) {
                Ok(descriptor) => new |= self.watched.insert(path.clone(), descriptor.clone()) != Some(descriptor),
                Err(error) if error.kind() == io::ErrorKind::NotFound => drop(self.watched.remove(path)),
                Err(error) => return Err(error),
            }
        }
        Ok(new)
    }

    /// Ends when a folder appeared in one of those watched, or may have; never while none is watched.
    pub async fn next(&mut self) {
        loop {
            let Some(stream) = &mut self.stream else { return std::future::pending().await };
            match stream.next().await {
                Some(Ok(event)) if event.mask.intersects(EventMask::CREATE | EventMask::Q_OVERFLOW) => return,
                // A watched folder went away: with it the watch.
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return self.forget(),
            }
        }
    }

    fn forget(&mut self) {
        self.stream = None;
        self.watched.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn told(arrivals: &mut Arrivals) -> bool {
        timeout(Duration::from_millis(300), arrivals.next()).await.is_ok()
    }

    #[tokio::test]
    async fn a_folder_that_appears_is_told_and_nothing_else_is() {
        let root = tempfile::tempdir().unwrap();
        let class = root.path().join("burstable");
        fs::create_dir(&class).unwrap();
        let mut arrivals = Arrivals::default();
        assert!(!told(&mut arrivals).await, "nothing is watched yet");
        let both = BTreeSet::from([root.path().to_owned(), class.clone()]);
        assert_eq!(arrivals.watch(&both), Sight::New);
        assert_eq!(arrivals.watch(&both), Sight::Same);
        fs::create_dir(class.join("pod1")).unwrap();
        assert!(told(&mut arrivals).await);
        assert!(!told(&mut arrivals).await, "told once");
        fs::create_dir(class.join("pod1/container")).unwrap();
        fs::remove_dir_all(class.join("pod1")).unwrap();
        assert!(!told(&mut arrivals).await, "not what happens below, nor what goes");

        assert_eq!(arrivals.watch(&BTreeSet::new()), Sight::Same);
        fs::create_dir(class.join("pod2")).unwrap();
        assert!(!told(&mut arrivals).await, "no longer watched");
    }

    #[tokio::test]
    async fn a_folder_made_anew_is_watched_anew() {
        let root = tempfile::tempdir().unwrap();
        let class = root.path().join("burstable");
        let gone = root.path().join("besteffort");
        fs::create_dir(&class).unwrap();
        let both = BTreeSet::from([class.clone(), gone.clone()]);
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.watch(&both), Sight::New, "one that is not there is no error");
        fs::remove_dir(&class).unwrap();
        fs::create_dir(&class).unwrap();
        assert_eq!(arrivals.watch(&both), Sight::New);
        fs::create_dir(class.join("pod1")).unwrap();
        assert!(told(&mut arrivals).await);
    }
}
