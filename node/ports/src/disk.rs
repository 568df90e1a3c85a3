//! One data directory on one disk, as the shard store sees it: flat, named files with explicit durability.
//!
//! **Invariants** that every implementation keeps and every user may rely on:
//! - Bytes written are durable only after a later [`DiskFile::sync_data`] of that file returned `Ok`.
//! - A created, renamed or removed name is durable only after a later [`Disk::sync_names`] returned `Ok`.
//! - After any error of a write or sync the state of that file is unknown; the caller must not retry but stop
//!   using the disk.

use std::{io, sync::Arc};

/// A file of the directory. All methods block.
pub trait DiskFile: Send + Sync {
    /// Fills `buffer` from `offset`. `UnexpectedEof` when the file is shorter.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// As [`DiskFile::read_at`], from the device itself as far as the system allows, and leaving no copy in its caches: for
    /// proving what lies there. What was written and synced is seen.
    fn read_at_uncached(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, buffer)
    }
    /// Writes `parts`, one after another, from `offset`. Not durable yet.
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;
    /// Makes everything written to this file durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// Bytes in the file.
    fn len(&self) -> io::Result<u64>;
    /// True for a file of no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
}

/// Free and total bytes of the disk under the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All bytes.
    pub total_bytes: u64,
    /// Bytes that an unprivileged process may still allocate.
    pub free_bytes: u64,
}

/// The directory. Names are plain file names without '/'. All methods block.
pub trait Disk: Send + Sync {
    /// Creates `name` with `len_bytes` allocated (reads as zeros); fails if it exists or there is no room. The name and
    /// length are durable only after [`DiskFile::sync_data`] and [`Disk::sync_names`].
    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens `name` for reading and writing. `NotFound` if absent.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// All file names, sorted.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Renames, replacing `to`. Atomic; durable after [`Disk::sync_names`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Unlinks. Durable after [`Disk::sync_names`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all creations, renames and removals durable (fsync of the directory).
    fn sync_names(&self) -> io::Result<()>;
    /// Room on the disk.
    fn space(&self) -> io::Result<Space>;
}
