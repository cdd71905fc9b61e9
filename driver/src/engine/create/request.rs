//! What is asked for, and whether a volume that is there is that.

use crate::journal::Claim;
use crate::volume::io::IoWish;
use crate::volume::size::SizeRange;
use crate::volume::tags;
use crate::volume::{Bytes, Content, LvName, Provisioning};

use super::super::Volume;
use super::super::pod::PodClaim;
use super::CreateError;

/// A checked request for a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateRequest {
    /// The name in the request.
    pub csi_name: String,
    /// The LV name that follows from it.
    pub lv: LvName,
    /// What kind of disk.
    pub device_class: String,
    /// Thin or thick.
    pub provisioning: Provisioning,
    /// Filesystem or raw block.
    pub content: Content,
    /// Arguments for mkfs.
    pub mkfs_options: Vec<String>,
    /// A share of the disk, and limits; they shape nothing.
    pub io: IoWish,
    /// How large.
    pub range: SizeRange,
    /// The claim it is for, where csi-provisioner says; it shapes nothing.
    pub claim: Option<Claim>,
    /// The other claims of the pod that waits for this one, as far as somebody says; empty where it stands alone.
    pub siblings: Vec<PodClaim>,
}

impl CreateRequest {
    /// As one of several claims of a pod; nothing where it is not one.
    pub(in crate::engine) fn as_pod_claim(&self, size: Bytes) -> Option<PodClaim> {
        let claim = self.claim.clone().filter(|_| !self.siblings.is_empty())?;
        Some(PodClaim {
            claim,
            lv: self.lv.clone(),
            class: self.device_class.clone(),
            provisioning: self.provisioning,
            content: self.content,
            requested: self.range.required.unwrap_or(size),
        })
    }
}

/// Whether an existing volume is what a repeated request asks for. Metadata keys, secrets and order do not count.
pub(super) fn compare(volume: &Volume, request: &CreateRequest) -> Result<(), CreateError> {
    let different = |field, existing: String, requested: String| {
        Err(CreateError::Different { lv: request.lv.clone(), field, existing, requested })
    };
    if let Some(name) = &volume.tags.csi_name
        && *name != request.csi_name
    {
        return different("name", name.clone(), request.csi_name.clone());
    }
    if volume.tags.class != request.device_class {
        return different("deviceClass", volume.tags.class.clone(), request.device_class.clone());
    }
    if volume.provisioning != request.provisioning {
        return different("provisioning", volume.provisioning.to_string(), request.provisioning.to_string());
    }
    if volume.tags.content != request.content {
        return different("content", volume.tags.content.to_string(), request.content.to_string());
    }
    let hash = tags::mkfs_hash(&request.mkfs_options);
    if volume.tags.mkfs_hash != hash {
        let say =
            |hash: &Option<String>| hash.as_ref().map_or("none".to_owned(), |hash| format!("with the hash {hash}"));
        return different("mkfsOptions", say(&volume.tags.mkfs_hash), say(&hash));
    }
    if !request.range.contains(volume.size) {
        let say = |bytes: Option<Bytes>| bytes.map_or("any".to_owned(), |bytes| bytes.to_string());
        let requested = format!("at least {}, at most {}", say(request.range.required), say(request.range.limit));
        return different("size", volume.size.to_string(), requested);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::metadata::LvmUuid;
    use crate::volume::{FilesystemType, Stage, Tags, TopologyValue, VolumeHandle};

    fn request() -> CreateRequest {
        CreateRequest {
            csi_name: "pvc-1".into(),
            lv: LvName::for_csi_name("pvc-1").unwrap(),
            device_class: "default".into(),
            provisioning: Provisioning::Thin,
            content: Content::Filesystem(FilesystemType::Ext4),
            mkfs_options: vec![],
            io: IoWish::default(),
            range: SizeRange::new(1 << 30, 0).unwrap(),
            claim: None,
            siblings: vec![],
        }
    }

    fn volume(request: &CreateRequest) -> Volume {
        Volume {
            handle: VolumeHandle { node: TopologyValue::for_node("n"), lv: request.lv.clone() },
            vg: "quarry".into(),
            vg_uuid: LvmUuid::from_bytes(&[b'u'; 32]).unwrap(),
            uuid: LvmUuid::from_bytes(&[b'v'; 32]).unwrap(),
            size: Bytes(1 << 30),
            provisioning: request.provisioning,
            pool: None,
            tags: Tags::new(
                &request.device_class,
                request.content,
                Stage::Formatted,
                &request.mkfs_options,
                &request.csi_name,
                &request.lv,
            ),
        }
    }

    #[test]
    fn a_repeated_request_is_compared_in_what_shapes_the_volume() {
        let volume = volume(&request());
        assert!(compare(&volume, &request()).is_ok());
        type Change = fn(&mut CreateRequest);
        let changes: [(Change, &str); 5] = [
            (|r| r.device_class = "nvme".into(), "deviceClass"),
            (|r| r.provisioning = Provisioning::Thick, "provisioning"),
            (|r| r.content = Content::Block, "content"),
            (|r| r.mkfs_options = vec!["-K".into()], "mkfsOptions"),
            (|r| r.range = SizeRange::new(2 << 30, 0).unwrap(), "size"),
        ];
        for (change, named) in changes {
            let mut request = request();
            change(&mut request);
            assert!(
                matches!(compare(&volume, &request), Err(CreateError::Different { field, .. }) if field == named),
                "{named}"
            );
        }
    }
}
