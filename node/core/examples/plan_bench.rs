//! Prints how long planning takes with 10 million stripes: a survey of the sums of all placements when all is well and
//! after losses, single tasks per second, and the shifts of a rebalance. Arguments: rounds (default 5); the fastest counts.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use pacsvault_core::health::rebalance::{shift_task, shifts};
use pacsvault_core::health::repair::{Item, Planned, Room, Situation, survey, task};
use pacsvault_core::health::{Group, Pace, StripeState, Sums};
use pacsvault_core::ids::{
    ClusterId, Incarnation, InstanceId, LayoutVersion, NodeId, PlacementId, SiteName, StripeIndex, VolumeId, WallMillis,
};
use pacsvault_core::layout::profile::ReadPreference;
use pacsvault_core::layout::{Contract, Failures, Layout, Node, NodeState, Profile, Roles, Volume, VolumeState};

const STRIPES: u64 = 10_000_000;
/// Content of a stripe: an ordinary slice of a CT.
const STRIPE_BYTES: u64 = 512 << 10;
const TASKS: usize = 2_000;

struct Cluster {
    layout: Layout,
    groups: Vec<Group>,
    rooms: BTreeMap<VolumeId, Room>,
    silent: BTreeMap<NodeId, Duration>,
    pace: Pace,
}

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    for (sites, nodes, disks, groups) in [(3, 2, 4, 100_000), (3, 20, 8, 100_000)] {
        let cluster = Cluster::new(sites, nodes, disks, groups);
        println!(
            "{STRIPES} stripes, {groups} groups, {sites} sites of {nodes} nodes with {disks} volumes, 4+2 for any one site"
        );
        cluster.run("all well", rounds, |_| {});
        cluster.run("one node lost", rounds, |layout| lose(layout, |node| node.id == NodeId(1)));
        cluster.run("one site away", rounds, |layout| {
            let site = site(1);
            layout.nodes.values_mut().filter(|node| node.site == site).for_each(|node| node.state = NodeState::Down);
        });
        cluster.run("one node drained", rounds, |layout| {
            layout.nodes.values_mut().filter(|node| node.id == NodeId(1)).for_each(|node| node.draining = true);
        });
        cluster.rebalance(rounds);
    }
}

fn lose(layout: &mut Layout, which: impl Fn(&Node) -> bool) {
    layout.nodes.values_mut().filter(|node| which(node)).for_each(|node| node.state = NodeState::Lost);
}

fn site(number: u64) -> SiteName {
    format!("site-{number}").parse().expect("a site name")
}

fn fastest<T>(rounds: usize, run: impl Fn() -> T) -> (Duration, T) {
    let timed = || {
        let start = Instant::now();
        let result = black_box(run());
        (start.elapsed(), result)
    };
    (0..rounds.max(1)).map(|_| timed()).min_by_key(|(took, _)| *took).expect("at least one round")
}

impl Cluster {
    fn new(sites: u64, nodes: u64, disks: u64, groups: usize) -> Self {
        let profile = Profile {
            name: "standard".parse().expect("a profile name"),
            version: 1,
            code: "4+2".parse().expect("a code"),
            contract: "1 site".parse().expect("a contract"),
            floor: Contract::one(Failures { sites: 0, nodes: 1 }),
            read_preference: ReadPreference::OwnSite,
        };
        let mut layout = layout(sites, nodes, disks);
        layout.profiles.insert(profile.name.clone(), profile.clone());
        let placed: Vec<Vec<VolumeId>> =
            (0..groups as u64).map(|number| placement(number, sites, nodes, disks)).collect();
        let each = STRIPES / groups as u64;
        let sums = Sums {
            stripes: each,
            content_bytes: each * STRIPE_BYTES,
            shard_bytes: each * profile.code.shard_bytes(STRIPE_BYTES),
        };
        let group = |(id, volumes)| Group {
            placement: PlacementId(id),
            volumes,
            profile: profile.name.clone(),
            profile_version: 1,
            code: profile.code,
            sums,
        };
        let groups: Vec<Group> = (0..).zip(placed).map(group).collect();
        let mut rooms: BTreeMap<VolumeId, Room> = BTreeMap::new();
        for volume in layout.volumes.values() {
            let capacity_bytes = volume.capacity_bytes;
            rooms.insert(volume.id, Room { capacity_bytes, used_bytes: 0, free_bytes: capacity_bytes });
        }
        for (group, volume) in groups.iter().flat_map(|group| group.volumes.iter().map(move |volume| (group, volume))) {
            rooms.get_mut(volume).expect("a known volume").used_bytes += group.sums.shard_bytes;
        }
        Self { layout, groups, rooms, silent: BTreeMap::new(), pace: Pace::default() }
    }

    fn situation<'a>(&'a self, layout: &'a Layout) -> Situation<'a> {
        Situation { layout, silent: &self.silent, pace: &self.pace, rooms: &self.rooms }
    }

    fn stripe(&self, group: usize, number: u128) -> StripeState {
        let group = &self.groups[group];
        StripeState {
            instance: InstanceId::new(WallMillis(1), number),
            stripe: StripeIndex(0),
            stripe_bytes: STRIPE_BYTES,
            code: group.code,
            profile: group.profile.clone(),
            volumes: group.volumes.clone(),
            persisted: 0b11_1111,
            former: BTreeMap::new(),
        }
    }

