//! Opening a volume: proving whose it is, and rebuilding what it holds from its segments.
//!
//! The segments are one log. A record is *proven* when a later record, segment header or mark says that its batch was
//! durable: then only its header is read. Records of the newest batches have no such witness: their payload is
//! read and must match its checksums, else they are *void*: never acknowledged, since a sync had covered them otherwise.
//!
//! **Invariants.**
//! - Opening writes nothing into segments. The first batch of the new life begins with a mark that names the void records;
//!   until that is durable, every further open finds the same.
//! - Behind damage the next record is sought (see `walk`), in the newest segment at least as far as one crash can reach.
//! - Of two records of one shard the later counts; the earlier is owed a tombstone (see `index`).
//! - Rot never refuses the volume: only doubt whose it is does, and a disk that cannot be listed or synced.
//! - What is found is synced before it can be acknowledged again: the process may have died without the power failing.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock, RwLock, atomic::AtomicU64},
};

use pacsvault_core::ids::VolumeId;
use pacsvault_ports::disk::{Disk, DiskFile};

use crate::{
    crash,
    error::Error,
    format::{
        self, Body, IDENTITY_NAME, Identity, Record, SECTOR_BYTES, SegmentHeader, Tombstone, decode_voids, parse_name,
        spare_name,
    },
    index::{Place, Segment, Table},
    mend::Guide,
    note,
    store::{IDENTITY_PART, Options, Owner, POISON_NAME, Store, segment_bytes, to_usize},
    walk::Walk,
    writer::{Active, BATCH_BYTES_MAX, MarkDue, Spare, Writer},
};

/// How far behind the last valid record of the newest segment others are sought: two batches may have been in flight,
/// each at most 16 MiB or one record of as much.
const SEARCH_BYTES_MAX: u64 = 2 * (BATCH_BYTES_MAX + (17 << 20));
/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// Whose volume it is.
    pub identity: Identity,
    /// Shards held.
    pub shards: u64,
    /// Bytes of their records.
    pub live_bytes: u64,
    /// Segments read.
    pub segments: u64,
    /// Bytes read to find that out.
    pub read_bytes: u64,
    /// Records of unfinished batches that were dropped: none was acknowledged.
    pub void_records: u64,
    /// Places inside the log where records may be hidden by damage (or were never finished, just behind a crash).
    /// Reconcile the inventory with the catalog.
    pub damaged_places: u64,
    /// Segments whose header or end cannot be read; kept, never written again.
    pub damaged_segments: u64,
    /// The volume was poisoned in an earlier life and nobody has cleared the marker.
    pub was_poisoned: bool,
}

/// A record that waits for proof or for the end of the log.
struct Held {
    record: Record,
    file: Arc<dyn DiskFile>,
}

struct Scan {
    identity: Identity,
    table: Table,
    held: VecDeque<Held>,
    voids: Vec<(u64, u64)>,
    /// Newest batch known durable.
    proven_batch: u64,
    newest_batch: u64,
    report: Recovery,
}

/// Where the scan of a segment ended, and the life in force there.
struct Tail {
    life: u64,
    offset: u64,
}

pub(crate) fn open(disk: Arc<dyn Disk>, owner: &Owner, options: Options) -> Result<(Store, Recovery), Error> {
    let names = disk.names().map_err(Error::open("list the directory"))?;
    let identity = read_identity(&*disk, &names, owner)?;
    let mut scan = Scan::new(identity.clone(), names.iter().any(|name| name == POISON_NAME));
    remove_parts(&*disk, &names)?;
    // CRASH(volume.open.1): names may come and go that no acknowledged record depends on. From here on what we see stays.
    crash::point("volume.open.1");
    disk.sync_names().map_err(Error::open("sync the names of segments"))?;

    let mut sequences: Vec<u64> = names.iter().filter_map(|name| parse_name(name, "seg-")).collect();
    sequences.sort_unstable();
    for &sequence in &sequences {
        let file = disk.open(&format::segment_name(sequence)).map_err(Error::open("open a segment"))?;
        let len = file.len().map_err(Error::open("measure a segment"))?;
        scan.table.segments.insert(sequence, Segment::new(file, len));
    }
    let mut tail = None;
    for &sequence in &sequences {
        let last = sequences.last() == Some(&sequence);
        let end = scan.segment(sequence, last)?;
        if last {
            tail = end.map(|end| (sequence, end));
        }
    }
    scan.settle();
    // CRASH(volume.open.2): the newest records may be in memory only. They are answered for after this sync.
    crash::point("volume.open.2");
    if let Some(segment) = sequences.last().and_then(|last| scan.table.segments.get(last)) {
        segment.file.sync_data().map_err(Error::open("sync the newest segment"))?;
    }
    let spares = open_spares(&*disk, &names)?;
    let numbers = sequences.iter().copied().chain(names.iter().filter_map(|name| parse_name(name, "spare-")));
    let next_number = numbers.max().map_or(1, |max| max + 1);
    scan.finish(disk, options, tail, spares, next_number)
}

