//! A part of the cluster that must suffice: when faults end, something stays broken, and the rest must do what contract and
//! quorum promise.
//!
//! **What stays broken** is drawn by the seed ([`Missing`]): a site without power or cut off, one or two nodes without power or
//! stopped, a link between two nodes or between two sites. The draw is taken only where
//! - a majority of the voters is left, alive and in touch with one of them. Who votes is believed when most voters follow one
//!   leader in one term and know the same voters; what is not known in [`KNOWN_WITHIN`] is not drawn from;
//! - the atlas lets what is missing be away beside what is damaged.
//!
//! Where nothing of the drawn kind fits, other kinds are tried in their order; where none does, the run goes on without and that
//! is counted.
//!
//! **What the rest must do**, each within its bound: agree on a leader and one digest; take a write at each site that is not
//! missing, while what is left can keep the floor; be led, where a link is cut, by somebody who reaches everybody, if there is
//! one, and then take writes on both sides; give back what receipts promise in spite of all that is damaged, was away or
//! is missing, and whatever has enough sound shards where the catalog names them; bring what the next node would lose to where
//! it would not. Then everything heals, and the finale judges the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use pacsvault_consensus::{Replica, Status};
use pacsvault_core::{
    catalog::Seal,
    ids::{NodeId, ShardIndex, Term, VolumeId},
    layout::{
        Contract, Failures, Layout, NodeState, Profile, VolumeState,
        plan::{Topology, check_possible},
        survival::{Held, distance},
    },
};

use crate::{
    audit::{Expect, Promise, homes, persisted, read_version, takes_a_write},
    cluster::{Cluster, site_name},
    exec::Life,
    nemesis::{Nemesis, Stays},
    net::{Barrier, HostId},
    proof::{Standing, newest_of, record, standing_on},
    rng::SimRng,
    rows,
    run::phase,
    scenario::{MISSING, Missing},
    workload::Work,
};

/// Virtual time in which it must become clear who votes, or nothing is drawn.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);
/// Virtual time in which the rest must agree: as long as a whole cluster has.
const AGREED_WITHIN: Duration = Duration::from_secs(60);
/// Virtual time in which nothing may be left that the next node would lose: until somebody is down takes up to 8 s of silence,
/// tasks that fail rest up to 15 s.
const SAFER_WITHIN: Duration = Duration::from_secs(60);
/// Virtual time for which leadership is watched once it is where it should be …
const STAYS_FOR: Duration = Duration::from_secs(20);
/// … and terms that may pass meanwhile: people drain nodes, voters change.
const CHANGES_MAX: u64 = 2;
/// Draws of one kind that are looked at.
const DRAWS_MAX: usize = 12;

/// What larger runs must have met.
pub const MARKS: &[&str] = &[
    "part: a site dark",
    "part: a site cut off",
    "part: nodes dark",
    "part: nodes stopped",
    "part: a link between nodes cut",
    "part: links between two sites cut",
    "part: agreed without the rest",
    "part: took a write",
    "part: led by somebody who reaches everybody",
    "part: read what a receipt promised in spite of what is missing",
    "part: read what has enough shards left",
    "part: nothing left that the next node would lose",
    "one site dark: took a write",
];

/// Who there is, and whose vote counts.
struct Ground {
    voters: BTreeSet<NodeId>,
    /// The node of each machine that is a member.
    nodes: BTreeMap<usize, NodeId>,
}

/// What stays broken.
#[derive(Debug, Clone, Default)]
struct Broken {
    /// Machines out of reach.
    missing: BTreeSet<usize>,
    /// Their site, when it is all of one.
    site: Option<usize>,
    /// Between machines: from, to.
    links: BTreeSet<(usize, usize)>,
    /// Machines on either side of the links.
    sides: [BTreeSet<usize>; 2],
    /// What the machines were on the network when it broke: one that is replaced since is cut from nobody.
    hosts: Vec<HostId>,
}

impl Broken {
    fn cut(&self, one: usize, other: usize) -> bool {
        self.links.contains(&(one, other)) || self.links.contains(&(other, one))
    }

    /// As `cut`, between what the machines are now.
    fn still_cut(&self, cluster: &Cluster, one: usize, other: usize) -> bool {
        let same = |at: usize| self.hosts.get(at) == Some(&cluster.machines()[at].host);
        self.cut(one, other) && same(one) && same(other)
    }

