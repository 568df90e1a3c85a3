//! What a node keeps in its data directory to come back as itself: its incarnation, its id, its volumes.
//!
//! **Invariants.** The file is replaced as a whole; after a crash it is the old or the new one. A volume path that once held
//! a volume and is empty now is refused: a disk that is not mounted must not look like a fresh one. So is a node whose log
//! and state were in use and are gone: under its old id it could vote twice in one term and forget what it acknowledged.
//!
//! Layout: TOML text, so that an operator can read it; `format = 1` first.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::Mutex,
};

use pacsvault_core::ids::{ClusterId, Incarnation, NodeId, NodeName, VolumeId};
use pacsvault_ports::{
    crash,
    peer::{Class, Fault},
};
use pacsvault_service::{Founding, Membership, Registry};
use serde::{Deserialize, Serialize};

const FILE: &str = "identity.toml";
const FORMAT: u32 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    format: u32,
    name: String,
    cluster: String,
    incarnation: String,
    node: Option<u64>,
    #[serde(default)]
    founder: bool,
    /// The stores were made, and consensus may have relied on them since.
    #[serde(default)]
    stores: bool,
    /// Addresses that may have let this node in without its knowing.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    asked: BTreeSet<String>,
    #[serde(default)]
    volumes: BTreeMap<String, String>,
}

/// The identity file of one data directory.
pub struct IdentityFile {
    dir: PathBuf,
    content: Mutex<Content>,
}

fn fault(text: String) -> Fault {
    Fault::new(Class::Reject, "PV-IDENTITY", text)
}

impl IdentityFile {
    /// Opens the identity in `dir`, or draws one for an empty directory.
    ///
    /// # Errors
    /// The directory belongs to another node or cluster, the file is damaged, or the disk refuses.
    pub fn open(dir: &Path, name: &NodeName, cluster: ClusterId, fresh: Incarnation) -> Result<Self, Fault> {
        fs::create_dir_all(dir)
            .map_err(|error| fault(format!("cannot make data directory {}: {error}", dir.display())))?;
        let path = dir.join(FILE);
        let content = match fs::read_to_string(&path) {
            Ok(text) => parse(&text, &path, name, cluster)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                refuse_orphaned_stores(dir)?;
                Content {
                    format: FORMAT,
                    name: name.to_string(),
                    cluster: cluster.to_string(),
                    incarnation: fresh.to_string(),
                    node: None,
                    founder: false,
                    stores: false,
                    asked: BTreeSet::new(),
                    volumes: BTreeMap::new(),
                }
            }
            Err(error) => return Err(fault(format!("cannot read {}: {error}", path.display()))),
        };
        let file = Self { dir: dir.to_owned(), content: Mutex::new(content) };
        file.write()?;
        Ok(file)
    }

    fn content(&self) -> std::sync::MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// This life of the data directory.
    pub fn incarnation(&self) -> Result<Incarnation, Fault> {
        self.content().incarnation.parse().map_err(|error| fault(format!("{FILE}: {error}")))
    }

    /// The volume that `path` is known to hold.
    pub fn volume_at(&self, path: &Path) -> Result<Option<VolumeId>, Fault> {
        let known = self.content().volumes.get(&path.display().to_string()).cloned();
        known.map(|text| text.parse().map_err(|error| fault(format!("{FILE}: {error}")))).transpose()
    }

    /// Remembers that `path` holds `volume`.
    pub fn remember_volume(&self, path: &Path, volume: VolumeId) -> Result<(), Fault> {
        self.content().volumes.insert(path.display().to_string(), volume.to_string());
        self.write()
    }

    /// Forgets the volume that `path` held.
    pub fn forget_volume(&self, path: &Path) -> Result<Option<VolumeId>, Fault> {
        let known = self.volume_at(path)?;
        if known.is_some() {
            self.content().volumes.remove(&path.display().to_string());
            self.write()?;
        }
        Ok(known)
    }

    /// True when consensus may have relied on the stores: from then on they must be there.
    pub fn has_stores(&self) -> bool {
        self.content().stores
    }

    /// Remembers that the stores were made. To be called before anything relies on them.
    pub fn remember_stores(&self) -> Result<(), Fault> {
        self.content().stores = true;
        self.write()
    }

    fn write(&self) -> Result<(), Fault> {
        let text =
            toml::to_string(&*self.content()).map_err(|error| fault(format!("cannot encode {FILE}: {error}")))?;
        replace_file(&self.dir, FILE, text.as_bytes())
            .map_err(|error| fault(format!("cannot write {}: {error}", self.dir.join(FILE).display())))
    }
}

fn parse(text: &str, path: &Path, name: &NodeName, cluster: ClusterId) -> Result<Content, Fault> {
    let content: Content =
        toml::from_str(text).map_err(|error| fault(format!("{} is damaged: {error}", path.display())))?;
    if content.format != FORMAT {
        return Err(fault(format!(
            "{} has format {}, this build reads {FORMAT}: upgrade it",
            path.display(),
            content.format
        )));
    }
    if content.name != name.as_str() || content.cluster != cluster.to_string() {
        return Err(fault(format!(
            "{} belongs to node {} of cluster {}, not to {name} of {cluster}: check data_dir and the certificate",
            path.display(),
            content.name,
            content.cluster
        )));
    }
    Ok(content)
}

/// A directory with stores but without an identity has lost it: never start as somebody new on somebody's data.
fn refuse_orphaned_stores(dir: &Path) -> Result<(), Fault> {
    for store in ["log", "state"] {
        if dir.join(store).exists() {
            return Err(fault(format!(
                "{} has a {store} store but no {FILE}: restore the file from a backup, or empty the directory and join as a new node",
                dir.display()
            )));
        }
    }
    Ok(())
}

