//! What is to be done about one stripe: the rules of [`super::repair`], applied to what became of its shards.
//!
//! **Invariants.** What is proposed survives all that the stripe survives now; only a drain may give up what exceeds the
//! contract. Moves that bring nothing are not proposed, so that a planner whose proposals are carried out goes quiet.
//!
//! **Seen from below.** Which shards are (re)made is decided here in three steps: what is missing and not waited for;
//! if nothing is missing, what breaks the contract by where it lies; what an operator wants moved.

use std::collections::{BTreeMap, BTreeSet};

use super::repair_fate::{Facts, Fate, Hold};
use super::repair_seat::{Choice, Seating};
use super::{Cause, StripeState, Tier, held};
use crate::ids::{NodeId, ShardIndex, VolumeId};
use crate::layout::survival::{covers, strongest};
use crate::layout::{Contract, Failures, NodeState, VolumeState};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Bring these shards there.
    Moves(Cause, Vec<(ShardIndex, VolumeId)>),
    /// It is where it should be.
    Nothing,
    /// Not now; the verdict's holds say why.
    Wait,
    /// It cannot be read again, for this reason.
    Impossible(String),
}

/// All that is said of one stripe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// How close to loss it is.
    pub(super) tier: Tier,
    /// How close to loss it is taken to be: closer than `tier` when nodes have become suspect.
    pub(super) danger: Tier,
    /// True when it does not keep the contract of its profile.
    pub(super) below: bool,
    /// What to do.
    pub(super) step: Step,
    /// Reasons not to do more, with the shards concerned.
    pub(super) holds: Vec<(Hold, u8)>,
}

/// True when whoever survives `more` survives `less`.
pub(super) fn covers_all(more: &[Failures], less: &[Failures]) -> bool {
    less.iter().all(|&one| covers(more, &Contract::one(one))) && (less.is_empty() || !more.is_empty())
}

fn better(more: &[Failures], less: &[Failures]) -> bool {
    covers_all(more, less) && !covers_all(less, more)
}

/// Judges one stripe.
pub(super) fn judge(state: &StripeState, facts: &Facts<'_>) -> Verdict {
    let (layout, k) = (facts.situation.layout, state.code.data());
    let fates = facts.fates(state);
    let all = held(&state.volumes, state.persisted);
    let claims = strongest(&all, k, layout);
    let tier = Tier::of(&all, k, layout);
    let contract = layout.profiles.get(&state.profile).map(|profile| &profile.contract);
    let below = contract.is_some_and(|contract| !covers(&claims, contract)) || claims.is_empty();
    if claims.is_empty() {
        let (step, holds) = unreadable(state, facts, &fates);
        return Verdict { tier, danger: tier, below, step, holds };
    }
    let calm: Vec<_> = all.iter().filter(|one| fates[usize::from(one.shard.0)] != Fate::Suspected).copied().collect();
    let suspected = calm.len() < all.len();
    if tier <= Tier::Distance(0) {
        crate::sometimes!("recovery: stripe at its last shards repaired without waiting");
    }
    // PLANTED BUG: what stands at its last shards waits, for ever.
    if tier <= Tier::Distance(0) && crate::probe::planted("urgent-repair-waits") {
        return Verdict { tier, danger: tier, below, step: Step::Nothing, holds: Vec::new() };
    }
    let urgent = tier <= Tier::Distance(0) || (suspected && Tier::of(&calm, k, layout) <= Tier::Distance(0));
    let settled = |fate: &Fate| matches!(fate, Fate::Here) || (*fate == Fate::Suspected && !urgent);
    if !below && fates.iter().all(settled) {
        return Verdict { tier, danger: tier, below, step: Step::Nothing, holds: Vec::new() };
    }
    let seating = Seating::new(state, facts, fates, claims, urgent);
    let mut plan = Plan { seating, below, urgent, holds: BTreeMap::new() };
    let step = plan.step();
    let repairs = matches!(step, Step::Moves(Cause::Repair, _));
    let danger = if urgent && repairs { tier.min(Tier::Distance(0)) } else { tier };
    Verdict { tier, danger, below, step, holds: plan.holds.into_iter().collect() }
}

