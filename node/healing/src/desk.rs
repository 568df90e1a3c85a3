//! The conductor's desk: what is ready to be done, what is being done, what failed and when to try it again.
//!
//! **Invariants.** Time is an argument. A stripe is ready or being worked on at most once. No worker has more than the
//! configured number of tasks and one more that is urgent, all together no more than [`FLIGHTS_MAX`] and some urgent ones. The most urgent task whose worker is free goes
//! first, so a slow worker or a stripe that fails holds up nobody else. Everything here may be forgotten: it is derived again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use pacsvault_core::{
    health::{Cause, Task, Tier, report::Done},
    ids::{InstanceId, NodeId, StripeIndex},
    layout::{Layout, NodeState},
};
use pacsvault_ports::peer::{Class, Fault};

/// Code of what went wrong with a stripe, as opposed to its worker or the way there.
pub const REPAIR_FAULT: &str = "PV-REPAIR";
/// Tasks at work at once in the whole cluster: 512 × 24 MiB in memory of at least 64 workers.
pub const FLIGHTS_MAX: usize = 512;
/// So many more may be urgent ones.
const URGENT_FLIGHTS_MAX: usize = FLIGHTS_MAX / 8;
/// Tasks planned ahead: planning is done in rounds, and each round is old when it is long.
pub const READY_MAX: usize = 256;
/// Of those, for one worker: others must find room.
pub const READY_PER_WORKER_MAX: usize = 64;
/// Stripes whose failures are remembered: what is forgotten is only tried again sooner.
const TROUBLED_MAX: usize = 4_096;
/// Pause after the first failure of a stripe; doubled with each further one …
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// … up to this. What fails is tried for ever: only what surely cannot be repaired is set aside.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Stripes that were not as planned so often in a row are told.
const MISSES_TOLD: u32 = 5;
/// Reasons of failing stripes that are told.
const REASONS_TOLD: usize = 3;
/// Pause before a stripe that changed under its worker is planned again, so that replicas catch up.
const SETTLE_AFTER: Duration = Duration::from_millis(500);
/// Most doublings of that pause, if it goes on so: half a minute.
const MISSES_DOUBLED_MAX: u32 = 6;
/// How long a worker that could not be reached gets no tasks.
const BENCH_FOR: Duration = Duration::from_secs(2);
/// Span over which the rate is told.
const RATE_OVER: Duration = Duration::from_secs(10);

/// Names a stripe.
pub type Stripe = (InstanceId, StripeIndex);

/// The stripe of a task.
pub fn stripe_of(task: &Task) -> Stripe {
    (task.instance, task.stripe)
}

/// What is done before what. Less urgent work never keeps more urgent work from being planned or begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// The next failure may lose it.
    Urgent,
    /// Something is missing.
    Repair,
    /// All is there, but should be elsewhere.
    Move,
}

impl Rank {
    /// Of work this close to loss, for this cause.
    pub fn of(tier: Tier, cause: Cause) -> Self {
        match cause {
            Cause::Repair | Cause::Respread if tier <= Tier::Distance(0) => Self::Urgent,
            Cause::Repair => Self::Repair,
            Cause::Respread | Cause::Drain | Cause::Rebalance => Self::Move,
        }
    }
}

fn rank_of(task: &Task) -> Rank {
    Rank::of(task.tier, task.cause)
}

fn urgency(task: &Task) -> (Rank, Tier, Cause) {
    (rank_of(task), task.tier, task.cause)
}

/// A task that is being worked on.
#[derive(Debug, Clone)]
pub struct Flight {
    /// By whom.
    pub worker: NodeId,
    /// What.
    pub task: Task,
}

/// What a finished task asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Nothing,
    /// The stripe is to be set aside, for this reason.
    SetAside(Stripe, String),
}

#[derive(Debug, Clone)]
struct Trouble {
    failures: u32,
    /// Times in a row that it was not as planned, or its worker was not there.
    misses: u32,
    not_before: Duration,
    /// What went wrong last.
    reason: String,
}

impl Trouble {
    /// It keeps failing, and that was not long ago: one that was not planned again since is not wanted any more.
    fn told(&self, now: Duration) -> bool {
        let lately = now < self.not_before + RETRY_AFTER_MAX * 2;
        lately && (self.failures > 0 || self.misses >= MISSES_TOLD)
    }
}

/// What was done so far under this leader.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Stripes made whole or moved.
    pub done_stripes: u64,
    /// Bytes written for that.
    pub done_bytes: u64,
    /// Bytes between sites for that.
    pub wan_bytes: u64,
    recent: VecDeque<(Duration, u64)>,
}

impl Progress {
    fn add(&mut self, now: Duration, written_bytes: u64, wan_bytes: u64) {
        self.done_stripes += 1;
        self.done_bytes += written_bytes;
        self.wan_bytes += wan_bytes;
        self.recent.push_back((now, written_bytes));
        self.forget(now);
    }

