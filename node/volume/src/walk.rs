//! Following the records of one segment, also past damage; for recovery and for compaction.
//!
//! **Invariants.**
//! - Yields only records of this volume, segment and offset that the life in force wrote: what a client shaped like a record
//!   does not know that life, and a record of a former use of the file names another segment.
//! - Where no valid record begins, the rest is searched for the next one: damage of one header does not hide the records
//!   behind it. An unreadable sector costs itself.

use std::{io, sync::Arc};

use pacsvault_core::ids::VolumeId;
use pacsvault_ports::disk::DiskFile;

use crate::{
    format::{
        Body, HEADER_BYTES_MAX, RECORD_ALIGN, RECORD_MAGIC, RECORDS_START, Record, SECTOR_BYTES, SegmentHeader, align,
    },
    store::to_usize,
};

/// Read at once while searching.
const SEARCH_READ_BYTES: u64 = 256 << 10;
/// Read at once while records are short: one large read costs less than the many it replaces …
const WINDOW_BYTES: u64 = 1 << 20;
/// … which it does when at least so many headers lie in it.
const SPAN_SHORT_BYTES: u64 = WINDOW_BYTES / 32;

/// A walk over a segment.
pub(crate) struct Walk {
    volume: VolumeId,
    sequence: u64,
    file: Arc<dyn DiskFile>,
    len: u64,
    /// How far behind a break others are sought, if not to the end.
    search_max: Option<u64>,
    /// The life in force at this place of the log.
    pub(crate) life: u64,
    batch: u64,
    offset: u64,
    /// Where the chain of records broke, while searching.
    broken: Option<u64>,
    window: Vec<u8>,
    window_at: u64,
    records_short: bool,
    /// Where the next batch may be written: behind the last record, or nowhere.
    pub(crate) tail_offset: u64,
    /// Everything was read without errors.
    pub(crate) readable: bool,
    /// Breaks with records behind them.
    pub(crate) damaged_places: u64,
    /// Bytes read so far.
    pub(crate) read_bytes: u64,
    ended: bool,
}

impl Walk {
    /// A walk over a segment file, and the newest batch that was durable when it began. The life that began it is in its
    /// header, the copy, or its first record; `None` (with the bytes read) when there is none of them.
    pub(crate) fn begin(
        volume: VolumeId,
        sequence: u64,
        file: Arc<dyn DiskFile>,
        len: u64,
    ) -> Result<(Self, u64), u64> {
        let mut walk = Self {
            volume,
            sequence,
            file,
            len,
            search_max: None,
            life: 0,
            batch: 0,
            offset: RECORDS_START,
            broken: None,
            window: Vec::new(),
            window_at: 0,
            records_short: true,
            tail_offset: RECORDS_START,
            readable: true,
            damaged_places: 0,
            read_bytes: 0,
            ended: false,
        };
        for copy in 0..2 {
            let mut bytes = vec![0; to_usize(SECTOR_BYTES)];
            walk.read_bytes += SECTOR_BYTES;
            if walk.file.read_at(copy * SECTOR_BYTES, &mut bytes).is_err() {
                continue;
            }
            if let Ok(header) = SegmentHeader::decode(&bytes)
                && header.volume == volume
                && header.sequence == sequence
            {
                walk.life = header.life;
                return Ok((walk, header.durable_batch));
            }
        }
        match walk.record_at(RECORDS_START) {
            Ok(Some(first)) => {
                walk.life = first.stamp.life;
                Ok((walk, 0))
            }
            Ok(None) | Err(_) => Err(walk.read_bytes),
        }
    }

    /// Seeks no farther than this behind a break, while all is readable.
    pub(crate) fn search_at_most(&mut self, bytes: u64) {
        self.search_max = Some(bytes);
    }

