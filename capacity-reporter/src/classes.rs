//! The StorageClasses of our provisioner.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use tokio::sync::watch;

use crate::follow::{News, follow};

/// The prefix of parameters that are Kubernetes' own.
const KUBERNETES: &str = "csi.storage.k8s.io/";
/// The one of these that says what filesystem a volume gets.
const FSTYPE: &str = "csi.storage.k8s.io/fstype";

/// What is needed of a class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Class {
    /// Its parameters, as csi-provisioner gives them to GetCapacity.
    pub parameters: HashMap<String, String>,
    /// Whether its claims wait for a pod.
    pub waits: bool,
}

impl Class {
    /// Its parameters without Kubernetes' own, as CreateVolume gets them.
    #[must_use]
    pub fn own_parameters(&self) -> HashMap<String, String> {
        let own = |(key, _): &(&String, &String)| !key.starts_with(KUBERNETES);
        self.parameters.iter().filter(own).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The filesystem of its volumes; empty where it names none.
    #[must_use]
    pub fn filesystem(&self) -> &str {
        self.parameters.get(FSTYPE).map_or("", String::as_str)
    }
}

/// The classes by their names; nothing before they are known.
pub type Classes = Option<BTreeMap<String, Class>>;

/// Keeps the classes of a provisioner up to date, for ever. Nobody is told of a change that makes no difference.
pub async fn keep(client: Client, provisioner: String, classes: watch::Sender<Classes>) {
    // Nobody has many: the default page is all of them.
    follow("StorageClasses", Api::<StorageClass>::all(client), Config::default(), |news| {
        classes.send_if_modified(|known| {
            let before = known.clone();
            take(known, &provisioner, news);
            *known != before
        });
    })
    .await;
}

fn take(known: &mut Classes, provisioner: &str, news: News<StorageClass>) {
    let ours = |class: &StorageClass| class.provisioner == provisioner;
    match (news, known.as_mut()) {
        (News::All(all), _) => *known = Some(all.into_iter().filter(ours).map(read).collect()),
        (News::Changed(class), Some(known)) if ours(&class) => known.extend([read(class)]),
        // A class may be made anew with another provisioner.
        (News::Changed(class) | News::Gone(class), Some(known)) => {
            drop(known.remove(&class.metadata.name.unwrap_or_default()))
        }
        (_, None) => {}
    }
}

fn read(class: StorageClass) -> (String, Class) {
    let parameters = class.parameters.unwrap_or_default().into_iter().collect();
    let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
    (class.metadata.name.unwrap_or_default(), Class { parameters, waits })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn class(name: &str, provisioner: &str) -> StorageClass {
        serde_json::from_value(json!({
            "metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer",
            "parameters": {"deviceClass": "d", "csi.storage.k8s.io/fstype": "xfs", "csi.storage.k8s.io/other": "x"},
        }))
        .unwrap()
    }

    #[test]
    fn only_classes_of_the_provisioner_count_also_when_one_changes_hands() {
        let mut known = None;
        take(&mut known, "ours", News::Changed(class("early", "ours")));
        assert_eq!(known, None, "not all are known yet");
        take(&mut known, "ours", News::All(vec![class("a", "ours"), class("b", "theirs")]));
        take(&mut known, "ours", News::Changed(class("c", "ours")));
        let names = |known: &Classes| known.as_ref().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&known), ["a", "c"]);
        take(&mut known, "ours", News::Changed(class("c", "theirs")));
        take(&mut known, "ours", News::Gone(class("b", "theirs")));
        assert_eq!(names(&known), ["a"]);
        take(&mut known, "ours", News::All(vec![]));
        assert_eq!(names(&known), Vec::<String>::new());
    }

    #[test]
    fn kubernetes_own_parameters_are_told_apart() {
        let (_, class) = read(class("a", "ours"));
        assert_eq!(class.own_parameters(), HashMap::from([("deviceClass".to_owned(), "d".to_owned())]));
        assert_eq!((class.filesystem(), class.parameters.len(), class.waits), ("xfs", 3, true));
    }
}
