//! Sums over the stripes of live records, by placement and version of a profile: what makes the health of a whole cluster
//! a matter of its placements instead of its stripes.
//!
//! **Invariants.**
//! - A row is the sum over exactly the stripes of live records in its group; a group without stripes has no row. So rows
//!   depend on the records alone, and replicas that agree on records agree on sums.
//! - They are outside the digest, for they are derived. A marker, written with every entry, says up to which entry they are
//!   right; a state whose marker says otherwise (written by a version that knew no sums) gets them made again before the
//!   next entry is applied.
//! - A sum that would fall below zero proves rows wrong. They are derived: the replica makes all of them again at once, from
//!   the records, and counts that ([`Machine::sums_remade`]), instead of stopping where every replica would stop.

use std::collections::{BTreeMap, BTreeSet};

use super::groups::read_sums;
use super::machine::{Machine, load_rows};
use super::view::{Overlay, View};
use super::wire::{ObjectMessage, SumsAppliedMessage, SumsMessage, frame, open_strict};
use super::wire_seal::{SealMessage, SealedMessage};
use super::wire_words::{present, text};
use super::{Error, keys};
use crate::health::Sums;
use crate::ids::{LogIndex, PlacementId, ProfileName};
use crate::layout::profile::Code;

/// Placements whose sums are kept in memory: about 200 bytes each, so a few MiB.
const PLACEMENTS_KNOWN: usize = 16_384;
/// Rows deleted at once when sums are made again.
const ROWS: usize = 1_024;

struct Known {
    profile: ProfileName,
    version: u32,
    /// As stored; absent when not yet read.
    stored: Option<Sums>,
    added: Sums,
    taken: Sums,
}

/// Changes of sums that are not yet in rows, and the rows read or written last.
#[derive(Default)]
pub(super) struct Tally {
    known: BTreeMap<PlacementId, Vec<Known>>,
    changed: BTreeSet<PlacementId>,
    /// Rows are not to be trusted: they must be made again.
    pub(super) stale: bool,
}

/// One stripe of `stripe_bytes`.
pub(super) fn one_stripe(code: Code, stripe_bytes: u64) -> Sums {
    Sums { stripes: 1, content_bytes: stripe_bytes, shard_bytes: code.shard_bytes(stripe_bytes) }
}

fn grow(sum: &mut Sums, by: Sums) {
    // No overflow: content is below 2^64 bytes, and each shard is no longer than the content of its stripe or one byte.
    sum.stripes += by.stripes;
    sum.content_bytes += by.content_bytes;
    sum.shard_bytes += by.shard_bytes;
}

impl Tally {
    fn of(&mut self, placement: PlacementId, profile: &ProfileName, version: u32) -> &mut Known {
        self.changed.insert(placement);
        let known = self.known.entry(placement).or_default();
        match known.iter().position(|one| one.version == version && one.profile == *profile) {
            Some(at) => &mut known[at],
            None => {
                let (added, taken) = (Sums::default(), Sums::default());
                known.push(Known { profile: profile.clone(), version, stored: None, added, taken });
                let last = known.len() - 1;
                &mut known[last]
            }
        }
    }

    pub(super) fn add(&mut self, placement: PlacementId, profile: &ProfileName, version: u32, sums: Sums) {
        grow(&mut self.of(placement, profile, version).added, sums);
    }

    pub(super) fn take(&mut self, placement: PlacementId, profile: &ProfileName, version: u32, sums: Sums) {
        grow(&mut self.of(placement, profile, version).taken, sums);
    }

    /// Puts the changes into rows. False: what is in rows contradicts them.
    fn settle(&mut self, overlay: &mut Overlay<'_>) -> Result<bool, Error> {
        for placement in std::mem::take(&mut self.changed) {
            for known in self.known.get_mut(&placement).into_iter().flatten() {
                if !known.settle(overlay, placement)? {
                    return Ok(false);
                }
            }
        }
        if self.known.len() > PLACEMENTS_KNOWN {
            self.known.clear();
        }
        Ok(true)
    }
}

impl Known {
    fn settle(&mut self, overlay: &mut Overlay<'_>, placement: PlacementId) -> Result<bool, Error> {
        let (added, taken) = (std::mem::take(&mut self.added), std::mem::take(&mut self.taken));
        if added == taken {
            return Ok(true);
        }
        let key = keys::sums(placement, &self.profile, self.version);
        let before = match self.stored {
            Some(stored) => stored,
            None => overlay.get(&key)?.map(|value| read_sums(&value)).transpose()?.unwrap_or_default(),
        };
        let moved = |of: fn(&Sums) -> u64| of(&before).checked_add(of(&added))?.checked_sub(of(&taken));
        let after =
            moved(|sums| sums.stripes).zip(moved(|sums| sums.content_bytes)).zip(moved(|sums| sums.shard_bytes));
        let Some(((stripes, content_bytes), shard_bytes)) = after else { return Ok(false) };
        let after = Sums { stripes, content_bytes, shard_bytes };
        put(overlay, key, after);
        self.stored = Some(after);
        Ok(true)
    }
}

