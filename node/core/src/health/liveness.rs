//! Liveness: what the leader concludes from signs of life and from silence. Driven: beats and ticks come in, commands to
//! propose go out; no clock, no network.
//!
//! **Nodes.** `Up → Suspect → Down → Lost`, one step at a time, after the silences that [`Pace`] names; back to `Up`, from
//! wherever it is, after being heard without a longer silence for `steady_for`, twice as long for each return within the
//! last hour, up to sixteen times: a node that flaps gets shards less and less often, and each flap costs the log two
//! entries. Removed nodes are nobody's business.
//!
//! **Volumes.** Only what a node that is heard says, or does not say, counts: while it is silent its volumes keep their
//! state. A volume that it does not list for `down_after` is `Away`, for `lost_after` it is fenced for good. `Up` and
//! `ReadOnly` follow what the node says once it has said so for `steady_for`; that it is fenced is believed at once.
//!
//! **Time** here is the leader's own waking time: of any gap between two calls only the first heartbeat counts. A leader
//! that was stopped, or starved of CPU, saw nobody's silence meanwhile and judges nobody by it. The price: a leader that
//! ticks too rarely judges later, in proportion. `next_wakeup` never asks for more than half a heartbeat.
//!
//! **Invariants.** A new leader knows nothing: every silence begins when it began, and so do the counts of flaps. Nothing
//! is proposed before version 2 is in force. The same command is not proposed twice within [`REPEAT`] while the layout
//! does not show it. A leader that hears nobody proposes as usual, for without a quorum the log takes nothing. Beats of
//! nodes that the layout does not know, or of another life of a node, change nothing.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::report::{Heartbeat, ServedVolume};
use super::{Pace, Room};
use crate::catalog::command::Command;
use crate::ids::{Incarnation, NodeId, VolumeId};
use crate::layout::{Layout, Node, NodeState, Volume, VolumeState};

/// Shortest time between two proposals of the same command; a shorter `suspect_after` shortens it.
pub const REPEAT: Duration = Duration::from_secs(3);
/// How long a return is remembered.
const FLAP_WINDOW: Duration = Duration::from_secs(3_600);
/// Most doublings of `steady_for`: sixteen times.
const DOUBLINGS_MAX: u32 = 4;
/// A node that was heard once may have been lucky.
const BEATS_MIN: u32 = 2;
/// Most senders remembered before the first tick tells who is a member.
const STRANGERS_MAX: usize = 1_024;
/// Soonest wake-up: a deadline that is due waits for the log, not for another tick at once.
const WAKEUP_MIN: Duration = Duration::from_millis(5);

/// Who lives, as the leader hears it.
#[derive(Debug)]
pub struct Liveness {
    pace: Pace,
    /// Waking time since `new`.
    clock: Duration,
    /// Latest time seen.
    last: Duration,
    /// Members as of the last tick; none before the first.
    members: Option<BTreeMap<NodeId, Incarnation>>,
    beats: BTreeMap<NodeId, (Duration, Heartbeat)>,
    pulses: BTreeMap<NodeId, Pulse>,
    /// Owner and capacity, as of the last tick.
    owned: BTreeMap<VolumeId, (NodeId, u64)>,
    proposed: BTreeMap<Proposal, Duration>,
}

/// A command, small enough to remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Proposal {
    Node(NodeId, NodeState),
    Volume(VolumeId, VolumeState),
}

impl From<Proposal> for Command {
    fn from(proposal: Proposal) -> Self {
        match proposal {
            Proposal::Node(node, state) => Self::SetNodeState { node, state },
            Proposal::Volume(volume, state) => Self::SetVolumeState { volume, state },
        }
    }
}

/// One node, in waking time.
#[derive(Debug, Default)]
struct Pulse {
    /// When this leader began to listen for it.
    met: Duration,
    heard: Option<Duration>,
    /// Since when it has been heard without a gap of `suspect_after` …
    streak: Duration,
    /// … and how many times.
    beats: u32,
    flaps: Flaps<NodeState>,
    volumes: BTreeMap<VolumeId, Served>,
}

