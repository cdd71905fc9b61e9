//! The parameters of a StorageClass.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::capability::{FilesystemType, UnknownFilesystem};
use super::io::{self, IoWish};

/// Keys that the sidecars add or consume; every RPC gets some of them, GetCapacity unstripped. They never shape a volume
/// but for the filesystem type.
const RESERVED_PREFIX: &str = "csi.storage.k8s.io/";
/// The filesystem type, as csi-provisioner reads it; GetCapacity sees it because it gets the parameters unstripped.
const FSTYPE: &str = "csi.storage.k8s.io/fstype";
const DEVICE_CLASS: &str = "deviceClass";
const PROVISIONING: &str = "provisioning";
const MKFS_OPTIONS: &str = "mkfsOptions";
const KNOWN: [&str; 8] =
    [DEVICE_CLASS, PROVISIONING, MKFS_OPTIONS, io::KEYS[0], io::KEYS[1], io::KEYS[2], io::KEYS[3], io::KEYS[4]];

/// The device class of a StorageClass that names none.
pub const DEFAULT_DEVICE_CLASS: &str = "default";

/// How a volume gets its space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Provisioning {
    /// From a thin pool, block by block as it is written. The default.
    Thin,
    /// From the volume group, all of it at once.
    Thick,
}

impl fmt::Display for Provisioning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Thin => "thin",
            Self::Thick => "thick",
        })
    }
}

/// A StorageClass's parameters, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// What kind of disk; each node maps it to a volume group.
    pub device_class: String,
    /// Thin or thick.
    pub provisioning: Provisioning,
    /// Arguments for mkfs, one word each.
    pub mkfs_options: Vec<String>,
    /// Of `csi.storage.k8s.io/fstype`, where it was sent.
    pub fs_type: Option<FilesystemType>,
    /// A share of the disk, and limits.
    pub io: IoWish,
}

/// A parameter that no node can serve; INVALID_ARGUMENT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// A key that does not exist.
    #[error("parameter {key:?} is unknown; known are {}", KNOWN.join(", "))]
    Unknown {
        /// The key.
        key: String,
    },
    /// A key in mutable_parameters that cannot be changed.
    #[error("mutable parameter {key:?} is none that can be changed; these can: {}", io::KEYS.join(", "))]
    Mutable {
        /// The key.
        key: String,
    },
    /// A value that the key cannot have.
    #[error("parameter {key} is {value:?}; it must be {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What was sent.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A filesystem that is not supported.
    #[error("parameter {FSTYPE}")]
    Filesystem(#[source] UnknownFilesystem),
}

impl Parameters {
    /// Reads the parameters of CreateVolume or GetCapacity. Without any, a thin volume of the class `default`.
    ///
    /// # Errors
    /// [`ParameterError`] for the first, in the order of keys, that is unknown or wrong.
    pub fn parse(parameters: &HashMap<String, String>) -> Result<Self, ParameterError> {
        let mut parsed = Self {
            device_class: DEFAULT_DEVICE_CLASS.to_owned(),
            provisioning: Provisioning::Thin,
            mkfs_options: Vec::new(),
            fs_type: None,
            io: IoWish::default(),
        };
        // Ordered, so that the same request always gets the same error.
        for (key, value) in parameters.iter().collect::<BTreeMap<_, _>>() {
            match key.as_str() {
                DEVICE_CLASS => parsed.device_class = device_class(value)?,
                PROVISIONING => parsed.provisioning = provisioning(value)?,
                MKFS_OPTIONS => parsed.mkfs_options = mkfs_options(value)?,
                FSTYPE => parsed.fs_type = Some(value.parse().map_err(ParameterError::Filesystem)?),
                reserved if reserved.starts_with(RESERVED_PREFIX) => {}
                other if parsed.io.set(other, value)? => {}
                _ => return Err(ParameterError::Unknown { key: key.clone() }),
            }
        }
        Ok(parsed)
    }

    /// Takes mutable_parameters over what there is; what they do not name stays.
    ///
    /// # Errors
    /// [`ParameterError`] for the first key, in their order, that cannot be changed or not to that value.
    pub fn change(wish: IoWish, parameters: &HashMap<String, String>) -> Result<IoWish, ParameterError> {
        let mut wish = wish;
        for (key, value) in parameters.iter().collect::<BTreeMap<_, _>>() {
            if !wish.set(key, value)? {
                return Err(ParameterError::Mutable { key: key.clone() });
            }
        }
        Ok(wish)
    }
}

