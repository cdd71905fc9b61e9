//! A volume with every figure there is.

use quarry_driver::engine::inventory::VolumeFigures;
use quarry_driver::engine::sampler::Sample;
use quarry_driver::io::block_stat::BlockStat;
use quarry_driver::volume::io::Limits;

/// Active, thin, published, with a weight and limits; so many operations of each kind have been done on it, and `used` bytes
/// are its own.
pub fn figures(name: &str, disk: &str, used: u64, operations: u32) -> VolumeFigures {
    let count = u64::from(operations);
    VolumeFigures {
        name: name.to_owned(),
        state: "ready",
        claim_namespace: "db".to_owned(),
        claim: format!("data-{name}"),
        class: "default".to_owned(),
        group: "quarry".to_owned(),
        pool: "quarry-pool".to_owned(),
        provisioning: "thin".to_owned(),
        content: "ext4".to_owned(),
        size: 1 << 30,
        weight: Some(100),
        limits: Limits::from_tag("1000.500.104857600.52428800").unwrap_or_default(),
        targets: vec!["/target".to_owned()],
        sample: Sample {
            used: Some(used),
            traffic: Some(BlockStat {
                reads: count,
                read_bytes: count * 4096,
                writes: count,
                written_bytes: count * 8192,
                queued_ms: 0,
                flushes: 0,
            }),
            disks: vec![disk.to_owned()],
            device_seconds: vec![(disk.to_owned(), f64::from(operations) / 100.0)],
        },
    }
}