    /// Whether most voters are left, in touch with one of them.
    fn leaves_a_quorum(&self, cluster: &Cluster, ground: &Ground) -> bool {
        self.leaves_quorums(cluster, ground, &[&ground.voters])
    }

    /// Whether most of each of these sets of voters are left, in touch with one and the same of them.
    fn leaves_quorums(&self, cluster: &Cluster, ground: &Ground, sets: &[&BTreeSet<NodeId>]) -> bool {
        let lives = |at: &usize| !self.missing.contains(at) && !cluster.machines()[*at].blank;
        let left: Vec<(usize, NodeId)> =
            ground.nodes.iter().map(|(at, node)| (*at, *node)).filter(|(at, _)| lives(at)).collect();
        // Only who votes can lead: a node between two that do not hear each other helps neither, unless it is a voter.
        let leads = |node: &NodeId| sets.iter().any(|set| set.contains(node));
        left.iter().filter(|(_, node)| leads(node)).any(|&(one, _)| {
            let heard = |other: &&(usize, NodeId)| !self.cut(one, other.0);
            sets.iter().all(|set| {
                let votes = left.iter().filter(heard).filter(|(_, node)| set.contains(node)).count();
                votes * 2 > set.len()
            })
        })
    }

    /// All machines that may have to be done without.
    fn away(&self) -> Vec<usize> {
        self.missing.iter().chain(self.sides.iter().flatten()).copied().collect()
    }

    /// What is left can keep the floor, whichever side of a cut link the leader is on.
    fn leaves_the_floor(&self, cluster: &Cluster, layout: &Layout) -> bool {
        let without = |side: &BTreeSet<usize>| floor_possible(cluster, layout, &(side | &self.missing));
        self.sides.iter().all(without)
    }
}

/// Plays the part of the run between faults and healing.
pub async fn trial(work: &Arc<Work>, nemesis: &Arc<Nemesis>, how: Missing) {
    let cluster = &work.cluster;
    phase(&cluster.sim, "a part must suffice");
    let mut rng = cluster.sim.random(SimRng::fork);
    nemesis.end_faults();
    let Some(ground) = known_ground(cluster).await else {
        return cluster.sim.hit("part: none drawn, it is not clear who votes");
    };
    let others = MISSING.into_iter().filter(|other| *other != how);
    let mut kinds = std::iter::once(how).chain(others);
    let fitting = kinds.find_map(|how| Some((how, draw(cluster, &ground, how, &mut rng)?)));
    let Some((how, mut broken)) = fitting else { return cluster.sim.hit("part: none drawn, none would suffice") };
    broken.hosts = cluster.machines().iter().map(|machine| machine.host).collect();
    cluster.sim.event("part", &[], || format!("{how:?}: {broken:?}"));
    cluster.sim.hit(how.name());
    break_it(cluster, nemesis, how, &broken);
    if outvoted(cluster, &ground, &broken).await {
        return cluster.sim.hit("part: outvoted by a change that was under way");
    }
    if suffices(work, nemesis, &broken, &mut rng).await {
        cluster.sim.hit("part: sufficed");
    }
}

/// Whether what is missing was given a majority of the votes before its silence could be noticed: then only its return helps.
async fn outvoted(cluster: &Cluster, ground: &Ground, broken: &Broken) -> bool {
    let pace = &cluster.scenario.pace;
    cluster.sim.sleep(Life::HARNESS, pace.suspect_after + 2 * pace.heartbeat).await;
    // Whoever has the longest log of the last term knows the last change, applied or not.
    let left = (0..cluster.count()).filter(|at| !broken.missing.contains(at)).filter_map(|at| cluster.replica(at));
    let statuses = left.map(|replica| replica.status());
    let Some(status) = statuses.max_by_key(|status| (status.term, status.last_log)) else { return false };
    // While two sets are in force, the voters of both are told; a majority of the former is needed as well.
    let voters: BTreeSet<NodeId> = status.voters.into_iter().collect();
    let sets = if status.joint { vec![&ground.voters, &voters] } else { vec![&voters] };
    !broken.leaves_quorums(cluster, ground, &sets)
}

