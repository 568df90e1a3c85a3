//! The shard store of one volume: append-only segment files, group commit, recovery after any crash.
//!
//! **Invariants.**
//! - A [`pacsvault_core::shard::DurableShard`] leaves this room only after a sync that covers the shard's bytes, its record
//!   and the name of the file they lie in has returned without error.
//! - After every crash, each shard so acknowledged and not deleted is found byte for byte; any other shard is found whole
//!   or not at all; a shard whose deletion was acknowledged stays deleted.
//! - Bytes are returned only after their chunk checksums have matched: damage reads as [`Error::Corrupt`], never as data.
//! - After any error of a write or a sync nothing is written any more ([`Error::Poisoned`]) until the volume is opened
//!   again; reads go on.
//! - No record is deleted without the log index that authorises it, and none comes back: not from a reused file, not from
//!   the torn tail of an earlier life.
//!
//! The index is kept in memory only and is rebuilt from the record headers at every open: what is on the disk is the log
//! and nothing but the log. An index checkpoint would shorten the open of large volumes; the format does not need to
//! change for it.
//!
//! Damage costs what it hits: a shard whose bytes rot reads as [`Error::Corrupt`], one whose record header rots is missing from
//! the index, a deletion whose record rots is undone. The first is found by scrubbing, the others by reconciling the inventory
//! with the catalog; none makes the volume refuse to open.
//!
//! Rooms: [`format`] (bytes), `walk` (following a segment's records), `recover` (open), [`store`] (what is held; reading and
//! proving), `index` (what is where, and what holds a segment back), `writer` (appending), `segment` (its files), `mend`
//! (what leads through them, looked at again), `compact` (getting space back), `note` (small durable files for those who use
//! the volume), [`worker`] (the async handle with group commit), [`file_disk`] (a directory as [`pacsvault_ports::disk::Disk`]).

mod compact;
mod crash;
mod error;
pub mod file_disk;
pub mod format;
mod index;
mod mend;
mod note;
mod recover;
mod segment;
pub mod store;
#[cfg(test)]
mod tests;
mod walk;
pub mod worker;
mod writer;

pub use compact::Compacted;
pub use error::Error;
pub use file_disk::FileDisk;
pub use format::Identity;
pub use note::NOTE_BYTES_MAX;
pub use recover::Recovery;
pub use store::{Done, Op, Options, Owner, Purpose, Store, Verified};
pub use worker::Volume;
