//! The CSI Identity service: who the driver is and what it promises.

use std::collections::HashMap;

use quarry_proto::csi::v1::identity_server::Identity as Service;
use quarry_proto::csi::v1::plugin_capability::service::Type;
use quarry_proto::csi::v1::plugin_capability::{self};
use quarry_proto::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
};
use tonic::{Request, Response, Status};

use super::DRIVER_NAME;

/// The Identity service.
#[derive(Debug, Clone, Copy, Default)]
pub struct Identity;

#[tonic::async_trait]
impl Service for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let capability = |service: Type| PluginCapability {
            r#type: Some(plugin_capability::Type::Service(plugin_capability::Service { r#type: service.into() })),
        };
        let capabilities = [Type::ControllerService, Type::VolumeAccessibilityConstraints].map(capability).to_vec();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    /// Ready whenever it answers: csi-provisioner exits at an error here and waits for ever on "not ready", so the
    /// state of a disk or of a volume group has no place in it.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_answers_obey_the_specification() {
        let info = Identity.get_plugin_info(Request::new(GetPluginInfoRequest {})).await.unwrap().into_inner();
        assert_eq!(info.name, "lvm.quarry.storage");
        assert!(info.name.len() <= 63 && info.name.ends_with(|c: char| c.is_ascii_alphabetic()));
        assert!(!info.vendor_version.is_empty());
        let probe = Identity.probe(Request::new(ProbeRequest {})).await.unwrap().into_inner();
        assert_eq!(probe.ready, Some(true));
    }

    #[tokio::test]
    async fn exactly_what_is_served_is_advertised() {
        let request = Request::new(GetPluginCapabilitiesRequest {});
        let answer = Identity.get_plugin_capabilities(request).await.unwrap().into_inner();
        let services: Vec<i32> = answer
            .capabilities
            .iter()
            .map(|capability| match capability.r#type {
                Some(plugin_capability::Type::Service(service)) => service.r#type,
                _ => panic!("not a service: {capability:?}"),
            })
            .collect();
        assert_eq!(services, [1, 2]);
    }
}
