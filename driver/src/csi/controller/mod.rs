//! The CSI controller service of one node: requests in, the engine's results out.

mod capacity;
mod create;
mod delete;
mod list;
mod modify;
mod validate;

use std::sync::Arc;

use quarry_proto::csi::v1 as proto;
use quarry_proto::csi::v1::controller_server::Controller;
use quarry_proto::csi::v1::controller_service_capability::rpc::Type;
use quarry_proto::csi::v1::controller_service_capability::{Rpc, Type as CapabilityType};
use tonic::{Request, Response, Status};

use crate::capacity::claims::Claims;
use crate::csi::call;
use crate::csi::detached::Detached;
use crate::csi::status;
use crate::engine::Engine;

use create::CreateVolumeError;
use delete::DeleteVolumeError;
use modify::ModifyVolumeError;

/// Serves CSI's controller RPCs.
#[derive(Debug, Clone)]
pub struct ControllerService {
    engine: Arc<Engine>,
    detached: Detached,
    claims: Claims,
}

/// Exactly what is served.
const CAPABILITIES: [Type; 6] = [
    Type::CreateDeleteVolume,
    Type::ListVolumes,
    Type::GetCapacity,
    Type::GetVolume,
    Type::SingleNodeMultiWriter,
    Type::ModifyVolume,
];

impl ControllerService {
    /// Serves the engine's volumes; `detached` runs the work that outlives its request, `claims` tells which claims belong
    /// to one pod.
    #[must_use]
    pub fn new(engine: Arc<Engine>, detached: Detached, claims: Claims) -> Self {
        Self { engine, detached, claims }
    }
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<proto::CreateVolumeRequest>,
    ) -> Result<Response<proto::CreateVolumeResponse>, Status> {
        const RPC: &str = "CreateVolume";
        let request = request.into_inner();
        let name = request.name.clone();
        let begin = || {
            let checked = create::validate(&request, self.engine.node())?;
            let claim = checked.claim.as_ref().map(|claim| format!("{}/{}", claim.namespace, claim.name));
            call::note(|note| note.claim = claim);
            let guard = self.engine.lock(&checked.lv, RPC)?;
            Ok::<_, CreateVolumeError>((checked, guard))
        };
        let result = match begin() {
            Err(error) => Err(error.into()),
            Ok((checked, guard)) => {
                let (engine, claims) = (Arc::clone(&self.engine), self.claims.clone());
                let work = async move {
                    let _guard = guard;
                    create::create(&engine, &claims, checked).await
                };
                self.detached.run(RPC, &name, self.engine.config().timeouts.answer(), work).await
            }
        };
        status::answer(&name, result)
    }

    async fn delete_volume(
        &self,
        request: Request<proto::DeleteVolumeRequest>,
    ) -> Result<Response<proto::DeleteVolumeResponse>, Status> {
        const RPC: &str = "DeleteVolume";
        let request = request.into_inner();
        let begin = || {
            let Some(handle) = delete::validate(&request)? else { return Ok(None) };
            let guard = self.engine.lock(&handle.lv, RPC)?;
            Ok::<_, DeleteVolumeError>(Some((handle, guard)))
        };
        let result = match begin() {
            Err(error) => Err(error.into()),
            Ok(None) => Ok(proto::DeleteVolumeResponse {}),
            Ok(Some((handle, guard))) => {
                let engine = Arc::clone(&self.engine);
                let work = async move {
                    let _guard = guard;
                    delete::delete(&engine, handle).await
                };
                self.detached.run(RPC, &request.volume_id, self.engine.config().timeouts.answer(), work).await
            }
        };
        status::answer(&request.volume_id, result)
    }

    async fn controller_modify_volume(
        &self,
        request: Request<proto::ControllerModifyVolumeRequest>,
    ) -> Result<Response<proto::ControllerModifyVolumeResponse>, Status> {
        const RPC: &str = "ControllerModifyVolume";
        let request = request.into_inner();
        let id = request.volume_id.clone();
        let begin = || {
            let handle = modify::validate(&request)?;
            let guard = self.engine.lock(&handle.lv, RPC)?;
            Ok::<_, ModifyVolumeError>((handle, guard))
        };
        let result = match begin() {
            Err(error) => Err(error.into()),
            Ok((handle, guard)) => {
                let engine = Arc::clone(&self.engine);
                let work = async move {
                    let _guard = guard;
                    modify::modify(&engine, handle, request).await
                };
                self.detached.run(RPC, &id, self.engine.config().timeouts.answer(), work).await
            }
        };
        status::answer(&id, result)
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<proto::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<proto::ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        status::answer(&id, validate::validate(&self.engine, request).await)
    }

    async fn list_volumes(
        &self,
        request: Request<proto::ListVolumesRequest>,
    ) -> Result<Response<proto::ListVolumesResponse>, Status> {
        status::answer("", list::list(&self.engine, &request.into_inner()).await)
    }

    async fn get_capacity(
        &self,
        request: Request<proto::GetCapacityRequest>,
    ) -> Result<Response<proto::GetCapacityResponse>, Status> {
        status::answer("", capacity::get(&self.engine, &request.into_inner()).await)
    }

    async fn controller_get_volume(
        &self,
        request: Request<proto::ControllerGetVolumeRequest>,
    ) -> Result<Response<proto::ControllerGetVolumeResponse>, Status> {
        let request = request.into_inner();
        status::answer(&request.volume_id, list::get(&self.engine, &request).await)
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<proto::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<proto::ControllerGetCapabilitiesResponse>, Status> {
        let capability = |rpc: Type| proto::ControllerServiceCapability {
            r#type: Some(CapabilityType::Rpc(Rpc { r#type: rpc.into() })),
        };
        let capabilities = CAPABILITIES.into_iter().map(capability).collect();
        Ok(Response::new(proto::ControllerGetCapabilitiesResponse { capabilities }))
    }
}