/// Heals all but what is drawn.
fn break_it(cluster: &Cluster, nemesis: &Nemesis, how: Missing, broken: &Broken) {
    match how {
        Missing::SiteDark | Missing::NodesDark => nemesis.freeze(&broken.missing, Stays::Dark),
        Missing::NodesStopped => nemesis.freeze(&broken.missing, Stays::Stopped),
        Missing::SiteCut | Missing::LinkCut | Missing::SitesCut => {}
    }
    nemesis.heal_rest();
    let host = |at: usize| cluster.machines()[at].host;
    cluster.net.raise(Barrier {
        site: broken.site.filter(|_| how == Missing::SiteCut),
        links: broken.links.iter().map(|&(from, to)| (host(from), host(to))).collect(),
    });
}

async fn suffices(work: &Arc<Work>, nemesis: &Nemesis, broken: &Broken, rng: &mut SimRng) -> bool {
    let sim = &work.cluster.sim;
    if !agrees(work, nemesis, broken).await {
        return false;
    }
    sim.hit("part: agreed without the rest");
    let sites: Vec<usize> = (0..work.cluster.scenario.sites).filter(|site| broken.site != Some(*site)).collect();
    for &site in &sites {
        takes_writes(work, broken, site, rng).await;
    }
    let led = led_in_touch(work, nemesis, broken).await;
    if led.is_some() {
        for &site in &sites {
            takes_writes(work, broken, site, rng).await;
        }
    }
    reads(work, broken, *rng.pick(&sites)).await;
    grows_safer(work, broken).await;
    if let Some(term) = led {
        sim.sleep(Life::HARNESS, STAYS_FOR).await;
        let now = led_in_touch(work, nemesis, broken).await;
        if now.is_some_and(|now| now.0 > term.0 + CHANGES_MAX) {
            work.violation(format!("leadership does not stay: term {term}, then {now:?}; without {broken:?}"));
        }
    }
    agrees(work, nemesis, broken).await
}

async fn known_ground(cluster: &Cluster) -> Option<Ground> {
    let end = cluster.sim.now() + KNOWN_WITHIN;
    loop {
        let ground = ground(cluster);
        if ground.is_some() || cluster.sim.now() > end {
            return ground;
        }
        cluster.sim.sleep(Life::HARNESS, Duration::from_millis(100)).await;
    }
}

/// Who votes, when that is certain: most voters follow one leader in one term and know the same voters. Nobody else can
/// then have been elected, and no other set of voters can be in force.
fn ground(cluster: &Cluster) -> Option<Ground> {
    let replicas = (0..cluster.count()).filter_map(|at| cluster.replica(at));
    let statuses: Vec<Status> = replicas.map(|replica| replica.status()).collect();
    let leads = |status: &&Status| status.leader == Some(status.node) && !status.joint && status.fatal.is_none();
    let leader = statuses.iter().filter(leads).max_by_key(|status| status.term)?;
    let follows = |status: &&Status| {
        let same = (status.term, status.leader, status.joint) == (leader.term, leader.leader, false);
        same && status.voters == leader.voters && leader.voters.contains(&status.node)
    };
    if statuses.iter().filter(follows).count() * 2 <= leader.voters.len() {
        return None;
    }
    let layout = newest_of(cluster, |_| true)?.layout()?;
    let node = |at: usize| Some((at, member(cluster, &layout, at)?.id));
    Some(Ground {
        voters: leader.voters.iter().copied().collect(),
        nodes: (0..cluster.count()).filter_map(node).collect(),
    })
}

/// The node of machine `at` in the layout, unless it was removed.
fn member<'a>(cluster: &Cluster, layout: &'a Layout, at: usize) -> Option<&'a pacsvault_core::layout::Node> {
    let incarnation = cluster.machines()[at].incarnation;
    layout.nodes.values().find(|node| node.incarnation == incarnation && node.state != NodeState::Removed)
}

/// Something of this kind whose absence must be got over; booked as away. `None`: nothing that was looked at.
fn draw(cluster: &Cluster, ground: &Ground, how: Missing, rng: &mut SimRng) -> Option<Broken> {
    let mut drawn = candidates(cluster, how, rng).into_iter().take(DRAWS_MAX);
    drawn.find(|broken| broken.leaves_a_quorum(cluster, ground) && cluster.atlas().away(&broken.away()))
}

