//! A pass over the work that a survey found: from groups of stripes to tasks, a bounded piece at a time.
//!
//! **Invariants.** Reads the catalog and nothing else; what it hands out is planned on the record as it is at that moment.
//! No piece looks at more than [`LOOKS_MAX`] stripes. Repairs come before moves, and shards are only evened out over volumes
//! when nothing else is to be done. Nothing of a pass needs to survive: the next one finds what this one left.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use pacsvault_core::{
    catalog::{Error, View, query},
    health::{
        Aside, Cause, Group, Pace, StripeState, Sums, Task, Tier,
        rebalance::{Shift, shift_task, shifts},
        repair::{Item, Planned, Room, Situation, Survey, sums_of, survey_all, task},
    },
    ids::{LogIndex, NodeId, PlacementId, ProfileName, ShardIndex, VolumeId, WallMillis},
    layout::{Layout, profile::Code},
};

use crate::desk::{Desk, READY_MAX, READY_PER_WORKER_MAX, Rank, Stripe};

/// Stripes looked at in one piece: some 30 ms of reads, mostly from memory.
const LOOKS_MAX: usize = 2_000;
/// Stripes of a group read at once.
const PAGE: usize = 256;
/// Incomplete stripes that a survey keeps, each by itself. The others count, and come up as these end.
pub const INCOMPLETE_MAX: usize = 50_000;
/// Incomplete stripes that a survey reads: some twenty seconds. Beyond, they are taken to be whole, and that is told.
const INCOMPLETE_READ_MAX: usize = 1_000_000;
/// Stripes set aside that are told in full.
const ASIDES_TOLD: usize = 100;
/// How long a stripe set aside rests while the cluster stays as it is: a sound copy may turn up without a new layout.
const ASIDE_RESTS_MILLIS: u64 = 60 * 60 * 1_000;
/// Stripes that one piece sets aside: each costs a row in the catalog.
const IMPOSSIBLE_MAX: usize = 256;
/// Stripes left for when their worker has room: beyond, a pass waits. Each is looked at once more.
const LEFT_MAX: usize = 8_192;
/// Reasons kept for people.
const REASONS_MAX: usize = 16;

/// What a survey is made of, besides the catalog.
#[derive(Clone)]
pub struct Ground {
    /// The layout.
    pub layout: Arc<Layout>,
    /// How long nodes have been silent.
    pub silent: BTreeMap<NodeId, Duration>,
    /// What nodes told of their volumes.
    pub rooms: BTreeMap<VolumeId, Room>,
    /// Timings.
    pub pace: Pace,
    /// Time of the catalog.
    pub time: WallMillis,
}

impl Ground {
    /// For the planner.
    pub fn situation(&self) -> Situation<'_> {
        Situation { layout: &self.layout, silent: &self.silent, pace: &self.pace, rooms: &self.rooms }
    }
}

/// The whole catalog as judged at one moment.
pub struct Surveyed {
    /// What it was judged on.
    pub ground: Ground,
    /// Applied when it began.
    pub applied: LogIndex,
    /// All stripes by placement and profile.
    pub groups: Vec<Group>,
    /// Stripes with a shard that is not persisted.
    pub incomplete: Vec<StripeState>,
    /// The judgement.
    pub survey: Survey,
    /// Stripes set aside, some of them, and how many.
    pub asides: (Vec<Aside>, u64),
}

impl Surveyed {
    /// Judges everything.
    ///
    /// # Errors
    /// The catalog is unreadable.
    pub fn make(view: &dyn View, ground: Ground, applied: LogIndex) -> Result<Self, Error> {
        let groups = query::groups(view)?;
        let mut gathered = Gathered::new(&ground);
        let complete = gathered.read(view)?;
        let (incomplete, crowds) = gathered.finish();
        let mut survey = survey_all(&groups, &incomplete, &crowds, &ground.situation());
        if !crowds.is_empty() {
            let text =
                format!("more than {INCOMPLETE_MAX} stripes lack shards; what is closest to loss is repaired first");
            survey.held_back.push(text);
        }
        if !complete {
            let text = format!("figures are partial: more than {INCOMPLETE_READ_MAX} stripes lack shards");
            survey.held_back.push(text);
        }
        let asides = query::asides(view, ASIDES_TOLD)?;
        Ok(Self { ground, applied, groups, incomplete, survey, asides })
    }
}

