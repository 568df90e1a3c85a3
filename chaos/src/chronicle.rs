//! What the logs of all replicas say, and whether it allows a volume to delete what it deletes.
//!
//! Entries are read as replicas append them, tombstones as volumes write them: none is missed because its log was purged, or its
//! segment reused, before somebody looked.
//!
//! **Invariants.** Nothing is asked of the code under test but the formats of what it writes, and the catalog for what became of
//! an instance. An index may have had several entries, of leaders that were deposed: any of them may be the one that counts, so
//! that nothing is condemned wrongly.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use pacsvault_consensus::log_store::commands_of;
use pacsvault_core::{
    catalog::{Command, SealedInstance, wire::decode_entry},
    ids::{InstanceId, LogIndex, ObjectKey, StripeIndex, Term, VersionNumber, VolumeId, WallMillis},
    layout::VolumeState,
    limits::WRITE_WINDOW_MILLIS,
    shard::ShardId,
};
use pacsvault_ports::kv::{Batch, Change};
use pacsvault_volume::format::{Body, RECORD_MAGIC, Record, Tombstone};

/// What an entry may allow to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Allows {
    /// Versions of a key.
    Delete(ObjectKey, Option<VersionNumber>),
    /// A former encoding; and copies of the one that takes its place, as [`Allows::Seal`].
    Replace(InstanceId, InstanceId),
    /// Copies of a sealed instance that lie elsewhere than its record says.
    Seal(InstanceId),
    /// Copies of a stripe that lie elsewhere than it was reseated to.
    Reseat(InstanceId, StripeIndex),
}

#[derive(Default)]
struct Known {
    /// By index and term.
    entries: BTreeMap<(LogIndex, Term), Vec<Allows>>,
    /// The latest time that an entry at each index has.
    times: BTreeMap<LogIndex, WallMillis>,
    replaced: BTreeSet<InstanceId>,
    /// The last index at which somebody gave a volume up.
    fenced: BTreeMap<VolumeId, LogIndex>,
    /// Deletions that were allowed: compaction writes them again.
    allowed: BTreeSet<(ShardId, LogIndex)>,
    /// What was written of each shard on each volume.
    records: BTreeMap<(VolumeId, ShardId), Records>,
}

/// Records of one shard on one volume.
#[derive(Default)]
struct Records {
    written: usize,
    /// Those that gave way, by segment and offset.
    buried: BTreeSet<(u64, u64)>,
    /// An entry was named that lets the shard go.
    gone: bool,
}

/// All logs of one run.
#[derive(Default)]
pub struct Chronicle(Mutex<Known>);

fn allows(command: Command) -> Option<Allows> {
    match command {
        Command::Delete { key, version } => Some(Allows::Delete(key, version)),
        Command::Replace(replace) => Some(Allows::Replace(replace.replaces, replace.seal.instance)),
        Command::Seal(seal) => Some(Allows::Seal(seal.instance)),
        Command::Reseat(reseat) => Some(Allows::Reseat(reseat.instance, reseat.stripe)),
        _ => None,
    }
}

impl Chronicle {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A replica writes this to its log.
    pub fn appended(&self, batch: &Batch) {
        for change in &batch.changes {
            let Change::Put(key, value) = change else { continue };
            let Some((term, index, commands)) = commands_of(key, value) else { continue };
            self.entry(term, index, commands.as_deref());
        }
    }

    fn entry(&self, term: Term, index: LogIndex, commands: Option<&[u8]>) {
        let mut known = self.known();
        if known.entries.contains_key(&(index, term)) {
            return;
        }
        let entry = commands.and_then(|bytes| decode_entry(bytes).ok());
        if let Some(entry) = &entry {
            let time = known.times.entry(index).or_insert(entry.time);
            *time = entry.time.max(*time);
        }
        let given_up = |command: &Command| match command {
            Command::SetVolumeState { volume, state: VolumeState::Fenced } => Some(*volume),
            _ => None,
        };
        for volume in entry.iter().flat_map(|entry| &entry.commands).filter_map(given_up) {
            let last = known.fenced.entry(volume).or_insert(index);
            *last = index.max(*last);
        }
        let list: Vec<Allows> = entry.into_iter().flat_map(|entry| entry.commands).filter_map(allows).collect();
        let replaced = list.iter().filter_map(|one| if let Allows::Replace(old, _) = one { Some(*old) } else { None });
        known.replaced.extend(replaced.collect::<Vec<_>>());
        known.entries.insert((index, term), list);
    }

    /// By which index a volume that is fenced was, if an entry that names it made it so.
    pub fn fenced_by(&self, volume: VolumeId) -> Option<LogIndex> {
        self.known().fenced.get(&volume).copied()
    }

    /// Whether some entry, perhaps not of the log that counts, puts another encoding in the place of this one.
    pub fn replaces(&self, instance: InstanceId) -> bool {
        self.known().replaced.contains(&instance)
    }

