//! The store of one volume: formatting, what is held, and verified reading. Appending is in `writer`, opening in `recover`.
//!
//! **Invariants.** All methods block and may be called from several threads. Locks are taken in the order compaction, writer,
//! sync, table. Readers never wait for a sync. A reader whose shard is moved under it reads again from the new place.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use pacsvault_core::{
    checksum::verify_chunks,
    health::report::ScrubAge,
    ids::{ClusterId, Digest, LogIndex, NodeName, VolumeId},
    layout::VolumeState,
    limits::CHUNK_BYTES,
    merkle,
    shard::{DurableShard, ShardHeader, ShardId},
};
use pacsvault_ports::{
    disk::{Disk, DiskFile},
    peer::{ShardData, VolumeStatus},
};

use crate::{
    compact::Victim,
    crash,
    error::Error,
    format::{Body, IDENTITY_NAME, Identity, Record, SECTOR_BYTES},
    index::{Place, Table},
    writer::Writer,
};

/// Left behind by a poisoned volume, as well as it could.
pub(crate) const POISON_NAME: &str = "volume.poisoned";
/// The identity file before it has its name.
pub(crate) const IDENTITY_PART: &str = "volume.id.tmp";
/// Below this share of the capacity left, clients get no new shards: 90 % full.
const CLIENT_RESERVE_PERCENT: u64 = 10;
/// Below this share, repair gets none either; what is left is for compaction, and for deletions, which need little and set
/// much free.
const REPAIR_RESERVE_PERCENT: u64 = 3;
/// Segments that must stay free besides: in one of them compaction can always empty another and so get space back. A write may
/// count on the rest of the active segment, so two keep one whole.
const SEGMENTS_RESERVED: u64 = 2;
/// Segments by default: 1/64 of the capacity, so that a volume has enough of them to reuse some …
const SEGMENTS_PER_VOLUME: u64 = 64;
/// … but at least 4 MiB, below which creating them costs more than filling them …
const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// … and at most 1 GiB, which bounds what one sweep of a segment must read.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// How to run a volume.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Bytes the volume may take; all of the disk when absent.
    pub capacity_bytes: Option<u64>,
    /// Length of new segments; by the capacity when absent.
    pub segment_bytes: Option<u64>,
    /// Write zeros over new segments, so that later writes change no metadata. Costs one extra write of each byte in
    /// the first life of a file, none in the later ones.
    pub prewrite: bool,
    /// 64 fresh random bits that name this life of the volume; never the same twice.
    pub life: u64,
}

impl Options {
    /// The defaults, with the random `life` of this opening.
    pub fn new(life: u64) -> Self {
        Self { capacity_bytes: None, segment_bytes: None, prewrite: false, life }
    }
}

/// A shard that was proven from the device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Its header.
    pub header: ShardHeader,
    /// The root of its stripe, as it claims. It is that stripe's shard only if the catalog says the same.
    pub root: Digest,
}

/// Who opens a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeName,
}

/// On whose behalf a shard is written; decides how much room must stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// New content: up to 90 % of the volume.
    Client,
    /// Rebuilding or moving what is promised already: up to 97 %.
    Repair,
}

/// One thing to do, durably.
#[derive(Debug, Clone)]
pub enum Op {
    /// Write a shard.
    Put {
        /// Its header.
        header: ShardHeader,
        /// Its bytes.
        data: Bytes,
        /// For whom.
        purpose: Purpose,
    },
    /// Delete shards; ids not held are skipped.
    Delete {
        /// Which.
        ids: Vec<ShardId>,
        /// Log entry that allows it.
        authority: LogIndex,
    },
}

/// What was done, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The shard is durable.
    Stored(DurableShard),
    /// So many shards were held and are gone.
    Deleted(u64),
}

