//! The CSI node service: requests in, devices and mounts out.
//!
//! Every request that changes something takes the volume's lock and runs detached: a retry while it goes on is told so
//! (ABORTED), and a caller that gives up stops nothing.
//!
//! **Invariant.** Nothing is remembered between requests: what is staged and published is asked of the kernel, what is
//! formatted of the volume's tags. So a restart of the driver loses nothing.

mod owner;
mod publish;
mod request;
mod stage;
mod stats;
mod unpublish;
mod unstage;
mod volumes;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use quarry_proto::csi::v1 as proto;
use quarry_proto::csi::v1::node_server::Node;
use quarry_proto::csi::v1::node_service_capability::rpc::Type;
use quarry_proto::csi::v1::node_service_capability::{Rpc, Type as CapabilityType};
use tonic::{Request, Response, Status};

use crate::csi::detached::Detached;
use crate::csi::{status, topology};
use crate::engine::Busy;
use crate::filesystem::{Filesystems, Stats};
use crate::volume::LvName;

pub use publish::PublishVolumeError;
pub use request::RequestError;
pub use stage::StageVolumeError;
pub use stats::VolumeStatsError;
pub use unpublish::UnpublishVolumeError;
pub use unstage::UnstageVolumeError;
pub use volumes::Volumes;

/// How long a filesystem may take to say how full it is.
const STATS_LIMIT: Duration = Duration::from_secs(5);

/// Exactly what is served.
const CAPABILITIES: [Type; 3] = [Type::StageUnstageVolume, Type::GetVolumeStats, Type::SingleNodeMultiWriter];

/// Serves CSI's node RPCs.
pub struct NodeService<V> {
    context: Context<V>,
    detached: Detached,
    answer_after: Duration,
}

/// What an operation works with.
pub(crate) struct Context<V> {
    volumes: Arc<V>,
    filesystems: Filesystems,
    stats: Stats,
}

impl<V> Clone for Context<V> {
    fn clone(&self) -> Self {
        Self { volumes: Arc::clone(&self.volumes), filesystems: self.filesystems.clone(), stats: self.stats.clone() }
    }
}

impl<V> fmt::Debug for NodeService<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeService").field("answer_after", &self.answer_after).finish_non_exhaustive()
    }
}

impl<V: Volumes> NodeService<V> {
    /// Serves the volumes; `detached` runs the work that outlives its request, and after `answer_after` a request is
    /// answered while its work goes on (kubelet gives up after 2 minutes).
    #[must_use]
    pub fn new(volumes: Arc<V>, filesystems: Filesystems, detached: Detached, answer_after: Duration) -> Self {
        let context = Context { volumes, filesystems, stats: Stats::new(STATS_LIMIT) };
        Self { context, detached, answer_after }
    }

    /// Does what a request wishes to its volume, under the volume's lock, and to the end.
    async fn change<W, T, E, F>(
        &self,
        rpc: &'static str,
        id: &str,
        wish: Result<(LvName, W), E>,
        work: impl FnOnce(Context<V>, W) -> F,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        E: From<Busy> + Into<Status> + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let locked = wish.and_then(|(lv, wish)| Ok((self.context.volumes.lock(&lv, rpc)?, wish)));
        let result = match locked {
            Ok((guard, wish)) => {
                let work = work(self.context.clone(), wish);
                let locked = async move {
                    let _guard = guard;
                    work.await
                };
                self.detached.run(rpc, id, self.answer_after, locked).await
            }
            Err(error) => Err(error.into()),
        };
        status::answer(id, result)
    }
}

