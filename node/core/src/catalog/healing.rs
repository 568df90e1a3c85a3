//! `apply` of what heals: new holders of shards, damage found, stripes set aside, the version in force.
//!
//! **Invariants.**
//! - A reseat is a compare-and-swap on one stripe: it changes nothing when its record is another than the mover saw, or when
//!   catalog time has passed what it said itself. What the shards that count survived before, they survive after.
//! - Indexes follow the record: row 23 names a live stripe under its present placement, row 24 holds exactly the persisted
//!   bits of live stripes with missing shards, sums are those of live records.
//! - What a record says that it survives is only raised here, but for emptying volumes, and `degraded` is false exactly when
//!   that covers the contract it was sealed under. Damage lowers no record: what holds now is computed from the bits.

use std::collections::{BTreeMap, BTreeSet};

use super::command::{COMMANDS_VERSION, Moved, Outcome, Rejection, Reseat, Seal, StripeSeal};
use super::groups::stripe_state;
use super::keys;
use super::machine::{At, Machine, Stop};
use super::query::Placements;
use super::record::{Record, forget_aside, note_missing, volumes};
use super::seal::survived_by_both;
use super::sums::one_stripe;
use super::view::{Overlay, View};
use super::wire::{AsideRowMessage, FormatMessage, WantedProfileMessage, frame};
use super::wire_seal::moved_message;
use super::wire_words::{failures_messages, unreadable};
use super::{Error, SealedInstance};
use crate::health::held;
use crate::ids::{InstanceId, PlacementId, ProfileName, ShardIndex, StripeIndex, Tenant, Uid, VolumeId};
use crate::layout::survival::{Held, covers, strongest};
use crate::layout::{Contract, Failures, Layout, NodeState, VolumeState};
use crate::shard::ShardId;

/// Most shards in one report of damage: 1 000 × 21 bytes of log, and at most as many records rewritten.
const DAMAGED_MAX: usize = 1_000;
/// Most bytes kept of a reason; the rest is cut off.
const REASON_BYTES_MAX: usize = 500;
/// Most stripes that one retry forgets, which bounds the entry's batch to some MiB; repeat it for more.
const RETRIED_MAX: usize = 100_000;

fn no_stripe(instance: InstanceId, stripe: StripeIndex) -> Rejection {
    Rejection::NotFound(format!("stripe {stripe} of instance {instance}"))
}

impl Machine {
    /// Raises the version in force. Every member's word is looked at first, so that a version which this binary does not
    /// know is refused as long as any member says so too; after that, going on would be a guess.
    pub(super) fn activate(&mut self, overlay: &mut Overlay<'_>, version: u32) -> Result<Outcome, Stop> {
        let layout = self.initialised()?;
        if version == layout.format {
            return Ok(Outcome::Done);
        }
        if version < layout.format {
            let why = format!("version {} of the cluster is in force and is never lowered", layout.format);
            return Err(Rejection::NotAllowed(why).into());
        }
        let mut members = layout.nodes.values().filter(|node| node.state != NodeState::Removed).peekable();
        if members.peek().is_none() {
            return Err(Rejection::NotAllowed("no node has joined yet".to_owned()).into());
        }
        // PLANTED BUG, here and where it is proposed: a member's word counts for nothing.
        let ignored = crate::probe::planted("gate-ignored");
        if let Some(behind) = members.find(|node| node.version < version && !ignored) {
            return Err(Rejection::NotAllowed(format!(
                "node {} ({}) understands version {} only, not {version}: upgrade it first, or remove it",
                behind.id, behind.name, behind.version
            ))
            .into());
        }
        if version > COMMANDS_VERSION {
            return Err(Error::UnknownTag { what: "version of the cluster", tag: version }.into());
        }
        crate::sometimes!("recovery: newer version put in force");
        overlay.put(keys::format(), frame(&FormatMessage { version }));
        self.publish(Layout { format: version, ..Layout::clone(&layout) });
        Ok(Outcome::Done)
    }