/// The store of one volume.
pub struct Store {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) identity: Identity,
    pub(crate) options: Options,
    pub(crate) capacity_bytes: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) table: RwLock<Table>,
    pub(crate) writer: Mutex<Writer>,
    /// Held from before a batch's write is followed by another until it is synced and visible: syncs happen in order.
    pub(crate) sync: Mutex<()>,
    /// Newest batch known durable.
    pub(crate) durable_batch: AtomicU64,
    /// Bytes that may still be written, as of the last batch.
    pub(crate) room_bytes: AtomicU64,
    /// Room that was too little for a client's write when one was last refused for its reserve.
    pub(crate) refused_bytes: AtomicU64,
    pub(crate) poison: OnceLock<Arc<str>>,
    /// The segment that is being emptied. Held for a step, so that there is one at a time.
    pub(crate) compaction: Mutex<Option<Victim>>,
    /// Held while a note is saved.
    pub(crate) notes: Mutex<()>,
}

/// Lengths of new segments on a volume of `capacity_bytes`.
pub(crate) fn segment_bytes(options: &Options, capacity_bytes: u64) -> u64 {
    let chosen = options
        .segment_bytes
        .unwrap_or_else(|| (capacity_bytes / SEGMENTS_PER_VOLUME).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX));
    crate::format::align(chosen.max(8 * SECTOR_BYTES), SECTOR_BYTES)
}

/// Makes what was written to `file` durable.
pub(crate) fn sync_data(file: &dyn DiskFile) -> io::Result<()> {
    // PLANTED BUG: a failed sync is nobody's business.
    file.sync_data().or_else(|error| if pacsvault_core::probe::planted("poison-ignored") { Ok(()) } else { Err(error) })
}

impl Store {
    /// Makes an empty directory a volume. On `Ok` the identity survives power loss.
    /// # Errors
    /// [`Error::NotEmpty`] when it is a volume already or holds anything else, [`Error::Open`] when the disk refuses.
    pub fn format(disk: &dyn Disk, identity: &Identity) -> Result<(), Error> {
        for name in disk.names().map_err(Error::open("list the directory"))? {
            if name != IDENTITY_PART {
                return Err(Error::NotEmpty { found: name });
            }
            // CRASH(volume.format.1): leftover of a crashed format may stay; it is met again here.
            crash::point("volume.format.1");
            disk.remove(&name).map_err(Error::open("remove a half-written identity"))?;
        }
        // CRASH(volume.format.2): there may be an empty or torn temporary file. It is not an identity; format runs again.
        crash::point("volume.format.2");
        let file = disk.create(IDENTITY_PART, SECTOR_BYTES).map_err(Error::open("create the identity"))?;
        file.write_at(0, &[&identity.encode()]).map_err(Error::open("write the identity"))?;
        file.sync_data().map_err(Error::open("sync the identity"))?;
        // CRASH(volume.format.3): whole bytes under a temporary name; as above.
        crash::point("volume.format.3");
        disk.rename(IDENTITY_PART, IDENTITY_NAME).map_err(Error::open("name the identity"))?;
        // CRASH(volume.format.4): the name may be the old or the new one; format runs again, or finds the volume there.
        crash::point("volume.format.4");
        disk.sync_names().map_err(Error::open("sync the identity's name"))
    }

    /// Opens a volume and recovers what it holds.
    /// # Errors
    /// [`Error::NotFormatted`], [`Error::Foreign`], [`Error::IdentityDamaged`], or [`Error::Open`] when the disk refuses.
    pub fn open(disk: Arc<dyn Disk>, owner: &Owner, options: Options) -> Result<(Self, crate::Recovery), Error> {
        crate::recover::open(disk, owner, options)
    }

    /// Whose volume this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// This volume.
    pub fn volume(&self) -> VolumeId {
        self.identity.volume
    }

    pub(crate) fn read_table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write_table(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer, unless the volume is poisoned. A panic while writing counts as an error of the disk.
    pub(crate) fn lock_writer(&self) -> Result<MutexGuard<'_, Writer>, Error> {
        let writer = self.writer.lock().map_err(|_| self.poisoned_by("a broken invariant in its writer"))?;
        self.check_poison()?;
        Ok(writer)
    }