#[tonic::async_trait]
impl<V: Volumes> Node for NodeService<V> {
    async fn node_stage_volume(
        &self,
        request: Request<proto::NodeStageVolumeRequest>,
    ) -> Result<Response<proto::NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let wish = stage::validate(&*self.context.volumes, &request).map(|wish| (wish.handle.lv.clone(), wish));
        let work = |context, wish| async move { stage::stage(&context, wish).await };
        self.change("NodeStageVolume", &request.volume_id, wish, work).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<proto::NodeUnstageVolumeRequest>,
    ) -> Result<Response<proto::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let wish = unstage::validate(&*self.context.volumes, &request).map(|wish| (wish.handle.lv.clone(), wish));
        let work = |context, wish| async move { unstage::unstage(&context, wish).await };
        self.change("NodeUnstageVolume", &request.volume_id, wish, work).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<proto::NodePublishVolumeRequest>,
    ) -> Result<Response<proto::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let wish = publish::validate(&*self.context.volumes, &request).map(|wish| (wish.handle.lv.clone(), wish));
        let work = |context, wish| async move { publish::publish(&context, wish).await };
        self.change("NodePublishVolume", &request.volume_id, wish, work).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<proto::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<proto::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let wish = unpublish::validate(&*self.context.volumes, &request).map(|wish| (wish.handle.lv.clone(), wish));
        let work = |context, wish| async move { unpublish::unpublish(&context, wish).await };
        self.change("NodeUnpublishVolume", &request.volume_id, wish, work).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<proto::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<proto::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let result = stats::measure(&self.context, &request).await;
        status::answer(&request.volume_id, result)
    }

    async fn node_get_capabilities(
        &self,
        _: Request<proto::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<proto::NodeGetCapabilitiesResponse>, Status> {
        let capability =
            |rpc: Type| proto::NodeServiceCapability { r#type: Some(CapabilityType::Rpc(Rpc { r#type: rpc.into() })) };
        let capabilities = CAPABILITIES.map(capability).to_vec();
        Ok(Response::new(proto::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<proto::NodeGetInfoRequest>,
    ) -> Result<Response<proto::NodeGetInfoResponse>, Status> {
        let node = self.context.volumes.node();
        Ok(Response::new(proto::NodeGetInfoResponse {
            node_id: node.to_string(),
            // No limit: a logical volume in use takes no slot of anything. How many a volume group holds is a matter of
            // its metadata area, and so of capacity.
            max_volumes_per_node: 0,
            accessible_topology: Some(topology::of(node)),
        }))
    }

    async fn node_expand_volume(
        &self,
        _: Request<proto::NodeExpandVolumeRequest>,
    ) -> Result<Response<proto::NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("volumes cannot be expanded yet"))
    }

    async fn node_get_volume_health(
        &self,
        _: Request<proto::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<proto::NodeGetVolumeHealthResponse>, Status> {
        Err(Status::unimplemented("GET_VOLUME_HEALTH is not among the node's capabilities"))
    }

    async fn node_get_storage_health(
        &self,
        _: Request<proto::NodeGetStorageHealthRequest>,
    ) -> Result<Response<proto::NodeGetStorageHealthResponse>, Status> {
        Err(Status::unimplemented("GET_STORAGE_HEALTH is not among the node's capabilities"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{
        ActivateError, Device, FindError, TagChangeError, UsageError, Volume, VolumeGuard, VolumeLocks,
    };
    use crate::exec::{Exec, Tools};
    use crate::journal::{JournalError, Key, Pod};
    use crate::volume::{Stage, TopologyValue, VolumeHandle};
    use quarry_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
    use std::path::Path;
    use tokio::sync::Semaphore;
    use tonic::Code;

    /// Volumes of which none exists, which is found out only when the test allows it.
    struct NoVolumes {
        node: TopologyValue,
        locks: VolumeLocks,
        allowed: Semaphore,
    }

    #[tonic::async_trait]
    impl Volumes for NoVolumes {
        type Guard = VolumeGuard;

        fn node(&self) -> &TopologyValue {
            &self.node
        }

        fn lock(&self, lv: &LvName, operation: &'static str) -> Result<VolumeGuard, Busy> {
            self.locks.take(lv.as_str(), operation)
        }

        async fn find(&self, handle: &VolumeHandle) -> Result<Volume, FindError> {
            self.allowed.acquire().await.unwrap().forget();
            Err(FindError::Absent(handle.clone()))
        }

        async fn activate(&self, _: &Volume) -> Result<Device, ActivateError> {
            unreachable!("there is no volume")
        }

        async fn device(&self, _: &Volume) -> Result<Option<Device>, UsageError> {
            unreachable!("there is no volume")
        }

        async fn set_stage(&self, _: &Volume, _: Stage) -> Result<Volume, TagChangeError> {
            unreachable!("there is no volume")
        }

        async fn record_staged(&self, _: &Volume, _: &Path) -> Result<(), JournalError> {
            unreachable!("there is no volume")
        }

        async fn record_published(&self, _: &Volume, _: &Path, _: Option<Pod>, _: bool) -> Result<(), JournalError> {
            unreachable!("there is no volume")
        }

        async fn record_released(&self, _: Key) {}
    }

    fn service() -> (Arc<NoVolumes>, Arc<NodeService<NoVolumes>>) {
        let volumes = Arc::new(NoVolumes {
            node: TopologyValue::for_node("node-1"),
            locks: VolumeLocks::default(),
            allowed: Semaphore::new(0),
        });
        let filesystems = Filesystems::new(Exec::default(), Tools::find().unwrap(), Duration::from_secs(60));
        let limit = Duration::from_secs(100);
        (Arc::clone(&volumes), Arc::new(NodeService::new(volumes, filesystems, Detached::default(), limit)))
    }

    fn stage_request() -> Request<proto::NodeStageVolumeRequest> {
        Request::new(proto::NodeStageVolumeRequest {
            volume_id: "node-1/pvc-1".to_owned(),
            staging_target_path: "/staging".to_owned(),
            volume_capability: Some(proto::VolumeCapability {
                access_mode: Some(AccessMode { mode: 7 }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            ..Default::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_hangs_is_answered_and_keeps_its_volume_locked_to_the_end() {
        let (volumes, service) = service();
        let first = service.node_stage_volume(stage_request()).await.unwrap_err();
        assert_eq!(first.code(), Code::Aborted);
        assert!(first.message().contains("NodeStageVolume of volume node-1/pvc-1 still runs"), "{first:?}");

        let unstage = proto::NodeUnstageVolumeRequest {
            volume_id: "node-1/pvc-1".to_owned(),
            staging_target_path: "/no/such/staging".to_owned(),
        };
        let second = service.node_unstage_volume(Request::new(unstage.clone())).await.unwrap_err();
        assert_eq!(second.code(), Code::Aborted);
        assert!(second.message().contains("pvc-1") && second.message().contains("NodeStageVolume"), "{second:?}");

        volumes.allowed.add_permits(1);
        while volumes.locks.count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        service.node_unstage_volume(Request::new(unstage)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_leaves_the_work_and_the_lock() {
        let (volumes, service) = service();
        let patience = Duration::from_secs(1);
        assert!(tokio::time::timeout(patience, service.node_stage_volume(stage_request())).await.is_err());
        assert_eq!((service.detached.running().len(), volumes.locks.count()), (1, 1));
        volumes.allowed.add_permits(2);
        service.detached.finish().await;
        assert_eq!(volumes.locks.count(), 0);
    }

    #[tokio::test]
    async fn exactly_what_is_served_is_advertised() {
        let (_, service) = service();
        let request = Request::new(proto::NodeGetCapabilitiesRequest {});
        let answer = service.node_get_capabilities(request).await.unwrap().into_inner();
        let numbers: Vec<i32> = answer
            .capabilities
            .into_iter()
            .map(|capability| match capability.r#type {
                Some(CapabilityType::Rpc(rpc)) => rpc.r#type,
                None => 0,
            })
            .collect();
        assert_eq!(numbers, [1, 2, 5]);
    }
}
