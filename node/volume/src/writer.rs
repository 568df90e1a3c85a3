//! Appending: batches, syncs, segments and their reuse.
//!
//! **Invariants.**
//! - A batch lies in one segment whose name was durable before; it is answered after its own sync, and batches are synced
//!   and answered in the order in which they were written.
//! - A batch may be written while the one before is being synced; a segment is left only when all of it is synced.
//! - What could not be written is answered with an error; what was answered with success is in the table.

use std::{collections::VecDeque, sync::Arc, sync::MutexGuard, sync::atomic::Ordering};

use bytes::Bytes;
use pacsvault_core::{
    checksum::{chunk_crcs, verify_chunks},
    ids::{Digest, LogIndex},
    shard::{DurableShard, ShardHeader, ShardId},
};
use pacsvault_ports::disk::DiskFile;

use crate::{
    crash,
    error::Error,
    format::{Body, Record, SECTOR_BYTES, Tombstone, align, check_shard, encode_voids, header_bytes},
    index::Place,
    mend::Guide,
    store::{Done, Op, Purpose, Store, sync_data, to_usize},
};

/// Most bytes in one batch, unless one record alone is larger: at 500 MB/s a sync of some 30 ms.
pub(crate) const BATCH_BYTES_MAX: u64 = 16 << 20;
/// Most tombstones in one record: 40 KiB.
pub(crate) const TOMBSTONES_MAX: usize = 1024;
/// Zeros that pad batches.
static ZEROS: [u8; 4096] = [0; 4096];

/// The segment that is appended to.
pub(crate) struct Active {
    pub(crate) sequence: u64,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// A file that may become a segment.
pub(crate) struct Spare {
    pub(crate) name: String,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) len: u64,
}

/// What the first batch of this life must say before anything else.
pub(crate) struct MarkDue {
    /// The life before, in whose name the mark is made.
    pub(crate) previous_life: u64,
    /// Newest batch that recovery proved durable.
    pub(crate) proven_batch: u64,
    /// Records of torn batches: (segment, offset).
    pub(crate) voids: Vec<(u64, u64)>,
}

/// What only the writer knows.
pub(crate) struct Writer {
    pub(crate) active: Option<Active>,
    /// Next sequence and spare number.
    pub(crate) next_number: u64,
    /// Newest batch number used.
    pub(crate) batch: u64,
    pub(crate) mark: Option<MarkDue>,
    pub(crate) spares: Vec<Spare>,
    /// A spare is being made in the background.
    pub(crate) preparing: bool,
}

/// An op that passed all checks that need no lock, or a piece of compaction.
pub(crate) enum Work {
    Put {
        header: ShardHeader,
        data: Bytes,
        purpose: Purpose,
    },
    Delete {
        ids: Vec<ShardId>,
        authority: LogIndex,
    },
    /// The same record again, if the shard still lies at `from`; else nothing ([`Done::Deleted`] of 0).
    Copy {
        header: ShardHeader,
        data: Bytes,
        from: Place,
    },
    /// Tombstones against superseded records.
    Pay {
        list: Vec<Tombstone>,
    },
    /// The tombstones of segment `from` again, as `authority` allowed them.
    Restate {
        list: Vec<Tombstone>,
        authority: LogIndex,
        from: u64,
    },
}

/// A record about to be written, and what becomes visible with it.
struct Planned {
    answer: usize,
    record: Record,
    payload: Bytes,
    effect: Effect,
}

pub(crate) enum Effect {
    Store(ShardId, Digest),
    Move(ShardId, Digest),
    Delete(Vec<Tombstone>),
    Pay(Vec<Tombstone>),
    /// Tombstones that were in this segment.
    Restate(Vec<Tombstone>, u64),
    Mark,
}

type Answers = Vec<Option<Result<Done, Error>>>;

/// A write of a shard that is being written already by an earlier batch or op: (answer, id, digest).
type Followers = Vec<(usize, ShardId, Digest)>;

