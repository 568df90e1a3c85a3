//! The store itself: reads, batches, flushes, and the swap of content.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use pacsvault_ports::{
    crash,
    kv::{Batch, Change, Checkpoint, Durability, Install, Kv, KvError, Row, Rows},
};
use rocksdb::{DBRawIterator, ReadOptions, WriteBatch, WriteOptions};

use crate::{
    checkpoint::RocksCheckpoint,
    directory::{Directory, Pointer, gone},
    failed,
    generation::{Expect, Generation, discard},
    install::RocksInstall,
};

/// How writes become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// Every batch goes to a journal first; a synced write waits for it. For the consensus log.
    Synced,
    /// No journal: batches become durable with the next flush, and a crash loses what came after it. For state that
    /// something else can replay.
    Off,
}

/// Settings of a store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// How writes become durable.
    pub journal: Journal,
    /// Memory for blocks read, in bytes; also holds indexes and filters. At least 8 MiB is sensible.
    pub block_cache_bytes: usize,
    /// Memory for changes before they are written as a table, in bytes; two such buffers may exist at once.
    pub write_buffer_bytes: usize,
}

impl Options {
    /// For the consensus log: journal, a small cache (entries are read once, soon after they are written).
    pub fn log() -> Self {
        Self { journal: Journal::Synced, block_cache_bytes: 16 << 20, write_buffer_bytes: 32 << 20 }
    }

    /// For the catalog's state: no journal, a cache for lookups.
    pub fn state() -> Self {
        Self { journal: Journal::Off, block_cache_bytes: 128 << 20, write_buffer_bytes: 64 << 20 }
    }

    /// With a cache of another size.
    #[must_use]
    pub fn with_block_cache_bytes(self, block_cache_bytes: usize) -> Self {
        Self { block_cache_bytes, ..self }
    }

    /// With a write buffer of another size.
    #[must_use]
    pub fn with_write_buffer_bytes(self, write_buffer_bytes: usize) -> Self {
        Self { write_buffer_bytes, ..self }
    }
}

/// A store over RocksDB. Clones are the same store; the directory is freed when the last clone, checkpoint and
/// install is gone.
#[derive(Clone)]
pub struct RocksKv {
    shared: Arc<Shared>,
}

/// What store and installs share.
pub(crate) struct Shared {
    // Declared before the directory, so that RocksDB is closed before the lock is released.
    present: RwLock<Arc<Generation>>,
    options: Options,
    checkpoints: AtomicU64,
    swap: Mutex<()>,
    failure: OnceLock<KvError>,
    directory: Directory,
}

impl RocksKv {
    /// Opens the store in `dir`, or makes a new one if the directory is new.
    ///
    /// # Errors
    /// When the directory is in use, damaged, or of a later version of RocksDB. A store that lost its content is an
    /// error, never an empty store.
    pub fn open(dir: &Path, options: Options) -> Result<Self, KvError> {
        let directory = Directory::open(dir)?;
        let generation = match directory.pointer()? {
            Pointer::At(number) => {
                directory.tidy(number)?;
                Generation::open(directory.generation(number), number, &options, Expect::Existing)?
            }
            Pointer::Absent => create(&directory, 1, &options)?,
            Pointer::Creating(number) => {
                discard(&directory.generation(number))?;
                create(&directory, number, &options)?
            }
        };
        Ok(Self::of(directory, generation, options))
    }

    /// Opens the store that is known to be in `dir`: for a caller that has relied on it before.
    ///
    /// # Errors
    /// As [`RocksKv::open`], and when there is no finished store: nothing is made in its place, not even a directory.
    pub fn reopen(dir: &Path, options: Options) -> Result<Self, KvError> {
        let directory = Directory::reopen(dir)?;
        match directory.pointer()? {
            Pointer::At(number) => {
                directory.tidy(number)?;
                let generation = Generation::open(directory.generation(number), number, &options, Expect::Existing)?;
                Ok(Self::of(directory, generation, options))
            }
            Pointer::Absent | Pointer::Creating(_) => Err(gone(dir)),
        }
    }