fn candidates(cluster: &Cluster, how: Missing, rng: &mut SimRng) -> Vec<Broken> {
    let (sites, count) = cluster.extent();
    let machines: Vec<usize> = (0..count).collect();
    match how {
        Missing::SiteDark | Missing::SiteCut => {
            let of = |site| Broken { missing: set(cluster.of_site(site)), site: Some(site), ..Broken::default() };
            shuffled((0..sites).collect(), rng).into_iter().map(of).collect()
        }
        Missing::NodesDark | Missing::NodesStopped => {
            let first = shuffled(machines.clone(), rng);
            let second = shuffled(machines, rng);
            let pairs = first.into_iter().zip(second).map(|(one, other)| set(vec![one, other]));
            // Two of them first, half of the time; a pair of one machine is one.
            let mut sets: Vec<BTreeSet<usize>> = pairs.collect();
            let ones: Vec<BTreeSet<usize>> = sets.iter().flatten().map(|&at| set(vec![at])).collect();
            if rng.chance(500) {
                sets = ones;
            } else {
                sets.truncate(DRAWS_MAX / 2);
                sets.extend(ones);
            }
            sets.into_iter().map(|missing| Broken { missing, ..Broken::default() }).collect()
        }
        Missing::LinkCut => {
            let both = rng.chance(700);
            let first = shuffled(machines.clone(), rng);
            let second = shuffled(machines, rng);
            let pairs = first.into_iter().zip(second).filter(|(one, other)| one != other);
            pairs.map(|(one, other)| between(&[one], &[other], both)).collect()
        }
        Missing::SitesCut => {
            let both = rng.chance(700);
            let of = |site| between(&cluster.of_site((site + 1) % sites), &cluster.of_site((site + 2) % sites), both);
            shuffled((0..sites).collect(), rng).into_iter().map(of).collect()
        }
    }
}

fn between(left: &[usize], right: &[usize], both: bool) -> Broken {
    let there = left.iter().flat_map(|&one| right.iter().map(move |&other| (one, other)));
    let back = there.clone().map(|(one, other)| (other, one)).filter(|_| both);
    let sides = [set(left.to_vec()), set(right.to_vec())];
    Broken { links: there.clone().chain(back).collect(), sides, ..Broken::default() }
}

fn set(list: Vec<usize>) -> BTreeSet<usize> {
    list.into_iter().collect()
}

fn shuffled(mut list: Vec<usize>, rng: &mut SimRng) -> Vec<usize> {
    for end in (1..list.len()).rev() {
        list.swap(end, rng.index(end + 1));
    }
    list
}

/// Whether new stripes can keep the floor on what may be relied upon: members that stay and are neither damaged nor `without`.
pub(crate) fn floor_possible(cluster: &Cluster, layout: &Layout, without: &BTreeSet<usize>) -> bool {
    let Some(profile) = layout.profiles.get(&layout.default_profile) else { return false };
    let floor = Profile { contract: profile.floor.clone(), ..profile.clone() };
    check_possible(&floor, &takers(cluster, layout, without)).is_ok()
}

/// Whether stripes of this profile and code can be placed so that any one node may be lost, without these machines.
fn any_node_possible(cluster: &Cluster, layout: &Layout, seal: &Seal, without: &BTreeSet<usize>) -> bool {
    let any_node = Contract::new(vec![Failures { sites: 0, nodes: 1 }]);
    let (Some(profile), Some(contract)) = (layout.profiles.get(&seal.profile), any_node) else { return false };
    let wanted = Profile { contract, code: seal.code, ..profile.clone() };
    // A disk that was hurt takes shards all the same.
    check_possible(&wanted, &nodes_with(cluster, layout, without, &|_, _| false)).is_ok()
}

/// The nodes that take shards, without these machines and those that faults have hurt.
fn takers(cluster: &Cluster, layout: &Layout, without: &BTreeSet<usize>) -> Topology {
    let hurt = |at: &usize, volume: VolumeId| cluster.hurt().contains(&volume) || cluster.atlas().is_damaged(*at);
    nodes_with(cluster, layout, without, &hurt)
}

