//! What the test clusters are made of: programs built from Go modules, and container images.

mod go;
mod image;
mod images;
mod store;

pub use go::{Binaries, KUBERNETES_VERSION};
pub use image::Image;
pub use images::{Archive, BUSYBOX, DRIVER, PAUSE, PROVISIONER, driver, stock};
pub use store::{Key, Store};