    pub(crate) fn lock_sync(&self) -> Result<MutexGuard<'_, ()>, Error> {
        let sync = self.sync.lock().map_err(|_| self.poisoned_by("a broken invariant in its writer"))?;
        self.check_poison()?;
        Ok(sync)
    }

    pub(crate) fn check_poison(&self) -> Result<(), Error> {
        match self.poison.get() {
            None => Ok(()),
            Some(reason) => Err(Error::Poisoned { volume: self.volume(), reason: reason.clone() }),
        }
    }

    fn poisoned_by(&self, reason: &str) -> Error {
        let reason = self.poison.get_or_init(|| reason.into()).clone();
        Error::Poisoned { volume: self.volume(), reason }
    }

    /// Ends all writing: after a failed write or sync nobody knows what the disk holds, and trying again may lie.
    pub(crate) fn poison(&self, step: &'static str, source: io::Error) -> Error {
        let source = Arc::new(source);
        tracing::error!(volume = %self.volume(), step, error = %source, "volume poisoned");
        pacsvault_core::sometimes!("recovery: volume poisoned by a failed write or sync");
        if self.poison.set(format!("it could not {step}: {source}").into()).is_ok() {
            // CRASH(volume.poison.1): a marker for whoever opens the volume next. It may fail or vanish; nothing rests on it.
            crash::point("volume.poison.1");
            if let Err(error) = self.disk.create(POISON_NAME, 0).and_then(|_| self.disk.sync_names()) {
                tracing::warn!(volume = %self.volume(), %error, "cannot leave the poison marker");
            }
        }
        Error::Write { step, volume: self.volume(), source }
    }

    /// Removes the marker of an earlier poisoning, when an operator has judged the disk sound.
    /// # Errors
    /// [`Error::Write`] when the disk refuses.
    pub fn clear_poison_marker(&self) -> Result<(), Error> {
        // CRASH(volume.poison.2): the marker may come back; it only informs.
        crash::point("volume.poison.2");
        match self.disk.remove(POISON_NAME).and_then(|()| self.disk.sync_names()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.poison("remove the poison marker", error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Reads the chunks of `id` that hold `len_bytes` from `offset_bytes` on, to the end of the shard at most, and
    /// verifies them.
    /// # Errors
    /// [`Error::NotFound`], [`Error::Range`]; [`Error::Corrupt`] and [`Error::Read`]: use another shard and report.
    pub fn read(&self, id: ShardId, offset_bytes: u64, len_bytes: u64) -> Result<ShardData, Error> {
        self.where_it_lies(id, |place, file| self.read_place(id, place, file, offset_bytes, len_bytes))
    }

    /// The header of `id` as recorded.
    /// # Errors
    /// As for [`Store::read`].
    pub fn header(&self, id: ShardId) -> Result<ShardHeader, Error> {
        self.where_it_lies(id, |place, file| {
            let mut bytes = vec![0; to_usize(SECTOR_BYTES.min(place.span_bytes()))];
            self.read_bytes(id, file, place.offset(), &mut bytes)?;
            self.decode(id, place, &bytes).map(|(header, _)| header)
        })
    }

    /// Reads all of `id` from the device, past what memory holds of it, and proves it: chunk checksums, BLAKE3 digest, and that
    /// its Merkle path leads to a root. Compare that root with the catalog's: a shard may be sound and of another stripe.
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Corrupt`] and [`Error::Read`]: report it, and put it anew.
    pub fn verify(&self, id: ShardId) -> Result<Verified, Error> {
        let (header, _) = self.where_it_lies(id, |place, file| self.read_proven(id, place, file))?;
        let count = header.code.data() + header.code.parity();
        let root = merkle::root_from(header.digest, id.shard, count, &header.merkle_path);
        let root = root.ok_or(Error::Corrupt { shard: id, volume: self.volume(), offset_bytes: 0 })?;
        Ok(Verified { header, root })
    }

    /// Runs `work` on the place of a shard. Its record may be deleted or moved, and its file reused, meanwhile: then a failure
    /// says nothing, and it runs again where the shard lies now.
    fn where_it_lies<T>(
        &self,
        id: ShardId,
        work: impl Fn(Place, &dyn DiskFile) -> Result<T, Error>,
    ) -> Result<T, Error> {
        loop {
            let (place, file) = self.locate(id)?;
            match work(place, &*file) {
                Err(Error::Corrupt { .. } | Error::Read { .. }) if self.read_table().find(id) != Some(place) => {}
                other => return other,
            }
        }
    }

    /// A whole shard from the device, proven by its chunk checksums and its digest.
    pub(crate) fn read_proven(
        &self,
        id: ShardId,
        place: Place,
        file: &dyn DiskFile,
    ) -> Result<(ShardHeader, Bytes), Error> {
        let (shard, volume) = (id, self.volume());
        let mut bytes = vec![0; to_usize(place.span_bytes())];
        let read = file.read_at_uncached(place.offset(), &mut bytes);
        read.map_err(|source| Error::Read { shard, volume, source: Arc::new(source) })?;
        let (header, start) = self.decode(id, place, &bytes)?;
        let corrupt = |offset_bytes| Error::Corrupt { shard, volume, offset_bytes };
        let end = start + to_usize(header.shard_bytes());
        if end > bytes.len() {
            return Err(corrupt(0));
        }
        let data = Bytes::from(bytes).slice(start..end);
        verify_chunks(&data, 0, &header.chunk_crcs).map_err(|bad| corrupt(bad as u64 * CHUNK_BYTES as u64))?;
        if Digest::of(&data) != header.digest {
            return Err(corrupt(0));
        }
        Ok((header, data))
    }

    fn not_found(&self, shard: ShardId) -> Error {
        Error::NotFound { shard, volume: self.volume() }
    }

    fn locate(&self, id: ShardId) -> Result<(Place, Arc<dyn DiskFile>), Error> {
        self.read_table().locate(id).ok_or_else(|| self.not_found(id))
    }

    fn read_bytes(&self, shard: ShardId, file: &dyn DiskFile, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        file.read_at(offset, buffer).map_err(|source| Error::Read {
            shard,
            volume: self.volume(),
            source: Arc::new(source),
        })
    }

    /// The header at the start of `bytes`, if it is that of `id` at `place`, and its length.
    fn decode(&self, id: ShardId, place: Place, bytes: &[u8]) -> Result<(ShardHeader, usize), Error> {
        let volume = self.volume();
        let corrupt = Error::Corrupt { shard: id, volume, offset_bytes: 0 };
        let record = Record::decode(bytes).map_err(|_| corrupt.clone())?;
        let stamp = record.stamp;
        let here = stamp.volume == volume && stamp.sequence == place.sequence() && stamp.offset == place.offset();
        match record.body {
            Body::Shard(header) if here && header.id == id => Ok((header, record.header_bytes)),
            _ => Err(corrupt),
        }
    }

    fn read_place(
        &self,
        id: ShardId,
        place: Place,
        file: &dyn DiskFile,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<ShardData, Error> {
        // A whole shard is one read; for a part, the header tells where its chunks lie.
        let whole = offset_bytes == 0 && len_bytes >= place.span_bytes() / 2;
        let first = if whole { place.span_bytes() } else { SECTOR_BYTES.min(place.span_bytes()) };
        let mut bytes = vec![0; to_usize(first)];
        self.read_bytes(id, file, place.offset(), &mut bytes)?;
        let (header, header_bytes) = self.decode(id, place, &bytes)?;
        let shard_bytes = header.shard_bytes();
        if offset_bytes > shard_bytes {
            return Err(Error::Range { shard: id, shard_bytes, offset_bytes });
        }
        let chunk = CHUNK_BYTES as u64;
        let from = offset_bytes / chunk * chunk;
        let to = offset_bytes.saturating_add(len_bytes).min(shard_bytes).div_ceil(chunk).saturating_mul(chunk);
        let to = to.min(shard_bytes).max(from);
        let (start, end) = (header_bytes + to_usize(from), header_bytes + to_usize(to));
        let data = if end <= bytes.len() {
            Bytes::from(bytes).slice(start..end)
        } else {
            let mut part = vec![0; end - start];
            self.read_bytes(id, file, place.offset() + start as u64, &mut part)?;
            part.into()
        };
        // PLANTED BUG: bytes are what they were.
        let believed = pacsvault_core::probe::planted("unverified-read");
        let verified = if believed { Ok(()) } else { verify_chunks(&data, to_usize(from / chunk), &header.chunk_crcs) };
        verified.map_err(|bad| Error::Corrupt {
            shard: id,
            volume: self.volume(),
            offset_bytes: bad as u64 * chunk,
        })?;
        Ok(ShardData { header, offset_bytes: from, data })
    }

    /// For a repeated write: `Some` if exactly this shard is held and proven from the device, by checksums and digest: a retry
    /// may be the repair of damage that only such a read finds. `None` otherwise, so that it is written anew.
    pub(crate) fn already_stored(&self, id: ShardId, digest: Digest) -> Result<Option<DurableShard>, Error> {
        match self.where_it_lies(id, |place, file| self.read_proven(id, place, file)) {
            Ok((header, _)) if header.digest != digest => Err(Error::Conflict { shard: id }),
            Ok(_) => Ok(Some(DurableShard { id, volume: self.volume(), digest })),
            Err(_) => Ok(None),
        }
    }

    /// Ids held, in order, after `after`; at most `limit`.
    pub fn list(&self, after: Option<ShardId>, limit: usize) -> Vec<ShardId> {
        self.read_table().list(after, limit)
    }

    /// True when the shard is held (durable, not deleted); says nothing about damage.
    pub fn contains(&self, id: ShardId) -> bool {
        self.read_table().find(id).is_some()
    }

    /// Bytes kept back from writes of this kind.
    pub(crate) fn reserve_bytes(&self, purpose: Purpose) -> u64 {
        let percent = match purpose {
            Purpose::Client => CLIENT_RESERVE_PERCENT,
            Purpose::Repair => REPAIR_RESERVE_PERCENT,
        };
        // A volume of few segments cannot keep two of them idle.
        let segments = (SEGMENTS_RESERVED * self.segment_bytes).min(self.capacity_bytes / 4);
        (self.capacity_bytes / 100 * percent).max(segments)
    }

    /// Bytes kept back from compaction: deletions go on whatever it does.
    pub(crate) fn compaction_reserve_bytes(&self) -> u64 {
        self.segment_bytes / 4
    }

    /// True when clients' writes go elsewhere: their reserve is begun, or one was refused and there is no more room since.
    pub(crate) fn is_short(&self, room_bytes: u64) -> bool {
        room_bytes < self.reserve_bytes(Purpose::Client) || room_bytes <= self.refused_bytes.load(Ordering::Relaxed)
    }

    /// How the volume is.
    pub fn status(&self) -> VolumeStatus {
        let free_bytes = self.room_bytes.load(Ordering::Relaxed);
        let (state, reason) = match self.poison.get() {
            Some(reason) => (VolumeState::Fenced, reason.to_string()),
            None if self.is_short(free_bytes) => (VolumeState::ReadOnly, "nearly full".to_owned()),
            None => (VolumeState::Up, String::new()),
        };
        let table = self.read_table();
        VolumeStatus {
            volume: self.volume(),
            state,
            reason,
            shards: table.shards(),
            used_bytes: table.live_bytes(),
            free_bytes,
            capacity_bytes: self.capacity_bytes,
            scrub: ScrubAge::default(),
        }
    }
}

/// Lengths within one record or buffer, which are far below the address space.
pub(crate) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("records fit the address space")
}
