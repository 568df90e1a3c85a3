//! What the volume holds, in memory: where each shard lies, and what each segment still has to be kept for.
//!
//! **Invariants.**
//! - A segment's `live` equals the index entries that point into it.
//! - Every record on the disk that no longer counts has a *witness* as long as its segment exists: a tombstone that names its
//!   place, or a later record of the same shard. A witness lies in the same segment, or in one whose `targets` counts it.
//!   A segment with targets is never reused. So a witness never goes before what it witnesses against, and no record that
//!   was deleted or superseded comes back.
//! - A superseded record is `owed` a tombstone until one is durable: only then does its place have a witness that names it.
//!   What an opening cannot read is nothing to it: should it be read again later, it is a copy that nothing names, and swept.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use pacsvault_core::{
    ids::{InstanceId, ShardIndex, StripeIndex},
    shard::ShardId,
};
use pacsvault_ports::disk::DiskFile;

use crate::{
    format::{RECORD_ALIGN, SegmentHeader, Tombstone},
    mend::Guide,
};

/// Least gain for which compaction empties a segment that is more than half in use: far more than its batches are padded by.
const GAIN_BYTES_MIN: u64 = 64 << 10;

/// A shard id in 21 bytes whose order is that of [`ShardId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key([u8; 21]);

impl From<ShardId> for Key {
    fn from(id: ShardId) -> Self {
        let mut bytes = [0; 21];
        bytes[..16].copy_from_slice(&id.instance.0);
        bytes[16..20].copy_from_slice(&id.stripe.0.to_be_bytes());
        bytes[20] = id.shard.0;
        Self(bytes)
    }
}

impl From<Key> for ShardId {
    fn from(Key(bytes): Key) -> Self {
        let (mut instance, mut stripe) = ([0; 16], [0; 4]);
        instance.copy_from_slice(&bytes[..16]);
        stripe.copy_from_slice(&bytes[16..20]);
        Self {
            instance: InstanceId(instance),
            stripe: StripeIndex(u32::from_be_bytes(stripe)),
            shard: ShardIndex(bytes[20]),
        }
    }
}

/// Where a record lies, in 12 bytes: segments below 2^32, offsets below 2 TiB, spans below 32 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    sequence: u32,
    units: u32,
    span_units: u16,
}

impl Place {
    /// `None` beyond the bounds above, which no volume reaches that we wrote.
    pub(crate) fn new(sequence: u64, offset: u64, span_bytes: u64) -> Option<Self> {
        Some(Self {
            sequence: u32::try_from(sequence).ok()?,
            units: u32::try_from(offset / RECORD_ALIGN).ok()?,
            span_units: u16::try_from(span_bytes / RECORD_ALIGN).ok()?,
        })
    }

    pub(crate) fn sequence(self) -> u64 {
        u64::from(self.sequence)
    }

    pub(crate) fn offset(self) -> u64 {
        u64::from(self.units) * RECORD_ALIGN
    }

    pub(crate) fn span_bytes(self) -> u64 {
        u64::from(self.span_units) * RECORD_ALIGN
    }
}

/// Why a segment should be emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// More than half of it is dead.
    HalfDead,
    /// A quarter is, and that is needed.
    RoomIsShort,
}

/// A segment file in use.
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) len: u64,
    pub(crate) live: u64,
    pub(crate) live_bytes: u64,
    /// Witnesses in this segment, per other segment that exists and holds the record they are against.
    pub(crate) targets: BTreeMap<u64, u64>,
    /// Its contents are not fully known; never reused.
    pub(crate) damaged: bool,
    /// Compaction had to leave it with so many records, for they are damaged or too long. It tries again when fewer are left.
    pub(crate) left: Option<u64>,
    /// Compaction has begun to restate its tombstones. Once in a life: a second pass could not tell which of them `targets`
    /// still counts.
    pub(crate) restated: bool,
    /// What its head says; `None` when recovery could not tell.
    pub(crate) head: Option<SegmentHeader>,
    /// Where lives of the volume begin in it: two sectors for each start of the volume whose first write went here, so never
    /// more bytes than the segment has.
    pub(crate) marks: Vec<Guide>,
}