    pub(super) fn reseat(&mut self, overlay: &mut Overlay<'_>, at: At, reseat: &Reseat) -> Result<Outcome, Stop> {
        let layout = self.initialised()?;
        let (instance, stripe) = (reseat.instance, reseat.stripe);
        check_in_time(reseat, at)?;
        let absent = || no_stripe(instance, stripe);
        let record = Record::live(overlay, instance)?.ok_or_else(absent)?;
        let mut sealed = record.read(overlay)?;
        let index = usize::try_from(stripe.0).map_err(|error| unreadable("stripe index", error))?;
        let mut before = sealed.seal.stripes.get(index).ok_or_else(absent)?.clone();
        if crate::probe::planted("reseat-without-compare") {
            // PLANTED BUG: the stripe is what the mover saw, whatever happened to it since.
            (before.placement, before.persisted) = (reseat.expected.clone(), reseat.persisted);
        }
        if before.placement != reseat.expected || before.persisted != reseat.persisted {
            crate::sometimes!("recovery: reseat refused: the stripe has changed");
            return Err(Rejection::Changed(format!("stripe {stripe} of instance {instance}")).into());
        }
        let after = reseated(&layout, &before, reseat)?;
        let weakened = check_no_weaker(&layout, &sealed.seal, reseat, &before, &after)?;
        forget_aside(overlay, instance, stripe)?;
        if after == before {
            return Ok(Outcome::Done);
        }
        let known = sealed.moved.remove(&stripe).map(|moved| moved.former).unwrap_or_default();
        let former = former(known, &before, &after, &reseat.moves);
        sealed.moved.insert(stripe, Moved { index: at.index, former });
        sealed.seal.stripes[index] = after;
        match weakened {
            // It says no more than holds of this stripe from now on. The measure was the newest version of the profile; what
            // the record was sealed under may be stronger, and then it is degraded from now on.
            Some(left) => {
                sealed.survives = survived_by_both(&sealed.survives, &left);
                sealed.degraded = !covers(&sealed.survives, &sealed.contract);
            }
            None => self.raise(&layout, &mut sealed),
        }
        self.store_reseated(overlay, record, &sealed, stripe)?;
        Ok(Outcome::Done)
    }

    fn store_reseated(
        &mut self,
        overlay: &mut Overlay<'_>,
        mut record: Record,
        sealed: &SealedInstance,
        stripe: StripeIndex,
    ) -> Result<(), Error> {
        let seal = &sealed.seal;
        let gone = || Error::Inconsistent(format!("stripe {stripe} of instance {} vanished", seal.instance));
        let index = usize::try_from(stripe.0).map_err(|error| unreadable("stripe index", error))?;
        let after = seal.stripes.get(index).ok_or_else(gone)?;
        let new = self.intern(overlay, &after.placement)?;
        let stored = record.stripe(stripe).ok_or_else(gone)?;
        let old = PlacementId(stored.placement);
        (stored.placement, stored.persisted) = (new.0, after.persisted);
        if old != new {
            overlay.delete(keys::placement_stripe(old, seal.instance, stripe));
            overlay.put(keys::placement_stripe(new, seal.instance, stripe), Vec::new());
            let one = one_stripe(seal.code, after.stripe_bytes);
            self.tally.take(old, &seal.profile, seal.profile_version, one);
            self.tally.add(new, &seal.profile, seal.profile_version, one);
        }
        note_missing(overlay, (seal.instance, stripe), after.persisted, seal.code.total())?;
        record.message.survives = failures_messages(&sealed.survives);
        record.message.degraded = sealed.degraded;
        record.message.moved = sealed.moved.iter().map(moved_message).collect();
        record.store(overlay);
        Ok(())
    }

    pub(super) fn report_damage(
        &mut self,
        overlay: &mut Overlay<'_>,
        volume: VolumeId,
        shards: &[ShardId],
    ) -> Result<Outcome, Stop> {
        let layout = self.initialised()?;
        if !layout.volumes.contains_key(&volume) {
            return Err(Rejection::Unknown(format!("volume {volume}")).into());
        }
        if shards.len() > DAMAGED_MAX {
            let why = format!("{} damaged shards in one report, at most {DAMAGED_MAX} are allowed", shards.len());
            return Err(Rejection::Malformed(why).into());
        }
        let mut by_instance: BTreeMap<InstanceId, BTreeSet<(StripeIndex, ShardIndex)>> = BTreeMap::new();
        for shard in shards {
            by_instance.entry(shard.instance).or_default().insert((shard.stripe, shard.shard));
        }
        for (instance, damaged) in by_instance {
            if let Some(record) = Record::live(overlay, instance)? {
                clear_bits(overlay, instance, record, volume, &damaged)?;
            }
        }
        Ok(Outcome::Done)
    }

