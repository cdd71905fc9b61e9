//! CreateVolume.

use std::collections::HashMap;

use quarry_proto::csi::v1 as proto;
use tonic::{Code, Status};

use crate::capacity::claims::Claims;
use crate::csi::{capability, status, topology};
use crate::engine::{Busy, CreateError, CreateRequest, Engine, Volume};
use crate::journal::Claim;
use crate::volume::capability::CapabilityError;
use crate::volume::name::NameError;
use crate::volume::parameters::{ParameterError, Parameters};
use crate::volume::size::{SizeError, SizeRange};
use crate::volume::{LvName, TopologyValue};

/// Why a volume was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateVolumeError {
    /// The name.
    #[error("invalid name")]
    Name(#[from] NameError),
    /// The capabilities.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    /// The parameters.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// The size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A snapshot or a volume to start from.
    #[error("volume_content_source is not supported; only empty volumes can be made")]
    Source,
    /// The volume may not be on this node.
    #[error(transparent)]
    Topology(#[from] topology::NotHere),
    /// An operation on that volume is under way.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The engine's reason.
    #[error(transparent)]
    Engine(#[from] CreateError),
}

impl From<CreateVolumeError> for Status {
    fn from(error: CreateVolumeError) -> Self {
        use CreateVolumeError as E;
        let code = match &error {
            E::Name(_) | E::Capability(_) | E::Parameter(_) | E::Source | E::Size(SizeError::Negative { .. }) => {
                Code::InvalidArgument
            }
            E::Size(_) | E::Engine(CreateError::Size(_)) => Code::OutOfRange,
            // The one code on which csi-provisioner gives the claim back to the scheduler: the pod can go elsewhere.
            E::Topology(_)
            | E::Engine(
                CreateError::NoClass { .. }
                | CreateError::NoGroup { .. }
                | CreateError::NoRoom { .. }
                | CreateError::NotTogether { .. },
            ) => Code::ResourceExhausted,
            // csi-provisioner keeps asking this node: the volume may exist, or come to exist.
            E::Busy(_) | E::Engine(CreateError::OutcomeUnknown { .. } | CreateError::Unprepared { .. }) => {
                Code::Aborted
            }
            E::Engine(CreateError::BeingDeleted(_)) => Code::Aborted,
            E::Engine(CreateError::Unreadable(_) | CreateError::Journal(_) | CreateError::RoomUnknown { .. }) => {
                Code::Unavailable
            }
            // Final: asking again makes no difference before a person has decided.
            E::Engine(CreateError::Lost { .. }) => Code::FailedPrecondition,
            E::Engine(CreateError::Different { .. } | CreateError::Foreign { .. }) => Code::AlreadyExists,
            E::Engine(
                CreateError::Tags { .. }
                | CreateError::Lvm { .. }
                | CreateError::Flush(_)
                | CreateError::NotGrown { .. }
                | CreateError::Vanished { .. },
            ) => Code::Internal,
        };
        status::from(code, &error)
    }
}

/// Checks a request without doing anything.
///
/// # Errors
/// [`CreateVolumeError`] for whatever is wrong on every node, and for a topology that excludes this one.
pub fn validate(
    request: &proto::CreateVolumeRequest,
    node: &TopologyValue,
) -> Result<CreateRequest, CreateVolumeError> {
    let lv = LvName::for_csi_name(&request.name)?;
    let parameters = Parameters::parse(&request.parameters)?;
    let io = Parameters::change(parameters.io, &request.mutable_parameters)?;
    let content = capability::read_all(&request.volume_capabilities, parameters.fs_type)?;
    let range = request.capacity_range.unwrap_or_default();
    let range = SizeRange::new(range.required_bytes, range.limit_bytes)?;
    if request.volume_content_source.is_some() {
        return Err(CreateVolumeError::Source);
    }
    topology::check(request.accessibility_requirements.as_ref(), node)?;
    Ok(CreateRequest {
        csi_name: request.name.clone(),
        lv,
        device_class: parameters.device_class,
        provisioning: parameters.provisioning,
        content,
        mkfs_options: parameters.mkfs_options,
        io,
        range,
        claim: claim(&request.parameters),
        siblings: Vec::new(),
    })
}

/// The claim, which csi-provisioner names when it is run with `--extra-create-metadata`.
fn claim(parameters: &HashMap<String, String>) -> Option<Claim> {
    let get = |key| parameters.get(key).filter(|value| !value.is_empty()).cloned();
    let (namespace, name) = (get("csi.storage.k8s.io/pvc/namespace")?, get("csi.storage.k8s.io/pvc/name")?);
    Some(Claim { namespace, name })
}

/// Makes the volume, whose lock the caller holds.
///
/// # Errors
/// [`CreateVolumeError::Engine`].
pub async fn create(
    engine: &Engine,
    claims: &Claims,
    mut request: CreateRequest,
) -> Result<proto::CreateVolumeResponse, CreateVolumeError> {
    // A volume that is there, or half made, is finished whatever else its pod waits for.
    if let Some(claim) = request.claim.as_ref().filter(|_| !engine.is_known(&request.lv)) {
        request.siblings = claims.others(claim).await;
    }
    let volume = engine.create(&request).await?;
    Ok(proto::CreateVolumeResponse { volume: Some(describe(&volume, &request.mkfs_options)) })
}

/// A volume as CSI tells it.
#[must_use]
pub fn describe(volume: &Volume, mkfs_options: &[String]) -> proto::Volume {
    proto::Volume {
        capacity_bytes: volume.size.as_i64(),
        volume_id: volume.handle.to_string(),
        volume_context: crate::volume::parameters::to_context(mkfs_options),
        content_source: None,
        accessible_topology: vec![topology::of(&volume.handle.node)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarry_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};

    fn request() -> proto::CreateVolumeRequest {
        proto::CreateVolumeRequest {
            name: "pvc-1".to_owned(),
            capacity_range: Some(proto::CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
            volume_capabilities: vec![proto::VolumeCapability {
                access_mode: Some(AccessMode { mode: 7 }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }],
            ..Default::default()
        }
    }

    fn code_of(change: impl FnOnce(&mut proto::CreateVolumeRequest)) -> (Code, String) {
        let mut request = request();
        change(&mut request);
        let status = Status::from(validate(&request, &TopologyValue::for_node("node-1")).unwrap_err());
        (status.code(), status.message().to_owned())
    }

    #[test]
    fn room_that_nobody_could_tell_is_asked_for_again_and_not_looked_for_elsewhere() {
        let unknown = CreateError::RoomUnknown { node: "n1".into(), vg: "quarry".into(), pool: "quarry-pool".into() };
        let status = Status::from(CreateVolumeError::from(unknown));
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("quarry/quarry-pool") && status.message().contains("ask again"));
    }

    #[test]
    fn bad_requests_get_one_error_that_names_the_field() {
        type Change = fn(&mut proto::CreateVolumeRequest);
        let cases: [(Change, Code, &str); 11] = [
            (|r| r.name.clear(), Code::InvalidArgument, "name is empty"),
            (|r| r.name = "n".repeat(129), Code::InvalidArgument, "name has 129 bytes"),
            (|r| r.volume_capabilities.clear(), Code::InvalidArgument, "volume_capabilities is empty"),
            (
                |r| r.capacity_range = Some(proto::CapacityRange { required_bytes: -1, limit_bytes: 0 }),
                Code::InvalidArgument,
                "required_bytes is -1",
            ),
            (
                |r| r.capacity_range = Some(proto::CapacityRange { required_bytes: 2, limit_bytes: 1 }),
                Code::OutOfRange,
                "limit_bytes",
            ),
            (
                |r| {
                    r.parameters.insert("clas".into(), "x".into());
                },
                Code::InvalidArgument,
                "parameter \"clas\" is unknown",
            ),
            (
                |r| {
                    r.mutable_parameters.insert("deviceClass".into(), "x".into());
                },
                Code::InvalidArgument,
                "mutable parameter \"deviceClass\"",
            ),
            (
                |r| {
                    r.parameters.insert("csi.storage.k8s.io/fstype".into(), "zfs".into());
                },
                Code::InvalidArgument,
                "zfs",
            ),
            (
                |r| {
                    r.volume_capabilities[0].access_mode = Some(AccessMode { mode: 5 });
                },
                Code::InvalidArgument,
                "MULTI_NODE_MULTI_WRITER",
            ),
            (
                |r| r.volume_content_source = Some(proto::VolumeContentSource::default()),
                Code::InvalidArgument,
                "volume_content_source",
            ),
            (
                |r| {
                    let other = topology::of(&TopologyValue::for_node("node-2"));
                    r.accessibility_requirements =
                        Some(proto::TopologyRequirement { requisite: vec![other], preferred: vec![] });
                },
                Code::ResourceExhausted,
                "node-1",
            ),
        ];
        for (change, code, part) in cases {
            let (got, message) = code_of(change);
            assert_eq!(got, code, "{message}");
            assert!(message.contains(part), "{message:?} does not contain {part:?}");
        }
    }

    #[test]
    fn a_good_request_is_understood() {
        let understood = validate(&request(), &TopologyValue::for_node("node-1")).unwrap();
        assert_eq!((understood.device_class.as_str(), understood.lv.as_str()), ("default", "pvc-1"));
    }
}