/// What decides what is to be done about a stripe, but for its size.
type Kind = (Vec<VolumeId>, u32, ProfileName, Code, BTreeMap<ShardIndex, VolumeId>);
/// What can be done comes first, by how close to loss it is; then what waits; then what is lost.
type Place = (u8, Tier);

/// The incomplete stripes: the most dangerous that can be repaired each by itself, the others in crowds.
struct Gathered<'a> {
    ground: &'a Ground,
    places: BTreeMap<Kind, Place>,
    kept: Vec<(Place, StripeState)>,
    crowds: BTreeMap<Kind, (StripeState, Sums)>,
}

fn kind_of(state: &StripeState) -> Kind {
    (state.volumes.clone(), state.persisted, state.profile.clone(), state.code, state.former.clone())
}

impl<'a> Gathered<'a> {
    fn new(ground: &'a Ground) -> Self {
        Self { ground, places: BTreeMap::new(), kept: Vec::new(), crowds: BTreeMap::new() }
    }

    /// Reads the index page by page; false when it did not come to the end.
    fn read(&mut self, view: &dyn View) -> Result<bool, Error> {
        let (mut after, mut read) = (None, 0);
        loop {
            let page = query::missing_shards(view, after, PAGE)?;
            for (instance, stripe) in &page {
                if let Some(state) = query::stripe_state(view, *instance, *stripe)? {
                    self.add(state);
                }
            }
            after = page.last().copied();
            read += page.len();
            if page.len() < PAGE || read >= INCOMPLETE_READ_MAX {
                return Ok(page.len() < PAGE);
            }
        }
    }

    fn add(&mut self, state: StripeState) {
        let situation = self.ground.situation();
        let place = *self.places.entry(kind_of(&state)).or_insert_with(|| match task(&state, &situation) {
            Planned::Task(task) => (0, task.tier),
            Planned::Wait(_) | Planned::Nothing => (1, Tier::Unreadable),
            Planned::Impossible(_) => (2, Tier::Unreadable),
        });
        self.kept.push((place, state));
        if self.kept.len() >= 2 * INCOMPLETE_MAX {
            self.cut();
        }
    }

    fn cut(&mut self) {
        // Stable: within a place they stay in the order of age.
        self.kept.sort_by_key(|(place, _)| *place);
        for (_, state) in self.kept.split_off(INCOMPLETE_MAX.min(self.kept.len())) {
            let one = sums_of(&state);
            let (_, sums) = self.crowds.entry(kind_of(&state)).or_insert_with(|| (state, Sums::default()));
            sums.stripes += one.stripes;
            sums.content_bytes = sums.content_bytes.saturating_add(one.content_bytes);
            sums.shard_bytes = sums.shard_bytes.saturating_add(one.shard_bytes);
        }
    }

    fn finish(mut self) -> (Vec<StripeState>, Vec<(StripeState, Sums)>) {
        self.cut();
        (self.kept.into_iter().map(|(_, state)| state).collect(), self.crowds.into_values().collect())
    }
}

/// All groups, and the oldest incomplete stripes, up to [`INCOMPLETE_MAX`].
///
/// # Errors
/// The catalog is unreadable.
pub fn read_all(view: &dyn View) -> Result<(Vec<Group>, Vec<StripeState>), Error> {
    let groups = query::groups(view)?;
    let mut incomplete = Vec::new();
    let mut after = None;
    loop {
        let page = query::missing_shards(view, after, PAGE)?;
        for (instance, stripe) in &page {
            incomplete.extend(query::stripe_state(view, *instance, *stripe)?);
        }
        after = page.last().copied();
        if page.len() < PAGE || incomplete.len() >= INCOMPLETE_MAX {
            return Ok((groups, incomplete));
        }
    }
}

/// What may be planned in a piece.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Tasks at most.
    pub tasks: usize,
    /// Stripes to leave alone.
    pub skip: BTreeSet<Stripe>,
    /// Tasks that wait already, by the owner of their first target.
    pub queued: BTreeMap<NodeId, usize>,
    /// Nothing less urgent.
    pub upto: Rank,
}

impl Wish {
    /// What `desk` has room for, if `pass` may find it: what is urgent as soon as it is known, the rest when the desk runs
    /// low, and moves when no repair waits.
    pub fn of(desk: &Desk, pass: &Pass, layout: &Layout, now: Duration) -> Option<Self> {
        let calm = if desk.repairs_wait() { Rank::Repair } else { Rank::Move };
        let kinds = [(Rank::Urgent, Rank::Urgent, READY_MAX / 4), (calm, Rank::Move, READY_MAX / 2)];
        kinds.into_iter().find_map(|(upto, counted, least)| {
            let (tasks, queued) = (desk.room(counted), desk.ready_by_worker(layout, counted));
            let wanted = tasks > least && pass.can_go(upto, &queued);
            wanted.then(|| Self { tasks, skip: desk.skip(now, counted), queued, upto })
        })
    }
}