struct Plan<'a> {
    seating: Seating<'a>,
    below: bool,
    /// The next failure may lose it: nothing is waited for.
    urgent: bool,
    holds: BTreeMap<Hold, u8>,
}

impl Plan<'_> {
    fn step(&mut self) -> Step {
        self.note_waits();
        if let Some(repair) = self.repair().filter(|choice| !choice.moves.is_empty()) {
            return Step::Moves(Cause::Repair, repair.moves);
        }
        let leaving = self.seating.shards(|fate| fate == Fate::Leaving);
        if self.below && self.seating.shards(|fate| !fate.present()).is_empty() {
            match self.seating.widened(&leaving) {
                Some(choice) => {
                    crate::sometimes!("recovery: shards to be spread anew for their contract");
                    return Step::Moves(Cause::Respread, choice.moves);
                }
                None => {
                    self.hold(Hold::Below(self.seating.state.profile.clone()), 1);
                    if let Some(choice) = self.urgent.then(|| self.seating.safer(&leaving)).flatten() {
                        crate::sometimes!("recovery: stripe at its last node spread as far as it can be");
                        return Step::Moves(Cause::Respread, choice.moves);
                    }
                }
            }
        }
        match self.drain(&leaving) {
            Some(choice) => {
                crate::sometimes!("recovery: shards to be moved off a draining volume");
                return Step::Moves(Cause::Drain, choice.moves);
            }
            None if !leaving.is_empty() => self.hold(Hold::Nowhere, leaving.len()),
            None => {}
        }
        if self.holds.is_empty() { Step::Nothing } else { Step::Wait }
    }

    fn note_waits(&mut self) {
        for fate in self.seating.fates.clone() {
            if let (Fate::Waits(wait), false) = (fate, self.urgent) {
                self.hold(self.seating.facts.hold(wait), 1);
            }
        }
    }

    fn hold(&mut self, hold: Hold, shards: usize) {
        *self.holds.entry(hold).or_default() += u8::try_from(shards).unwrap_or(u8::MAX);
    }

    /// What is missing and not waited for: that which is lost wherever it can go, that which may return only where it
    /// makes the stripe safer, and what is leaving along with it.
    fn repair(&mut self) -> Option<Choice> {
        let urgent = self.urgent;
        let lost = self.seating.shards(|fate| matches!(fate, Fate::Gone | Fate::Lost));
        let again = self.seating.shards(|fate| fate == Fate::Again);
        let overdue = self.seating.shards(|fate| fate == Fate::Overdue || (urgent && matches!(fate, Fate::Waits(_))));
        let suspected = self.seating.shards(|fate| urgent && fate == Fate::Suspected);
        if lost.is_empty() && again.is_empty() && overdue.is_empty() && suspected.is_empty() {
            return None;
        }
        let Some(mut taken) = self.seating.choose(&lost).or_else(|| self.seating.choose(&[])) else {
            self.hold(Hold::Nowhere, lost.len() + overdue.len());
            return None;
        };
        if !lost.is_empty() && taken.shards.is_empty() {
            self.hold(Hold::Nowhere, lost.len());
        }
        if !overdue.is_empty() {
            let all: Vec<u8> = taken.shards.iter().chain(&overdue).copied().collect();
            let helps = |choice: &Choice| better(&choice.calm, &taken.calm);
            let found = self.seating.choose(&all).filter(helps);
            let found = found.or_else(|| self.below.then(|| self.seating.widened(&all)).flatten().filter(helps));
            let found = found.or_else(|| urgent.then(|| self.seating.safer(&all)).flatten().filter(helps));
            match found {
                Some(found) => taken = found,
                None => self.hold(Hold::Nowhere, overdue.len()),
            }
        }
        if !suspected.is_empty() && taken.calm_tier <= Tier::Distance(0) {
            let all: Vec<u8> = taken.shards.iter().chain(&suspected).copied().collect();
            let helps =
                |choice: &Choice| better(&choice.calm, &taken.calm) && covers_all(&choice.claims, &taken.claims);
            if let Some(found) = self.seating.choose(&all).filter(helps) {
                taken = found;
            }
        }
        let leaving = self.seating.shards(|fate| fate == Fate::Leaving);
        if !leaving.is_empty() && !taken.moves.is_empty() {
            let mut all = taken.shards.clone();
            all.extend(leaving.iter().filter(|shard| !taken.shards.contains(shard)));
            if let Some(found) = self.seating.choose(&all).filter(|found| covers_all(&found.claims, &taken.claims)) {
                taken = found;
            }
        }
        Some(taken)
    }

    /// As many of the leaving shards as can go: all, otherwise the first that can.
    fn drain(&mut self, leaving: &[u8]) -> Option<Choice> {
        if leaving.is_empty() {
            return None;
        }
        let whole = self.seating.choose(leaving).or_else(|| self.seating.widened(leaving));
        whole.or_else(|| leaving.iter().find_map(|&shard| self.seating.choose(&[shard])))
    }
}

