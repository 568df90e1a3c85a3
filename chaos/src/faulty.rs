//! Ports that lie, for planted bugs, and that burn a machine's fuse.
//!
//! **Invariants.** Without a planted bug they change nothing but when the power goes.

use std::{io, sync::Arc};

use pacsvault_ports::{
    disk::{Disk, DiskFile, Space},
    kv::{Batch, Checkpoint, Durability, Install, Kv, KvError, Rows},
};

use crate::cluster::Fuse;

/// A disk whose files claim to be synced without being.
pub struct LyingDisk<D>(pub D);

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

impl<D: Disk> Disk for LyingDisk<D> {
    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.0.create(name, len_bytes)?;
        // The bug is in appending shards: a new file is made durable as it should.
        file.sync_data()?;
        Ok(Arc::new(LyingFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.0.open(name).map(|file| Arc::new(LyingFile(file)) as Arc<dyn DiskFile>)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.0.names()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.0.sync_names()
    }

    fn space(&self) -> io::Result<Space> {
        self.0.space()
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
