//! ListVolumes and ControllerGetVolume.

use quarry_proto::csi::v1 as proto;
use tonic::{Code, Status};

use crate::csi::status;
use crate::csi::topology;
use crate::engine::{Engine, FindError, Unreadable, Volume};
use crate::volume::VolumeHandle;

/// Why volumes were not listed.
#[derive(Debug, thiserror::Error)]
pub enum ListVolumesError {
    /// A negative page size.
    #[error("max_entries is {0}; it must not be negative")]
    MaxEntries(i32),
    /// A token that no ListVolumes gave.
    #[error("starting_token {0:?} is not one that ListVolumes gave; start again without")]
    Token(String),
    /// A volume group could not be read: a list without its volumes would say that they are gone.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl From<ListVolumesError> for Status {
    fn from(error: ListVolumesError) -> Self {
        let code = match &error {
            ListVolumesError::MaxEntries(_) => Code::InvalidArgument,
            ListVolumesError::Token(_) => Code::Aborted,
            ListVolumesError::Unreadable(_) => Code::Unavailable,
        };
        status::from(code, &error)
    }
}

/// Why a volume was not shown.
#[derive(Debug, thiserror::Error)]
pub enum GetVolumeError {
    /// No id.
    #[error("volume_id is empty")]
    NoId,
    /// Not an id of ours.
    #[error("volume {0:?} does not exist: its id is not one that Quarry gave out")]
    ForeignId(String),
    /// The engine's reason.
    #[error(transparent)]
    Find(#[from] FindError),
}

impl From<GetVolumeError> for Status {
    fn from(error: GetVolumeError) -> Self {
        let code = match &error {
            GetVolumeError::NoId => Code::InvalidArgument,
            GetVolumeError::ForeignId(_) => Code::NotFound,
            GetVolumeError::Find(error) => status::of_find(error),
        };
        status::from(code, &error)
    }
}

/// A token is the LV name of the last volume of the page before, behind this: volumes are listed by name, so a page
/// neither repeats nor skips what is there throughout, whatever comes and goes meanwhile.
const TOKEN: &str = "after:";

/// One page of the node's volumes.
///
/// # Errors
/// [`ListVolumesError`].
pub async fn list(
    engine: &Engine,
    request: &proto::ListVolumesRequest,
) -> Result<proto::ListVolumesResponse, ListVolumesError> {
    let size = usize::try_from(request.max_entries).map_err(|_| ListVolumesError::MaxEntries(request.max_entries))?;
    let after = match request.starting_token.as_str() {
        "" => None,
        token => Some(token.strip_prefix(TOKEN).ok_or_else(|| ListVolumesError::Token(token.to_owned()))?),
    };
    let (page, next_token) = page(engine.list().await?, size, after);
    Ok(proto::ListVolumesResponse { entries: page.iter().map(entry).collect(), next_token })
}

fn page(mut volumes: Vec<Volume>, size: usize, after: Option<&str>) -> (Vec<Volume>, String) {
    volumes.sort_by(|a, b| a.lv().cmp(b.lv()));
    let start = after.map_or(0, |after| volumes.partition_point(|volume| volume.lv().as_str() <= after));
    let mut page = volumes.split_off(start);
    let more = size > 0 && page.len() > size;
    if more {
        page.truncate(size);
    }
    let token = page.last().filter(|_| more).map(|last| format!("{TOKEN}{}", last.lv()));
    (page, token.unwrap_or_default())
}

fn entry(volume: &Volume) -> proto::list_volumes_response::Entry {
    proto::list_volumes_response::Entry {
        volume: Some(describe(volume)),
        status: Some(proto::list_volumes_response::VolumeStatus { published_node_ids: Vec::new() }),
    }
}

fn describe(volume: &Volume) -> proto::Volume {
    proto::Volume {
        capacity_bytes: volume.size.as_i64(),
        volume_id: volume.handle.to_string(),
        accessible_topology: vec![topology::of(&volume.handle.node)],
        ..Default::default()
    }
}

/// One volume.
///
/// # Errors
/// [`GetVolumeError`].
pub async fn get(
    engine: &Engine,
    request: &proto::ControllerGetVolumeRequest,
) -> Result<proto::ControllerGetVolumeResponse, GetVolumeError> {
    if request.volume_id.is_empty() {
        return Err(GetVolumeError::NoId);
    }
    let handle =
        VolumeHandle::parse(&request.volume_id).ok_or_else(|| GetVolumeError::ForeignId(request.volume_id.clone()))?;
    let volume = engine.find_known(&handle).await?;
    Ok(proto::ControllerGetVolumeResponse {
        volume: Some(describe(&volume)),
        status: Some(proto::controller_get_volume_response::VolumeStatus { published_node_ids: Vec::new() }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::metadata::LvmUuid;
    use crate::volume::{Bytes, Content, LvName, Provisioning, Stage, Tags, TopologyValue};
    use proptest::prelude::*;

    fn volume(name: &str) -> Volume {
        let lv = LvName::for_csi_name(name).unwrap();
        Volume {
            tags: Tags::new("default", Content::Block, Stage::New, &[], name, &lv),
            handle: VolumeHandle { node: TopologyValue::for_node("n"), lv },
            vg: "quarry".into(),
            vg_uuid: LvmUuid::from_bytes(&[b'u'; 32]).unwrap(),
            uuid: LvmUuid::from_bytes(&[b'v'; 32]).unwrap(),
            size: Bytes(1 << 30),
            provisioning: Provisioning::Thin,
            pool: None,
        }
    }

    proptest! {
        #[test]
        fn pages_together_are_the_whole_list(names in proptest::collection::btree_set("[a-p]{1,3}", 0..20), size in 1usize..5) {
            let all: Vec<Volume> = names.iter().map(|n| volume(n)).collect();
            let mut seen = Vec::new();
            let mut after: Option<String> = None;
            loop {
                let (entries, token) = page(all.clone(), size, after.as_deref());
                prop_assert!(entries.len() <= size);
                seen.extend(entries.iter().map(|v| v.lv().to_string()));
                if token.is_empty() { break }
                after = Some(token.strip_prefix(TOKEN).unwrap().to_owned());
            }
            prop_assert_eq!(seen, names.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(page(all.clone(), 0, None).0.len(), all.len());
        }
    }
}