/// Replaces `dir/name` by `bytes`. On `Ok` the new content survives power loss.
pub fn replace_file(dir: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let part = dir.join(format!("{name}.part"));
    let mut file = File::create(&part)?;
    // CRASH(node.1): the part may be torn; nothing reads it, the next start overwrites it.
    crash::point("node.1");
    file.write_all(bytes)?;
    file.sync_all()?;
    // CRASH(node.2): whole bytes under a temporary name; the old content still stands.
    crash::point("node.2");
    fs::rename(&part, dir.join(name))?;
    // CRASH(node.3): old or new name, both whole. Nothing that depends on the new content has been told to anybody.
    crash::point("node.3");
    File::open(dir)?.sync_all()
}

impl Registry for IdentityFile {
    fn load(&self) -> Result<Option<Membership>, Fault> {
        let content = self.content();
        let cluster = content.cluster.parse().map_err(|error| fault(format!("{FILE}: {error}")))?;
        let founding = if content.founder { Founding::Founder } else { Founding::Joined };
        Ok(content.node.map(|node| Membership { node: NodeId(node), cluster, founding }))
    }

    fn save(&self, membership: &Membership) -> Result<(), Fault> {
        {
            let mut content = self.content();
            content.node = Some(membership.node.0);
            content.founder = membership.founding == Founding::Founder;
        }
        self.write()
    }

    fn asked(&self) -> Result<BTreeSet<String>, Fault> {
        Ok(self.content().asked.clone())
    }

    fn save_asked(&self, asked: &BTreeSet<String>) -> Result<(), Fault> {
        self.content().asked.clone_from(asked);
        self.write()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, name: &str) -> Result<IdentityFile, Fault> {
        IdentityFile::open(dir, &name.parse().expect("a name"), ClusterId([7; 16]), Incarnation([1; 16]))
    }

    #[test]
    fn a_node_comes_back_as_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = open(dir.path(), "a1").expect("fresh");
        let joined = Membership { node: NodeId(4), cluster: ClusterId([7; 16]), founding: Founding::Joined };
        file.save(&joined).expect("saved");
        let asked = BTreeSet::from(["b1:7400".to_owned()]);
        file.save_asked(&asked).expect("saved");
        file.remember_volume(Path::new("/v"), VolumeId([9; 16])).expect("saved");
        let again = open(dir.path(), "a1").expect("reopened");
        assert_eq!(again.load().expect("readable"), Some(joined));
        assert_eq!(again.volume_at(Path::new("/v")).expect("readable"), Some(VolumeId([9; 16])));
        assert_eq!(again.asked().expect("readable"), asked);
    }

    #[test]
    fn a_directory_of_another_node_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        open(dir.path(), "a1").expect("fresh");
        let error = open(dir.path(), "b1").err().expect("refused").to_string();
        assert!(error.contains("belongs to node a1"), "{error}");
    }

    #[test]
    fn a_store_without_identity_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("log")).expect("made");
        assert!(open(dir.path(), "a1").is_err());
    }

    const DIR: &str = "PACSVAULT_IDENTITY_TEST_DIR";
    const WRITES: usize = 3;

    /// Not a test of its own: what the dying processes run. Says after each write that it is done.
    #[test]
    fn child() {
        let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
        let file = open(&dir, "a1").expect("fresh");
        println!("written");
        let joined = Membership { node: NodeId(4), cluster: ClusterId([7; 16]), founding: Founding::Joined };
        file.save(&joined).expect("saved");
        println!("written");
        file.remember_volume(Path::new("/v"), VolumeId([9; 16])).expect("saved");
        println!("written");
    }

    /// The directory holds what the first `written` writes of [`child`] said, and nothing of later ones.
    fn holds(dir: &Path, written: usize, at: &str) {
        let other = Incarnation([2; 16]);
        let name = "a1".parse().expect("a name");
        let file = IdentityFile::open(dir, &name, ClusterId([7; 16]), other).expect("it opens");
        let expected = if written > 0 { Incarnation([1; 16]) } else { other };
        assert_eq!(file.incarnation().expect("readable"), expected, "{at}");
        assert_eq!(file.load().expect("readable").map(|found| found.node), (written > 1).then_some(NodeId(4)), "{at}");
        assert_eq!(file.volume_at(Path::new("/v")).expect("readable").is_some(), written > 2, "{at}");
        assert!(!dir.join("identity.toml.part").exists(), "{at}: the part is gone");
    }

    #[test]
    fn a_crash_at_every_point_leaves_the_old_identity_or_the_new_one() {
        let tags = crash::tags_in(include_str!("identity.rs"));
        let mut crossed = std::collections::BTreeSet::new();
        for tag in &tags {
            for passing in 1..=WRITES {
                let dir = tempfile::tempdir().expect("a directory");
                let mut command = std::process::Command::new(std::env::current_exe().expect("a test binary"));
                command.args(["identity::tests::child", "--exact", "--nocapture"]).env(DIR, dir.path());
                let at = format!("{tag}#{passing}");
                let told = crash::dies_at(&mut command, &at).expect("it dies there");
                let written = told.lines().filter(|line| line.ends_with("written")).count();
                assert_eq!(written, passing - 1, "{at}");
                // From the rename on the new content stands, though nobody was told.
                holds(dir.path(), written + usize::from(*tag == "node.3"), &at);
                crossed.insert(*tag);
            }
        }
        for tag in &crossed {
            println!("{}{tag}", crash::CROSSED);
        }
        assert_eq!(crossed, tags);
    }
}
