//! The names and identifiers that LVM gives its device-mapper devices.
//!
//! Invariant: [`device_name`] is unique for a pair of names, because single hyphens inside names are doubled.

use super::metadata::LvmUuid;

/// Doubles hyphens, so that a single one can separate the group's name from the volume's.
#[must_use]
pub fn escape(name: &str) -> String {
    name.replace('-', "--")
}

/// Name of a logical volume's device: `quarry-pvc--1` for `pvc-1` in `quarry`. The path is `/dev/mapper/` and this.
#[must_use]
pub fn device_name(volume_group: &str, logical_volume: &str) -> String {
    format!("{}-{}", escape(volume_group), escape(logical_volume))
}

/// The two names out of a device's name; `None` if it is not of that form. A hidden layer's suffix
/// (`-tpool`, `-real`) makes a third part, so its name is not.
#[must_use]
pub fn split_device_name(device: &str) -> Option<(String, String)> {
    let mut parts = vec![String::new()];
    let mut rest = device.chars().peekable();
    while let Some(character) = rest.next() {
        let double = character == '-' && rest.next_if_eq(&'-').is_some();
        match parts.last_mut() {
            Some(part) if double || character != '-' => part.push(character),
            _ => parts.push(String::new()),
        }
    }
    match parts.as_slice() {
        [group, volume] if !group.is_empty() && !volume.is_empty() => Some((group.clone(), volume.clone())),
        _ => None,
    }
}

/// Which of a logical volume's devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// The device that users open.
    Volume,
    /// The thin pool proper (`-tpool`), which thin volumes lie on.
    ThinPool,
    /// The device over a pool that keeps others from opening it (`-pool`), seen when a pool has volumes.
    Pool,
    /// A thin pool's data (`-tdata`).
    ThinData,
    /// A thin pool's metadata (`-tmeta`).
    ThinMetadata,
    /// An old-style snapshot's origin below its snapshots (`-real`).
    Real,
    /// An old-style snapshot's store (`-cow`).
    Cow,
}

impl Layer {
    /// What LVM appends to the identifier.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Volume => "",
            Self::ThinPool => "-tpool",
            Self::Pool => "-pool",
            Self::ThinData => "-tdata",
            Self::ThinMetadata => "-tmeta",
            Self::Real => "-real",
            Self::Cow => "-cow",
        }
    }
}

/// Identifier of a logical volume's device, which a rename does not change.
#[must_use]
pub fn device_uuid(volume_group: LvmUuid, logical_volume: LvmUuid, layer: Layer) -> String {
    format!("LVM-{}{}{}", volume_group.compact(), logical_volume.compact(), layer.suffix())
}

/// Group, logical volume and the suffix (with its hyphen, or empty) out of a device's identifier; `None` if it is
/// not LVM's.
#[must_use]
pub fn split_device_uuid(uuid: &str) -> Option<(LvmUuid, LvmUuid, &str)> {
    let rest = uuid.strip_prefix("LVM-")?;
    let group = LvmUuid::from_bytes(rest.as_bytes().get(..32)?).ok()?;
    let volume = LvmUuid::from_bytes(rest.as_bytes().get(32..64)?).ok()?;
    Some((group, volume, rest.get(64..)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_as_lvm_makes_them() {
        assert_eq!(device_name("quarry", "pvc-1"), "quarry-pvc--1");
        assert_eq!(device_name("a-b", "c--d"), "a--b-c----d");
        assert_eq!(split_device_name("quarry-quarry--pool-tpool"), None);
        assert_eq!(split_device_name("quarry"), None);
        assert_eq!(split_device_name("-quarry"), None);
    }

    #[test]
    fn identifiers_are_as_lvm_makes_them() {
        // From a volume group made by LVM 2.03.16.
        let group = "fz00kD-QmrP-9DW4-MnCU-bC0A-ptdu-vsQ8BQ".parse().unwrap();
        let pool = "TemJmV-L6Er-64Ye-xhrC-Xgbn-xowt-BTo1Em".parse().unwrap();
        let device = "LVM-fz00kDQmrP9DW4MnCUbC0AptduvsQ8BQTemJmVL6Er64YexhrCXgbnxowtBTo1Em-tpool";
        assert_eq!(device_uuid(group, pool, Layer::ThinPool), device);
        assert_eq!(split_device_uuid(device), Some((group, pool, "-tpool")));
        assert_eq!(split_device_uuid("CRYPT-LUKS2-x"), None);
        assert_eq!(split_device_uuid("LVM-short"), None);
    }

    proptest! {
        #[test]
        fn a_device_name_can_be_taken_apart(group in "[a-z+_.]{1,5}(-{1,3}[a-z]{1,3}){0,3}", volume in "[a-z+_.]{1,5}(-{1,3}[a-z]{1,3}){0,3}") {
            let parts = split_device_name(&device_name(&group, &volume));
            prop_assert_eq!(parts, Some((group, volume)));
        }
    }
}