    fn forget(&mut self, now: Duration) {
        while self.recent.front().is_some_and(|(at, _)| now.saturating_sub(*at) > RATE_OVER) {
            self.recent.pop_front();
        }
    }

    /// Bytes written per second over the last ten seconds.
    pub fn rate(&mut self, now: Duration) -> u64 {
        self.forget(now);
        self.recent.iter().map(|(_, bytes)| bytes).sum::<u64>() / RATE_OVER.as_secs()
    }
}

/// See the room's text.
#[derive(Debug)]
pub struct Desk {
    per_worker: usize,
    ready: Vec<Task>,
    flights: BTreeMap<u64, Flight>,
    troubled: BTreeMap<Stripe, Trouble>,
    benched: BTreeMap<NodeId, Duration>,
    /// What was done.
    pub progress: Progress,
}

impl Desk {
    /// With so many tasks per worker.
    pub fn new(per_worker: usize) -> Self {
        Self {
            per_worker: per_worker.max(1),
            ready: Vec::new(),
            flights: BTreeMap::new(),
            troubled: BTreeMap::new(),
            benched: BTreeMap::new(),
            progress: Progress::default(),
        }
    }

    /// Stripes not to be planned now; those that only wait, if they are of `upto` or more urgent.
    pub fn skip(&self, now: Duration, upto: Rank) -> BTreeSet<Stripe> {
        let ready = self.ready_upto(upto).map(stripe_of);
        let flying = self.flights.values().map(|flight| stripe_of(&flight.task));
        let resting = self.troubled.iter().filter(|(_, trouble)| trouble.not_before > now).map(|(stripe, _)| *stripe);
        ready.chain(flying).chain(resting).collect()
    }

    fn ready_upto(&self, upto: Rank) -> impl Iterator<Item = &Task> {
        self.ready.iter().filter(move |task| rank_of(task) <= upto)
    }

    /// Tasks of `upto` or more urgent that are planned ahead, by the owner of their first target.
    pub fn ready_by_worker(&self, layout: &Layout, upto: Rank) -> BTreeMap<NodeId, usize> {
        let mut counts = BTreeMap::new();
        for node in self.ready_upto(upto).filter_map(|task| Some(layout.node_of(task.moves.first()?.1)?.id)) {
            *counts.entry(node).or_default() += 1;
        }
        counts
    }

    /// How many more of `upto` or more urgent may be planned ahead: what is less urgent gives way.
    pub fn room(&self, upto: Rank) -> usize {
        READY_MAX.saturating_sub(self.ready_upto(upto).count())
    }

    /// True while a repair waits for its worker.
    pub fn repairs_wait(&self) -> bool {
        self.ready_upto(Rank::Repair).next().is_some()
    }

    /// Tasks being worked on.
    pub fn flying(&self) -> usize {
        self.flights.len()
    }

    /// True when nothing is ready and nothing being worked on.
    pub fn idle(&self) -> bool {
        self.ready.is_empty() && self.flights.is_empty()
    }

    /// Stripes that keep failing and are tried again and again; why, for people.
    pub fn resting(&self, now: Duration) -> Option<String> {
        let told = || self.troubled.values().filter(|trouble| trouble.told(now));
        let worst = told().max_by_key(|trouble| (trouble.failures, trouble.misses))?;
        let mut reasons = vec![worst.reason.as_str()];
        for trouble in told() {
            if reasons.len() < REASONS_TOLD && !reasons.contains(&trouble.reason.as_str()) {
                reasons.push(&trouble.reason);
            }
        }
        Some(format!("{} stripes failed and are tried again: {}", told().count(), reasons.join("; ")))
    }

    /// Puts tasks on the desk. Of a stripe that is there already the new one is dropped, unless it is more urgent and the
    /// other not begun. What does not find room then is the least urgent: a later pass finds it again.
    pub fn add(&mut self, tasks: Vec<Task>) {
        let flying: BTreeSet<Stripe> = self.flights.values().map(|flight| stripe_of(&flight.task)).collect();
        let mut known: BTreeMap<Stripe, usize> = self.ready.iter().map(stripe_of).zip(0..).collect();
        for task in tasks.into_iter().filter(|task| !flying.contains(&stripe_of(task))) {
            let at = *known.entry(stripe_of(&task)).or_insert(self.ready.len());
            match self.ready.get_mut(at) {
                Some(earlier) if urgency(&task) < urgency(earlier) => *earlier = task,
                Some(_) => {}
                None => self.ready.push(task),
            }
        }
        if self.ready.len() > READY_MAX {
            self.ready.sort_by_key(urgency);
            self.ready.truncate(READY_MAX);
        }
    }

