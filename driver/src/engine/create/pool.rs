//! The thin pool, made with the first volume that needs it and enlarged with the first that needs more.

use crate::lvm::flush;
use crate::lvm::verbs;
use crate::volume::Bytes;
use crate::volume::capacity::{PoolGrowth, PoolPlan};
use crate::volume::tags::POOL_MARK;

use super::super::changes::Reason;
use super::super::group::{Group, Writer};
use super::super::{Engine, Reading, room};
use super::CreateError;

impl Engine {
    /// Removes what a killed `lvcreate` left of the pool that is to be made. True if there was something.
    pub(super) async fn clear_unfinished_pool(
        &self,
        group: &Group,
        writer: &mut Writer<'_>,
        reading: &Reading,
        pool: &str,
    ) -> Result<bool, CreateError> {
        let found = reading.state().group.logical_volume(pool);
        let Some(left) = found.filter(|lv| room::is_unfinished_pool(lv)) else { return Ok(false) };
        tracing::warn!(vg = group.name(), pool, "removing what a killed lvcreate left of the thin pool");
        let command = verbs::remove(group.name(), pool, left.uuid);
        self.run_create(group, writer, command, format!("room for thin pool {pool}")).await?;
        Ok(true)
    }

    pub(super) async fn make_pool(
        &self,
        group: &Group,
        writer: &mut Writer<'_>,
        pool: &str,
        plan: &PoolPlan,
    ) -> Result<(), CreateError> {
        let command = verbs::create_pool(group.name(), pool, plan, POOL_MARK);
        self.run_create(group, writer, command, format!("thin pool {pool}")).await?;
        self.changes.hint(Reason::PoolMade);
        tracing::info!(vg = group.name(), pool, data = %plan.data, metadata = %plan.metadata, chunk = %plan.chunk, "thin pool made");
        Ok(())
    }

    /// Enlarges a thin pool that the driver made. It is on disk when this returns: should the volume then fail, the pool
    /// stays as large, for the next one.
    pub(super) async fn grow_pool(
        &self,
        group: &Group,
        writer: &mut Writer<'_>,
        pool: &str,
        growth: &PoolGrowth,
    ) -> Result<(), CreateError> {
        let command = verbs::grow_pool(group.name(), pool, growth);
        self.run_create(group, writer, command, format!("room in thin pool {pool}")).await?;
        let reading = group.read().await?;
        self.changes.hint(Reason::PoolGrown);
        let metadata = &reading.state().group;
        let lv = metadata.logical_volume(pool);
        let size = lv.map(|lv| metadata.size_of(lv));
        let own = lv.and_then(|lv| metadata.logical_volume(&lv.thin_pool()?.metadata)).map(|lv| metadata.size_of(lv));
        let reached = |wanted: Option<Bytes>, is: Option<u64>| wanted.is_none_or(|wanted| is >= Some(wanted.0));
        if !reached(growth.data, size) || !reached(growth.metadata, own) {
            return Err(CreateError::NotGrown { vg: group.name().to_owned(), pool: pool.to_owned() });
        }
        flush::flush(reading.devices()).await?;
        tracing::info!(vg = group.name(), pool, size, metadata = own, "thin pool enlarged");
        Ok(())
    }
}
