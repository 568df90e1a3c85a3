//! Opens the volumes of a node: formats what is new, refuses what is strange.
//!
//! **Invariants.** A path that held a volume must hold the same one. A path with files that are no volume is refused.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::{Context, bail};
use pacsvault_core::ids::{ClusterId, NodeName, VolumeId};
use pacsvault_ports::{disk::Disk, env::SharedEnv};
use pacsvault_service::OwnVolume;
use pacsvault_volume::{FileDisk, Identity, Options, Store, Volume};

use crate::{config::Config, identity::IdentityFile};

/// Opens or formats every volume of the configuration. Slow for volumes with many segments: it reads every record's header.
pub fn open_all(
    config: &Config,
    cluster: ClusterId,
    identity: &IdentityFile,
    env: &SharedEnv,
    draw: &dyn Fn() -> VolumeId,
) -> anyhow::Result<BTreeMap<VolumeId, OwnVolume>> {
    let mut volumes = BTreeMap::new();
    for wanted in &config.volumes {
        let path = &wanted.path;
        let (volume, capacity_bytes) = open_one(config, cluster, identity, path, wanted.capacity_bytes, env, draw)
            .with_context(|| format!("volume {}", path.display()))?;
        volumes.insert(volume.id(), OwnVolume { volume: Arc::new(volume), capacity_bytes });
    }
    Ok(volumes)
}
