//! Opens the volumes of a node: formats what is new, refuses what is strange.
//!
//! **Invariants.** A path that held a volume must hold the same one: an empty mount point is never taken for a fresh disk. One
//! that is not there, or whose disk cannot be read, is left out while any other volume of the node works: a dead disk must
//! not take its node along. The cluster sees that it is not served and rebuilds what it held. A path with another volume than
//! the known one, or with files that are no volume, is refused: that is an error of people. A volume that failed in an earlier life is reported as such, for the node to
//! fence before it takes writes.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::{Context, bail};
use pacsvault_core::ids::{ClusterId, Incarnation, VolumeId};
use pacsvault_ports::{disk::Disk, env::SharedEnv};
use pacsvault_runtime::inject::Faults;
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

/// Opens or formats every volume of the configuration. Reads every record's header, so large volumes take a while. With
/// `faults`, its disks suffer them.
pub fn open_all(
    config: &Config,
    cluster: ClusterId,
    identity: &IdentityFile,
    env: &SharedEnv,
    faults: Option<&Arc<Faults>>,
) -> anyhow::Result<Opened> {
    let (mut volumes, mut failed) = (BTreeMap::new(), BTreeMap::new());
    let mut absent = None;
    let opener = Opener { config, cluster, identity, incarnation: identity.incarnation()?, env, faults };
    for wanted in &config.volumes {
        let opened = opener.open(wanted);
        let (own, recovery) = match opened {
            Ok(opened) => opened,
            Err(Unusable::Absent(why)) => {
                tracing::error!(path = %wanted.path.display(), "starting without this volume: {why:#}");
                absent = Some((wanted.path.clone(), why));
                continue;
            }
            Err(Unusable::Refused(why)) => {
                return Err(why.context(format!("cannot start with volume {}", wanted.path.display())));
            }
        };
        let id = own.volume.id();
        if recovery.was_poisoned {
            let text = format!("a write or sync of {} failed in an earlier life of this node", wanted.path.display());
            failed.insert(id, text);
        }
        volumes.insert(id, own);
    }
    match absent {
        // Nothing at all to serve: more likely a mount that was forgotten than disks that died together.
        Some((path, why)) if volumes.is_empty() => {
            Err(why.context(format!("cannot start with volume {}", path.display())))
        }
        _ => Ok(Opened { volumes, failed }),
    }
}

/// Forgets the volume that `path` held; refused while it holds one.
/// # Errors
/// The volume is still there, nothing is known of the path, or the identity cannot be read or written.
pub fn forget(config: &Config, cluster: ClusterId, path: &Path) -> anyhow::Result<VolumeId> {
    let configured = config.volumes.iter().find(|one| one.path == path || one.path.ends_with(path));
    let path = configured.map_or(path, |one| one.path.as_path());
    if path.join(VOLUME_FILE).exists() {
        bail!("{} still holds a volume: unmount its disk or empty the directory first", path.display());
    }
    // The fresh incarnation is used only by a directory without identity, which knows of no volume.
    let identity = IdentityFile::open(&config.data_dir, &config.name, cluster, Incarnation([0; 16]))?;
    identity.forget_volume(path)?.with_context(|| {
        format!("nothing is known of a volume at {}: name the path as in the configuration", path.display())
    })
}

