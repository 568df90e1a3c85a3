//! One file: what is durable, what is visible, and the writes between the two.
//!
//! **Invariants.** `visible` is `durable` with all of `pending` applied in order, unless a sync failed or the disk lies. A
//! sector absent from a map is zero.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{SECTOR_BYTES, random::Random};

/// Content of a sector; `None` is zeros.
type Sector = Option<Arc<[u8]>>;
type Sectors = BTreeMap<u64, Arc<[u8]>>;

#[derive(Clone)]
struct Content {
    len: u64,
    /// Length that a crash cannot take away; `None` while the file was never synced.
    durable_len: Option<u64>,
    visible: Sectors,
    durable: Sectors,
    /// Per write: the sectors as that write left them.
    pending: Vec<Vec<(u64, Sector)>>,
    /// Sectors that cannot be read.
    spoilt: BTreeSet<u64>,
    /// Sectors as they were before they were last synced.
    former: BTreeMap<u64, Sector>,
    /// Sectors that read like this, whatever they hold.
    stale: BTreeMap<u64, Sector>,
    /// Sectors seen in the cache, which the medium never got.
    cached: BTreeMap<u64, Sector>,
    /// Sectors whose readers get another one.
    misread: BTreeMap<u64, u64>,
}

pub(crate) struct Inode {
    content: Mutex<Content>,
}

fn put(sectors: &mut Sectors, at: u64, sector: Sector) {
    match sector {
        Some(bytes) => {
            sectors.insert(at, bytes);
        }
        None => {
            sectors.remove(&at);
        }
    }
}

impl Content {
    /// What a reader of this sector sees.
    fn seen(&self, at: u64) -> Option<&Arc<[u8]>> {
        self.held(self.misread.get(&at).copied().unwrap_or(at))
    }

    /// What a reader sees who gets the right sector.
    fn held(&self, at: u64) -> Option<&Arc<[u8]>> {
        match self.stale.get(&at).or_else(|| self.cached.get(&at)) {
            Some(instead) => instead.as_ref(),
            None => self.visible.get(&at),
        }
    }

    fn drop_cache(&mut self) {
        self.cached.clear();
        self.stale.clear();
        self.misread.clear();
    }
}

fn joined<'a>(parts: &[&'a [u8]]) -> Cow<'a, [u8]> {
    match parts {
        [one] => Cow::Borrowed(one),
        many => Cow::Owned(many.concat()),
    }
}

impl Inode {
    pub(crate) fn new(len: u64) -> Self {
        Self::with(Content {
            len,
            durable_len: None,
            visible: Sectors::new(),
            durable: Sectors::new(),
            pending: Vec::new(),
            spoilt: BTreeSet::new(),
            former: BTreeMap::new(),
            stale: BTreeMap::new(),
            cached: BTreeMap::new(),
            misread: BTreeMap::new(),
        })
    }

