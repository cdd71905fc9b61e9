//! The journal's rows and how they look on disk: a key in text, a value in JSON, so that a person can read them.

use serde::{Deserialize, Serialize};

use crate::volume::LvName;

/// What a row is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An operation under way on a volume.
    Operation(LvName),
    /// A volume.
    Volume(LvName),
    /// A volume at a staging path.
    Staged(LvName, String),
    /// A volume at a pod's target path.
    Published(LvName, String),
}

/// An operation that was begun and not seen to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// What is being done.
    pub kind: OperationKind,
    /// The name of the volume group.
    pub vg: String,
    /// The volume group's UUID.
    pub vg_uuid: String,
    /// The UUID of the logical volume to be deleted; one that is made has none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The claim that asks for it, where csi-provisioner says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// When it was begun, in seconds since 1970.
    pub since: i64,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationKind {
    /// Makes a volume.
    Create,
    /// Deletes a volume.
    Delete,
}

/// A volume that exists, or existed when it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    /// The name of the volume group.
    pub vg: String,
    /// The volume group's UUID.
    pub vg_uuid: String,
    /// The logical volume's UUID.
    pub uuid: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its device class.
    pub class: String,
    /// `thin` or `thick`.
    pub provisioning: String,
    /// `ext4`, `xfs`, `btrfs` or `block`.
    pub content: String,
    /// The name in its CreateVolume request.
    pub csi_name: String,
    /// The claim it was made for, where csi-provisioner said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// How it came here.
    pub origin: Origin,
    /// When it was made or found, in seconds since 1970.
    pub since: i64,
}

/// How a volume came into the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Its CreateVolume was answered, or somebody used it since.
    Asked,
    /// A restart finished its CreateVolume; nobody has asked for it since: an orphan, if that stays so.
    Unanswered,
    /// It was found in LVM without a record: the journal was lost, or the metadata restored.
    Adopted,
}

/// A PersistentVolumeClaim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A pod that has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Its UID.
    pub uid: String,
    /// Its namespace, where kubelet said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name, where kubelet said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A volume is mounted at, or prepared for, a staging path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Staged {
    /// Since when, in seconds since 1970.
    pub since: i64,
}

/// A volume is at a pod's target path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The pod, where the path or kubelet says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Whether the pod may only read it.
    pub read_only: bool,
    /// The share of the disk that the pod was promised by this volume; none was asked for where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_weight: Option<u32>,
    /// Since when, in seconds since 1970.
    pub since: i64,
}

/// A row with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// An operation under way on a volume.
    Operation(LvName, Operation),
    /// A volume.
    Volume(LvName, VolumeRecord),
    /// A volume at a staging path.
    Staged(LvName, String, Staged),
    /// A volume at a target path.
    Published(LvName, String, Published),
}

/// A change of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a handful at a time, moved once")]
pub enum Change {
    /// Writes a row, over the one with its key if there is one.
    Put(Entry),
    /// Removes a row, if it is there.
    Remove(Key),
}

/// A row that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// Its key.
    #[error("a row has the key {0:?}, which is none of ours")]
    Key(String),
    /// Its value.
    #[error("the row {key:?} cannot be read: {reason}")]
    Value {
        /// Its key.
        key: String,
        /// Why not.
        reason: String,
    },
}

impl Key {
    /// As it stands on disk: a letter for the kind, the volume, the path. No LV name has a slash.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Self::Operation(lv) => format!("o/{lv}"),
            Self::Volume(lv) => format!("v/{lv}"),
            Self::Staged(lv, path) => format!("s/{lv}/{path}"),
            Self::Published(lv, path) => format!("p/{lv}/{path}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once('/')?;
        let with_path = || {
            let (lv, path) = rest.split_once('/')?;
            Some((LvName::parse(lv)?, path.to_owned()))
        };
        match kind {
            "o" => LvName::parse(rest).map(Self::Operation),
            "v" => LvName::parse(rest).map(Self::Volume),
            "s" => with_path().map(|(lv, path)| Self::Staged(lv, path)),
            "p" => with_path().map(|(lv, path)| Self::Published(lv, path)),
            _ => None,
        }
    }
}

impl Entry {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Operation(lv, _) => Key::Operation(lv.clone()),
            Self::Volume(lv, _) => Key::Volume(lv.clone()),
            Self::Staged(lv, path, _) => Key::Staged(lv.clone(), path.clone()),
            Self::Published(lv, path, _) => Key::Published(lv.clone(), path.clone()),
        }
    }

    /// Its value as it stands on disk.
    ///
    /// # Errors
    /// None of our rows can fail to be written as JSON; the error is the serialiser's to rule out.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        match self {
            Self::Operation(_, row) => serde_json::to_vec(row),
            Self::Volume(_, row) => serde_json::to_vec(row),
            Self::Staged(_, _, row) => serde_json::to_vec(row),
            Self::Published(_, _, row) => serde_json::to_vec(row),
        }
    }

    /// Reads a row from disk.
    ///
    /// # Errors
    /// [`RowError`].
    pub fn parse(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let text = String::from_utf8_lossy(key).into_owned();
        let Some(key) = Key::parse(&text) else { return Err(RowError::Key(text)) };
        let entry = match key {
            Key::Operation(lv) => serde_json::from_slice(value).map(|row| Self::Operation(lv, row)),
            Key::Volume(lv) => serde_json::from_slice(value).map(|row| Self::Volume(lv, row)),
            Key::Staged(lv, path) => serde_json::from_slice(value).map(|row| Self::Staged(lv, path, row)),
            Key::Published(lv, path) => serde_json::from_slice(value).map(|row| Self::Published(lv, path, row)),
        };
        entry.map_err(|error| RowError::Value { key: text, reason: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_their_way_to_disk_and_back() {
        let lv = LvName::parse("pvc-1").unwrap();
        let operation = Operation {
            kind: OperationKind::Delete,
            vg: "quarry".to_owned(),
            vg_uuid: "u".to_owned(),
            uuid: Some("v".to_owned()),
            claim: None,
            since: 7,
        };
        let published = Published { pod: None, read_only: true, io_weight: Some(800), since: 8 };
        let path = "/var/lib/kubelet/pods/1/mount".to_owned();
        for (entry, key, json) in [
            (
                Entry::Operation(lv.clone(), operation),
                "o/pvc-1",
                r#"{"kind":"delete","vg":"quarry","vg_uuid":"u","uuid":"v","since":7}"#,
            ),
            (
                Entry::Published(lv, path, published),
                "p/pvc-1//var/lib/kubelet/pods/1/mount",
                r#"{"read_only":true,"io_weight":800,"since":8}"#,
            ),
        ] {
            let (text, value) = (entry.key().to_text(), entry.to_json().unwrap());
            assert_eq!((text.as_str(), std::str::from_utf8(&value).unwrap()), (key, json));
            assert_eq!(Entry::parse(text.as_bytes(), &value).unwrap(), entry);
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error_not_skipped() {
        assert!(matches!(Entry::parse(b"x/pvc-1", b"{}"), Err(RowError::Key(_))));
        assert!(matches!(Entry::parse(b"v/..", b"{}"), Err(RowError::Key(_))));
        assert!(matches!(Entry::parse(b"s/pvc-1/x", b"{\"since\":1,\"new\":2}"), Err(RowError::Value { .. })));
    }
}
