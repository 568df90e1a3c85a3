//! The kv port over RocksDB; the only room that names it.
//!
//! Two kinds of store ([`Journal`]): the consensus log, whose synced writes go through RocksDB's journal, and the
//! catalog's state, which needs none because the consensus log replays what the last flush missed.
//!
//! **Invariants.**
//! - Batches become durable in the order written. There is one column family, so one sequence of memtables. With a
//!   journal, every byte of it is written in order, a synced write syncs all of it, and recovery stops at the
//!   first damage (`PointInTime`): a prefix. Without, only whole memtables become durable, and RocksDB makes them part
//!   of the manifest oldest first: a prefix again.
//! - `CURRENT` names the one generation that holds the content. It is replaced by rename, so an install that was cut
//!   short at any point leaves the old content or the new, never a mixture.
//! - A directory is open once at a time (`LOCK`).
//! - After a failed write, sync or flush this process gets nothing but errors from the store.
//!
//! Directory: `LOCK`, `CURRENT` (`gen-00000001\n`, or `creating gen-00000001\n` while the first is made), `gen-*/`
//! (RocksDB), `checkpoints/<n>/` (hard links, gone with the process), `incoming/<digest of id>/` (an install so far).

mod checkpoint;
mod directory;
mod generation;
mod install;
mod store;

pub use store::{Journal, Options, RocksKv};

use pacsvault_ports::kv::KvError;

/// Turns any library's error into the port's.
fn failed<E: std::fmt::Display>(step: &'static str) -> impl Fn(E) -> KvError {
    move |error| KvError { step, message: error.to_string() }
}

fn error(step: &'static str, message: impl Into<String>) -> KvError {
    KvError { step, message: message.into() }
}
