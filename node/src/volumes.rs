//! Opens the volumes of a node: formats what is new, refuses what is strange.
//!
//! **Invariants.** A path that held a volume must hold the same one: an empty mount point is never taken for a fresh disk. A
//! path with files that are no volume is refused. A volume that failed in an earlier life is reported as such, for the node to
//! fence before it takes writes.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::{Context, bail};
use pacsvault_core::ids::{ClusterId, Incarnation, VolumeId};
use pacsvault_ports::{disk::Disk, env::SharedEnv};
use pacsvault_service::OwnVolume;
use pacsvault_volume::{FileDisk, Identity, Options, Owner, Recovery, Store, Volume, file_disk::FileDiskOptions};

use crate::{
    config::{Config, VolumePath},
    identity::IdentityFile,
};

/// Name of the file that makes a directory a volume.
const VOLUME_FILE: &str = pacsvault_volume::format::IDENTITY_NAME;

/// The volumes of a node.
pub struct Opened {
    /// All of them.
    pub volumes: BTreeMap<VolumeId, OwnVolume>,
    /// Those that failed in an earlier life, and why they must take no writes.
    pub failed: BTreeMap<VolumeId, String>,
}

/// Opens or formats every volume of the configuration. Reads every record's header, so large volumes take a while.
pub fn open_all(
    config: &Config,
    cluster: ClusterId,
    identity: &IdentityFile,
    env: &SharedEnv,
) -> anyhow::Result<Opened> {
    let (mut volumes, mut failed) = (BTreeMap::new(), BTreeMap::new());
    let opener = Opener { config, cluster, identity, incarnation: identity.incarnation()?, env };
    for wanted in &config.volumes {
        let (own, recovery) =
            opener.open(wanted).with_context(|| format!("cannot start with volume {}", wanted.path.display()))?;
        let id = own.volume.id();
        if recovery.was_poisoned {
            let text = format!("a write or sync of {} failed in an earlier life of this node", wanted.path.display());
            failed.insert(id, text);
        }
        volumes.insert(id, own);
    }
    Ok(Opened { volumes, failed })
}

struct Opener<'a> {
    config: &'a Config,
    cluster: ClusterId,
    identity: &'a IdentityFile,
    incarnation: Incarnation,
    env: &'a SharedEnv,
}

impl Opener<'_> {
    fn open(&self, wanted: &VolumePath) -> anyhow::Result<(OwnVolume, Recovery)> {
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
        Ok((OwnVolume { volume: Arc::new(Volume::new(store, self.env.clone())), capacity_bytes }, recovery))
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

#[cfg(test)]
mod tests {
    use pacsvault_runtime::TokioEnv;

    use super::*;

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    fn open(dir: &Path) -> Opened {
        let text = "name = \"a1\"\nsite = \"site-a\"\ndata_dir = \"data\"\nlisten = \"127.0.0.1:7400\"\n[tls]\n\
                    ca = \"ca\"\ncert = \"cert\"\nkey = \"key\"\n[[volumes]]\npath = \"v1\"\n";
        let config = Config::parse(text, &dir.join("node.toml")).expect("valid");
        let identity =
            IdentityFile::open(&config.data_dir, &config.name, CLUSTER, Incarnation([1; 16])).expect("an identity");
        let env: SharedEnv = TokioEnv::current();
        open_all(&config, CLUSTER, &identity, &env).expect("opened")
    }

    #[tokio::test]
    async fn a_volume_that_failed_in_an_earlier_life_is_reported_at_every_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let fresh = open(dir.path());
        let id = *fresh.volumes.keys().next().expect("one volume");
        assert!(fresh.failed.is_empty());
        drop(fresh);
        // What the store leaves behind when a sync fails.
        fs::write(dir.path().join("v1/volume.poisoned"), b"").expect("marked");
        for _ in 0..2 {
            let opened = open(dir.path());
            assert_eq!(opened.failed.keys().collect::<Vec<_>>(), [&id]);
            assert!(opened.volumes.contains_key(&id), "it stays readable");
        }
    }
}
