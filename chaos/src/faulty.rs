//! Ports that lie and a sweeper in a hurry, for planted bugs; ports that burn a machine's fuse.
//!
//! **Invariants.** Without a planted bug they change nothing but when the power goes, and judges hear what is written.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pacsvault_core::{
    catalog::query,
    shard::{DurableShard, ShardId, headers_of},
};
use pacsvault_ports::{
    BoxFuture,
    disk::{Disk, DiskFile, Space},
    kv::{Batch, Checkpoint, Durability, Install, Kv, KvError, Rows},
    peer::{Fault, Peer, PutShard, Reply, Request, Target},
};
use pacsvault_service::Node;
use pacsvault_simdisk::{FAILURE, OpKind, SimDisk};
use pacsvault_volume::Volume;

use crate::{
    chronicle::Chronicle,
    exec::{Life, PowerLost, Sim},
    machine::Fuse,
    scenario::PlantedBug,
};

/// Hears the parts of each write of a volume before they are written.
pub type Heard = Arc<dyn Fn(&[&[u8]]) + Send + Sync>;

/// What a failing volume leaves behind for whoever opens it next; nothing rests on it.
const MARKER: &str = "volume.poisoned";

/// Holds a volume to this: once a change of it has failed, nothing is changed any more in that life but that the marker is left.
/// After a failed sync the system has forgotten what was to be written: a later one that succeeds, of the same file opened
/// anew or of the names, says nothing of it.
#[derive(Default)]
struct Poison(Mutex<Option<Failed>>);

/// What failed, and whether the marker was left and its name synced.
struct Failed {
    what: String,
    marked: bool,
    synced: bool,
}

impl Poison {
    /// A change is about to be made: `kind` of `name`.
    fn before(&self, kind: OpKind, name: &str) {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Failed { what, marked, synced }) = failed.as_mut() else { return };
        let allowed = match kind {
            OpKind::Create => name == MARKER && !std::mem::replace(marked, true),
            OpKind::SyncNames => *marked && !std::mem::replace(synced, true),
            _ => false,
        };
        let what = what.clone();
        // A panic must not leave the lock behind.
        drop(failed);
        assert!(allowed, "{kind:?} of {name:?} after {what} had failed");
    }

    /// It was made, or not.
    fn after<T>(&self, kind: OpKind, name: &str, result: io::Result<T>) -> io::Result<T> {
        // A name that is taken, or not there, is an answer. Bytes and syncs that fail are not.
        let bytes = matches!(kind, OpKind::Write | OpKind::Sync | OpKind::SyncNames);
        let failed = result.as_ref().err().is_some_and(|error| bytes || error.to_string().contains(FAILURE));
        if failed {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.get_or_insert_with(|| Failed { what: format!("{kind:?} of {name:?}"), marked: false, synced: false });
        }
        result
    }
}

/// A disk whose death ends the life that uses it: a node without power sees no error, it sees nothing. And one that is not
/// changed any more once a change has failed.
pub struct MortalDisk {
    disk: SimDisk,
    heard: Heard,
    poison: Arc<Poison>,
}

struct MortalFile {
    disk: SimDisk,
    heard: Heard,
    poison: Arc<Poison>,
    name: String,
    file: Arc<dyn DiskFile>,
}

/// Passes `result` on, unless the power is gone.
fn alive<T>(disk: &SimDisk, result: io::Result<T>) -> io::Result<T> {
    if result.is_err() && disk.is_dead() {
        std::panic::resume_unwind(Box::new(PowerLost));
    }
    result
}

impl MortalDisk {
    /// `disk` in one life of its node; `heard` hears what is written.
    pub fn new(disk: SimDisk, heard: Heard) -> Self {
        Self { disk, heard, poison: Arc::default() }
    }

    fn file(&self, name: &str, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let (disk, heard, poison) = (self.disk.clone(), Arc::clone(&self.heard), Arc::clone(&self.poison));
        Arc::new(MortalFile { disk, heard, poison, name: name.to_owned(), file })
    }

    fn change<T>(&self, kind: OpKind, name: &str, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.poison.before(kind, name);
        self.poison.after(kind, name, alive(&self.disk, change()))
    }
}