/// One volume of a node.
#[derive(Debug, Default)]
struct Served {
    /// What the node says of it, and since when within the present streak; absent while it is not listed.
    said: Option<(VolumeState, Duration)>,
    /// For how long the node has been heard without it.
    unserved: Duration,
    flaps: Flaps<VolumeState>,
}

/// Remembers returns, to be slower about the next.
#[derive(Debug)]
struct Flaps<S> {
    seen: Option<S>,
    returns: VecDeque<Duration>,
}

impl<S> Default for Flaps<S> {
    fn default() -> Self {
        Self { seen: None, returns: VecDeque::new() }
    }
}

impl<S: Copy + PartialEq> Flaps<S> {
    /// Notes the state that the layout shows now.
    fn note(&mut self, state: S, up: S, clock: Duration) {
        if self.seen.replace(state).is_some_and(|before| before != state) && state == up {
            self.returns.push_back(clock);
        }
        while self.returns.len() > DOUBLINGS_MAX as usize
            || self.returns.front().is_some_and(|&at| clock.saturating_sub(at) >= FLAP_WINDOW)
        {
            self.returns.pop_front();
        }
    }

    fn steady_for(&self, pace: &Pace) -> Duration {
        let doublings = u32::try_from(self.returns.len()).unwrap_or(DOUBLINGS_MAX).min(DOUBLINGS_MAX);
        pace.steady_for.saturating_mul(1 << doublings)
    }
}

impl Pulse {
    /// True when the silence of this node at `clock` is none to speak of.
    fn is_heard(&self, clock: Duration, pace: &Pace) -> bool {
        self.heard.is_some_and(|heard| clock.saturating_sub(heard) < pace.suspect_after)
    }

    /// How long it has been silent; since this leader began to listen, if it was never heard.
    fn silence(&self, clock: Duration) -> Duration {
        clock.saturating_sub(self.heard.unwrap_or(self.met))
    }

    /// How long it had been heard without a gap when it was heard last.
    fn steady(&self) -> Duration {
        self.heard.unwrap_or_default().saturating_sub(self.streak)
    }

    fn hear(&mut self, clock: Duration, beat: &Heartbeat, pace: &Pace) {
        let unbroken = self.is_heard(clock, pace);
        let passed = if unbroken { self.silence(clock) } else { Duration::ZERO };
        if !unbroken {
            (self.streak, self.beats) = (clock, 0);
        }
        self.heard = Some(clock);
        self.beats = self.beats.saturating_add(1);
        let told: BTreeMap<VolumeId, VolumeState> = beat.volumes.iter().map(|one| (one.volume, one.state)).collect();
        for volume in told.keys() {
            self.volumes.entry(*volume).or_default();
        }
        for (volume, served) in &mut self.volumes {
            // A node that calls its volume away does not serve it.
            match told.get(volume).copied().filter(|state| *state != VolumeState::Away) {
                Some(state) => {
                    let since = served.said.filter(|(said, _)| unbroken && *said == state).map(|(_, since)| since);
                    served.said = Some((state, since.unwrap_or(clock)));
                    served.unserved = Duration::ZERO;
                }
                None => {
                    served.said = None;
                    served.unserved += passed;
                }
            }
        }
    }

    /// The next step of a node's state, if one is due.
    fn step(&self, state: NodeState, clock: Duration, pace: &Pace) -> Option<NodeState> {
        let silence = self.silence(clock);
        let away = match state {
            NodeState::Removed => return None,
            NodeState::Up => return (silence >= pace.suspect_after).then_some(NodeState::Suspect),
            NodeState::Suspect => (silence >= pace.down_after).then_some(NodeState::Down),
            NodeState::Down => (silence >= pace.lost_after).then(|| {
                crate::sometimes!("recovery: silent node given up as lost");
                NodeState::Lost
            }),
            NodeState::Lost => None,
        };
        let steady = self.beats >= BEATS_MIN && self.steady() >= self.flaps.steady_for(pace);
        if !steady && !self.flaps.returns.is_empty() && self.steady() >= pace.steady_for {
            crate::sometimes!("recovery: flapping node kept waiting");
        }
        away.or_else(|| (steady && self.is_heard(clock, pace)).then_some(NodeState::Up))
    }