    /// The file.
    pub(crate) fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }

    /// The next record; an end record is the last.
    pub(crate) fn next_record(&mut self) -> Option<Record> {
        while !self.ended {
            let record = match self.record_at(self.offset) {
                Ok(record) => record.filter(|record| belongs(record, self.life, self.batch)),
                Err(_) => {
                    self.readable = false;
                    None
                }
            };
            let Some(record) = record else {
                let start = *self.broken.get_or_insert(self.offset);
                let limit = match self.search_max {
                    Some(most) if self.readable => self.len.min(start + most),
                    Some(_) | None => self.len,
                };
                match self.search(self.offset + RECORD_ALIGN, limit) {
                    Some(next) => self.offset = next,
                    None => self.ended = true,
                }
                continue;
            };
            if self.broken.take().is_some() && !matches!(record.body, Body::Mark { .. }) {
                self.damaged_places += 1;
            }
            self.batch = record.stamp.batch;
            self.offset += record.span_bytes;
            self.records_short = record.span_bytes <= SPAN_SHORT_BYTES;
            self.tail_offset = align(self.offset, SECTOR_BYTES);
            match record.body {
                // The rest is not free: whoever wrote this has left the segment, or is about to.
                Body::End => (self.tail_offset, self.ended) = (self.len, true),
                Body::Mark { next_life } => self.life = next_life,
                Body::Shard(_) | Body::Tombstones { .. } => {}
            }
            return Some(record);
        }
        None
    }

    /// The record at `offset`, if one of this volume and segment begins there.
    fn record_at(&mut self, offset: u64) -> io::Result<Option<Record>> {
        if offset + RECORD_ALIGN > self.len {
            return Ok(None);
        }
        let need = align(HEADER_BYTES_MAX as u64, RECORD_ALIGN).min(self.len - offset);
        let Err(unreadable) = self.fill_window(offset, need) else { return Ok(self.record_in_window(offset, need)) };
        // Headers may be shorter: what cannot be read is the next sector perhaps, and not of this record.
        let in_sector = (offset + 1).next_multiple_of(SECTOR_BYTES) - offset;
        if in_sector >= need {
            return Err(unreadable);
        }
        self.readable = false;
        self.read_window(offset, in_sector)?;
        self.record_in_window(offset, in_sector).map(Some).ok_or(unreadable)
    }

    /// The record whose header lies in these bytes of the window, if one does.
    fn record_in_window(&self, offset: u64, len: u64) -> Option<Record> {
        let start = to_usize(offset - self.window_at);
        let bytes = &self.window[start..start + to_usize(len)];
        Record::decode(bytes).ok().filter(|record| {
            let stamp = record.stamp;
            let here = stamp.volume == self.volume && stamp.sequence == self.sequence && stamp.offset == offset;
            here && offset.checked_add(record.span_bytes).is_some_and(|end| end <= self.len)
        })
    }

    /// Leaves `need` bytes from `offset` on in the window.
    fn fill_window(&mut self, offset: u64, need: u64) -> io::Result<()> {
        if offset >= self.window_at && offset + need <= self.window_at + self.window.len() as u64 {
            return Ok(());
        }
        if self.records_short && self.read_window(offset, WINDOW_BYTES.min(self.len - offset)).is_ok() {
            return Ok(());
        }
        self.read_window(offset, need)
    }

    fn read_window(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.window.resize(to_usize(len), 0);
        self.window_at = offset;
        self.read_bytes += len;
        self.file.read_at(offset, &mut self.window).inspect_err(|_| self.window.clear())
    }

    /// Next multiple of 512 in `from..limit` where a record may begin.
    fn search(&mut self, from: u64, limit: u64) -> Option<u64> {
        let mut at = from;
        let mut buffer = Vec::new();
        let mut step = SEARCH_READ_BYTES;
        while at + RECORD_ALIGN <= limit {
            // Reads end on multiples of their size, so that bad sectors cost only themselves.
            let end = ((at / step + 1) * step).min(limit);
            buffer.resize(to_usize(end - at), 0);
            self.read_bytes += end - at;
            if self.file.read_at(at, &mut buffer).is_err() {
                self.readable = false;
                if step > SECTOR_BYTES {
                    step = SECTOR_BYTES;
                } else {
                    at = end;
                }
                continue;
            }
            let unit = to_usize(RECORD_ALIGN);
            let found = buffer.chunks(unit).position(|sector| sector.starts_with(RECORD_MAGIC));
            if let Some(found) = found {
                return Some(at + found as u64 * RECORD_ALIGN);
            }
            at = end;
        }
        None
    }
}

/// Whether a record continues the log: written by the life we are in, or the mark that ends it (or that mark's copy).
fn belongs(record: &Record, life: u64, batch: u64) -> bool {
    let known = match record.body {
        Body::Mark { next_life } => record.stamp.life == life || next_life == life,
        Body::Shard(_) | Body::Tombstones { .. } | Body::End => record.stamp.life == life,
    };
    known && record.stamp.batch >= batch
}

/// The payload of a record in `file`, if it can be read and matches its checksums.
pub(crate) fn payload_of(file: &dyn DiskFile, record: &Record) -> Option<Vec<u8>> {
    let mut payload = vec![0; to_usize(record.payload_bytes)];
    file.read_at(record.stamp.offset + record.header_bytes as u64, &mut payload).ok()?;
    pacsvault_core::checksum::verify_chunks(&payload, 0, &record.chunk_crcs).ok()?;
    Some(payload)
}