    fn with(content: Content) -> Self {
        Self { content: Mutex::new(content) }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file as the next process finds it.
    pub(crate) fn duplicate(&self) -> Self {
        let mut content = self.content().clone();
        content.drop_cache();
        Self::with(content)
    }

    pub(crate) fn len(&self) -> u64 {
        self.content().len
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        let content = self.content();
        let pending: usize = content.pending.iter().map(Vec::len).sum();
        ((content.visible.len() + pending) * SECTOR_BYTES) as u64
    }

    /// True when some of it came from another place.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let content = self.content();
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > content.len) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "read beyond the end of the file"));
        }
        let (mut spoilt, mut misread) = (false, false);
        for_sectors(offset, buffer.len(), |at, _, _| {
            spoilt |= content.spoilt.contains(&at);
            misread |= content.misread.contains_key(&at);
        });
        if spoilt {
            return Err(io::Error::other("simulated unreadable sector"));
        }
        for_sectors(offset, buffer.len(), |at, within, range| match content.seen(at) {
            Some(sector) => buffer[range.clone()].copy_from_slice(&sector[within..within + range.len()]),
            None => buffer[range].fill(0),
        });
        Ok(misread)
    }

    pub(crate) fn write(&self, offset: u64, parts: &[&[u8]]) {
        let joined = joined(parts);
        let bytes: &[u8] = &joined;
        let mut content = self.content();
        let mut written = Vec::new();
        for_sectors(offset, bytes.len(), |at, within, range| {
            let piece = &bytes[range];
            let old = content.visible.get(&at);
            let sector: Sector = if old.is_none() && piece.iter().all(|&byte| byte == 0) {
                None
            } else {
                let mut sector = old.map_or_else(|| vec![0; SECTOR_BYTES], |old| old.to_vec());
                sector[within..within + piece.len()].copy_from_slice(piece);
                sector.iter().any(|&byte| byte != 0).then(|| sector.into())
            };
            put(&mut content.visible, at, sector.clone());
            // A drive gives a sector that it cannot read another place when it is written.
            content.spoilt.remove(&at);
            content.stale.remove(&at);
            content.cached.remove(&at);
            written.push((at, sector));
        });
        content.len = content.len.max(offset + bytes.len() as u64);
        // Zeros over zeros that are durable and not otherwise pending change nothing, whatever is kept.
        let zeros = written.iter().all(|(at, sector)| sector.is_none() && !content.durable.contains_key(at));
        if !(zeros && content.pending.is_empty()) {
            content.pending.push(written);
        }
    }

    pub(crate) fn sync(&self) {
        let mut content = self.content();
        let content = &mut *content;
        for (at, sector) in content.pending.drain(..).flatten() {
            content.former.insert(at, content.durable.get(&at).cloned());
            put(&mut content.durable, at, sector);
        }
        content.durable_len = Some(content.len);
    }

    /// What a reader sees now and the medium never gets.
    pub(crate) fn write_cache(&self, offset: u64, parts: &[&[u8]]) {
        let bytes = joined(parts);
        let mut content = self.content();
        for_sectors(offset, bytes.len(), |at, within, range| {
            let piece = &bytes[range];
            let mut sector = content.held(at).map_or_else(|| vec![0; SECTOR_BYTES], |old| old.to_vec());
            sector[within..within + piece.len()].copy_from_slice(piece);
            content.cached.insert(at, Some(sector.into()));
        });
        content.len = content.len.max(offset + bytes.len() as u64);
    }

    /// Lets a sector read as it was before it was last synced, until it is written; `for_ever`: the medium itself falls back.
    /// False when that is no different.
    pub(crate) fn go_stale(&self, at: u64, for_ever: bool) -> bool {
        let mut content = self.content();
        let content = &mut *content;
        let Some(former) = content.former.get(&at).cloned() else { return false };
        let due = content.pending.iter().flatten().any(|(sector, _)| *sector == at);
        if due || former.as_deref() == content.durable.get(&at).map(AsRef::as_ref) {
            return false;
        }
        if for_ever {
            put(&mut content.visible, at, former.clone());
            put(&mut content.durable, at, former);
        } else {
            content.stale.insert(at, former);
        }
        true
    }

    /// Whether readers see sectors that the medium never got.
    pub(crate) fn owes_cached(&self) -> bool {
        !self.content().cached.is_empty()
    }

    pub(crate) fn freshen(&self) {
        let mut content = self.content();
        content.stale.clear();
        content.misread.clear();
    }

    /// Readers of sector `at` get sector `instead`. False when that is no different now.
    pub(crate) fn misread(&self, at: u64, instead: u64) -> bool {
        let mut content = self.content();
        let end = content.len / SECTOR_BYTES as u64;
        if at >= end || instead >= end || content.held(at) == content.held(instead) {
            return false;
        }
        content.misread.insert(at, instead);
        true
    }

    /// What a failed sync leaves: an arbitrary part durable, all of it visible, none of it still due.
    pub(crate) fn fail_sync(&self, random: &mut Random, unit: usize) {
        let mut content = self.content();
        let pending = std::mem::take(&mut content.pending);
        keep_some(&mut content.durable, pending, random, unit);
    }

    pub(crate) fn crash(&self, random: &mut Random, unit: usize) -> Self {
        let mut content = self.content().clone();
        let pending = std::mem::take(&mut content.pending);
        keep_some(&mut content.durable, pending, random, unit);
        let len = match content.durable_len {
            Some(durable) if random.chance(1, 2) => durable,
            None if random.chance(1, 2) => 0,
            Some(_) | None => content.len,
        };
        content.len = len;
        content.durable_len = Some(len);
        let end = len.div_ceil(SECTOR_BYTES as u64);
        content.durable.split_off(&end);
        content.visible = content.durable.clone();
        content.drop_cache();
        Self::with(content)
    }

    /// True when the sector holds anything but zeros.
    pub(crate) fn is_written(&self, sector: u64) -> bool {
        self.content().visible.contains_key(&sector)
    }

    pub(crate) fn spoil(&self, sector: u64) {
        self.content().spoilt.insert(sector);
    }

    pub(crate) fn flip(&self, offset: u64, bit: u8) -> bool {
        let mut content = self.content();
        if offset >= content.len {
            return false;
        }
        let at = offset / SECTOR_BYTES as u64;
        let within = usize::try_from(offset % SECTOR_BYTES as u64).unwrap_or(0);
        let content = &mut *content;
        let flipped = |old: Option<&Arc<[u8]>>| {
            let mut sector = old.map_or_else(|| vec![0; SECTOR_BYTES], |old| old.to_vec());
            sector[within] ^= 1 << (bit & 7);
            Arc::from(sector)
        };
        for sectors in [&mut content.visible, &mut content.durable] {
            let sector = flipped(sectors.get(&at));
            sectors.insert(at, sector);
        }
        for (_, sector) in content.pending.iter_mut().flatten().filter(|(sector, _)| *sector == at) {
            *sector = Some(flipped(sector.as_ref()));
        }
        true
    }
}