/// The volume context that carries mkfs options from CreateVolume to NodeStageVolume.
#[must_use]
pub fn to_context(mkfs_options: &[String]) -> HashMap<String, String> {
    if mkfs_options.is_empty() {
        return HashMap::new();
    }
    HashMap::from([(MKFS_OPTIONS.to_owned(), mkfs_options.join(" "))])
}

/// The mkfs options in a volume context; other keys there are kubelet's or csi-provisioner's.
///
/// # Errors
/// [`ParameterError::Value`] where they are not such as CreateVolume accepts.
pub fn from_context(context: &HashMap<String, String>) -> Result<Vec<String>, ParameterError> {
    context.get(MKFS_OPTIONS).map_or_else(|| Ok(Vec::new()), |value| mkfs_options(value))
}

fn device_class(value: &str) -> Result<String, ParameterError> {
    if is_device_class(value) {
        return Ok(value.to_owned());
    }
    let expected = "the name of a device class: 1 to 63 letters, digits, '-', '_' or '.'";
    Err(ParameterError::Value { key: DEVICE_CLASS, value: value.to_owned(), expected })
}

/// Whether a text can name a device class: it becomes an LVM tag and a metric's label.
#[must_use]
pub fn is_device_class(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn provisioning(value: &str) -> Result<Provisioning, ParameterError> {
    match value {
        "thin" => Ok(Provisioning::Thin),
        "thick" => Ok(Provisioning::Thick),
        _ => Err(ParameterError::Value { key: PROVISIONING, value: value.to_owned(), expected: "thin or thick" }),
    }
}

/// Words for mkfs. They never pass a shell; the limit on their characters keeps logs and metadata readable, and a word
/// that is no option or option's value (a device, say) would make mkfs write elsewhere.
fn mkfs_options(value: &str) -> Result<Vec<String>, ParameterError> {
    let words: Vec<String> = value.split_ascii_whitespace().map(str::to_owned).collect();
    let sound =
        |word: &String| word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.,=:^+@%".contains(&b)) && !word.eq("--");
    if value.len() <= 1024 && words.iter().all(sound) && words.first().is_none_or(|first| first.starts_with('-')) {
        return Ok(words);
    }
    let expected = "options of mkfs separated by blanks, the first beginning with '-', of at most 1024 letters, digits \
                    and -_.,=:^+@% in all";
    Err(ParameterError::Value { key: MKFS_OPTIONS, value: value.to_owned(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Parameters, ParameterError> {
        Parameters::parse(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn no_parameters_mean_a_thin_volume_of_the_default_class() {
        let parsed = parse(&[]).unwrap();
        assert_eq!((parsed.device_class.as_str(), parsed.provisioning), ("default", Provisioning::Thin));
        assert_eq!(parse(&[("csi.storage.k8s.io/pvc/name", "data-0")]).unwrap(), parsed);
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_known_ones() {
        let error = parse(&[("ioweight", "800"), ("deviceClass", "nvme")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "parameter \"ioweight\" is unknown; known are deviceClass, provisioning, mkfsOptions, ioWeight, readIops, \
             writeIops, readBps, writeBps"
        );
    }

    #[test]
    fn wrong_values_name_key_value_and_what_is_right() {
        let error = parse(&[("provisioning", "Thin")]).unwrap_err();
        assert_eq!(error.to_string(), "parameter provisioning is \"Thin\"; it must be thin or thick");
        for bad in ["/dev/sda", "-L a;b", "-m /dev/sda", "--", "x"] {
            assert!(matches!(parse(&[("mkfsOptions", bad)]), Err(ParameterError::Value { .. })), "{bad}");
        }
        assert!(matches!(parse(&[("deviceClass", "")]), Err(ParameterError::Value { .. })));
        assert!(matches!(parse(&[("csi.storage.k8s.io/fstype", "zfs")]), Err(ParameterError::Filesystem(_))));
    }

    #[test]
    fn mkfs_options_travel_in_the_volume_context() {
        let options = parse(&[("mkfsOptions", " -m 0  -O ^has_journal ")]).unwrap().mkfs_options;
        assert_eq!(options, ["-m", "0", "-O", "^has_journal"]);
        assert_eq!(from_context(&to_context(&options)).unwrap(), options);
        assert_eq!(from_context(&HashMap::new()).unwrap(), Vec::<String>::new());
    }
}