/// A stripe with fewer than `k` shards present. Former holders that are there are asked, which may still have the bytes, if they
/// can make it readable again or nothing that may return can. Otherwise what may return is waited for; otherwise it is lost.
fn unreadable(state: &StripeState, facts: &Facts<'_>, fates: &[Fate]) -> (Step, Vec<(Hold, u8)>) {
    let (layout, k) = (facts.situation.layout, state.code.data());
    let present = fates.iter().filter(|fate| fate.present()).count();
    let shards = || (0_u8..).zip(fates).zip(&state.volumes);
    let returning =
        |((shard, fate), _): &((u8, &Fate), &VolumeId)| fate.may_return() && state.persisted & (1 << shard) != 0;
    let mut nodes: BTreeSet<NodeId> = BTreeSet::new();
    nodes.extend(shards().filter(returning).filter_map(|(_, volume)| Some(layout.node_of(*volume)?.id)));
    let returnable = shards().filter(returning).count();
    let lacking = shards().filter(|one| !one.0.1.present() && !returning(one));
    let former = |((shard, _), volume): ((u8, &Fate), &VolumeId)| {
        let shard = ShardIndex(shard);
        let former = *state.former.get(&shard)?;
        let alive = layout.volumes.get(&former).is_some_and(|known| known.state != VolumeState::Fenced);
        let node = layout.node_of(former).is_some_and(|node| node.state != NodeState::Removed);
        (former != *volume && alive && node).then_some((shard, former))
    };
    let formers: Vec<(ShardIndex, VolumeId)> = lacking.filter_map(former).collect();
    let lost = state.code.total() - present - returnable;
    if present + returnable + formers.len() < k {
        let why = format!(
            "{k} of {} shards are needed; {present} are present, {returnable} may return, {lost} are lost or damaged, of which \
             former holders may have {}",
            state.code.total(),
            formers.len()
        );
        return (Step::Impossible(why), Vec::new());
    }
    let near = shards().filter(|one| !one.0.1.present()).filter_map(former);
    let near: Vec<(ShardIndex, VolumeId)> = near.filter(|(_, at)| layout.writable(*at)).collect();
    let here: Vec<(ShardIndex, VolumeId)> = formers.iter().filter(|(_, at)| layout.writable(*at)).copied().collect();
    let ask = if present + near.len() >= k { near } else { here };
    if (present + returnable < k || present + ask.len() >= k) && !ask.is_empty() {
        crate::sometimes!("recovery: former holders asked for an unreadable stripe");
        return (Step::Moves(Cause::Repair, ask), Vec::new());
    }
    nodes.extend(formers.iter().filter_map(|(_, volume)| Some(layout.node_of(*volume)?.id)));
    (Step::Wait, vec![(Hold::Unreadable(nodes), u8::try_from(k - present).unwrap_or(u8::MAX))])
}
