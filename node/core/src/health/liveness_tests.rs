//! `liveness` as facts, and over random histories against what anybody would say who knows when each node was heard.

use proptest::prelude::*;

use super::*;
use crate::health::report::{ScrubAge, ServedVolume};
use crate::layout::testing::{cluster, volume};

const SECOND: Duration = Duration::from_secs(1);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn beat_of(node: u64, volumes: &[(u64, VolumeState)]) -> Heartbeat {
    let served = |&(number, state): &(u64, VolumeState)| ServedVolume {
        volume: volume(number),
        state,
        shards: 0,
        used_bytes: 10,
        free_bytes: 20,
        scrub: ScrubAge::default(),
    };
    Heartbeat {
        node: NodeId(node),
        incarnation: Incarnation([0; 16]),
        volumes: volumes.iter().map(served).collect(),
        tasks: 0,
        allowed_bytes_per_s: 0,
    }
}

/// A leader over two sites of two nodes with one volume each, and a log that takes every proposal.
struct Cluster {
    layout: Layout,
    liveness: Liveness,
    now: Duration,
    /// What each node tells each second; silent when absent.
    says: BTreeMap<u64, Vec<(u64, VolumeState)>>,
    proposed: Vec<(Duration, Command)>,
    log_takes: bool,
}

impl Cluster {
    fn new() -> Self {
        let says = (0..4).map(|node| (node, vec![(node, VolumeState::Up)])).collect();
        let now = seconds(1_000);
        let liveness = Liveness::new(Pace::default(), now);
        Self { layout: cluster(&[2, 2], 1), liveness, now, says, proposed: Vec::new(), log_takes: true }
    }

    /// Ticks every half second, with beats every second.
    fn run(&mut self, count: u64) {
        for half in 0..count * 2 {
            self.now += SECOND / 2;
            if half % 2 == 1 {
                for (node, volumes) in &self.says {
                    self.liveness.heard(self.now, &beat_of(*node, volumes));
                }
            }
            self.tick();
        }
    }

    fn tick(&mut self) {
        for command in self.liveness.tick(self.now, &self.layout) {
            if self.log_takes {
                take(&mut self.layout, &command);
            }
            self.proposed.push((self.now, command));
        }
    }

    fn node(&self, node: u64) -> NodeState {
        self.layout.nodes[&NodeId(node)].state
    }

    fn volume(&self, number: u64) -> VolumeState {
        self.layout.volumes[&volume(number)].state
    }
}

fn take(layout: &mut Layout, command: &Command) {
    match command {
        Command::SetNodeState { node, state } => {
            layout.nodes.get_mut(node).expect("a known node").state = *state;
        }
        Command::SetVolumeState { volume, state } => {
            layout.volumes.get_mut(volume).expect("a known volume").state = *state;
        }
        other => panic!("not for liveness to propose: {other:?}"),
    }
}

#[test]
fn a_silent_node_becomes_suspect_then_down_then_lost() {
    let mut it = Cluster::new();
    it.run(10);
    it.says.remove(&3);
    it.run(4);
    assert_eq!(it.node(3), NodeState::Up);
    it.run(2);
    assert_eq!(it.node(3), NodeState::Suspect);
    it.run(20);
    assert_eq!(it.node(3), NodeState::Suspect);
    it.run(6);
    assert_eq!(it.node(3), NodeState::Down);
    it.run(24 * 3_600 - 60);
    assert_eq!(it.node(3), NodeState::Down);
    it.run(60);
    assert_eq!(it.node(3), NodeState::Lost);
    assert_eq!(it.volume(3), VolumeState::Up, "nobody who could know says anything of it");
    assert_eq!(it.proposed.len(), 3, "{:?}", it.proposed);
    assert_eq!(it.liveness.silent(it.now, &it.layout).keys().copied().collect::<Vec<_>>(), [NodeId(3)]);
}

