//! Heads and marks of segments: read again while the volume is in use, and written anew where they rot.
//!
//! Recovery believes the records of a segment because its head names the life that wrote them, and those of a later life because
//! a mark does. Both lie there twice, and a volume that is in use never reads them: rot could take one copy, a year later the
//! other, and the next start would find none of the records behind, each of them sound and verified the day before. So the
//! scrub looks at heads and marks as it looks at shards.
//!
//! **Invariants.**
//! - What is written is what was written there first, or what recovery has read: never a newer claim.
//! - A copy is touched only after the sync of the one before it returned: at any moment the others are what they were.
//! - It is written under the lock of the writer: the file is of this segment, and of no other use, until the sync returns.

use std::sync::Arc;

use pacsvault_ports::disk::DiskFile;

use crate::{
    crash,
    error::Error,
    format::{Record, SECTOR_BYTES},
    store::{Store, to_usize},
};

/// Bytes of a segment that recovery follows, and that nothing reads before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guide {
    offset: u64,
    bytes: Arc<[u8]>,
    /// What it is, for the log.
    what: &'static str,
}

impl Guide {
    /// A mark as it lies in its segment: in sectors of its own.
    pub(crate) fn mark(record: &Record, payload: &[u8]) -> Self {
        let mut bytes = record.encode();
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(to_usize(SECTOR_BYTES)), 0);
        Self { offset: record.stamp.offset, bytes: bytes.into(), what: "mark" }
    }

    /// Whether it is as it was written.
    fn sound(&self, file: &dyn DiskFile) -> bool {
        let mut bytes = vec![0; self.bytes.len()];
        file.read_at_uncached(self.offset, &mut bytes).is_ok() && *bytes == *self.bytes
    }
}

impl Store {
    /// Reads the heads of segments and the marks in them from the device and writes those anew that are not what they should
    /// be; says how many. What recovery did not find is left: what it leads to counts as missing already.
    ///
    /// # Errors
    /// [`Error::Write`]: the volume is out of service; [`Error::Poisoned`].
    pub fn mend_guides(&self) -> Result<u64, Error> {
        self.check_poison()?;
        let sequences: Vec<u64> = self.read_table().segments.keys().copied().collect();
        let mut mended = 0;
        for sequence in sequences {
            let rotten =
                self.guides(sequence).is_some_and(|(file, guides)| guides.iter().any(|one| !one.sound(&*file)));
            if rotten {
                mended += self.mend_segment(sequence)?;
            }
        }
        Ok(mended)
    }

    /// What leads through this segment, and its file.
    fn guides(&self, sequence: u64) -> Option<(Arc<dyn DiskFile>, Vec<Guide>)> {
        let table = self.read_table();
        let segment = table.segments.get(&sequence)?;
        let head = segment.head.map(|head| head.encode());
        let copies = head.iter().flat_map(|both| both.chunks(to_usize(SECTOR_BYTES)).zip(0_u64..));
        let heads = copies.map(|(one, copy)| Guide { offset: copy * SECTOR_BYTES, bytes: one.into(), what: "head" });
        Some((segment.file.clone(), heads.chain(segment.marks.iter().cloned()).collect()))
    }

    fn mend_segment(&self, sequence: u64) -> Result<u64, Error> {
        // Nobody frees the segment meanwhile, and no sync of a batch takes the answer that is ours.
        let writer = self.lock_writer()?;
        let sync = self.lock_sync()?;
        let Some((file, guides)) = self.guides(sequence) else { return Ok(0) };
        let mut mended = 0;
        for guide in guides.iter().filter(|guide| !guide.sound(&*file)) {
            // CRASH(volume.mend.1): this copy may be torn, as it was before; the other is what it was.
            crash::point("volume.mend.1");
            let written = file.write_at(guide.offset, &[&guide.bytes]);
            written.map_err(|error| self.poison("write the head or a mark of a segment anew", error))?;
            file.sync_data().map_err(|error| self.poison("sync the head or a mark of a segment", error))?;
            if guide.what == "head" {
                pacsvault_core::sometimes!("recovery: head of a segment written anew");
            } else {
                pacsvault_core::sometimes!("recovery: mark in a segment written anew");
            }
            let (volume, what, offset) = (self.volume(), guide.what, guide.offset);
            tracing::warn!(%volume, sequence, what, offset, "what leads through a segment was damaged; written anew");
            mended += 1;
        }
        drop((sync, writer));
        Ok(mended)
    }
}