    pub(super) fn set_aside(
        &mut self,
        overlay: &mut Overlay<'_>,
        at: At,
        instance: InstanceId,
        stripe: StripeIndex,
        reason: &str,
    ) -> Result<Outcome, Stop> {
        let layout = self.initialised()?;
        if stripe_state(overlay, instance, stripe)?.is_none() {
            return Err(no_stripe(instance, stripe).into());
        }
        crate::sometimes!("recovery: stripe set aside");
        let cut = reason.floor_char_boundary(REASON_BYTES_MAX);
        let row = AsideRowMessage { reason: reason[..cut].to_owned(), since: at.time.0, layout: layout.version.0 };
        overlay.put(keys::aside(instance, stripe), frame(&row));
        Ok(Outcome::Done)
    }

    pub(super) fn retry_aside(&mut self, overlay: &mut Overlay<'_>) -> Result<Outcome, Stop> {
        let (from, to) = keys::all_asides();
        for (key, _) in overlay.scan(&from, &to, RETRIED_MAX)? {
            crate::sometimes!("recovery: stripe set aside is tried again");
            overlay.delete(key);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn set_study_profile(
        &mut self,
        overlay: &mut Overlay<'_>,
        tenant: &Tenant,
        study: &Uid,
        profile: Option<&ProfileName>,
    ) -> Result<Outcome, Stop> {
        let layout = self.initialised()?;
        let key = keys::study_profile(tenant, study);
        match profile {
            Some(name) if !layout.profiles.contains_key(name) => {
                return Err(Rejection::Unknown(format!("profile {name}")).into());
            }
            Some(name) => overlay.put(key, frame(&WantedProfileMessage { profile: name.to_string() })),
            None if overlay.get(&key)?.is_some() => overlay.delete(key),
            None => {}
        }
        Ok(Outcome::Done)
    }
}

/// The stripe with its shards on their new holders, if each of them may hold its shard.
fn reseated(layout: &Layout, before: &StripeSeal, reseat: &Reseat) -> Result<StripeSeal, Rejection> {
    let mut after = before.clone();
    let mut seen = 0_u32;
    if reseat.moves.is_empty() {
        return Err(Rejection::Malformed("a reseat without moves".to_owned()));
    }
    for (shard, target) in &reseat.moves {
        let Some(place) = after.placement.get_mut(usize::from(shard.0)) else {
            let total = before.placement.len();
            return Err(Rejection::Malformed(format!("shard {} of a stripe of {total} shards is moved", shard.0)));
        };
        let bit = 1 << shard.0;
        if seen & bit != 0 {
            return Err(Rejection::Malformed(format!("shard {} is moved twice", shard.0)));
        }
        seen |= bit;
        check_target(layout, *target, *place == *target)?;
        *place = *target;
        after.persisted |= bit;
    }
    Ok(after)
}

/// Holders sweep a copy that nobody can name any more: what comes later than it said must not name it.
fn check_in_time(reseat: &Reseat, at: At) -> Result<(), Rejection> {
    if at.time <= reseat.not_after {
        return Ok(());
    }
    crate::sometimes!("recovery: reseat refused: it came too late");
    let why =
        format!("the reseat was to be applied by {} ms, and it is {} ms: move anew", reseat.not_after.0, at.time.0);
    Err(Rejection::NotAllowed(why))
}

fn check_target(layout: &Layout, target: VolumeId, already: bool) -> Result<(), Rejection> {
    let known = layout.volumes.get(&target).ok_or_else(|| Rejection::Unknown(format!("volume {target}")))?;
    if known.state == VolumeState::Fenced {
        crate::sometimes!("recovery: reseat refused: its target is fenced");
        return Err(Rejection::Fenced { volume: target });
    }
    if !layout.counts(target) {
        crate::sometimes!("recovery: reseat refused: its target is away");
        return Err(Rejection::NotAllowed(format!("volume {target} is away; shards on it would not count")));
    }
    if layout.draining(target) && !already {
        crate::sometimes!("recovery: reseat refused: its target is being drained");
        return Err(Rejection::NotAllowed(format!("volume {target} is being drained and gets no new shards")));
    }
    Ok(())
}

/// Everything that the shards that count survived before, they must survive after. An operator who has volumes emptied
/// accepts that what exceeds the contract of the profile goes with them: then the contract itself is the measure, also for
/// the shards that must make room in the same step. Answers what is left of what was survived in that case.
fn check_no_weaker(
    layout: &Layout,
    seal: &Seal,
    reseat: &Reseat,
    before: &StripeSeal,
    after: &StripeSeal,
) -> Result<Option<Vec<Failures>>, Rejection> {
    let data = seal.code.data();
    let claims = |stripe: &StripeSeal| {
        let counting = held(&stripe.placement, stripe.persisted).into_iter().filter(|one| layout.counts(one.volume));
        strongest(&counting.collect::<Vec<Held>>(), data, layout)
    };
    let now = claims(after);
    let drained = reseat
        .moves
        .iter()
        .any(|(shard, _)| before.placement.get(usize::from(shard.0)).is_some_and(|old| layout.draining(*old)));
    let promised = layout.profiles.get(&seal.profile).is_some_and(|profile| covers(&now, &profile.contract));
    match claims(before).into_iter().find(|one| !covers(&now, &Contract::one(*one))) {
        None => Ok(None),
        Some(_) if drained && promised => Ok(Some(now)),
        Some(lost) => {
            crate::sometimes!("recovery: reseat refused: it would weaken the stripe");
            Err(Rejection::TooWeak {
                stripe: reseat.stripe.0,
                why: format!("before the move it survives {lost}, and after it would not"),
            })
        }
    }
}

/// Where shards were before: of one that moved, the volume it was durable on; of one that was durable nowhere, where it
/// was before that.
fn former(
    mut former: BTreeMap<ShardIndex, VolumeId>,
    before: &StripeSeal,
    after: &StripeSeal,
    moves: &[(ShardIndex, VolumeId)],
) -> BTreeMap<ShardIndex, VolumeId> {
    for (shard, target) in moves {
        let old = before.placement.get(usize::from(shard.0));
        if let Some(old) = old.filter(|old| *old != target && before.persisted & (1 << shard.0) != 0) {
            former.insert(*shard, *old);
        }
    }
    former.retain(|shard, volume| after.placement.get(usize::from(shard.0)).is_some_and(|present| present != volume));
    former
}

/// Marks shards of one record as not durable, as far as they belong on `volume`.
fn clear_bits(
    overlay: &mut Overlay<'_>,
    instance: InstanceId,
    mut record: Record,
    volume: VolumeId,
    damaged: &BTreeSet<(StripeIndex, ShardIndex)>,
) -> Result<(), Error> {
    let mut changed: BTreeMap<StripeIndex, u32> = BTreeMap::new();
    let mut placements = Placements::new(overlay);
    let mut total = 0;
    for (index, shard) in damaged {
        let Some(stripe) = record.stripe(*index) else { continue };
        let volumes = volumes(&mut placements, stripe)?;
        total = volumes.len();
        let here = volumes.get(usize::from(shard.0)) == Some(&volume);
        if here && stripe.persisted & (1 << shard.0) != 0 {
            stripe.persisted &= !(1 << shard.0);
            changed.insert(*index, stripe.persisted);
        }
    }
    drop(placements);
    if changed.is_empty() {
        return Ok(());
    }
    crate::sometimes!("recovery: damaged shard struck off its record");
    for (stripe, persisted) in changed {
        note_missing(overlay, (instance, stripe), persisted, total)?;
    }
    record.store(overlay);
    Ok(())
}
