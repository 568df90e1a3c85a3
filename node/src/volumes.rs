//! Opens the volumes of a node: formats what is new, refuses what is strange.
//!
//! **Invariants.** A path that held a volume must hold the same one: an empty mount point is never taken for a fresh disk. A
//! path with files that are no volume is refused.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::{Context, bail};
use pacsvault_core::ids::{ClusterId, Incarnation, VolumeId};
use pacsvault_ports::{disk::Disk, env::SharedEnv};
use pacsvault_service::OwnVolume;
use pacsvault_volume::{FileDisk, Identity, Options, Owner, Store, Volume, file_disk::FileDiskOptions};

use crate::{
    config::{Config, VolumePath},
    identity::IdentityFile,
};

/// Name of the file that makes a directory a volume.
const VOLUME_FILE: &str = pacsvault_volume::format::IDENTITY_NAME;

/// Opens or formats every volume of the configuration. Reads every record's header, so large volumes take a while.
pub fn open_all(
    config: &Config,
    cluster: ClusterId,
    identity: &IdentityFile,
    env: &SharedEnv,
) -> anyhow::Result<BTreeMap<VolumeId, OwnVolume>> {
    let mut volumes = BTreeMap::new();
    let opener = Opener { config, cluster, identity, incarnation: identity.incarnation()?, env };
    for wanted in &config.volumes {
        let own = opener.open(wanted).with_context(|| format!("cannot start with volume {}", wanted.path.display()))?;
        volumes.insert(own.volume.id(), own);
    }
    Ok(volumes)
}

struct Opener<'a> {
    config: &'a Config,
    cluster: ClusterId,
    identity: &'a IdentityFile,
    incarnation: Incarnation,
    env: &'a SharedEnv,
}

impl Opener<'_> {
    fn open(&self, wanted: &VolumePath) -> anyhow::Result<OwnVolume> {
        let path = &wanted.path;
        let known = self.identity.volume_at(path)?;
        let formatted = path.join(VOLUME_FILE).exists();
        match (known, formatted) {
            (Some(volume), false) => bail!(
                "volume {volume} was here and is not: mount its disk and start again; if the disk is gone for good, give the new disk \
                 another path in the configuration"
            ),
            (None, false) => refuse_foreign_files(path)?,
            (_, true) => {}
        }
        fs::create_dir_all(path).context("cannot make the directory")?;
        let disk: Arc<dyn Disk> = Arc::new(FileDisk::open(path, FileDiskOptions::default())?);
        if !formatted {
            let volume = VolumeId(self.random_bytes());
            let identity = Identity {
                cluster: self.cluster,
                node: self.config.name.clone(),
                incarnation: self.incarnation,
                volume,
            };
            Store::format(disk.as_ref(), &identity)?;
        }
        let space = disk.space().context("cannot measure the disk")?;
        let capacity_bytes = wanted.capacity_bytes.unwrap_or(space.total_bytes).min(space.total_bytes);
        let mut options = Options::new(self.env.random());
        options.capacity_bytes = Some(capacity_bytes);
        let owner = Owner { cluster: self.cluster, node: self.config.name.clone() };
        let (store, recovery) = Store::open(disk, &owner, options)?;
        let volume = store.volume();
        if let Some(known) = known.filter(|known| *known != volume) {
            bail!(
                "this path held volume {known} and now holds {volume}: mount the right disk, or give this one another path"
            );
        }
        self.identity.remember_volume(path, volume)?;
        tracing::info!(%volume, path = %path.display(), ?recovery, "volume opened");
        Ok(OwnVolume { volume: Arc::new(Volume::new(store, self.env.clone())), capacity_bytes })
    }

    fn random_bytes(&self) -> [u8; 16] {
        let (high, low) = (u128::from(self.env.random()), u128::from(self.env.random()));
        (high << 64 | low).to_be_bytes()
    }
}

fn refuse_foreign_files(path: &Path) -> anyhow::Result<()> {
    let Ok(mut entries) = fs::read_dir(path) else { return Ok(()) };
    // What mkfs leaves on a fresh disk, and our own lock.
    let ours = |name: &str| ["lost+found", "lock", "volume.lock", "volume.id.tmp"].contains(&name);
    match entries.find_map(|entry| {
        entry.ok().map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| !ours(name))
    }) {
        Some(name) => bail!("the directory is no volume but holds {name}: name an empty directory"),
        None => Ok(()),
    }
}