    /// The cluster has changed: what was planned is planned again, and what workers do that are gone is given up.
    pub fn layout_changed(&mut self, layout: &Layout) {
        self.ready.clear();
        self.benched.clear();
        let up = |node: &NodeId| layout.nodes.get(node).is_some_and(|node| node.state == NodeState::Up);
        self.flights.retain(|_, flight| up(&flight.worker));
    }

    /// The next task, begun as flight `id`: the most urgent one with a free worker, the freest of those it writes to.
    pub fn next(&mut self, id: u64, now: Duration, layout: &Layout) -> Option<Flight> {
        self.benched.retain(|_, until| *until > now);
        let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
        for flight in self.flights.values() {
            *load.entry(flight.worker).or_default() += 1;
        }
        let free = |task: &Task| {
            let nodes = task.moves.iter().filter_map(|(_, volume)| layout.node_of(*volume));
            let able = nodes.filter(|node| node.state == NodeState::Up && !self.benched.contains_key(&node.id));
            let loads = able.map(|node| (load.get(&node.id).copied().unwrap_or(0), node.id));
            // One place of each worker is kept for what is urgent, so that it never waits for slow work that is not.
            let urgent = rank_of(task) == Rank::Urgent;
            let (places, all) = if urgent { (1, URGENT_FLIGHTS_MAX) } else { (0, 0) };
            let room = self.flights.len() < FLIGHTS_MAX + all;
            loads.min().filter(|(load, _)| room && *load < self.per_worker + places).map(|(_, node)| node)
        };
        let candidates = self.ready.iter().enumerate().filter_map(|(at, task)| Some((at, free(task)?)));
        let (at, worker) = candidates.min_by_key(|(at, _)| (urgency(&self.ready[*at]), *at))?;
        let flight = Flight { worker, task: self.ready.remove(at) };
        self.flights.insert(id, flight.clone());
        Some(flight)
    }

    /// A flight has ended. One that was given up is not known any more and says nothing.
    pub fn finish(&mut self, id: u64, now: Duration, ended: &Result<Done, Fault>) -> After {
        let Some(flight) = self.flights.remove(&id) else {
            pacsvault_core::sometimes!("recovery: answer to a task that was given up");
            return After::Nothing;
        };
        let stripe = stripe_of(&flight.task);
        match ended {
            Ok(Done::Reseated { written_bytes, wan_bytes, .. }) => {
                self.troubled.remove(&stripe);
                self.progress.add(now, *written_bytes, *wan_bytes);
                After::Nothing
            }
            Ok(Done::Outdated) => {
                self.miss(stripe, now, "a stripe is never as it was planned on".to_owned());
                After::Nothing
            }
            Ok(Done::Irreparable(reason)) => self.give_up(stripe, now, reason.clone()),
            Err(fault) if fault.code == REPAIR_FAULT || matches!(fault.class, Class::Bug | Class::Reject) => {
                let failures = self.troubled.get(&stripe).map_or(0, |trouble| trouble.failures).saturating_add(1);
                let doubled = RETRY_AFTER.saturating_mul(2_u32.saturating_pow(failures - 1));
                let not_before = now + doubled.min(RETRY_AFTER_MAX);
                let reason = format!("{}: {fault}", fault.code);
                self.trouble(stripe, Trouble { failures, misses: 0, not_before, reason });
                After::Nothing
            }
            Err(fault) => {
                pacsvault_core::sometimes!("recovery: worker of repair benched");
                // The way to the worker, or the worker itself: that says nothing against the stripe.
                self.benched.insert(flight.worker, now + BENCH_FOR);
                self.miss(stripe, now, format!("{} at node {}: {fault}", fault.code, flight.worker));
                After::Nothing
            }
        }
    }

    fn miss(&mut self, stripe: Stripe, now: Duration, reason: String) {
        let (failures, misses) = self.troubled.get(&stripe).map_or((0, 0), |known| (known.failures, known.misses));
        let not_before = now + SETTLE_AFTER * 2_u32.pow(misses.min(MISSES_DOUBLED_MAX));
        self.trouble(stripe, Trouble { failures, misses: misses.saturating_add(1), not_before, reason });
    }

    fn give_up(&mut self, stripe: Stripe, now: Duration, reason: String) -> After {
        // Until the catalog has it; then that row keeps it from being planned.
        let not_before = now + RETRY_AFTER * 8;
        self.trouble(stripe, Trouble { failures: 0, misses: 0, not_before, reason: reason.clone() });
        After::SetAside(stripe, reason)
    }

    fn trouble(&mut self, stripe: Stripe, trouble: Trouble) {
        self.troubled.insert(stripe, trouble);
        if self.troubled.len() > TROUBLED_MAX {
            let soonest = self.troubled.iter().min_by_key(|(_, trouble)| trouble.not_before).map(|(stripe, _)| *stripe);
            soonest.map(|stripe| self.troubled.remove(&stripe));
        }
    }
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
