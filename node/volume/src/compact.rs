//! Compaction: empties a segment that is mostly dead into the active one, so that its file is free.
//!
//! Step by step it copies the live records, then restates the tombstones that the segment itself holds against others. What is
//! left is a segment that nothing needs, and the common machinery frees it. If it must stay, for a record in it is damaged or it
//! was not finished before the process ended, tombstones against the originals follow.
//!
//! **Invariants.**
//! - *A shard is never lost.* An original counts until its copy is durable: nothing is written against it before the sync of the
//!   copy returned. A tombstone may not even be in the same batch: of a batch that a crash tears, recovery keeps every whole
//!   record by itself, so the tombstone could survive the copy.
//! - *A superseded record never comes back.* From its sync on the copy itself is the original's witness, as the later record of
//!   the same shard. Its segment's `targets` counts the original's, so it is not reused before the original's file has durably
//!   lost its name; nor is, by the same rule, the segment that holds a tombstone against the copy before the one that holds the
//!   copy. So at each moment all that is on the disk of a shard, read in the order of the log, ends with what was decided last.
//!   A tombstone that names the original, once durable, takes over from the copy as witness.
//! - *A tombstone is restated before it goes.* The first one's segment is free only when each of its witnesses was restated
//!   durably, or has nothing left to stand against. `targets` counts them: one that rot hides is never counted off, and holds
//!   its segment until the other is gone.
//! - *A damaged record is neither copied nor dropped.* Each is proven by checksums and digest on the way; where one fails, the
//!   segment stays, and the shard is reported, until it is written anew or deleted.
//! - *A deletion or replacement beside a copy holds.* A copy is planned when everything written before it is decided, and only
//!   of a shard that lies where it was read; a deletion waits for copies in flight.
//! - *It ends.* What it writes for a segment is less than the segment: a step's one batch is padded by one sector at most to 64
//!   KiB at least, and the rest of a segment that is left is shorter than a record. Segments more than half in use are emptied
//!   only when room is short, if they give a quarter, and hold no record longer than an eighth; what it fills gives less.
//!
//! Room: the reserves of clients and repair keep a whole segment free for it, and it leaves a part of that to deletions.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
};

use pacsvault_core::{ids::LogIndex, shard::ShardId};
use pacsvault_ports::disk::DiskFile;

use crate::{
    error::Error,
    format::{Body, Tombstone},
    index::{Fit, Place},
    store::{Done, Store},
    walk::{Walk, payload_of},
    writer::{TOMBSTONES_MAX, Work},
};

/// Least and most bytes of a step, whatever is asked.
const STEP_BYTES_MIN: u64 = 64 << 10;
const STEP_BYTES_MAX: u64 = 64 << 20;
/// Index entries looked through under one lock: about a millisecond.
const LOOK_ENTRIES: usize = 1 << 14;
/// Records whose headers are read for their tombstones in one step.
const WALK_RECORDS: usize = 1 << 13;

/// What a step of compaction did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compacted {
    /// Shards that lie elsewhere now.
    pub moved_shards: u64,
    /// Bytes of their records.
    pub moved_bytes: u64,
    /// Segments that became spares or were given back to the file system.
    pub freed_segments: u64,
    /// Shards that were to be moved and are damaged. They were left; report them for repair.
    pub damaged: Vec<ShardId>,
    /// Another step has something to do.
    pub more: bool,
}

/// The segment that is being emptied.
pub(crate) struct Victim {
    sequence: u64,
    file: Arc<dyn DiskFile>,
    len: u64,
    /// Live records still to be copied, in order of offset.
    pending: VecDeque<(ShardId, Place)>,
    restating: Option<Restating>,
}

/// Tombstones on their way out of a segment.
struct Restating {
    walk: Walk,
    /// The walk has seen all.
    walked: bool,
    /// Found and not yet restated.
    found: VecDeque<(LogIndex, Vec<Tombstone>)>,
}

