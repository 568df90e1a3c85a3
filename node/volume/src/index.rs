//! What the volume holds, in memory: where each shard lies, and what each segment still has to be kept for.
//!
//! **Invariants.** A segment's `live` equals the index entries that point into it. `targets` of a segment counts its
//! tombstones per segment that still exists and holds the record they delete: such a segment must not be reused before
//! those, or the deleted records would come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use pacsvault_core::{
    ids::{InstanceId, ShardIndex, StripeIndex},
    shard::ShardId,
};
use pacsvault_ports::disk::DiskFile;

use crate::format::RECORD_ALIGN;

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

/// A segment file in use.
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) len: u64,
    pub(crate) live: u64,
    pub(crate) live_bytes: u64,
    pub(crate) targets: BTreeMap<u64, u64>,
    /// Its contents are not fully known; never reused.
    pub(crate) damaged: bool,
}

impl Segment {
    pub(crate) fn new(file: Arc<dyn DiskFile>, len: u64) -> Self {
        Self { file, len, live: 0, live_bytes: 0, targets: BTreeMap::new(), damaged: false }
    }
}

/// Index and segments together.
#[derive(Default)]
pub(crate) struct Table {
    index: BTreeMap<Key, Place>,
    pub(crate) segments: BTreeMap<u64, Segment>,
    /// Written, not yet durable.
    in_flight: BTreeSet<Key>,
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

    /// Applies one tombstone that lies in segment `from`; true if the shard was there.
    pub(crate) fn delete(&mut self, id: ShardId, sequence: u64, offset: u64, from: u64) -> bool {
        if from != sequence
            && self.segments.contains_key(&sequence)
            && let Some(segment) = self.segments.get_mut(&from)
        {
            *segment.targets.entry(sequence).or_default() += 1;
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

    /// Takes out a dead segment; tombstones that aimed at it have done their work.
    pub(crate) fn take_segment(&mut self, sequence: u64) -> Option<Segment> {
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

    pub(crate) fn live_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.live_bytes).sum()
    }
}
