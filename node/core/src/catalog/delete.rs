//! `apply(Delete)`: the only authority to delete shard bytes.
//!
//! **Invariants.** A deleted version stays recorded with the index of the entry that deleted it, and its number is
//! never given again. Content under retention is not deleted, by version or with all others. Deleting what is deleted
//! changes nothing.

use super::Error;
use super::command::{Outcome, Rejection};
use super::keys;
use super::machine::{At, Machine, Stop};
use super::query::read_object;
use super::seal::change_study;
use super::sums::each_stripe;
use super::view::{Overlay, View};
use super::wire::{ObjectMessage, frame, open_strict};
use super::wire_seal::{SealMessage, SealedMessage};
use super::wire_words::{instance_id, present};
use crate::ids::{ObjectKey, PlacementId, StripeIndex, VersionNumber, WallMillis};

/// Versions read at once.
const VERSION_ROWS: usize = 64;

impl Machine {
    /// Answers the versions that this command deleted, none when all were deleted before, and from which index on a reader
    /// no longer finds them.
    pub(super) fn delete(
        &mut self,
        overlay: &mut Overlay<'_>,
        at: At,
        key: &ObjectKey,
        version: Option<VersionNumber>,
    ) -> Result<Outcome, Stop> {
        let format = self.initialised()?.format;
        let name = keys::object_name(key);
        let Some(object) = read_object(overlay, &name)? else {
            return Err(Rejection::NotFound(key.to_string()).into());
        };
        let wanted = |number: u32| version.is_none_or(|version| version.0 == number);
        if !(1..=object.newest).any(wanted) {
            let version = version.unwrap_or_default();
            return Err(Rejection::NotFound(format!("version {version} of {key}")).into());
        }
        // Live versions in ascending order: the newest live one is in the object record, older ones beside it.
        let mut live = older_live(overlay, &name)?;
        let newest_size = object.live.as_ref().and_then(|one| one.seal.as_ref()).map(|seal| seal.size_bytes);
        live.extend(object.live);
        let (doomed, kept): (Vec<_>, Vec<_>) = live.into_iter().partition(|record| wanted(record.version));
        for record in &doomed {
            check_retention(record, at.time, key)?;
        }
        if doomed.is_empty() {
            return Ok(Outcome::Deleted { versions: Vec::new(), index: at.index });
        }
        let versions = doomed.iter().map(|record| VersionNumber(record.version)).collect();
        for record in doomed {
            self.bury(overlay, (at, format), &name, record)?;
        }
        let newest_live = kept.into_iter().next_back();
        if let Some(record) = &newest_live {
            overlay.delete(keys::version(&name, VersionNumber(record.version)));
        }
        let size = newest_live.as_ref().and_then(|one| one.seal.as_ref()).map(|seal| seal.size_bytes);
        overlay.put(keys::object(&name), frame(&ObjectMessage { newest: object.newest, live: newest_live }));
        change_study(overlay, key, newest_size, size)?;
        Ok(Outcome::Deleted { versions, index: at.index })
    }

    /// Marks a version as deleted, and lets repair forget it.
    fn bury(
        &mut self,
        overlay: &mut Overlay<'_>,
        (at, format): (At, u32),
        name: &[u8],
        mut record: SealedMessage,
    ) -> Result<(), Error> {
        let seal: &SealMessage = present("seal of a version record", record.seal.as_ref())?;
        let instance = instance_id(&seal.instance)?;
        self.release(overlay, format, seal)?;
        record.deleted = Some(at.index.0);
        overlay.put(keys::version(name, VersionNumber(record.version)), frame(&record));
        overlay.put(keys::tombstone(at.index, instance), Vec::new());
        Ok(())
    }

    /// Takes the stripes of a record that dies out of the indexes and sums.
    ///
    /// In version 1 the index by placement kept them. Such rows stay for ever and name no live stripe.
    pub(super) fn release(&mut self, overlay: &mut Overlay<'_>, format: u32, seal: &SealMessage) -> Result<(), Error> {
        let instance = instance_id(&seal.instance)?;
        let total = present("code", seal.code.as_ref()).map(|code| code.data + code.parity)?;
        for (stripe, index) in seal.stripes.iter().zip((0_u32..).map(StripeIndex)) {
            if stripe.persisted.count_ones() != total {
                overlay.delete(keys::missing(instance, index));
            }
            if format >= 2 {
                overlay.delete(keys::placement_stripe(PlacementId(stripe.placement), instance, index));
            }
        }
        each_stripe(seal, |placement, profile, version, one| self.tally.take(placement, profile, version, one))?;
        if format >= 2 {
            let (from, to) = keys::asides_of(instance);
            for (key, _) in overlay.scan(&from, &to, seal.stripes.len())? {
                overlay.delete(key);
            }
        }
        Ok(())
    }
}

/// Live versions beside the object record, ascending.
fn older_live(view: &dyn View, name: &[u8]) -> Result<Vec<SealedMessage>, Error> {
    let (mut from, to) = keys::versions(name);
    let mut live = Vec::new();
    loop {
        let rows = view.scan(&from, &to, VERSION_ROWS)?;
        let full = rows.len() == VERSION_ROWS;
        for (key, value) in rows {
            let record: SealedMessage = open_strict("version record", &value)?;
            // PLANTED BUG: what was deleted becomes the newest version again.
            if record.deleted.is_none() || crate::probe::planted("deleted-lives") {
                live.push(record);
            }
            from = keys::after(key);
        }
        if !full {
            return Ok(live);
        }
    }
}

fn check_retention(record: &SealedMessage, now: WallMillis, key: &ObjectKey) -> Result<(), Stop> {
    let reserved = record.seal.as_ref().and_then(|seal| seal.reserved.as_ref());
    match reserved.and_then(|reserved| reserved.retain_until) {
        Some(until) if until > now.0 => Err(Rejection::NotAllowed(format!(
            "version {} of {key} must be kept until {until} ms; it is {} ms",
            record.version, now.0
        ))
        .into()),
        _ => Ok(()),
    }
}