    /// When silence or steadiness makes the next step due, if nothing is heard until then.
    fn due(&self, state: NodeState, pace: &Pace) -> Option<Duration> {
        let after = match state {
            NodeState::Up => pace.suspect_after,
            NodeState::Suspect => pace.down_after,
            NodeState::Down => pace.lost_after,
            NodeState::Lost | NodeState::Removed => return None,
        };
        Some(self.heard.unwrap_or(self.met).saturating_add(after))
    }
}

impl Served {
    /// The next step of a volume's state, if one is due; asked only while its node is heard.
    fn step(&self, state: VolumeState, pulse: &Pulse, pace: &Pace) -> Option<VolumeState> {
        match (state, self.said) {
            (VolumeState::Fenced, _) => None,
            (_, Some((VolumeState::Fenced, _))) => Some(VolumeState::Fenced),
            (_, Some((said, since))) => {
                let said_for = pulse.heard.unwrap_or_default().saturating_sub(since);
                let steady = pulse.beats >= BEATS_MIN && said_for >= self.flaps.steady_for(pace);
                (said != state && steady).then_some(said)
            }
            (VolumeState::Away, None) => (self.unserved >= pace.lost_after).then_some(VolumeState::Fenced),
            (VolumeState::Up | VolumeState::ReadOnly, None) => {
                (self.unserved >= pace.down_after).then_some(VolumeState::Away)
            }
        }
    }
}

impl Liveness {
    /// A leader's, from the moment it leads. `now` is monotonic and of this process, here and below.
    pub fn new(pace: Pace, now: Duration) -> Self {
        Self {
            pace,
            clock: Duration::ZERO,
            last: now,
            members: None,
            beats: BTreeMap::new(),
            pulses: BTreeMap::new(),
            owned: BTreeMap::new(),
            proposed: BTreeMap::new(),
        }
    }

    /// A node gave a sign of life; the leader's own go in here, too.
    pub fn heard(&mut self, now: Duration, beat: &Heartbeat) {
        self.advance(now);
        let known = match &self.members {
            Some(members) => members.get(&beat.node) == Some(&beat.incarnation),
            None => self.beats.contains_key(&beat.node) || self.beats.len() < STRANGERS_MAX,
        };
        if known {
            self.beats.insert(beat.node, (now, beat.clone()));
            self.pulses.entry(beat.node).or_default().hear(self.clock, beat, &self.pace);
        }
    }

    /// What to propose now. Propose it and forget it: what the log has not taken is proposed again.
    pub fn tick(&mut self, now: Duration, layout: &Layout) -> Vec<Command> {
        self.advance(now);
        self.learn(layout);
        let repeat = REPEAT.min(self.pace.suspect_after);
        self.proposed.retain(|_, at| self.clock.saturating_sub(*at) < repeat);
        if layout.format < 2 {
            return Vec::new();
        }
        let nodes = layout.nodes.values().filter_map(|node| {
            let state = self.pulses.get(&node.id)?.step(node.state, self.clock, &self.pace)?;
            Some(Proposal::Node(node.id, state))
        });
        let volumes = layout.volumes.values().filter_map(|volume| {
            let pulse = self.pulses.get(&volume.node).filter(|pulse| pulse.is_heard(self.clock, &self.pace))?;
            let state = pulse.volumes.get(&volume.id)?.step(volume.state, pulse, &self.pace)?;
            Some(Proposal::Volume(volume.id, state))
        });
        let due: Vec<Proposal> =
            nodes.chain(volumes).filter(|proposal| !self.proposed.contains_key(proposal)).collect();
        self.proposed.extend(due.iter().map(|proposal| (*proposal, self.clock)));
        due.into_iter().map(Command::from).collect()
    }

