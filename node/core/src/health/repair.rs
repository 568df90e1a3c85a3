//! The planner of repair: what must be made anew or moved, in which order, and where to. Pure: the same catalog, layout
//! and silence give the same plan, so a new leader finds the work list again by looking.
//!
//! **What is work.** *Repair*: a shard is not persisted, or its volume does not count. *Respread*: all shards are there,
//! but so placed that the contract does not hold although it could. *Drain*: a shard lies on a volume that an operator
//! wants empty.
//!
//! **When.** At once: what is damaged or lost for good, and everything about a stripe that the next node failure would
//! lose. After `repair_after`: what lies on a node that is down. Not before its nodes are lost: what lies on a site that is
//! away as a whole, unless its stripe cannot be read meanwhile and former holders of its shards are there: they are asked.
//! A node that is suspect for `urgent_after`, though others of its site are up, is judged as gone where that leaves a stripe
//! one failure from loss.
//!
//! **Invariants.** Nothing proposed weakens a stripe, except that a drain may give up what exceeds the contract. What is
//! held back is told. When every task of a survey is carried out and nothing else changes, the next surveys come to hold
//! no work but stripes that are lost or cannot be read now.

use std::collections::BTreeMap;
use std::time::Duration;

use super::repair_fate::{Facts, Fate, Hold};
use super::repair_judge::{Step, Verdict, judge};
use super::{ByTier, Cause, Group, Pace, StripeState, Sums, Task, Tier};
use crate::ids::{InstanceId, NodeId, PlacementId, ProfileName, StripeIndex, VolumeId};
use crate::layout::Layout;
use crate::layout::profile::Code;

pub use super::Room;

/// What the planner looks at besides the catalog.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The present layout.
    pub layout: &'a Layout,
    /// How long each node that is not up has been silent; absent when it is heard.
    pub silent: &'a BTreeMap<NodeId, Duration>,
    /// Timings.
    pub pace: &'a Pace,
    /// What nodes told last of their volumes; a volume that is absent here is taken to have room.
    pub rooms: &'a BTreeMap<VolumeId, Room>,
}

/// All stored content judged at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    /// Content by how close it is to loss.
    pub by_tier: ByTier,
    /// Content that does not keep the contract of its profile.
    pub below_contract: Sums,
    /// The closest to loss of all; absent when nothing is stored.
    pub worst: Option<Tier>,
    /// Sums of `work` by cause; `shard_bytes` are the bytes of all shards to be written.
    pub waiting: BTreeMap<Cause, Sums>,
    /// What may be done now, most urgent first.
    pub work: Vec<Work>,
    /// What is known and not done, and why, for people.
    pub held_back: Vec<String>,
}

/// One piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// How close to loss it is.
    pub tier: Tier,
    /// Why it is to be done.
    pub cause: Cause,
    /// What it is about.
    pub what: Item,
}

/// What a piece of work is about. The order is that of age as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// All stripes of the group with this index that are not incomplete.
    Group(usize),
    /// The incomplete stripe with this index.
    Stripe(usize),
}

/// What is to be done about one stripe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Planned {
    /// This.
    Task(Task),
    /// It is where it should be.
    Nothing,
    /// Something should be done but not now, or cannot be on the present layout, for this reason.
    Wait(String),
    /// It cannot be repaired even if everything returned that may return, for this reason.
    Impossible(String),
}

/// What is to be done about one stripe now.
pub fn task(state: &StripeState, situation: &Situation<'_>) -> Planned {
    let facts = Facts::of(situation);
    let verdict = judge(state, &facts);
    match verdict.step {
        Step::Nothing => Planned::Nothing,
        Step::Impossible(why) => Planned::Impossible(why),
        Step::Wait => {
            let told = verdict.holds.iter().map(|(hold, _)| format!("{} {}", facts.reason(hold), facts.until(hold)));
            Planned::Wait(told.map(|text| text.trim_end().to_owned()).collect::<Vec<_>>().join("; "))
        }
        Step::Moves(cause, moves) => Planned::Task(Task {
            instance: state.instance,
            stripe: state.stripe,
            expected: state.volumes.clone(),
            persisted: state.persisted,
            cause,
            tier: verdict.danger,
            write_bytes: state.code.shard_bytes(state.stripe_bytes).saturating_mul(moves.len() as u64),
            moves,
        }),
    }
}

/// Judges everything stored. `incomplete` are the stripes with a shard that is not persisted; their groups' sums contain
/// them too. Stripes that are lost stay among the work: whoever does it knows which are set aside.
pub fn survey(groups: &[Group], incomplete: &[StripeState], situation: &Situation<'_>) -> Survey {
    survey_all(groups, incomplete, &[], situation)
}