/// What a piece found.
#[derive(Debug, Default)]
pub struct Found {
    /// To be done.
    pub tasks: Vec<Task>,
    /// Cannot be done, and why.
    pub impossible: Vec<(Stripe, String)>,
    /// Why work is not being done.
    pub held_back: BTreeSet<String>,
    looked: usize,
}

impl Found {
    /// Stripes looked at.
    pub fn looked(&self) -> usize {
        self.looked
    }

    fn full(&self, wish: &Wish) -> bool {
        self.tasks.len() >= wish.tasks || self.looked >= LOOKS_MAX || self.impossible.len() >= IMPOSSIBLE_MAX
    }
}

/// Evening out, as far as it has come.
struct Shifting {
    list: Vec<Shift>,
    at: usize,
    moved_bytes: u64,
    after: Option<Stripe>,
    /// It goes on when this one has room.
    waits_for: Option<NodeId>,
}

/// Stripes whose worker had enough to do: they are looked at again when it has room, and not before.
#[derive(Default)]
struct Left {
    lists: BTreeMap<(Rank, NodeId), VecDeque<Stripe>>,
    ranks: BTreeMap<Stripe, Rank>,
}

impl Left {
    fn push(&mut self, rank: Rank, worker: NodeId, stripe: Stripe) {
        self.ranks.insert(stripe, rank);
        self.lists.entry((rank, worker)).or_default().push_back(stripe);
    }

    fn pop(&mut self, key: (Rank, NodeId)) -> Option<Stripe> {
        let list = self.lists.get_mut(&key)?;
        let stripe = list.pop_front();
        if list.is_empty() {
            self.lists.remove(&key);
        }
        if let Some(stripe) = stripe {
            self.ranks.remove(&stripe);
        }
        stripe
    }

    /// True when it need not be looked at now.
    fn holds(&self, stripe: Stripe, upto: Rank) -> bool {
        self.ranks.get(&stripe).is_some_and(|rank| *rank == Rank::Urgent || upto != Rank::Urgent)
    }

    fn full(&self) -> bool {
        self.lists.values().map(VecDeque::len).sum::<usize>() >= LEFT_MAX
    }
}

/// See the room's text.
pub struct Pass {
    /// What it goes by.
    pub surveyed: Arc<Surveyed>,
    order: Vec<usize>,
    at: usize,
    cursors: BTreeMap<PlacementId, Stripe>,
    left: Left,
    /// It went on since it was made: what is left is worth keeping.
    went: bool,
    shifting: Option<Shifting>,
    planned: usize,
    ended: bool,
}

fn roomy(queued: &BTreeMap<NodeId, usize>, worker: NodeId) -> bool {
    queued.get(&worker).copied().unwrap_or(0) <= READY_PER_WORKER_MAX / 2
}

impl Pass {
    /// Over everything in `surveyed`. Goes on where `earlier` stood, if that one had not ended and the layout is the same.
    pub fn new(surveyed: Arc<Surveyed>, earlier: Option<Self>) -> Self {
        let work = &surveyed.survey.work;
        let mut order: Vec<usize> = (0..work.len()).collect();
        order.sort_by_key(|at| Rank::of(work[*at].tier, work[*at].cause));
        let same =
            |earlier: &Self| !earlier.ended && earlier.surveyed.ground.layout.version == surveyed.ground.layout.version;
        let Some(earlier) = earlier.filter(same) else {
            let (cursors, left) = (BTreeMap::new(), Left::default());
            return Self {
                surveyed,
                order,
                at: 0,
                cursors,
                left,
                went: false,
                shifting: None,
                planned: 0,
                ended: false,
            };
        };
        // What has become urgent is looked at from its beginning.
        let (then, now) = (urgent_placements(&earlier.surveyed), urgent_placements(&surveyed));
        let mut cursors = earlier.cursors;
        cursors.retain(|placement, _| then.contains(placement) || !now.contains(placement));
        // Workers that took nothing since the last survey must not keep others from what lies behind theirs.
        let left = if earlier.went { earlier.left } else { Left::default() };
        Self {
            surveyed,
            order,
            at: 0,
            cursors,
            left,
            went: false,
            shifting: None,
            planned: earlier.planned,
            ended: false,
        }
    }