#[test]
fn a_new_leader_gives_everybody_the_full_grace() {
    let mut it = Cluster::new();
    it.says.clear();
    it.layout.nodes.get_mut(&NodeId(0)).expect("node 0").state = NodeState::Suspect;
    it.layout.nodes.get_mut(&NodeId(1)).expect("node 1").state = NodeState::Down;
    it.run(4);
    assert_eq!(it.proposed, []);
    let silent = it.liveness.silent(it.now, &it.layout);
    assert_eq!(silent, BTreeMap::from([(NodeId(0), seconds(4)), (NodeId(1), seconds(4))]));
    it.run(25);
    assert_eq!(it.node(0), NodeState::Suspect);
    it.run(2);
    assert_eq!([0, 1, 2, 3].map(|node| it.node(node)), [NodeState::Down; 4]);
}

#[test]
fn a_node_that_joins_later_has_its_own_grace() {
    let mut it = Cluster::new();
    let late = it.layout.nodes.remove(&NodeId(3)).expect("node 3");
    it.says.remove(&3);
    it.run(100);
    it.layout.nodes.insert(NodeId(3), late);
    it.run(4);
    assert_eq!(it.proposed, []);
    it.run(2);
    assert_eq!(it.node(3), NodeState::Suspect);
}

#[test]
fn a_node_returns_once_it_is_heard_steadily() {
    for away in [8, 60, 25 * 3_600] {
        let mut it = Cluster::new();
        it.run(5);
        let says = it.says.remove(&2).expect("node 2");
        it.run(away);
        assert_ne!(it.node(2), NodeState::Up);
        it.says.insert(2, says);
        it.run(3);
        assert_ne!(it.node(2), NodeState::Up, "heard for two seconds only");
        assert!(it.liveness.silent(it.now, &it.layout).is_empty(), "but heard");
        it.run(1);
        assert_eq!(it.node(2), NodeState::Up);
    }
}

#[test]
fn one_beat_is_not_a_return() {
    let mut it = Cluster::new();
    it.liveness.pace.steady_for = Duration::ZERO;
    let says = it.says.remove(&2).expect("node 2");
    it.run(10);
    it.liveness.heard(it.now, &beat_of(2, &says));
    it.run(20);
    assert_eq!(it.node(2), NodeState::Suspect);
}

#[test]
fn each_return_within_the_hour_takes_twice_as_long_up_to_sixteen_times() {
    let mut it = Cluster::new();
    it.run(5);
    let mut took = Vec::new();
    for _ in 0..7 {
        let says = it.says.remove(&1).expect("node 1");
        it.run(8);
        assert_eq!(it.node(1), NodeState::Suspect);
        it.says.insert(1, says);
        let heard = it.now + SECOND;
        while it.node(1) != NodeState::Up {
            it.run(1);
        }
        took.push((it.now - heard).as_secs());
    }
    assert_eq!(took, [3, 6, 12, 24, 48, 48, 48]);
    it.run(3_700);
    it.says.remove(&1);
    it.run(8);
    it.says.insert(1, vec![(1, VolumeState::Up)]);
    it.run(4);
    assert_eq!(it.node(1), NodeState::Up, "an hour later it is forgiven");
}

#[test]
fn a_leader_that_was_stopped_judges_nobody_by_its_own_pause() {
    let mut it = Cluster::new();
    it.run(10);
    for pause in [6, 40, 3 * 24 * 3_600] {
        it.now += seconds(pause);
        it.tick();
        it.run(3);
    }
    assert_eq!(it.proposed, []);
    it.says.remove(&0);
    it.now += seconds(40);
    it.tick();
    assert_eq!(it.proposed, [], "what was silent meanwhile is not known");
    it.run(5);
    assert_eq!(it.node(0), NodeState::Suspect, "but it is watched from then on");
}

#[test]
fn a_leader_that_ticks_too_rarely_still_judges_in_the_end() {
    let mut it = Cluster::new();
    it.run(3);
    for _ in 0..5 {
        it.now += seconds(2);
        it.tick();
    }
    assert_eq!([0, 1, 2, 3].map(|node| it.node(node)), [NodeState::Suspect; 4]);
}

#[test]
fn nothing_is_proposed_before_version_two() {
    let mut it = Cluster::new();
    it.layout.format = 1;
    it.says = BTreeMap::from([(0, vec![(0, VolumeState::Fenced)]), (1, vec![])]);
    it.run(200);
    assert_eq!(it.proposed, []);
    it.layout.format = 2;
    it.tick();
    assert_eq!(it.node(2), NodeState::Suspect);
    assert_eq!([it.volume(0), it.volume(1)], [VolumeState::Fenced, VolumeState::Away]);
}