impl Store {
    /// Does a bounded piece of compaction: copies about `bytes_max` bytes (64 KiB to 64 MiB) of live records out of the segment
    /// that is being emptied, or chooses one. Frees segments as soon as nothing needs them.
    ///
    /// Clients wait for the writer meanwhile as they do for each other: 4 MiB cost them some 10 ms on a fast disk. Call it again
    /// while it says `more`.
    /// # Errors
    /// [`Error::Full`] when there is no room even for this: retry when something was deleted; [`Error::Write`],
    /// [`Error::Poisoned`].
    pub fn compact_step(&self, bytes_max: u64) -> Result<Compacted, Error> {
        let mut under_way = self.compaction.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_poison()?;
        let mut done = Compacted { freed_segments: self.reclaim()?, ..Compacted::default() };
        if under_way.is_none() {
            // What an earlier life has left.
            self.pay()?;
            *under_way = self.choose()?;
        }
        let Some(mut victim) = under_way.take() else { return Ok(done) };
        // Without room for the copies another victim may fit; nothing was begun yet that must be remembered.
        self.copy_some(&mut victim, bytes_max.clamp(STEP_BYTES_MIN, STEP_BYTES_MAX), &mut done)?;
        if victim.pending.is_empty() {
            // Often that was all.
            done.freed_segments += self.reclaim()?;
            match self.restate_some(&mut victim) {
                Ok(false) => *under_way = Some(victim),
                Ok(true) => {
                    done.freed_segments += self.reclaim()?;
                    self.leave(victim.sequence);
                    self.pay()?;
                }
                Err(error) => {
                    *under_way = Some(victim);
                    return Err(error);
                }
            }
        } else {
            *under_way = Some(victim);
        }
        done.more = under_way.is_some() || self.find_victim()?.is_some();
        Ok(done)
    }

    /// The segment to empty next, and whether it is one only because room is short.
    fn find_victim(&self) -> Result<Option<(u64, Fit)>, Error> {
        let writer = self.lock_writer()?;
        let active = writer.active.as_ref().map_or(u64::MAX, |active| active.sequence);
        let short = self.is_short(self.measure_room(&writer)?);
        Ok(self.read_table().victim(active, short))
    }

    fn choose(&self) -> Result<Option<Victim>, Error> {
        while let Some((sequence, fit)) = self.find_victim()? {
            let mut pending = self.places_in(sequence);
            let longest = pending.iter().map(|(_, place)| place.span_bytes()).max().unwrap_or(0);
            let Some((file, len)) = self.file_of(sequence) else { continue };
            if fit == Fit::RoomIsShort && longest > len / 8 {
                self.leave(sequence);
                continue;
            }
            pending.sort_unstable_by_key(|(_, place)| place.offset());
            return Ok(Some(Victim { sequence, file, len, pending: pending.into(), restating: None }));
        }
        Ok(None)
    }

    fn file_of(&self, sequence: u64) -> Option<(Arc<dyn DiskFile>, u64)> {
        self.read_table().segments.get(&sequence).map(|segment| (segment.file.clone(), segment.len))
    }

    /// Shards in a sealed segment. Nothing is ever added to one: what leaves it meanwhile is noticed when its turn comes.
    fn places_in(&self, sequence: u64) -> Vec<(ShardId, Place)> {
        let (mut places, mut after) = (Vec::new(), None);
        loop {
            let (found, next) = self.read_table().places_in(sequence, after, LOOK_ENTRIES);
            places.extend(found);
            after = next;
            if after.is_none() {
                return places;
            }
        }
    }

