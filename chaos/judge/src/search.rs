//! The search for an order of the operations on one object.
//!
//! Time goes from event to event. The frontier holds every state that the object may be in, with what has not taken effect yet
//! of the operations that are open. When an operation is answered, every state in which it has not taken effect tries all ways
//! in which it can, by letting other open operations go first (just in time: none goes earlier than it must).
//!
//! **What keeps the frontier small.**
//! - Versions are made in the order of their numbers, each by the put that [`crate::facts`] names. Making the next one is one
//!   step, not a choice. Puts with unknown outcome and of equal use are told apart by count only.
//! - What changes nothing takes effect as soon as it can: that only removes a duty. Of two states that differ by such duties
//!   alone, the one with fewer stands for both.
//! - What may also never happen (operations with unknown outcome) happens only when an answer asks for it: later is never worse,
//!   as it has no end. The exception is a delete of all, which looks first and deletes up to what it saw: while one is looking
//!   whose effect nobody was told of, versions nobody saw are made at all moments.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    facts::{At, FREE, Facts, GroupAt, Maker},
    history::{Answer, Call, Operation},
    state::Versions,
    violation::{Kind, Violation},
};

/// Most states searched for one object.
pub(crate) const STATES_MAX: u64 = 2_000_000;
/// Versions that a delete of all deletes at one moment: `COMMANDS_PER_ENTRY_MAX` of the log.
const ENTRY_VERSIONS: u32 = 512;

/// What came of a search.
pub(crate) struct Searched {
    pub(crate) states: u64,
    pub(crate) outcome: Outcome,
}

pub(crate) enum Outcome {
    /// There is an order.
    Ordered,
    /// There is none.
    Impossible(Box<Violation>),
    /// The bound was met.
    Undecided,
}

/// What an operation does to the object, or demands of it.
enum Role {
    /// It makes this version.
    Make(u32),
    /// At some moment the newest live version is this one.
    Newest(Option<u32>),
    /// At some moment this version is live, or not.
    Version(u32, bool),
    /// At some moment this version was never made.
    Absent(u32),
    /// It deletes one version; whether that was live then, if it was told.
    One(u32, Option<bool>),
    /// It deletes all that there are when it looks; those that it was told of.
    All(Option<Vec<u32>>),
    /// Nothing that this search needs.
    Nothing,
}

fn role(operation: &Operation, made: bool) -> Role {
    match (&operation.call, &operation.answer) {
        (Call::Put { .. }, Answer::Stored { version, .. }) if made => Role::Make(*version),
        (Call::Put { .. }, Answer::Stored { version, .. }) => Role::Newest(Some(*version)),
        (Call::Get { version: None, linearizable: true }, Answer::Found { version, .. }) => {
            Role::Newest(Some(*version))
        }
        (Call::Get { version: None, linearizable: true }, Answer::Missing) => Role::Newest(None),
        (Call::Get { version: Some(_), linearizable: true }, Answer::Found { version, .. }) => {
            Role::Version(*version, true)
        }
        (Call::Get { version: Some(version), linearizable: true }, Answer::Missing) => Role::Version(*version, false),
        (Call::Delete { version: None }, Answer::Missing) => Role::Newest(None),
        (Call::Delete { version: Some(version) }, Answer::Missing) => Role::Absent(*version),
        (Call::Delete { version: Some(version) }, Answer::Deleted { versions }) => {
            Role::One(*version, Some(!versions.is_empty()))
        }
        (Call::Delete { version: None }, Answer::Deleted { versions }) => Role::All(Some(versions.clone())),
        (Call::Delete { version: Some(version) }, Answer::Unknown) => Role::One(*version, None),
        (Call::Delete { version: None }, Answer::Unknown) => Role::All(None),
        _ => Role::Nothing,
    }
}

