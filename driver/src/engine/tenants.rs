//! Who has which volume, for weights and limits.

use crate::device_number::DeviceNumber;
use crate::io::{Tenant, control::Tenants};
use crate::journal::Published;
use crate::volume::LvName;
use crate::volume::io::{IoWish, Weight};

use super::{Engine, Volume};

#[tonic::async_trait]
impl Tenants for Engine {
    /// Every published volume: what it asks for is in its tags as they were last read, else in the journal.
    async fn tenants(&self) -> Vec<Tenant> {
        let journal = self.journaled();
        let mut tenants = Vec::with_capacity(journal.published.len());
        for ((lv, target), row) in &journal.published {
            tenants.push(self.tenant(lv, target, row).await);
        }
        tenants
    }

    async fn changed(&self) {
        self.tenancy.notified().await;
    }
}

impl Engine {
    async fn tenant(&self, lv: &LvName, target: &str, row: &Published) -> Tenant {
        let volume = self.known_volume(lv);
        let remembered = || IoWish { weight: row.io_weight.and_then(Weight::new), ..IoWish::default() };
        let wish = volume.as_ref().map_or_else(remembered, |volume| volume.tags.io);
        let pool = volume.as_ref().and_then(|volume| Some(format!("{}/{}", volume.vg, volume.pool.as_ref()?)));
        let device = match volume.filter(|_| wish.any()) {
            Some(volume) => match self.device(&volume).await {
                Ok(device) => device.map(|device| DeviceNumber { major: device.major, minor: device.minor }),
                Err(error) => {
                    tracing::warn!(volume = %lv, error = crate::telemetry::chain(&error), "a volume's device is not known");
                    None
                }
            },
            None => None,
        };
        let pod = row.pod.as_ref().map(|pod| pod.uid.clone());
        Tenant { volume: lv.clone(), target: target.to_owned(), pod, wish, pool, device }
    }

    /// The volume as it was last read.
    fn known_volume(&self, lv: &LvName) -> Option<Volume> {
        self.groups.all().into_iter().find_map(|group| group.known().volume(&self.node, lv).ok().flatten())
    }
}
