//! Answers `quarry.v1.Admin`.

use std::collections::BTreeMap;
use std::sync::Arc;

use quarry_proto::quarry::v1 as proto;
use quarry_proto::quarry::v1::admin_server::Admin;
use tonic::{Code, Request, Response, Status};

use crate::csi::detached::Detached;
use crate::csi::status;
use crate::engine::survey::Surveyed;
use crate::engine::{Engine, ForgetError};
use crate::io::calibrate::{Calibration, Calibrator, Failure};
use crate::io::control::Publication;
use crate::io::leave::LeaveError;
use crate::io::{Control, State};
use crate::telemetry::health::Health;
use crate::telemetry::refilter;
use crate::volume::{LvName, VolumeHandle};

/// Serves what an administrator asks.
#[derive(Debug, Clone)]
pub struct AdminService {
    engine: Arc<Engine>,
    detached: Detached,
    shares: Option<Arc<Control>>,
    calibrator: Option<Arc<Calibrator>>,
    health: Health,
}

impl AdminService {
    /// Of the engine's volumes; `detached` runs the work that outlives its request, `shares` knows what became of weights
    /// and limits, `calibrator` measures disks, `health` knows what is not in order.
    #[must_use]
    pub fn new(
        engine: Arc<Engine>,
        detached: Detached,
        shares: Option<Arc<Control>>,
        calibrator: Option<Arc<Calibrator>>,
        health: Health,
    ) -> Self {
        Self { engine, detached, shares, calibrator, health }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let code = match &failure {
            Failure::NoGround(_) => Code::NotFound,
            Failure::Busy(_) => Code::Aborted,
            _ => Code::FailedPrecondition,
        };
        status::from(code, &failure)
    }
}

impl From<LeaveError> for Status {
    fn from(error: LeaveError) -> Self {
        let code = match &error {
            LeaveError::Calibrating(_) => Code::Aborted,
            LeaveError::NotPutBack(_) => Code::Internal,
        };
        status::from(code, &error)
    }
}

fn calibrated((disk, outcome): (String, Result<Calibration, Failure>)) -> proto::CalibratedDisk {
    match outcome {
        Err(failure) => proto::CalibratedDisk { disk, problem: failure.to_string(), ..Default::default() },
        Ok(found) => proto::CalibratedDisk {
            disk,
            problem: String::new(),
            read_iops: found.read_iops,
            write_iops: found.write_iops,
            model_read_iops: found.speed.read_random_iops,
            model_write_iops: found.speed.write_random_iops,
            ratio: found.ratio,
        },
    }
}