impl Store {
    /// Writes shards durably; answers in order. See [`Store::commit`].
    pub fn append(&self, shards: &[(ShardHeader, Bytes)]) -> Vec<Result<DurableShard, Error>> {
        let put = |(header, data): &(ShardHeader, Bytes)| Op::Put {
            header: header.clone(),
            data: data.clone(),
            purpose: Purpose::Client,
        };
        let stored = |answer: Result<Done, Error>| {
            answer.map(|done| match done {
                Done::Stored(durable) => durable,
                Done::Deleted(_) => unreachable!("a put is answered as a put"),
            })
        };
        self.commit(shards.iter().map(put).collect()).into_iter().map(stored).collect()
    }

    /// Deletes shards durably; says how many were held. Ids not held are skipped, so repeating is safe.
    /// # Errors
    /// As for [`Store::commit`].
    pub fn delete(&self, ids: &[ShardId], authority: LogIndex) -> Result<u64, Error> {
        match self.commit(vec![Op::Delete { ids: ids.to_vec(), authority }]).pop() {
            Some(Ok(Done::Deleted(count))) => Ok(count),
            Some(Err(error)) => Err(error),
            Some(Ok(Done::Stored(_))) | None => unreachable!("a deletion is answered as a deletion"),
        }
    }

    /// Does all `ops` with as few syncs as possible; one answer per op, in order.
    ///
    /// A shard that is held already with the same digest is answered at once. Errors per op: [`Error::Malformed`],
    /// [`Error::Conflict`], [`Error::Full`]; [`Error::Write`] and [`Error::Poisoned`] for all whose fate is unknown.
    pub fn commit(&self, ops: Vec<Op>) -> Vec<Result<Done, Error>> {
        let mut answers: Answers = ops.iter().map(|_| None).collect();
        let mut work = VecDeque::new();
        for (answer, op) in ops.into_iter().enumerate() {
            match self.admit(op) {
                Ok(Ok(ready)) => work.push_back((answer, ready)),
                Ok(Err(done)) => answers[answer] = Some(Ok(done)),
                Err(error) => answers[answer] = Some(Err(error)),
            }
        }
        let deletes = work.iter().any(|(_, work)| matches!(work, Work::Delete { .. }));
        let replaced: Vec<Tombstone> = work.iter().filter_map(|(_, work)| self.held_by(work)).collect();
        let answers = self.write(work, answers);
        // The answers are decided; if the disk fails here, the next write hears of it.
        if let Err(error) = self.pay_for(replaced) {
            tracing::warn!(volume = %self.volume(), %error, "damaged records are left without a tombstone for now");
        }
        if deletes && let Err(error) = self.reclaim() {
            tracing::warn!(volume = %self.volume(), %error, "cannot reclaim segments");
        }
        answers
    }

    /// The record that a put is to take the place of.
    fn held_by(&self, work: &Work) -> Option<Tombstone> {
        let Work::Put { header, .. } = work else { return None };
        let place = self.read_table().find(header.id)?;
        Some(Tombstone { id: header.id, sequence: place.sequence(), offset: place.offset() })
    }

    /// Does `work` and fills in the answers that are still open.
    fn write(&self, work: VecDeque<(usize, Work)>, mut answers: Answers) -> Vec<Result<Done, Error>> {
        if !work.is_empty() {
            let mut followers = Followers::new();
            if let Err(error) = self.write_all(work, &mut answers, &mut followers) {
                for answer in answers.iter_mut().filter(|answer| answer.is_none()) {
                    *answer = Some(Err(error.clone()));
                }
            }
            self.answer_followers(followers, &mut answers);
        }
        let open = || Err(self.check_poison().err().unwrap_or(Error::Closed { volume: self.volume() }));
        answers.into_iter().map(|answer| answer.unwrap_or_else(open)).collect()
    }

    /// Does pieces of compaction; one answer each, in order.
    pub(crate) fn write_own(&self, work: Vec<Work>) -> Vec<Result<Done, Error>> {
        let answers = work.iter().map(|_| None).collect();
        self.write(work.into_iter().enumerate().collect(), answers)
    }

    /// Checks an op; `Ok(Err)` when nothing is left to do.
    fn admit(&self, op: Op) -> Result<Result<Work, Done>, Error> {
        self.check_poison()?;
        match op {
            Op::Delete { ids, authority } => Ok(Ok(Work::Delete { ids, authority })),
            Op::Put { header, data, purpose } => {
                let shard = header.id;
                let malformed = |reason| Error::Malformed { shard, reason };
                check_shard(&header).map_err(malformed)?;
                if data.len() as u64 != header.shard_bytes() {
                    return Err(malformed("its length is not that of its header"));
                }
                verify_chunks(&data, 0, &header.chunk_crcs).map_err(|_| malformed("a chunk fails its checksum"))?;
                if self.contains(shard)
                    && let Some(durable) = self.already_stored(shard, header.digest)?
                {
                    return Ok(Err(Done::Stored(durable)));
                }
                Ok(Ok(Work::Put { header, data, purpose }))
            }
        }
    }