#[test]
fn removed_nodes_are_left_alone() {
    let mut it = Cluster::new();
    it.layout.nodes.get_mut(&NodeId(0)).expect("node 0").state = NodeState::Removed;
    it.run(60);
    it.says.remove(&0);
    it.run(60);
    assert_eq!(it.proposed, []);
    assert!(!it.liveness.last_beats().contains_key(&NodeId(0)));
}

#[test]
fn beats_of_strangers_and_of_other_lives_change_nothing() {
    let mut it = Cluster::new();
    it.liveness.heard(it.now, &Heartbeat { incarnation: Incarnation([9; 16]), ..beat_of(3, &[]) });
    it.liveness.heard(it.now, &beat_of(77, &[]));
    it.run(5);
    it.says.remove(&3);
    for _ in 0..40 {
        it.run(1);
        it.liveness.heard(it.now, &Heartbeat { incarnation: Incarnation([9; 16]), ..beat_of(3, &[]) });
        it.liveness.heard(it.now, &beat_of(77, &[(0, VolumeState::Fenced)]));
    }
    assert_eq!(it.node(3), NodeState::Down);
    assert_eq!(it.volume(0), VolumeState::Up);
    assert!(!it.liveness.last_beats().contains_key(&NodeId(77)));
    assert_eq!(it.liveness.last_beats().len(), 4);
}

#[test]
fn a_volume_that_its_living_node_does_not_serve_is_away_then_fenced() {
    let mut it = Cluster::new();
    it.run(5);
    it.says.insert(0, vec![]);
    it.run(29);
    assert_eq!(it.volume(0), VolumeState::Up);
    it.run(2);
    assert_eq!(it.volume(0), VolumeState::Away);
    it.run(24 * 3_600 - 60);
    assert_eq!(it.volume(0), VolumeState::Away);
    it.run(60);
    assert_eq!(it.volume(0), VolumeState::Fenced);
    assert_eq!(it.node(0), NodeState::Up);
    it.says.insert(0, vec![(0, VolumeState::Up)]);
    it.run(1_000);
    assert_eq!(it.volume(0), VolumeState::Fenced, "final");
    assert_eq!(it.proposed.len(), 2);
}

#[test]
fn a_volume_that_is_served_again_returns_as_its_node_says() {
    for says in [VolumeState::Up, VolumeState::ReadOnly] {
        let mut it = Cluster::new();
        it.says.insert(0, vec![(0, VolumeState::Away)]);
        it.run(40);
        assert_eq!(it.volume(0), VolumeState::Away);
        it.says.insert(0, vec![(0, says)]);
        it.run(5);
        assert_eq!(it.volume(0), says);
    }
}

#[test]
fn a_silent_nodes_volumes_keep_their_state() {
    let mut it = Cluster::new();
    it.says.insert(0, vec![]);
    it.run(20);
    it.says.remove(&0);
    it.run(2 * 24 * 3_600);
    assert_eq!(it.node(0), NodeState::Lost);
    assert_eq!(it.volume(0), VolumeState::Up);
    it.says.insert(0, vec![]);
    it.run(13);
    assert_eq!(it.volume(0), VolumeState::Away, "the time for which it was heard without it adds up");
}

#[test]
fn read_only_follows_the_node_only_when_it_is_steady() {
    let mut it = Cluster::new();
    for _ in 0..20 {
        it.says.insert(0, vec![(0, VolumeState::ReadOnly)]);
        it.run(2);
        it.says.insert(0, vec![(0, VolumeState::Up)]);
        it.run(2);
    }
    assert_eq!(it.proposed, []);
    it.says.insert(0, vec![(0, VolumeState::ReadOnly)]);
    it.run(5);
    assert_eq!(it.volume(0), VolumeState::ReadOnly);
    it.says.insert(0, vec![(0, VolumeState::Up)]);
    it.run(5);
    assert_eq!(it.volume(0), VolumeState::Up);
}

