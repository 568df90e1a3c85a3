//! Segment files: begun, ended, made ahead of need, and reused once nothing needs them.
//!
//! **Invariants.**
//! - A file is a segment by its durable name; before it has that, its header is durable. A spare's bytes are nobody's.
//! - A freed segment's name is durably gone before the tombstones that emptied it may go.
//! - At most [`SPARES_MAX`] spares are kept; the others go back to the file system.
//! - The newest segment is never freed, so numbers of files grow for ever, whatever is unlinked.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use pacsvault_ports::disk::DiskFile;

use crate::{
    crash,
    error::Error,
    format::{Body, RECORDS_START, Record, SECTOR_BYTES, SegmentHeader, align, segment_name, spare_name},
    index::Segment,
    store::{Store, to_usize},
    writer::{Active, Spare, Writer},
};

/// Zeros that prewrite segments, per write.
const PREWRITE_BYTES: usize = 1 << 20;
/// Spares that are kept: one to roll into, one for compaction beside.
const SPARES_MAX: usize = 2;

impl Store {
    /// Bytes in this volume's own files that no shard needs any more and compaction can get back; what is dead in the segment
    /// that is being written counts once the next one is.
    pub fn dead_bytes(&self) -> u64 {
        self.read_table().dead_bytes()
    }

    /// Looks how much room there is, also when nothing is written: others may fill or free the same disk. Leaves it to whoever
    /// writes at this moment.
    ///
    /// # Errors
    /// The disk cannot tell: it is out of service from now on.
    pub fn look_for_room(&self) -> Result<(), Error> {
        self.check_poison()?;
        match self.writer.try_lock() {
            Ok(writer) => self.measure_room(&writer).map(drop),
            // Every write begins with the same look; one that broke off is told by the next write.
            Err(_) => Ok(()),
        }
    }

    /// Bytes that may still be written: the rest of the active segment, spares, and what whole segments can still be made.
    pub(crate) fn measure_room(&self, writer: &Writer) -> Result<u64, Error> {
        let space = self.disk.space().map_err(|error| self.poison("measure the free space", error))?;
        let files: u64 = self.read_table().segments.values().map(|segment| segment.len).sum();
        let spares: u64 = writer.spares.iter().map(|spare| spare.len).sum();
        let rest = writer.active.as_ref().map_or(0, |active| active.len.saturating_sub(active.offset));
        let growth = space.free_bytes.min(self.capacity_bytes.saturating_sub(files + spares));
        let room = rest + spares + growth / self.segment_bytes * self.segment_bytes;
        self.room_bytes.store(room, Ordering::Relaxed);
        Ok(room)
    }

    /// Leaves the active segment and begins another that has room for `need` bytes of records.
    pub(crate) fn roll(&self, writer: &mut Writer, need: u64) -> Result<(), Error> {
        let len = self.segment_bytes.max(align(RECORDS_START + need, SECTOR_BYTES));
        let at = writer.spares.iter().position(|spare| spare.len >= RECORDS_START + need);
        let spare = match at {
            Some(at) => writer.spares.remove(at),
            None => {
                let number = writer.next_number;
                writer.next_number += 1;
                self.create_spare(number, len)?
            }
        };
        // The batch before holds this lock until it is synced.
        let sync = self.lock_sync()?;
        if let Some(active) = writer.active.take() {
            self.end_segment(writer, &active)?;
        }
        let sequence = writer.next_number;
        writer.next_number += 1;
        let header = SegmentHeader {
            volume: self.volume(),
            cluster: self.identity.cluster,
            sequence,
            life: self.options.life,
            durable_batch: match &writer.mark {
                Some(mark) => mark.proven_batch,
                None => self.durable_batch.load(Ordering::Acquire),
            },
        };
        // A new segment of this life needs no proof of it; a mark that names void records is due all the same.
        if let Some(mark) = &mut writer.mark {
            mark.previous_life = self.options.life;
            if mark.voids.is_empty() {
                writer.mark = None;
            }
        }
        // CRASH(volume.segment.3): the header of a spare may be torn. It is a spare by name, and nobody reads it.
        crash::point("volume.segment.3");
        spare.file.write_at(0, &[&header.encode()]).map_err(|error| self.poison("write a segment header", error))?;
        spare.file.sync_data().map_err(|error| self.poison("sync a segment header", error))?;
        // CRASH(volume.segment.4): a whole header under the name of a spare, or of a segment without records.
        crash::point("volume.segment.4");
        let name = segment_name(sequence);
        self.disk.rename(&spare.name, &name).map_err(|error| self.poison("name a segment", error))?;
        // CRASH(volume.segment.5): the name may vanish, but no record is written before it is durable.
        crash::point("volume.segment.5");
        self.disk.sync_names().map_err(|error| self.poison("sync the name of a segment", error))?;
        let mut segment = Segment::new(spare.file.clone(), spare.len);
        segment.head = Some(header);
        self.write_table().segments.insert(sequence, segment);
        if at.is_none() {
            writer.preparing = false;
        }
        writer.active = Some(Active { sequence, file: spare.file, offset: RECORDS_START, len: spare.len });
        drop(sync);
        Ok(())
    }

