//! Ports that lie, for planted bugs, and that burn a machine's fuse.
//!
//! **Invariants.** Without a planted bug they change nothing but when the power goes.

use std::{io, sync::Arc};

use pacsvault_ports::{
    disk::{Disk, DiskFile, Space},
    kv::{Batch, Checkpoint, Durability, Install, Kv, KvError, Rows},
};

use pacsvault_simdisk::SimDisk;

use crate::{cluster::Fuse, exec::PowerLost};

/// A disk whose death ends the life that uses it: a node without power sees no error, it sees nothing.
pub struct MortalDisk(pub SimDisk);

struct MortalFile {
    disk: SimDisk,
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
    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(MortalFile { disk: self.0.clone(), file })
    }
}

impl DiskFile for MortalFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        alive(&self.disk, self.file.read_at(offset, buffer))
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        alive(&self.disk, self.file.write_at(offset, parts))
    }

    fn sync_data(&self) -> io::Result<()> {
        alive(&self.disk, self.file.sync_data())
    }

    fn len(&self) -> io::Result<u64> {
        alive(&self.disk, self.file.len())
    }
}

impl Disk for MortalDisk {
    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        alive(&self.0, self.0.create(name, len_bytes)).map(|file| self.file(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        alive(&self.0, self.0.open(name)).map(|file| self.file(file))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        alive(&self.0, self.0.names())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        alive(&self.0, self.0.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        alive(&self.0, self.0.remove(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        alive(&self.0, self.0.sync_names())
    }

    fn space(&self) -> io::Result<Space> {
        alive(&self.0, self.0.space())
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