#[test]
fn a_volume_that_its_node_calls_fenced_is_fenced_at_once() {
    let mut it = Cluster::new();
    it.run(3);
    it.says.insert(0, vec![(0, VolumeState::Fenced), (1, VolumeState::Fenced)]);
    it.run(1);
    assert_eq!(it.volume(0), VolumeState::Fenced);
    it.run(10);
    assert_eq!(it.volume(1), VolumeState::Up, "not its own");
}

#[test]
fn a_command_that_the_log_does_not_take_is_not_repeated_at_once() {
    let mut it = Cluster::new();
    it.log_takes = false;
    it.says.remove(&3);
    it.run(35);
    let times: Vec<Duration> = it.proposed.iter().map(|(at, _)| *at).collect();
    assert!(times.len() >= 9, "it insists: {times:?}");
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= REPEAT), "{times:?}");
    let suspect = Command::SetNodeState { node: NodeId(3), state: NodeState::Suspect };
    assert!(it.proposed.iter().all(|(_, command)| *command == suspect));
}

#[test]
fn rooms_are_as_the_owner_told_last_within_capacity() {
    let mut it = Cluster::new();
    it.layout.volumes.get_mut(&volume(0)).expect("volume 0").capacity_bytes = 25;
    it.says.insert(1, vec![(0, VolumeState::Up)]);
    it.run(2);
    it.says.remove(&2);
    it.run(60);
    let rooms = it.liveness.rooms();
    assert_eq!(rooms.keys().copied().collect::<Vec<_>>(), [volume(0), volume(2), volume(3)]);
    assert_eq!(rooms[&volume(0)], Room { capacity_bytes: 25, used_bytes: 10, free_bytes: 15 });
    assert_eq!(rooms[&volume(2)].free_bytes, 20);
}

#[test]
fn the_next_tick_is_never_more_than_half_a_heartbeat_away() {
    let mut it = Cluster::new();
    it.says.remove(&3);
    for _ in 0..100 {
        it.now = it.liveness.next_wakeup(it.now, &it.layout);
        let before = it.now;
        it.tick();
        let next = it.liveness.next_wakeup(it.now, &it.layout);
        assert!(next > before && next - before <= SECOND / 2);
    }
}

/// Half a second of a history.
#[derive(Debug, Clone)]
struct Moment {
    /// Bit per node that is heard.
    heard: u8,
    /// Bit per node that lists its volume, and what it says of it.
    listed: u8,
    read_only: u8,
    /// The leader is stopped for so many seconds first.
    pause: Option<u64>,
    /// Another leader begins.
    restart: bool,
    /// The log takes what is proposed.
    takes: bool,
}

fn moment() -> impl Strategy<Value = Moment> {
    let bits = || prop_oneof![3 => Just(0xf_u8), 2 => 0_u8..16, 1 => Just(0_u8)];
    let pause = prop::option::weighted(0.02, 1_u64..200);
    let rarely = prop::bool::weighted(0.02);
    (bits(), bits(), 0_u8..16, pause, rarely, prop::bool::weighted(0.9)).prop_map(
        |(heard, listed, read_only, pause, restart, takes)| Moment { heard, listed, read_only, pause, restart, takes },
    )
}

/// Stretches of like moments: outages and calm, not only noise.
fn history() -> impl Strategy<Value = Vec<Moment>> {
    let stretch = (moment(), 1_usize..40).prop_map(|(moment, count)| {
        let calm = Moment { pause: None, restart: false, ..moment.clone() };
        std::iter::once(moment).chain(std::iter::repeat_n(calm, count)).collect::<Vec<_>>()
    });
    prop::collection::vec(stretch, 1..40).prop_map(|stretches| stretches.concat())
}

fn brisk() -> Pace {
    Pace {
        suspect_after: seconds(3),
        urgent_after: seconds(4),
        down_after: seconds(8),
        lost_after: seconds(20),
        steady_for: seconds(2),
        ..Pace::default()
    }
}