fn read_identity(disk: &dyn Disk, names: &[String], owner: &Owner) -> Result<Identity, Error> {
    if !names.iter().any(|name| name == IDENTITY_NAME) {
        return Err(Error::NotFormatted);
    }
    let file = disk.open(IDENTITY_NAME).map_err(Error::open("open the identity"))?;
    let mut bytes = vec![0; to_usize(SECTOR_BYTES)];
    match file.read_at(0, &mut bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(Error::IdentityDamaged { reason: "it is too short" });
        }
        other => other.map_err(Error::open("read the identity"))?,
    }
    let identity = Identity::decode(&bytes).map_err(|reason| Error::IdentityDamaged { reason })?;
    if identity.cluster != owner.cluster || identity.node != owner.node {
        let Identity { cluster, node, volume, .. } = identity;
        return Err(Error::Foreign { volume, node, cluster });
    }
    Ok(identity)
}

/// Removes files that never became spares or the identity.
fn remove_parts(disk: &dyn Disk, names: &[String]) -> Result<(), Error> {
    for name in names {
        let part = name.strip_suffix(".tmp").is_some_and(|whole| parse_name(whole, "spare-").is_some());
        if part || name == IDENTITY_PART || note::is_part(name) {
            // CRASH(volume.open.3): it may be there again at the next open; it is removed again.
            crash::point("volume.open.3");
            disk.remove(name).map_err(Error::open("remove an unfinished file"))?;
        }
    }
    Ok(())
}

fn open_spares(disk: &dyn Disk, names: &[String]) -> Result<Vec<Spare>, Error> {
    let mut spares = Vec::new();
    for number in names.iter().filter_map(|name| parse_name(name, "spare-")) {
        let name = spare_name(number);
        let file = disk.open(&name).map_err(Error::open("open a spare"))?;
        let len = file.len().map_err(Error::open("measure a spare"))?;
        spares.push(Spare { name, file, len });
    }
    Ok(spares)
}

impl Scan {
    fn new(identity: Identity, was_poisoned: bool) -> Self {
        if was_poisoned {
            pacsvault_core::sometimes!("recovery: poisoned volume opened again");
        }
        let report = Recovery {
            identity: identity.clone(),
            shards: 0,
            live_bytes: 0,
            segments: 0,
            read_bytes: 0,
            void_records: 0,
            damaged_places: 0,
            damaged_segments: 0,
            was_poisoned,
        };
        Self {
            identity,
            table: Table::default(),
            held: VecDeque::new(),
            voids: Vec::new(),
            proven_batch: 0,
            newest_batch: 0,
            report,
        }
    }

    fn volume(&self) -> VolumeId {
        self.identity.volume
    }

    /// Reads one segment; `None` if nothing may be appended to it.
    fn segment(&mut self, sequence: u64, last: bool) -> Result<Option<Tail>, Error> {
        let segment = &self.table.segments[&sequence];
        let (file, len) = (segment.file.clone(), segment.len);
        self.report.segments += 1;
        let (mut walk, durable_batch) = match Walk::begin(self.volume(), sequence, file, len) {
            Ok(begun) => begun,
            Err(read_bytes) => {
                self.report.read_bytes += read_bytes;
                self.damaged(sequence);
                return Ok(None);
            }
        };
        let (volume, cluster) = (self.identity.volume, self.identity.cluster);
        if let Some(segment) = self.table.segments.get_mut(&sequence) {
            segment.head = Some(SegmentHeader { volume, cluster, sequence, life: walk.life, durable_batch });
        }
        self.proven_batch = self.proven_batch.max(durable_batch);
        self.newest_batch = self.newest_batch.max(durable_batch);
        if last {
            walk.search_at_most(SEARCH_BYTES_MAX);
        }
        while let Some(record) = walk.next_record() {
            match record.body {
                Body::End => self.prove(record.stamp.durable_batch),
                Body::Shard(_) | Body::Tombstones { .. } | Body::Mark { .. } => self.take(record, walk.file()),
            }
        }
        self.report.read_bytes += walk.read_bytes;
        self.report.damaged_places += walk.damaged_places;
        if !walk.readable {
            self.damaged(sequence);
            return Ok(None);
        }
        Ok(Some(Tail { life: walk.life, offset: walk.tail_offset }))
    }

    fn damaged(&mut self, sequence: u64) {
        pacsvault_core::sometimes!("recovery: damaged segment kept aside");
        self.report.damaged_segments += 1;
        if let Some(segment) = self.table.segments.get_mut(&sequence) {
            segment.damaged = true;
        }
    }