/// A delete that has not taken effect, or not wholly.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Open {
    at: At,
    /// Of a delete of all: the versions that were the newest live ones while it may have looked, ascending; 0 where none was,
    /// for one that was told of no versions: it may be done since then, whatever was made after.
    looked: Vec<u32>,
    /// Of one that has deleted a part: up to where it goes, and what is done.
    part: Option<(u32, u32)>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Core {
    versions: Versions,
    deletes: Vec<Open>,
    /// Puts of a group with known content that made a version which nobody saw.
    borrowed: Vec<(GroupAt, u32)>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    core: Core,
    /// Open operations that change nothing and have not found their moment.
    waits: Vec<At>,
}

/// What two states may differ in when one of them stands for both.
struct Slack {
    waits: Vec<At>,
    /// By open delete: what it may have seen.
    looked: Vec<Vec<u32>>,
}

impl Slack {
    /// Fewer duties and more freedom.
    fn covers(&self, other: &Self) -> bool {
        let within = |part: &[u32], whole: &[u32]| part.iter().all(|one| whole.binary_search(one).is_ok());
        self.waits.iter().all(|at| other.waits.binary_search(at).is_ok())
            && other.looked.iter().zip(&self.looked).all(|(part, whole)| within(part, whole))
    }
}

/// States, without those that another one stands for.
#[derive(Default)]
struct Frontier(BTreeMap<Core, Vec<Slack>>);

impl Frontier {
    /// False when it was known, or another one stands for it.
    fn insert(&mut self, state: State) -> bool {
        let State { mut core, waits } = state;
        let looked = core.deletes.iter_mut().map(|open| std::mem::take(&mut open.looked)).collect();
        let slack = Slack { waits, looked };
        let alike = self.0.entry(core).or_default();
        if alike.iter().any(|known| known.covers(&slack)) {
            return false;
        }
        alike.retain(|known| !slack.covers(known));
        alike.push(slack);
        true
    }

    fn into_states(self) -> impl Iterator<Item = State> {
        let state = |core: &Core, slack: Slack| {
            let mut core = core.clone();
            core.deletes.iter_mut().zip(slack.looked).for_each(|(open, looked)| open.looked = looked);
            State { core, waits: slack.waits }
        };
        self.0
            .into_iter()
            .flat_map(move |(core, alike)| alike.into_iter().map(|slack| state(&core, slack)).collect::<Vec<_>>())
    }
}

struct TooMany;

struct Search<'f, 'a> {
    facts: &'f Facts<'a>,
    roles: Vec<Role>,
    /// So many operations have begun: those before this position.
    begun: At,
    /// Unknown deletes of all that have ended: they look no more.
    closed: BTreeSet<At>,
    /// Versions of puts that have begun and are not answered.
    making: BTreeSet<u32>,
    /// Versions by group, ascending: so many of its puts are used up.
    grouped: BTreeMap<GroupAt, Vec<u32>>,
    /// Versions that somebody saw, ascending.
    known: Vec<u32>,
    states: u64,
    states_max: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Began,
    Ended,
}

/// Looks for an order.
pub(crate) fn search(facts: &Facts<'_>, states_max: u64) -> Searched {
    let mut search = Search::new(facts, states_max);
    let outcome = match search.run() {
        Ok(None) => Outcome::Ordered,
        Ok(Some(violation)) => Outcome::Impossible(Box::new(violation)),
        Err(TooMany) => Outcome::Undecided,
    };
    Searched { states: search.states, outcome }
}

impl<'f, 'a> Search<'f, 'a> {
    fn new(facts: &'f Facts<'a>, states_max: u64) -> Self {
        let made: BTreeSet<At> = facts
            .makers
            .values()
            .filter_map(|maker| match maker {
                Maker::Put(at) => Some(*at),
                Maker::Group(_) => None,
            })
            .collect();
        let roles = facts.operations.iter().zip(0..).map(|(one, at)| role(one, made.contains(&at))).collect();
        let mut grouped: BTreeMap<GroupAt, Vec<u32>> = BTreeMap::new();
        for (version, maker) in &facts.makers {
            if let Maker::Group(group) = maker {
                grouped.entry(*group).or_default().push(*version);
            }
        }
        Self {
            facts,
            roles,
            begun: 0,
            closed: BTreeSet::new(),
            making: BTreeSet::new(),
            grouped,
            known: facts.makers.keys().copied().collect(),
            states: 0,
            states_max,
        }
    }

