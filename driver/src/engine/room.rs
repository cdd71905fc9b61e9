//! How much room a device class has now, and whether a volume fits.

use std::collections::BTreeMap;

use crate::config::DeviceClass;
use crate::lvm::metadata::model::LogicalVolume;
use crate::volume::capacity::{Bound, Demand, Ledger, Policy, Pool, PoolSpace, PoolStep, Room, Unusable};
use crate::volume::tags::POOL_MARK;
use crate::volume::{Bytes, Provisioning};

use super::changes::Reason;
use super::group::{Group, Unreadable};
use super::pod::{NotTogether, PodRefusal};
use super::underway::{BeingMade, Place};
use super::usage::UsageError;
use super::{CreateError, CreateRequest, Engine, Reading};

/// Why no figure can be given.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// The group cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// This node lacks the class, or its volume group, and every disk was read that it could be on.
    #[error(transparent)]
    Absent(Box<CreateError>),
}

impl Engine {
    /// The largest volume that can be made now. Volumes that are being made count as made. Less while room is kept from
    /// the scheduler (`holds`).
    ///
    /// No process is run: the last reading of the metadata, kept true by the watcher, and the kernel's state of the pool.
    ///
    /// # Errors
    /// [`RoomError`] when the group's disks do not answer, or this node has no such class or group.
    pub async fn room(&self, class: &str, provisioning: Provisioning) -> Result<Bytes, RoomError> {
        let room = self.measured_room(class, provisioning).await;
        self.changes.tell(class, provisioning, room.as_ref().ok().copied());
        room
    }

    /// The same, told to nobody.
    pub(super) async fn measured_room(&self, class: &str, provisioning: Provisioning) -> Result<Bytes, RoomError> {
        let (class, group) = match self.class_and_group(class).await {
            Ok(found) => found,
            Err(CreateError::Unreadable(error)) => return Err(error.into()),
            // On a disk that cannot be read there may be one.
            Err(_) if !self.groups.sights().unread.is_empty() => return Ok(Bytes(0)),
            Err(absent) => return Err(RoomError::Absent(Box::new(absent))),
        };
        // A thin volume that is being made may make its pool before.
        let pools = provisioning == Provisioning::Thin || self.under_way.has_thin(group.uuid());
        let reading = group.known();
        let mut ledger = match pools {
            true => self.ledger(&reading).await,
            false => Ledger::new(reading.space(), BTreeMap::new()),
        };
        self.under_way.entries().take_from(&mut ledger, &reading, None);
        let room = ledger.room(&policy_of(&class), provisioning).largest;
        let most = self.holds.most(&class.name, provisioning);
        Ok(most.map_or(room, |most| room.min(most).round_down(reading.extent())))
    }

