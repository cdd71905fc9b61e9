//! This node's objects as the API server has them: what its watch says, and what it answered to our own writes.
//!
//! **Invariant.** Of two states of an object the later counts, whichever came first. So a plan never undoes what was
//! written a moment ago only because the watch has not told of it yet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use tokio::sync::Notify;

use crate::follow::{News, follow};
use crate::identity::Identity;
use crate::object::Object;

/// The objects, shared between who watches and who writes.
#[derive(Debug, Clone, Default)]
pub struct Objects(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// By namespace and name; nothing before they are known.
    known: Option<BTreeMap<(String, String), Object>>,
    /// How many went without our doing.
    vanished: u64,
}

impl Objects {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them; nothing before they are known.
    #[must_use]
    pub fn all(&self) -> Option<Vec<Object>> {
        self.state().known.as_ref().map(|known| known.values().cloned().collect())
    }

    /// How many were deleted by others so far: the node they belong to may be another one by now.
    #[must_use]
    pub fn vanished(&self) -> u64 {
        self.state().vanished
    }

    /// Notes what the API server answered to a write.
    pub fn wrote(&self, object: Object) {
        if let Some(known) = &mut self.state().known {
            newer(known, object);
        }
    }

    /// Notes that an object was deleted by us.
    pub fn deleted(&self, namespace: &str, name: &str) {
        if let Some(known) = &mut self.state().known {
            known.remove(&(namespace.to_owned(), name.to_owned()));
        }
    }

    /// Takes what a watch says.
    pub fn take(&self, news: News<Object>) {
        let mut state = self.state();
        let State { known, vanished } = &mut *state;
        match (news, known.as_mut()) {
            // The list is the truth, also if its versions are smaller: the API server may have been restored.
            (News::All(all), before) => {
                let all: BTreeMap<_, _> = all.into_iter().map(|object| (key(&object), object)).collect();
                *vanished +=
                    before.map_or(0, |before| before.keys().filter(|key| !all.contains_key(*key)).count() as u64);
                *known = Some(all);
            }
            (News::Changed(object), Some(known)) => newer(known, object),
            (News::Gone(object), Some(known)) => {
                // What was made anew since is another object.
                if known.get(&key(&object)).is_some_and(|there| there.uid == object.uid) {
                    known.remove(&key(&object));
                    *vanished += 1;
                }
            }
            (_, None) => {}
        }
    }

    /// Watches this node's objects in all namespaces, for ever, and says by `changed` that there is something new.
    pub async fn keep(self, client: Client, identity: &Identity, changed: Arc<Notify>) {
        let config = Config::default().labels(&identity.selector());
        follow("this node's capacity objects", Api::<CSIStorageCapacity>::all(client), config, |news| {
            self.take(match news {
                News::All(all) => News::All(all.into_iter().map(Object::of).collect()),
                News::Changed(object) => News::Changed(Object::of(object)),
                News::Gone(object) => News::Gone(Object::of(object)),
            });
            changed.notify_one();
        })
        .await;
    }
}

fn key(object: &Object) -> (String, String) {
    (object.namespace.clone(), object.name.clone())
}

fn newer(known: &mut BTreeMap<(String, String), Object>, object: Object) {
    match known.get(&key(&object)) {
        Some(there) if !object.is_newer_than(there) => {}
        _ => drop(known.insert(key(&object), object)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(name: &str, uid: &str, version: u32, largest: &str) -> Object {
        let value = json!({
            "metadata": {"namespace": "n", "name": name, "uid": uid, "resourceVersion": version.to_string()},
            "storageClassName": "c", "maximumVolumeSize": largest,
        });
        Object::of(serde_json::from_value(value).unwrap())
    }

    fn seen(objects: &Objects) -> Vec<(String, Option<u64>)> {
        objects.all().unwrap().into_iter().map(|object| (object.uid, object.largest)).collect()
    }

    #[test]
    fn a_late_watch_does_not_undo_what_was_written() {
        let objects = Objects::default();
        objects.wrote(object("a", "u", 1, "1"));
        assert_eq!(objects.all(), None, "nothing is known yet");
        objects.take(News::All(vec![object("a", "u", 5, "5")]));
        objects.wrote(object("a", "u", 9, "9"));
        objects.take(News::Changed(object("a", "u", 7, "7")));
        assert_eq!(seen(&objects), [("u".to_owned(), Some(9))]);
        objects.take(News::Changed(object("a", "u", 11, "11")));
        assert_eq!(seen(&objects), [("u".to_owned(), Some(11))]);
    }

    #[test]
    fn what_others_delete_is_counted_and_what_we_deleted_is_not() {
        let objects = Objects::default();
        objects.take(News::All(vec![object("a", "u", 1, "1"), object("b", "v", 2, "2"), object("c", "w", 3, "3")]));
        objects.deleted("n", "a");
        objects.take(News::Gone(object("a", "u", 4, "1")));
        assert_eq!((objects.vanished(), seen(&objects).len()), (0, 2));
        objects.take(News::Gone(object("b", "v", 5, "2")));
        assert_eq!((objects.vanished(), seen(&objects).len()), (1, 1));
        objects.wrote(object("c", "x", 8, "3"));
        objects.take(News::Gone(object("c", "w", 7, "3")));
        assert_eq!((objects.vanished(), seen(&objects)), (1, vec![("x".to_owned(), Some(3))]));
        // A list is all there is, whatever its versions.
        objects.take(News::All(vec![object("d", "y", 1, "4")]));
        assert_eq!((objects.vanished(), seen(&objects)), (2, vec![("y".to_owned(), Some(4))]));
    }
}