    /// True when going on may find something of `upto` or more urgent, with so many tasks waiting for each worker.
    pub fn can_go(&self, upto: Rank, queued: &BTreeMap<NodeId, usize>) -> bool {
        if self.ended {
            return false;
        }
        if self.left.lists.keys().any(|(rank, worker)| *rank <= upto && roomy(queued, *worker)) {
            return true;
        }
        match self.order.get(self.at) {
            Some(index) => self.rank(*index) <= upto && !self.left.full(),
            None => {
                let waits_for = self.shifting.as_ref().and_then(|shifting| shifting.waits_for);
                let free = waits_for.is_none_or(|worker| roomy(queued, worker));
                upto == Rank::Move && self.left.lists.is_empty() && free
            }
        }
    }

    fn rank(&self, index: usize) -> Rank {
        let work = self.surveyed.survey.work[index];
        Rank::of(work.tier, work.cause)
    }

    /// True when all was looked at once.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Tasks that it handed out so far, besides those of evening out.
    pub fn planned(&self) -> usize {
        self.planned
    }

    /// Plans on, until `wish` is met, all was looked at, or one piece's worth of stripes was.
    ///
    /// # Errors
    /// The catalog is unreadable.
    pub fn go(&mut self, view: &dyn View, wish: &mut Wish) -> Result<Found, Error> {
        let mut found = Found::default();
        self.look_left(view, wish, &mut found)?;
        while !found.full(wish) && !self.left.full() {
            let Some(index) = self.order.get(self.at).copied() else {
                if !self.left.lists.is_empty() || wish.upto < Rank::Move {
                    break;
                }
                if self.planned == 0 && found.tasks.is_empty() {
                    self.shift(view, wish, &mut found)?;
                } else {
                    self.ended = true;
                }
                break;
            };
            let work = self.surveyed.survey.work[index];
            let repairs = found.tasks.iter().any(|task| task.cause == Cause::Repair);
            let rank = self.rank(index);
            if rank > wish.upto || (rank == Rank::Move && repairs) {
                break;
            }
            let done = match work.what {
                Item::Stripe(at) => {
                    let state = &self.surveyed.incomplete[at];
                    self.look(view, wish, &mut found, (state.instance, state.stripe), None)?;
                    true
                }
                Item::Group(at) => self.look_group(view, wish, &mut found, at)?,
            };
            if done {
                self.at += 1;
            }
        }
        self.went |= found.looked > 0;
        self.planned += found.tasks.iter().filter(|task| task.cause != Cause::Rebalance).count();
        Ok(found)
    }

    /// Looks again at what was left for workers that have room now.
    fn look_left(&mut self, view: &dyn View, wish: &mut Wish, found: &mut Found) -> Result<(), Error> {
        let keys: Vec<(Rank, NodeId)> = self.left.lists.keys().copied().collect();
        let upto = wish.upto;
        for (rank, worker) in keys.into_iter().filter(|(rank, _)| *rank <= upto) {
            let has_room = |wish: &Wish| wish.queued.get(&worker).is_none_or(|queued| *queued < READY_PER_WORKER_MAX);
            while !found.full(wish) && has_room(wish) {
                let Some(stripe) = self.left.pop((rank, worker)) else { break };
                self.look(view, wish, found, stripe, None)?;
            }
        }
        Ok(())
    }

    /// Looks at stripes of a group; true at its end.
    fn look_group(&mut self, view: &dyn View, wish: &mut Wish, found: &mut Found, at: usize) -> Result<bool, Error> {
        let surveyed = self.surveyed.clone();
        let group = &surveyed.groups[at];
        let after = self.cursors.get(&group.placement).copied();
        let page = query::group_stripes(view, group.placement, after, PAGE)?;
        for stripe in &page {
            if found.full(wish) || self.left.full() {
                return Ok(false);
            }
            self.look(view, wish, found, *stripe, Some(group))?;
            self.cursors.insert(group.placement, *stripe);
        }
        let end = page.len() < PAGE;
        if end {
            // Another group may share the placement.
            self.cursors.remove(&group.placement);
        }
        Ok(end)
    }