    /// Tells recovery that nothing follows. Not synced: without it, recovery searches the rest and finds nothing.
    fn end_segment(&self, writer: &Writer, active: &Active) -> Result<(), Error> {
        if active.offset + SECTOR_BYTES > active.len {
            return Ok(());
        }
        let mut end = Record::new(self.volume(), Body::End, 0, Vec::new());
        end.span_bytes = active.len - active.offset;
        end.stamp.sequence = active.sequence;
        end.stamp.offset = active.offset;
        end.stamp.batch = writer.batch;
        // While a mark is due this life may not claim more than recovery proved: torn records are not void yet.
        (end.stamp.life, end.stamp.durable_batch) = match &writer.mark {
            Some(mark) => (mark.previous_life, mark.proven_batch),
            None => (self.options.life, self.durable_batch.load(Ordering::Acquire)),
        };
        let mut sector = end.encode();
        sector.resize(to_usize(SECTOR_BYTES), 0);
        // CRASH(volume.segment.6): the end record may be missing or torn: then recovery searches on.
        crash::point("volume.segment.6");
        active.file.write_at(active.offset, &[&sector]).map_err(|error| self.poison("end a segment", error))
    }

    /// Makes a file of `len` bytes that may become a segment. No room is no reason to distrust the disk: no byte of
    /// any record was in it. Any other error is.
    fn create_spare(&self, number: u64, len: u64) -> Result<Spare, Error> {
        let name = spare_name(number);
        let part = format!("{name}.tmp");
        let table = self.read_table().segments.values().map(|segment| segment.len).sum::<u64>();
        if table + len > self.capacity_bytes {
            return Err(Error::Full { volume: self.volume(), room_bytes: 0, reserve_bytes: 0 });
        }
        // CRASH(volume.segment.1): a temporary file of any length may be left. Recovery removes it.
        crash::point("volume.segment.1");
        match self.fill_spare(&part, len) {
            Ok(file) => {
                // CRASH(volume.segment.2): a spare by one name or the other; neither holds records.
                crash::point("volume.segment.2");
                self.disk.rename(&part, &name).map_err(|error| self.poison("name a spare", error))?;
                Ok(Spare { name, file, len })
            }
            Err(error) if is_full(&error) => {
                tracing::warn!(volume = %self.volume(), len, "no room for another segment");
                // CRASH(volume.segment.7): the part may stay; recovery removes it.
                crash::point("volume.segment.7");
                match self.disk.remove(&part) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.poison("remove a spare", error)),
                    Ok(()) | Err(_) => Err(Error::Full { volume: self.volume(), room_bytes: 0, reserve_bytes: 0 }),
                }
            }
            Err(error) => Err(self.poison("create a segment", error)),
        }
    }

    fn fill_spare(&self, part: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.create(part, len)?;
        if self.options.prewrite {
            let zeros = vec![0; PREWRITE_BYTES];
            let mut offset = 0;
            while offset < len {
                let count = to_usize((len - offset).min(PREWRITE_BYTES as u64));
                file.write_at(offset, &[&zeros[..count]])?;
                offset += count as u64;
            }
        }
        file.sync_data()?;
        Ok(file)
    }

    /// True when the active segment is half full and no spare is there: call [`Store::prepare`] in the background.
    pub fn wants_spare(&self) -> bool {
        let Ok(writer) = self.writer.try_lock() else { return false };
        let half = writer.active.as_ref().is_none_or(|active| active.offset > active.len / 2);
        half && writer.spares.is_empty() && !writer.preparing && self.poison.get().is_none()
    }

    /// Makes a spare ahead of need, while appends go on.
    /// # Errors
    /// [`Error::Full`], [`Error::Write`], [`Error::Poisoned`].
    pub fn prepare(&self) -> Result<(), Error> {
        let number = {
            let mut writer = self.lock_writer()?;
            if writer.preparing || !writer.spares.is_empty() {
                return Ok(());
            }
            writer.preparing = true;
            writer.next_number += 1;
            writer.next_number - 1
        };
        // Without room it stays marked as being made, so that nobody asks again before a segment is left or freed.
        let spare = self.create_spare(number, self.segment_bytes)?;
        let mut writer = self.lock_writer()?;
        writer.preparing = false;
        writer.spares.push(spare);
        Ok(())
    }

    /// Turns segments that nothing needs any more into spares, and gives those beyond need back to the file system. Says how
    /// many segments were freed.
    pub(crate) fn reclaim(&self) -> Result<u64, Error> {
        let mut writer = self.lock_writer()?;
        let mut freed = 0;
        let active = writer.active.as_ref().map_or(u64::MAX, |active| active.sequence);
        loop {
            let Some(sequence) = self.read_table().dead_segment(active) else { break };
            let name = spare_name(sequence);
            // CRASH(volume.reuse.1): still a segment, of records that durable tombstones delete or durable copies supersede.
            crash::point("volume.reuse.1");
            self.disk.rename(&segment_name(sequence), &name).map_err(|error| self.poison("free a segment", error))?;
            // CRASH(volume.reuse.2): by one name or the other. The tombstones stay until the new name is durable: only then
            // may the segments that hold them die.
            crash::point("volume.reuse.2");
            self.disk.sync_names().map_err(|error| self.poison("sync the name of a freed segment", error))?;
            let segment = self.write_table().take_segment(sequence);
            if let Some(segment) = segment {
                writer.spares.push(Spare { name, file: segment.file, len: segment.len });
            }
            freed += 1;
        }
        let surplus = self.surplus(&mut writer);
        if freed == 0 && surplus.is_empty() {
            return Ok(0);
        }
        drop(writer);
        self.unlink(&surplus)?;
        drop(surplus);
        self.measure_room(&*self.lock_writer()?)?;
        Ok(freed)
    }

    /// Takes out the spares that are too short, and those beyond [`SPARES_MAX`].
    fn surplus(&self, writer: &mut Writer) -> Vec<Spare> {
        let mut kept = 0;
        let enough = |spare: &mut Spare| {
            let keep = kept < SPARES_MAX && spare.len >= self.segment_bytes;
            kept += usize::from(keep);
            !keep
        };
        writer.spares.extract_if(.., enough).collect()
    }

    /// Gives spares back to the file system, while appends go on: nobody else knows them any more.
    fn unlink(&self, spares: &[Spare]) -> Result<(), Error> {
        for spare in spares {
            // CRASH(volume.unlink.1): the spare may be there or gone; it holds no records by its name.
            crash::point("volume.unlink.1");
            self.disk.remove(&spare.name).map_err(|error| self.poison("remove a spare", error))?;
        }
        if spares.is_empty() {
            return Ok(());
        }
        // CRASH(volume.unlink.2): removed spares may come back, and are spares again.
        crash::point("volume.unlink.2");
        self.disk.sync_names().map_err(|error| self.poison("sync the removal of spares", error))
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
