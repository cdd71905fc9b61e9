//! Everything the driver knows of LVM: its on-disk metadata, its devices, its commands.

pub mod block_devices;
pub mod device_number;
pub mod discover;
pub mod dm;
pub mod dm_name;
pub mod dm_status;
pub mod metadata;
pub mod watch;