    fn look(
        &mut self,
        view: &dyn View,
        wish: &mut Wish,
        found: &mut Found,
        stripe: Stripe,
        group: Option<&Group>,
    ) -> Result<(), Error> {
        found.looked += 1;
        let ground = &self.surveyed.ground;
        if wish.skip.contains(&stripe) || self.left.holds(stripe, wish.upto) {
            return Ok(());
        }
        if query::aside(view, stripe.0, stripe.1)?.is_some_and(|aside| rests(&aside, ground)) {
            return Ok(());
        }
        let Some(state) = query::stripe_state(view, stripe.0, stripe.1)? else { return Ok(()) };
        if group.is_some_and(|group| state.volumes != group.volumes || state.profile != group.profile) {
            return Ok(());
        }
        match task(&state, &ground.situation()) {
            Planned::Task(task) => {
                let rank = Rank::of(task.tier, task.cause);
                if let Err(worker) = take(task, &ground.layout, wish, found) {
                    self.left.push(rank, worker, stripe);
                }
            }
            Planned::Nothing => {}
            Planned::Wait(reason) => note(found, reason),
            Planned::Impossible(reason) => found.impossible.push((stripe, reason)),
        }
        Ok(())
    }

    /// Evens out how full volumes are. Ends the pass when nothing is left of it.
    fn shift(&mut self, view: &dyn View, wish: &mut Wish, found: &mut Found) -> Result<(), Error> {
        let surveyed = self.surveyed.clone();
        let situation = surveyed.ground.situation();
        let mut shifting = self.shifting.take().unwrap_or_else(|| {
            let list = shifts(&surveyed.groups, &situation);
            Shifting { list, at: 0, moved_bytes: 0, after: None, waits_for: None }
        });
        shifting.waits_for = None;
        while !found.full(wish) && shifting.waits_for.is_none() {
            let Some(shift) = shifting.list.get(shifting.at) else {
                self.ended = true;
                return Ok(());
            };
            let group = &surveyed.groups[shift.group];
            let page = query::group_stripes(view, group.placement, shifting.after, PAGE)?;
            for stripe in &page {
                if found.full(wish) || shifting.moved_bytes >= shift.shards_bytes {
                    break;
                }
                found.looked += 1;
                let before = shifting.after.replace(*stripe);
                if wish.skip.contains(stripe) {
                    continue;
                }
                let Some(state) = query::stripe_state(view, stripe.0, stripe.1)? else { continue };
                if state.volumes != group.volumes {
                    continue;
                }
                if let Some(task) = shift_task(&state, shift.from, &situation) {
                    let bytes = task.write_bytes;
                    if let Err(worker) = take(task, &surveyed.ground.layout, wish, found) {
                        (shifting.after, shifting.waits_for) = (before, Some(worker));
                        break;
                    }
                    shifting.moved_bytes += bytes;
                }
            }
            let at_end = page.len() < PAGE && page.last().copied().is_none_or(|last| shifting.after == Some(last));
            if at_end || shifting.moved_bytes >= shift.shards_bytes {
                shifting.at += 1;
                (shifting.moved_bytes, shifting.after) = (0, None);
            }
        }
        self.shifting = Some(shifting);
        Ok(())
    }
}

fn urgent_placements(surveyed: &Surveyed) -> BTreeSet<PlacementId> {
    let urgent = surveyed.survey.work.iter().filter(|work| Rank::of(work.tier, work.cause) == Rank::Urgent);
    let groups = urgent.filter_map(|work| match work.what {
        Item::Group(at) => Some(surveyed.groups[at].placement),
        Item::Stripe(_) => None,
    });
    groups.collect()
}

/// Takes a task, unless too many wait for its worker already: then that worker is the error.
fn take(task: Task, layout: &Layout, wish: &mut Wish, found: &mut Found) -> Result<(), NodeId> {
    let worker = task.moves.first().and_then(|(_, volume)| layout.node_of(*volume)).map(|node| node.id);
    let Some(worker) = worker else { return Ok(()) };
    let queued = wish.queued.entry(worker).or_default();
    if *queued >= READY_PER_WORKER_MAX {
        return Err(worker);
    }
    *queued += 1;
    wish.skip.insert((task.instance, task.stripe));
    found.tasks.push(task);
    Ok(())
}

/// Nothing has happened yet that could make a stripe set aside repairable.
fn rests(aside: &Aside, ground: &Ground) -> bool {
    let young = ground.time.0.saturating_sub(aside.since.0) < ASIDE_RESTS_MILLIS;
    young && aside.layout == ground.layout.version
}

fn note(found: &mut Found, reason: String) {
    if found.held_back.len() < REASONS_MAX {
        found.held_back.insert(reason);
    }
}