    fn of(directory: Directory, generation: Generation, options: Options) -> Self {
        let shared = Shared {
            present: RwLock::new(Arc::new(generation)),
            options,
            checkpoints: AtomicU64::new(0),
            swap: Mutex::new(()),
            failure: OnceLock::new(),
            directory,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Bytes of memory and disk in use, by RocksDB's own count: `(memtables, tables)`. For metrics.
    pub fn usage_bytes(&self) -> (u64, u64) {
        let generation = self.shared.present();
        let property = |name: &str| generation.db().property_int_value(name).ok().flatten().unwrap_or(0);
        (property("rocksdb.cur-size-all-mem-tables"), property("rocksdb.total-sst-files-size"))
    }
}

fn create(directory: &Directory, number: u64, options: &Options) -> Result<Generation, KvError> {
    // CRASH(kv.9): the pointer says that the store is being made, so that a half-made one is made again, while a store
    // that vanished later is an error.
    crash::point("kv.9");
    directory.point_at(Pointer::Creating(number))?;
    let generation = Generation::open(directory.generation(number), number, options, Expect::New)?;
    // CRASH(kv.10): before the pointer moves, the empty store is made again at the next open.
    crash::point("kv.10");
    directory.point_at(Pointer::At(number))?;
    Ok(generation)
}

impl Shared {
    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The generation that holds the content now. It stays readable for its users when it is replaced.
    fn present(&self) -> Arc<Generation> {
        Arc::clone(&self.present.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a step that changes content or durability, on a generation that is not replaced meanwhile. Its first
    /// failure ends the store for this process: what is durable is then known only after recovery.
    fn change<T>(&self, step: impl FnOnce(&Generation) -> Result<T, KvError>) -> Result<T, KvError> {
        if let Some(error) = self.failure.get() {
            return Err(error.clone());
        }
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
        step(&present).inspect_err(|error| self.end(error))
    }

    /// Ends the store for this process; a later failure than the first changes nothing.
    fn end(&self, error: &KvError) {
        let _ = self.failure.set(error.clone());
    }

    /// [`Shared::present`], unless the store has ended.
    fn readable(&self) -> Result<Arc<Generation>, KvError> {
        match self.failure.get() {
            Some(error) => Err(error.clone()),
            None => Ok(self.present()),
        }
    }

    /// Makes the verified files in `incoming` the content.
    pub(crate) fn replace(&self, incoming: &Path) -> Result<(), KvError> {
        let _swap: MutexGuard<'_, ()> = self.swap.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = self.failure.get() {
            return Err(error.clone());
        }
        let number = self.present().number() + 1;
        let path = self.directory.adopt(incoming, number).map_err(failed("installing a checkpoint"))?;
        // Opened before it is pointed at: files that RocksDB refuses leave the old content in place.
        let next = Generation::open(path, number, &self.options, Expect::Existing)?;
        let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
        // CRASH(kv.11): the pointer decides between old and new content. No writer is between: they hold the lock shared.
        // When that fails it is unknown whether it moved, so nothing may be written to either side.
        crash::point("kv.11");
        self.directory.point_at(Pointer::At(number)).inspect_err(|error| self.end(error))?;
        present.retire();
        *present = Arc::new(next);
        Ok(())
    }
}

impl Kv for RocksKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.shared.readable()?.db().get(key).map_err(failed("reading"))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, KvError> {
        let mut rows = Rows::new();
        if from >= to || limit == 0 {
            return Ok(rows);
        }
        let generation = self.shared.readable()?;
        let mut cursor = generation.db().raw_iterator_opt(between(from, to));
        cursor.seek(from);
        while let Some(row) = row(&cursor)? {
            rows.push(row);
            if rows.len() == limit {
                break;
            }
            cursor.next();
        }
        Ok(rows)
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, KvError> {
        if from >= to {
            return Ok(None);
        }
        let generation = self.shared.readable()?;
        let mut cursor = generation.db().raw_iterator_opt(between(from, to));
        cursor.seek_to_last();
        row(&cursor)
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<(), KvError> {
        let journal = self.shared.options.journal;
        self.shared.change(|present| {
            let batch = translate(batch);
            // An empty batch with a sync still promises everything before it, which RocksDB does not.
            let empty = batch.is_empty();
            let mut how = WriteOptions::default();
            how.disable_wal(journal == Journal::Off);
            how.set_sync(journal == Journal::Synced && durability == Durability::Synced && !empty);
            // CRASH(kv.12): whole or not at all by RocksDB's record checksums, and after everything before it (see the
            // room's first invariant). Without a journal it lives in memory until the next flush.
            if !empty {
                crash::point("kv.12");
                present.db().write_opt(batch, &how).map_err(failed("writing"))?;
            }
            match (durability, journal) {
                (Durability::Buffered, _) => Ok(()),
                (Durability::Synced, Journal::Synced) if !empty => Ok(()),
                (Durability::Synced, _) => flush(present, journal),
            }
        })
    }

    fn flush(&self) -> Result<(), KvError> {
        self.shared.change(|present| flush(present, self.shared.options.journal))
    }

    fn checkpoint(&self) -> Result<Arc<dyn Checkpoint>, KvError> {
        let number = self.shared.checkpoints.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.directory.checkpoint(number);
        let present = self.shared.readable()?;
        // The checkpoint flushes by itself; said here because without a journal its completeness depends on it.
        let flushed = present.db().flush().map_err(failed("making a checkpoint"));
        let made = flushed.and_then(|()| RocksCheckpoint::make(Arc::clone(&self.shared), present.db(), path));
        Ok(Arc::new(made.inspect_err(|error| self.shared.end(error))?))
    }

    fn begin_install(&self, id: &str) -> Result<Box<dyn Install>, KvError> {
        Ok(Box::new(RocksInstall::begin(Arc::clone(&self.shared), id)?))
    }
}

fn flush(present: &Generation, journal: Journal) -> Result<(), KvError> {
    // CRASH(kv.13): with a journal, all of it is synced; without, the memtables become tables, synced, then part of
    // the synced manifest. Cut short, a prefix of them is.
    crash::point("kv.13");
    let flushed = match journal {
        Journal::Synced => present.db().flush_wal(true),
        Journal::Off => present.db().flush(),
    };
    flushed.map_err(failed("flushing"))
}

fn translate(batch: Batch) -> WriteBatch {
    let mut translated = WriteBatch::default();
    for change in batch.changes {
        match change {
            Change::Put(key, value) => translated.put(key, value),
            Change::Delete(key) => translated.delete(key),
            // RocksDB refuses a range that ends before it begins; to the port it is an empty one.
            Change::DeleteRange(from, to) if from < to => translated.delete_range(from, to),
            Change::DeleteRange(..) => {}
        }
    }
    translated
}

fn between(from: &[u8], to: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(from);
    options.set_iterate_upper_bound(to);
    options
}

/// The row under the cursor; `None` at the end, unless it is there because of an error.
fn row(cursor: &DBRawIterator<'_>) -> Result<Option<Row>, KvError> {
    match cursor.item() {
        Some((key, value)) => Ok(Some((key.to_vec(), value.to_vec()))),
        None => cursor.status().map(|()| None).map_err(failed("scanning")),
    }
}
