//! ValidateVolumeCapabilities.

use quarry_proto::csi::v1 as proto;
use tonic::{Code, Status};

use crate::csi::{capability, status};
use crate::engine::{Engine, FindError};
use crate::volume::capability::CapabilityError;
use crate::volume::parameters::{self, ParameterError, Parameters};
use crate::volume::{Content, VolumeHandle, tags};

/// Why nothing could be said about a volume's capabilities.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// No id.
    #[error("volume_id is empty")]
    NoId,
    /// No capabilities.
    #[error("volume_capabilities is empty")]
    NoCapabilities,
    /// Not an id of ours.
    #[error("volume {0:?} does not exist: its id is not one that Quarry gave out")]
    ForeignId(String),
    /// The engine's reason.
    #[error(transparent)]
    Find(#[from] FindError),
}

impl From<ValidateError> for Status {
    fn from(error: ValidateError) -> Self {
        let code = match &error {
            ValidateError::NoId | ValidateError::NoCapabilities => Code::InvalidArgument,
            ValidateError::ForeignId(_) => Code::NotFound,
            ValidateError::Find(error) => status::of_find(error),
        };
        status::from(code, &error)
    }
}

/// What speaks against a volume serving a request: the answer's message.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    #[error("the volume holds a {has}; the capabilities ask for a {asked}")]
    Content { has: Content, asked: Content },
    #[error("the volume is of the device class {has:?}; the parameters ask for {asked:?}")]
    Class { has: String, asked: String },
    #[error("the volume is {has}; the parameters ask for {asked}")]
    Provisioning { has: String, asked: String },
    #[error("the volume was made with other mkfs options than {asked:?}")]
    MkfsOptions { asked: String },
}

/// Says whether the volume can be used so.
///
/// # Errors
/// [`ValidateError`] where there is no such volume; a use that it cannot serve is an answer, not an error.
pub async fn validate(
    engine: &Engine,
    request: proto::ValidateVolumeCapabilitiesRequest,
) -> Result<proto::ValidateVolumeCapabilitiesResponse, ValidateError> {
    if request.volume_id.is_empty() {
        return Err(ValidateError::NoId);
    }
    if request.volume_capabilities.is_empty() {
        return Err(ValidateError::NoCapabilities);
    }
    let handle =
        VolumeHandle::parse(&request.volume_id).ok_or_else(|| ValidateError::ForeignId(request.volume_id.clone()))?;
    let volume = engine.find_known(&handle).await?;
    Ok(match compare(&volume, &request) {
        Ok(()) => proto::ValidateVolumeCapabilitiesResponse {
            confirmed: Some(proto::validate_volume_capabilities_response::Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            message: String::new(),
        },
        Err(unfit) => {
            proto::ValidateVolumeCapabilitiesResponse { confirmed: None, message: crate::telemetry::chain(&unfit) }
        }
    })
}

fn compare(volume: &crate::engine::Volume, request: &proto::ValidateVolumeCapabilitiesRequest) -> Result<(), Unfit> {
    let has = volume.tags.content;
    let default = match has {
        Content::Filesystem(fs) => Some(fs),
        Content::Block => None,
    };
    let asked = capability::read_all(&request.volume_capabilities, default)?;
    if asked != has {
        return Err(Unfit::Content { has, asked });
    }
    // What may change is what it is now; only that it could be asked for matters.
    Parameters::change(volume.tags.io, &request.mutable_parameters)?;
    if !request.parameters.is_empty() {
        let asked = Parameters::parse(&request.parameters)?;
        if asked.device_class != volume.tags.class {
            return Err(Unfit::Class { has: volume.tags.class.clone(), asked: asked.device_class });
        }
        if asked.provisioning != volume.provisioning {
            return Err(Unfit::Provisioning {
                has: volume.provisioning.to_string(),
                asked: asked.provisioning.to_string(),
            });
        }
        check_mkfs(volume, &asked.mkfs_options)?;
    }
    let context = parameters::from_context(&request.volume_context)?;
    if request.volume_context.is_empty() { Ok(()) } else { check_mkfs(volume, &context) }
}

fn check_mkfs(volume: &crate::engine::Volume, options: &[String]) -> Result<(), Unfit> {
    if tags::mkfs_hash(options) == volume.tags.mkfs_hash {
        return Ok(());
    }
    Err(Unfit::MkfsOptions { asked: options.join(" ") })
}