/// As [`survey`], with `crowds` of further incomplete stripes: one example of each and the sums of all of them. They count
/// in every figure, but are no work by themselves: they become so when they are among `incomplete`.
pub fn survey_all(
    groups: &[Group],
    incomplete: &[StripeState],
    crowds: &[(StripeState, Sums)],
    situation: &Situation<'_>,
) -> Survey {
    let rest = without(groups, incomplete, crowds);
    let mut surveyor = Surveyor::new(situation);
    for (index, (group, sums)) in groups.iter().zip(rest).enumerate().filter(|(_, (_, sums))| sums.stripes > 0) {
        let like = Like { volumes: &group.volumes, persisted: u32::MAX, profile: &group.profile, code: group.code };
        let average = sums.content_bytes / sums.stripes;
        let verdict = surveyor.verdict(like, average, None);
        let age = (2, group.placement.0, InstanceId([0; 16]), StripeIndex(0));
        surveyor.note(&verdict, sums, Some((age, Item::Group(index))));
    }
    for (index, state) in incomplete.iter().enumerate() {
        let like =
            Like { volumes: &state.volumes, persisted: state.persisted, profile: &state.profile, code: state.code };
        let verdict = surveyor.verdict(like, state.stripe_bytes, Some(state));
        let age = (1, PlacementId::default().0, state.instance, state.stripe);
        surveyor.note(&verdict, sums_of(state), Some((age, Item::Stripe(index))));
    }
    for (state, sums) in crowds {
        let like =
            Like { volumes: &state.volumes, persisted: state.persisted, profile: &state.profile, code: state.code };
        let verdict = surveyor.verdict(like, state.stripe_bytes, Some(state));
        surveyor.note(&verdict, *sums, None);
    }
    surveyor.finish()
}

/// Of this stripe alone.
pub fn sums_of(state: &StripeState) -> Sums {
    let shard_bytes = state.code.shard_bytes(state.stripe_bytes);
    Sums { stripes: 1, content_bytes: state.stripe_bytes, shard_bytes }
}

/// What is left of each group without the incomplete stripes. Groups that differ only by the version of their profile
/// are judged alike, so it does not matter from which of them a stripe is taken.
fn without(groups: &[Group], incomplete: &[StripeState], crowds: &[(StripeState, Sums)]) -> Vec<Sums> {
    let mut rest: Vec<Sums> = groups.iter().map(|group| group.sums).collect();
    if incomplete.is_empty() && crowds.is_empty() {
        return rest;
    }
    let mut known: BTreeMap<(&[VolumeId], &ProfileName, Code), Vec<usize>> = BTreeMap::new();
    for (index, group) in groups.iter().enumerate() {
        known.entry((&group.volumes, &group.profile, group.code)).or_default().push(index);
    }
    for state in incomplete {
        let alike = known.get(&(&state.volumes[..], &state.profile, state.code));
        let Some(&index) = alike.and_then(|alike| alike.iter().find(|&&index| rest[index].stripes > 0)) else {
            continue;
        };
        let (one, left) = (sums_of(state), &mut rest[index]);
        left.stripes -= 1;
        left.content_bytes = left.content_bytes.saturating_sub(one.content_bytes);
        left.shard_bytes = left.shard_bytes.saturating_sub(one.shard_bytes);
    }
    for (state, sums) in crowds {
        let mut sums = *sums;
        for &index in known.get(&(&state.volumes[..], &state.profile, state.code)).into_iter().flatten() {
            let left = &mut rest[index];
            let stripes = sums.stripes.min(left.stripes);
            // Of more stripes than this group has, the others are of a group alike.
            let share =
                |bytes: u64| if stripes == sums.stripes { bytes } else { bytes / sums.stripes.max(1) * stripes };
            let taken =
                Sums { stripes, content_bytes: share(sums.content_bytes), shard_bytes: share(sums.shard_bytes) };
            for from in [&mut *left, &mut sums] {
                from.stripes -= taken.stripes;
                from.content_bytes = from.content_bytes.saturating_sub(taken.content_bytes);
                from.shard_bytes = from.shard_bytes.saturating_sub(taken.shard_bytes);
            }
        }
    }
    rest
}

/// What decides a verdict, but for the bytes of a shard.
#[derive(Clone, Copy)]
struct Like<'a> {
    volumes: &'a [VolumeId],
    persisted: u32,
    profile: &'a ProfileName,
    code: Code,
}

/// Stripes whose shards met the same fates on the same nodes are judged alike, whichever shard it was.
type Alike<'a> = (&'a ProfileName, Code, usize, Vec<(NodeId, Fate)>);
type Age = (u8, u64, InstanceId, StripeIndex);

struct Surveyor<'a> {
    facts: Facts<'a>,
    /// Largest shard that each volume has room for, sorted: where shards of a size stand tells which volumes are crowded.
    spare: Vec<u64>,
    known: BTreeMap<Alike<'a>, Verdict>,
    holds: BTreeMap<Hold, Sums>,
    work: Vec<(Tier, Cause, Age, Item)>,
    /// Groups that wait for nodes and cannot be read meanwhile: former holders of single stripes may help.
    unreadable: Vec<(Tier, Cause, Age, Item)>,
    /// How many stripes they have.
    unreadable_stripes: u64,
    survey: Survey,
}