/// The nodes with a volume that takes shards and is not `hurt`, without these machines.
fn nodes_with(
    cluster: &Cluster,
    layout: &Layout,
    without: &BTreeSet<usize>,
    hurt: &dyn Fn(&usize, VolumeId) -> bool,
) -> Topology {
    let takes_shards = |at: &usize| {
        let Some(node) = member(cluster, layout, *at).filter(|node| node.roles.storage && !node.draining) else {
            return false;
        };
        let sound = |volume: &&pacsvault_core::layout::Volume| {
            let known = volume.node == node.id && matches!(volume.state, VolumeState::Up | VolumeState::Away);
            known && !volume.draining && !hurt(at, volume.id)
        };
        layout.volumes.values().any(|volume| sound(&volume)) && !without.contains(at)
    };
    let nodes = |site: usize| cluster.of_site(site).iter().filter(|at| takes_shards(at)).count();
    Topology::with_nodes((0..cluster.scenario.sites).map(|site| (site_name(site), nodes(site))))
}

/// Machines that must be up: not missing, not being worked on, not waiting for a new node.
fn part(work: &Work, nemesis: &Nemesis, broken: &Broken) -> Vec<usize> {
    let cluster = &work.cluster;
    let there = |at: &usize| !broken.missing.contains(at) && !nemesis.is_held(*at) && !cluster.machines()[*at].blank;
    (0..cluster.count()).filter(there).collect()
}

async fn agrees(work: &Work, nemesis: &Nemesis, broken: &Broken) -> bool {
    let sim = &work.cluster.sim;
    let end = sim.now() + AGREED_WITHIN;
    loop {
        match agreed(work, nemesis, broken) {
            Ok(()) => {
                if let Err(why) = rows::compare(&work.cluster) {
                    work.violation(why);
                }
                return true;
            }
            Err(why) if sim.now() > end => {
                work.violation(format!("a part that must suffice does not agree: {why}; without {broken:?}"));
                return false;
            }
            Err(_) => sim.sleep(Life::HARNESS, Duration::from_millis(250)).await,
        }
    }
}

/// True when everybody who hears the leader is where it is.
fn agreed(work: &Work, nemesis: &Nemesis, broken: &Broken) -> Result<(), String> {
    let mut statuses = Vec::new();
    for at in part(work, nemesis, broken) {
        let replica = work.cluster.replica(at).ok_or_else(|| format!("machine {at} has no replica"))?;
        statuses.push((at, replica.status()));
    }
    let leading = statuses.iter().filter(|(_, status)| status.leader == Some(status.node) && !status.joint);
    let (leads, leader) = leading.max_by_key(|(_, status)| status.term).ok_or("nobody leads")?;
    for (at, status) in statuses.iter().filter(|(at, _)| !broken.cut(*at, *leads)) {
        if let Some(fatal) = &status.fatal {
            return Err(format!("machine {at} stopped: {fatal}"));
        }
        let of = |status: &Status| (status.applied, status.digest, status.leader, status.joint);
        if of(status) != of(leader) {
            return Err(format!("machine {at} is at {} under {:?}, the leader is not", status.applied, status.leader));
        }
    }
    Ok(())
}

/// Waits until the leader reaches everybody in the part, and tells its term; `None` where no link is cut or nobody does.
async fn led_in_touch(work: &Work, nemesis: &Nemesis, broken: &Broken) -> Option<Term> {
    let sim = &work.cluster.sim;
    if broken.links.is_empty() {
        return None;
    }
    let part = part(work, nemesis, broken);
    let in_touch = |at: &usize| part.iter().all(|other| !broken.still_cut(&work.cluster, *at, *other));
    let began = sim.now();
    // Since when somebody else could lead who reaches everybody.
    let mut since = None;
    loop {
        let all: Vec<(usize, Status)> =
            part.iter().filter_map(|&at| Some((at, work.cluster.replica(at)?.status()))).collect();
        let leads = |(_, status): &&(usize, Status)| status.leader == Some(status.node) && !status.joint;
        let leader = all.iter().filter(leads).max_by_key(|(_, status)| status.term);
        if let Some((_, status)) = leader.filter(|(at, _)| in_touch(at)) {
            sim.hit("part: led by somebody who reaches everybody");
            return Some(status.term);
        }
        let layout = newest_left(&work.cluster, broken).and_then(|replica| replica.layout());
        // Whoever is not known to be up is not given leadership.
        let fit = |at: &usize| {
            let (_, status) = leader?;
            let node = member(&work.cluster, layout.as_ref()?, *at)?;
            let votes = status.voters.contains(&node.id);
            (votes && node.state == NodeState::Up && !node.draining).then_some(())
        };
        if part.iter().filter(|at| in_touch(at)).any(|at| fit(at).is_some()) {
            since.get_or_insert(sim.now());
        } else {
            since = None;
        }
        if since.is_some_and(|since| sim.now() - since > AGREED_WITHIN) {
            let leads = leader.map(|(at, _)| *at);
            work.violation(format!(
                "machine {leads:?} leads, though another one reaches everybody; without {broken:?}"
            ));
            return None;
        }
        if since.is_none() && sim.now() - began > AGREED_WITHIN {
            sim.hit("part: nobody who could lead reaches everybody");
            return None;
        }
        sim.sleep(Life::HARNESS, Duration::from_millis(250)).await;
    }
}

