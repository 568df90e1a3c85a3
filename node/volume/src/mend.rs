//! The heads of segments: read again while the volume is in use, and written anew where they rot.
//!
//! Recovery believes the records of a segment because its head names the life that wrote them. The head lies there twice, and a
//! volume that is in use never reads it: rot could take one copy, a year later the other, and the next start would find none of
//! the segment's shards, each of them sound and verified the day before. So the scrub looks at heads as it looks at shards.
//!
//! **Invariants.**
//! - What is written is what the segment began with, or what recovery has read: never a newer claim.
//! - The second copy is touched only after the sync of the first returned: at any moment one is on the disk that was before.
//! - It is written under the lock of the writer: the file is of this segment, and of no other use, until the sync returns.

use pacsvault_ports::disk::DiskFile;

use crate::{
    crash,
    error::Error,
    format::{SECTOR_BYTES, SegmentHeader},
    store::{Store, to_usize},
};

/// Copies of a head in a segment.
const COPIES: u64 = 2;

/// Whether this copy is as it was written.
fn sound(file: &dyn DiskFile, copy: u64, head: &SegmentHeader) -> bool {
    let mut bytes = vec![0; to_usize(SECTOR_BYTES)];
    let read = file.read_at_uncached(copy * SECTOR_BYTES, &mut bytes);
    read.is_ok() && SegmentHeader::decode(&bytes).is_ok_and(|found| found == *head)
}

impl Store {
    /// Reads both copies of the head of each segment from the device and writes those anew that are not what they should be;
    /// says how many. A segment whose head recovery did not know is left: what it holds counts as missing already.
    ///
    /// # Errors
    /// [`Error::Write`]: the volume is out of service; [`Error::Poisoned`].
    pub fn mend_heads(&self) -> Result<u64, Error> {
        self.check_poison()?;
        let sequences: Vec<u64> = self.read_table().segments.keys().copied().collect();
        let mut mended = 0;
        for sequence in sequences {
            let rotten = {
                let known = self.known_head(sequence);
                known.is_some_and(|(file, head)| (0..COPIES).any(|copy| !sound(&*file, copy, &head)))
            };
            if rotten {
                mended += self.mend_head(sequence)?;
            }
        }
        Ok(mended)
    }

    fn known_head(&self, sequence: u64) -> Option<(std::sync::Arc<dyn DiskFile>, SegmentHeader)> {
        let table = self.read_table();
        let segment = table.segments.get(&sequence)?;
        Some((segment.file.clone(), segment.head?))
    }

    fn mend_head(&self, sequence: u64) -> Result<u64, Error> {
        // Nobody frees the segment meanwhile, and no sync of a batch takes the answer that is ours.
        let writer = self.lock_writer()?;
        let sync = self.lock_sync()?;
        let Some((file, head)) = self.known_head(sequence) else { return Ok(0) };
        let one = &head.encode()[..to_usize(SECTOR_BYTES)];
        let mut mended = 0;
        for copy in (0..COPIES).filter(|copy| !sound(&*file, *copy, &head)) {
            // CRASH(volume.mend.1): this copy may be torn, as it was before; the other is what it was.
            crash::point("volume.mend.1");
            let written = file.write_at(copy * SECTOR_BYTES, &[one]);
            written.map_err(|error| self.poison("write the head of a segment anew", error))?;
            file.sync_data().map_err(|error| self.poison("sync the head of a segment", error))?;
            pacsvault_core::sometimes!("recovery: head of a segment written anew");
            tracing::warn!(volume = %self.volume(), sequence, copy, "the head of a segment was damaged; written anew");
            mended += 1;
        }
        drop((sync, writer));
        Ok(mended)
    }
}
