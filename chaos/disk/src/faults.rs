//! What may be made to go wrong with a disk.
//!
//! **Invariants.** Everything here is planned by the harness; a disk left alone fails nothing and lies about nothing.

use std::{collections::BTreeMap, io};

use crate::{FAILURE, OpKind, SECTOR_BYTES, SimDisk, State};

/// A write that is reported done, and is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteLie {
    /// It lands at another place of the same file, over what is there.
    Misdirected,
    /// It lands nowhere. What was at its place before stays.
    Lost,
    /// Readers see it until the machine's cache is gone, with the process or the power; the medium never gets it.
    OnlyCached,
}

/// How long a region that was synced reads as it was before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// Until [`SimDisk::end_stale_reads`], or a crash or restart.
    ForAWhile,
    /// For ever: the medium has fallen back.
    ForEver,
}

/// A planned fault that struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// A call of this kind failed.
    Failed(OpKind),
    /// A write was lied about.
    Lied(WriteLie),
    /// A write was refused for want of room.
    Full,
    /// The power failed during a call.
    PowerLost,
    /// A read got bytes of another place.
    Misread,
}

/// What will go wrong.
#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) crash_at: Option<u64>,
    /// The write to be lied about: countdown, and how.
    pub(crate) lie: Option<(u64, WriteLie)>,
    /// Writes lied about so far.
    pub(crate) lies: u64,
    /// Kind to countdown: 1 fails the next one.
    pub(crate) fail: BTreeMap<OpKind, (u64, io::ErrorKind)>,
    /// Writes into files fail for want of room, as on a thin volume.
    pub(crate) thin_full: bool,
}

/// Where a write lands that is lied about.
pub(crate) enum Landing {
    At(u64),
    Nowhere,
    Cache,
}

impl SimDisk {
    /// Lets the power fail during call `number`: it and every later call returns an error, and whether its effect
    /// survives is for [`SimDisk::crash`] to decide.
    pub fn crash_at(&self, number: u64) {
        self.state().faults.crash_at = Some(number);
    }

    /// Lets the `nth` next call of `kind` fail once with `error`. After a failed write or sync, what the file holds
    /// after a crash is arbitrary among what was written; a later sync that succeeds does not repair it.
    pub fn fail(&self, kind: OpKind, nth: u64, error: io::ErrorKind) {
        assert!(nth >= 1, "the next call is the first");
        self.state().faults.fail.insert(kind, (nth, error));
    }

    /// Plans no failing call any more. What has failed stays so.
    pub fn fail_no_more(&self) {
        self.state().faults.fail.clear();
    }

    /// Lets every write into existing files fail for want of room, as when a thin volume runs out; or ends that.
    pub fn set_thin_full(&self, thin_full: bool) {
        self.state().faults.thin_full = thin_full;
    }

    /// Lets the `nth` next write be reported done without being so. One that cannot be lied about (a file too short to
    /// misdirect into) is done, and the next one is lied about instead.
    pub fn lie_about_write(&self, nth: u64, lie: WriteLie) {
        assert!(nth >= 1, "the next write is the first");
        self.state().faults.lie = Some((nth, lie));
    }

    /// Plans no lie any more. What was lied about stays as it is.
    pub fn be_honest(&self) {
        self.state().faults.lie = None;
    }

    /// How many writes were lied about.
    pub fn lies(&self) -> u64 {
        self.state().faults.lies
    }

    /// Whether readers still see what a [`WriteLie::OnlyCached`] confirmed: no reading tells it from what is there, until the
    /// cache is gone.
    pub fn owes_cached(&self) -> bool {
        self.state().names.values().any(|inode| inode.owes_cached())
    }

    /// Lets the sector at `offset` of `name` read as it was before it was last synced. False if there is no such file, or it
    /// never was different.
    pub fn read_stale_at(&self, name: &str, offset: u64, lasts: Stale) -> bool {
        let sector = offset / SECTOR_BYTES as u64;
        self.state().names.get(name).is_some_and(|inode| inode.go_stale(sector, lasts == Stale::ForEver))
    }

    /// Lets readers of the sector at `offset` of `name` get the one at `instead`, however often it is written, until
    /// [`SimDisk::end_stale_reads`], or a crash or restart: a head that is off its track. False if there is no such file, or both
    /// are the same.
    pub fn misread_at(&self, name: &str, offset: u64, instead: u64) -> bool {
        let sector = |offset: u64| offset / SECTOR_BYTES as u64;
        self.state().names.get(name).is_some_and(|inode| inode.misread(sector(offset), sector(instead)))
    }

    /// Every region reads as it was last written, and where it was, again.
    pub fn end_stale_reads(&self) {
        self.state().names.values().for_each(|inode| inode.freshen());
    }

    /// Lets every read that touches the sector at `offset` of `name` fail until it is written again: a latent error of the
    /// medium, which outlives crashes and restarts. False if there is no such file.
    pub fn fail_reads_at(&self, name: &str, offset: u64) -> bool {
        self.state().names.get(name).map(|inode| inode.spoil(offset / SECTOR_BYTES as u64)).is_some()
    }

    /// True when the sector at `offset` of `name` holds anything but zeros: where rot can hurt.
    pub fn is_written_at(&self, name: &str, offset: u64) -> bool {
        self.state().names.get(name).is_some_and(|inode| inode.is_written(offset / SECTOR_BYTES as u64))
    }

    /// Flips bit `bit` (0 to 7) of the byte at `offset` of `name`: rot, durable at once. False if there is no such byte.
    pub fn flip(&self, name: &str, offset: u64, bit: u8) -> bool {
        self.state().names.get(name).is_some_and(|inode| inode.flip(offset, bit))
    }

    /// The lie planned for this write of `len` bytes to a file of `file_len` bytes, if its turn has come: where it lands.
    pub(crate) fn lied(&self, state: &mut State, offset: u64, len: u64, file_len: u64) -> Option<Landing> {
        let (left, lie) = state.faults.lie.as_mut()?;
        *left = left.saturating_sub(1);
        if *left > 0 || len == 0 {
            return None;
        }
        let landing = match lie {
            WriteLie::Lost => Landing::Nowhere,
            WriteLie::OnlyCached => Landing::Cache,
            WriteLie::Misdirected => {
                // Drives miss by whole sectors.
                let unit = SECTOR_BYTES as u64;
                let within = offset % unit;
                let places = file_len.checked_sub(within + len)? / unit + 1;
                let place = state.random.next() % places;
                let elsewhere = if place == offset / unit { (place + 1) % places } else { place };
                (elsewhere != offset / unit).then_some(Landing::At(elsewhere * unit + within))?
            }
        };
        let lie = *lie;
        state.faults.lie = None;
        state.faults.lies += 1;
        self.tell_struck(Strike::Lied(lie));
        Some(landing)
    }

    /// The error planted for this call, if its turn has come.
    pub(crate) fn planted(&self, state: &mut State, kind: OpKind) -> Option<io::Error> {
        let (left, error) = state.faults.fail.get_mut(&kind)?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        let error = *error;
        state.faults.fail.remove(&kind);
        self.tell_struck(Strike::Failed(kind));
        Some(io::Error::new(error, format!("{FAILURE} of {kind:?}")))
    }
}
