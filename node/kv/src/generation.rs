//! One RocksDB instance and the settings it is opened with.
//!
//! **Invariants.** A generation that was retired removes its directory when its last user is gone, not before.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use pacsvault_ports::kv::KvError;
use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode};

use crate::{
    directory::remove_dir,
    failed,
    store::{Journal, Options},
};

/// What to expect in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Nothing: make a new store.
    New,
    /// A store: its absence is an error, never an empty store.
    Existing,
}

/// An open RocksDB.
pub(crate) struct Generation {
    /// `None` only within drop.
    db: Option<DB>,
    path: PathBuf,
    number: u64,
    retired: AtomicBool,
}

impl Generation {
    pub(crate) fn open(path: PathBuf, number: u64, options: &Options, expect: Expect) -> Result<Self, KvError> {
        let mut settings = settings(options);
        settings.create_if_missing(expect == Expect::New);
        settings.set_error_if_exists(expect == Expect::New);
        let db = DB::open(&settings, &path).map_err(failed("opening RocksDB"))?;
        Ok(Self { db: Some(db), path, number, retired: AtomicBool::new(false) })
    }

    pub(crate) fn db(&self) -> &DB {
        self.db.as_ref().expect("taken only in drop")
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Lets the directory go with the last user. Call only after another generation is durably pointed at.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.db = None;
        if self.retired.load(Ordering::Acquire)
            && let Err(reason) = remove_dir(&self.path)
        {
            // The next open removes it.
            tracing::warn!(path = %self.path.display(), %reason, "a replaced store could not be removed");
        }
    }
}

/// Removes a half-made store.
pub(crate) fn discard(path: &Path) -> Result<(), KvError> {
    remove_dir(path).map_err(failed("removing a half-made store"))
}

fn settings(options: &Options) -> rocksdb::Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(options.block_cache_bytes));
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut settings = rocksdb::Options::default();
    settings.set_block_based_table_factory(&table);
    settings.set_compression_type(DBCompressionType::Lz4);
    settings.set_write_buffer_size(options.write_buffer_bytes);
    settings.set_paranoid_checks(true);
    // One at a time and in order, as the first invariant of this room needs it.
    settings.set_unordered_write(false);
    settings.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    if options.journal == Journal::Synced {
        // A journal file is freed when its memtable is flushed; this bounds the journal of a store written slowly.
        settings.set_max_total_wal_size(4 * options.write_buffer_bytes as u64);
    }
    settings.set_max_background_jobs(2);
    // Smooths writeback of tables, so that a synced write does not queue behind a burst.
    settings.set_bytes_per_sync(1 << 20);
    settings.set_keep_log_file_num(2);
    settings.set_max_log_file_size(1 << 20);
    settings.set_stats_dump_period_sec(0);
    settings
}