    /// How long each node that is neither up nor removed has been silent, as far as this leader can know: from its own
    /// beginning, if it never heard it. A node that is heard is absent.
    pub fn silent(&self, now: Duration, layout: &Layout) -> BTreeMap<NodeId, Duration> {
        let clock = self.clock_at(now);
        let away = |node: &&Node| matches!(node.state, NodeState::Suspect | NodeState::Down | NodeState::Lost);
        let silence = |node: &Node| match self.pulses.get(&node.id) {
            Some(pulse) if pulse.is_heard(clock, &self.pace) => None,
            Some(pulse) => Some((node.id, pulse.silence(clock))),
            None => Some((node.id, Duration::ZERO)),
        };
        layout.nodes.values().filter(away).filter_map(silence).collect()
    }

    /// How full each volume of the layout last ticked with is, as its node told last, however long ago.
    pub fn rooms(&self) -> BTreeMap<VolumeId, Room> {
        let told = self.beats.values().flat_map(|(_, beat)| beat.volumes.iter().map(|one| (beat.node, one)));
        let room = |(node, one): (NodeId, &ServedVolume)| {
            let (_, capacity_bytes) = *self.owned.get(&one.volume).filter(|(owner, _)| *owner == node)?;
            // The disk may have more free than the volume may take.
            let free_bytes = one.free_bytes.min(capacity_bytes.saturating_sub(one.used_bytes));
            Some((one.volume, Room { capacity_bytes, used_bytes: one.used_bytes, free_bytes }))
        };
        told.filter_map(room).collect()
    }

    /// The last beat of each member, and the time `now` when it came.
    pub fn last_beats(&self) -> &BTreeMap<NodeId, (Duration, Heartbeat)> {
        &self.beats
    }

    /// The time `now` at which to tick next: at most half a heartbeat from now.
    pub fn next_wakeup(&self, now: Duration, layout: &Layout) -> Duration {
        let clock = self.clock_at(now);
        let due = layout.nodes.values().filter_map(|node| self.pulses.get(&node.id)?.due(node.state, &self.pace));
        let soonest = due.filter(|due| *due > clock).min().map_or(Duration::MAX, |due| due - clock);
        now + soonest.clamp(WAKEUP_MIN, (self.pace.heartbeat / 2).max(WAKEUP_MIN))
    }

    fn clock_at(&self, now: Duration) -> Duration {
        self.clock + now.saturating_sub(self.last).min(self.pace.heartbeat)
    }

    fn advance(&mut self, now: Duration) {
        self.clock = self.clock_at(now);
        self.last = self.last.max(now);
    }

    /// Takes in who is a member and what it owns, and forgets everybody and everything else.
    fn learn(&mut self, layout: &Layout) {
        let clock = self.clock;
        let members = layout.nodes.values().filter(|node| node.state != NodeState::Removed);
        let members: BTreeMap<NodeId, Incarnation> = members.map(|node| (node.id, node.incarnation)).collect();
        let foreign = |node: &NodeId, beat: &Heartbeat| members.get(node) != Some(&beat.incarnation);
        let gone: Vec<NodeId> =
            self.beats.iter().filter(|(node, (_, beat))| foreign(node, beat)).map(|(node, _)| *node).collect();
        for node in gone {
            self.beats.remove(&node);
            self.pulses.remove(&node);
        }
        self.pulses.retain(|node, _| members.contains_key(node));
        // Members of the first layout have been listened for from the beginning.
        let met = if self.members.is_some() { clock } else { Duration::ZERO };
        for node in members.keys() {
            let pulse = self.pulses.entry(*node).or_insert_with(|| Pulse { met, ..Pulse::default() });
            if let Some(known) = layout.nodes.get(node) {
                pulse.flaps.note(known.state, NodeState::Up, clock);
            }
            pulse.volumes.retain(|id, _| layout.volumes.get(id).is_some_and(|volume| volume.node == *node));
        }
        for Volume { id, node, state, .. } in layout.volumes.values() {
            if let Some(pulse) = self.pulses.get_mut(node) {
                pulse.volumes.entry(*id).or_default().flaps.note(*state, VolumeState::Up, clock);
            }
        }
        let owned = |volume: &Volume| (volume.id, (volume.node, volume.capacity_bytes));
        self.owned = layout.volumes.values().map(owned).collect();
        self.members = Some(members);
    }
}

#[cfg(test)]
#[path = "liveness_tests.rs"]
mod tests;