impl From<ForgetError> for Status {
    fn from(error: ForgetError) -> Self {
        let code = match &error {
            ForgetError::NoVolume(_) | ForgetError::NoGroup(_) => Code::NotFound,
            ForgetError::NotLost { .. } | ForgetError::NotAnOrphan { .. } | ForgetError::GroupIsHere(_) => {
                Code::FailedPrecondition
            }
            ForgetError::Busy(_) => Code::Aborted,
            ForgetError::Journal(_) | ForgetError::Pins(_) => Code::Unavailable,
            ForgetError::Delete(_) => Code::Internal,
        };
        status::from(code, &error)
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn list_volumes(
        &self,
        _: Request<proto::ListVolumesRequest>,
    ) -> Result<Response<proto::ListVolumesResponse>, Status> {
        let shares = self.shares.as_ref().map(|shares| shares.states()).unwrap_or_default();
        Ok(Response::new(proto::ListVolumesResponse { volumes: volumes(&self.engine, &shares).await }))
    }

    async fn calibrate(
        &self,
        request: Request<proto::CalibrateRequest>,
    ) -> Result<Response<proto::CalibrateResponse>, Status> {
        let names = request.into_inner().disks;
        let Some(calibrator) = self.calibrator.clone() else {
            return Err(status::no_shares());
        };
        let volume = names.join(", ");
        // Cut off with the driver: what is left of it is removed at the next start.
        let outcomes = calibrator.calibrate(&names).await;
        let disks =
            |outcomes: Vec<_>| proto::CalibrateResponse { disks: outcomes.into_iter().map(calibrated).collect() };
        status::answer(&volume, outcomes.map(disks))
    }

    async fn restore_io(
        &self,
        _: Request<proto::RestoreIoRequest>,
    ) -> Result<Response<proto::RestoreIoResponse>, Status> {
        let Some(shares) = self.shares.clone() else { return Err(status::no_shares()) };
        let left = tokio::task::spawn_blocking(move || shares.leave()).await;
        let left = left.map_err(|error| Status::internal(format!("putting back was cut off: {error}")))?;
        let answer = |count: usize| proto::RestoreIoResponse { put_back: u64::try_from(count).unwrap_or(u64::MAX) };
        status::answer("", left.map(answer))
    }

    async fn forget_volume(
        &self,
        request: Request<proto::ForgetVolumeRequest>,
    ) -> Result<Response<proto::ForgetVolumeResponse>, Status> {
        let name = request.into_inner().name;
        let forgotten = self.engine.forget_volume(&name).await;
        status::answer(&name, forgotten.map(|()| proto::ForgetVolumeResponse {}))
    }

    async fn forget_volume_group(
        &self,
        request: Request<proto::ForgetVolumeGroupRequest>,
    ) -> Result<Response<proto::ForgetVolumeGroupResponse>, Status> {
        let forgotten = self.engine.forget_group(&request.into_inner().volume_group).await;
        let answer = |volumes: Vec<_>| proto::ForgetVolumeGroupResponse {
            volumes: volumes.iter().map(ToString::to_string).collect(),
        };
        status::answer("", forgotten.map(answer))
    }

    async fn remove_orphan(
        &self,
        request: Request<proto::RemoveOrphanRequest>,
    ) -> Result<Response<proto::RemoveOrphanResponse>, Status> {
        let name = request.into_inner().name;
        let (engine, volume) = (Arc::clone(&self.engine), name.clone());
        let work = async move { engine.remove_orphan(&volume).await };
        let removed = self.detached.run("RemoveOrphan", &name, self.engine.config().timeouts.answer(), work).await;
        status::answer(&name, removed.map(|()| proto::RemoveOrphanResponse {}))
    }

    async fn get_status(
        &self,
        _: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        let shares = self.shares.as_ref().map(|shares| shares.states()).unwrap_or_default();
        let mut volumes = describe_all(&self.engine, &shares, self.engine.surveyed_now());
        for volume in &mut volumes {
            volume.used_bytes =
                LvName::parse(&volume.name).and_then(|lv| self.engine.used(&volume.volume_group_uuid, &lv));
        }
        Ok(Response::new(super::status::of(&self.engine, &self.health, volumes)))
    }

    async fn set_log_filter(
        &self,
        request: Request<proto::SetLogFilterRequest>,
    ) -> Result<Response<proto::SetLogFilterResponse>, Status> {
        let filter = request.into_inner().filter;
        let before = refilter(&filter).map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        tracing::info!(before, filter, "the log's filter was changed");
        Ok(Response::new(proto::SetLogFilterResponse { before }))
    }
}

/// Every volume of the engine's node, with what became of its weight and limits at each pod.
pub async fn volumes(engine: &Engine, shares: &BTreeMap<Publication, State>) -> Vec<proto::Volume> {
    describe_all(engine, shares, engine.survey().await)
}

fn describe_all(engine: &Engine, shares: &BTreeMap<Publication, State>, surveyed: Vec<Surveyed>) -> Vec<proto::Volume> {
    let node = engine.node().clone();
    let describe = |volume: Surveyed| {
        let handle = VolumeHandle { node: node.clone(), lv: volume.lv.clone() }.to_string();
        let mut described = proto::Volume {
            name: volume.lv.to_string(),
            handle,
            node: node.to_string(),
            state: volume.state.to_string(),
            problem: volume.problem.unwrap_or_default(),
            staged_paths: volume.staged,
            published: {
                let share = |target: &str| shares.get(&(volume.lv.clone(), target.to_owned()));
                volume.published.into_iter().map(|one| publication(share(&one.0), one)).collect()
            },
            recorded: volume.recorded,
            ..Default::default()
        };
        if let Some(record) = volume.record {
            if let Some(claim) = record.claim {
                (described.claim_namespace, described.claim_name) = (claim.namespace, claim.name);
            }
            described.device_class = record.class;
            described.volume_group = record.vg;
            described.volume_group_uuid = record.vg_uuid;
            described.uuid = record.uuid;
            described.provisioning = record.provisioning;
            described.content = record.content;
            described.size_bytes = record.size;
        }
        described
    };
    surveyed.into_iter().map(describe).collect()
}

fn publication(share: Option<&State>, (target_path, row): (String, crate::journal::Published)) -> proto::Publication {
    let pod = row.pod.unwrap_or_else(|| crate::journal::Pod { uid: String::new(), namespace: None, name: None });
    proto::Publication {
        target_path,
        pod_uid: pod.uid,
        pod_namespace: pod.namespace.unwrap_or_default(),
        pod_name: pod.name.unwrap_or_default(),
        read_only: row.read_only,
        io_weight: row.io_weight.unwrap_or(0),
        io_state: share.map(|share| share.name().to_owned()).unwrap_or_default(),
        io_problem: share.and_then(State::reason).map(ToString::to_string).unwrap_or_default(),
    }
}