/// The newest replica of the part.
fn newest_left(cluster: &Cluster, broken: &Broken) -> Option<Arc<dyn Replica>> {
    newest_of(cluster, |at| !broken.missing.contains(&at))
}

fn floor_left(cluster: &Cluster, broken: &Broken) -> bool {
    let layout = newest_left(cluster, broken).and_then(|replica| replica.layout());
    layout.is_some_and(|layout| broken.leaves_the_floor(cluster, &layout))
}

async fn takes_writes(work: &Arc<Work>, broken: &Broken, site: usize, rng: &mut SimRng) {
    let sim = &work.cluster.sim;
    if !floor_left(&work.cluster, broken) {
        return sim.hit("part: too small for the floor, no write asked of it");
    }
    let mut tried = takes_a_write(work, site, 0, Promise::Floor, rng).await;
    if !tried {
        tried = takes_a_write(work, site, 0, Promise::Floor, rng).await;
    }
    if tried {
        return sim.hit("part: took a write");
    }
    // People may have drained something meanwhile.
    if floor_left(&work.cluster, broken) {
        work.violation(format!("a part that must suffice takes no write at site {site}; without {broken:?}"));
    }
}

/// What must live, as it stands in the part once repair had time to find former copies that keep a promise: readers look only
/// where the catalog names a shard.
async fn standing_left(work: &Work, broken: &Broken) -> Option<Vec<Standing>> {
    let sim = &work.cluster.sim;
    let end = sim.now() + SAFER_WITHIN;
    loop {
        let all = standing_on(work, |at| !broken.missing.contains(&at))?;
        let waits = |one: &Standing| !one.readable && one.recoverable && promised(&work.cluster, broken, one);
        if !all.iter().any(waits) {
            return Some(all);
        }
        if sim.now() > end || !floor_left(&work.cluster, broken) {
            return Some(all);
        }
        sim.hit("part: promised by former copies, waits for repair");
        sim.sleep(Life::HARNESS, Duration::from_millis(500)).await;
    }
}

/// Reads what can be asked for.
async fn reads(work: &Arc<Work>, broken: &Broken, site: usize) {
    let cluster = &work.cluster;
    let Some(all) = standing_left(work, broken).await else {
        return work.violation("a part that must suffice has no replica".to_owned());
    };
    let reader = work.client(site).coordinator();
    for one in &all {
        let promised = promised(cluster, broken, one);
        let (key, version) = (one.key, one.sealed.version);
        if promised && one.recoverable && !one.readable && !floor_left(cluster, broken) {
            cluster.sim.hit("part: promised by former copies, too small for repair");
            continue;
        }
        match (promised, if promised { one.recoverable } else { one.readable }) {
            (true, true) => cluster.sim.hit("part: read what a receipt promised in spite of what is missing"),
            (false, true) => cluster.sim.hit("part: read what has enough shards left"),
            (true, false) => {
                let claims = &one.sealed.survives;
                work.violation(format!(
                    "version {version} of key {key} survives {claims:?}, and lacks shards in a part that must suffice; \
                     without {broken:?}"
                ));
                continue;
            }
            (false, false) => {
                cluster.sim.hit("part: content that waits for what is missing");
                continue;
            }
        }
        read_version(work, &reader, key, version, Expect::There("in a part that must suffice")).await;
    }
}

