//! A disk that can be made slow and whose next sync can be made to fail.
//!
//! **Invariants.** A delay comes before the operation, and never holds back `names`, `len`, `space`: they tell of the disk, they
//! do not use it. A sync that is to fail does not reach the disk, and everything else does, once.

use std::{io, sync::Arc};

use pacsvault_ports::disk::{Disk, DiskFile, Space};

use super::Faults;

/// The disk.
pub(super) struct FaultyDisk {
    faults: Arc<Faults>,
    inner: Arc<dyn Disk>,
}

struct FaultyFile {
    faults: Arc<Faults>,
    inner: Arc<dyn DiskFile>,
}

impl FaultyDisk {
    pub(super) fn new(faults: Arc<Faults>, inner: Arc<dyn Disk>) -> Self {
        Self { faults, inner }
    }

    fn file(&self, inner: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile { faults: self.faults.clone(), inner })
    }
}

impl Disk for FaultyDisk {
    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.faults.delay();
        Ok(self.file(self.inner.create(name, len_bytes)?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.faults.delay();
        Ok(self.file(self.inner.open(name)?))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.inner.names()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.faults.delay();
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.faults.delay();
        self.inner.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.faults.delay();
        self.faults.sync()?;
        self.inner.sync_names()
    }

    fn space(&self) -> io::Result<Space> {
        self.inner.space()
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.faults.delay();
        self.inner.read_at(offset, buffer)
    }

    fn read_at_uncached(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.faults.delay();
        self.inner.read_at_uncached(offset, buffer)
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.faults.delay();
        self.inner.write_at(offset, parts)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.faults.delay();
        self.faults.sync()?;
        self.inner.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
}