/// Why a volume cannot be used.
enum Unusable {
    /// Its disk is not there or cannot be read.
    Absent(anyhow::Error),
    /// It is not what it should be.
    Refused(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Unusable {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

struct Opener<'a> {
    config: &'a Config,
    cluster: ClusterId,
    identity: &'a IdentityFile,
    incarnation: Incarnation,
    env: &'a SharedEnv,
    faults: Option<&'a Arc<Faults>>,
}

impl Opener<'_> {
    fn open(&self, wanted: &VolumePath) -> Result<(OwnVolume, Recovery), Unusable> {
        let path = &wanted.path;
        let known = self.identity.volume_at(path)?;
        let formatted = path.join(VOLUME_FILE).exists();
        match (known, formatted) {
            (Some(volume), false) => {
                return Err(Unusable::Absent(anyhow::anyhow!(
                    "volume {volume} was here and is not: mount its disk and start again; if the disk is gone for good, put an \
                     empty one in its place and run `pacsvault-node --forget-volume {}`",
                    path.display()
                )));
            }
            (None, false) => refuse_foreign_files(path)?,
            (_, true) => {}
        }
        // A disk that was in use and fails now is dead; one that never worked is an error of people.
        let dead = |why: anyhow::Error| if known.is_some() { Unusable::Absent(why) } else { Unusable::Refused(why) };
        fs::create_dir_all(path).context("cannot make the directory").map_err(dead)?;
        let disk: Arc<dyn Disk> =
            Arc::new(FileDisk::open(path, FileDiskOptions::default()).map_err(|error| dead(error.into()))?);
        let disk = self.faults.map_or_else(|| disk.clone(), |faults| faults.disk(disk.clone()));
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
        let space = disk.space().context("cannot measure the disk").map_err(dead)?;
        let capacity_bytes = wanted.capacity_bytes.unwrap_or(space.total_bytes).min(space.total_bytes);
        let mut options = Options::new(self.env.random());
        options.capacity_bytes = Some(capacity_bytes);
        let owner = Owner { cluster: self.cluster, node: self.config.name.clone() };
        let (store, recovery) = Store::open(disk, &owner, options).map_err(|error| match error {
            error @ pacsvault_volume::Error::Open { .. } if known.is_some() => Unusable::Absent(error.into()),
            error => Unusable::Refused(error.into()),
        })?;
        let volume = store.volume();
        if let Some(known) = known.filter(|known| *known != volume) {
            return Err(Unusable::Refused(anyhow::anyhow!(
                "this path held volume {known} and now holds {volume}: mount the right disk, or give this one another path"
            )));
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
        open_all(&config, CLUSTER, &identity, &env, None).expect("opened")
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

    #[tokio::test]
    async fn a_dead_disk_does_not_take_its_node_along() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = "name = \"a1\"\nsite = \"site-a\"\ndata_dir = \"data\"\nlisten = \"127.0.0.1:7400\"\n[tls]\n\
                    ca = \"ca\"\ncert = \"cert\"\nkey = \"key\"\n[[volumes]]\npath = \"v1\"\n[[volumes]]\npath = \"v2\"\n";
        let config = Config::parse(text, &dir.path().join("node.toml")).expect("valid");
        let start = || {
            let identity = IdentityFile::open(&config.data_dir, &config.name, CLUSTER, Incarnation([1; 16]));
            let env: SharedEnv = TokioEnv::current();
            open_all(&config, CLUSTER, &identity.expect("an identity"), &env, None)
        };
        let both: Vec<VolumeId> = start().expect("opened").volumes.into_keys().collect();
        assert_eq!(both.len(), 2);
        fs::remove_dir_all(dir.path().join("v2")).expect("removed");
        fs::create_dir(dir.path().join("v2")).expect("an empty mount point");
        let left: Vec<VolumeId> = start().expect("started without it").volumes.into_keys().collect();
        assert_eq!(left.len(), 1);
        let empty = fs::read_dir(dir.path().join("v2")).expect("readable").count();
        assert_eq!(empty, 0, "an empty mount point is not taken for a fresh disk");
        // Only a word of the operator makes a new volume there.
        let gone = forget(&config, CLUSTER, Path::new("v2")).expect("forgotten");
        assert!(both.contains(&gone) && !left.contains(&gone));
        let renewed: Vec<VolumeId> = start().expect("opened").volumes.into_keys().collect();
        assert_eq!(renewed.len(), 2);
        assert!(!renewed.contains(&gone));
        assert!(forget(&config, CLUSTER, Path::new("v2")).is_err(), "it holds a volume again");
        // With nothing left to serve it refuses, rather than to look empty.
        for one in ["v1", "v2"] {
            fs::remove_dir_all(dir.path().join(one)).expect("removed");
        }
        assert!(start().is_err());
    }
}