impl Segment {
    pub(crate) fn new(file: Arc<dyn DiskFile>, len: u64) -> Self {
        let (targets, marks) = (BTreeMap::new(), Vec::new());
        Self {
            file,
            len,
            live: 0,
            live_bytes: 0,
            targets,
            damaged: false,
            left: None,
            restated: false,
            head: None,
            marks,
        }
    }

    /// Bytes that compaction would have to write, at most: a tombstone alone in its record takes one unit.
    fn kept_bytes(&self) -> u64 {
        self.live_bytes + RECORD_ALIGN * self.targets.values().sum::<u64>()
    }
}

/// A superseded record that no tombstone names yet.
#[derive(Debug, Clone, Copy)]
struct Owed {
    id: ShardId,
    /// Segment of the record that took its place, and that is held back for it.
    by: u64,
}

/// Index and segments together.
#[derive(Default)]
pub(crate) struct Table {
    index: BTreeMap<Key, Place>,
    pub(crate) segments: BTreeMap<u64, Segment>,
    /// Written, not yet durable.
    in_flight: BTreeSet<Key>,
    /// Superseded records without a tombstone: (segment, offset).
    owed: BTreeMap<(u64, u64), Owed>,
}

impl Table {
    pub(crate) fn find(&self, id: ShardId) -> Option<Place> {
        self.index.get(&id.into()).copied()
    }

    /// The place of a shard and the file it lies in.
    pub(crate) fn locate(&self, id: ShardId) -> Option<(Place, Arc<dyn DiskFile>)> {
        let place = self.find(id)?;
        let segment = self.segments.get(&place.sequence())?;
        Some((place, segment.file.clone()))
    }

    pub(crate) fn insert(&mut self, id: ShardId, place: Place) {
        if let Some(old) = self.index.insert(id.into(), place) {
            self.forget(old);
            self.owe(id, old, place.sequence());
        }
        if let Some(segment) = self.segments.get_mut(&place.sequence()) {
            segment.live += 1;
            segment.live_bytes += place.span_bytes();
        }
    }

    fn forget(&mut self, place: Place) {
        if let Some(segment) = self.segments.get_mut(&place.sequence()) {
            segment.live -= 1;
            segment.live_bytes -= place.span_bytes();
        }
    }

    /// The record at `old` was superseded by one in segment `by`, which is its only witness for now.
    fn owe(&mut self, id: ShardId, old: Place, by: u64) {
        if !self.segments.contains_key(&old.sequence()) {
            return;
        }
        self.owed.insert((old.sequence(), old.offset()), Owed { id, by });
        if by != old.sequence()
            && let Some(segment) = self.segments.get_mut(&by)
        {
            *segment.targets.entry(old.sequence()).or_default() += 1;
        }
    }

    /// Whether the record at this place was superseded, and has no tombstone yet.
    pub(crate) fn owes(&self, sequence: u64, offset: u64) -> bool {
        self.owed.contains_key(&(sequence, offset))
    }

    /// Tombstones that are owed, at most `limit`.
    pub(crate) fn owed(&self, limit: usize) -> Vec<Tombstone> {
        let tombstone = |(&(sequence, offset), owed): (&(u64, u64), &Owed)| Tombstone { id: owed.id, sequence, offset };
        self.owed.iter().take(limit).map(tombstone).collect()
    }

    /// One witness in segment `from` against a record of segment `target` is no longer needed.
    pub(crate) fn release(&mut self, from: u64, target: u64) {
        let Some(segment) = self.segments.get_mut(&from) else { return };
        if let Some(count) = segment.targets.get_mut(&target) {
            *count -= 1;
            if *count == 0 {
                segment.targets.remove(&target);
            }
        }
    }

    /// Applies one tombstone that lies in segment `from`; true if the shard was there.
    pub(crate) fn delete(&mut self, id: ShardId, sequence: u64, offset: u64, from: u64) -> bool {
        if from != sequence
            && self.segments.contains_key(&sequence)
            && let Some(segment) = self.segments.get_mut(&from)
        {
            *segment.targets.entry(sequence).or_default() += 1;
        }
        if let Some(paid) = self.owed.remove(&(sequence, offset))
            && paid.by != sequence
        {
            self.release(paid.by, sequence);
        }
        match self.find(id) {
            Some(place) if place.sequence() == sequence && place.offset() == offset => {
                self.index.remove(&Key::from(id));
                self.forget(place);
                true
            }
            _ => false,
        }
    }