/// Of each pending write keeps all, nothing, or some sectors; then, when units are finer, tears some sectors inside.
fn keep_some(durable: &mut Sectors, mut pending: Vec<Vec<(u64, Sector)>>, random: &mut Random, unit: usize) {
    // Writes reach the disk in any order: of two versions of one sector either may be the last.
    if pending.len() > 1 && random.chance(1, 2) {
        for last in (1..pending.len()).rev() {
            let with = usize::try_from(random.next() % (last as u64 + 1)).unwrap_or(0);
            pending.swap(last, with);
        }
    }
    for write in pending {
        let fate = random.next() % 4;
        for (at, sector) in write {
            let kept = match fate {
                0 => false,
                1 => true,
                _ => random.chance(1, 2),
            };
            if !kept {
                continue;
            }
            let torn = fate > 1 && unit < SECTOR_BYTES && random.chance(1, 4);
            let sector = if torn { tear(durable.get(&at), sector.as_ref(), random, unit) } else { sector };
            put(durable, at, sector);
        }
    }
}

fn tear(old: Option<&Arc<[u8]>>, new: Option<&Arc<[u8]>>, random: &mut Random, unit: usize) -> Sector {
    let whole = |sector: Option<&Arc<[u8]>>| sector.map_or_else(|| vec![0; SECTOR_BYTES], |bytes| bytes.to_vec());
    let (mut torn, new) = (whole(old), whole(new));
    for start in (0..SECTOR_BYTES).step_by(unit) {
        if random.chance(1, 2) {
            torn[start..start + unit].copy_from_slice(&new[start..start + unit]);
        }
    }
    torn.iter().any(|&byte| byte != 0).then(|| torn.into())
}

/// Calls `piece(sector, offset within it, range of the buffer)` for each sector that `offset..offset + len` touches.
fn for_sectors(offset: u64, len: usize, mut piece: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let position = offset + done as u64;
        let within = usize::try_from(position % SECTOR_BYTES as u64).unwrap_or(0);
        let count = (SECTOR_BYTES - within).min(len - done);
        piece(position / SECTOR_BYTES as u64, within, done..done + count);
        done += count;
    }
}