/// Most stripes of complete groups that are looked at one by one for former holders while they cannot be read. With more, whole
/// sites are away that no former copies replace.
const UNREADABLE_LOOKED_AT_MAX: u64 = 50_000;

impl<'a> Surveyor<'a> {
    fn new(situation: &Situation<'a>) -> Self {
        let mut spare: Vec<u64> = situation.rooms.values().map(|room| room.free_bytes / 2).collect();
        spare.sort_unstable();
        Self {
            facts: Facts::of(situation),
            spare,
            known: BTreeMap::new(),
            holds: BTreeMap::new(),
            work: Vec::new(),
            unreadable: Vec::new(),
            unreadable_stripes: 0,
            survey: Survey::default(),
        }
    }

    /// The verdict on a stripe like this; `state` when it is a single one, whose former holders then count.
    fn verdict(&mut self, like: Like<'a>, stripe_bytes: u64, state: Option<&StripeState>) -> Verdict {
        let layout = self.facts.situation.layout;
        let shard_bytes = like.code.shard_bytes(stripe_bytes);
        let fate = |(shard, &volume): (u32, &VolumeId)| {
            let node = layout.volumes.get(&volume).map_or(NodeId(u64::MAX), |known| known.node);
            (node, self.facts.fate(volume, like.persisted & (1 << shard) != 0, shard_bytes))
        };
        let mut fates: Vec<(NodeId, Fate)> = (0..32).zip(like.volumes).map(fate).collect();
        fates.sort_unstable();
        let readable = fates.iter().filter(|(_, fate)| fate.present()).count() >= like.code.data();
        let size = self.spare.partition_point(|&spare| spare < shard_bytes);
        let key = (like.profile, like.code, size, fates);
        if let Some(verdict) = self.known.get(&key).filter(|_| readable) {
            return verdict.clone();
        }
        let example = || StripeState {
            instance: InstanceId([0; 16]),
            stripe: StripeIndex(0),
            stripe_bytes,
            code: like.code,
            profile: like.profile.clone(),
            volumes: like.volumes.to_vec(),
            persisted: like.persisted,
            former: BTreeMap::new(),
        };
        let verdict = judge(&state.cloned().unwrap_or_else(example), &self.facts);
        if readable {
            self.known.insert(key, verdict.clone());
        }
        verdict
    }

    fn note(&mut self, verdict: &Verdict, sums: Sums, item: Option<(Age, Item)>) {
        let times = |shards: usize| Sums { shard_bytes: sums.shard_bytes.saturating_mul(shards as u64), ..sums };
        self.survey.by_tier.add(verdict.tier, sums);
        if verdict.below {
            grow(&mut self.survey.below_contract, sums);
        }
        for (hold, shards) in &verdict.holds {
            grow(self.holds.entry(hold.clone()).or_default(), times(usize::from(*shards)));
        }
        let (cause, shards) = match &verdict.step {
            Step::Moves(cause, moves) => (*cause, moves.len()),
            Step::Impossible(_) => (Cause::Repair, 0),
            Step::Nothing => return,
            Step::Wait => {
                let unreadable = verdict.holds.iter().any(|(hold, _)| matches!(hold, Hold::Unreadable(_)));
                if let Some((age, item @ Item::Group(_))) = item.filter(|_| unreadable) {
                    self.unreadable.push((verdict.danger, Cause::Repair, age, item));
                    self.unreadable_stripes = self.unreadable_stripes.saturating_add(sums.stripes);
                }
                return;
            }
        };
        grow(self.survey.waiting.entry(cause).or_default(), times(shards));
        self.work.extend(item.map(|(age, item)| (verdict.danger, cause, age, item)));
    }

    fn finish(mut self) -> Survey {
        if self.unreadable_stripes <= UNREADABLE_LOOKED_AT_MAX {
            self.work.append(&mut self.unreadable);
        }
        self.work.sort_unstable();
        self.survey.work = self.work.iter().map(|&(tier, cause, _, what)| Work { tier, cause, what }).collect();
        self.survey.worst = self.survey.by_tier.0.keys().next().copied();
        self.survey.held_back = self.holds.iter().map(|(hold, sums)| self.facts.held_back(hold, *sums)).collect();
        self.survey
    }
}

fn grow(total: &mut Sums, sums: Sums) {
    total.stripes = total.stripes.saturating_add(sums.stripes);
    total.content_bytes = total.content_bytes.saturating_add(sums.content_bytes);
    total.shard_bytes = total.shard_bytes.saturating_add(sums.shard_bytes);
}

#[cfg(test)]
#[path = "repair_tests.rs"]
mod tests;