    /// Everything up to batch `durable` was synced: what waited for that is applied.
    fn prove(&mut self, durable: u64) {
        self.proven_batch = self.proven_batch.max(durable);
        while let Some(held) = self.held.pop_front_if(|held| held.record.stamp.batch <= self.proven_batch) {
            if !self.apply(&held) {
                self.report.damaged_places += 1;
            }
        }
    }

    fn take(&mut self, record: Record, file: &Arc<dyn DiskFile>) {
        let stamp = record.stamp;
        self.newest_batch = self.newest_batch.max(stamp.batch);
        self.prove(stamp.durable_batch);
        let held = Held { record, file: file.clone() };
        if let Body::Mark { .. } = held.record.body {
            pacsvault_core::sometimes!("recovery: mark of an earlier recovery read");
            if let Some(payload) = payload_of(&held, &mut self.report.read_bytes) {
                let voids: Vec<(u64, u64)> = decode_voids(&payload).collect();
                if let Some(segment) = self.table.segments.get_mut(&stamp.sequence) {
                    segment.marks.push(Guide::mark(&held.record, &payload));
                }
                self.held.retain(|held| !voids.contains(&(held.record.stamp.sequence, held.record.stamp.offset)));
                // Before it wrote this mark, that life had read and synced all that went before.
                self.prove(stamp.batch.saturating_sub(1));
            }
        } else {
            self.held.push_back(held);
            self.prove(0);
        }
    }

    /// Makes one record count; false if its own payload was needed and is damaged.
    fn apply(&mut self, held: &Held) -> bool {
        let stamp = held.record.stamp;
        match &held.record.body {
            Body::Mark { .. } | Body::End => true,
            Body::Shard(header) => match Place::new(stamp.sequence, stamp.offset, held.record.span_bytes) {
                Some(place) => {
                    self.table.insert(header.id, place);
                    true
                }
                None => false,
            },
            // PLANTED BUG: what was deleted is back after a restart.
            Body::Tombstones { .. } if pacsvault_core::probe::planted("tombstones-forgotten") => true,
            Body::Tombstones { .. } => match payload_of(held, &mut self.report.read_bytes) {
                Some(payload) => {
                    for Tombstone { id, sequence, offset } in Tombstone::decode_all(&payload) {
                        self.table.delete(id, sequence, offset, stamp.sequence);
                    }
                    true
                }
                None => false,
            },
        }
    }

    /// At the end of the log: what has no witness must prove itself.
    fn settle(&mut self) {
        for held in std::mem::take(&mut self.held) {
            let whole = payload_of(&held, &mut self.report.read_bytes).is_some();
            if !(whole && self.apply(&held)) {
                pacsvault_core::sometimes!("recovery: torn record voided");
                self.report.void_records += 1;
                self.voids.push((held.record.stamp.sequence, held.record.stamp.offset));
            }
        }
    }

    fn finish(
        mut self,
        disk: Arc<dyn Disk>,
        options: Options,
        tail: Option<(u64, Tail)>,
        spares: Vec<Spare>,
        next_number: u64,
    ) -> Result<(Store, Recovery), Error> {
        let space = disk.space().map_err(Error::open("measure the free space"))?;
        let capacity_bytes = options.capacity_bytes.unwrap_or(space.total_bytes).min(space.total_bytes);
        let mut mark = MarkDue {
            previous_life: options.life,
            proven_batch: self.proven_batch,
            voids: std::mem::take(&mut self.voids),
        };
        let active = tail.map(|(sequence, tail)| {
            pacsvault_core::sometimes!("recovery: newest segment recovered");
            let segment = &self.table.segments[&sequence];
            mark.previous_life = tail.life;
            Active { sequence, file: segment.file.clone(), offset: tail.offset, len: segment.len }
        });
        let mark = (active.is_some() || !mark.voids.is_empty()).then_some(mark);
        self.report.shards = self.table.shards();
        self.report.live_bytes = self.table.live_bytes();
        let writer = Writer { active, next_number, batch: self.newest_batch, mark, spares, preparing: false };
        let store = Store {
            disk,
            identity: self.identity,
            segment_bytes: segment_bytes(&options, capacity_bytes),
            options,
            capacity_bytes,
            table: RwLock::new(self.table),
            writer: Mutex::new(writer),
            sync: Mutex::new(()),
            durable_batch: AtomicU64::new(self.newest_batch),
            room_bytes: AtomicU64::new(0),
            refused_bytes: AtomicU64::new(0),
            poison: OnceLock::new(),
            compaction: Mutex::default(),
            notes: Mutex::default(),
        };
        {
            let writer = store.lock_writer()?;
            store.measure_room(&writer)?;
        }
        Ok((store, self.report))
    }
}

/// The payload of a record, if it can be read and matches its checksums.
fn payload_of(held: &Held, read_bytes: &mut u64) -> Option<Vec<u8>> {
    *read_bytes += held.record.payload_bytes;
    crate::walk::payload_of(&*held.file, &held.record)
}