/// Whether the record's claims cover all that is damaged, was away for long or is missing. With everybody there, what was
/// damaged is covered always.
fn promised(cluster: &Cluster, broken: &Broken, one: &Standing) -> bool {
    let claims = Contract::new(one.sealed.survives.clone());
    broken.missing.is_empty() || claims.is_some_and(|claims| cluster.atlas().covered_by(&claims, &broken.missing))
}

/// Waits until no stripe of what can be read is one node from loss.
async fn grows_safer(work: &Work, broken: &Broken) {
    let cluster = &work.cluster;
    let sim = &cluster.sim;
    // Where a link is cut nobody need be down, and the leader may see the shards beyond.
    if broken.missing.is_empty() {
        return;
    }
    let Some(all) = standing_on(work, |at| !broken.missing.contains(&at)) else { return };
    let readable: Vec<Standing> = all.into_iter().filter(|one| one.readable).collect();
    let end = sim.now() + SAFER_WITHIN;
    loop {
        match endangered(cluster, broken, &readable) {
            Err(why) => return sim.hit(why),
            Ok(None) => return sim.hit("part: nothing left that the next node would lose"),
            Ok(Some(_)) if !floor_left(cluster, broken) => return sim.hit("part: too small for repair"),
            Ok(Some(why)) if sim.now() > end => return work.violation(why),
            Ok(Some(_)) => sim.sleep(Life::HARNESS, Duration::from_millis(500)).await,
        }
    }
}

/// A stripe that the next node may lose, by the catalog and with what is missing not counted.
/// The error says why that is not judged.
fn endangered(cluster: &Cluster, broken: &Broken, readable: &[Standing]) -> Result<Option<String>, &'static str> {
    let replica = newest_left(cluster, broken).ok_or("part: danger not judged, no replica runs")?;
    let layout = replica.layout().filter(|layout| layout.format >= 2);
    let layout = layout.ok_or("part: danger not judged, repair waits for the upgrade")?;
    let homes = homes(cluster);
    let mut too_few = false;
    for one in readable {
        let now = record(replica.as_ref(), one.sealed.seal.instance).filter(|record| record.deleted.is_none());
        let Some(now) = now else { continue };
        for (stripe, index) in now.seal.stripes.iter().zip(0_u32..) {
            let here = |volume: &VolumeId| homes.get(volume).is_some_and(|(at, _)| !broken.missing.contains(at));
            let held = persisted(stripe).filter(|(_, volume)| here(volume));
            // What lies on a volume that was given up may still be read, and is nothing to repair from.
            let gone =
                |volume: &VolumeId| layout.volumes.get(volume).is_none_or(|known| known.state == VolumeState::Fenced);
            let held: Vec<Held> = held
                .filter(|(_, volume)| !gone(volume))
                .map(|(shard, volume)| Held { shard: ShardIndex(shard), volume })
                .collect();
            if held.len() < now.seal.code.data() && !promised(cluster, broken, one) {
                cluster.sim.hit("part: stripe at a volume given up, more is damaged than was promised");
                continue;
            }
            if distance(&held, now.seal.code.data(), &layout).nodes < 2 {
                if !any_node_possible(cluster, &layout, &now.seal, &broken.missing) {
                    too_few = true;
                    continue;
                }
                let instance = now.seal.instance;
                return Ok(Some(format!(
                    "stripe {instance}/{index} stays one node from loss in a part that must suffice; without {broken:?}"
                )));
            }
        }
    }
    if too_few { Err("part: too few nodes for a stripe of this code to outlive the next") } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_link_has_two_sides_and_is_cut_whoever_asks() {
        let one_way = between(&[0, 1], &[2], false);
        assert_eq!(one_way.links, BTreeSet::from([(0, 2), (1, 2)]));
        assert!(one_way.cut(2, 0) && one_way.cut(1, 2) && !one_way.cut(0, 1));
        let both_ways = between(&[0], &[1], true);
        assert_eq!(both_ways.links, BTreeSet::from([(0, 1), (1, 0)]));
        assert_eq!(both_ways.sides, [set(vec![0]), set(vec![1])]);
    }

    #[test]
    fn shuffling_keeps_all_and_follows_the_seed() {
        let drawn = |seed| shuffled((0..9).collect(), &mut SimRng::new(seed));
        assert_eq!(set(drawn(1)).len(), 9);
        assert!(drawn(1) == drawn(1) && (1..9).any(|seed| drawn(seed) != drawn(0)));
    }
}