    fn run(&mut self) -> Result<Option<Violation>, TooMany> {
        let mut events: Vec<(u64, Event, At)> = Vec::new();
        for (at, operation) in self.facts.operations.iter().enumerate() {
            events.push((operation.started, Event::Began, at));
            events.extend(operation.ended.map(|ended| (ended, Event::Ended, at)));
        }
        events.sort_unstable();
        let core = Core { versions: Versions::default(), deletes: Vec::new(), borrowed: Vec::new() };
        let mut states = vec![State { core, waits: Vec::new() }];
        for (_, event, at) in events {
            states = match (event, &self.roles[at]) {
                (Event::Began, _) => self.begins(states, at),
                (Event::Ended, Role::Nothing | Role::One(_, None)) => continue,
                (Event::Ended, Role::All(None)) => {
                    let states = self.explore(&states, None)?;
                    self.closed.insert(at);
                    self.settled(states)
                }
                (Event::Ended, _) => {
                    let next = self.explore(&states, Some(at))?;
                    if next.is_empty() {
                        return self.impossible(&states, at).map(Some);
                    }
                    if let Role::Make(version) = self.roles[at] {
                        self.making.remove(&version);
                    }
                    next
                }
            };
        }
        Ok(None)
    }

    /// All without duties that can be met at once, none twice.
    fn settled(&self, states: Vec<State>) -> Vec<State> {
        let mut frontier = Frontier::default();
        for mut state in states {
            self.settle(&mut state);
            frontier.insert(state);
        }
        frontier.into_states().collect()
    }

    fn begins(&mut self, mut states: Vec<State>, at: At) -> Vec<State> {
        self.begun = at + 1;
        match &self.roles[at] {
            Role::Nothing => return states,
            Role::Make(version) => {
                self.making.insert(*version);
                return states;
            }
            Role::One(..) | Role::All(_) => {
                for state in &mut states {
                    state.core.deletes.push(Open { at, looked: Vec::new(), part: None });
                }
            }
            Role::Newest(_) | Role::Version(..) | Role::Absent(_) => {
                states.iter_mut().for_each(|state| state.waits.push(at));
            }
        }
        self.settled(states)
    }

    /// Lets everything that changes nothing take effect, and those look that may.
    fn settle(&self, state: &mut State) {
        let State { core: Core { versions, deletes, .. }, waits } = state;
        let top = versions.newest_live();
        waits.retain(|at| match &self.roles[*at] {
            Role::Newest(wanted) => *wanted != top,
            Role::Version(version, live) => versions.live(*version) != *live,
            Role::Absent(version) => versions.newest >= *version,
            Role::Make(_) | Role::One(..) | Role::All(_) | Role::Nothing => false,
        });
        for open in deletes.iter_mut().filter(|open| self.looks(open)) {
            let told_none = matches!(&self.roles[open.at], Role::All(Some(told)) if told.is_empty());
            if let Some(seen) = top.or(told_none.then_some(0))
                && let Err(at) = open.looked.binary_search(&seen)
            {
                open.looked.insert(at, seen);
            }
        }
        // Of what somebody saw who looks no more, only what makes a difference counts.
        for open in deletes.iter_mut().filter(|open| self.closed.contains(&open.at)) {
            let mut below = 0;
            open.looked.retain(|through| {
                let differs = versions.next_live(below, *through).is_some();
                below = *through;
                differs
            });
        }
        deletes.retain(|open| match &self.roles[open.at] {
            // Dead for good. Whoever was told that it had been live deleted it: that is a step.
            Role::One(version, None | Some(false)) => versions.newest < *version || versions.live(*version),
            Role::All(None) if !self.looks(open) => {
                let through = open.looked.last().copied().unwrap_or(0);
                versions.next_live(open.part.map_or(0, |(_, done)| done), through).is_some()
            }
            _ => true,
        });
    }