    /// A segment before `active` that nothing needs any more.
    pub(crate) fn dead_segment(&self, active: u64) -> Option<u64> {
        let dead = |segment: &Segment| segment.live == 0 && segment.targets.is_empty() && !segment.damaged;
        self.segments.range(..active).find(|(_, segment)| dead(segment)).map(|(sequence, _)| *sequence)
    }

    /// The segment before `active` that compaction should empty next. In quiet times the oldest that keeps less than half of
    /// its length; when room is `short`, the one that gives most, if it gives a quarter and [`GAIN_BYTES_MIN`].
    pub(crate) fn victim(&self, active: u64, short: bool) -> Option<(u64, Fit)> {
        let gain = |segment: &Segment| segment.len.saturating_sub(segment.kept_bytes());
        let mut fit = self.segments.range(..active).filter_map(|(sequence, segment)| {
            let tried = segment.left.is_some_and(|left| segment.live >= left);
            let fit = if gain(segment) > segment.len / 2 {
                Fit::HalfDead
            } else if short && gain(segment) >= GAIN_BYTES_MIN.max(segment.len / 4) {
                Fit::RoomIsShort
            } else {
                return None;
            };
            (!segment.damaged && !tried).then_some((*sequence, fit, gain(segment)))
        });
        let found = if short { fit.max_by_key(|(_, _, gain)| *gain) } else { fit.next() };
        found.map(|(sequence, fit, _)| (sequence, fit))
    }

    /// Index entries in segment `sequence`, of at most `limit` entries after `after`; and where to go on, unless at the end.
    pub(crate) fn places_in(
        &self,
        sequence: u64,
        after: Option<ShardId>,
        limit: usize,
    ) -> (Vec<(ShardId, Place)>, Option<ShardId>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, |id| Excluded(Key::from(id)));
        let (mut found, mut seen, mut last) = (Vec::new(), 0, None);
        for (key, place) in self.index.range((from, Unbounded)).take(limit) {
            if place.sequence() == sequence {
                found.push(((*key).into(), *place));
            }
            (seen, last) = (seen + 1, Some(*key));
        }
        (found, last.filter(|_| seen == limit).map(ShardId::from))
    }

    /// Takes out a dead segment; tombstones that aimed at it have done their work.
    pub(crate) fn take_segment(&mut self, sequence: u64) -> Option<Segment> {
        while let Some((&place, _)) = self.owed.range((sequence, 0)..=(sequence, u64::MAX)).next() {
            self.owed.remove(&place);
        }
        for segment in self.segments.values_mut() {
            segment.targets.remove(&sequence);
        }
        self.segments.remove(&sequence)
    }

    pub(crate) fn begin(&mut self, id: ShardId) -> bool {
        self.in_flight.insert(id.into())
    }

    pub(crate) fn end(&mut self, id: ShardId) {
        self.in_flight.remove(&id.into());
    }

    pub(crate) fn is_in_flight(&self, id: ShardId) -> bool {
        self.in_flight.contains(&id.into())
    }

    pub(crate) fn list(&self, after: Option<ShardId>, limit: usize) -> Vec<ShardId> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, |id| Excluded(Key::from(id)));
        self.index.range((from, Unbounded)).take(limit).map(|(key, _)| (*key).into()).collect()
    }

    pub(crate) fn shards(&self) -> u64 {
        self.index.len() as u64
    }

    /// Bytes of segments that are not written any more which emptying them would give back.
    pub(crate) fn dead_bytes(&self) -> u64 {
        let newest = self.segments.last_key_value().map_or(0, |(sequence, _)| *sequence);
        self.segments.range(..newest).map(|(_, segment)| segment.len.saturating_sub(segment.kept_bytes())).sum()
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.live_bytes).sum()
    }
}