    fn write_all(
        &self,
        mut work: VecDeque<(usize, Work)>,
        answers: &mut Answers,
        followers: &mut Followers,
    ) -> Result<(), Error> {
        let mut writer = self.lock_writer()?;
        if work.iter().any(|(_, work)| self.depends(work)) {
            // Whoever wrote before took this lock before leaving the writer: once we have had both, the table tells all.
            drop(self.lock_sync()?);
        }
        let mut room = self.measure_room(&writer)?;
        let mut ready = VecDeque::new();
        while let Some((answer, next)) = work.pop_front() {
            self.plan(answer, next, &mut room, &mut ready, answers, followers);
        }
        self.room_bytes.store(room, Ordering::Relaxed);
        while !ready.is_empty() {
            match self.make_room(&mut writer, &ready[0]) {
                Ok(()) => {}
                Err(error @ Error::Full { .. }) => {
                    self.refuse(ready.pop_front(), &error, answers);
                    continue;
                }
                Err(error) => {
                    fail(ready.iter().map(|planned| planned.answer), &error, answers);
                    return Err(error);
                }
            }
            // An op may have several records; if one of those still to come fails, so does the op.
            let open: Vec<usize> = ready.iter().map(|planned| planned.answer).collect();
            let batch = take_batch(&mut writer, &mut ready, self);
            let file = writer.active.as_ref().expect("make_room leaves a segment").file.clone();
            let finished = self.write_batch(&mut writer, batch).and_then(|batch| {
                let number = writer.batch;
                let sync = self.lock_sync()?;
                Ok((sync, number, batch))
            });
            // After the last batch others may write while this one syncs.
            let unlocked = if ready.is_empty() { None } else { Some(writer) };
            let finished =
                finished.and_then(|(sync, number, batch)| self.finish_batch(sync, &*file, number, batch, answers));
            match (finished, unlocked) {
                (Ok(()), Some(still)) => writer = still,
                (Ok(()), None) => return Ok(()),
                (Err(error), _) => {
                    fail(open.into_iter(), &error, answers);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether what `work` must write depends on a batch that may be in flight: a copy must not miss that its shard is being
    /// deleted, nor a deletion that its shard is being moved, or the one would undo the other.
    fn depends(&self, work: &Work) -> bool {
        match work {
            Work::Copy { .. } => true,
            Work::Delete { ids, .. } => {
                let table = self.read_table();
                ids.iter().any(|id| table.is_in_flight(*id))
            }
            Work::Put { .. } | Work::Pay { .. } | Work::Restate { .. } => false,
        }
    }

    fn refuse(&self, planned: Option<Planned>, error: &Error, answers: &mut Answers) {
        let Some(planned) = planned else { return };
        if let Effect::Store(id, _) | Effect::Move(id, _) = planned.effect {
            self.write_table().end(id);
        }
        answers[planned.answer] = Some(Err(error.clone()));
    }

    /// Turns one op into records.
    fn plan(
        &self,
        answer: usize,
        work: Work,
        room: &mut u64,
        ready: &mut VecDeque<Planned>,
        answers: &mut Answers,
        followers: &mut Followers,
    ) {
        match work {
            Work::Put { header, data, purpose } => {
                let (id, digest) = (header.id, header.digest);
                let crcs = header.chunk_crcs.clone();
                let record = Record::new(self.volume(), Body::Shard(header), data.len() as u64, crcs);
                let reserve_bytes = self.reserve_bytes(purpose);
                if room.saturating_sub(align(record.span_bytes, SECTOR_BYTES)) < reserve_bytes {
                    if purpose == Purpose::Client {
                        self.refused_bytes.store(*room, Ordering::Relaxed);
                    }
                    answers[answer] =
                        Some(Err(Error::Full { volume: self.volume(), room_bytes: *room, reserve_bytes }));
                    return;
                }
                let mut table = self.write_table();
                if table.is_in_flight(id) {
                    followers.push((answer, id, digest));
                    return;
                }
                if table.find(id).is_some() {
                    drop(table);
                    // It became durable since `admit` looked, or what is held is damaged: then the new record supersedes it.
                    if !matches!(self.already_stored(id, digest), Ok(None)) {
                        followers.push((answer, id, digest));
                        return;
                    }
                    table = self.write_table();
                }
                table.begin(id);
                *room = room.saturating_sub(record.span_bytes);
                ready.push_back(Planned { answer, record, payload: data, effect: Effect::Store(id, digest) });
            }
            Work::Delete { ids, authority } => {
                let table = self.read_table();
                let held = ids.iter().filter_map(|id| {
                    let place = table.find(*id)?;
                    Some(Tombstone { id: *id, sequence: place.sequence(), offset: place.offset() })
                });
                let held: Vec<Tombstone> = held.collect();
                drop(table);
                if held.is_empty() {
                    answers[answer] = Some(Ok(Done::Deleted(0)));
                }
                for part in held.chunks(TOMBSTONES_MAX) {
                    ready.push_back(self.plan_tombstones(answer, Effect::Delete(part.to_vec()), authority, room));
                }
            }
            Work::Copy { header, data, from } => match self.plan_copy(answer, header, data, from, room) {
                Ok(Some(planned)) => ready.push_back(planned),
                Ok(None) => answers[answer] = Some(Ok(Done::Deleted(0))),
                Err(error) => answers[answer] = Some(Err(error)),
            },
            Work::Pay { list } => {
                ready.push_back(self.plan_tombstones(answer, Effect::Pay(list), LogIndex(0), room));
            }
            Work::Restate { list, authority, from } => {
                ready.push_back(self.plan_tombstones(answer, Effect::Restate(list, from), authority, room));
            }
        }
    }

    /// The record again; `None` when the shard is no longer at `from`, or about to be elsewhere.
    fn plan_copy(
        &self,
        answer: usize,
        header: ShardHeader,
        data: Bytes,
        from: Place,
        room: &mut u64,
    ) -> Result<Option<Planned>, Error> {
        let (id, digest) = (header.id, header.digest);
        let crcs = header.chunk_crcs.clone();
        let record = Record::new(self.volume(), Body::Shard(header), data.len() as u64, crcs);
        let mut table = self.write_table();
        if table.is_in_flight(id) || table.find(id) != Some(from) {
            return Ok(None);
        }
        let reserve_bytes = self.compaction_reserve_bytes();
        if room.saturating_sub(align(record.span_bytes, SECTOR_BYTES)) < reserve_bytes {
            return Err(Error::Full { volume: self.volume(), room_bytes: *room, reserve_bytes });
        }
        table.begin(id);
        *room = room.saturating_sub(record.span_bytes);
        Ok(Some(Planned { answer, record, payload: data, effect: Effect::Move(id, digest) }))
    }

    fn plan_tombstones(&self, answer: usize, effect: Effect, authority: LogIndex, room: &mut u64) -> Planned {
        let mut payload = Vec::new();
        let list: &[Tombstone] = match &effect {
            Effect::Delete(list) | Effect::Pay(list) | Effect::Restate(list, _) => list,
            Effect::Store(..) | Effect::Move(..) | Effect::Mark => &[],
        };
        list.iter().for_each(|tombstone| tombstone.encode(&mut payload));
        let crcs = chunk_crcs(&payload);
        let record = Record::new(self.volume(), Body::Tombstones { authority }, payload.len() as u64, crcs);
        *room = room.saturating_sub(record.span_bytes);
        Planned { answer, record, payload: payload.into(), effect }
    }

    fn answer_followers(&self, followers: Followers, answers: &mut Answers) {
        if followers.is_empty() {
            return;
        }
        // Whoever writes the shard took the sync lock before leaving the writer: once we have had both, it is decided.
        let decided = self.lock_writer().map(drop).and_then(|()| self.lock_sync().map(drop));
        for (answer, id, digest) in followers {
            let outcome = match &decided {
                Err(error) => Err(error.clone()),
                Ok(()) => match self.already_stored(id, digest) {
                    Ok(Some(durable)) => Ok(Done::Stored(durable)),
                    Ok(None) => Err(Error::Closed { volume: self.volume() }),
                    Err(error) => Err(error),
                },
            };
            answers[answer] = Some(outcome);
        }
    }

    /// Stamps a batch and writes it in one go. Not durable yet.
    fn write_batch(&self, writer: &mut Writer, mut batch: Vec<Planned>) -> Result<Vec<Planned>, Error> {
        writer.batch += 1;
        let mark = writer.mark.take();
        let durable_batch = mark.as_ref().map_or(self.durable_batch.load(Ordering::Acquire), |mark| mark.proven_batch);
        let active = writer.active.as_mut().expect("make_room leaves a segment");
        let start = active.offset;
        let mut parts: Vec<Bytes> = Vec::with_capacity(3 * batch.len());
        let last = batch.len() - 1;
        for (at, planned) in batch.iter_mut().enumerate() {
            let record = &mut planned.record;
            if at == last {
                record.span_bytes = align(active.offset + record.span_bytes, SECTOR_BYTES) - active.offset;
            }
            record.stamp.sequence = active.sequence;
            record.stamp.offset = active.offset;
            record.stamp.batch = writer.batch;
            record.stamp.durable_batch = durable_batch;
            record.stamp.life = match (&planned.effect, &mark) {
                (Effect::Mark, Some(mark)) => mark.previous_life,
                _ => self.options.life,
            };
            let header = record.encode();
            let padding = record.span_bytes - header.len() as u64 - record.payload_bytes;
            parts.push(header.into());
            parts.push(planned.payload.clone());
            parts.push(Bytes::from_static(&ZEROS).slice(..to_usize(padding)));
            active.offset += record.span_bytes;
        }
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).filter(|part| !part.is_empty()).collect();
        before_write(&batch[last].effect);
        active.file.write_at(start, &parts).map_err(|error| self.poison("write a batch", error))?;
        Ok(batch)
    }

    /// Makes a written batch durable, then visible, then answered.
    fn finish_batch(
        &self,
        sync: MutexGuard<'_, ()>,
        file: &dyn DiskFile,
        number: u64,
        batch: Vec<Planned>,
        answers: &mut Answers,
    ) -> Result<(), Error> {
        if let Some(last) = batch.last() {
            before_sync(&last.effect);
        }
        sync_data(file).map_err(|error| self.poison("sync a batch", error))?;
        self.durable_batch.store(number, Ordering::Release);
        let mut table = self.write_table();
        for planned in batch {
            let stamp = planned.record.stamp;
            match planned.effect {
                Effect::Mark => {
                    if let Some(segment) = table.segments.get_mut(&stamp.sequence) {
                        segment.marks.push(Guide::mark(&planned.record, &planned.payload));
                    }
                }
                Effect::Store(id, digest) | Effect::Move(id, digest) => {
                    let place = Place::new(stamp.sequence, stamp.offset, planned.record.span_bytes)
                        .expect("segments and spans stay within the index's bounds");
                    table.insert(id, place);
                    table.end(id);
                    let durable = DurableShard { id, volume: self.volume(), digest };
                    answers[planned.answer] = Some(Ok(Done::Stored(durable)));
                }
                Effect::Restate(list, from) => {
                    for Tombstone { id, sequence, offset } in list {
                        table.delete(id, sequence, offset, stamp.sequence);
                        table.release(from, sequence);
                    }
                    answers[planned.answer] = Some(Ok(Done::Deleted(0)));
                }
                Effect::Delete(list) | Effect::Pay(list) => {
                    let mut deleted = 0;
                    for Tombstone { id, sequence, offset } in list {
                        deleted += u64::from(table.delete(id, sequence, offset, stamp.sequence));
                    }
                    let so_far = match answers[planned.answer] {
                        Some(Ok(Done::Deleted(count))) => count,
                        _ => 0,
                    };
                    answers[planned.answer] = Some(Ok(Done::Deleted(so_far + deleted)));
                }
            }
        }
        drop(table);
        drop(sync);
        Ok(())
    }

    /// Bytes of the mark that must precede a batch, twice.
    fn mark_bytes(writer: &Writer) -> u64 {
        writer.mark.as_ref().map_or(0, |mark| {
            let payload = mark.voids.len() * crate::format::VOID_BYTES;
            let header = header_bytes(0, payload.div_ceil(pacsvault_core::limits::CHUNK_BYTES));
            2 * align((header + payload) as u64, SECTOR_BYTES)
        })
    }

    /// Leaves a segment active that takes `next`, and room for an end record behind it.
    fn make_room(&self, writer: &mut Writer, next: &Planned) -> Result<(), Error> {
        let need = Self::mark_bytes(writer) + align(next.record.span_bytes, SECTOR_BYTES) + SECTOR_BYTES;
        match &writer.active {
            Some(active) if active.offset + need <= active.len => Ok(()),
            Some(_) | None => self.roll(writer, need),
        }
    }
}

/// Passes the crash point of a batch that is about to be written. Batches hold ops of callers, or one kind of compaction's.
fn before_write(effect: &Effect) {
    match effect {
        // CRASH(volume.append.1): any part of the batch may be on the disk. None of it is acknowledged; recovery keeps the
        // records that are whole by their checksums, names the others void in its mark, and appends behind them. A record that
        // looked damaged is named by no tombstone yet: what looked so may have been a read that went astray.
        Effect::Store(..) | Effect::Delete(_) | Effect::Mark => crash::point("volume.append.1"),
        // CRASH(volume.compact.1): some copies may be whole. Each is the same shard as its original, which nothing deletes
        // yet: recovery takes the later of the two, and the original while the copy is void.
        Effect::Move(..) => crash::point("volume.compact.1"),
        // CRASH(volume.compact.3): the copies are durable and supersede their originals by their place in the log. A tombstone
        // that is void is owed again after the next open.
        Effect::Pay(_) => crash::point("volume.compact.3"),
        // CRASH(volume.compact.5): tombstones may be there twice; they say the same. The first ones hold until the second ones
        // are durable, for their segment is held back.
        Effect::Restate(..) => crash::point("volume.compact.5"),
    }
}

/// Passes the crash point of a batch that is written and about to be synced.
fn before_sync(effect: &Effect) {
    match effect {
        // CRASH(volume.append.2): as before the write's end: unacknowledged, whole or void.
        Effect::Store(..) | Effect::Delete(_) | Effect::Mark => crash::point("volume.append.2"),
        // CRASH(volume.compact.2): as before the write's end. No tombstone against an original is written before this sync has
        // returned: in one batch with its copy it could survive and the copy be void, and the shard would be lost.
        Effect::Move(..) => crash::point("volume.compact.2"),
        // CRASH(volume.compact.4): whole or void, as volume.compact.3.
        Effect::Pay(_) => crash::point("volume.compact.4"),
        // CRASH(volume.compact.6): whole or void, as volume.compact.5. Their old segment is free only after this sync.
        Effect::Restate(..) => crash::point("volume.compact.6"),
    }
}

fn fail(which: impl Iterator<Item = usize>, error: &Error, answers: &mut Answers) {
    for answer in which {
        answers[answer] = Some(Err(error.clone()));
    }
}

/// Takes from `ready` what fits the active segment and one batch, a due mark first.
fn take_batch(writer: &mut Writer, ready: &mut VecDeque<Planned>, store: &Store) -> Vec<Planned> {
    let active = writer.active.as_ref().expect("make_room leaves a segment");
    let room = active.len - active.offset - SECTOR_BYTES;
    let mut bytes = Store::mark_bytes(writer);
    let mut batch = Vec::new();
    if let Some(mark) = &writer.mark {
        let payload = Bytes::from(encode_voids(&mark.voids));
        let body = Body::Mark { next_life: store.options.life };
        let mut record = Record::new(store.volume(), body, payload.len() as u64, chunk_crcs(&payload));
        record.span_bytes = align(record.span_bytes, SECTOR_BYTES);
        for _ in 0..2 {
            let (record, payload) = (record.clone(), payload.clone());
            batch.push(Planned { answer: usize::MAX, record, payload, effect: Effect::Mark });
        }
    }
    let marks = batch.len();
    while let Some(next) = ready.front() {
        let with = bytes + next.record.span_bytes;
        if align(with, SECTOR_BYTES) > room || (batch.len() > marks && with > BATCH_BYTES_MAX) {
            break;
        }
        bytes = with;
        batch.extend(ready.pop_front());
    }
    batch
}
