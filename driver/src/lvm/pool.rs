//! What the kernel says of a thin pool, and what it must still be told.

use rustix::io::Errno;

use super::dm::{DeviceMapper, DmError, Key};
use super::dm_name::{Layer, device_uuid};
use super::dm_status::{PoolStatus, PoolUse, TargetStatus};
use super::metadata::LvmUuid;
use super::metadata::model::{LogicalVolume, PoolMessage, VolumeGroup};

/// The kernel's status of a thin pool; nothing where it is not active.
///
/// # Errors
/// [`DmError`].
pub fn status(dm: &DeviceMapper, group: LvmUuid, pool: LvmUuid) -> Result<Option<PoolStatus>, DmError> {
    Ok(find(dm, group, pool)?.map(|(_, status)| status))
}

/// The identifier and the status of the device that is the pool. With volumes in it the pool proper is a hidden device;
/// without any, it may be the visible one.
fn find(dm: &DeviceMapper, group: LvmUuid, pool: LvmUuid) -> Result<Option<(String, PoolStatus)>, DmError> {
    for layer in [Layer::ThinPool, Layer::Volume] {
        let uuid = device_uuid(group, pool, layer);
        let targets = dm.table_status(Key::Uuid(&uuid))?.unwrap_or_default();
        let found = targets.into_iter().find_map(|target| match target.status {
            TargetStatus::ThinPool(status) => Some(status),
            _ => None,
        });
        if let Some(status) = found {
            return Ok(Some((uuid, status)));
        }
    }
    Ok(None)
}

/// Tells the kernel's pool what LVM's metadata say that it must still be told, and then which transaction it is at: what an
/// LVM command does that is not killed before it (`_node_send_messages` of libdevmapper). LVM itself makes up for it only
/// with the pool's next change, or by a refresh while one of its volumes is active: after a reboot none is.
///
/// The caller holds LVM's lock, and `pool` is a volume of the group. Nothing is told where the kernel is not exactly one
/// transaction behind, or where the messages are not understood.
///
/// # Errors
/// [`DmError`]; what the kernel was told until then it will not mind to be told again.
pub fn tell_outstanding(dm: &DeviceMapper, group: &VolumeGroup, pool: &LogicalVolume) -> Result<(), DmError> {
    let Some(segment) = pool.thin_pool() else { return Ok(()) };
    let Some((uuid, PoolStatus::Working(PoolUse { transaction_id: kernel, .. }))) = find(dm, group.uuid, pool.uuid)?
    else {
        return Ok(());
    };
    let messages: Option<Vec<Message>> = segment.messages.iter().map(|message| Message::of(group, message)).collect();
    let Some(messages) = messages.filter(|messages| !messages.is_empty()) else { return Ok(()) };
    if kernel.checked_add(1) != Some(segment.transaction_id) {
        return Ok(());
    }
    for origin in messages.iter().filter_map(|message| message.origin) {
        // The kernel takes no snapshot of a volume that is being written to.
        if dm.status(Key::Uuid(&device_uuid(group.uuid, origin, Layer::Volume)))?.is_some() {
            return Ok(());
        }
    }
    let done = format!("set_transaction_id {kernel} {}", segment.transaction_id);
    for Message { text, told_before, .. } in messages {
        tracing::info!(vg = group.name, pool = pool.name, message = text, "telling the kernel's thin pool");
        match dm.message(Key::Uuid(&uuid), &text) {
            Err(error) if error.is(told_before) => {}
            outcome => outcome?,
        }
    }
    dm.message(Key::Uuid(&uuid), &done)
}

/// A message in the kernel's words (Documentation/admin-guide/device-mapper/thin-provisioning.rst).
#[derive(Debug, PartialEq, Eq)]
struct Message {
    text: String,
    /// What the kernel answers when it has been told before.
    told_before: Errno,
    /// Of a snapshot.
    origin: Option<LvmUuid>,
}

impl Message {
    /// Nothing where the message, or what it is about, is not known here.
    fn of(group: &VolumeGroup, message: &PoolMessage) -> Option<Self> {
        match message {
            PoolMessage::Create(name) => {
                let thin = group.logical_volume(name)?.thin()?;
                let origin = thin.origin.as_ref().map(|origin| group.logical_volume(origin));
                let (text, origin) = match origin {
                    None => (format!("create_thin {}", thin.device_id), None),
                    Some(origin) => {
                        let origin = origin?;
                        (format!("create_snap {} {}", thin.device_id, origin.thin()?.device_id), Some(origin.uuid))
                    }
                };
                Some(Self { text, told_before: Errno::EXIST, origin })
            }
            PoolMessage::Delete(device) => {
                Some(Self { text: format!("delete {device}"), told_before: Errno::NODATA, origin: None })
            }
            PoolMessage::Other(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group as LVM wrote it: `pvc-1` and `pvc-2` are the devices 1 and 2 of a pool, `snap` is the third, of `pvc-1`.
    fn group() -> VolumeGroup {
        let fixture: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/fixtures/lvm/thin.json")).unwrap();
        let text = fixture.pointer("/devices/0/pieces/2/bytes").unwrap();
        VolumeGroup::from_text(text.as_str().unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn the_kernel_is_told_in_its_own_words() {
        let group = group();
        let text = |message| Message::of(&group, &message).map(|message| (message.text, message.origin));
        assert_eq!(text(PoolMessage::Create("pvc-2".to_owned())), Some(("create_thin 2".to_owned(), None)));
        assert_eq!(text(PoolMessage::Delete(7)), Some(("delete 7".to_owned(), None)));
        let origin = group.logical_volume("pvc-1").unwrap().uuid;
        assert_eq!(text(PoolMessage::Create("snap".to_owned())), Some(("create_snap 3 1".to_owned(), Some(origin))));
        for unknown in [PoolMessage::Create("gone".to_owned()), PoolMessage::Other("trim".to_owned())] {
            assert_eq!(text(unknown), None);
        }
    }
}
