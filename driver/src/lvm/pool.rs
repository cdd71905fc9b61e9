//! What the kernel says of a thin pool.

use super::dm::{DeviceMapper, DmError, Key};
use super::dm_name::{Layer, device_uuid};
use super::dm_status::{PoolStatus, TargetStatus};
use super::metadata::LvmUuid;

/// The kernel's status of a thin pool; nothing where it is not active. With volumes in it the pool proper is a hidden
/// device; without any, it may be the visible one.
///
/// # Errors
/// [`DmError`].
pub fn status(dm: &DeviceMapper, group: LvmUuid, pool: LvmUuid) -> Result<Option<PoolStatus>, DmError> {
    for layer in [Layer::ThinPool, Layer::Volume] {
        let targets = dm.table_status(Key::Uuid(&device_uuid(group, pool, layer)))?.unwrap_or_default();
        let found = targets.into_iter().find_map(|target| match target.status {
            TargetStatus::ThinPool(status) => Some(status),
            _ => None,
        });
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