impl DiskFile for MortalFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        alive(&self.disk, self.file.read_at(offset, buffer))
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.poison.before(OpKind::Write, &self.name);
        (self.heard)(parts);
        self.poison.after(OpKind::Write, &self.name, alive(&self.disk, self.file.write_at(offset, parts)))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.poison.before(OpKind::Sync, &self.name);
        self.poison.after(OpKind::Sync, &self.name, alive(&self.disk, self.file.sync_data()))
    }

    fn len(&self) -> io::Result<u64> {
        alive(&self.disk, self.file.len())
    }
}

impl Disk for MortalDisk {
    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let created = self.change(OpKind::Create, name, || self.disk.create(name, len_bytes));
        created.map(|file| self.file(name, file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        alive(&self.disk, self.disk.open(name)).map(|file| self.file(name, file))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        alive(&self.disk, self.disk.names())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(OpKind::Rename, from, || self.disk.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(OpKind::Remove, name, || self.disk.remove(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.change(OpKind::SyncNames, "", || self.disk.sync_names())
    }

    fn space(&self) -> io::Result<Space> {
        alive(&self.disk, self.disk.space())
    }
}

/// About what a disk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Files claim to be synced without being.
    Data,
    /// Names claim to be durable without being.
    Names,
}

/// A disk that claims to have synced what it has not.
pub struct LyingDisk<D> {
    /// The honest disk.
    pub inner: D,
    /// About what it lies.
    pub lie: Lie,
}

struct LyingFile(Arc<dyn DiskFile>);

impl DiskFile for LyingFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.0.write_at(offset, parts)
    }

    fn sync_data(&self) -> io::Result<()> {
        // PLANTED BUG: nothing is made durable.
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

impl<D> LyingDisk<D> {
    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        match self.lie {
            Lie::Data => Arc::new(LyingFile(file)),
            Lie::Names => file,
        }
    }
}

impl<D: Disk> Disk for LyingDisk<D> {
    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.inner.create(name, len_bytes)?;
        // The bug is in appending shards: a new file is made durable as it should.
        file.sync_data()?;
        Ok(self.file(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.inner.open(name).map(|file| self.file(file))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.inner.names()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)?;
        // Formatting is spared, so that volumes at least open.
        if to.starts_with("volume.") { self.inner.sync_names() } else { Ok(()) }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        match self.lie {
            Lie::Data => self.inner.sync_names(),
            // PLANTED BUG: nothing is made durable.
            Lie::Names => Ok(()),
        }
    }

    fn space(&self) -> io::Result<Space> {
        self.inner.space()
    }
}

/// A store that burns a fuse before each change, and when `lie` is set never syncs what it is asked to.
pub struct LyingKv {
    /// The honest store.
    pub inner: Arc<dyn Kv>,
    /// Of the machine.
    pub fuse: Arc<Fuse>,
    /// Whether to lie.
    pub lie: bool,
    /// Who hears what is written to a log.
    pub chronicle: Option<Arc<Chronicle>>,
}

impl Kv for LyingKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.inner.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, KvError> {
        self.inner.scan(from, to, limit)
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, KvError> {
        self.inner.last(from, to)
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<(), KvError> {
        self.fuse.burn();
        if let Some(chronicle) = &self.chronicle {
            chronicle.appended(&batch);
        }
        // PLANTED BUG, when `lie`: reported durable, merely written.
        self.inner.write(batch, if self.lie { Durability::Buffered } else { durability })
    }

    fn flush(&self) -> Result<(), KvError> {
        self.fuse.burn();
        if self.lie { Ok(()) } else { self.inner.flush() }
    }

    fn checkpoint(&self) -> Result<Arc<dyn Checkpoint>, KvError> {
        self.fuse.burn();
        self.inner.checkpoint()
    }

    fn begin_install(&self, id: &str) -> Result<Box<dyn Install>, KvError> {
        self.fuse.burn();
        self.inner.begin_install(id)
    }
}

/// What a node asks of others and of itself; lies about shards that repair writes.
pub struct LyingPeer {
    /// The honest one.
    pub inner: Arc<dyn Peer>,
    /// How it lies.
    pub bug: Option<PlantedBug>,
    /// The world.
    pub sim: Sim,
}

impl LyingPeer {
    /// Other bytes than the catalog's, which agree with each other.
    fn forge(&self, put: &mut PutShard) {
        let header = &put.header;
        let (id, code, stripe_bytes) = (header.id, header.code, header.stripe_bytes);
        let shards: Vec<Vec<u8>> =
            (0..code.total()).map(|_| self.sim.random(|rng| rng.bytes(put.data.len()))).collect();
        let (_, headers) = headers_of(id.instance, id.stripe, code, stripe_bytes, &shards);
        let forged = headers.into_iter().zip(shards).nth(usize::from(id.shard.0)).expect("a shard of the code");
        (put.header, put.data) = (forged.0, forged.1.into());
    }
}

impl Peer for LyingPeer {
    fn call(&self, target: &Target, request: Request, deadline: Duration) -> BoxFuture<'static, Result<Reply, Fault>> {
        match (self.bug, request) {
            (Some(PlantedBug::ReseatsUnwritten), Request::PutShard(put)) if put.repair => {
                // PLANTED BUG: nothing is written.
                let durable = DurableShard { id: put.header.id, volume: put.volume, digest: put.header.digest };
                Box::pin(std::future::ready(Ok(Reply::Durable(durable))))
            }
            (Some(PlantedBug::RepairIgnoresRoot), Request::PutShard(mut put)) if put.repair => {
                let durable = DurableShard { id: put.header.id, volume: put.volume, digest: put.header.digest };
                // PLANTED BUG: what was made is not what was lost.
                self.forge(&mut put);
                let call = self.inner.call(target, Request::PutShard(put), deadline);
                Box::pin(async move { call.await.map(|_| Reply::Durable(durable)) })
            }
            (_, request) => self.inner.call(target, request, deadline),
        }
    }
}

/// Deletes every copy that the catalog of this node does not name here, at once.
pub async fn hasty_sweeper(sim: Sim, life: Life, node: Arc<Node>, volumes: Vec<Arc<Volume>>) {
    loop {
        sim.sleep(life, Duration::from_millis(40)).await;
        let Some(replica) = node.replica() else { continue };
        for volume in &volumes {
            let Ok(shards) = volume.list(None, 10_000).await else { continue };
            let view = replica.view();
            let elsewhere = |id: &ShardId| {
                let sealed = query::by_instance(view.as_ref(), id.instance).ok().flatten();
                let stripe = sealed.as_ref().and_then(|sealed| sealed.seal.stripes.get(id.stripe.0 as usize));
                stripe.is_some_and(|stripe| stripe.placement.get(usize::from(id.shard.0)) != Some(&volume.id()))
            };
            let stale: Vec<ShardId> = shards.into_iter().filter(elsewhere).collect();
            if !stale.is_empty() {
                // PLANTED BUG: a mover may be about to name them.
                drop(volume.delete(stale, replica.status().applied).await);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(kind: OpKind) -> MortalDisk {
        let disk = SimDisk::new(pacsvault_simdisk::Options::default(), 1);
        drop(disk.create("seg-1", 4096).expect("room"));
        disk.fail(kind, 1, io::ErrorKind::Other);
        MortalDisk::new(disk, Arc::new(|_| {}))
    }

    fn again(second: impl FnOnce()) -> bool {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(second)).is_err()
    }

    #[test]
    fn a_second_try_after_a_failure_is_caught_whatever_handle_it_goes_through() {
        let disk = failing(OpKind::Sync);
        disk.open("seg-1").and_then(|file| file.sync_data()).expect_err("planned");
        assert!(again(|| drop(disk.open("seg-1").and_then(|file| file.sync_data()))));
        let disk = failing(OpKind::SyncNames);
        disk.sync_names().expect_err("planned");
        assert!(again(|| drop(disk.sync_names())));
        assert!(again(|| drop(disk.open("seg-1").and_then(|file| file.write_at(0, &[b"more"])))));
    }

    #[test]
    fn the_marker_may_be_left_once_and_reads_go_on() {
        let disk = failing(OpKind::Rename);
        disk.rename("seg-1", "seg-2").expect_err("planned");
        drop(disk.create(MARKER, 0).expect("room"));
        disk.sync_names().expect("nothing fails twice");
        disk.open("seg-1").and_then(|file| file.read_at(0, &mut [0; 4])).expect("it is there");
        assert!(again(|| drop(disk.create(MARKER, 0))) && again(|| drop(disk.sync_names())));
    }

    #[test]
    fn a_name_that_is_not_there_is_an_answer_and_no_failure() {
        let disk = failing(OpKind::Read);
        disk.remove("seg-7").expect_err("not there");
        disk.sync_names().expect("sound");
    }
}