    /// Sets room aside for a volume that is to be made.
    ///
    /// # Errors
    /// [`CreateError::NoRoom`]; [`CreateError::NotTogether`] where it would fit and the other claims of its pod would not;
    /// [`CreateError::RoomUnknown`].
    pub(super) async fn set_aside(
        &self,
        request: &CreateRequest,
        class: &DeviceClass,
        group: &Group,
        size: Bytes,
    ) -> Result<Place<'_>, CreateError> {
        let (reading, policy, provisioning) = (group.known(), policy_of(class), request.provisioning);
        let own = request.as_pod_claim(size);
        let pod = match &own {
            Some(own) => Some(self.pod_room(own, &request.siblings).await),
            None => None,
        };
        let mut ledger = self.ledger(&reading).await;
        let mut entries = self.under_way.entries();
        entries.take_from(&mut ledger, &reading, None);
        let demand = Demand { group: group.name(), policy: &policy, provisioning, size };
        ledger.admit(&demand).map_err(|room| self.no_room(&demand, room))?;
        if let Some(Err(refused)) = pod.map(|pod| pod.fits(&entries)) {
            drop(entries);
            let node = self.node.to_string();
            let refused = match refused {
                PodRefusal::NotTogether(refused) => refused,
                PodRefusal::Unknown { vg, pool } => return Err(CreateError::RoomUnknown { node, vg, pool }),
            };
            if let Some(own) = own {
                let lasts = self.holds.begin(own, request.siblings.clone());
                let NotTogether { claims, rooms, .. } = &refused;
                tracing::info!(
                    claims,
                    rooms,
                    seconds = lasts.as_secs(),
                    "the claims of a pod do not fit together: less room is published for a while"
                );
                self.changes.hint(Reason::HoldBegun);
            }
            return Err(CreateError::NotTogether { node, refused });
        }
        let entry = BeingMade { lv: request.lv.clone(), vg: group.uuid(), policy, provisioning, size };
        Ok(entries.add(self, entry))
    }

    /// Whether a volume fits that has its place, by a reading of the group that nobody else changes; and what must become
    /// of the pool before. Turns to change the group need not come in the order of places.
    ///
    /// # Errors
    /// [`CreateError::NoRoom`]; [`CreateError::RoomUnknown`].
    pub(super) async fn admit(
        &self,
        place: &Place<'_>,
        class: &DeviceClass,
        reading: &Reading,
        provisioning: Provisioning,
        size: Bytes,
    ) -> Result<PoolStep, CreateError> {
        let read = self.ledger(reading).await;
        let mut ledger = read.clone();
        self.under_way.entries().take_from(&mut ledger, reading, Some(place));
        let policy = policy_of(class);
        let demand = Demand { group: reading.name(), policy: &policy, provisioning, size };
        ledger.make(&demand).map_err(|room| self.no_room(&demand, room))?;
        Ok(ledger.step_from(&read, &demand))
    }

    fn no_room(&self, demand: &Demand<'_>, room: Room) -> CreateError {
        let (node, vg) = (self.node.to_string(), demand.group.to_owned());
        // What could not be told is not "none": the pod need not go elsewhere.
        if room.bound == Bound::Pool(Unusable::Unanswered) {
            return CreateError::RoomUnknown { node, vg, pool: demand.policy.pool.clone() };
        }
        CreateError::NoRoom {
            node,
            vg,
            wanted: demand.size,
            provisioning: demand.provisioning,
            largest: room.largest,
            bound: room.bound,
        }
    }

    /// What a group has, by a reading and by what the kernel says of its pools.
    pub(super) async fn ledger(&self, reading: &Reading) -> Ledger {
        let mut pools = BTreeMap::new();
        let classes = self.config.device_classes.iter().filter(|class| class.volume_group == reading.name());
        for class in classes {
            if !pools.contains_key(&class.thin_pool) {
                pools.insert(class.thin_pool.clone(), self.pool(&class.thin_pool, reading).await);
            }
        }
        Ledger::new(reading.space(), pools)
    }

    async fn pool(&self, name: &str, reading: &Reading) -> Pool {
        let group = &reading.state().group;
        let Some(lv) = group.logical_volume(name) else { return Pool::Absent };
        let Some(segment) = lv.thin_pool() else {
            return match is_unfinished_pool(lv) {
                true => Pool::Absent,
                false => Pool::Unusable(Unusable::NotAPool),
            };
        };
        if !segment.zero_new_blocks {
            return Pool::Unusable(Unusable::NotZeroing);
        }
        let metadata_size = group.logical_volume(&segment.metadata).map_or(0, |metadata| group.size_of(metadata));
        let own = self.groups.by_uuid(reading.vg_uuid());
        let changing = || own.as_ref().is_ok_and(|group| group.is_being_changed());
        let fill = match self.gauge.fill(group, lv, changing).await {
            Ok(Some(fill)) => fill,
            Ok(None) => return Pool::Unusable(Unusable::Failed),
            Err(error) if matches!(error, UsageError::Slow { .. }) || changing() => {
                return Pool::Unusable(Unusable::Unanswered);
            }
            Err(_) => return Pool::Unusable(Unusable::Unmeasured),
        };
        Pool::Present(PoolSpace {
            size: Bytes(group.size_of(lv)),
            data_used: Bytes(fill.data_used_blocks.saturating_mul(segment.chunk_size)),
            promised: Bytes(group.promised_bytes(&lv.name, segment.chunk_size)),
            chunk: Bytes(segment.chunk_size),
            metadata_size: Bytes(metadata_size),
            metadata_used: Bytes(fill.metadata_used),
            // Where it may only lie on adjacent extents, nobody knows whether it can grow.
            ours: lv.has_tag(POOL_MARK) && group.allocates_anywhere(),
        })
    }
}

/// Whether this is what an `lvcreate` of ours left that was killed before it made a thin pool of it: a plain volume with
/// the pool's name and mark, in which nobody can have written anything.
pub fn is_unfinished_pool(lv: &LogicalVolume) -> bool {
    lv.thin_pool().is_none() && lv.has_tag(POOL_MARK)
}

/// What a class's configuration says about room.
pub fn policy_of(class: &DeviceClass) -> Policy {
    Policy {
        reserve: Bytes(class.reserve_bytes),
        pool: class.thin_pool.clone(),
        percent: class.pool_percent,
        ratio: class.overprovision_ratio,
    }
}