    /// Whether it is a delete of all that may still look.
    fn looks(&self, open: &Open) -> bool {
        matches!(self.roles[open.at], Role::All(_)) && open.part.is_none() && !self.closed.contains(&open.at)
    }

    /// Every state that can follow: those in which `goal` has taken effect, or all.
    fn explore(&mut self, from: &[State], goal: Option<At>) -> Result<Vec<State>, TooMany> {
        let (mut found, mut visited) = (Frontier::default(), Frontier::default());
        let mut stack: Vec<State> = Vec::new();
        for state in from {
            if visited.insert(state.clone()) {
                stack.push(state.clone());
            }
        }
        while let Some(state) = stack.pop() {
            self.states += 1;
            if self.states > self.states_max {
                return Err(TooMany);
            }
            if goal.is_none_or(|goal| self.done(&state, goal)) {
                found.insert(state.clone());
                if goal.is_some() {
                    continue;
                }
            }
            for mut next in self.steps(&state, goal) {
                self.settle(&mut next);
                if visited.insert(next.clone()) {
                    stack.push(next);
                }
            }
        }
        Ok(found.into_states().collect())
    }

    fn done(&self, state: &State, goal: At) -> bool {
        match self.roles[goal] {
            Role::Make(version) => state.core.versions.newest >= version,
            _ => !state.waits.contains(&goal) && !state.core.deletes.iter().any(|open| open.at == goal),
        }
    }

    /// What can happen next.
    fn steps(&self, state: &State, goal: Option<At>) -> Vec<State> {
        let mut next = self.makes(state);
        let unwanted = self.unwanted(state);
        for (place, open) in state.core.deletes.iter().enumerate() {
            match &self.roles[open.at] {
                Role::One(version, told)
                    if state.core.versions.live(*version) && (told.is_some() || unwanted.contains(version)) =>
                {
                    let mut after = state.clone();
                    after.core.deletes.remove(place);
                    after.core.versions.delete(version - 1, *version);
                    next.push(after);
                }
                Role::All(told) => {
                    let seen = open.part.map_or_else(|| open.looked.clone(), |(through, _)| vec![through]);
                    for through in seen.into_iter().filter(|through| *through > 0) {
                        next.extend(self.deletes_all(state, place, through, told.as_deref(), &unwanted));
                    }
                    // Nothing was there, or an earlier try had deleted it: only at its end, for it may still look.
                    if goal == Some(open.at) && told.as_ref().is_some_and(Vec::is_empty) {
                        next.extend(idle(state, place));
                    }
                }
                _ => {}
            }
        }
        next
    }

    /// Versions that an open answer needs to be deleted.
    fn unwanted(&self, state: &State) -> BTreeSet<u32> {
        let versions = &state.core.versions;
        let of_wait = |at: &At| match &self.roles[*at] {
            Role::Newest(wanted) => versions.newest_live().filter(|top| *top > wanted.unwrap_or(0)),
            Role::Version(version, false) => Some(*version),
            _ => None,
        };
        let of_delete = |open: &Open| match &self.roles[open.at] {
            Role::All(Some(told)) if !told.is_empty() => {
                let through = open.looked.last().copied().unwrap_or(0);
                let mut after = open.part.map_or(0, |(_, done)| done);
                loop {
                    match versions.next_live(after, through) {
                        Some(live) if told.binary_search(&live).is_ok() => after = live,
                        other => return other,
                    }
                }
            }
            _ => None,
        };
        state.waits.iter().filter_map(of_wait).chain(state.core.deletes.iter().filter_map(of_delete)).collect()
    }