    /// Copies live records of `bytes_max` bytes together, or one that is larger.
    fn copy_some(&self, victim: &mut Victim, bytes_max: u64, done: &mut Compacted) -> Result<(), Error> {
        let (mut work, mut spans, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(&(id, place)) = victim.pending.front() {
            if bytes > 0 && bytes + place.span_bytes() > bytes_max {
                break;
            }
            victim.pending.pop_front();
            let moved_away = || self.read_table().find(id) != Some(place);
            if moved_away() {
                continue;
            }
            match self.read_proven(id, place, &*victim.file) {
                Ok((header, data)) => {
                    bytes += place.span_bytes();
                    spans.push(place.span_bytes());
                    work.push(Work::Copy { header, data, from: place });
                }
                // Deleted and its file reused while it was read.
                Err(_) if moved_away() => {}
                Err(error) => {
                    tracing::warn!(volume = %self.volume(), shard = %id, %error, "not compacted: a shard is damaged");
                    done.damaged.push(id);
                }
            }
        }
        let mut failed = None;
        for (answer, span) in self.write_own(work).into_iter().zip(spans) {
            match answer {
                Ok(Done::Stored(_)) => {
                    (done.moved_shards, done.moved_bytes) = (done.moved_shards + 1, done.moved_bytes + span)
                }
                Ok(Done::Deleted(_)) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Writes the tombstones that are owed to superseded records.
    fn pay(&self) -> Result<(), Error> {
        loop {
            let list = self.read_table().owed(TOMBSTONES_MAX);
            if list.is_empty() {
                return Ok(());
            }
            for answer in self.write_own(vec![Work::Pay { list }]) {
                answer?;
            }
        }
    }

    /// As `pay`, for these records, as far as they were superseded.
    pub(crate) fn pay_for(&self, mut list: Vec<Tombstone>) -> Result<(), Error> {
        let table = self.read_table();
        list.retain(|tombstone| table.owes(tombstone.sequence, tombstone.offset));
        drop(table);
        let parts = list.chunks(TOMBSTONES_MAX).map(|part| Work::Pay { list: part.to_vec() }).collect();
        self.write_own(parts).into_iter().find_map(Result::err).map_or(Ok(()), Err)
    }

    /// Restates tombstones of the victim that are still needed; true when no more are to be found.
    fn restate_some(&self, victim: &mut Victim) -> Result<bool, Error> {
        let from = victim.sequence;
        let Some(restating) = self.restating(victim) else { return Ok(true) };
        let mut seen = 0;
        while seen < WALK_RECORDS && !restating.walked {
            let Some(record) = restating.walk.next_record() else {
                restating.walked = true;
                break;
            };
            seen += 1;
            let Body::Tombstones { authority } = record.body else { continue };
            pacsvault_core::sometimes!("recovery: tombstones of an emptied segment looked at");
            let payload = payload_of(&**restating.walk.file(), &record).unwrap_or_default();
            let table = self.read_table();
            let needed = |tombstone: &Tombstone| {
                let Tombstone { id, sequence, offset } = *tombstone;
                // One that was void, against a record that counts, stays void.
                let live = |place: Place| place.sequence() == sequence && place.offset() == offset;
                sequence != record.stamp.sequence
                    && table.segments.contains_key(&sequence)
                    && !table.find(id).is_some_and(live)
            };
            let list: Vec<Tombstone> = Tombstone::decode_all(&payload).filter(needed).collect();
            match restating.found.back_mut() {
                _ if list.is_empty() => {}
                Some((same, before)) if *same == authority && before.len() + list.len() <= TOMBSTONES_MAX => {
                    before.extend(list);
                }
                Some(_) | None => restating.found.push_back((authority, list)),
            }
        }
        let restate = |(authority, list): &(LogIndex, Vec<Tombstone>)| Work::Restate {
            list: list.clone(),
            authority: *authority,
            from,
        };
        let answers = self.write_own(restating.found.iter().map(restate).collect());
        let written: Vec<bool> = answers.iter().map(Result::is_ok).collect();
        let mut written = written.into_iter();
        restating.found.retain(|_| !written.next().unwrap_or(false));
        answers.into_iter().find_map(Result::err).map_or(Ok(()), Err)?;
        Ok(restating.walked)
    }

    /// The walk for tombstones, begun if it is worth it and was not done before.
    fn restating<'a>(&self, victim: &'a mut Victim) -> Option<&'a mut Restating> {
        if victim.restating.is_none() {
            let mut table = self.write_table();
            let segment = table.segments.get_mut(&victim.sequence)?;
            // With damaged shards left the segment stays anyway, and so may its tombstones.
            if segment.live > 0 || segment.targets.is_empty() || segment.restated {
                return None;
            }
            segment.restated = true;
            drop(table);
            let begun = Walk::begin(self.volume(), victim.sequence, victim.file.clone(), victim.len);
            let (walk, _) = begun.ok()?;
            victim.restating = Some(Restating { walk, walked: false, found: VecDeque::new() });
        }
        victim.restating.as_mut()
    }

    /// Remembers what had to be left, so that it is not tried again in vain.
    fn leave(&self, sequence: u64) {
        if let Some(segment) = self.write_table().segments.get_mut(&sequence) {
            segment.left = Some(segment.live);
        }
    }
}