fn put(overlay: &mut Overlay<'_>, key: Vec<u8>, sums: Sums) {
    if sums == Sums::default() {
        overlay.delete_outside_digest(key);
        return;
    }
    let Sums { stripes, content_bytes, shard_bytes } = sums;
    overlay.put_outside_digest(key, frame(&SumsMessage { stripes, content_bytes, shard_bytes }));
}

/// True when the sums in `view` are not those of the state after `applied`.
pub(super) fn are_stale(view: &dyn View, applied: LogIndex) -> Result<bool, Error> {
    let Some(bytes) = view.get(&keys::sums_applied())? else { return Ok(true) };
    Ok(open_strict::<SumsAppliedMessage>("marker of sums", &bytes)?.applied != applied.0)
}

/// Adds (or takes, see [`Tally`]) each stripe of a stored record.
pub(super) fn each_stripe(
    seal: &SealMessage,
    mut each: impl FnMut(PlacementId, &ProfileName, u32, Sums),
) -> Result<(), Error> {
    let profile: ProfileName = text("profile name", &seal.profile)?;
    let code: Code = present("code", seal.code.clone())?.try_into()?;
    for stripe in &seal.stripes {
        let placement = PlacementId(stripe.placement);
        each(placement, &profile, seal.profile_version, one_stripe(code, stripe.stripe_bytes));
    }
    Ok(())
}

impl Machine {
    /// True when the sums of the loaded state must be made again, which [`Machine::apply`] would do with the next entry.
    /// Until then the groups that queries see are wrong.
    pub fn sums_stale(&self) -> bool {
        self.tally.stale
    }

    /// How often since loading the sums contradicted the records and were made again. Anything but 0 is a bug, or rot below the
    /// store's checksums, that somebody should be told of; what is stored is not concerned.
    pub fn sums_remade(&self) -> u64 {
        self.sums_remade
    }

    /// Puts changes of sums into rows, those of earlier commands of this entry included; makes all rows again when they are
    /// proven wrong. The records in `overlay` are then those of the changes, so the outcome is the same as without the fault.
    pub(super) fn settle_sums(&mut self, overlay: &mut Overlay<'_>) -> Result<(), Error> {
        if !self.tally.settle(overlay)? {
            self.sums_remade += 1;
            self.rebuild_sums(overlay)?;
        }
        Ok(())
    }

    /// Makes all sums again from the records, in one pass over them; write the overlay before serving. It is derived and
    /// idempotent: after a crash it is done again.
    /// # Errors
    /// The state is unreadable.
    pub fn rebuild_sums(&mut self, overlay: &mut Overlay<'_>) -> Result<(), Error> {
        let mut totals: BTreeMap<(PlacementId, ProfileName, u32), Sums> = BTreeMap::new();
        let mut count = |record: &SealedMessage| {
            let seal = present("seal of a record", record.seal.as_ref())?;
            each_stripe(seal, |placement, profile, version, one| {
                grow(totals.entry((placement, profile.clone(), version)).or_default(), one);
            })
        };
        load_rows(overlay, keys::all_objects(), |bytes| {
            let object: ObjectMessage = open_strict("object record", bytes)?;
            object.live.as_ref().map_or(Ok(()), &mut count)
        })?;
        load_rows(overlay, keys::all_versions(), |bytes| {
            let record: SealedMessage = open_strict("version record", bytes)?;
            if record.deleted.is_none() { count(&record) } else { Ok(()) }
        })?;
        clear(overlay)?;
        for ((placement, profile, version), sums) in totals {
            put(overlay, keys::sums(placement, &profile, version), sums);
        }
        self.tally = Tally::default();
        self.mark_sums(overlay);
        Ok(())
    }

    /// Says that the sums are those of the present state.
    pub(super) fn mark_sums(&self, overlay: &mut Overlay<'_>) {
        let marker = SumsAppliedMessage { applied: self.applied().0 };
        overlay.put_outside_digest(keys::sums_applied(), frame(&marker));
    }
}

fn clear(overlay: &mut Overlay<'_>) -> Result<(), Error> {
    let (mut from, to) = keys::all_sums();
    loop {
        let rows = overlay.scan(&from, &to, ROWS)?;
        let end = rows.len() < ROWS;
        for (key, _) in rows {
            from = keys::after(key.clone());
            overlay.delete_outside_digest(key);
        }
        if end {
            return Ok(());
        }
    }
}
