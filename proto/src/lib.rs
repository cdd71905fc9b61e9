//! Messages, clients and servers of CSI 1.13, of the kubelet's plugin registration and of the driver's own programs,
//! generated from `proto/*.proto`.
//!
//! **Invariant.** Nothing but generated code: whoever needs a helper for a message has it where it is needed.

/// Package `csi`: the Container Storage Interface.
pub mod csi {
    /// Release 1 of it, the only one.
    pub mod v1 {
        tonic::include_proto!("csi.v1");
    }
}

/// Package `quarry`: what the driver's own command line and the capacity-reporter ask of it.
pub mod quarry {
    /// Release 1 of it.
    pub mod v1 {
        tonic::include_proto!("quarry.v1");
    }
}

/// Package `pluginregistration`: how a plugin makes itself known to the kubelet.
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::csi::v1;

    /// The bytes that a message must have on the wire, by hand: key = field number * 8 + wire type.
    fn assert_wire(message: &impl prost::Message, bytes: &[u8]) {
        assert_eq!(message.encode_to_vec(), bytes);
    }

    #[test]
    fn create_volume_request_on_the_wire() {
        let request = v1::CreateVolumeRequest {
            name: "n".into(),
            capacity_range: Some(v1::CapacityRange { required_bytes: 1, limit_bytes: 2 }),
            volume_capabilities: vec![v1::VolumeCapability {
                access_mode: Some(v1::volume_capability::AccessMode {
                    mode: v1::volume_capability::access_mode::Mode::SingleNodeSingleWriter.into(),
                }),
                access_type: Some(v1::volume_capability::AccessType::Mount(v1::volume_capability::MountVolume {
                    fs_type: "x".into(),
                    mount_flags: vec!["f".into()],
                    volume_mount_group: "g".into(),
                })),
            }],
            parameters: [("k".to_owned(), "v".to_owned())].into(),
            accessibility_requirements: Some(v1::TopologyRequirement::default()),
            mutable_parameters: [("m".to_owned(), "w".to_owned())].into(),
            ..Default::default()
        };
        let mount = [0x12, 9, 0x0a, 1, b'x', 0x12, 1, b'f', 0x1a, 1, b'g'];
        let mode = [0x1a, 2, 0x08, 6];
        let mut bytes = vec![0x0a, 1, b'n', 0x12, 4, 0x08, 1, 0x10, 2, 0x1a, 15];
        bytes.extend(mount);
        bytes.extend(mode);
        bytes.extend([0x22, 6, 0x0a, 1, b'k', 0x12, 1, b'v']);
        bytes.extend([0x3a, 0]);
        bytes.extend([0x42, 6, 0x0a, 1, b'm', 0x12, 1, b'w']);
        assert_wire(&request, &bytes);
    }

    #[test]
    fn node_requests_on_the_wire() {
        let stage = v1::NodeStageVolumeRequest {
            volume_id: "v".into(),
            staging_target_path: "s".into(),
            volume_capability: Some(v1::VolumeCapability::default()),
            volume_context: [("k".to_owned(), "v".to_owned())].into(),
            ..Default::default()
        };
        assert_wire(&stage, &[0x0a, 1, b'v', 0x1a, 1, b's', 0x22, 0, 0x32, 6, 0x0a, 1, b'k', 0x12, 1, b'v']);
        let publish = v1::NodePublishVolumeRequest {
            volume_id: "v".into(),
            staging_target_path: "s".into(),
            target_path: "t".into(),
            volume_capability: Some(v1::VolumeCapability::default()),
            readonly: true,
            volume_context: [("k".to_owned(), "v".to_owned())].into(),
            ..Default::default()
        };
        let mut bytes = vec![0x0a, 1, b'v', 0x1a, 1, b's', 0x22, 1, b't', 0x2a, 0, 0x30, 1];
        bytes.extend([0x42, 6, 0x0a, 1, b'k', 0x12, 1, b'v']);
        assert_wire(&publish, &bytes);
    }

    #[test]
    fn answers_on_the_wire() {
        let capacity = v1::GetCapacityResponse {
            available_capacity: 1,
            maximum_volume_size: Some(2),
            minimum_volume_size: Some(3),
        };
        assert_wire(&capacity, &[0x08, 1, 0x12, 2, 0x08, 2, 0x1a, 2, 0x08, 3]);
        let volume = v1::Volume {
            capacity_bytes: 1,
            volume_id: "v".into(),
            volume_context: [("k".to_owned(), "v".to_owned())].into(),
            content_source: None,
            accessible_topology: vec![v1::Topology { segments: [("k".to_owned(), "v".to_owned())].into() }],
        };
        let mut bytes = vec![0x08, 1, 0x12, 1, b'v', 0x1a, 6, 0x0a, 1, b'k', 0x12, 1, b'v'];
        bytes.extend([0x2a, 8, 0x0a, 6, 0x0a, 1, b'k', 0x12, 1, b'v']);
        assert_wire(&volume, &bytes);
        let info = super::registration::PluginInfo {
            r#type: "t".into(),
            name: "n".into(),
            endpoint: "e".into(),
            supported_versions: vec!["v".into()],
        };
        assert_wire(&info, &[0x0a, 1, b't', 0x12, 1, b'n', 0x1a, 1, b'e', 0x22, 1, b'v']);
    }

    #[test]
    fn capability_numbers_skip_what_earlier_releases_used() {
        use v1::{controller_service_capability, node_service_capability, plugin_capability};
        assert_eq!(controller_service_capability::rpc::Type::GetVolume as i32, 12);
        assert_eq!(controller_service_capability::rpc::Type::SingleNodeMultiWriter as i32, 13);
        assert_eq!(controller_service_capability::rpc::Type::ListVolumeHealth as i32, 17);
        assert!(controller_service_capability::rpc::Type::try_from(11).is_err(), "VOLUME_CONDITION is gone");
        assert_eq!(node_service_capability::rpc::Type::SingleNodeMultiWriter as i32, 5);
        assert!(node_service_capability::rpc::Type::try_from(4).is_err(), "VOLUME_CONDITION is gone");
        assert_eq!(plugin_capability::service::Type::SnapshotAccessibilityConstraints as i32, 5);
    }

    /// The figures of the release: a message, call or field lost in an edit of the file shows here.
    #[test]
    fn the_release_is_whole() {
        let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let csi = set.file.iter().find(|f| f.package() == "csi.v1").unwrap();
        let calls: Vec<_> = csi.service.iter().map(|s| (s.name(), s.method.len())).collect();
        let expected =
            [("Identity", 3), ("Controller", 17), ("GroupController", 4), ("SnapshotMetadata", 2), ("Node", 10)];
        assert_eq!(calls, expected);
        let fields = |m: &prost_types::DescriptorProto| m.field.len();
        fn deep(m: &prost_types::DescriptorProto, count: &dyn Fn(&prost_types::DescriptorProto) -> usize) -> usize {
            count(m) + m.nested_type.iter().map(|n| deep(n, count)).sum::<usize>()
        }
        let total: usize = csi.message_type.iter().map(|m| deep(m, &fields)).sum();
        assert_eq!((csi.message_type.len(), total), (87, 302));
    }

    const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