    /// The delete at `place` deletes all up to `through`, or as many as one entry of the log does.
    fn deletes_all(
        &self,
        state: &State,
        place: usize,
        through: u32,
        told: Option<&[u32]>,
        unwanted: &BTreeSet<u32>,
    ) -> Option<State> {
        let versions = &state.core.versions;
        let done = state.core.deletes[place].part.map_or(0, |(_, done)| done);
        let until = through.min(done.saturating_add(ENTRY_VERSIONS));
        match told {
            None => {
                unwanted.range(done + 1..=until).find(|version| versions.live(**version))?;
            }
            Some(told) => {
                let part: Vec<u32> = told.iter().copied().filter(|one| (done + 1..=until).contains(one)).collect();
                let named = u32::try_from(part.len()).ok()?;
                let exact = versions.count_live(done, until) == named && part.iter().all(|one| versions.live(*one));
                let beyond = told.last().is_some_and(|last| *last > through);
                if beyond || !(exact || part.is_empty()) {
                    return None;
                }
            }
        }
        let mut after = state.clone();
        after.core.versions.delete(done, until);
        if until == through {
            after.core.deletes.remove(place);
        } else {
            after.core.deletes[place].part = Some((through, until));
        }
        Some(after)
    }

    /// The next version is made.
    fn makes(&self, state: &State) -> Vec<State> {
        let version = state.core.versions.newest + 1;
        if version > self.facts.highest {
            return Vec::new();
        }
        let mut made = state.clone();
        made.core.versions.newest = version;
        match self.facts.makers.get(&version) {
            Some(Maker::Put(at)) => {
                let may = *at < self.begun && (self.facts.operations[*at].answered() || self.needed(state));
                if may { vec![made] } else { Vec::new() }
            }
            _ if !self.needed(state) => Vec::new(),
            Some(Maker::Group(group)) if self.spare(state, *group) > 0 => vec![made],
            Some(Maker::Group(_)) => Vec::new(),
            None if self.spare(state, FREE) > 0 => vec![made],
            None => {
                let lenders = (FREE + 1..self.facts.groups.len()).filter(|group| self.spare(state, *group) > 0);
                lenders.map(|group| lend(made.clone(), group)).collect()
            }
        }
    }

    /// How many puts of a group have begun and made nothing so far.
    fn spare(&self, state: &State, group: GroupAt) -> usize {
        let newest = state.core.versions.newest;
        let below = |versions: &[u32]| versions.partition_point(|version| *version <= newest);
        let begun = self.facts.groups[group].partition_point(|at| *at < self.begun);
        let lent =
            |from: GroupAt| state.core.borrowed.iter().filter(move |(of, _)| *of == from).map(|(_, count)| *count);
        let used = if group == FREE {
            let unseen = usize::try_from(newest).unwrap_or(usize::MAX) - below(&self.known);
            let borrowed: u32 = state.core.borrowed.iter().map(|(_, count)| *count).sum();
            unseen.saturating_sub(usize::try_from(borrowed).unwrap_or(usize::MAX))
        } else {
            let own = self.grouped.get(&group).map_or(0, |versions| below(versions));
            own + lent(group).map(|count| usize::try_from(count).unwrap_or(usize::MAX)).sum::<usize>()
        };
        begun.saturating_sub(used)
    }

    /// Whether an open answer needs a version that is not made, or somebody may look unseen.
    fn needed(&self, state: &State) -> bool {
        let newest = state.core.versions.newest;
        let waits = state.waits.iter().any(|at| match &self.roles[*at] {
            Role::Newest(Some(version)) | Role::Version(version, true) => *version > newest,
            _ => false,
        });
        let deletes = state.core.deletes.iter().any(|open| match &self.roles[open.at] {
            Role::One(version, Some(_)) => *version > newest,
            Role::All(Some(told)) => told.last().is_none_or(|last| *last > newest),
            Role::All(None) => self.looks(open),
            _ => false,
        });
        waits || deletes || self.making.last().is_some_and(|version| *version > newest + 1)
    }