    /// Holds what a volume is about to write to the logs: every shard that it deletes must be one that the entry at the index
    /// given with the deletion allows to. Without such an entry (index 0) only a record may go that another one of the same
    /// shard on that volume stands for, written before it, and not with it. `sealed` answers what the catalog knows of an
    /// instance; where it cannot be asked, nothing is judged. Answers how many were.
    ///
    /// # Errors
    /// The first deletion that nothing allows.
    pub fn deletes(
        &self,
        volume: VolumeId,
        parts: &[&[u8]],
        sealed: impl Fn(InstanceId) -> Option<Option<SealedInstance>>,
    ) -> Result<u64, String> {
        let mut held = 0;
        for (authority, shard) in self.note(volume, parts)? {
            if self.known().allowed.contains(&(shard, authority)) {
                continue;
            }
            let Some(sealed) = sealed(shard.instance) else { continue };
            self.check(shard, authority, sealed.as_ref())?;
            self.known().allowed.insert((shard, authority));
            held += 1;
        }
        Ok(held)
    }

    /// Counts the records that a volume is about to write; answers the deletions that name an entry.
    fn note(&self, volume: VolumeId, parts: &[&[u8]]) -> Result<Vec<(LogIndex, ShardId)>, String> {
        let mut known = self.known();
        let (stored, deleted) = records(parts);
        let mut named = Vec::new();
        for (authority, Tombstone { id, sequence, offset }) in deleted {
            let records = known.records.entry((volume, id)).or_default();
            records.buried.insert((sequence, offset));
            if authority != LogIndex(0) {
                records.gone = true;
                named.push((authority, id));
            } else if !records.gone && records.written <= records.buried.len() {
                return Err(format!(
                    "shard {id} is deleted by authority of no entry, and no other record stands for it"
                ));
            }
        }
        // Last: of one write a crash may leave the tombstone and not the record that is to stand for what it buries.
        for shard in stored {
            known.records.entry((volume, shard)).or_default().written += 1;
        }
        Ok(named)
    }

    /// Whether the entry at `authority` allows to delete this shard, whose instance the catalog knows as `sealed`.
    fn check(&self, shard: ShardId, authority: LogIndex, sealed: Option<&SealedInstance>) -> Result<(), String> {
        let known = self.known();
        let list = known.entries.range((authority, Term(0))..=(authority, Term(u64::MAX)));
        let allowed = |one: &Allows| match (one, sealed) {
            (Allows::Delete(key, version), Some(sealed)) => {
                let named = sealed.seal.key == *key && version.is_none_or(|only| only == sealed.version);
                named && sealed.deleted == Some(authority)
            }
            (Allows::Replace(old, _), Some(sealed)) if *old == shard.instance => sealed.deleted == Some(authority),
            (Allows::Seal(instance) | Allows::Replace(_, instance), Some(sealed)) => {
                *instance == shard.instance && sealed.index == authority
            }
            (Allows::Reseat(instance, stripe), Some(_)) => (*instance, *stripe) == (shard.instance, shard.stripe),
            (_, None) => false,
        };
        let mut some = false;
        for (_, entry) in list {
            some = true;
            if entry.iter().any(allowed) {
                return Ok(());
            }
        }
        let refused = |why: String| Err(format!("shard {shard} is deleted by authority of entry {authority}: {why}"));
        if !some {
            return refused("no log has that entry".to_owned());
        }
        if sealed.is_some() {
            return refused("it does not concern that shard, which was sealed".to_owned());
        }
        // Catalog time is the latest of all entries so far.
        let time = known.times.range(..=authority).map(|(_, time)| time.0).max().unwrap_or(0);
        let horizon = time.saturating_sub(WRITE_WINDOW_MILLIS);
        if shard.instance.time().0 >= horizon {
            return refused(format!("at {time} ms its attempt could still be sealed"));
        }
        Ok(())
    }
}

/// Shards that these parts of a write store, and what they delete on which authority.
fn records(parts: &[&[u8]]) -> (Vec<ShardId>, Vec<(LogIndex, Tombstone)>) {
    let (mut stored, mut deleted) = (Vec::new(), Vec::new());
    for (at, part) in parts.iter().enumerate() {
        if !part.starts_with(RECORD_MAGIC) {
            continue;
        }
        match Record::decode(part).map(|record| record.body) {
            Ok(Body::Shard(header)) => stored.push(header.id),
            Ok(Body::Tombstones { authority }) => {
                // The payload follows its header as a part of its own.
                let payload = parts.get(at + 1).copied().unwrap_or_default();
                deleted.extend(Tombstone::decode_all(payload).map(|tombstone| (authority, tombstone)));
            }
            Ok(_) | Err(_) => {}
        }
    }
    (stored, deleted)
}

#[cfg(test)]
mod tests;