/// What an onlooker knows of a node, in the time for which the leader was awake (never more than wall time).
#[derive(Debug, Clone, Copy)]
struct Known {
    heard: Duration,
    listed: Duration,
    /// Since when it has been heard in every second.
    unbroken: Option<Duration>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_proposal_is_a_legal_step_with_a_true_reason(history in history()) {
        let pace = brisk();
        let mut layout = cluster(&[2, 2], 1);
        let mut now = seconds(50);
        let mut liveness = Liveness::new(pace.clone(), now);
        let mut awake = Duration::ZERO;
        let fresh = |awake| [Known { heard: awake, listed: awake, unbroken: None }; 4];
        let mut known = fresh(awake);
        let mut proposed: Vec<(Duration, Command)> = Vec::new();
        for moment in &history {
            let passed = Duration::from_millis(500) + seconds(moment.pause.unwrap_or(0));
            now += passed;
            awake += passed.min(pace.heartbeat);
            if moment.restart {
                liveness = Liveness::new(pace.clone(), now);
                known = fresh(awake);
                proposed.clear();
            }
            for node in 0..4_u8 {
                let one = &mut known[usize::from(node)];
                if moment.heard & (1 << node) == 0 {
                    continue;
                }
                let state = if moment.read_only & (1 << node) == 0 { VolumeState::Up } else { VolumeState::ReadOnly };
                let own = [(u64::from(node), state)];
                let lists = moment.listed & (1 << node) != 0;
                liveness.heard(now, &beat_of(u64::from(node), if lists { &own } else { &[] }));
                one.unbroken = one.unbroken.filter(|_| awake - one.heard < pace.suspect_after);
                one.unbroken.get_or_insert(awake);
                one.heard = awake;
                if lists {
                    one.listed = awake;
                }
            }
            for command in liveness.tick(now, &layout) {
                let again = proposed.iter().any(|(at, old)| *old == command && now - *at < pace.suspect_after);
                prop_assert!(!again, "{command:?} again at once");
                match &command {
                    Command::SetNodeState { node, state } => {
                        let one = known[usize::try_from(node.0).expect("one of four")];
                        let least = match (layout.nodes[node].state, state) {
                            (NodeState::Up, NodeState::Suspect) => pace.suspect_after,
                            (NodeState::Suspect, NodeState::Down) => pace.down_after,
                            (NodeState::Down, NodeState::Lost) => pace.lost_after,
                            (NodeState::Suspect | NodeState::Down | NodeState::Lost, NodeState::Up) => {
                                let since = one.unbroken.expect("heard");
                                prop_assert!(one.heard - since >= pace.steady_for, "heard steadily");
                                Duration::ZERO
                            }
                            step => return Err(TestCaseError::fail(format!("no such step: {step:?}"))),
                        };
                        prop_assert!(awake - one.heard >= least, "silent for {:?} only", awake - one.heard);
                    }
                    Command::SetVolumeState { volume, state } => {
                        let owner = layout.volumes[volume].node;
                        let one = known[usize::try_from(owner.0).expect("one of four")];
                        prop_assert!(awake - one.heard < pace.suspect_after, "its node is heard");
                        match (layout.volumes[volume].state, state) {
                            (VolumeState::Up | VolumeState::ReadOnly, VolumeState::Away) => {
                                prop_assert!(awake - one.listed >= pace.down_after);
                            }
                            (VolumeState::Away, VolumeState::Fenced) => {
                                prop_assert!(awake - one.listed >= pace.lost_after);
                            }
                            (from, VolumeState::Up | VolumeState::ReadOnly) => {
                                prop_assert!(from != *state && from != VolumeState::Fenced);
                                prop_assert!(one.listed == one.heard, "it serves it");
                            }
                            step => return Err(TestCaseError::fail(format!("no such step: {step:?}"))),
                        }
                    }
                    other => return Err(TestCaseError::fail(format!("not for liveness: {other:?}"))),
                }
                if moment.takes {
                    take(&mut layout, &command);
                } else {
                    proposed.push((now, command));
                }
            }
        }
        // No more faults: everything that can return does.
        for _ in 0..200 {
            now += Duration::from_millis(500);
            for node in 0..4 {
                liveness.heard(now, &beat_of(node, &[(node, VolumeState::Up)]));
            }
            for command in liveness.tick(now, &layout) {
                take(&mut layout, &command);
            }
        }
        prop_assert!(layout.nodes.values().all(|node| node.state == NodeState::Up));
        prop_assert!(layout.volumes.values().all(|one| matches!(one.state, VolumeState::Up | VolumeState::Fenced)));
        prop_assert_eq!(liveness.tick(now, &layout), Vec::new());
    }
}