    /// No state lets the answer of `goal` be true: says how it is wrong.
    fn impossible(&mut self, states: &[State], goal: At) -> Result<Violation, TooMany> {
        let reached = self.explore(states, None)?;
        let operation = self.facts.operations[goal];
        let all = |is: &dyn Fn(&Versions) -> bool| reached.iter().all(|state| is(&state.core.versions));
        let gone = |version: u32| all(&|versions| versions.newest >= version && !versions.live(version));
        let kind = match self.roles[goal] {
            Role::Newest(None) | Role::Version(_, false) => Kind::LostWrite,
            Role::Newest(Some(version)) | Role::Version(version, true) if gone(version) => Kind::ResurrectedDelete,
            Role::Newest(Some(version)) | Role::Version(version, true)
                if all(&|versions| versions.newest < version) =>
            {
                Kind::VersionOrder
            }
            Role::Newest(Some(_)) => Kind::StaleRead,
            Role::Version(_, true) | Role::Make(_) | Role::Nothing => Kind::VersionOrder,
            Role::Absent(_) | Role::One(..) | Role::All(_) => Kind::DeleteDisagrees,
        };
        let at = reached.iter().map(|state| state.core.versions.describe()).collect::<BTreeSet<_>>();
        let at = at.into_iter().take(3).collect::<Vec<_>>().join(", or ");
        let what = format!("no order of operations explains the answer of #{}; by its end {at}", operation.number);
        Ok(Violation::new(kind, self.facts.key, what, self.concerned(&reached, goal)))
    }

    /// The operation itself, who made what is newest in its place, and what ran beside it or may have deleted.
    fn concerned(&self, states: &[State], goal: At) -> Vec<&'a Operation> {
        let operation = self.facts.operations[goal];
        let mut concerned = vec![operation];
        let named = match &self.roles[goal] {
            Role::Make(version) | Role::Version(version, _) | Role::Absent(version) | Role::One(version, _) => {
                Some(*version)
            }
            Role::Newest(version) => *version,
            Role::All(told) => told.as_ref().and_then(|told| told.last().copied()),
            Role::Nothing => None,
        };
        let newest = states.iter().filter_map(|state| state.core.versions.newest_live());
        concerned.extend(newest.chain(named).filter_map(|version| self.facts.put_of(version)));
        let deletes = |one: &&Operation| match (&one.call, &one.answer) {
            (Call::Delete { .. }, Answer::Deleted { versions }) => named.is_some_and(|named| versions.contains(&named)),
            _ => false,
        };
        concerned.extend(self.facts.operations.iter().copied().filter(deletes));
        let beside = |one: &&Operation| {
            let (Some(ended), Some(until)) = (one.ended, operation.ended) else { return false };
            one.started <= until && ended >= operation.started && one.answer != Answer::Refused
        };
        concerned.extend(self.facts.operations.iter().copied().filter(beside));
        concerned
    }
}

/// The delete at `place` found nothing to do.
fn idle(state: &State, place: usize) -> Option<State> {
    let open = &state.core.deletes[place];
    let nothing = |through: &u32| state.core.versions.next_live(0, *through).is_none();
    (open.part.is_none() && open.looked.iter().any(nothing)).then(|| {
        let mut after = state.clone();
        after.core.deletes.remove(place);
        after
    })
}

fn lend(mut state: State, group: GroupAt) -> State {
    let borrowed = &mut state.core.borrowed;
    match borrowed.binary_search_by_key(&group, |(of, _)| *of) {
        Ok(at) => borrowed[at].1 += 1,
        Err(at) => borrowed.insert(at, (group, 1)),
    }
    state
}
