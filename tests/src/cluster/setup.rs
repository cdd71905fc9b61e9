//! Everything that a cluster with the driver needs, made or taken from the cache.

use std::path::PathBuf;

use anyhow::Result;

use super::{Cluster, ClusterSettings, NodeSettings};
use crate::artifacts::{self, Archive, Binaries, Store};
use crate::progress::Progress;

/// Programs and images, ready for clusters.
#[derive(Debug)]
pub struct Parts {
    store: Store,
    binaries: Binaries,
    images: Vec<Archive>,
}

impl Parts {
    /// Builds what is missing, saying what: the programs from their Go modules, the images, and, if `driver`, the
    /// driver of this checkout in its image.
    ///
    /// # Errors
    /// When something cannot be built.
    pub fn make(driver: bool, progress: &Progress) -> Result<Self> {
        let store = Store::open()?;
        let binaries = Binaries::build(&store, &["kubernetes", "csi-tools", "helm"], progress)?;
        let mut images = artifacts::stock(&store, &binaries)?;
        if driver {
            images.push(artifacts::driver(&store, progress)?);
        }
        Ok(Self { store, binaries, images })
    }

    /// Where a built program is.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        self.binaries.path(name)
    }

    /// Starts a cluster of these nodes.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start(&self, nodes: Vec<NodeSettings>, progress: &Progress) -> Result<Cluster> {
        let settings = ClusterSettings { nodes, images: self.images.clone() };
        Cluster::start(&settings, &self.binaries, &self.store, progress)
    }
}