    fn run(&self, name: &str, rounds: usize, change: impl Fn(&mut Layout)) {
        let mut layout = self.layout.clone();
        change(&mut layout);
        let situation = self.situation(&layout);
        let (took, told) = fastest(rounds, || survey(&self.groups, &[], &situation));
        let groups = told.work.iter().filter_map(|work| match work.what {
            Item::Group(index) => Some(index),
            Item::Stripe(_) => None,
        });
        let states: Vec<StripeState> =
            groups.cycle().take(TASKS).zip(0..).map(|(group, number)| self.stripe(group, number)).collect();
        let stripes: u64 = told.waiting.values().map(|sums| sums.stripes).sum();
        let (all, planned) = fastest(rounds, || {
            states.iter().filter(|state| matches!(task(state, &situation), Planned::Task(_))).count()
        });
        assert_eq!(planned, states.len(), "what the survey calls work has a task");
        let rate = states.len() as f64 / all.as_secs_f64().max(1e-9);
        print!("  {name:<18} survey {:7.1} ms, {stripes:>8} stripes of work", took.as_secs_f64() * 1e3);
        if states.is_empty() { println!() } else { println!(", {rate:>8.0} tasks/s") }
    }

    /// A volume joins: it is empty.
    fn rebalance(&self, rounds: usize) {
        let mut rooms = self.rooms.clone();
        let mut groups = self.groups.clone();
        let fresh = VolumeId(1_u128.to_be_bytes());
        groups.retain(|group| !group.volumes.contains(&fresh));
        rooms.values_mut().for_each(|room| room.used_bytes = 0);
        for (group, volume) in groups.iter().flat_map(|group| group.volumes.iter().map(move |volume| (group, volume))) {
            rooms.get_mut(volume).expect("a known volume").used_bytes += group.sums.shard_bytes;
        }
        let largest = rooms.values().map(|room| room.used_bytes).max().unwrap_or(1);
        rooms.values_mut().for_each(|room| room.capacity_bytes = largest * 2);
        let situation = Situation { rooms: &rooms, ..self.situation(&self.layout) };
        let (took, plan) = fastest(rounds, || shifts(&groups, &situation));
        let moved: u64 = plan.iter().map(|shift| shift.shards_bytes).sum();
        let state = |(shift, number): (&pacsvault_core::health::rebalance::Shift, u128)| {
            let mut state = self.stripe(0, number);
            state.volumes.clone_from(&groups[shift.group].volumes);
            (state, shift.from)
        };
        let states: Vec<(StripeState, VolumeId)> = plan.iter().cycle().take(TASKS).zip(0..).map(state).collect();
        let (all, planned) =
            fastest(rounds, || states.iter().filter_map(|(state, from)| shift_task(state, *from, &situation)).count());
        println!(
            "  {:<18} shifts {:7.1} ms, {} groups of {} give {} GiB, {planned} of {} tasks found, {:.0} tasks/s",
            "one volume empty",
            took.as_secs_f64() * 1e3,
            plan.len(),
            groups.len(),
            moved >> 30,
            states.len(),
            states.len() as f64 / all.as_secs_f64().max(1e-9),
        );
    }
}

/// Two shards on two nodes of each of three sites, by a fixed scramble of the number.
fn placement(number: u64, sites: u64, nodes: u64, disks: u64) -> Vec<VolumeId> {
    let hash = blake3::hash(&number.to_le_bytes());
    let mut draws = hash.as_bytes().iter().map(|byte| u64::from(*byte));
    let mut draw = |below: u64| draws.next().unwrap_or(0) % below;
    let mut volumes = Vec::new();
    for turn in 0..3 {
        let site = (number + turn) % sites;
        let first = draw(nodes);
        let second = (first + 1 + draw(nodes - 1)) % nodes;
        for node in [first, second] {
            let at = (site * nodes + node) * disks + draw(disks);
            volumes.push(VolumeId(u128::from(at).to_be_bytes()));
        }
    }
    let by = usize::try_from(draw(6)).expect("small");
    volumes.rotate_left(by);
    volumes
}

fn layout(sites: u64, nodes: u64, disks: u64) -> Layout {
    let mut layout = Layout {
        cluster: ClusterId([7; 16]),
        version: LayoutVersion(1),
        format: 2,
        nodes: BTreeMap::new(),
        volumes: BTreeMap::new(),
        profiles: BTreeMap::new(),
        default_profile: "standard".parse().expect("a profile name"),
    };
    for number in 0..sites * nodes {
        let node = Node {
            id: NodeId(number),
            name: format!("node-{number}").parse().expect("a node name"),
            site: site(number / nodes),
            address: format!("node-{number}:7000"),
            roles: Roles { storage: true, voter: true },
            state: NodeState::Up,
            incarnation: Incarnation([0; 16]),
            version: 2,
            draining: false,
        };
        layout.nodes.insert(node.id, node);
        for disk in 0..disks {
            let id = VolumeId(u128::from(number * disks + disk).to_be_bytes());
            let volume =
                Volume { id, node: NodeId(number), capacity_bytes: 1 << 44, state: VolumeState::Up, draining: false };
            layout.volumes.insert(id, volume);
        }
    }
    layout
}
